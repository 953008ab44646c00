// The AI SDK with each of its providers that can be told a base URL.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, isStepCount, Output, streamText, tool, transcribe } from "ai";
import {
  ABOUT_WEATHER,
  ANSWER,
  BLIND,
  BLIND_ANSWER,
  CHAT,
  CLAUDE,
  Color,
  NO_SUCH_MODEL,
  PICTURE as BYTES,
  QUESTION,
  RECORDING,
  ROOM,
  SENTENCE,
  SPEECH,
  serve,
  UNKNOWN,
  Weather,
} from "./demo.mjs";

const settings = { baseURL: `${await serve()}/v1`, apiKey: "unused" };
const openai = createOpenAI(settings);
const compatible = createOpenAICompatible({
  ...settings,
  name: "percept",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const anthropic = createAnthropic(settings);

const PROVIDERS = {
  "openai, responses": (name = CHAT) => openai(name),
  "openai, chat": (name = CHAT) => openai.chat(name),
  "openai-compatible": (name = CHAT) => compatible(name),
  anthropic: (name = CLAUDE) => anthropic(name),
};
const PICTURE = [
  {
    role: "user",
    content: [
      { type: "file", data: BYTES, mediaType: "image/png" },
      { type: "text", text: QUESTION },
    ],
  },
];
const asked = { temperature: 0, maxOutputTokens: ROOM, maxRetries: 0 };

for (const [provider, model] of Object.entries(PROVIDERS)) {
  describe(provider, () => {
    test("chat", async () => {
      const answer = await generateText({ ...asked, model: model(), instructions: "Be brief.", prompt: BLIND });
      assert.equal(answer.text.trim(), BLIND_ANSWER);
      assert.equal(answer.finishReason, "stop");
      assert.ok(answer.usage.outputTokens > 2);
    });

    test("a picture", async () => {
      const answer = await generateText({ ...asked, model: model(), messages: PICTURE });
      assert.equal(answer.text.trim(), ANSWER);
    });

    test("streams", async () => {
      const answer = streamText({ ...asked, model: model(), prompt: BLIND });
      const pieces = [];
      for await (const piece of answer.textStream) pieces.push(piece);
      assert.ok(pieces.length > 1);
      assert.equal(pieces.join("").trim(), BLIND_ANSWER);
      assert.equal(await answer.finishReason, "stop");
      assert.ok((await answer.usage).outputTokens > 2);
    });

    test("tools and their results", async () => {
      const called = [];
      const weather = tool({
        description: "Tells the weather of a city.",
        inputSchema: Weather,
        execute: (input) => {
          called.push(input);
          return "sunny";
        },
      });
      // What must be called at first, and may be later.
      const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "auto" });
      const loop = { ...asked, tools: { weather }, prepareStep, stopWhen: isStepCount(2), prompt: ABOUT_WEATHER };
      const answer = await generateText({ ...loop, model: model() });
      assert.deepEqual([answer.steps.length, answer.steps[0].finishReason], [2, "tool-calls"]);
      assert.ok(called.length >= 1);
      for (const input of called) Weather.parse(input);
      const before = called.length;
      const streamed = streamText({ ...loop, model: model() });
      await streamed.consumeStream();
      assert.equal((await streamed.steps).length, 2);
      assert.ok(called.length > before);
    });

    test("parsed answers", async () => {
      const output = Output.object({ schema: Color });
      const answer = await generateText({ ...asked, model: model(), messages: PICTURE, output });
      assert.deepEqual(answer.output, { color: ANSWER });
    });

    test("an unknown model", async () => {
      const request = generateText({ ...asked, model: model(UNKNOWN), prompt: BLIND });
      await assert.rejects(request, (error) => {
        assert.ok(APICallError.isInstance(error));
        assert.match(error.message, NO_SUCH_MODEL);
        assert.deepEqual([error.statusCode, error.isRetryable], [404, false]);
        return true;
      });
    });
  });
}

test("recordings", async () => {
  const audio = readFileSync(RECORDING);
  const answer = await transcribe({ model: openai.transcription(SPEECH), audio, maxRetries: 0 });
  assert.equal(answer.text.trim(), SENTENCE);
  assert.ok(answer.segments.length > 0);
  assert.ok(answer.durationInSeconds > 1);
});
