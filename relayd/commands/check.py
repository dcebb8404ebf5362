"""`relayd check`: the settings in effect, where each comes from, and what is wrong with them.

For people the answer is itself TOML that relayd can load: keys in place, the rest as comments. If the file
is that of an installed service, the settings are those of the service: its environment and credentials.
"""

from __future__ import annotations

import json
import ssl
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import uvloop

from relayd.commands.effective_settings import EffectiveSettings, check_database, load_effective
from relayd.config import KEYS, ConfigError, Key, OriginKind, Settings
from relayd.config.schema import route_credential
from relayd.config.toml import nested, table_toml, toml_value
from relayd.findings import Finding, Severity, collect, has_errors
from relayd.printable import printable, typeable
from relayd.public.tls import TlsError, load_context

_KEY_COLUMNS = max(len(key.leaf) for key in KEYS.values())
_MAX_VALUE_COLUMNS = 40
"""A longer value moves its comment to the right; it is never cut."""


def run(args: Namespace) -> int:
    """Load the settings and show them; returns the exit status."""
    try:
        checked = load_effective(args.config, args.socket)
        _check_tls(checked.settings)
    except ConfigError as error:
        sys.stderr.write(typeable(f"{error}\n"))
        if args.json:
            _print_json({"ok": False, "problems": [problem.as_json() for problem in error.problems]})
        return 1
    if args.upstream and checked.unknown:
        lines = ", ".join(checked.unknown)
        sys.stderr.write(f"relayd: check cannot see what the service gets from {lines}.\n")
        return 1
    if args.upstream and checked.hidden_files:
        where = ", ".join(map(str, checked.hidden_files))
        sys.stderr.write(typeable(f"relayd: only root can read {where}: sudo relayd check --upstream\n"))
        return 1
    if args.upstream:
        return uvloop.run(_check_upstream(checked.settings, as_json=args.json))
    database = check_database(checked)
    if has_errors(database):
        errors = [finding for finding in database if finding.severity is Severity.ERROR]
        sys.stderr.writelines(typeable(f"relayd: {_sentence(finding)}\n") for finding in errors)
        if args.json:
            _print_json({"ok": False, "problems": [finding.as_json() for finding in errors]})
        return 1
    if args.json:
        _print_json(_document(checked) | {"database": [finding.as_json() for finding in database]})
    else:
        sys.stdout.writelines(f"{line}\n" for line in _lines(checked, database))
    return 0


def _sentence(finding: Finding) -> str:
    remedy = finding.remedy
    return f"{finding.message} {remedy[0].upper()}{remedy[1:]}." if remedy else finding.message


async def _check_upstream(settings: Settings, *, as_json: bool) -> int:
    from relayd.commands.check_upstream import Provider, check_all  # noqa: PLC0415 - needs the SDK

    findings = await collect(check_all(Provider.all_of(settings)), None if as_json else sys.stdout)
    usable = not has_errors(findings)
    if as_json:
        _print_json({"ok": usable, "findings": [finding.as_json() for finding in findings]})
    return 0 if usable else 1


def _check_tls(settings: Settings) -> None:
    """Raise ConfigError if TLS cannot start with the files of `tls.cert` and `tls.key`."""
    cert, key = settings.tls.cert, settings.tls.key
    if cert is None or key is None:
        return
    try:
        load_context(cert, key)
    except TlsError as error:
        name = "tls.key" if _has_certificate(cert) else "tls.cert"
        place = settings.origins[name].place
        raise ConfigError([Finding(Severity.ERROR, place, printable(str(error)), key=name)]) from error


