"""The chat page in headless Chromium and Firefox: what a person sees, types and hears of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.harness import KEY, Relay, running_relay
from tests.support.browser import Browser, Tab
from tests.support.chromium import ChromiumTab

_BUSY = "!document.getElementById('stop').hidden"
_IDLE = "document.getElementById('stop').hidden"
_ANSWER = "document.querySelector('.model p')?.innerText || ''"
_FOCUS = "document.activeElement.id"
_NAMED = (
    ("log", "Conversation"),
    (None, "Key"),  # HTML gives a password's field no role
    ("textbox", "Model"),
    ("textbox", "Message"),
    ("button", "Send"),
    ("button", "New chat"),
    ("form", "Ask the model"),
)
_SLOW = "demo:deltas=2000,interval_ms=50,text=words"


@asynccontextmanager
async def _page(browser: Browser, model: str, key: str = KEY) -> AsyncIterator[tuple[Relay, Tab]]:
    """The page of a running relay, its key and model filled in, the focus on the message."""
    async with running_relay() as room, browser.open_tab() as tab:
        await tab.goto(f"http://127.0.0.1:{room.port}/")
        await tab.type(key)
        await tab.click("#model")
        await tab.type(model)
        await tab.click("#text")
        yield room, tab
        assert tab.complaints == []


async def _say(tab: Tab, text: str) -> None:
    await tab.type(text)
    await tab.press("Enter")


async def test_an_answer_is_seen_as_it_comes_and_its_usage_at_the_end(browser: Browser) -> None:
    """Words appear one after the other; tokens and times follow; the next question carries both sides."""
    async with _page(browser, "demo:deltas=10,interval_ms=50,text=words") as (room, tab):
        await _say(tab, "Say hi")
        await tab.until(f"({_ANSWER}).length > 5")
        early = str(await tab.eval(_ANSWER)).rstrip("▍")
        await tab.until(_IDLE)
        whole = str(await tab.eval(_ANSWER))
        assert whole.startswith(early)
        assert len(whole) > len(early)
        assert "tokens in" in await tab.text("#facts")
        await _say(tab, "And again")
        sent = (await room.upstream.wait_request(1)).body.decode()
        assert "Say hi" in sent
        assert whole.strip()[:20] in sent
        assert "And again" in sent
        await tab.until(_IDLE)


@pytest.mark.parametrize("by", ["button", "key"])
async def test_stop_ends_the_models_work(browser: Browser, by: str) -> None:
    """Stop, or Escape, closes the provider's stream long before its end; what was said stays."""
    async with _page(browser, _SLOW) as (room, tab):
        await _say(tab, "Go on and on")
        await tab.until(f"({_ANSWER}).length > 5")
        await (tab.click("#stop") if by == "button" else tab.press("Escape"))
        await room.upstream.wait_closed(0)
        await tab.until(_IDLE)
        assert await tab.text("#facts") == "Stopped."
        assert len(await tab.eval(_ANSWER)) > 5
        assert await tab.eval(_FOCUS) == "text"


async def test_a_refusal_is_told_and_the_question_given_back(browser: Browser) -> None:
    """A wrong key is an alert with the relay's sentence; the focus goes to the key, nothing is lost."""
    async with _page(browser, "demo", key="not-the-key") as (_room, tab):
        await _say(tab, "Say hi")
        await tab.until("document.getElementById('problem').innerText")
        assert (await tab.text("#problem")).startswith("unauthorized: ")
        assert await tab.eval("document.getElementById('text').value") == "Say hi"
        assert await tab.eval(_FOCUS) == "key"


async def test_an_answer_that_breaks_keeps_what_came_and_says_so(browser: Browser) -> None:
    """A failure in the middle is an alert beside the half answer, which is marked."""
    async with _page(browser, "demo:fault=cut_mid,interval_ms=0,text=words") as (_room, tab):
        await _say(tab, "Say hi")
        await tab.until("document.getElementById('problem').innerText")
        assert (await tab.text("#problem")).startswith("upstream_failed: ")
        assert await tab.eval("document.querySelectorAll('.model.broken').length") == 1
        assert len(await tab.eval(_ANSWER)) > 5


async def test_a_relay_that_is_gone_is_told_in_words(browser: Browser) -> None:
    """No connection is a sentence, not silence."""
    async with _page(browser, "demo") as (room, tab):
        room.server.request_stop()
        await _say(tab, "Say hi")
        await tab.until("document.getElementById('problem').innerText")
        assert "cannot be reached" in await tab.text("#problem")


async def test_what_people_and_models_write_is_never_markup(browser: Browser) -> None:
    """Tags in a question or an answer are shown as they are written."""
    text = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    async with _page(browser, "demo:text=echo,interval_ms=0") as (_room, tab):
        await _say(tab, text)
        await tab.until(f"{_IDLE} && ({_ANSWER}).includes('script')")
        assert await tab.eval("document.querySelectorAll('#talk img, #talk script').length") == 0
        assert text in await tab.text(".user p")


async def test_the_key_stays_in_its_tab(browser: Browser) -> None:
    """A reload keeps the key; nothing but this tab's session storage holds it."""
    async with _page(browser, "demo") as (room, tab):
        url = f"http://127.0.0.1:{room.port}/"
        await tab.goto(url + "?again")
        assert await tab.eval("document.getElementById('key').value") == KEY
        assert await tab.eval("[document.cookie, localStorage.length, location.hash].join()") == ",0,"
        async with browser.open_tab() as other:
            await other.goto(url)
            assert await other.eval("document.getElementById('key').value") == ""


