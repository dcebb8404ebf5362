"""The chat page in a headless Chromium: what a person sees, types and hears of it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product
from typing import Any, Literal

from playwright.async_api import Locator, Page, expect

from relayd.relay.errors import ErrorCode
from tests.harness import KEY, Relay, running_relay
from tests.support.browser import errors_of, open_page

_LETTERS = re.compile(r".{6,}", re.DOTALL)
_CODE = re.compile(r"[a-z]_[a-z]|Authorization")
"""What only programs should read."""
_SLOW = "demo:deltas=2000,interval_ms=50,text=words"
_PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}}
_Role = Literal["log", "textbox", "button", "form"]
_NAMED: tuple[tuple[_Role, str], ...] = (
    ("log", "Conversation"),
    ("textbox", "Model"),
    ("textbox", "Message"),
    ("button", "Send"),
    ("button", "New chat"),
    ("form", "Ask the model"),
)


@asynccontextmanager
async def _chat_page(model: str, key: str = KEY, **context: Any) -> AsyncIterator[tuple[Relay, Page]]:
    """The page of a running relay, its key and model filled in, the focus on the message."""
    async with running_relay() as relay, open_page(**context) as page:
        errors = errors_of(page)
        await page.goto(f"http://127.0.0.1:{relay.port}/")
        await page.fill("#key", key)
        await page.fill("#model", model)
        await page.focus("#text")
        yield relay, page
        assert errors == []


async def _say(page: Page, text: str) -> None:
    await page.keyboard.type(text)
    await page.keyboard.press("Enter")


def _answer(page: Page) -> Locator:
    return page.locator(".model p").first


async def _begun(page: Page) -> str:
    """Wait for more than a few letters of the answer and return them."""
    await expect(_answer(page)).to_have_text(_LETTERS)
    return await _answer(page).inner_text()


async def _idle(page: Page) -> None:
    await expect(page.locator("#stop")).to_be_hidden()


async def test_an_answer_is_seen_as_it_comes_and_its_usage_at_the_end() -> None:
    """All words so far are shown, also on a slow machine and if the model pauses after them.

    Tokens and times follow; the next question carries both sides.
    """
    async with _chat_page("demo:text=words,interval_ms=100,fault=stall_mid") as (relay, page):
        # Each look at the clock takes 0.2 s, and so does each drawing.
        await page.evaluate(
            "const now = performance.now.bind(performance); let looks = 0;"
            " performance.now = () => now() + 200 * looks++"
        )
        await _say(page, "Say what never ends")
        await expect(_answer(page)).to_have_text("The relay passes")
        assert not relay.upstream.requests[0].ended
        await page.click("#renew")
        await _idle(page)
        await page.fill("#model", "demo:deltas=10,interval_ms=0,text=words")
        await page.focus("#text")
        await _say(page, "Say hi")
        await expect(_answer(page)).to_have_text("The relay passes each delta on as one line, as ")
        await expect(page.locator("#facts")).to_contain_text("tokens in")
        await _say(page, "And again")
        sent = (await relay.upstream.wait_request(2)).body.decode()
        assert "Say hi" in sent
        assert "The relay passes each delta" in sent
        assert "And again" in sent
        await _idle(page)


async def test_stop_ends_the_models_work() -> None:
    """Stop, or Escape, closes the provider's stream long before its end; what was said stays."""
    async with _chat_page(_SLOW) as (relay, page):
        for number, by in enumerate(("button", "key")):
            await _say(page, "Go on and on")
            await expect(page.locator(".model p")).to_have_text([_LETTERS] * (number + 1))
            await (page.click("#stop") if by == "button" else page.keyboard.press("Escape"))
            await relay.upstream.wait_closed(number)
            await _idle(page)
            assert await page.inner_text("#facts") == "Stopped."
            await expect(page.locator(".model p")).to_have_text([_LETTERS] * (number + 1))
            await expect(page.locator("#text")).to_be_focused()


