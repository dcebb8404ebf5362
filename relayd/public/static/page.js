// The page: a conversation with the model behind this relay.

import { ask } from "./chat.js";
import { render } from "./markdown.js";
import { emptyReasons, failures, inTime, texts, translatePage } from "./translations.js";

const [talk, start, problem, facts, form, fold, key, model, text, send, stop, renew] = [
  "talk", "start", "problem", "facts", "ask", "fold", "key", "model", "text", "send", "stop", "renew",
].map((id) => document.getElementById(id));

const NEAR_THE_END_PX = 40;
const COPIED_MS = 2000;
const REFUSED_KEY = new Set(["unauthorized", "key_revoked"]);
const NARROW = matchMedia("(max-width: 36rem)");

/** What the model is sent: {role, content} in order. */
let messages = [];
/** Aborts the answer that is being written; null while none is. */
let running = null;
/** Whether the end of the conversation is kept in view; not after the reader has scrolled away from it. */
let following = true;
let scrolledTo = 0;

translatePage();

talk.addEventListener("scroll", () => {
  const gap = talk.scrollHeight - talk.scrollTop - talk.clientHeight;
  // Text that comes in never scrolls up, other than to the end of a text that became shorter.
  if (talk.scrollTop < scrolledTo && gap > 1) {
    following = false;
  } else if (gap < NEAR_THE_END_PX) {
    following = true;
  }
  scrolledTo = talk.scrollTop;
});
// A line of facts or a phone's keyboard makes the pane smaller.
new ResizeObserver(follow).observe(talk);

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
  talk.replaceChildren(start);
  say("", "");
  text.focus();
});
NARROW.addEventListener("change", foldOnPhone);
foldOnPhone();
(key.value ? text : key).focus();

function submit() {
  const question = text.value.trim();
  if (running || !question) {
    return;
  }
  if (!key.value.trim()) {
    say(texts.needKey, "");
    askForKey();
    return;
  }
  text.value = "";
  foldOnPhone();
  answer(question);
}

/** Ask, and show the answer as it comes, to its end or to whatever ends it. */
async function answer(question) {
  const before = messages;
  const said = [...before, { role: "user", content: question }];
  start.remove();
  talk.querySelector(".retry")?.remove();
  const questionBox = show(texts.you, "user");
  questionBox.lastChild.append(paragraph("", question));
  const box = show(texts.model, "model");
  const reply = { text: "", body: box.lastChild, began: performance.now() };
  following = true;
  begin(box);
  let outcome;
  try {
    outcome = await read(said, reply);
  } catch (error) {
    outcome = error.name === "AbortError" ? { stopped: true } : { code: "unreachable", sentence: "" };
  }
  render(reply.body, reply.text, codeTool);
  end(box);
  if (messages !== before) {
    return; // A new chat was begun meanwhile.
  }
  const forget = () => {
    messages = before;
    questionBox.remove();
    box.remove();
  };
  if (REFUSED_KEY.has(outcome.code) && !reply.text && !text.value) {
    forget();
    giveBack(question, failures[outcome.code]);
    return;
  }
  if (reply.text) {
    messages = [...said, { role: "assistant", content: reply.text }];
  }
  conclude(box, reply, outcome, () => {
    forget();
    answer(question);
  });
}

/** Put a question back, to be sent with another key. */
function giveBack(question, trouble) {
  if (!talk.querySelector("article")) {
    talk.append(start);
  }
  text.value = question;
  say(trouble, "");
  askForKey();
}

/** Say why an answer is not whole, and add the buttons to copy it and to ask for it again. */
function conclude(box, reply, outcome, askAgain) {
  const reason = reasonOf(outcome, reply.text);
  if (reason) {
    box.append(paragraph("why", reason));
  }
  if (outcome.code) {
    box.classList.add("broken");
    box.lastChild.role = "alert";
  }
  const tools = document.createElement("div");
  tools.className = "tools";
  if (reply.text) {
    tools.append(copyButton(texts.copyAnswer, reply.text));
  }
  if (reason || outcome.stopped) {
    tools.append(button("retry", texts.retry, () => running || askAgain()));
  }
  box.append(tools);
  say("", outcome.done ? summary(outcome, reply) : outcome.stopped ? texts.stopped : "");
  follow();
}

