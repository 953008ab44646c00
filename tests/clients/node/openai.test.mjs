// The unmodified openai package, told nothing but a base URL.

import assert from "node:assert/strict";
import { createReadStream } from "node:fs";
import { test } from "node:test";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import {
  ABOUT_WEATHER,
  ANSWER,
  BLIND,
  BLIND_ANSWER,
  CHAT,
  CHAT_PARTS,
  Color,
  DATA_URL,
  NO_SUCH_MODEL,
  QUESTION,
  RECORDING,
  ROOM,
  SENTENCE,
  SPEECH,
  serve,
  UNKNOWN,
  Weather,
} from "./demo.mjs";

const baseURL = `${await serve()}/v1`;
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const asked = { model: CHAT, temperature: 0, max_completion_tokens: ROOM };
const TEXT = [{ role: "user", content: BLIND }];
const PICTURE = [{ role: "user", content: CHAT_PARTS }];
const INPUT = [
  {
    role: "user",
    content: [
      { type: "input_image", image_url: DATA_URL, detail: "auto" },
      { type: "input_text", text: QUESTION },
    ],
  },
];
const weather = zodFunction({ name: "weather", parameters: Weather });

test("chat and a picture", async () => {
  const answer = await client.chat.completions.create({ ...asked, messages: TEXT });
  assert.equal(answer.choices[0].message.content.trim(), BLIND_ANSWER);
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.match(answer._request_id, /^req_/);
  const seen = await client.chat.completions.create({ ...asked, messages: PICTURE });
  assert.equal(seen.choices[0].message.content.trim(), ANSWER);
});

test("streams", async () => {
  const more = { stream: true, stream_options: { include_usage: true } };
  const stream = await client.chat.completions.create({ ...asked, messages: TEXT, ...more });
  let text = "";
  let last;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    last = chunk;
  }
  assert.equal(text.trim(), BLIND_ANSWER);
  assert.ok(last.usage.completion_tokens > 2);
});

test("the helper of streams", async () => {
  const stream = client.chat.completions.stream({ ...asked, messages: PICTURE });
  const answer = await stream.finalChatCompletion();
  assert.equal(answer.choices[0].message.content.trim(), ANSWER);
});

test("leaving a stream is harmless", async () => {
  const stream = await client.chat.completions.create({
    ...asked,
    messages: TEXT,
    stream: true,
    logit_bias: { 2: -100 },
  });
  for await (const _ of stream) break;
  const answer = await client.chat.completions.create({ ...asked, messages: PICTURE });
  assert.equal(answer.choices[0].message.content.trim(), ANSWER);
});

test("functions, whole and streamed", async () => {
  const messages = [{ role: "user", content: ABOUT_WEATHER }];
  const request = { ...asked, messages, tools: [weather], tool_choice: "required", parallel_tool_calls: false };
  const whole = await client.chat.completions.create(request);
  const stream_options = { include_usage: true };
  const stream = client.chat.completions.stream({ ...request, stream_options });
  const streamed = await stream.finalChatCompletion();
  for (const answer of [whole, streamed]) {
    const [choice] = answer.choices;
    assert.equal(choice.finish_reason, "tool_calls");
    assert.equal(choice.message.tool_calls.length, 1);
    const [call] = choice.message.tool_calls;
    assert.equal(call.function.name, "weather");
    Weather.parse(JSON.parse(call.function.arguments));
    const result = { role: "tool", tool_call_id: call.id, content: "sunny" };
    const again = await client.chat.completions.create({
      ...asked,
      messages: [...messages, choice.message, result],
      tools: [weather],
    });
    assert.ok(again.usage.prompt_tokens > answer.usage.prompt_tokens);
  }
});

test("its own loop of functions", async () => {
  const called = [];
  const look = zodFunction({
    name: "look",
    parameters: Color,
    function: (where) => {
      called.push(where);
      return "it is there";
    },
  });
  const tool_choice = { type: "function", function: { name: "look" } };
  const runner = client.chat.completions.runTools({ ...asked, messages: TEXT, tools: [look], tool_choice });
  await runner.done();
  assert.equal(called.length, 1);
  Color.parse(called[0]);
});

test("parsed answers", async () => {
  const response_format = zodResponseFormat(Color, "color");
  const answer = await client.chat.completions.parse({ ...asked, messages: PICTURE, response_format });
  assert.deepEqual(answer.choices[0].message.parsed, { color: ANSWER });
  const short = { ...asked, max_completion_tokens: 2, messages: PICTURE, response_format };
  await assert.rejects(client.chat.completions.parse(short), OpenAI.LengthFinishReasonError);
});

test("responses", async () => {
  const request = { model: CHAT, temperature: 0, max_output_tokens: ROOM, input: INPUT };
  const answer = await client.responses.create(request);
  assert.equal(answer.output_text.trim(), ANSWER);
  const stream = client.responses.stream(request);
  const kinds = [];
  for await (const event of stream) kinds.push(event.type);
  assert.deepEqual([kinds[0], kinds.at(-1)], ["response.created", "response.completed"]);
  assert.equal((await stream.finalResponse()).output_text.trim(), ANSWER);
  const text = { format: zodTextFormat(Color, "color") };
  const parsed = await client.responses.parse({ ...request, text });
  assert.deepEqual(parsed.output_parsed, { color: ANSWER });
});

test("completions", async () => {
  const prompt = `USER: ${BLIND} ASSISTANT:`;
  const answer = await client.completions.create({ model: CHAT, prompt, temperature: 0, max_tokens: 8 });
  assert.equal(answer.choices[0].text.trim(), BLIND_ANSWER);
});

test("recordings", async () => {
  const request = () => ({ model: SPEECH, file: createReadStream(RECORDING) });
  assert.equal((await client.audio.transcriptions.create(request())).text.trim(), SENTENCE);
  const more = { response_format: "verbose_json", timestamp_granularities: ["word", "segment"] };
  const long = await client.audio.transcriptions.create({ ...request(), ...more });
  assert.deepEqual([long.language, long.words[0].word], ["english", "Turn"]);
  assert.ok(long.segments[0].end > long.segments[0].start);
  const srt = await client.audio.transcriptions.create({ ...request(), response_format: "srt" });
  assert.match(srt, /^1\n00:00:/);
  let text = "";
  for await (const event of await client.audio.transcriptions.create({ ...request(), stream: true })) {
    if (event.type === "transcript.text.delta") text += event.delta;
  }
  assert.equal(text.trim(), SENTENCE);
});

test("models", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  for (const name of [CHAT, SPEECH, "percept-demo-vlm"]) assert.ok(names.includes(name), name);
  assert.equal((await client.models.retrieve(CHAT)).object, "model");
});

test("errors are the package's own", async () => {
  for (const stream of [false, true]) {
    const request = client.chat.completions.create({ ...asked, model: UNKNOWN, messages: TEXT, stream });
    await assert.rejects(request, (error) => {
      assert.ok(error instanceof OpenAI.NotFoundError);
      assert.match(error.message, NO_SUCH_MODEL);
      assert.deepEqual([error.code, error.param], ["model_not_found", "model"]);
      assert.match(error.requestID, /^req_/);
      return true;
    });
  }
  const hot = client.chat.completions.create({ ...asked, messages: TEXT, temperature: 3 });
  await assert.rejects(hot, OpenAI.BadRequestError);
  const file = createReadStream(RECORDING);
  await assert.rejects(client.audio.transcriptions.create({ model: UNKNOWN, file }), OpenAI.NotFoundError);
});