def _has_certificate(path: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError:  # ssl.SSLError is one
        return False
    return True


def _warnings(checked: EffectiveSettings) -> list[str]:
    warnings = list(checked.settings.warnings)
    if checked.hidden_files:
        where = ", ".join(map(str, checked.hidden_files))
        warnings.append(f"only root can read {where}: `sudo relayd check` looks into it, too.")
    elif (remedy := checked.settings.provider_key_remedy) is not None and not checked.unknown:
        warnings.append(f"no provider key: {remedy}, or start with `relayd serve --demo`.")
    if checked.service is not None:
        unit = checked.service.unit
        warnings += [
            f"`{line}` of {unit} is not looked into; whether the service can use it: "
            f"systemctl restart {unit} && journalctl -u {unit} -n 20"
            for line in checked.unknown
        ]
    return warnings


def _notes(settings: Settings) -> list[str]:
    """Return what is as it should be, yet good to know."""
    if "*" in settings.cors.allow_origins:
        return ['cors.allow_origins contains "*": any web page may use this relay, if it has a key.']
    return []


def _lines(checked: EffectiveSettings, database: Sequence[Finding]) -> Iterator[str]:
    settings, path = checked.settings, checked.settings.config_file
    yield f"# {printable(str(path))} is good." if path else "# There is no relayd.toml; the defaults apply."
    if checked.service is not None:
        yield f"# As {checked.service.unit} sees it: with its environment, credentials and socket."
    values = {key: _value(checked, key) for key in KEYS.values() if not key.is_table}
    columns = min(max(len(text) for key, text in values.items() if not key.secret), _MAX_VALUE_COLUMNS)
    section = None
    for key in KEYS.values():
        if key.is_table:
            if settings.value(key.name):
                yield from table_toml(key, settings.value(key.name), _route_keys(checked))
            continue
        text = values[key]
        if key.section != section:
            section = key.section
            yield from ("", f"[{section}]") if section else ("",)
        origin = settings.origins[key.name]
        comment = "" if origin.kind is OriginKind.DEFAULT else f"  # {origin}"
        yield (
            f"# {key.leaf}: {text}"
            if key.secret
            else f"{key.leaf:<{_KEY_COLUMNS}} = {text:<{columns}}{comment}".rstrip()
        )
    remarks = [f"# Warning: {typeable(sentence)}" for sentence in _warnings(checked)]
    remarks += [f"# Note: {sentence}" for sentence in _notes(settings)]
    remarks += [f"# {finding.where.capitalize()}: {typeable(_sentence(finding))}" for finding in database]
    yield from ("", *remarks) if remarks else ()


def _route_keys(checked: EffectiveSettings) -> dict[str, str]:
    """Return where the key of each route comes from, by the routes' names."""
    said: dict[str, str] = {}
    settings, hidden = checked.settings, checked.hidden
    for route in settings.upstream.route:
        hidden_file = hidden.get(route_credential(route.name))
        if hidden_file is None and settings.route_url(route) == settings.upstream.base_url:
            hidden_file = hidden.get("openai_api_key")
        if settings.route_key(route) is None:
            where = "not set" if hidden_file is None else f"in {hidden_file}"
        elif route.openai_api_key is None:
            where = "set (the one at the top)"
        else:
            where = f"set (from {route.openai_api_key_file or OriginKind.CREDENTIAL})"
        said[route.name] = printable(f"openai_api_key: {where}")
    return said


def _value(checked: EffectiveSettings, key: Key) -> str:
    settings, value = checked.settings, checked.settings.value(key.name)
    if not key.secret:
        return toml_value(value)
    if not value:
        return f"in {checked.hidden[key.name]}" if key.name in checked.hidden else "not set"
    origin = settings.origins[key.name]
    is_named_by_kind = origin.kind in {OriginKind.ENVIRONMENT, OriginKind.CREDENTIAL}
    return f"set (from {origin.kind if is_named_by_kind else origin.place})"


def _document(checked: EffectiveSettings) -> dict[str, Any]:
    settings = checked.settings
    return {
        "ok": True,
        "config_file": str(settings.config_file) if settings.config_file else None,
        "service": checked.service.unit if checked.service else None,
        "settings": nested((name, _json_value(settings, key)) for name, key in KEYS.items()),
        "origins": {
            name: {"source": origin.kind, "place": origin.place, "variable": origin.variable or None}
            for name, origin in settings.origins.items()
            if origin.kind is not OriginKind.DEFAULT
        },
        "warnings": _warnings(checked),
        "notes": _notes(settings),
        "problems": [],
    }


def _json_value(settings: Settings, key: Key) -> Any:
    value = settings.value(key.name)
    if key.secret:
        return {"set": bool(value)}
    if key.name == "upstream.route":
        return [
            {
                **route.model_dump(mode="json", exclude={"openai_api_key"}),
                "openai_api_key": {"set": settings.route_key(route) is not None},
            }
            for route in settings.upstream.route
        ]
    if key.row is not None:
        return {name: row.model_dump() for name, row in value.items()}
    return str(value) if isinstance(value, Path) else value


def _print_json(document: dict[str, Any]) -> None:
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")
