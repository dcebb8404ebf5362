// openai-node, unmodified, through relayd's /v1.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI, { toFile } from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { AUDIO, BROKEN, HEARTBEATS, PHASES, PICTURE, WORDS, apiKey, baseURL, beatingURL, broken, model } from "./common.mjs";

const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const beating = new OpenAI({ baseURL: beatingURL, apiKey, maxRetries: 0 });
const retrying = new OpenAI({ baseURL, apiKey, maxRetries: 2 });
const messages = [{ role: "user", content: "Say hi" }];
const City = z.object({ name: z.string(), inhabitants: z.number().int() });
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const chatTools = [{ type: "function", function: { name: "weather", parameters } }];
const tools = [{ type: "function", name: "weather", parameters, strict: false }];
const text = (chunks) => chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join("");

test("a chat completion comes whole", async () => {
  const { data, request_id: id } = await client.chat.completions.create({ model: model(), messages }).withResponse();
  assert.equal(data.choices[0].message.content, WORDS);
  assert.ok(id && !id.startsWith("req_demo"));
});

for (const fault of ["comments", "crlf", "ids", "obfuscation", "coalesced", "one_byte"]) {
  test(`a chat streams with one choice in each chunk: ${fault}`, async () => {
    const stream = await beating.chat.completions.create({
      model: model(`${HEARTBEATS},fault=${fault}`), messages, stream: true,
    });
    const chunks = [];
    for await (const chunk of stream) chunks.push(chunk);
    assert.equal(text(chunks), WORDS);
    assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
  });

  test(`a response streams: ${fault}`, async () => {
    const stream = beating.responses.stream({ model: model(`${HEARTBEATS},fault=${fault}`), input: "Say hi" });
    const final = await stream.finalResponse();
    assert.equal(final.status, "completed");
    assert.equal(final.output_text, WORDS);
  });
}

test("a chat streams its usage to who asks for it", async () => {
  const stream = await client.chat.completions.create({
    model: model(), messages, stream: true, stream_options: { include_usage: true },
  });
  let last;
  for await (const chunk of stream) last = chunk;
  assert.deepEqual(last.choices, []);
  assert.equal(last.usage.prompt_tokens, 2);
});

test("tools are run by the helper, streamed", async () => {
  const asked = [];
  const runner = client.chat.completions.runTools({
    model: model(), messages, stream: true,
    tools: [{
      type: "function",
      function: {
        name: "weather", parameters, parse: JSON.parse,
        function: (given) => { asked.push(given); return "sunny"; },
      },
    }],
  });
  assert.equal(await runner.finalContent(), WORDS);
  assert.deepEqual(asked, [{ city: "Paris" }]);
  const { output } = await client.responses.create({ model: model(), input: "How is it?", tools });
  assert.deepEqual(JSON.parse(output[0].arguments), { city: "Paris" });
  const { choices } = await client.chat.completions.create({ model: model(), messages, tools: chatTools });
  assert.equal(choices[0].finish_reason, "tool_calls");
});

test("structured output is parsed", async () => {
  const city = { name: "Paris", inhabitants: 3 };
  const chat = await client.chat.completions.parse({
    model: model(), messages, response_format: zodResponseFormat(City, "city"),
  });
  assert.deepEqual(chat.choices[0].message.parsed, city);
  const stream = client.responses.stream({ model: model(), input: "Where?", text: { format: zodTextFormat(City, "city") } });
  assert.deepEqual((await stream.finalResponse()).output_parsed, city);
});

test("an image reaches the model", async () => {
  const content = [{ type: "image_url", image_url: { url: PICTURE } }];
  const { choices } = await client.chat.completions.create({
    model: model("text=echo"), messages: [{ role: "user", content }],
  });
  assert.equal(choices[0].message.content, `[image of ${PICTURE.length} characters]`);
});

test("a stored response is continued, read, compacted and deleted", async () => {
  const first = await client.responses.create({ model: model(), input: "Say hi" });
  const second = await client.responses.create({ model: model(), input: "Again", previous_response_id: first.id });
  assert.equal(second.previous_response_id, first.id);
  assert.equal((await client.responses.retrieve(first.id)).output_text, WORDS);
  await client.responses.delete(first.id);
  await assert.rejects(client.responses.retrieve(first.id), OpenAI.NotFoundError);
  const compacted = await client.responses.compact({ model: model(), input: "A long conversation" });
  assert.equal(compacted.output[0].type, "compaction");
});

