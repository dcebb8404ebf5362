// The protocol of POST /chat: JSON lines in, one event for each line that says something.

/**
 * Ask the relay and yield what it answers, as it comes.
 *
 * Yields {content} for text, {error} for the sentence of a failure, and {done, finish_reason, usage} at
 * the end. An answer that ends without its last line yields an error too: it was cut on the way.
 *
 * @param {string} url of /chat
 * @param {string} key
 * @param {object} request messages, model and sampling fields
 * @param {AbortSignal} signal aborts the request, and with it the model's work
 */
export async function* ask(url, key, request, signal) {
  const response = await fetch(url, {
    method: "POST",
    headers: { Authorization: `Bearer ${key}`, "Content-Type": "application/json" },
    body: JSON.stringify(request),
    cache: "no-store",
    credentials: "omit",
    signal,
  });
  if (!(response.headers.get("Content-Type") || "").startsWith("application/x-ndjson")) {
    yield { error: `HTTP ${response.status} from something between this page and the relay.` };
    return;
  }
  for await (const line of lines(response.body)) {
    const event = JSON.parse(line);
    if (event.done) {
      yield { done: true, finish_reason: event.finish_reason, usage: event.usage };
      return;
    }
    if (event.error) {
      yield { error: event.content };
    } else if (event.content) {
      // An empty line only fills a silence.
      yield { content: event.content };
    }
  }
  yield { error: "The connection ended before the answer did." };
}

/** The lines of a stream of bytes; they may be split anywhere, also inside a character. */
async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) {
      return;
    }
    const pieces = (rest + value).split("\n");
    rest = pieces.pop();
    yield* pieces;
  }
}
