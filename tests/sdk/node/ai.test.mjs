// The Vercel AI SDK, unmodified, through relayd's /v1: its OpenAI provider and its provider for compatible APIs.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import {
  APICallError, Output, embedMany, generateImage, generateSpeech, generateText, isStepCount, streamText, tool, transcribe,
} from "ai";
import { z } from "zod";
import { AUDIO, HEARTBEATS, PHASES, PICTURE, WORDS, apiKey, baseURL, beatingURL, model } from "./common.mjs";

const openai = createOpenAI({ baseURL, apiKey });
const providers = (url) => {
  const provider = createOpenAI({ baseURL: url, apiKey });
  const compatible = createOpenAICompatible({
    name: "relayd", baseURL: url, apiKey, includeUsage: true, supportsStructuredOutputs: true,
  });
  return { responses: provider.responses, chat: provider.chat, compatible: (name) => compatible(name) };
};
const beating = providers(beatingURL);
const prompt = "Say hi";
const City = z.object({ name: z.string(), inhabitants: z.number().int() });
const quiet = { maxRetries: 0, onError: () => {} };
const weather = tool({
  description: "Tell the weather",
  inputSchema: z.object({ city: z.string() }),
  execute: ({ city }) => `sunny in ${city}`,
});

for (const [kind, made] of Object.entries(providers(baseURL))) {
  test(`${kind}: text comes whole, with its usage`, async () => {
    const { text, usage, finishReason } = await generateText({ model: made(model()), prompt });
    assert.equal(text, WORDS);
    assert.equal(usage.inputTokens, 2);
    assert.equal(finishReason, "stop");
  });

  for (const fault of ["comments", "crlf", "ids", "obfuscation", "one_byte"]) {
    test(`${kind}: text streams: ${fault}`, async () => {
      const result = streamText({ model: beating[kind](model(`${HEARTBEATS},fault=${fault}`)), prompt, ...quiet });
      assert.equal(await result.text, WORDS);
      assert.equal(await result.finishReason, "stop");
    });
  }

  test(`${kind}: a tool is called and its result answered`, async () => {
    const result = streamText({ model: made(model()), prompt, tools: { weather }, stopWhen: isStepCount(3), ...quiet });
    assert.equal(await result.text, WORDS);
    const steps = await result.steps;
    assert.deepEqual(steps[0].toolResults.map((found) => found.output), ["sunny in Paris"]);
  });

  test(`${kind}: structured output is parsed`, async () => {
    const { output } = await generateText({ model: made(model()), prompt, output: Output.object({ schema: City }) });
    assert.deepEqual(output, { name: "Paris", inhabitants: 3 });
  });

  test(`${kind}: an image reaches the model`, async () => {
    const content = [{ type: "image", image: PICTURE }];
    const { text } = await generateText({ model: made(model("text=echo")), messages: [{ role: "user", content }] });
    assert.match(text, /^\[image of \d+ characters\]$/);
  });

  for (const fault of ["cut_mid", "cut_fin", "end_early", "error_event"]) {
    for (const after of PHASES) {
      test(`${kind}: a stream that breaks off by ${fault} after ${after} deltas is an error`, async () => {
        const errors = [];
        const result = streamText({
          model: made(model(`fault=${fault},after=${after}`)), prompt, maxRetries: 0,
          onError: ({ error }) => errors.push(error),
        });
        const parts = [];
        try {
          for await (const part of result.fullStream) parts.push(part.type);
        } catch (error) {
          errors.push(error);
        }
        assert.ok(errors.length > 0, parts.join(" "));
      });
    }
  }

  test(`${kind}: a refusal is an error with its status`, async () => {
    for (const code of [400, 404, 429, 500]) {
      const asked = generateText({ model: made(model(`fault=status,code=${code}`)), prompt, maxRetries: 0 });
      await assert.rejects(asked, (error) => {
        assert.ok(APICallError.isInstance(error), String(error));
        assert.equal(error.statusCode, code);
        assert.equal(typeof error.message, "string");
        return true;
      });
    }
  });

  test(`${kind}: what may be asked later is retried`, async () => {
    const later = model("fault=status,code=429,retry_after_ms=1,fail_times=2");
    assert.equal((await generateText({ model: made(later), prompt })).text, WORDS);
  });

  test(`${kind}: a stream that the client leaves`, async () => {
    const stopping = new AbortController();
    const name = model("fault=stall_mid,message=left");
    const result = streamText({ model: made(name), prompt, abortSignal: stopping.signal, ...quiet });
    for await (const part of result.fullStream) {
      if (part.type === "text-delta") stopping.abort();
    }
  });
}

test("a wrong key is refused", async () => {
  const stranger = createOpenAI({ baseURL, apiKey: "a-key-that-is-wrong" });
  await assert.rejects(generateText({ model: stranger(model()), prompt, maxRetries: 0 }), { statusCode: 401 });
});

test("embeddings, pictures and audio", async () => {
  const { embeddings } = await embedMany({ model: openai.embedding(model()), values: ["one", "two"] });
  assert.equal(embeddings.length, 2);
  const { image } = await generateImage({ model: openai.image(model()), prompt: "A dot" });
  assert.equal(`data:image/png;base64,${image.base64}`, PICTURE);
  const { audio } = await generateSpeech({ model: openai.speech(model("size=50000")), text: "Hi" });
  assert.equal(audio.uint8Array.length, 50000);
  const { text } = await transcribe({ model: openai.transcription(model()), audio: AUDIO });
  assert.match(text, new RegExp(`^Heard ${AUDIO.length} bytes`));
});
