// The pages as a user has them: a real server with the program's own models, and a real browser.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { launch, open, program, root, SAMPLES, serve } from "./browser.mjs";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const PICTURE = join(SAMPLES, "shapes.png");
const RECORDING = join(SAMPLES, "sentence.wav");
const QUESTION = "What is in this picture?";
/** A checkpoint with random weights: it goes on for as long as it may. */
const ENDLESS = `endless=${root("tests/fixtures/llava")}`;

let server;
let browser;

before(async () => {
  server = await serve("percept-demo-vlm", "percept-demo-whisper", ENDLESS, "--max-image-pixels", "3000000");
  browser = await launch();
});

after(async () => {
  await browser?.close();
  await server?.stop();
});

/** A test on a page of its own, on which nothing may go wrong beside what `expected` says. */
function onPage(name, body, { path = "/", expected = [], ...options } = {}) {
  test(name, { timeout: 300_000 }, async () => {
    const { page, context, wrong } = await open(browser, server.url + path, options);
    await body(page, context);
    const unexpected = wrong.filter((text) => !expected.some((pattern) => pattern.test(text)));
    assert.deepEqual(unexpected, []);
    await context.close();
  });
}

const api = async (path, init) => (await fetch(server.url + path, init)).json();

/** What the API itself answers to a question about the sample. */
async function answer(model, more = {}) {
  const url = `data:image/png;base64,${readFileSync(PICTURE).toString("base64")}`;
  const content = [
    { type: "image_url", image_url: { url } },
    { type: "text", text: QUESTION },
  ];
  const body = JSON.stringify({ model, messages: [{ role: "user", content }], ...more });
  const headers = { "Content-Type": "application/json" };
  const { choices } = await api("/v1/chat/completions", { method: "POST", headers, body });
  return choices[0].message.content.trim();
}

const setting = (page, label) => page.getByRole("dialog").getByLabel(label);

async function set(page, settings) {
  await page.getByRole("button", { name: "Settings" }).click();
  for (const [label, value] of Object.entries(settings)) await setting(page, label).fill(value);
  await page.getByRole("button", { name: "Close the settings" }).click();
}

async function ask(page, question = QUESTION) {
  await page.getByRole("textbox", { name: "Question" }).fill(question);
  await page.getByRole("button", { name: "Send" }).click();
}

async function addPicture(page, files = PICTURE) {
  const chooser = page.waitForEvent("filechooser");
  await page.getByRole("button", { name: "Choose pictures" }).click();
  await (await chooser).setFiles(files);
}

const turns = (page) => page.locator("article.turn");
const lastAnswer = (page) => turns(page).last().locator(".answer");
const finished = (page) => turns(page).last().locator(".figures").waitFor();
const clipboard = (page) => page.evaluate(() => navigator.clipboard.readText());
const running = (page, count) => page.locator(`.load[data-running="${count}"]`).waitFor();

async function choose(page, model) {
  await page.getByLabel("Model that answers").selectOption(model);
}

onPage("a picture is asked about, over several turns", async (page) => {
  await set(page, { Temperature: "0" });
  await addPicture(page);
  await ask(page);
  await finished(page);
  assert.equal(
    (await lastAnswer(page).locator(".markdown").innerText()).trim(),
    await answer("percept-demo-vlm", { temperature: 0 }),
  );
  const figures = await turns(page).last().locator(".figures").innerText();
  assert.match(figures.replaceAll("\n", " "), /answer \d+ tokens? first token \d+\.\d\d s/);
  const sent = page.waitForRequest("**/v1/chat/completions");
  await ask(page, "How many shapes are there?");
  const { messages } = (await sent).postDataJSON();
  assert.deepEqual(
    messages.map(({ role }) => role),
    ["user", "assistant", "user"],
  );
  assert.match(messages[0].content[0].image_url.url, /^data:image\/png;base64,/);
  await turns(page).nth(1).locator(".figures").waitFor();
  await page.getByRole("button", { name: "New conversation" }).click();
  assert.equal(await turns(page).count(), 0);
});

