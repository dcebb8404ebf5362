// LangChain's ChatOpenAI, through which LibreChat asks its OpenAI and custom endpoints (@librechat/agents,
// src/llm/openai/index.ts), with the options that LibreChat sets: usage in the stream, no retries of its own.
// Only `stream` is used, as there: `invoke` counts tokens with tables that LangChain downloads.
import assert from "node:assert/strict";
import { test } from "node:test";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { HEARTBEATS, WORDS, apiKey, baseURL, beatingURL, broken, model } from "./common.mjs";

const chat = (words, more = {}) =>
  new ChatOpenAI({
    apiKey, model: model(words), streaming: true, streamUsage: true, maxRetries: 0, configuration: { baseURL }, ...more,
  });

for (const useResponsesApi of [false, true]) {
  const kind = useResponsesApi ? "responses" : "chat";

  test(`${kind}: an answer streams with its usage`, async () => {
    let text = "";
    let used;
    for await (const chunk of await chat(HEARTBEATS, { useResponsesApi, configuration: { baseURL: beatingURL } }).stream("Say hi")) {
      text += chunk.text;
      used = chunk.usage_metadata ?? used;
    }
    assert.equal(text, WORDS);
    assert.equal(used.input_tokens, 2);
  });

  test(`${kind}: a tool is called`, async () => {
    const schema = { type: "object", properties: { city: { type: "string" } } };
    const bound = chat("", { useResponsesApi }).bindTools([{ type: "function", function: { name: "weather", parameters: schema } }]);
    let answer;
    for await (const chunk of await bound.stream("How is it?")) answer = answer ? answer.concat(chunk) : chunk;
    const calls = answer.tool_calls;
    assert.deepEqual(calls.map(({ name, args }) => ({ name, args })), [{ name: "weather", args: { city: "Paris" } }]);
  });

  for (const fault of ["cut_mid", "cut_fin", "end_early"]) {
    test(`${kind}: a stream that breaks off by ${fault} throws`, async () => {
      const got = await broken(() => chat(`fault=${fault}`, { useResponsesApi }).stream("Say hi"));
      assert.ok(got.length > 0);
    });
  }

  test(`${kind}: a refusal has its status`, async () => {
    await assert.rejects(chat("fault=status,code=400", { useResponsesApi }).stream("Say hi"), { status: 400 });
  });

  test(`${kind}: a stream that the user stops`, async () => {
    const stopping = new AbortController();
    const asked = chat("fault=stall_mid,message=left", { useResponsesApi });
    await assert.rejects(async () => {
      for await (const chunk of await asked.stream("Say hi", { signal: stopping.signal })) {
        if (chunk.text) stopping.abort();
      }
    });
  });
}

test("embeddings come", async () => {
  const embeddings = new OpenAIEmbeddings({ apiKey, model: model(), configuration: { baseURL } });
  assert.equal((await embeddings.embedDocuments(["one", "two"])).length, 2);
});
