"""Behaviour of `relayd.commands.keys`: what the operator sees, and what a script can take."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
from pathlib import Path

import pytest

from relayd.admin.schema import KeyState
from tests.admin.harness import admin_api
from tests.commands.harness import relayd
from tests.harness import KEY

_KEY = re.compile(r"rly_[0-9A-Za-z]{8}_[0-9A-Za-z]{49}")


async def test_rotate_prints_the_new_key_alone_on_stdout(tmp_path: Path) -> None:
    """`key=$(relayd keys rotate default)` is the key; what happens next is said beside it."""
    async with admin_api(tmp_path) as api:
        old = api.state.ring.keys()[0].id
        ran = await relayd(api.socket, "keys", "rotate", "default", "--grace", "10m")
        assert ran.status == 0
        assert _KEY.fullmatch(ran.out.removesuffix("\n"))
        assert api.state.ring.verify(ran.out.strip().encode()) is not None
        assert "shown only this once" in ran.err
        assert f"The old key {old} works until " in ran.err
        assert re.search(r"\(9m \d+s left\)", ran.err)
        for advice in (f"keys extend {old} 1h", "keys undo default", f"keys revoke {old}"):
            assert advice in ran.err
        assert _KEY.search(ran.err) is None


async def test_a_key_that_can_not_be_written_is_no_success(tmp_path: Path) -> None:
    """A full disk, a closed pipe, no output at all: 1, and the way back, which works."""
    async with admin_api(tmp_path) as api:
        old = api.state.ring.keys()[0].id
        rotate = f"{sys.executable} -m relayd keys rotate default --socket {api.socket}"
        for command in (
            f"{rotate} > /dev/full",
            f"{rotate} >&-",
            f"{rotate} | true; exit ${{PIPESTATUS[0]}}",
        ):
            process = await asyncio.create_subprocess_exec(
                "bash", "-c", command, stderr=asyncio.subprocess.PIPE
            )
            _, told = await asyncio.wait_for(process.communicate(), 60)
            assert process.returncode == 1
            assert b"could not be written" in told
            assert b"relayd keys undo default" in told
            assert b"Traceback" not in told
            assert _KEY.search(told.decode()) is None
            assert (await relayd(api.socket, "keys", "undo", "default")).status == 0
        assert [key.id for key in api.state.ring.keys() if key.state is KeyState.ACTIVE] == [old]  # noqa: SIM118 - a ring is no dict


async def test_the_ring_is_listed_in_words(tmp_path: Path) -> None:
    """State, what is left, last use and from where; no key and no digest."""
    async with admin_api(tmp_path) as api:
        old = api.state.ring.keys()[0]
        api.state.ring.record_use(old.id, "192.0.2.7")
        await relayd(api.socket, "keys", "rotate", "default", "--grace", "1h")
        await relayd(api.socket, "keys", "add", "web")
        ran = await relayd(api.socket, "keys", "list")
        head, *rows = ran.lines
        assert head.split() == ["KEY", "CLIENT", "FINGERPRINT", "STATE"]
        names = ("default", "default", "web")
        assert {row.index(name) for row, name in zip(rows, names, strict=True)} == {head.index("CLIENT")}
        assert re.fullmatch(
            rf"{old.id}  default  {old.fingerprint}     retiring, 59m \d+s left, "
            r"last used \d+s ago from 192\.0\.2\.7",
            rows[0],
        )
        assert re.search(r"web +[0-9a-f]{8} +active, made \d+s ago, never used$", rows[2])


async def test_old_dead_keys_are_counted_not_listed(tmp_path: Path) -> None:
    """The list stays short; --json has all."""
    async with admin_api(tmp_path) as api:
        for _ in range(8):
            await relayd(api.socket, "keys", "rotate", "default", "--grace", "0s")
        ran = await relayd(api.socket, "keys", "list")
        assert len(ran.lines) == 1 + 1 + 5
        assert ran.err == "3 older dead keys not shown; --json has them.\n"
        whole = json.loads((await relayd(api.socket, "keys", "list", "--json")).out)
        assert (whole["generation"], len(whole["keys"])) == (9, 9)


async def test_a_client_s_name_stands_for_its_only_key(tmp_path: Path) -> None:
    """To extend and to revoke; with several keys that could be meant, they are listed instead."""
    async with admin_api(tmp_path) as api:
        old = api.state.ring.keys()[0].id
        await relayd(api.socket, "keys", "rotate", "default", "--grace", "1m")
        new = api.state.ring.keys()[1].id
        assert (await relayd(api.socket, "keys", "extend", "default", "1h")).out.startswith(
            f"Key {old} works"
        )
        unclear = await relayd(api.socket, "keys", "revoke", "default")
        assert (unclear.status, unclear.out) == (1, "")
        assert f"name one: {old} (retiring), {new} (active)." in unclear.err
        await relayd(api.socket, "keys", "revoke", old)
        assert (await relayd(api.socket, "keys", "revoke", "default")).out.startswith(
            f"Key {new} of default "
        )
        unknown = await relayd(api.socket, "keys", "revoke", "nobody")
        assert (unknown.status, "nobody" in unknown.err) == (1, True)


async def test_extend_undo_and_revoke_say_what_is_so_now(tmp_path: Path) -> None:
    """One sentence each, by client name or key id."""
    async with admin_api(tmp_path) as api:
        old = api.state.ring.keys()[0].id
        await relayd(api.socket, "keys", "rotate", "default", "--grace", "1m")
        longer = await relayd(api.socket, "keys", "extend", old, "1h")
        assert re.fullmatch(rf"Key {old} works until \S+Z \(1h( \d+s)? left\)\.\n", longer.out)
        new = (await api.client.keys()).keys[1].id
        undone = await relayd(api.socket, "keys", "undo", "default")
        assert undone.out == f"Key {old} of default is active again; {new} is revoked.\n"
        again = await relayd(api.socket, "keys", "undo", "default")
        assert (again.status, "nothing can be undone" in again.err) == (1, True)
        dead = await relayd(api.socket, "keys", "revoke", old)
        assert re.fullmatch(
            rf"Key {old} of default is revoked\. Its open streams continue to their end\. "
            r"default has no key now: `\S*relayd keys add default` makes one\.\n",
            dead.out,
        )
        cut = await relayd(api.socket, "keys", "revoke", old, "--cut")
        assert (cut.status, cut.out) == (1, "")
        assert "that is final" in cut.err


async def test_a_change_in_json_is_one_document(tmp_path: Path) -> None:
    """With the key in it, and nothing else on stdout or stderr."""
    async with admin_api(tmp_path) as api:
        ran = await relayd(api.socket, "keys", "add", "web", "--json")
        change = json.loads(ran.out)
        assert _KEY.fullmatch(change["secret"])
        assert (change["key"]["client"], change["generation"], ran.err) == ("web", 2, "")
        revoked = await relayd(api.socket, "keys", "revoke", change["key"]["id"], "--cut", "--json")
        assert json.loads(revoked.out)["cut"] == 0


async def test_what_is_refused_is_1_with_one_line(tmp_path: Path) -> None:
    """A client that is there, a client that is not, a key that is not."""
    async with admin_api(tmp_path) as api:
        for words, says in (
            ("keys add default", "rotate that one"),
            ("keys add a/b", "letters, digits"),
            ("keys rotate nobody", "Clients: default"),
            ("keys extend nope 1h", "'nope'"),
            ("keys revoke nope", "'nope'"),
        ):
            ran = await relayd(api.socket, *words.split())
            assert (ran.status, ran.out, len(ran.err.splitlines())) == (1, "", 1)
            assert says in ran.err


async def test_a_key_of_ones_own_is_read_from_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It works at once and as it is; neither the answer nor the state has it."""
    own = "the-key-of-the-old-relay"
    async with admin_api(tmp_path) as api:
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{own}\n"))
        ran = await relayd(api.socket, "keys", "import", "web")
        owner = api.state.ring.verify(own.encode())
        assert owner is not None
        assert (ran.status, ran.err) == (0, "")
        assert ran.out == f"Client web has the given key now; its id is {owner.key_id}.\n"
        entry = (await api.client.audit()).entries[0]
        assert (entry.action, entry.result, entry.client) == ("import", "done", "web")
    assert _files_with(tmp_path, own) == []