onPage("an answer comes piece by piece, and stopping it frees its place", async (page) => {
  await choose(page, "endless");
  await set(page, { Temperature: "0" });
  await addPicture(page);
  await ask(page);
  const text = turns(page).last().locator(".markdown");
  const length = async () => (await text.innerText()).length;
  await text.waitFor();
  const first = await length();
  await page.waitForFunction(
    (first) => document.querySelector(".turn .markdown").innerText.length > first + 50,
    first,
  );
  assert.equal(await turns(page).last().getAttribute("aria-busy"), "true");
  await running(page, 1);
  await page.getByRole("button", { name: "Stop the answer" }).click();
  await lastAnswer(page).getByText("Stopped.").waitFor();
  await running(page, 0);
  const { models } = await api("/health");
  assert.deepEqual(
    models.map(({ running, waiting }) => running + waiting),
    [0, 0, 0],
  );
  const stopped = await length();
  await page.waitForResponse("**/health");
  assert.equal(await length(), stopped);
  assert.equal(await turns(page).last().locator(".figures").count(), 0);
});

onPage("a recording is transcribed, with times that seek and subtitles", async (page) => {
  await page.getByRole("tab", { name: "Hear" }).click();
  const chooser = page.waitForEvent("filechooser");
  await page.getByRole("button", { name: "Choose a recording" }).click();
  await (await chooser).setFiles(RECORDING);
  await page.locator(".heard .figures").waitFor();
  const form = new FormData();
  form.append("model", "percept-demo-whisper");
  form.append("response_format", "srt");
  form.append("file", new Blob([readFileSync(RECORDING)]), "sentence.wav");
  const response = await fetch(`${server.url}/v1/audio/transcriptions`, { method: "POST", body: form });
  const srt = await response.text();
  const text = srt.split("\n")[2];
  assert.ok(text.length > 10, srt);
  assert.equal((await page.locator(".segments p").first().innerText()).trim(), text.trim());

  const download = page.waitForEvent("download");
  await page.getByRole("button", { name: "srt" }).click();
  assert.equal(readFileSync(await (await download).path(), "utf8").trim(), srt.trim());
  assert.equal((await download).suggestedFilename(), "sentence.srt");

  const audio = page.locator("audio");
  await audio.evaluate((audio) => {
    audio.currentTime = 2.5;
  });
  const start =
    Number(
      srt
        .match(/00:00:(\d\d),(\d\d\d)/)
        .slice(1)
        .join("."),
    ) || 0;
  await page
    .getByRole("button", { name: /^Play from/ })
    .first()
    .click();
  await page.waitForFunction((start) => {
    const audio = document.querySelector("audio");
    return !audio.paused && Math.abs(audio.currentTime - start) < 1;
  }, start);
});

onPage("the microphone is heard", async (page) => {
  await page.getByRole("tab", { name: "Hear" }).click();
  await page.getByRole("button", { name: "Record", exact: true }).click();
  const meter = page.getByRole("meter");
  await page.waitForFunction(() => document.querySelector("meter")?.value > 0.3);
  await page.waitForFunction(
    () => Number.parseInt(document.querySelector(".level + meter + .note").innerText, 10) >= 3,
  );
  assert.equal(await meter.count(), 1);
  await page.getByRole("button", { name: "Stop and transcribe" }).click();
  await page.locator(".heard .figures").waitFor();
  assert.equal(await page.locator(".heard-name").innerText(), "recording.webm");
  const words = (await page.locator(".segments").innerText()).toLowerCase();
  assert.ok(words.length > 5, words);
});

onPage("the camera takes a photograph", async (page) => {
  await page.getByRole("button", { name: "Take a photograph" }).click();
  await page.getByRole("button", { name: "Take it" }).click();
  const picture = page.locator(".attached img");
  await picture.waitFor();
  assert.equal(await picture.getAttribute("alt"), "picture-1.jpeg");
  await ask(page);
  await finished(page);
});

onPage("a picture can be pasted and dropped, and taken away", async (page) => {
  const transfer = await page.evaluateHandle((base64) => {
    const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
    return transfer;
  }, readFileSync(PICTURE).toString("base64"));
  await page.dispatchEvent(".side", "dragover", { dataTransfer: transfer });
  assert.ok(await page.locator(".side.dropping").isVisible());
  await page.dispatchEvent(".side", "drop", { dataTransfer: transfer });
  await page.evaluate((transfer) => {
    const paste = new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true });
    document.body.dispatchEvent(paste);
  }, transfer);
  const names = () => page.locator(".attached img").evaluateAll((all) => all.map(({ alt }) => alt));
  await page.locator(".attached li").nth(1).waitFor();
  assert.deepEqual(await names(), ["dropped.png", "picture-1.png"]);
  await page.getByRole("button", { name: "Remove dropped.png" }).click();
  assert.deepEqual(await names(), ["picture-1.png"]);
});