/** Show the answer while it comes, at most once a frame; returns the event that ended it. */
async function read(said, reply) {
  const request = { messages: said, stream_options: { include_usage: true } };
  if (model.value.trim()) {
    request.model = model.value.trim();
  }
  let failed = null;
  let frame = 0;
  let notBefore = 0;
  const draw = () => {
    const now = performance.now();
    if (now < notBefore) {
      frame = requestAnimationFrame(draw);
      return;
    }
    frame = 0;
    render(reply.body, reply.text, codeTool);
    follow();
    // Some texts are slow to parse: they take no more than a tenth of the time.
    notBefore = now + 9 * (performance.now() - now);
  };
  try {
    for await (const event of ask("chat", key.value.trim(), request, running.signal)) {
      if (event.content) {
        reply.first ??= performance.now();
        reply.text += event.content;
        frame ||= requestAnimationFrame(draw);
      } else if (event.code) {
        failed = event;
      } else {
        return failed ?? event;
      }
    }
    return failed;
  } finally {
    cancelAnimationFrame(frame);
  }
}

/** Why there is no answer, or not all of it; empty for a whole one. */
function reasonOf({ code, sentence, retryAfterS, finish_reason, stopped }, answered) {
  if (code) {
    const parts = [failures[code] ?? failures.other];
    if (retryAfterS) {
      parts.push(texts.again(inTime(retryAfterS)));
    }
    // What the provider said stands behind a colon; of what has no words here, everything is shown.
    const isKnown = code in failures && code !== "not_the_relay";
    const details = isKnown ? code.startsWith("upstream_") && sentence.split(": ").slice(1).join(": ") : sentence;
    if (details) {
      parts.push(texts.details(details));
    }
    return parts.join(texts.space);
  }
  if (!answered || finish_reason === "content_filter") {
    return stopped ? texts.stopped : emptyReasons[finish_reason] ?? emptyReasons.other;
  }
  return "";
}

function summary({ finish_reason, usage }, { began, first }) {
  const seconds = (from, to) => ((to - from) / 1000).toFixed(1);
  const parts = [];
  if (finish_reason === "length") {
    parts.push(texts.cutAtLimit);
  }
  if (usage) {
    parts.push(texts.tokens(usage));
  }
  if (first) {
    parts.push(texts.firstWord(seconds(began, first)));
  }
  parts.push(texts.inAll(seconds(began, performance.now())));
  return parts.join(" · ");
}

function begin(box) {
  running = new AbortController();
  say("", texts.answering);
  box.setAttribute("aria-busy", "true");
  moveFocus(stop);
  follow();
}

function end(box) {
  running = null;
  box.removeAttribute("aria-busy");
  moveFocus(text);
}

/** Show the button that fits, and give `next` the focus if it was on the other one or nowhere. */
function moveFocus(next) {
  const isLost = [document.body, send, stop].includes(document.activeElement);
  send.hidden = running !== null;
  stop.hidden = running === null;
  if (isLost) {
    next.focus();
  }
}

function say(trouble, fact) {
  problem.textContent = trouble;
  facts.textContent = fact;
}

function askForKey() {
  fold.open = true;
  key.focus();
}

/** Key and model take the space of the conversation on a phone: once there is a key, they are folded. */
function foldOnPhone() {
  fold.open = !(NARROW.matches && key.value.trim());
}

/** Append an empty message to the conversation; its last child takes what was said. */
function show(author, kind) {
  const box = document.createElement("article");
  box.className = kind;
  const name = document.createElement("h2");
  name.textContent = author;
  const body = document.createElement("div");
  body.className = "body";
  box.append(name, body);
  talk.append(box);
  return box;
}

function follow() {
  if (following) {
    talk.scrollTop = talk.scrollHeight;
  }
}

function paragraph(kind, words) {
  const made = document.createElement("p");
  made.className = kind;
  made.textContent = words;
  return made;
}

function button(kind, label, onClick) {
  const made = document.createElement("button");
  Object.assign(made, { type: "button", className: kind, textContent: label });
  made.addEventListener("click", onClick);
  return made;
}

function codeTool(code) {
  return copyButton(texts.copyCode, code);
}

function copyButton(label, words) {
  const made = button("copy", label, async () => {
    made.textContent = (await copy(words)) ? texts.copied : texts.notCopied;
    made.focus();
    setTimeout(() => { made.textContent = label; }, COPIED_MS);
  });
  return made;
}

/** Put words on the clipboard; returns whether they are there. */
async function copy(words) {
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(words).then(() => true, () => false);
  }
  // Over plain http, browsers copy only what is selected.
  const field = document.createElement("textarea");
  field.className = "unseen";
  field.value = words;
  document.body.append(field);
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  return isCopied;
}
