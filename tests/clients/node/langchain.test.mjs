// LangChain's ChatOpenAI on both of OpenAI's APIs.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { AIMessage, HumanMessage, SystemMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI } from "@langchain/openai";
import {
  ABOUT_WEATHER,
  ANSWER,
  BLIND,
  BLIND_ANSWER,
  CHAT,
  CHAT_PARTS,
  Color,
  NO_SUCH_MODEL,
  QUESTION,
  ROOM,
  serve,
  UNKNOWN,
  Weather,
} from "./demo.mjs";

const baseURL = `${await serve()}/v1`;
const PICTURE = new HumanMessage({ content: CHAT_PARTS });
const weather = tool(() => "sunny", {
  name: "weather",
  description: "Tells the weather of a city.",
  schema: Weather,
});

for (const useResponsesApi of [false, true]) {
  describe(useResponsesApi ? "responses" : "chat", () => {
    const make = (model = CHAT) =>
      new ChatOpenAI({
        model,
        apiKey: "unused",
        temperature: 0,
        maxTokens: ROOM,
        maxRetries: 0,
        useResponsesApi,
        configuration: { baseURL },
      });
    const model = make();

    test("chat and a picture", async () => {
      const answer = await model.invoke([new SystemMessage("Be brief."), new HumanMessage(BLIND)]);
      assert.equal(answer.text.trim(), BLIND_ANSWER);
      assert.ok(answer.usage_metadata.output_tokens > 2);
      assert.equal((await model.invoke([PICTURE])).text.trim(), ANSWER);
    });

    test("streams", async () => {
      let whole;
      let pieces = 0;
      for await (const chunk of await model.stream(BLIND)) {
        whole = whole ? whole.concat(chunk) : chunk;
        pieces += 1;
      }
      assert.ok(pieces > 2);
      assert.equal(whole.text.trim(), BLIND_ANSWER);
      assert.ok(whole.usage_metadata.output_tokens > 2);
    });

    test("tools and their results", async () => {
      // By name: on responses the package keeps "required" to itself.
      const bound = model.bindTools([weather], { tool_choice: "weather", parallel_tool_calls: false });
      let streamed;
      for await (const chunk of await bound.stream(ABOUT_WEATHER)) {
        streamed = streamed ? streamed.concat(chunk) : chunk;
      }
      for (const answer of [await bound.invoke(ABOUT_WEATHER), streamed]) {
        assert.equal(answer.tool_calls.length, 1);
        const [call] = answer.tool_calls;
        assert.equal(call.name, "weather");
        Weather.parse(call.args);
        const again = await model.bindTools([weather]).invoke([
          new HumanMessage(ABOUT_WEATHER),
          new AIMessage({ content: "", tool_calls: answer.tool_calls }),
          // A result may have pictures: here all that there is to see.
          new ToolMessage({ content: CHAT_PARTS.slice(0, 1), tool_call_id: call.id }),
          new HumanMessage(QUESTION),
        ]);
        assert.equal(again.text.trim(), ANSWER);
      }
    });

    for (const method of ["jsonSchema", "functionCalling"]) {
      test(`parsed answers, ${method}`, async () => {
        const parser = model.withStructuredOutput(Color, { name: "color", method });
        assert.deepEqual(await parser.invoke([PICTURE]), { color: ANSWER });
      });
    }

    test("an unknown model", async () => {
      await assert.rejects(make(UNKNOWN).invoke(BLIND), (error) => {
        assert.match(error.message, NO_SUCH_MODEL);
        assert.deepEqual([error.status, error.code], [404, "model_not_found"]);
        return true;
      });
    });
  });
}