onPage(
  "what the API says of a mistake is shown, with what to do",
  async (page) => {
    const large = await page.evaluate(async () => {
      const canvas = new OffscreenCanvas(2000, 2000);
      canvas.getContext("2d").fillRect(0, 0, 600, 600);
      const blob = await canvas.convertToBlob({ type: "image/png" });
      return [...new Uint8Array(await blob.arrayBuffer())];
    });
    const name = "large.png";
    await addPicture(page, { name, mimeType: "image/png", buffer: Buffer.from(large) });
    await ask(page);
    const alert = page.getByRole("alert");
    await alert.waitFor();
    const text = await alert.innerText();
    assert.match(text, /4,?000,?000|2000x2000/);
    assert.match(text, /3,?000,?000/);
    assert.match(text, /Choose a smaller picture/);
    await alert.getByRole("button", { name: "Try again" }).click();
    await alert.waitFor();
  },
  { expected: [/status of 400/] },
);

test("a server that is gone is told", { timeout: 300_000 }, async () => {
  const other = await serve("percept-demo-vlm");
  const { page, context } = await open(browser, other.url);
  await page.locator(".load", { hasText: "idle" }).waitFor();
  await other.stop();
  await ask(page, "Hello?");
  const alert = page.getByRole("alert");
  await alert.getByText("The server cannot be reached.").waitFor();
  await alert.getByText("percept serve").waitFor();
  await page.locator(".load", { hasText: "not reachable" }).waitFor();
  await context.close();
});

test("what it costs and takes is shown where the server knows", { timeout: 300_000 }, async () => {
  const other = await serve(
    "percept-demo-vlm",
    "percept-demo-whisper",
    "--price-per-hour",
    "360",
    "--currency",
    "EUR",
  );
  const { page, context } = await open(browser, other.url);
  // Machines for tests rarely tell: a thousand joules a second.
  const begun = Date.now();
  await page.route("**/health", async (route) => {
    const response = await route.fetch();
    await route.fulfill({ response, json: { ...(await response.json()), energy: Date.now() - begun } });
  });
  await page.locator(".load .watts").waitFor();
  const watts = Number(/, (\d+) W$/.exec(await page.locator(".load").innerText())[1]);
  assert.ok(watts > 500 && watts < 2000, `${watts}`);
  assert.match(await page.locator(".load").getAttribute("title"), /\n\d+\.\d kJ since the server began$/);
  await addPicture(page);
  await ask(page);
  await finished(page);
  const cost = async (figures) => {
    const text = (await figures.innerText()).replaceAll("\n", " ");
    return Number(/cost (0\.\d+) EUR/.exec(text)[1]);
  };
  assert.ok((await cost(turns(page).last().locator(".figures"))) > 0);
  await page.getByRole("tab", { name: "Hear" }).click();
  const chooser = page.waitForEvent("filechooser");
  await page.getByRole("button", { name: "Choose a recording" }).click();
  await (await chooser).setFiles(RECORDING);
  const figures = page.locator(".heard .figures", { hasText: "cost" });
  await figures.waitFor();
  assert.ok((await cost(figures)) > 0);
  await context.close();
  await other.stop();
});

onPage("what was done can be copied as code that runs", async (page) => {
  await set(page, { Temperature: "0", Seed: "7" });
  await addPicture(page);
  const question = "What's in $HOME, `here` and \\there\\? 100%";
  await ask(page, question);
  await finished(page);
  const folder = mkdtempSync(join(tmpdir(), "percept-"));
  writeFileSync(join(folder, "shapes.png"), readFileSync(PICTURE));
  const shown = (await lastAnswer(page).locator(".markdown").innerText()).trim();
  await page.getByRole("button", { name: /^curl/ }).click();
  const curl = await clipboard(page);
  assert.ok(curl.length < 1500, "the picture itself is not in it");
  const out = execFileSync("bash", ["-c", curl], {
    cwd: folder,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
  });
  const pieces = out.split("\n").filter((line) => line.startsWith("data: {"));
  const said = pieces.map((line) => JSON.parse(line.slice(6)).choices[0]?.delta.content ?? "").join("");
  assert.equal(said.trim(), shown);

  await page.getByRole("button", { name: /^Python/ }).click();
  const python = await clipboard(page);
  assert.match(python, /"url": picture\("shapes\.png"\)/);
  assert.match(python, /seed=7/);
  writeFileSync(join(folder, "copied.py"), python);
  execFileSync("python3", ["-m", "py_compile", "copied.py"], { cwd: folder });
  await page.getByRole("button", { name: /^JavaScript/ }).click();
  writeFileSync(join(folder, "copied.mjs"), await clipboard(page));
  execFileSync(process.execPath, ["--check", "copied.mjs"], { cwd: folder });

  await page.getByRole("tab", { name: "Hear" }).click();
  await page.getByRole("button", { name: "Try a sample" }).click();
  await page.locator(".heard .figures").waitFor();
  writeFileSync(join(folder, "sample.wav"), readFileSync(RECORDING));
  await page.locator("#panel-speech").getByRole("button", { name: /^curl/ }).click();
  const spoken = execFileSync("bash", ["-c", await clipboard(page)], {
    cwd: folder,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
  });
  const text = (await page.locator(".segments p").first().innerText()).trim();
  assert.ok(spoken.includes(text), spoken);
  rmSync(folder, { recursive: true });
});

