"""What `/` shows: a small chat page, or two sentences if the operator turned the page off."""

from __future__ import annotations

import re
from pathlib import Path

from relayd.public.handlers import BaseHandler

_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "chat.js": "text/javascript; charset=utf-8",
    "markdown.js": "text/javascript; charset=utf-8",
    "marked.js": "text/javascript; charset=utf-8",
    "translations.js": "text/javascript; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.svg": "image/svg+xml",
}
_NOTICE = b"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>relayd</title>
<h1>relayd</h1>
<p>This is a relay for chat completions. It answers <code>POST /chat</code> with
<code>{"model": "&hellip;", "messages": [&hellip;]}</code> and an <code>Authorization</code> key,
as a stream of JSON lines, one for each piece of text as the model writes it.</p>
<p>Keys come from the person who runs this relay.</p>
"""
# Nothing from elsewhere, nothing inline, nothing that text could become (Content Security Policy Level 3).
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

Page = dict[str, bytes]
"""The page's files by name."""


def load_page() -> Page:
    """Read the files of the chat page."""
    return {name: (_FOLDER / name).read_bytes() for name in _TYPES}


def notice() -> Page:
    """Return the short page that takes the place of a chat page that is turned off."""
    return {"index.html": _NOTICE}


class PageHandler(BaseHandler):
    """Serves the page's files from memory."""

    def get(self, name: str) -> None:
        """Answer with a file, or with 304 if the browser has it already."""
        name = name or "index.html"
        self.set_header("Content-Type", _TYPES[name])
        self.set_header("Cache-Control", "no-cache")
        self.set_header("Content-Security-Policy", _POLICY)
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")
        self.set_header("Referrer-Policy", "no-referrer")
        self.finish(self.context.page[name])

    head = get


def page_pattern(page: Page) -> str:
    """Return the pattern of the files' paths, each under its name; `/` alone is index.html."""
    return "/(|" + "|".join(re.escape(name) for name in page) + ")"