async def test_the_owner_of_a_leaked_key_is_found_from_stdin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Client, state, and the command that ends it; 1 and one line for what is no key of this relay."""
    async with admin_api(tmp_path) as api:
        key_id = api.state.ring.keys()[0].id
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"Bearer {KEY}\n"))
        ran = await relayd(api.socket, "keys", "find")
        assert (ran.status, ran.err) == (0, "")
        assert ran.lines[0] == f"It is the key {key_id} of the client default."
        assert ran.lines[1].startswith(f"{key_id} is active, made ")
        assert f"keys revoke {key_id} --cut" in ran.lines[2]
        monkeypatch.setattr(sys, "stdin", io.StringIO(KEY))
        found = json.loads((await relayd(api.socket, "keys", "find", "--json")).out)
        assert (found["verdict"], found["key"]["id"]) == ("known", key_id)
        monkeypatch.setattr(sys, "stdin", io.StringIO("sk-proj-not-one-of-ours"))
        ran = await relayd(api.socket, "keys", "find")
        assert (ran.status, ran.out) == (1, "")
        assert "a provider's key" in ran.err
        assert "not-one-of-ours" not in ran.err
        # What lies around it may be no text at all.
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe " + KEY.encode()), "utf-8"))
        ran = await relayd(api.socket, "keys", "find")
        assert ran.lines[:1] == [f"It is the key {key_id} of the client default."], ran.err
        monkeypatch.setattr(sys, "stdin", io.StringIO("\udcff"))
        ran = await relayd(api.socket, "keys", "find")
        assert (ran.status, ran.out) == (1, "")


def _files_with(directory: Path, words: str) -> list[Path]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return [path for path in files if words.encode() in path.read_bytes()]


async def test_a_key_that_can_not_be_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too short, not for a header, cut, already known, dead: one line says why, and never the key."""
    async with admin_api(tmp_path) as api:
        dead = (await relayd(api.socket, "keys", "add", "old")).out.strip()
        owner = api.state.ring.verify(dead.encode())
        assert owner is not None
        await relayd(api.socket, "keys", "revoke", owner.key_id)
        for own, name, says in (
            ("short", "web", "has 5 characters; at least 16 are needed"),
            ("", "web", "has 0 characters"),
            ("a key with its\ttab", "web", "printable ASCII"),
            (dead[:-1], "web", "cut off or mistyped"),
            (KEY, "web", "of client 'default' and active"),
            (dead, "web", f"it is {owner.key_id} of client 'old' and revoked"),
            ("a-key-that-would-do", "default", "rotate that one"),
        ):
            monkeypatch.setattr(sys, "stdin", io.StringIO(own))
            ran = await relayd(api.socket, "keys", "import", name)
            assert (ran.status, ran.out, len(ran.err.splitlines())) == (1, "", 1)
            assert says in ran.err
            assert not own or own not in ran.err