onPage("settings reach the server, and the key no disk", async (page) => {
  await set(page, {
    "System prompt": "Be brief.",
    Temperature: "0.5",
    "Top p": "0.9",
    "Longest answer": "1",
    Seed: "3",
    "API key": "secret",
  });
  const sent = page.waitForRequest("**/v1/chat/completions");
  await addPicture(page);
  await ask(page);
  const request = await sent;
  const { messages, temperature, top_p, max_completion_tokens, seed } = request.postDataJSON();
  assert.deepEqual(messages[0], { role: "system", content: "Be brief." });
  assert.deepEqual([temperature, top_p, max_completion_tokens, seed], [0.5, 0.9, 1, 3]);
  assert.equal(await request.headerValue("authorization"), "Bearer secret");
  await finished(page);
  assert.match(await turns(page).last().locator(".figures").innerText(), /1 token\b/);
  await lastAnswer(page).getByText("reached its longest length").waitFor();
  const stored = await page.evaluate(() => [
    JSON.stringify({ ...localStorage }),
    JSON.stringify({ ...sessionStorage }),
  ]);
  assert.ok(!stored[0].includes("secret") && stored[1].includes("secret"), String(stored));
  assert.ok(!stored.join().includes(QUESTION));
  await page.getByRole("button", { name: /^curl/ }).click();
  const curl = await clipboard(page);
  assert.ok(!curl.includes("secret") && curl.includes("$OPENAI_API_KEY"), curl);
});

test("a server that wants a key gets it from every page", { timeout: 300_000 }, async () => {
  const folder = mkdtempSync(join(tmpdir(), "percept-"));
  const keys = join(folder, "keys.toml");
  const options = { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] };
  const key = execFileSync(program, ["keys", "add", "somebody", "--keys", keys], options).trim();
  const other = await serve("percept-demo-vlm", "--keys", keys);
  const { page, context } = await open(browser, other.url);
  await page.getByRole("alert").getByText("Enter this server’s API key in the settings.").waitFor();
  await page.locator(".load", { hasText: "idle" }).waitFor();
  await page.goto(`${other.url}/docs`);
  await page.getByText("This server wants an API key").waitFor();
  await page.goto(other.url);
  await set(page, { "API key": key });
  await ask(page, "Hello?");
  await finished(page);
  await page.goto(`${other.url}/docs`);
  await page.locator("#createChatCompletion").waitFor();
  await context.close();
  await other.stop();
  rmSync(folder, { recursive: true });
});

onPage("markup in an answer stays text, and fetches nothing", async (page) => {
  const text =
    "**bold** <img src=x onerror=alert(1)> ![p](http://elsewhere.example/p.png) [l](javascript:alert(1))\n\n" +
    "| a | b |\n|---|--:|\n| 1 | 2 |\n\n```js\n<b>code</b>\n```";
  const piece = { choices: [{ index: 0, delta: { content: text }, finish_reason: null }] };
  await page.route("**/v1/chat/completions", (route) =>
    route.fulfill({
      contentType: "text/event-stream",
      body: `data: ${JSON.stringify(piece)}\n\ndata: [DONE]\n\n`,
    }),
  );
  await ask(page);
  const markdown = lastAnswer(page).locator(".markdown");
  await markdown.locator("strong", { hasText: "bold" }).waitFor();
  assert.equal(await markdown.locator("img, script, a[href^=javascript]").count(), 0);
  assert.match(await markdown.innerText(), /<img src=x onerror=alert\(1\)>/);
  assert.equal(await markdown.locator("td.align-right").innerText(), "2");
  assert.equal((await markdown.locator("pre code").innerText()).trim(), "<b>code</b>");
});