test("embeddings, moderations and models", async () => {
  const { data } = await client.embeddings.create({ model: model(), input: ["one", "two"] });
  const floats = await client.embeddings.create({ model: model(), input: ["one", "two"], encoding_format: "float" });
  assert.deepEqual(data.map((item) => item.embedding), floats.data.map((item) => item.embedding));
  assert.equal((await client.moderations.create({ input: "Say hi" })).results[0].flagged, false);
  const models = [];
  for await (const { id } of client.models.list()) models.push(id);
  assert.ok(models.includes("demo"));
});

test("pictures are made and edited, audio goes up and down", async () => {
  const made = await client.images.generate({ model: model(), prompt: "A dot" });
  assert.equal(`data:image/png;base64,${made.data[0].b64_json}`, PICTURE);
  const image = await toFile(Buffer.from(made.data[0].b64_json, "base64"), "dot.png", { type: "image/png" });
  assert.equal((await client.images.edit({ model: model(), image, prompt: "Red" })).data.length, 1);
  const speech = await client.audio.speech.create({ model: model("size=100000"), voice: "alloy", input: "Hi" });
  assert.equal((await speech.arrayBuffer()).byteLength, 100000);
  const file = () => toFile(AUDIO, "speech.mp3");
  const { text: heard } = await client.audio.transcriptions.create({ model: model(), file: await file() });
  assert.match(heard, new RegExp(`^Heard ${AUDIO.length} bytes`));
  const stream = await client.audio.transcriptions.create({ model: model(), file: await file(), stream: true });
  let last;
  for await (const event of stream) last = event;
  assert.equal(last.text, heard);
  assert.equal((await client.audio.translations.create({ model: model(), file: await file() })).text, heard);
});

for (const [code, kind] of [
  [400, OpenAI.BadRequestError], [404, OpenAI.NotFoundError], [422, OpenAI.UnprocessableEntityError],
  [429, OpenAI.RateLimitError], [500, OpenAI.InternalServerError], [401, OpenAI.InternalServerError],
]) {
  test(`a refusal with ${code} raises its error`, async () => {
    const asked = { model: model(`fault=status,code=${code}`), messages, stream: true };
    await assert.rejects(client.chat.completions.create(asked), (error) => {
      assert.ok(error instanceof kind, String(error));
      assert.equal(typeof error.error.message, "string");
      assert.ok(error.requestID);
      return true;
    });
  });
}

test("a wrong key is an authentication error", async () => {
  const stranger = new OpenAI({ baseURL, apiKey: "a-key-that-is-wrong", maxRetries: 0 });
  await assert.rejects(stranger.models.list(), { constructor: OpenAI.AuthenticationError, code: "invalid_api_key" });
});

test("a closed path names the setting", async () => {
  await assert.rejects(client.files.list(), /v1\.allow/);
});

test("what may be asked later is retried, what may not is not", async () => {
  const later = model("fault=status,code=429,retry_after_ms=1,fail_times=2");
  const { choices } = await retrying.chat.completions.create({ model: later, messages });
  assert.equal(choices[0].message.content, WORDS);
  const never = model("fault=status,code=429,error=insufficient_quota,should_retry=false,fail_times=1");
  await assert.rejects(retrying.chat.completions.create({ model: never, messages }), OpenAI.RateLimitError);
});

const streams = {
  chat: (name) => client.chat.completions.create({ model: name, messages, stream: true }),
  responses: (name) => client.responses.create({ model: name, input: "Say hi", stream: true }),
  "chat helper": (name) => client.chat.completions.stream({ model: name, messages }),
  "responses helper": (name) => client.responses.stream({ model: name, input: "Say hi" }),
};

for (const [protocol, iterate] of Object.entries(streams)) {
  for (const fault of BROKEN) {
    for (const after of PHASES) {
      test(`${protocol} that breaks off by ${fault} after ${after} deltas throws`, async () => {
        const got = await broken(() => iterate(model(`fault=${fault},after=${after}`)));
        assert.ok(got.length > 0);
      });
    }
  }
  test(`${protocol} without its finish throws`, async () => {
    await broken(() => iterate(model("finish=none")));
  });
}

test("a whole answer that breaks off throws", async () => {
  for (const fault of ["cut_mid", "cut_fin"]) {
    await assert.rejects(client.responses.create({ model: model(`fault=${fault}`), input: "Say hi" }));
    const speech = () => client.audio.speech.create({ model: model(`fault=${fault}`), voice: "alloy", input: "Hi" });
    await assert.rejects(async () => (await speech()).arrayBuffer());
  }
});

for (const [protocol, iterate] of Object.entries(streams)) {
  test(`${protocol} that the client leaves`, async () => {
    for await (const event of await iterate(model("fault=stall_mid,message=left"))) {
      assert.ok(event);
      break;
    }
  });
}
