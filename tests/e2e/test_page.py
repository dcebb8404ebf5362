"""The chat page in a headless Chromium: what a person sees, types and hears of it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
from playwright.async_api import Locator, Page, expect

from tests.harness import KEY, Relay, running_relay
from tests.support.browser import errors_of, open_page

_LETTERS = re.compile(r".{6,}", re.DOTALL)
_SLOW = "demo:deltas=2000,interval_ms=50,text=words"
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
    """Words appear one after the other; tokens and times follow; the next question carries both sides."""
    async with _chat_page("demo:deltas=10,interval_ms=200,text=words") as (relay, page):
        await _say(page, "Say hi")
        early = (await _begun(page)).rstrip("▍")
        await _idle(page)
        whole = await _answer(page).inner_text()
        assert whole.startswith(early)
        assert len(whole) > len(early)
        assert "tokens in" in await page.inner_text("#facts")
        await _say(page, "And again")
        sent = (await relay.upstream.wait_request(1)).body.decode()
        assert "Say hi" in sent
        assert whole.strip()[:20] in sent
        assert "And again" in sent
        await _idle(page)


@pytest.mark.parametrize("by", ["button", "key"])
async def test_stop_ends_the_models_work(by: str) -> None:
    """Stop, or Escape, closes the provider's stream long before its end; what was said stays."""
    async with _chat_page(_SLOW) as (relay, page):
        await _say(page, "Go on and on")
        await _begun(page)
        await (page.click("#stop") if by == "button" else page.keyboard.press("Escape"))
        await relay.upstream.wait_closed(0)
        await _idle(page)
        assert await page.inner_text("#facts") == "Stopped."
        await _begun(page)
        await expect(page.locator("#text")).to_be_focused()


async def test_a_refusal_is_shown_and_the_question_given_back() -> None:
    """A wrong key is an alert with the relay's sentence; the focus goes to the key, nothing is lost."""
    async with _chat_page("demo", key="not-the-key") as (_, page):
        await _say(page, "Say hi")
        await expect(page.get_by_role("alert")).to_contain_text("unauthorized: ")
        await expect(page.locator("#text")).to_have_value("Say hi")
        await expect(page.locator("#key")).to_be_focused()


async def test_an_answer_that_breaks_keeps_what_came_and_says_so() -> None:
    """A failure in the middle is an alert beside the half answer, which is marked."""
    async with _chat_page("demo:fault=cut_mid,interval_ms=0,text=words") as (_, page):
        await _say(page, "Say hi")
        await expect(page.get_by_role("alert")).to_contain_text("upstream_failed: ")
        await expect(page.locator(".model.broken")).to_have_count(1)
        await _begun(page)


async def test_a_relay_that_is_gone_is_reported_in_words() -> None:
    """No connection is a sentence, not silence."""
    async with running_relay() as relay, open_page() as page:
        await page.goto(f"http://127.0.0.1:{relay.port}/")
        await page.fill("#key", KEY)
        await page.route("**/chat", lambda route: route.abort("connectionrefused"))
        await page.focus("#text")
        await _say(page, "Say hi")
        await expect(page.get_by_role("alert")).to_contain_text("cannot be reached")


async def test_what_people_and_models_write_is_never_markup() -> None:
    """Tags in a question or an answer are shown as they are written."""
    text = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    async with _chat_page("demo:text=echo,interval_ms=0") as (_, page):
        await _say(page, text)
        await expect(_answer(page)).to_contain_text("script")
        await _idle(page)
        await expect(page.locator("#talk img, #talk script")).to_have_count(0)
        await expect(page.locator(".user p")).to_contain_text(text)


async def test_the_key_stays_in_its_tab() -> None:
    """A reload keeps the key; nothing but this tab's session storage holds it."""
    async with _chat_page("demo") as (relay, page):
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
    """New chat ends what is running and sends nothing of it again."""
    async with _chat_page(_SLOW) as (relay, page):
        await _say(page, "The old question")
        await _begun(page)
        await page.click("#renew")
        await relay.upstream.wait_closed(0)
        await _idle(page)
        await expect(page.locator("article")).to_have_count(0)
        await _say(page, "The new one")
        body = (await relay.upstream.wait_request(1)).body
        assert b"The new one" in body
        assert b"The old question" not in body


async def test_a_screen_reader_finds_everything_by_name() -> None:
    """Each control has a role and a name; an answer is announced whole, not word by word."""
    async with _chat_page(_SLOW) as (_, page):
        for role, name in _NAMED:
            await expect(page.get_by_role(role, name=name, exact=True)).to_have_count(1)
        # HTML gives a password field no role.
        await expect(page.get_by_label("Key", exact=True)).to_have_count(1)
        assert await page.get_by_role("button", name="", exact=True).count() == 0
        await _say(page, "Say hi")
        await expect(page.get_by_role("button", name="Stop")).to_be_visible()
        await expect(page.locator(".model")).to_have_attribute("aria-busy", "true")
        # An answer that is stopped before its first word leaves no box.
        await _begun(page)
        await page.keyboard.press("Escape")
        await expect(page.locator(".model[aria-busy]")).to_have_count(0)


async def test_the_keyboard_reaches_every_control_in_order() -> None:
    """Tab goes through the page from top to bottom."""
    async with _chat_page("demo") as (_, page):
        await page.focus("#renew")
        for name in ("renew", "talk", "key", "model", "text", "send"):
            await expect(page.locator(f"#{name}")).to_be_focused()
            await page.keyboard.press("Tab")


async def test_it_fits_a_phone() -> None:
    """At 360 pixels nothing is cut or scrolls sideways."""
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
        controls = await page.locator("button:not([hidden]), input, textarea").all()
        for control in controls:
            await expect(control).to_be_in_viewport(ratio=1)
        assert len(controls) == 5


@pytest.mark.parametrize(
    ("scheme", "background"), [("dark", "rgb(20, 23, 26)"), ("light", "rgb(246, 247, 248)")]
)
async def test_the_colours_follow_the_persons_choice(scheme: str, background: str) -> None:
    """Dark if the person's system is dark, light if it is light."""
    async with _chat_page("demo", color_scheme=scheme) as (_, page):
        await expect(page.locator("body")).to_have_css("background-color", background)


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