async def test_enter_sends_but_not_with_shift_nor_while_an_input_method_composes(browser: Browser) -> None:
    """Shift+Enter is a new line; Enter that picks a candidate of an input method sends nothing."""
    async with _page(browser, "demo:interval_ms=0") as (room, tab):
        await tab.type("one")
        await tab.press("Enter", shift=True)
        await tab.type("two")
        await tab.eval(
            "document.getElementById('text').dispatchEvent(new KeyboardEvent('keydown',"
            " {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))"
        )
        assert room.upstream.total_requests == 0
        await tab.press("Enter")
        assert b"one\\ntwo" in (await room.upstream.wait_request(0)).body
        await tab.until(_IDLE)


async def test_a_new_chat_forgets_the_old_one_and_stops_it(browser: Browser) -> None:
    """New chat ends what is running and sends nothing of it again."""
    async with _page(browser, _SLOW) as (room, tab):
        await _say(tab, "The old question")
        await tab.until(f"({_ANSWER}).length > 5")
        await tab.click("#renew")
        await room.upstream.wait_closed(0)
        await tab.until(f"{_IDLE} && document.querySelectorAll('article').length === 0")
        await _say(tab, "The new one")
        body = (await room.upstream.wait_request(1)).body
        assert b"The new one" in body
        assert b"The old question" not in body


async def test_a_screen_reader_finds_everything_by_name(browser: Browser) -> None:
    """Each control has a role and a name; an answer is announced whole, not word by word."""
    async with _page(browser, _SLOW) as (_room, tab):
        for role, name in _NAMED:
            assert await tab.spoken(role, name), name
        if isinstance(tab, ChromiumTab):
            roles = {role for role, _ in _NAMED}
            assert all(name for role, name in await tab.all_spoken() if role in roles)
        await _say(tab, "Say hi")
        await tab.until(_BUSY)
        assert await tab.spoken("button", "Stop") == 1
        assert await tab.eval("document.querySelector('.model').ariaBusy") == "true"
        # An answer that is stopped before its first word leaves no box.
        await tab.until(f"({_ANSWER}).length > 5")
        await tab.press("Escape")
        await tab.until(_IDLE)
        assert await tab.eval("document.querySelector('.model').ariaBusy") is None


async def test_the_keyboard_reaches_every_control_in_order(browser: Browser) -> None:
    """Tab goes through the page from top to bottom."""
    async with _page(browser, "demo") as (_room, tab):
        await tab.eval("document.getElementById('renew').focus()")
        order = []
        for _ in range(6):
            order.append(await tab.eval(_FOCUS))
            await tab.press("Tab")
        assert order == ["renew", "talk", "key", "model", "text", "send"]


async def test_it_fits_a_phone(browser: Browser) -> None:
    """At 360 pixels nothing is cut or scrolls sideways."""
    async with _page(browser, "demo:text=x400,deltas=3,interval_ms=0") as (_room, tab):
        await tab.show_as(360, 640, phone=True)
        await _say(tab, "x" * 300)
        await tab.until(f"{_IDLE} && ({_ANSWER}).length > 1000")
        assert await tab.eval("document.documentElement.scrollWidth") == 360
        assert await tab.eval("talk.scrollWidth <= talk.clientWidth")
        assert await tab.eval(
            "[...document.querySelectorAll('button:not([hidden]), input, textarea')].every(item => {"
            " const box = item.getBoundingClientRect();"
            " return box.left >= 0 && box.right <= innerWidth && box.bottom <= innerHeight; })"
        )


@pytest.mark.parametrize("dark", [False, True])
async def test_the_colours_follow_the_persons_choice(browser: Browser, *, dark: bool) -> None:
    """Dark where the person's system is dark, light where it is light."""
    async with _page(browser, "demo") as (_room, tab):
        if not isinstance(tab, ChromiumTab):
            pytest.skip("only Chromium lets a test choose")
        await tab.show_as(800, 600, dark=dark)
        back = await tab.eval("getComputedStyle(document.body).backgroundColor")
        assert back == ("rgb(20, 23, 26)" if dark else "rgb(246, 247, 248)")


async def test_the_policy_stops_a_script_that_got_in(browser: Browser) -> None:
    """Inline scripts, foreign addresses and text turned into markup are refused by the browser."""
    async with running_relay() as room, browser.open_tab() as tab:
        await tab.goto(f"http://127.0.0.1:{room.port}/")
        attempts = {
            "handler": "item.setAttribute('onclick', 'window.broken = 1')",
            "markup": "item.innerHTML = '<img src=x onerror=alert(1)>'",
            "code": "eval('window.broken = 1')",
            "script": "item.append(Object.assign(document.createElement('script'), {text: 'broken = 1'}))",
        }
        await tab.eval(
            "(window.refused = [], addEventListener('securitypolicyviolation',"
            " (event) => refused.push(event.effectiveDirective)), true)"
        )
        for name, attempt in attempts.items():
            script = "const item = document.createElement('div'); document.body.append(item);"
            # From a timer, as the page's own code would run: some browsers let a tool's code through.
            refused = await tab.eval(
                "new Promise((done) => setTimeout(() => {"
                f" try {{ {script} {attempt}; done(null); }} catch (error) {{ done(error.name); }} }}))"
            )
            assert refused in {"TypeError", "EvalError"}, name
        assert (
            await tab.eval("fetch('https://example.com/').then(() => 'sent', () => 'refused')") == "refused"
        )
        assert await tab.eval("window.broken === undefined")
        policies = await tab.eval("refused")
        assert policies == ["require-trusted-types-for"] * len(attempts) + ["connect-src"]
