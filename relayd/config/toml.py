"""relayd.toml: which file it is, what it says, and which of its keys nobody knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli

from relayd.config.errors import Findings, Problem, did_you_mean, looks_secret
from relayd.config.files import Here, is_present, read_text
from relayd.config.lines import key_lines
from relayd.config.sections import Key
from relayd.config.sources import CONFIG_VARIABLE, KEPT_NAMES, Layer, Origin, OriginKind, Variable, entry
from relayd.printable import printable

FILE_NAME = "relayd.toml"
SYSTEM_CONFIG = Path("/etc/relayd/relayd.toml")


def find_config(
    config_path: Path | None,
    variables: Mapping[str, Variable],
    here: Here,
    system_config: Path,
    findings: Findings,
) -> Path | None:
    """The file to read: `--config`, else $RELAYD_CONFIG, else ./relayd.toml, else the system's, else None.

    A file that was named must exist; the other two need not.
    """
    named, by = config_path, "command line: --config"
    variable = variables.get(CONFIG_VARIABLE)
    if named is None and variable is not None and variable.text:
        meant = here.path(variable.text)
        named, by = Path(meant or variable.text), f"{variable.place}: {CONFIG_VARIABLE}"
    if named is None:
        return next((path for path in (here.cwd / FILE_NAME, system_config) if is_present(path)), None)
    path = here.cwd / named
    if not is_present(path):
        place, _, what = by.partition(": ")
        findings.problems.append(Problem(place, f"{what} names {here.name(path)}, which does not exist."))
        return None
    return path


def read_toml(path: Path, keys: Mapping[str, Key], here: Here, findings: Findings) -> Layer:
    """Read the file into a layer; unknown keys, misplaced secrets and wrong syntax are problems."""
    name = here.name(path)
    text = read_text(path, name, findings)
    document = _parse(text, name, findings) if text is not None else None
    if text is None or document is None:
        return {}
    # tomli reads CRLF as LF; so must the lines be counted.
    reader = _Reader(name, key_lines(text.replace("\r\n", "\n")), keys, here, findings)
    return reader.read(document)


def _parse(text: str, name: str, findings: Findings) -> dict[str, object] | None:
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        where = f"{name}:{error.lineno}:{error.colno}"
        findings.problems.append(Problem(where, f"this is not TOML: {_in_words(error.msg)}."))
    except (ValueError, RecursionError):
        # A number of thousands of digits, or hundreds of brackets: Python's own limits, without a place.
        findings.problems.append(
            Problem(name, "a number in it is too long, or its brackets are nested too deep.")
        )
    return None


def _in_words(message: str) -> str:
    """Tomli's message; its three most frequent ones say what was done wrong."""
    if message.startswith("Cannot declare"):
        return "this table stands twice"
    said = _TOMLI_SAYS.get(message, message)
    return printable(said[0].lower() + said[1:])


_TOMLI_SAYS = {
    "Cannot overwrite a value": "this key or table stands twice",
    "Invalid value": "a value is missing or misspelt (text needs quotes)",
}


@dataclass(frozen=True, slots=True)
class _Reader:
    """Walks the parsed document, with the line of each key at hand."""

    name: str
    lines: Mapping[tuple[str, ...], int]
    keys: Mapping[str, Key]
    here: Here
    findings: Findings

    def read(self, document: Mapping[str, object]) -> Layer:
        layer: Layer = {}
        sections = {key.section for key in self.keys.values()} - {""}
        for name, value in document.items():
            if name not in sections:
                self._take(layer, (name,), value)
            elif not isinstance(value, dict):
                self._problem((name,), f"{name} must be a table, written [{name}].")
            else:
                for inner, leaf in value.items():
                    self._take(layer, (name, inner), leaf)
        return layer

    def _take(self, layer: Layer, path: tuple[str, ...], value: object) -> None:
        key = self.keys.get(".".join(path)) if not any("." in part for part in path) else None
        kept = KEPT_NAMES.get(path[-1].upper())
        if kept is not None and self.keys[kept].secret:
            self._problem(path, self._misplaced(path[-1].upper()))
        elif key is None:
            self._problem(path, self._unknown(path, value))
        else:
            origin = Origin(OriginKind.FILE, self._where(path))
            layer[key.name] = entry(key, value, origin, self.here, text=False)

    def _where(self, path: tuple[str, ...]) -> str:
        return f"{self.name}:{self.lines.get(path, 1)}"

    def _problem(self, path: tuple[str, ...], message: str) -> None:
        self.findings.problems.append(Problem(self._where(path), message, ".".join(path)))

    def _misplaced(self, name: str) -> str:
        other = ", or the path of a file in openai_api_key_file" if name == "OPENAI_API_KEY" else ""
        return f"{name.lower()} does not belong in this file; put {name} in the environment or .env{other}."

    def _unknown(self, path: tuple[str, ...], value: object) -> str:
        section = path[0] if len(path) > 1 else ""
        what = "section" if not section and isinstance(value, dict) else "key"
        said = _name(path)
        meant = self._meant(path[-1], section, table=what == "section")
        if meant:
            return f"unknown {what} {said}; did you mean {meant}?"
        here = [
            key.name.rpartition(".")[2]
            for key in self.keys.values()
            if key.section == section and not key.secret
        ]
        sections = dict.fromkeys(f"[{key.section}]" for key in self.keys.values() if key.section)
        allowed = [*sections] if what == "section" else here if section else [*here, *sections]
        return (
            f"unknown {what} {said}; {f'[{section}] has' if section else 'there are'} {', '.join(allowed)}."
        )

    def _meant(self, name: str, section: str, *, table: bool) -> str | None:
        """The name most likely meant: one spelt nearly so in this section, or else in another."""
        if table:
            near = did_you_mean(name, {key.section for key in self.keys.values()} - {""})
            return near and f"[{near}]"
        by_leaf = {key.leaf: key.name for key in self.keys.values() if not key.secret}
        own = [leaf for leaf, full in by_leaf.items() if self.keys[full].section == section]
        near = did_you_mean(name, own) or did_you_mean(name, by_leaf)
        return by_leaf[near] if near else KEPT_NAMES.get(name.upper())


def _name(path: tuple[str, ...]) -> str:
    dotted = ".".join(path)
    return "(hidden)" if looks_secret(dotted) else printable(dotted[:100])