onPage("everything can be done with the keyboard", async (page) => {
  // By chance, the answer could end before it is stopped.
  await set(page, { Temperature: "0" });
  await page.getByRole("tab", { name: "See" }).focus();
  await page.keyboard.press("ArrowRight");
  assert.equal(await page.getByRole("tab", { name: "Hear" }).getAttribute("aria-selected"), "true");
  await page.keyboard.press("ArrowLeft");
  await choose(page, "endless");
  const seen = [];
  for (let count = 0; count < 12; count++) {
    await page.keyboard.press("Tab");
    const name = await page.evaluate(
      () => document.activeElement.ariaLabel ?? document.activeElement.innerText,
    );
    seen.push(name);
    if (name === "Question") break;
  }
  assert.equal(seen.at(-1), "Question", seen.join(" > "));
  await page.keyboard.type("One");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("two");
  await page.keyboard.press("Enter");
  await turns(page).last().locator(".markdown").waitFor();
  assert.equal(await turns(page).last().locator(".question p").innerText(), "One\ntwo");
  await page.keyboard.press("Escape");
  await lastAnswer(page).getByText("Stopped.").waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.ariaLabel), "Question");
});

async function faults(page) {
  // The page's own policy lets no script be added.
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  return violations
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`);
}

for (const [name, options] of Object.entries({
  light: { colorScheme: "light" },
  dark: { colorScheme: "dark" },
  phone: { colorScheme: "light", viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true },
})) {
  onPage(
    `axe finds no serious fault: ${name}`,
    async (page) => {
      assert.deepEqual(await faults(page), [], "the beginning");
      await addPicture(page);
      assert.deepEqual(await faults(page), [], "a picture");
      await ask(page);
      await finished(page);
      assert.deepEqual(await faults(page), [], "an answer");
      await page.getByRole("button", { name: "Settings" }).click();
      assert.deepEqual(await faults(page), [], "settings");
      await page.getByRole("button", { name: "Close the settings" }).click();
      await page.getByRole("tab", { name: "Hear" }).click();
      assert.deepEqual(await faults(page), [], "nothing heard");
      await page.getByRole("button", { name: "Try a sample" }).click();
      await page.locator(".heard .figures").waitFor();
      assert.deepEqual(await faults(page), [], "a transcript");
      const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
      assert.equal(wide, false, "it scrolls sideways");
      await page.getByRole("link", { name: "API" }).click();
      await page.getByRole("heading", { name: "/v1/chat/completions" }).waitFor();
      assert.deepEqual(await faults(page), [], "the API's description");
      const docs = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
      assert.equal(docs, false, "the API's description scrolls sideways");
    },
    options,
  );
}

onPage(
  "colours follow the system until they are chosen",
  async (page) => {
    const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const dark = await background();
    await page.getByRole("button", { name: "Settings" }).click();
    await page.getByRole("radio", { name: "Light" }).check();
    const light = await background();
    assert.notEqual(light, dark);
    await page.reload();
    assert.equal(await background(), light);
    await page.getByRole("button", { name: "Settings" }).click();
    await page.getByRole("radio", { name: "As the system" }).check();
    assert.equal(await background(), dark);
  },
  { colorScheme: "dark" },
);

test("the pages allow nothing but themselves", async () => {
  for (const path of ["/", "/docs", "/ui/app.js"]) {
    const { headers } = await fetch(server.url + path);
    const policy = headers.get("content-security-policy");
    assert.match(policy, /^default-src 'none'; script-src 'self'; style-src 'self';/);
    assert.doesNotMatch(policy, /unsafe|\*|https?:|data:/);
    assert.equal(headers.get("x-content-type-options"), "nosniff");
  }
});

onPage(
  "the API's description has every endpoint",
  async (page) => {
    const { paths } = await api("/openapi.json");
    for (const path of Object.keys(paths)) {
      assert.equal((await page.getByRole("heading", { name: path, exact: false }).count()) > 0, true, path);
    }
    const chat = page.locator("#createChatCompletion");
    await chat.getByText("Fields of messages").click();
    await chat
      .locator("code", { hasText: /^role$/ })
      .first()
      .waitFor();
  },
  { path: "/docs" },
);