async def test_a_refused_key_is_said_in_plain_words_and_the_question_given_back() -> None:
    """The alert speaks of the key, not of headers or codes; the focus goes to the key, nothing is lost."""
    async with _chat_page("demo", key="not-the-key", **_PHONE) as (_, page):
        await _say(page, "Say hi")
        await expect(page.get_by_role("alert")).to_contain_text("does not accept this key")
        await expect(page.get_by_role("alert")).not_to_contain_text(_CODE)
        await expect(page.locator("#text")).to_have_value("Say hi")
        await expect(page.locator("#key")).to_be_focused()
        await page.fill("#key", KEY)
        await page.keyboard.press("Enter")
        await _begun(page)


async def test_a_failure_is_said_in_plain_words() -> None:
    """What happened and what to do, without codes; question and half answer stay, the answer is marked.

    No code of the relay is unknown to the page.
    """
    async with _chat_page("demo:fault=cut_mid,interval_ms=0") as (_, page):
        failures = {
            "demo:fault=cut_mid,interval_ms=0": "The provider failed.",
            "demo:fault=status,code=429,retry_after=90": "The provider’s limit is reached. "  # noqa: RUF001
            "Try again in 90 seconds. Details: Rate limit reached for requests.",
            "demo:fault=status,code=400": "The provider refused this request. "
            "Details: The request was refused.",
            "m" * 300: "The relay could not use this request. Check the name of the model.",
        }
        for number, (model, words) in enumerate(failures.items(), 1):
            await page.fill("#model", model)
            await page.fill("#text", f"Question {number}")
            await page.press("#text", "Enter")
            await expect(page.get_by_role("alert")).to_have_count(number)
            await expect(page.get_by_role("alert").last).to_have_text(words)
            await expect(page.locator("#talk")).not_to_contain_text(_CODE)
            await expect(page.locator(".model.broken")).to_have_count(number)
            await expect(page.locator(".user p").last).to_have_text(f"Question {number}")
        await _begun(page)
        known = await page.evaluate(
            "import('/translations.js').then(({ failures }) => Object.keys(failures))"
        )
    assert set(ErrorCode) <= set(known)


async def test_a_failed_answer_is_asked_for_again() -> None:
    """Try again sends the same question, without the failed answer, which the new one replaces."""
    async with _chat_page("demo:fault=cut_mid,fail_times=1,id=again,interval_ms=0") as (relay, page):
        await _say(page, "Say hi")
        await page.get_by_role("button", name="Try again").click()
        body = (await relay.upstream.wait_request(1)).body
        assert body.count(b'"role"') == 1
        assert b"Say hi" in body
        await expect(page.get_by_role("button", name="Copy answer")).to_be_visible()
        await _idle(page)
        await expect(page.locator("article")).to_have_count(2)
        await expect(page.get_by_role("button", name="Try again")).to_have_count(0)
        await expect(page.locator(".broken")).to_have_count(0)


async def test_an_empty_answer_keeps_the_question_and_says_why() -> None:
    """It is not a failure, and can be asked for again."""
    async with _chat_page("") as (relay, page):
        whys = {"content_filter": "content filter", "tool_calls": "call a tool", "length": "length limit"}
        for finish, words in whys.items():
            await page.fill("#model", f"demo:deltas=0,interval_ms=0,finish={finish}")
            await page.fill("#text", "Say hi")
            await page.press("#text", "Enter")
            await expect(page.locator(".model .why").last).to_contain_text(words)
            await expect(page.locator(".user p").last).to_have_text("Say hi")
        await expect(page.get_by_role("alert")).to_have_count(0)
        await page.get_by_role("button", name="Try again").click()
        assert b"Say hi" in (await relay.upstream.wait_request(len(whys))).body
        await _idle(page)
        await expect(page.locator("article")).to_have_count(2 * len(whys))


_MARKDOWN = """# Title

A **bold** word, `code` &amp; [a link](https://example.com/).

1. one
2. two

```py
x = 1 < 2
```

| a | b |
|---|---|
| 1 | <b>2</b><br>3 |
"""


