"""Whose key a text is, and who used a key, asked over the admin socket."""

from __future__ import annotations

from pathlib import Path

import pytest

from relayd.admin.archive import Archive
from relayd.admin.client import Refused
from relayd.admin.key_search import Finding, Verdict, find_owner
from relayd.admin.schema import KeyInfo, KeyState
from relayd.state.keys import new_key
from tests.admin.harness import AdminHarness, admin_api, log_requests, raw
from tests.harness import KEY


async def _find(api: AdminHarness, text: str) -> Finding:
    return await find_owner(text, api.client.find_key, (await api.client.keys()).keys)


async def _add(api: AdminHarness, name: str, given: str | None = None) -> tuple[str, str]:
    """Make a client; returns its key and the key's id."""
    generation = (await api.client.keys()).generation
    change = await api.client.add_key(name, given, generation=generation, idempotency_key=name)
    return change.secret or given or "", change.key.id


async def test_a_key_is_found_by_its_digest_whatever_its_form_and_state(tmp_path: Path) -> None:
    """Made here, imported, revoked; with quotes or a header around it, broken, or with more behind it."""
    async with admin_api(tmp_path) as api:
        made, made_id = await _add(api, "web")
        given, given_id = await _add(api, "old", "an imported key+of/any-form".replace(" ", "_"))
        for text in (
            made,
            f"Bearer {made}",
            f"export KEY='{made}'\n",
            f"curl -H 'Authorization: Bearer {made}' https://a",
            f"> {made[:40]}=\n> {made[40:]} is our key",
            f"{made}{made}",
            f"key:{made}and more",
        ):
            found = await _find(api, text)
            assert found.key is not None
            assert (found.verdict, found.key.id) == (Verdict.KNOWN, made_id)
            assert found.sentence == f"It is the key {made_id} of the client web."
        for text in (
            given,
            f"KEY={given}",
            f'"{given}"',
            f'curl -H "Authorization: {given}" https://a',
            f'{{"key": "{given}", "n": 1}}',
            f"{given[:12]}\n{given[12:]}",
        ):
            found = await _find(api, text)
            assert found.key is not None
            assert found.key.id == given_id
        generation = (await api.client.keys()).generation
        await api.client.revoke_key(made_id, cut=False, generation=generation, idempotency_key="end")
        found = await _find(api, made)
        assert found.key is not None
        assert (found.verdict, found.key.state) == (Verdict.KNOWN, KeyState.REVOKED)
        # It is also found by a daemon that does not hold it in memory, and without one.
        archive = Archive(api.state.path)
        dead = await find_owner(made, archive.find_key, ())
        await archive.close()
        assert dead.key is not None
        assert dead.key.state is KeyState.REVOKED


async def test_what_is_no_key_of_this_relay_is_named(tmp_path: Path) -> None:
    """A known id with another rest, a typo, another relay's key, a provider's key, and anything else."""
    async with admin_api(tmp_path) as api:
        made, made_id = await _add(api, "web")
        stranger = new_key()[1]
        for text, verdict, says in (
            (f"{made[:-1]}{'0' if made[-1] != '0' else '1'}", Verdict.ID_KNOWN, "a typo, or a forgery"),
            (f"{made[:13]}{stranger[13:]}", Verdict.ID_KNOWN, f"The id {made_id} is that of a key of web"),
            (stranger[:-3], Verdict.MISTYPED, "cut off or mistyped"),
            (stranger, Verdict.UNKNOWN, "not of this one"),
            ("sk-proj-abcdefgh1234", Verdict.PROVIDER, "Revoke it at the provider"),
            ("some-other-text", Verdict.UNKNOWN, "No key of this relay"),
        ):
            found = await _find(api, text)
            assert (found.verdict, says in found.sentence) == (verdict, True)
            assert text not in found.sentence


async def test_only_digests_are_asked_for() -> None:
    """No part of the text that is not public goes to the daemon."""
    asked: list[str] = []

    async def ask(digest: str) -> KeyInfo | None:
        asked.append(digest)
        return None

    secret = new_key()[1]
    await find_owner(f"Authorization: Bearer {secret}", ask, ())
    assert asked
    assert all(len(digest) == 64 and secret[13:] not in digest for digest in asked)


async def test_a_key_in_place_of_its_digest_is_refused_and_not_repeated(tmp_path: Path) -> None:
    """The sentence says what a digest is; what was sent is not in it."""
    async with admin_api(tmp_path) as api:
        answer = await raw(api.socket, "GET", f"/keys/find?digest={KEY}")
        assert answer.status == 400
        assert KEY not in answer.error[1]
        assert "SHA-256" in answer.error[1]


async def test_the_users_of_a_key_are_asked_for_by_its_id(tmp_path: Path) -> None:
    """By address and program, refusals apart; a key that nobody used has none; a wrong time is refused."""
    async with admin_api(tmp_path) as api:
        log_requests(api.state, 2, "r", key_id="key00001", ip="192.0.2.7", user_agent="curl/8")
        # Each began and ended, after the first key's entry in the audit.
        await api.logged(5)
        users = await api.client.key_users("key00001", since="2100-01-01T00:00:00Z")
        [user] = users.users
        assert (user.ip, user.user_agent, user.requests, user.requests_since) == ("192.0.2.7", "curl/8", 2, 0)
        assert (await api.client.key_users("nokey")).users == []
        with pytest.raises(Refused, match="since is a UTC time"):
            await api.client.key_users("key00001", since="yesterday")
