"""`relayd check`: the settings in effect, where each comes from, and what is wrong with them.

For people the answer is itself TOML that relayd can load: keys in place, the rest as comments.
"""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from relayd.config import KEYS, ConfigError, Key, OriginKind, Problem, Settings
from relayd.config.sources import nested
from relayd.printable import printable
from relayd.public.tls import TlsError, load_context

EXIT_GOOD = 0
EXIT_BAD = 1

_KEY_COLUMNS = max(len(key.leaf) for key in KEYS.values())
_MAX_VALUE_COLUMNS = 40
"""A longer value pushes its origin to the right; it is never cut."""


def run(
    settings_or_error: Settings | ConfigError,
    as_json: bool,  # noqa: FBT001 - the command line passes its flag on
    out: TextIO,
    err: TextIO | None = None,
) -> int:
    """Print the settings to `out`, or the problems to `err` (None: stderr). Returns the exit status, 0 or 1.

    With `as_json`, `out` gets exactly one JSON document in both cases.
    """
    if isinstance(settings_or_error, ConfigError):
        for problem in settings_or_error.problems:
            print(problem, file=err or sys.stderr)
        if as_json:
            _dump({"ok": False, "problems": [_facts(problem) for problem in settings_or_error.problems]}, out)
        return EXIT_BAD
    if as_json:
        _dump(_document(settings_or_error), out)
    else:
        out.writelines(f"{line}\n" for line in _lines(settings_or_error))
    return EXIT_GOOD


def tls_problem(settings: Settings) -> Problem | None:
    """What would keep TLS from starting with the files of `tls.cert` and `tls.key`; None: nothing."""
    cert, key = settings.tls.cert, settings.tls.key
    if cert is None or key is None:
        return None
    try:
        load_context(cert, key)
    except TlsError as error:
        name = "tls.key" if _holds_certificate(cert) else "tls.cert"
        return Problem(settings.origins[name].place, printable(str(error)), name)
    return None


def _holds_certificate(path: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError:
        # ssl.SSLError is one.
        return False
    return True


def warnings_of(settings: Settings) -> list[str]:
    """Everything worth a second look before `relayd serve`."""
    found = list(settings.warnings)
    if settings.openai_api_key is None:
        found.append(
            "no provider key: set OPENAI_API_KEY or openai_api_key_file, or start with `relayd serve --demo`."
        )
    return found


def notes_of(settings: Settings) -> list[str]:
    """What is as it should be, yet good to know."""
    if "*" in settings.cors.allow_origins:
        return ['cors.allow_origins holds "*": a page from anywhere may call, if it has a key.']
    return []


def _lines(settings: Settings) -> Iterator[str]:
    name = settings.config_file
    yield f"# {printable(str(name))} is good." if name else "# There is no relayd.toml; the defaults hold."
    rows = {key: _value(settings, key) for key in KEYS.values()}
    lengths = [len(text) for key, text in rows.items() if not key.secret]
    columns = min(max(lengths), _MAX_VALUE_COLUMNS)
    section = None
    for key, text in rows.items():
        if key.section != section:
            section = key.section
            yield from ("", f"[{section}]") if section else ("",)
        yield _row(settings, key, text, columns)
    remarks = [f"# Warning: {sentence}" for sentence in warnings_of(settings)]
    remarks += [f"# Note: {sentence}" for sentence in notes_of(settings)]
    yield from ("", *remarks) if remarks else ()


def _row(settings: Settings, key: Key, text: str, columns: int) -> str:
    if key.secret:
        return f"# {key.leaf}: {text}"
    origin = settings.origins[key.name]
    where = "" if origin.kind is OriginKind.DEFAULT else f"  # {origin}"
    return f"{key.leaf:<{_KEY_COLUMNS}} = {text:<{columns}}{where}".rstrip()


def _value(settings: Settings, key: Key) -> str:
    value = settings.value(key.name)
    if not key.secret:
        return _toml(value)
    if value is None:
        return "not set"
    origin = settings.origins[key.name]
    named = origin.kind in {OriginKind.ENVIRONMENT, OriginKind.CREDENTIAL}
    return f"set (from {origin.kind if named else origin.place})"


def _toml(value: object) -> str:
    """A value as TOML: floats without needless zeros, None as the empty string that stands for it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    text = "" if value is None else str(value)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


def _document(settings: Settings) -> dict[str, Any]:
    origins = {
        name: {"source": str(origin.kind), "place": origin.place, "variable": origin.variable or None}
        for name, origin in settings.origins.items()
        if origin.kind is not OriginKind.DEFAULT
    }
    return {
        "ok": True,
        "config_file": str(settings.config_file) if settings.config_file else None,
        "settings": nested((name, _plain(settings, key)) for name, key in KEYS.items()),
        "origins": origins,
        "warnings": warnings_of(settings),
        "notes": notes_of(settings),
        "problems": [],
    }


def _plain(settings: Settings, key: Key) -> Any:
    value = settings.value(key.name)
    if key.secret:
        return {"set": value is not None}
    return str(value) if isinstance(value, Path) else value


def _facts(problem: Problem) -> dict[str, str | None]:
    return {"where": problem.where, "key": problem.key, "message": problem.message}


def _dump(document: dict[str, Any], out: TextIO) -> None:
    json.dump(document, out, indent=2)
    out.write("\n")
