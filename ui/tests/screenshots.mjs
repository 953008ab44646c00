// Takes the pictures of docs/images, of a server with the program's own models.

import { join } from "node:path";
import { launch, open, root, SAMPLES, serve } from "./browser.mjs";

const server = await serve();
const browser = await launch();

async function shoot(name, options, body) {
  const { page, context } = await open(browser, server.url, options);
  await body(page);
  await page.mouse.move(0, 0);
  await page.screenshot({ path: root(`docs/images/${name}.png`), animations: "disabled", caret: "hide" });
  await context.close();
}

async function see(page) {
  await page.locator("input[type=file][multiple]").setInputFiles(join(SAMPLES, "shapes.png"));
  for (const question of ["What is in this picture?", "How many shapes are there?"]) {
    await page.getByRole("textbox", { name: "Question" }).fill(question);
    await page.keyboard.press("Enter");
    await page.locator("article").last().locator(".figures").waitFor();
  }
  await page.evaluate(() => document.activeElement.blur());
}

async function hear(page) {
  await page.getByRole("tab", { name: "Hear" }).click();
  await page.getByRole("button", { name: "Try a sample" }).click();
  await page.locator(".heard .figures").waitFor();
}

const desk = { viewport: { width: 1100, height: 840 } };
const phone = { viewport: { width: 390, height: 780 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2 };
await shoot("playground", { ...desk, colorScheme: "light" }, see);
await shoot("playground-dark", { ...desk, colorScheme: "dark" }, hear);
await shoot("playground-phone", { ...phone, colorScheme: "light" }, see);

await browser.close();
await server.stop();
