"""The examples of docs/examples, as someone would run them."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.daemon import closed_port
from tests.harness import KEY, running_relay
from tests.support.browser import errors_of, open_page, page_server
from tests.support.programs import require
from tests.wire import HOST, PATIENCE_S

_EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
_PROGRAMS = {
    "chat.mjs": (["node"], ["node"]),
    "chat.py": ([], [sys.executable]),
    "chat.sh": (["curl", "jq"], ["sh"]),
}
# The examples name no model, so the relay's own choice decides.
_PACED = "demo:deltas=8,interval_ms=60,text=words"
_ENDLESS = "demo:deltas=10000,interval_ms=40,text=words"


@dataclass(frozen=True, slots=True)
class _Ran:
    """What came of an example."""

    status: int
    out: list[str]
    """A piece for each time that it printed something."""
    err: str

    @property
    def text(self) -> str:
        """All that it printed."""
        return "".join(self.out)


async def _start(name: str, port: int, key: str = KEY) -> asyncio.subprocess.Process:
    needed, program = _PROGRAMS[name]
    require(*needed)
    return await asyncio.create_subprocess_exec(
        *program,
        str(_EXAMPLES / name),
        "Say hi",
        env={"PATH": os.environ["PATH"], "RELAY": f"http://{HOST}:{port}", "RELAY_KEY": key},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )


async def _run(name: str, port: int, key: str = KEY) -> _Ran:
    process = await _start(name, port, key)
    assert process.stdout is not None
    assert process.stderr is not None
    out = []
    async with asyncio.timeout(2 * PATIENCE_S):
        while piece := await process.stdout.read(4096):
            out.append(piece.decode())
        err = (await process.stderr.read()).decode()
        return _Ran(await process.wait(), out, err)


@pytest.mark.parametrize("name", _PROGRAMS)
async def test_the_answer_is_printed_whole(name: str) -> None:
    """All words, and a line feed that ends them."""
    async with running_relay(chat__default_model=_PACED) as relay:
        ran = await _run(name, relay.port)
        record = await relay.record()
    assert (ran.status, ran.err) == (0, "")
    assert len(ran.text.split()) == 8
    assert ran.text.endswith("\n")
    assert record.outcome == "completed"


@pytest.mark.parametrize("name", _PROGRAMS)
@pytest.mark.parametrize(
    ("model", "key", "says"),
    [
        ("demo", "wrong-key", "unauthorized: "),
        ("demo:fault=cut_mid,interval_ms=0,text=words", KEY, "upstream_failed: "),
    ],
)
async def test_a_failure_is_told_in_the_relays_words(name: str, model: str, key: str, says: str) -> None:
    """Refused at once or broken in the middle: the sentence on stderr, status 1."""
    async with running_relay(chat__default_model=model) as relay:
        ran = await _run(name, relay.port, key)
    assert ran.status == 1
    assert says in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("name", _PROGRAMS)
async def test_what_is_missing_is_told_in_one_sentence(name: str) -> None:
    """No key, or no relay at its address: a sentence that names it, status 1, no stack of calls."""
    port = closed_port()
    for key, says in (("", "RELAY_KEY"), (KEY, str(port) if name != "chat.py" else "refused")):
        ran = await _run(name, port, key)
        assert ran.status != 0
        assert says in ran.err
        assert ran.out == []
        assert not [word for word in ("Traceback", "    at ") if word in ran.err]


@pytest.mark.parametrize("name", _PROGRAMS)
async def test_ending_it_ends_the_models_work(name: str) -> None:
    """Words are printed as they come; a person who stops the example stops what is paid for."""
    async with running_relay(chat__default_model=_ENDLESS) as relay:
        process = await _start(name, relay.port)
        assert process.stdout is not None
        await asyncio.wait_for(process.stdout.read(1), PATIENCE_S)
        # To all of its processes, as Ctrl-C at a terminal.
        os.killpg(process.pid, signal.SIGTERM)
        await relay.upstream.wait_closed(0)
        await asyncio.wait_for(process.communicate(), PATIENCE_S)


async def test_the_same_file_serves_a_page_of_another_origin() -> None:
    """A page that is not the relay's own imports `ask`, and its answer streams."""
    module = "data:text/javascript;base64," + base64.b64encode((_EXAMPLES / "chat.mjs").read_bytes()).decode()
    script = """async ([module, relay, key]) => {
        const { ask } = await import(module);
        window.seen = "";
        ask(relay, key, [{role: "user", content: "hi"}], { onText: (text) => { seen += text; } });
    }"""
    async with (
        running_relay(chat__default_model="demo:text=words,interval_ms=5,fault=stall_mid") as relay,
        page_server(b"<p>page") as origin,
        open_page() as page,
    ):
        errors = errors_of(page)
        await page.goto(origin)
        await page.evaluate(script, [module, f"http://{HOST}:{relay.port}", KEY])
        await page.wait_for_function("seen === 'The relay passes '")
        assert not relay.upstream.requests[0].ended
        assert errors == []
