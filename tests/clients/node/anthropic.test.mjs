// The unmodified @anthropic-ai/sdk package, told nothing but a base URL.

import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import {
  ABOUT_WEATHER,
  ANSWER,
  BASE64,
  BLIND,
  BLIND_ANSWER,
  CLAUDE,
  Color,
  NO_SUCH_MODEL,
  QUESTION,
  ROOM,
  serve,
  UNKNOWN,
  WEATHER_SCHEMA,
  Weather,
} from "./demo.mjs";

const baseURL = await serve();
const client = new Anthropic({ baseURL, apiKey: "unused", maxRetries: 0 });
const asked = { model: CLAUDE, temperature: 0, max_tokens: ROOM };
const TEXT = [{ role: "user", content: BLIND }];
const source = { type: "base64", media_type: "image/png", data: BASE64 };
const PICTURE = [
  {
    role: "user",
    content: [
      { type: "image", source },
      { type: "text", text: QUESTION },
    ],
  },
];
const weather = { name: "weather", description: "Tells the weather of a city.", input_schema: WEATHER_SCHEMA };

test("messages and a picture", async () => {
  const answer = await client.messages.create({ ...asked, system: "Be brief.", messages: TEXT });
  assert.equal(answer.content[0].text.trim(), BLIND_ANSWER);
  assert.equal(answer.stop_reason, "end_turn");
  assert.match(answer._request_id, /^req_/);
  const seen = await client.messages.create({ ...asked, messages: PICTURE });
  assert.equal(seen.content[0].text.trim(), ANSWER);
});

test("streams", async () => {
  const stream = client.messages.stream({ ...asked, messages: TEXT });
  let text = "";
  stream.on("text", (delta) => {
    text += delta;
  });
  const message = await stream.finalMessage();
  assert.equal(text.trim(), BLIND_ANSWER);
  assert.equal(message.content[0].text, text);
  assert.ok(message.usage.output_tokens > 2);
});

test("tools, whole and streamed", async () => {
  const messages = [{ role: "user", content: ABOUT_WEATHER }];
  const tool_choice = { type: "any", disable_parallel_tool_use: true };
  const request = { ...asked, messages, tools: [weather], tool_choice };
  const whole = await client.messages.create(request);
  const streamed = await client.messages.stream(request).finalMessage();
  for (const answer of [whole, streamed]) {
    assert.equal(answer.stop_reason, "tool_use");
    const calls = answer.content.filter((block) => block.type === "tool_use");
    assert.equal(calls.length, 1);
    assert.equal(calls[0].name, "weather");
    Weather.parse(calls[0].input);
    const result = { type: "tool_result", tool_use_id: calls[0].id, content: "sunny" };
    const again = await client.messages.create({
      ...asked,
      messages: [...messages, { role: "assistant", content: answer.content }, { role: "user", content: [result] }],
      tools: [weather],
    });
    assert.ok(again.usage.input_tokens > answer.usage.input_tokens);
  }
});

test("parsed answers", async () => {
  const output_config = { format: zodOutputFormat(Color) };
  const answer = await client.messages.parse({ ...asked, messages: PICTURE, output_config });
  assert.deepEqual(answer.parsed_output, { color: ANSWER });
});

test("tokens are counted as they are used", async () => {
  const counted = await client.messages.countTokens({ model: CLAUDE, messages: PICTURE });
  const answer = await client.messages.create({ ...asked, messages: PICTURE });
  assert.equal(counted.input_tokens, answer.usage.input_tokens);
});

test("models", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.ok(names.includes(CLAUDE));
  assert.equal((await client.models.retrieve(CLAUDE)).type, "model");
});

test("errors are the package's own", async () => {
  for (const stream of [false, true]) {
    const request = client.messages.create({ ...asked, model: UNKNOWN, messages: TEXT, stream });
    await assert.rejects(request, (error) => {
      assert.ok(error instanceof Anthropic.NotFoundError);
      assert.match(error.message, NO_SUCH_MODEL);
      assert.equal(error.error.error.type, "not_found_error");
      assert.match(error.requestID, /^req_/);
      return true;
    });
  }
  const empty = client.messages.create({ ...asked, messages: [] });
  await assert.rejects(empty, Anthropic.BadRequestError);
});
