// The protocol of POST /chat: JSON lines in, one event for each line that says something.

/**
 * Ask the relay and yield what it answers, as it comes.
 *
 * Yields {content} for text, {code, sentence, retryAfterS} for a failure, and {done, finish_reason, usage} at
 * the end. Two codes are not the relay's: `not_the_relay` (its sentence is the HTTP status), and `cut` for an
 * answer that ends without its last line: the connection broke on the way.
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
    yield { code: "not_the_relay", sentence: `HTTP ${response.status}` };
    return;
  }
  for await (const line of lines(response.body)) {
    const event = JSON.parse(line);
    if (event.done) {
      yield { done: true, finish_reason: event.finish_reason, usage: event.usage };
      return;
    }
    if (event.error) {
      const [code, ...sentence] = event.content.split(": ");
      const retryAfterS = Number(response.headers.get("Retry-After"));
      yield { code, sentence: sentence.join(": "), retryAfterS };
    } else if (event.content) {
      // An empty line only fills a silence.
      yield { content: event.content };
    }
  }
  yield { code: "cut", sentence: "" };
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
