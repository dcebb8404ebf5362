// The page: a conversation with the model behind this relay. Everything is shown as text, never as markup.

import { ask } from "./chat.js";

const [talk, problem, facts, form, key, model, text, send, stop, renew] = [
  "talk", "problem", "facts", "ask", "key", "model", "text", "send", "stop", "renew",
].map((id) => document.getElementById(id));

const NEAR_THE_END_PX = 40;

/** What the model is sent: {role, content} in order. */
let messages = [];
/** Aborts the answer that is being written; null while none is. */
let running = null;

for (const field of [key, model]) {
  const name = `relayd.${field.id}`;
  field.value = sessionStorage.getItem(name) || "";
  field.addEventListener("input", () => sessionStorage.setItem(name, field.value));
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
text.addEventListener("keydown", (event) => {
  // While an input method composes (Chinese, Japanese), Enter picks a candidate.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    running?.abort();
  }
});
stop.addEventListener("click", () => running?.abort());
renew.addEventListener("click", () => {
  running?.abort();
  messages = [];
  talk.replaceChildren();
  say("", "");
  text.focus();
});
(key.value ? text : key).focus();

function submit() {
  const question = text.value.trim();
  if (running || !question) {
    return;
  }
  if (!key.value.trim()) {
    say("This relay needs a key: enter yours above the message.", "");
    key.focus();
    return;
  }
  text.value = "";
  answer(question);
}

/** Ask, and show the answer as it comes, to its end or to whatever ends it. */
async function answer(question) {
  const asked = { role: "user", content: question };
  const said = [...messages, asked];
  const conversation = messages;
  const questionBox = show("You", "user", question);
  const box = show("Model", "model", "");
  const words = box.lastChild.firstChild;
  const clock = { began: performance.now() };
  begin(box);
  let outcome;
  try {
    outcome = await read(said, words, clock);
  } catch (error) {
    outcome = error.name === "AbortError"
      ? { stopped: true }
      : { error: "The relay cannot be reached, or the connection broke." };
  }
  end(box);
  if (messages !== conversation) {
    return; // A new chat was begun meanwhile.
  }
  if (words.data) {
    messages = [...said, { role: "assistant", content: words.data }];
  } else {
    // Nothing was answered: give the question back, to be sent again.
    questionBox.remove();
    box.remove();
    text.value ||= question;
  }
  if (outcome.error) {
    box.classList.add("broken");
    say(outcome.error, "");
    (outcome.error.startsWith("unauthorized") ? key : text).focus();
  } else {
    say("", outcome.stopped ? "Stopped." : summary(outcome, clock));
    text.focus();
  }
}

/** Append the answer to `words`; returns the event that ended it. */
async function read(said, words, clock) {
  const request = { messages: said, stream_options: { include_usage: true } };
  if (model.value.trim()) {
    request.model = model.value.trim();
  }
  let failed = null;
  for await (const event of ask("chat", key.value.trim(), request, running.signal)) {
    if (event.content) {
      clock.first ??= performance.now();
      following(() => words.appendData(event.content));
    } else if (event.error) {
      failed = event;
    } else if (!failed) {
      return event;
    }
  }
  return failed;
}

function begin(box) {
  running = new AbortController();
  say("", "The model is answering …");
  box.setAttribute("aria-busy", "true");
  send.hidden = true;
  stop.hidden = false;
}

function end(box) {
  running = null;
  box.removeAttribute("aria-busy");
  send.hidden = false;
  stop.hidden = true;
}

function say(trouble, fact) {
  problem.textContent = trouble;
  facts.textContent = fact;
}

/** One message of the conversation; the text node to append to is its last child's first. */
function show(who, kind, content) {
  const box = document.createElement("article");
  box.className = kind;
  const name = document.createElement("h2");
  name.textContent = who;
  const body = document.createElement("p");
  body.append(document.createTextNode(content));
  box.append(name, body);
  talk.append(box);
  talk.scrollTop = talk.scrollHeight;
  return box;
}

/** Change the conversation and keep its end in view, unless the reader has scrolled away from it. */
function following(change) {
  const atEnd = talk.scrollHeight - talk.scrollTop - talk.clientHeight < NEAR_THE_END_PX;
  change();
  if (atEnd) {
    talk.scrollTop = talk.scrollHeight;
  }
}

function summary({ finish_reason, usage }, { began, first }) {
  const seconds = (from, to) => `${((to - from) / 1000).toFixed(1)} s`;
  const parts = [];
  if (finish_reason === "length") {
    parts.push("cut at the length limit");
  }
  if (usage) {
    parts.push(`${usage.prompt_tokens} tokens in, ${usage.completion_tokens} out`);
  }
  if (first) {
    parts.push(`first word after ${seconds(began, first)}`);
  }
  parts.push(`${seconds(began, performance.now())} in all`);
  return parts.join(" · ");
}