async def test_markdown_is_shown_as_it_is_meant() -> None:
    """Headings, lists, code, tables and links; HTML is shown as it was written."""
    async with _chat_page("demo:text=echo,interval_ms=0") as (_, page):
        await page.fill("#text", _MARKDOWN)
        await page.keyboard.press("Enter")
        await _idle(page)
        body = page.locator(".model .body")
        await expect(body.locator("h3")).to_have_text("Title")
        await expect(body.locator("p")).to_have_text("A bold word, code & a link.")
        await expect(body.locator("strong")).to_have_text("bold")
        await expect(body.locator("ol li")).to_have_text(["one", "two"])
        await expect(body.locator("pre code")).to_have_text("x = 1 < 2")
        await expect(body.locator("th")).to_have_text(["a", "b"])
        await expect(body.locator("td")).to_have_text(["1", "<b>2</b>3"])
        await expect(body.locator("a")).to_have_attribute("href", "https://example.com/")
        # A question is the person's own words, without any markup.
        await expect(page.locator(".user p")).to_contain_text("**bold**")


_HOSTILE = """<img src=x onerror="window.broken = 1"><script>window.broken = 2</script>

<svg onload="window.broken = 3"><iframe srcdoc="<script>parent.broken = 4</script>"></iframe>

[one](javascript:window.broken=5) [two](JaVaScRiPt:window.broken=6) [three](&#106;avascript:window.broken=7)

[four](data:text/html,<script>window.broken=8</script>) <javascript:window.broken=9> [five](/keys) [six]

![beacon](/beacon.png) ![beacon](https://example.com/beacon.png?secret) [![b](/beacon.png)](https://example.com/)

<a href="javascript:window.broken=10" ping="/beacon">seven</a> <form action="/beacon"><button>eight</form>

<style>@import "/beacon.css";</style> <link rel=stylesheet href=/beacon.css> <base href="//example.com/">

```"><img src=x onerror=window.broken=11>
code
```

[six]: javascript:window.broken=12 "onclick=window.broken=13"
"""


async def test_what_a_model_writes_does_nothing() -> None:
    """No script runs, nothing is loaded, links lead to web pages only; the page works on."""
    async with _chat_page("demo:text=echo,interval_ms=0") as (_, page):
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        for text in (">" * 20_000, _HOSTILE):
            await page.fill("#text", text)
            await page.press("#text", "Enter")
            await _idle(page)
            await expect(page.locator(".model .body").last).to_contain_text(text[:5])
        talk = page.locator("#talk")
        await expect(talk.locator("img, script, style, iframe, svg, form, link, base")).to_have_count(0)
        attributes = "all => all.flatMap((item) => item.getAttributeNames())"
        names = set(await page.locator(".model .body *").evaluate_all(attributes))
        assert names <= {"class", "href", "target", "rel", "type", "tabindex", "start"}
        targets = await talk.locator("a").evaluate_all("links => links.map((link) => link.href)")
        assert set(targets) <= {"https://example.com/"}
        for button in await talk.get_by_role("button").all():
            await button.click()
        assert await page.evaluate("() => window.broken === undefined")
        assert [url for url in asked if not url.endswith("/chat")] == []


async def test_answers_and_code_are_copied() -> None:
    """The answer as the model wrote it, or one piece of code; also over http, without the clipboard's API."""
    text = "Do **this**:\n\n```sh\necho hi\n```\n"
    buttons = (("Copy answer", text.strip()), ("Copy code", "echo hi"))
    async with _chat_page("demo:text=echo,interval_ms=0") as (_, page):
        await page.fill("#text", text)
        await page.keyboard.press("Enter")
        await _idle(page)
        for has_clipboard, (name, copied) in product((True, False), buttons):
            if not has_clipboard:
                await page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
            # Its label is back after a while.
            await page.get_by_role("button", name=name).click()
            await expect(page.locator("button:focus")).to_have_text("Copied")
            await page.fill("#text", "")
            await page.keyboard.press("Control+V")
            await expect(page.locator("#text")).to_have_value(copied)


_GAP = "talk => talk.scrollHeight - talk.scrollTop - talk.clientHeight"


