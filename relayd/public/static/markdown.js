// Markdown as elements. The library only parses: no markup is ever made from text, so nothing needs cleaning.

import { lexer } from "./marked.js";

const TAGS = { paragraph: "p", strong: "strong", em: "em", del: "del", blockquote: "blockquote" };
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', "#39": "'", nbsp: "\u00a0" };
const SAFE_LINK = /^(?:https?:\/\/|mailto:)/i;

/**
 * Show text as Markdown in `box`; blocks that did not change since the last call stay as they are.
 *
 * @param {HTMLElement} box
 * @param {string} text
 * @param {function(string): HTMLElement} codeTool makes what stands above a block of code, from the code
 */
export function render(box, text, codeTool) {
  let same = 0;
  let added;
  try {
    const blocks = lexer(text).filter((token) => token.type !== "space");
    // A definition of a link changes blocks before it.
    const reusable = blocks.some((token) => token.type === "def") ? 0 : blocks.length;
    while (same < reusable && box.children[same]?.markdown === blocks[same].raw) {
      same += 1;
    }
    added = blocks.slice(same).map((token) => {
      const node = element(token, codeTool);
      const block = node instanceof HTMLElement ? node : make("p", [node]);
      block.markdown = token.raw;
      return block;
    });
  } catch (error) {
    // Nested too deeply, which each browser says in its own way, or too much for the parser: shown as written.
    console.warn("This answer cannot be shown as Markdown:", error);
    same = 0;
    added = [make("p", [text])];
  }
  while (box.children.length > same) {
    box.lastChild.remove();
  }
  box.append(...added);
}

function make(tag, children) {
  const node = document.createElement(tag);
  node.append(...children);
  return node;
}

function plain(text) {
  return text.replace(/&(amp|lt|gt|quot|#39|nbsp);/g, (_, name) => ENTITIES[name]);
}

/** The node of one token; what has none here (images, HTML) is shown as it was written. */
function element(token, codeTool) {
  const all = (tokens) => tokens.map((child) => element(child, codeTool));
  switch (token.type) {
    case "paragraph": case "strong": case "em": case "del": case "blockquote":
      return make(TAGS[token.type], all(token.tokens));
    case "heading":
      return make(`h${Math.min(token.depth + 2, 6)}`, all(token.tokens));
    case "codespan":
      return make("code", [token.text]);
    case "code": {
      const pre = make("pre", [make("code", [token.text])]);
      pre.tabIndex = 0; // A long line is scrolled with the keyboard, too.
      const block = make("div", [codeTool(token.text), pre]);
      block.className = "code";
      return block;
    }
    case "br": case "hr":
      return make(token.type, []);
    case "list": {
      const list = make(token.ordered ? "ol" : "ul", token.items.map((item) => make("li", all(item.tokens))));
      if (token.ordered) {
        list.start = token.start;
      }
      return list;
    }
    case "table": {
      const row = (tag) => (cells) => make("tr", cells.map((cell) => make(tag, all(cell.tokens))));
      return make("table", [make("thead", [row("th")(token.header)]), make("tbody", token.rows.map(row("td")))]);
    }
    case "link": {
      const href = plain(token.href);
      if (!SAFE_LINK.test(href)) {
        return document.createTextNode(token.raw);
      }
      const link = make("a", all(token.tokens));
      Object.assign(link, { href, target: "_blank", rel: "noopener noreferrer" });
      return link;
    }
    case "checkbox":
      return document.createTextNode(token.checked ? "☑ " : "☐ ");
    case "text":
      return token.tokens ? make("span", all(token.tokens)) : document.createTextNode(plain(token.text));
    case "escape":
      return document.createTextNode(token.text);
    case "html":
      // In a cell of a table there is no other way to begin a line.
      return /^<br *\/?>$/i.test(token.raw) ? make("br", []) : document.createTextNode(token.raw.trimEnd());
    default:
      return document.createTextNode(token.raw.trimEnd());
  }
}
