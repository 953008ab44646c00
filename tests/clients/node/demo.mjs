// A server of the two demo models, and what they are asked by every client: demo.py says the same for Python.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { after } from "node:test";
import { fileURLToPath } from "node:url";
import { z } from "zod";

const sample = (name) => fileURLToPath(new URL(`../../../assets/demo/samples/${name}`, import.meta.url));

export const PICTURE = readFileSync(sample("shapes.png"));
export const RECORDING = sample("sentence.wav");
export const SENTENCE = "Turn on the kitchen light please.";

export const [CHAT, CLAUDE, SPEECH, UNKNOWN] = ["gpt-4o", "claude-sonnet-4-6", "whisper-1", "unknown-model"];
export const BASE64 = PICTURE.toString("base64");
export const DATA_URL = `data:image/png;base64,${BASE64}`;

export const [QUESTION, ANSWER] = ["What color is the star?", "orange"];
// What is said about it without a picture: clients that lose the picture are found out by it.
export const [BLIND, BLIND_ANSWER] = ["Who wrote this book?", "I only know simple drawings"];
export const ABOUT_WEATHER = "What is the weather in rome?";
// White space goes on as long as a grammar lets it.
export const ROOM = 600;

export const Color = z.object({ color: z.enum(["red", "blue", "orange"]) }).strict();
export const Weather = z.object({ city: z.enum(["rome", "oslo"]) }).strict();
export const WEATHER_SCHEMA = {
  type: "object",
  properties: { city: { type: "string", enum: ["rome", "oslo"] } },
  required: ["city"],
  additionalProperties: false,
};

/** The question as a message's content in chat completions. */
export const CHAT_PARTS = [
  { type: "image_url", image_url: { url: DATA_URL } },
  { type: "text", text: QUESTION },
];

/** What an unknown model is called in an error. */
export const NO_SUCH_MODEL = new RegExp(`The model \`${UNKNOWN}\` does not exist`);

/** Starts a server on a free port, which ends with the tests of the file; gives its address without /v1. */
export async function serve() {
  const aliases = [CHAT, CLAUDE].flatMap((name) => ["--alias", `${name}=percept-demo-vlm`]);
  const server = spawn(process.env.PERCEPT, ["serve", ...aliases, "--port", "0", "--log", "warn"], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  after(async () => {
    if (server.exitCode !== null) return;
    server.kill("SIGTERM");
    await once(server, "exit");
  });
  const lines = createInterface({ input: server.stdout });
  const [line] = await Promise.race([
    once(lines, "line"),
    once(server, "exit").then(() => Promise.reject(new Error("the server ended"))),
  ]);
  return line.match(/(http:\/\/\S+)\/v1$/)[1];
}