async def test_an_answer_is_written_in_view() -> None:
    """Also below a question that fills the pane; a reader who scrolled away is left alone until the next."""
    async with _chat_page(_SLOW, **_PHONE) as (_, page):
        talk = page.locator("#talk")
        await page.evaluate(
            """() => {
              window.gap = 0;
              const talk = document.querySelector('#talk');
              const look = () => {
                window.gap = Math.max(window.gap, talk.scrollHeight - talk.scrollTop - talk.clientHeight);
                requestAnimationFrame(look);
              };
              look();
            }"""
        )
        await page.fill("#text", "line\n" * 60)
        await page.keyboard.press("Enter")
        await _begun(page)
        early = await _answer(page).inner_text()
        await expect(_answer(page)).not_to_have_text(early)
        assert await page.evaluate("gap") < 20
        await talk.hover()
        await page.mouse.wheel(0, -10_000)
        await expect(page.locator(".user h2")).to_be_in_viewport()
        early = await _answer(page).inner_text()
        await expect(_answer(page)).not_to_have_text(early)
        await expect(page.locator(".user h2")).to_be_in_viewport()
        await page.keyboard.press("Escape")
        await _idle(page)
        await page.fill("#text", "And then?")
        await page.keyboard.press("Enter")
        await expect(page.locator(".model p").last).to_have_text(_LETTERS)
        assert await talk.evaluate(_GAP) < 20
        await page.keyboard.press("Escape")
        # The fields take space from the conversation: its end stays in view.
        await page.click("#settings")
        await expect(page.get_by_role("button", name="Try again")).to_be_in_viewport(ratio=1)


async def test_the_page_speaks_the_browsers_language() -> None:
    """Chinese where the browser prefers it, all of it; else English."""
    async with _chat_page("demo:fault=status,code=500", locale="zh-CN") as (relay, page):
        assert page.context.browser is not None
        german = await page.context.browser.new_page(locale="de-DE")
        await german.goto(f"http://127.0.0.1:{relay.port}/")
        await expect(german.locator("html")).to_have_attribute("lang", "en")
        await expect(german.get_by_role("button", name="Send")).to_be_visible()
        await expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
        await _say(page, "1 + 1 = ?")
        await expect(page.locator(".broken .why")).to_be_visible()
        await page.click("#renew")
        await page.fill("#model", "demo:interval_ms=0,text=cjk")
        await page.fill("#text", "1 + 1 = ?")
        await page.keyboard.press("Enter")
        await expect(page.locator("#facts")).to_contain_text("token")
        shown = await page.locator("body").inner_text()
        shown += await page.evaluate(
            """() => [...document.querySelectorAll('[placeholder], [aria-label]')]
              .map((item) => `${item.placeholder} ${item.ariaLabel}`).join()"""
        )
        foreign = set(re.findall(r"[A-Za-z]+", shown)) - {"relayd", "Enter", "Shift", "Esc", "token"}
        assert foreign <= {"null", "undefined"}


async def test_the_key_stays_in_its_tab_and_the_colours_are_the_systems() -> None:
    """A reload keeps the key; nothing but this tab's session storage holds it. Dark if the system is dark."""
    async with _chat_page("demo") as (relay, page):
        await page.emulate_media(color_scheme="dark")
        await expect(page.locator("body")).to_have_css("background-color", "rgb(20, 23, 26)")
        await page.emulate_media(color_scheme="light")
        await expect(page.locator("body")).to_have_css("background-color", "rgb(246, 247, 248)")
        url = f"http://127.0.0.1:{relay.port}/"
        await page.goto(url + "?again")
        await expect(page.locator("#key")).to_have_value(KEY)
        assert await page.evaluate("[document.cookie, localStorage.length, location.hash].join()") == ",0,"
        other = await page.context.new_page()
        await other.goto(url)
        await expect(other.locator("#key")).to_have_value("")


async def test_enter_sends_but_not_with_shift_nor_while_an_input_method_composes() -> None:
    """Shift+Enter is a new line; Enter that picks a candidate of an input method sends nothing."""
    async with _chat_page("demo:interval_ms=0") as (relay, page):
        await page.keyboard.type("one")
        await page.keyboard.press("Shift+Enter")
        await page.keyboard.type("two")
        await page.dispatch_event("#text", "keydown", {"key": "Enter", "isComposing": True})
        assert relay.upstream.total_requests == 0
        await page.keyboard.press("Enter")
        assert b"one\\ntwo" in (await relay.upstream.wait_request(0)).body
        await _idle(page)


