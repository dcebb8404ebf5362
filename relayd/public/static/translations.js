// The page's words, in English and Chinese; the browser's languages decide.

const language = navigator.languages.find((tag) => /^(?:en|zh)\b/i.test(tag)) ?? "en";
const isChinese = language.toLowerCase().startsWith("zh");

const TEXTS = {
  you: ["You", "你"],
  model: ["Model", "模型"],
  answering: ["The model is answering …", "模型正在回答…"],
  stopped: ["Stopped.", "已停止。"],
  retry: ["Try again", "重试"],
  copyAnswer: ["Copy answer", "复制回答"],
  copyCode: ["Copy code", "复制代码"],
  copied: ["Copied", "已复制"],
  notCopied: ["Not copied", "复制失败"],
  needKey: ["This relay needs a key: enter yours above the message.", "请先在消息上方填写密钥。"],
  details: [(words) => `Details: ${words}`, (words) => `详情：${words}`],
  space: [" ", ""],
  again: [(when) => `Try again ${when}.`, (when) => `请${when}再试。`],
  cutAtLimit: ["cut at the length limit", "达到长度上限，回答被截断"],
  tokens: [
    (usage) => `${usage.prompt_tokens} tokens in, ${usage.completion_tokens} out`,
    (usage) => `输入 ${usage.prompt_tokens} 个 token，输出 ${usage.completion_tokens} 个 token`,
  ],
  firstWord: [(seconds) => `first word after ${seconds} s`, (seconds) => `${seconds} 秒后开始回答`],
  inAll: [(seconds) => `${seconds} s in all`, (seconds) => `共 ${seconds} 秒`],
};

/** Why an answer has no words, by its finish reason. */
const EMPTY = {
  content_filter: ["The provider’s content filter held the answer back.", "回答被服务商的内容过滤器拦截了。"],
  tool_calls: ["The model wanted to call a tool. This page has none.", "模型想调用工具，但本页面不提供工具。"],
  length: [
    "The length limit was used up before the first word.",
    "还没写出第一个字就用完了长度上限。",
  ],
  other: ["The model ended without a word.", "模型什么也没写就结束了。"],
};

/** Why there is no answer, or no whole one, by the code of the failure. */
const FAILURES = {
  bad_request: [
    "The relay could not use this request. Check the name of the model.",
    "中继无法处理这个请求。请检查模型名称。",
  ],
  unauthorized: [
    "The relay does not accept this key. Check it, or ask the person who runs the relay for a new one.",
    "密钥无效。请检查是否填错，或向管理员索取新的密钥。",
  ],
  model_not_allowed: [
    "This relay does not offer this model. Enter another one, or leave the field empty.",
    "此中继不提供该模型。请换一个模型，或留空。",
  ],
  too_large: [
    "This conversation has become too long for the relay. Begin a new chat.",
    "对话太长，中继无法处理。请开始新对话。",
  ],
  busy: ["The relay is busy.", "中继繁忙。"],
  draining: ["The relay is paused or restarting.", "中继已暂停或正在重启。"],
  upstream_rejected: ["The provider refused this request.", "服务商拒绝了这个请求。"],
  upstream_limited: ["The provider’s limit is reached.", "已达到服务商的用量限制。"],
  upstream_auth: [
    "The provider does not serve this relay. Tell the person who runs it.",
    "服务商拒绝为此中继服务。请告知管理员。",
  ],
  upstream_failed: ["The provider failed.", "服务商出错了。"],
  upstream_unreachable: ["The relay cannot reach the provider.", "中继无法连接服务商。"],
  upstream_timeout: ["The model took too long to answer.", "模型太久没有回答。"],
  upstream_truncated: ["The answer broke off before its end.", "回答没写完就中断了。"],
  cancelled: ["The person who runs this relay ended this answer.", "管理员终止了这次回答。"],
  key_revoked: [
    "This key was withdrawn during the answer. Ask the person who runs the relay for a new one.",
    "回答过程中密钥被撤销了。请向管理员索取新的密钥。",
  ],
  over_budget: ["Your allowance is used up for now.", "您的额度暂时用完了。"],
  model_unpriced: [
    "This relay does not know the price of this model, so your key cannot use it. Enter another one.",
    "中继没有该模型的价格，您的密钥不能使用它。请换一个模型。",
  ],
  state_unavailable: [
    "The relay cannot use its database at the moment. Try again later.",
    "中继暂时无法使用数据库。请稍后再试。",
  ],
  internal: [
    "The relay met a fault of its own. Tell the person who runs it.",
    "中继内部出错了。请告知管理员。",
  ],
  cut: ["The connection ended before the answer did.", "回答还没结束，连接就断开了。"],
  unreachable: ["The relay cannot be reached, or the connection broke.", "无法连接中继，或者连接中断了。"],
  not_the_relay: [
    "Something between this page and the relay answered instead of it.",
    "应答的不是中继，而是中间的某个服务器。",
  ],
  other: ["The relay could not answer.", "中继无法回答。"],
};

/** What index.html says in English, by selector: text, or the attribute before the colon. */
const PAGE = {
  "#about": "聊天中继，密钥由管理员发放。",
  "#renew": "新对话",
  "aria-label:#talk": "对话",
  "#start": "填写密钥，写下问题，然后点“发送”。密钥由管理员发放。",
  "aria-label:#ask": "向模型提问",
  "#settings": "密钥和模型",
  "label[for=key]": "密钥",
  "label[for=model]": "模型",
  "placeholder:#model": "由中继决定",
  "#key-note": "密钥只保存在当前标签页，关闭后即清除。",
  "label[for=text]": "消息",
  "placeholder:#text": "写下你的问题",
  "#send": "发送",
  "#stop": "停止",
  "#text-note": "Enter 发送，Shift+Enter 换行，Esc 停止回答。",
};

const chosen = (table) =>
  Object.fromEntries(Object.entries(table).map(([name, [english, chinese]]) => [name, isChinese ? chinese : english]));

export const texts = chosen(TEXTS);
export const emptyReasons = chosen(EMPTY);
export const failures = chosen(FAILURES);

/** "in 9 seconds", in the page's language. */
export function inTime(seconds) {
  const format = new Intl.RelativeTimeFormat(language);
  return seconds < 120 ? format.format(seconds, "second") : format.format(Math.ceil(seconds / 60), "minute");
}

/** Put the page itself into the browser's language. */
export function translatePage() {
  if (!isChinese) {
    return;
  }
  document.documentElement.lang = "zh-CN";
  for (const [place, text] of Object.entries(PAGE)) {
    const [attribute, selector] = place.includes(":") ? place.split(":") : [null, place];
    const element = document.querySelector(selector);
    if (attribute) {
      element.setAttribute(attribute, text);
    } else {
      element.textContent = text;
    }
  }
}
