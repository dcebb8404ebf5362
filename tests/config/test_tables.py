"""The tables whose rows the operator names: aliases, prices, and the routes with their keys."""

from __future__ import annotations

import pytest

from tests.config.harness import ConfigHarness

CANARY = "sk-canary-4711"
DOLLARS = "US dollars a million tokens, from 0 to 1000000"
ENDPOINT = 'a method (or "*"), a space, and a path that begins with /v1/ and may hold "*", without a query'
NAME = 'a short name of a-z, 0-9, "-" and "_"'
PATTERN = "a model's name or pattern, without spaces, its brackets closed"
ROUTE_KEYS = "name, base_url, openai_api_key_file, weight, models"
ELSEWHERE = "name a file that contains it: openai_api_key_file"


def test_each_row_is_read(harness: ConfigHarness) -> None:
    """Written as tables or inline; a whole number is a price."""
    got = harness.load(
        """
        upstream = { route = [{ name = "a" }, { name = "b", base_url = "http://b.example/v1/", weight = 9 }] }
        prices."gpt-4.1" = { input = 2, output = 8.5 }
        [aliases]
        "gpt-3.5-turbo" = "gpt-4.1"
        """
    )
    assert [(route.name, got.route_url(route), route.weight) for route in got.upstream.route] == [
        ("a", "https://api.openai.com/v1", 1),
        ("b", "http://b.example/v1", 9),
    ]
    assert got.prices["gpt-4.1"].model_dump() == {"input": 2.0, "cached_input": None, "output": 8.5}
    assert got.aliases == {"gpt-3.5-turbo": "gpt-4.1"}


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("aliases = 3", "relayd.toml:1: aliases must be a table, written [aliases]."),
        (
            "[aliases]\n'a.b' = 'c d'",
            'relayd.toml:2: aliases."a.b" is "c d", but must be the name of a model, without spaces.',
        ),
        (
            "[aliases]\n\n'a b' = 'c'",
            'relayd.toml:3: aliases."a b" must name a model: the name of a model, without spaces.',
        ),
        ("[prices]\nm = 1", "relayd.toml:2: prices.m must be a table, written [prices.m]."),
        ("[prices.m]\ninput = 1", f"relayd.toml:1: prices.m lacks output, which must be {DOLLARS}."),
        (
            "[prices.'m.1']\ninput = 1\noutput = -1",
            f'relayd.toml:3: prices."m.1".output is -1, but must be {DOLLARS}.',
        ),
        (
            "prices.m = { input = '1', output = 1 }",
            f'relayd.toml:1: prices.m.input is "1", but must be {DOLLARS}.',
        ),
        (
            "[prices.m]\ninput = 1\noutput = 1\ncached_inputs = 1",
            "relayd.toml:4: unknown key prices.m.cached_inputs; did you mean cached_input?",
        ),
        ("[price.m]\ninput = 1", "relayd.toml:1: unknown section price; did you mean [prices]?"),
        (
            "[upstream.route]\nname = 'a'",
            "relayd.toml:1: upstream.route must be tables, each written [[upstream.route]].",
        ),
        (
            "[[upstream.route]]\nweight = 1",
            f"relayd.toml:1: upstream.route[0] lacks name, which must be {NAME}.",
        ),
        (
            "[[upstream.route]]\nname = 'a'\n[[upstream.route]]\nname = 'b'\nweight = 0",
            "relayd.toml:5: upstream.route[1].weight is 0, but must be a whole number from 1 to 1000.",
        ),
        (
            "[[upstream.route]]\nname = 'a'\nmodels = ['x', 'y z']",
            f'relayd.toml:3: upstream.route[0].models[1] is "y z", but must be {PATTERN}.',
        ),
        (
            "[[upstream.route]]\nname = 'a'\nmodels = ['gpt-[45]', '[']",
            f'relayd.toml:3: upstream.route[0].models[1] is "[", but must be {PATTERN}.',
        ),
        (
            "[[upstream.route]]\nname = 'a'\n[[upstream.route]]\nname = 'a'",
            "relayd.toml:4: upstream.route[1].name is that of upstream.route[0], but names must differ.",
        ),
        (
            "[[upstream.route]]\nname = 'a'\nport = 1",
            f"relayd.toml:3: unknown key upstream.route[0].port; it has {ROUTE_KEYS}.",
        ),
        (
            f"[[upstream.route]]\nname = 'a'\nopenai_api_key = '{CANARY}'",
            f"relayd.toml:3: openai_api_key does not belong in this file; {ELSEWHERE}.",
        ),
        (
            "[[upstream.route]]\nname = 'a'\nopenai_api_key_file = 'nope'",
            "relayd.toml:3: nope cannot be read: No such file or directory.",
        ),
        (
            "[v1]\nallow = ['GET /files']",
            f'relayd.toml:2: v1.allow[0] is "GET /files", but must be {ENDPOINT}.',
        ),
        (
            "[v1]\nallow = ['POST /v1/files', 'get /v1/files?a=1']",
            f'relayd.toml:2: v1.allow[1] is "get /v1/files?a=1", but must be {ENDPOINT}.',
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_place(harness: ConfigHarness, toml: str, sentence: str) -> None:
    """File, line, key, and what is allowed."""
    assert harness.problems(toml) == [sentence]


@pytest.mark.parametrize("name", ["RELAYD_ALIASES", "RELAYD_PRICES", "RELAYD_UPSTREAM__ROUTE"])
def test_the_environment_has_no_tables(harness: ConfigHarness, name: str) -> None:
    """A variable with such a name is unknown."""
    assert harness.problems(env={name: "{}"})[0].startswith(f"environment: unknown variable {name}; ")


def test_where_the_key_of_a_route_comes_from(harness: ConfigHarness) -> None:
    """Its file, else its credential, else the one key if it goes to the same address."""
    harness.write("file", "sk-file\n")
    for name in ("file", "cred"):
        harness.write(f"creds/openai_api_key.{name}", "sk-cred")
    got = harness.load(
        """
        [[upstream.route]]
        name = "file"
        openai_api_key_file = "file"
        [[upstream.route]]
        name = "cred"
        [[upstream.route]]
        name = "shared"
        base_url = "https://api.openai.com/v1/"
        [[upstream.route]]
        name = "none"
        base_url = "https://elsewhere.example/v1"
        """,
        env={"CREDENTIALS_DIRECTORY": str(harness.cwd / "creds"), "OPENAI_API_KEY": "sk-main"},
    )
    keys = {route.name: got.route_key(route) for route in got.upstream.route}
    assert {name: key and key.get_secret_value() for name, key in keys.items()} == {
        "file": "sk-file",
        "cred": "sk-cred",
        "shared": "sk-main",
        "none": None,
    }
    assert got.provider_key_remedy == (
        "set openai_api_key_file of the route none, or pass it the systemd credential openai_api_key.none"
    )
    assert "sk-" not in repr(got)


def test_routes_need_no_key_but_their_own(harness: ConfigHarness) -> None:
    """The one key may be missing then."""
    harness.write("file", "sk-file")
    assert harness.load("").provider_key_remedy == "set OPENAI_API_KEY or openai_api_key_file"
    got = harness.load("[[upstream.route]]\nname = 'a'\nopenai_api_key_file = 'file'")
    assert got.provider_key_remedy is None


@pytest.mark.parametrize("text", ["", "two words", f'"{CANARY}"', "ключ"])
def test_a_wrong_key_of_a_route_is_not_shown(harness: ConfigHarness, text: str) -> None:
    """As for the one key: said where it is, what it must be, and never what it is."""
    harness.write("file", text)
    (problem,) = harness.problems("[[upstream.route]]\nname = 'a'\nopenai_api_key_file = 'file'")
    assert problem.startswith("file: upstream.route[0].openai_api_key must be printable ASCII characters")
    assert CANARY not in problem


def test_warnings_about_routes(harness: ConfigHarness) -> None:
    """Keys that others can read, plain HTTP, and a default model that none of them serves."""
    harness.write("file", "sk-file", mode=0o644)
    route = "[[upstream.route]]\nname = 'a'\nopenai_api_key_file = 'file'\n"
    (readable,) = harness.load(route).warnings
    assert readable.endswith("every user of this machine can read this key; chmod 600 it.")
    harness.write("file", "sk-file", mode=0o600)
    (plain,) = harness.load(route + "base_url = 'http://b.example'").warnings
    assert plain.startswith("the base_url of route a, http://b.example is plain HTTP")
    (unserved,) = harness.load(route + "models = ['gpt-5*']").warnings
    assert unserved == (
        'no route serves chat.default_model "gpt-4o-mini"; requests that name no model are refused.'
    )
    assert harness.load(route + "models = ['gpt-5*']\n[aliases]\n'gpt-4o-mini' = 'gpt-5x'").warnings == ()