async def test_a_new_chat_forgets_the_old_one_and_stops_it() -> None:
    """New chat ends what is running, sends nothing of it again, and says once more what to do first."""
    async with _chat_page(_SLOW) as (relay, page):
        await expect(page.locator("#start")).to_contain_text("Enter your key")
        await _say(page, "The old question")
        await _begun(page)
        await expect(page.locator("#start")).to_have_count(0)
        await page.click("#renew")
        await relay.upstream.wait_closed(0)
        await _idle(page)
        await expect(page.locator("#start")).to_be_visible()
        await expect(page.locator("article")).to_have_count(0)
        await _say(page, "The new one")
        body = (await relay.upstream.wait_request(1)).body
        assert b"The new one" in body
        assert b"The old question" not in body


async def test_a_screen_reader_finds_everything_by_name_and_the_keyboard_in_order() -> None:
    """Each control has a role and a name, top to bottom; an answer is announced whole, not word by word."""
    async with _chat_page(_SLOW) as (_, page):
        await page.focus("#renew")
        for name in ("renew", "talk", "key", "model", "text", "send"):
            await expect(page.locator(f"#{name}")).to_be_focused()
            await page.keyboard.press("Tab")
        await page.focus("#text")
        for role, name in _NAMED:
            await expect(page.get_by_role(role, name=name, exact=True)).to_have_count(1)
        # HTML gives a password field no role.
        await expect(page.get_by_label("Key", exact=True)).to_have_count(1)
        assert await page.get_by_role("button", name="", exact=True).count() == 0
        await _say(page, "Say hi")
        await expect(page.get_by_role("button", name="Stop")).to_be_visible()
        await expect(page.locator(".model")).to_have_attribute("aria-busy", "true")
        await _begun(page)
        await page.keyboard.press("Escape")
        await expect(page.locator(".model[aria-busy]")).to_have_count(0)
        await expect(page.get_by_role("button", name="Try again")).to_be_visible()


async def test_it_fits_a_phone() -> None:
    """At 360 pixels nothing is cut or scrolls sideways; key and model are folded once there is a key."""
    phone: dict[str, Any] = {
        "viewport": {"width": 360, "height": 640},
        "is_mobile": True,
        "device_scale_factor": 2,
    }
    async with _chat_page("demo:text=x400,deltas=3,interval_ms=0", **phone) as (_, page):
        await _say(page, "x" * 300)
        await expect(_answer(page)).to_contain_text("x" * 1200)
        await _idle(page)
        assert await page.evaluate("document.documentElement.scrollWidth") == 360
        assert await page.locator("#talk").evaluate("talk => talk.scrollWidth <= talk.clientWidth")
        await expect(page.locator("#key")).to_be_hidden()
        for name in ("New chat", "Copy answer", "Send"):
            await expect(page.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)
        await page.click("#settings")
        for field in ("#key", "#model", "#text"):
            await expect(page.locator(field)).to_be_in_viewport(ratio=1)
        await page.reload()
        await expect(page.locator("#key")).to_be_hidden()


async def test_the_policy_stops_a_script_that_got_in() -> None:
    """Inline scripts, foreign addresses and text turned into markup are refused by the browser."""
    attempts = {
        "handler": "item.setAttribute('onclick', 'window.broken = 1')",
        "markup": "item.innerHTML = '<img src=x onerror=alert(1)>'",
        "code": "(0, eval)('window.broken = 1')",
        "script": "item.append(Object.assign(document.createElement('script'), {text: 'broken = 1'}))",
    }
    async with running_relay() as relay, open_page() as page:
        await page.goto(f"http://127.0.0.1:{relay.port}/")
        await page.evaluate(
            "() => { window.refused = []; addEventListener('securitypolicyviolation',"
            " (event) => refused.push(event.effectiveDirective)); }"
        )
        for name, attempt in attempts.items():
            script = "const item = document.createElement('div'); document.body.append(item);"
            # From a timer, as the page's own code would run: a debugger's code may be let through.
            refused = await page.evaluate(
                "() => new Promise((done) => setTimeout(() => {"
                f" try {{ {script} {attempt}; done(null); }} catch (error) {{ done(error.name); }} }}))"
            )
            assert refused in {"TypeError", "EvalError"}, name
        sent = await page.evaluate("() => fetch('https://example.com/').then(() => 'sent', () => 'refused')")
        assert sent == "refused"
        assert await page.evaluate("() => window.broken === undefined")
        policies = await page.evaluate("() => refused")
        assert policies == ["require-trusted-types-for"] * len(attempts) + ["connect-src"]
