// Ask a relay from JavaScript: node chat.mjs "Say hi". A page can import `ask` as it is.
// RELAY is its address, RELAY_KEY a key that its owner gave you.

export async function ask(relay, key, messages, { onText, signal }) {
  const headers = { Authorization: `Bearer ${key}` };
  const body = JSON.stringify({ messages });
  // Aborting the signal stops the model too.
  const response = await fetch(`${relay}/chat`, { method: "POST", headers, body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection ended before the answer did");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.map((text) => JSON.parse(text))) {
      if (line.error) throw new Error(line.content);
      if (line.done) return;
      onText(line.content);
    }
  }
}

if (globalThis.process) {
  const { RELAY = "http://127.0.0.1:3666", RELAY_KEY } = process.env;
  if (!RELAY_KEY) process.exit(console.error("set RELAY_KEY to your key") ?? 1);
  const messages = [{ role: "user", content: process.argv[2] ?? "Say hi" }];
  const onText = (text) => process.stdout.write(text);
  await ask(RELAY, RELAY_KEY, messages, { onText }).then(
    () => console.log(), (error) => process.exit(console.error(`\n${error.cause ?? error.message}`) ?? 1));
}
