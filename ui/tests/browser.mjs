// A server of its own and a browser that looks at it, for the tests beside this file.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

export const root = (path) => fileURLToPath(new URL(`../../${path}`, import.meta.url));
export const SAMPLES = root("assets/demo/samples");

export const program = process.env.PERCEPT ?? root("target/debug/percept");

/** Starts percept on a free port. */
export async function serve(...options) {
  const server = spawn(program, ["serve", ...options, "--port", "0", "--log", "error"], {
    env: { PATH: process.env.PATH, HOME: "/nonexistent" },
    stdio: ["ignore", "pipe", "inherit"],
  });
  const lines = createInterface({ input: server.stdout });
  const [line] = await Promise.race([
    once(lines, "line"),
    once(server, "exit").then(() => Promise.reject(new Error("the server ended"))),
  ]);
  const url = line.match(/(http:\/\/\S+)\/v1$/)[1];
  const stop = async () => {
    if (server.exitCode !== null) return;
    server.kill("SIGTERM");
    await once(server, "exit");
  };
  return { url, stop };
}

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  // The camera shows a test picture, and the microphone hears the sample, again and again.
  "--use-fake-device-for-media-stream",
  "--use-fake-ui-for-media-stream",
  `--use-file-for-fake-audio-capture=${SAMPLES}/sentence.wav`,
  "--autoplay-policy=no-user-gesture-required",
];

export function launch() {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  return chromium.launch({ executablePath, args: FLAGS });
}

/** A page, and what went wrong on it: errors in its console, requests to anywhere but its server. */
export async function open(browser, url, options = {}) {
  const context = await browser.newContext({ acceptDownloads: true, ...options });
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  // Machines that run tests are busy.
  context.setDefaultTimeout(60_000);
  const page = await context.newPage();
  const wrong = [];
  const allowed = [url.origin ?? new URL(url).origin];
  page.on("pageerror", (error) => wrong.push(`error: ${error.message}`));
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) wrong.push(`console: ${message.text()}`);
  });
  context.on("request", (request) => {
    const asked = new URL(request.url());
    if (asked.protocol !== "blob:" && !allowed.includes(asked.origin)) wrong.push(`request: ${asked}`);
  });
  await page.goto(url);
  return { page, context, wrong };
}
