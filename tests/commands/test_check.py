"""`relayd check`: the settings in effect, or what is wrong with them."""

from __future__ import annotations

import json
import os
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from relayd.commands.check import run
from relayd.config import KEYS
from tests.config.harness import ConfigHarness
from tests.support.certificates import Authority
from tests.support.postgres import Postgres as Server

CANARY = "canary-4711-do-not-show"
ENV = {"OPENAI_API_KEY": CANARY, "SERVER_PORT": "81", "STATE_DIRECTORY": "/var/lib/relayd"}


class Checker:
    """A working directory in which `relayd check` runs, with an environment of its own."""

    def __init__(
        self, cwd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.cwd = cwd
        self.files = ConfigHarness(cwd)
        self.path: dict[str, str] = {}
        """$PATH, if programs are to be found."""
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        monkeypatch.chdir(cwd)

    def run(
        self,
        toml: str | None = None,
        env: Mapping[str, str] | None = None,
        *,
        as_json: bool = False,
        upstream: bool = False,
    ) -> tuple[int, str, str]:
        """Return status, output and errors of one check with `toml` as ./relayd.toml."""
        if toml is not None:
            self.files.write("relayd.toml", toml)
        self._monkeypatch.setattr("os.environ", {"HOME": str(self.cwd), **self.path, **(env or {})})
        status = run(Namespace(socket=None, config=None, json=as_json, upstream=upstream))
        shown = self._capsys.readouterr()
        return status, shown.out, shown.err


@pytest.fixture
def checker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Checker:
    """An empty working directory."""
    return Checker(tmp_path, monkeypatch, capsys)


def test_good_settings(checker: Checker) -> None:
    """The settings in effect are printed by section, aligned, each with its source unless it is a default."""
    status, out, err = checker.run("[log]\nlevel = 'debug'\nmax_mib = 512", env=ENV)
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[:6] == [
        f"# {checker.cwd}/relayd.toml is good.",
        "",
        'state_dir               = "/var/lib/relayd"             # environment STATE_DIRECTORY',
        'openai_api_key_file     = ""',
        "# openai_api_key: set (from environment)",
        "# authorization_key: not set",
    ]
    assert lines[7:10] == [
        "[server]",
        'host                    = "127.0.0.1"',
        "port                    = 81                            # environment SERVER_PORT",
    ]
    at = lines.index("[log]")
    assert lines[at + 1 : at + 4] == [
        'level                   = "debug"                       # relayd.toml:2',
        "retention_days          = 30",
        "max_mib                 = 512                           # relayd.toml:3",
    ]


def test_the_output_is_a_configuration(checker: Checker) -> None:
    """What is printed can be kept as relayd.toml and means the same, odd characters and all."""
    env = ENV | {"RELAYD_STATE_DIR": 'a "b" \\ \t\u202e', "RELAYD_CHAT__HEARTBEAT_S": "0.25"}
    env |= {
        "RELAYD_CORS__ALLOW_ORIGINS": "https://a.example,https://b.example",
        "RELAYD_KEYS__GRACE_S": "31622400",
    }
    env |= {"RELAYD_UPSTREAM__INCLUDE_USAGE": "no"}
    first = checker.files.load(env=env)
    again = checker.files.load(checker.run(env=env)[1])
    plain = [name for name, key in KEYS.items() if not key.secret]
    assert {name: again.value(name) for name in plain} == {name: first.value(name) for name in plain}


def test_tables(checker: Checker) -> None:
    """They are printed as a configuration that means the same; of a route's key only its source is told."""
    checker.files.write("key", CANARY)
    text = """
        aliases = { "a.b" = "c" }
        prices."gpt-4.1" = { input = 2, output = 8.5 }
        [[upstream.route]]
        name = "main"
        weight = 2
        [[upstream.route]]
        name = "second"
        openai_api_key_file = "key"
        models = ["gpt-*"]
        """
    first = checker.files.load(text, env=ENV)
    status, out, _ = checker.run(text, env=ENV)
    again = checker.files.load(out, env=ENV)
    assert status == 0
    assert "# openai_api_key: set (the one at the top)\n" in out
    assert f"# openai_api_key: set (from {checker.cwd}/key)\n" in out
    for name in ("aliases", "prices", "upstream.route"):
        assert again.value(name) == first.value(name)
    document = json.loads(checker.run(text, env=ENV, as_json=True)[1])
    assert [route["openai_api_key"] for route in document["settings"]["upstream"]["route"]] == [
        {"set": True}
    ] * 2
    assert document["settings"]["prices"] == {"gpt-4.1": {"input": 2.0, "cached_input": None, "output": 8.5}}
    assert CANARY not in out + json.dumps(document)


def test_no_file(checker: Checker) -> None:
    """Without relayd.toml the first line says so."""
    assert checker.run()[1].startswith("# There is no relayd.toml; the defaults apply.\n")


def test_where_secrets_come_from(checker: Checker) -> None:
    """Of a secret only its source is told."""
    checker.files.write(".env", f"\nAUTHORIZATION_KEY={CANARY}")
    checker.files.write("key", CANARY)
    out = checker.run("openai_api_key_file = 'key'")[1]
    assert "# openai_api_key: set (from key)\n" in out
    assert "# authorization_key: set (from .env:2)\n" in out
    checker.files.write("creds/openai_api_key", CANARY)
    out = checker.run("", env={"CREDENTIALS_DIRECTORY": str(checker.cwd / "creds")})[1]
    assert "# openai_api_key: set (from systemd credential)\n" in out


@pytest.mark.parametrize("as_json", [True, False])
def test_no_secret_is_printed(checker: Checker, as_json: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """No form of the output holds a secret."""
    checker.files.write(".env", f"AUTHORIZATION_KEY={CANARY}", mode=0o644)
    env = ENV | {"RELAYD_UPSTREAM__PROXY": f"http://me:{CANARY}@proxy.example:3128"}
    good = checker.run(env=env, as_json=as_json)
    bad = checker.run(f"openai_api_key = '{CANARY}'", as_json=as_json)
    assert CANARY not in "".join([good[1], good[2], bad[1], bad[2]])


def test_warnings_and_notes(checker: Checker) -> None:
    """Warnings and notes end the output; they do not make it fail. Any origin is a note, not a warning."""
    status, out, _ = checker.run("server.host = '::'")
    host, provider, note = out.rpartition("\n\n")[2].splitlines()
    assert status == 0
    assert host.startswith("# Warning: server.host :: is open to the network without TLS")
    assert provider.startswith("# Warning: no provider key: set OPENAI_API_KEY or openai_api_key_file, ")
    assert provider.endswith("relayd serve --demo`.")
    assert (
        note == '# Note: cors.allow_origins contains "*": any web page may use this relay, if it has a key.'
    )


def test_nothing_to_say(checker: Checker) -> None:
    """A configuration without oddities ends with its last key."""
    out = checker.run("cors.allow_origins = []", env=ENV)[1]
    assert out.endswith('\ngroup                   = ""\n')


def test_problems(checker: Checker) -> None:
    """Problems go to the error stream, one line each, and the status is 1."""
    status, out, err = checker.run("[server]\nport = -1\nprot = 1")
    assert (status, out) == (1, "")
    assert err.splitlines() == [
        "relayd.toml:3: unknown key server.prot; did you mean server.port?",
        "relayd.toml:2: server.port is -1, but must be a whole number from 0 to 65535.",
    ]


def test_json_of_good_settings(checker: Checker) -> None:
    """With --json one document holds settings, origins, warnings and notes; secrets are only set or not."""
    status, out, err = checker.run("tls = {}\n[log]\nlevel = 'debug'", env=ENV, as_json=True)
    document: dict[str, Any] = json.loads(out)
    assert (status, err) == (0, "")
    assert document["ok"] is True
    assert document["problems"] == []
    assert document["config_file"] == f"{checker.cwd}/relayd.toml"
    assert document["settings"]["openai_api_key"] == {"set": True}
    assert document["settings"]["authorization_key"] == {"set": False}
    assert document["settings"]["server"]["trusted_proxies"] == ["127.0.0.1", "::1"]
    assert document["settings"]["admin"]["socket"] == "/var/lib/relayd/admin.sock"
    assert document["settings"]["tls"] == {"cert": None, "key": None}
    assert document["origins"] == {
        "state_dir": {"source": "environment", "place": "environment", "variable": "STATE_DIRECTORY"},
        "openai_api_key": {"source": "environment", "place": "environment", "variable": "OPENAI_API_KEY"},
        "server.port": {"source": "environment", "place": "environment", "variable": "SERVER_PORT"},
        "log.level": {"source": "file", "place": "relayd.toml:3", "variable": None},
    }
    assert (len(document["warnings"]), len(document["notes"])) == (0, 1)


def test_json_of_problems(checker: Checker) -> None:
    """With --json problems are in the document too, with place and key apart."""
    status, out, err = checker.run("[server]\nport = -1", as_json=True)
    message = "server.port is -1, but must be a whole number from 0 to 65535."
    assert status == 1
    assert json.loads(out) == {
        "ok": False,
        "problems": [
            {
                "severity": "error",
                "where": "relayd.toml:2",
                "message": message,
                "remedy": "",
                "key": "server.port",
            }
        ],
    }
    assert err == f"relayd.toml:2: {message}\n"


# As systemd 252 writes it.
_SYSTEMCTL = """#!/bin/sh
case "$2 $3" in
"show relayd.service") cat <<'END'
ExecStart={{ path=/usr/bin/relayd ; argv[]=/usr/bin/relayd serve --config {config} ; ignore_errors=no }}
Environment=RELAYD_ADMIN__SOCKET=/run/relayd/admin.sock "RELAYD_CHAT__DEFAULT_MODEL=of-the-unit"
EnvironmentFiles={config}.env (ignore_errors=yes)
WorkingDirectory=
StateDirectory=relayd
TriggeredBy=relayd.socket
END
;;
"cat relayd.service") cat {config}.unit ;;
"show relayd.socket") echo "Listen=127.0.0.1:3666 (Stream)" ;;
esac
"""


@pytest.fixture
def service(checker: Checker, monkeypatch: pytest.MonkeyPatch) -> Checker:
    """A machine with relayd.service, whose port differs from its socket's, looked at from a shell."""
    config = checker.files.write(
        "etc/relayd.toml",
        "[server]\nport = 4000\n[[upstream.route]]\nname = 'main'\n[[upstream.route]]\nname = 'b-2'\n",
    )
    key = checker.files.write("etc/openai_api_key", CANARY)
    route_key = checker.files.write("etc/b_key", CANARY)
    checker.files.write("etc/relayd.toml.env", "RELAYD_LOG__LEVEL=debug\n")
    checker.files.write("bin/systemctl", _SYSTEMCTL.format(config=config), mode=0o755)
    lines = ["# /etc/systemd/system/relayd.service", "[Service]", "LoadCredential="]
    lines += [f"LoadCredential=openai_api_key:{key}", f"LoadCredential=openai_api_key.b-2:{route_key}\n"]
    checker.files.write("etc/relayd.toml.unit", "\n".join(lines))
    monkeypatch.setattr("relayd.commands.effective_settings.SYSTEM_CONFIG", config)
    monkeypatch.setattr("relayd.config.loader.SYSTEM_CONFIG", config)
    checker.path = {"PATH": f"{checker.cwd}/bin:/usr/bin:/bin"}
    return checker


def test_beside_an_installed_service_its_settings_are_shown(service: Checker) -> None:
    """Its state directory, environment, credential and socket; nothing of the shell's environment."""
    env = {"RELAYD_KEYS__GRACE_S": "7", "OPENAI_API_KEY": "sk-shell"}
    status, out, err = service.run(env=env)
    assert (status, err) == (0, "")
    assert "\n# As relayd.service sees it: " in out
    assert re.search(r'(?m)^state_dir += "/var/lib/relayd"', out)
    assert re.search(r'(?m)^socket += "/run/relayd/admin.sock"', out)
    assert re.search(r'(?m)^default_model += "of-the-unit"', out)
    assert re.search(r'(?m)^level += "debug"', out)
    assert re.search(r"(?m)^grace_s += 3600$", out)
    assert "\n# openai_api_key: set (from systemd credential)\n" in out.partition("[server]")[0]
    main, second = out.split("[[upstream.route]]")[1:]
    assert "\n# openai_api_key: set (the one at the top)\n" in main
    assert "\n# openai_api_key: set (from systemd credential)\n" in second
    assert "server.port 4000 " in out
    assert "is not in force: systemd listens for relayd, at 127.0.0.1 port 3666." in out
    document = json.loads(service.run(env=env, as_json=True)[1])
    assert document["service"] == "relayd.service"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_only_root_can_read_is_named(service: Checker) -> None:
    """An operator sees all settings but the credential, and how to see that."""
    _open_all_but(service, "openai_api_key", "b_key")
    with _nobody():
        shown = service.run()
        refused = service.run(upstream=True)
    key, route_key = service.cwd / "etc/openai_api_key", service.cwd / "etc/b_key"
    for path in (key, route_key):
        assert f"# openai_api_key: in {path}\n" in shown[1].partition("[[upstream.route]]")[2]
    assert f"only root can read {key}, {route_key}: `sudo " in shown[1]
    assert (refused[0], refused[1]) == (1, "")
    assert f"only root can read {key}, {route_key}: sudo " in refused[2]


def _open_all_but(service: Checker, *names: str) -> None:
    """Let all users read the files of the machine, but for these."""
    service.cwd.chmod(0o755)
    for path in service.cwd.rglob("*"):
        if path.is_file() and path.name not in names:
            path.chmod(0o755)


@contextmanager
def _nobody() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def _add_to_unit(service: Checker, *lines: str) -> None:
    """Add lines to relayd.service."""
    with (service.cwd / "etc/relayd.toml.unit").open("a") as unit:
        unit.writelines(f"{line}\n" for line in lines)


def _credential(service: Checker, name: str, file: Path) -> None:
    """Add a credential to relayd.service."""
    _add_to_unit(service, f"LoadCredential={name}:{file}")


def test_a_credential_may_have_a_dot_in_its_name(service: Checker) -> None:
    """The proxy's URL is that of the service; a credential that relayd does not read is not looked into."""
    _credential(service, "upstream.proxy", service.files.write("etc/proxy", "http://proxy.example:3128"))
    _credential(service, "another.name", service.files.write("etc/another", CANARY))
    status, out, err = service.run()
    assert (status, err) == (0, "")
    assert "# proxy: set (from systemd credential)\n" in out


@pytest.mark.parametrize("upstream", [False, True])
def test_a_credential_that_is_missing_is_an_error(service: Checker, upstream: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """The service cannot start without it; each is told, with all else that is wrong."""
    proxy = service.cwd / "etc/absent"
    _credential(service, "upstream.proxy", proxy)
    key = service.cwd / "etc/openai_api_key"
    key.unlink()
    status, out, err = service.run(upstream=upstream)
    assert (status, out) == (1, "")
    of_key, of_proxy = err.splitlines()
    assert of_proxy == f"relayd.service: {proxy} is missing; the service cannot start: make it."
    assert of_key.startswith(f"relayd.service: {key} is missing; the service cannot start: make it, or run ")
    assert of_key.endswith("relayd init --system.")
    service.files.write("etc/relayd.toml", "[server]\nport = -1\n")
    document = json.loads(service.run(as_json=True, upstream=upstream)[1])
    assert [one["key"] for one in document["problems"]] == ["openai_api_key", "upstream.proxy", "server.port"]


_SYSTEMD_CREDS = """#!/bin/sh
[ "$1 $2 $4" = "decrypt --name=openai_api_key -" ] || {{ echo "No such thing" >&2; exit 1; }}
[ "$3" = - ] && text=$(cat) || text=$(cat "$3")
[ "$text" = c2VjcmV0 ] && echo {secret} || {{ echo "Bad message" >&2; exit 1; }}
"""


@pytest.fixture
def decrypting(service: Checker) -> Checker:
    """The same machine; what its systemd-creds can decrypt is the text c2VjcmV0."""
    service.files.write("bin/systemd-creds", _SYSTEMD_CREDS.format(secret=CANARY), mode=0o755)
    (service.cwd / "etc/openai_api_key").unlink()
    return service


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may decrypt")
@pytest.mark.parametrize(
    "lines",
    [
        [f"SetCredential=openai_api_key:{CANARY}"],
        ["SetCredentialEncrypted=openai_api_key: \\", "# between", "  c2Vj \\", "  cmV0"],
        ["LoadCredentialEncrypted=openai_api_key:{etc}/encrypted"],
        [f"SetCredential=openai_api_key:{CANARY}", "LoadCredential=openai_api_key:{etc}/none"],
    ],
)
def test_a_credential_in_the_unit_or_encrypted_is_looked_into(decrypting: Checker, lines: list[str]) -> None:
    """As root; a text in the unit stands in for a file that is missing. The key is not shown."""
    decrypting.files.write("etc/encrypted", "c2VjcmV0")
    _add_to_unit(decrypting, *(line.format(etc=decrypting.cwd / "etc") for line in lines))
    status, out, err = decrypting.run()
    assert (status, err) == (0, "")
    assert "# openai_api_key: set (from systemd credential)\n" in out
    assert CANARY not in out


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may decrypt")
def test_a_credential_that_cannot_be_decrypted_is_an_error(decrypting: Checker) -> None:
    """With the reason that systemd-creds gives."""
    encrypted = decrypting.files.write("etc/encrypted", "of another machine")
    _add_to_unit(decrypting, f"LoadCredentialEncrypted=openai_api_key:{encrypted}")
    status, out, err = decrypting.run()
    assert (status, out) == (1, "")
    assert err == f"relayd.service: openai_api_key in {encrypted} cannot be decrypted: Bad message\n"


def test_a_credential_whose_source_cannot_be_told_is_named(decrypting: Checker) -> None:
    """With what shows whether the service can use it; the provider is not asked without its key."""
    _add_to_unit(decrypting, "LoadCredential=openai_api_key:%h/key")
    status, out, err = decrypting.run()
    assert (status, err) == (0, "")
    assert "# Warning: `LoadCredential=openai_api_key` of relayd.service is not looked into;" in out
    assert "no provider key" not in out
    status, out, err = decrypting.run(upstream=True)
    assert (status, out) == (1, "")
    assert "LoadCredential=openai_api_key" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_only_root_can_decrypt_is_named(decrypting: Checker) -> None:
    """Also if the file may be read."""
    encrypted = decrypting.files.write("etc/encrypted", "c2VjcmV0")
    _add_to_unit(decrypting, f"LoadCredentialEncrypted=openai_api_key:{encrypted}")
    _open_all_but(decrypting, "b_key")
    with _nobody():
        status, out, err = decrypting.run()
    assert (status, err) == (0, "")
    assert f"# openai_api_key: in {encrypted}\n" in out


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("closed", ["file", "directory"])
def test_a_file_of_variables_that_only_root_can_read_is_named(service: Checker, closed: str) -> None:
    """Whether it is the file or its directory that is closed; root's check looks into it."""
    service.files.write("etc/relayd.toml.env", "")
    systemctl = service.cwd / "bin/systemctl"
    file = service.files.write("etc/closed/env", "RELAYD_LOG__LEVEL=warning\n")
    named = f"EnvironmentFiles={file} (ignore_errors=no)\nEnvironmentFiles="
    systemctl.write_text(systemctl.read_text().replace("EnvironmentFiles=", named))
    _open_all_but(service)
    (file if closed == "file" else file.parent).chmod(0o600)
    assert re.search(r'(?m)^level += "warning"', service.run()[1])
    with _nobody():
        shown = service.run()
        refused = service.run(upstream=True)
    assert (shown[0], shown[2]) == (0, "")
    assert re.search(r'(?m)^level += "info"', shown[1])
    assert f"# Warning: only root can read {file}: `sudo " in shown[1]
    assert (refused[0], refused[1]) == (1, "")
    assert f"only root can read {file}: sudo " in refused[2]


def test_tls_files_are_tried_before_a_restart_needs_them(checker: Checker) -> None:
    """Those that belong together pass; else place, key of the configuration and file are told."""
    authority = Authority(checker.cwd / "tls")
    pair, other = authority.pair("one"), authority.pair("other")
    locked = authority.pair("locked", passphrase="a-passphrase")
    text = checker.files.write("tls/text.pem", "no PEM at all")
    cases = {
        (pair.cert, pair.key): (0, None, ""),
        (pair.cert, other.key): (1, "tls.key", "the key does not belong to the certificate"),
        (locked.cert, locked.key): (1, "tls.key", f"tls.key {locked.key} has a passphrase"),
        (text, pair.key): (1, "tls.cert", f"tls.cert {text} and"),
        (pair.cert, text): (1, "tls.key", f"tls.key {text} cannot be used"),
        (pair.cert, checker.cwd / "absent"): (1, "tls.key", str(checker.cwd / "absent")),
    }
    for (cert, key), (status, name, words) in cases.items():
        got, out, err = checker.run(f"[tls]\ncert = '{cert}'\nkey = '{key}'\n", as_json=True)
        told = json.loads(out)
        assert (got, told["ok"]) == (status, status == 0), told
        found = [(one["where"], one["key"]) for one in told["problems"]]
        assert found == ([(f"relayd.toml:{2 if name == 'tls.cert' else 3}", name)] if name else [])
        assert words in err


def test_the_shared_database_is_looked_at(checker: Checker, postgres_url: str) -> None:
    """What is found of it follows the settings; its URL is not shown."""
    status, out, err = checker.run(f"[state]\nurl = '{postgres_url}'", env=ENV)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines[-5:]] == [
        "# Database",
        "# Latency",
        "# Clock",
        "# Durability",
        "# Tables",
    ]
    assert "# url: set (from relayd.toml:2)" in lines
    assert postgres_url not in out
    _, out, _ = checker.run(env=ENV, as_json=True)
    assert next(finding["where"] for finding in json.loads(out)["database"]) == "database"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_shared_database_that_is_gone_is_an_error(
    checker: Checker, postgres: Server, postgres_url: str, *, as_json: bool
) -> None:
    """One sentence without its password, and exit status 1."""
    postgres.stop()
    url = postgres_url.replace("relayd@", f"relayd:{CANARY}@")
    status, out, err = checker.run(env=ENV | {"RELAYD_STATE__URL": url}, as_json=as_json)
    assert status == 1
    assert err.startswith("relayd: The database 'test")
    assert err.count("\n") == 1
    assert CANARY not in out + err
    assert (
        [problem["where"] for problem in json.loads(out)["problems"]] == ["database"] if as_json else not out
    )
