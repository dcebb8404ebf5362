"""Keys that stand in files: `openai_api_key_file`, and systemd's credentials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import SecretStr

from relayd.config.errors import Findings, Problem
from relayd.config.files import Here, is_present, read_text, world_readable
from relayd.config.sources import Entry, Layer, Origin, OriginKind

CREDENTIALS = ("openai_api_key", "authorization_key")
"""Names of files in $CREDENTIALS_DIRECTORY (systemd.exec(5), LoadCredential=)."""


def fill_from_key_file(layers: Sequence[Layer], here: Here, findings: Findings) -> None:
    """Read the file that the strongest `openai_api_key_file` names into that layer.

    The key then ranks with the source that named the file; OPENAI_API_KEY in the same source is stronger.
    `layers` are strongest first.
    """
    for layer in layers:
        named = layer.get("openai_api_key_file")
        if named is None:
            continue
        if isinstance(named.value, Path):
            found = _read_key(named.value, named.origin, here, findings)
            if "openai_api_key" in layer:
                used = layer["openai_api_key"].origin
                findings.warnings.append(
                    f"openai_api_key comes from {used}; openai_api_key_file is not used."
                )
            elif found is not None:
                layer["openai_api_key"] = found
        return


def _read_key(path: Path, named: Origin, here: Here, findings: Findings) -> Entry | None:
    name = here.name(path)
    seen = Findings()
    text = read_text(path, name, seen)
    for problem in seen.problems:
        # The place to mend is where the file was named.
        said = problem.message.removeprefix("this file ")
        findings.problems.append(
            Problem(named.place, f"openai_api_key_file {name} {said}", "openai_api_key_file")
        )
    if text is None:
        return None
    if world_readable(path):
        findings.warnings.append(f"{name}: every user of this machine can read this key; chmod 600 it.")
    return Entry(SecretStr(text.rstrip("\r\n")), None, Origin(OriginKind.KEY_FILE, name))


def credentials(env: Mapping[str, str], here: Here, findings: Findings) -> Layer:
    """The credentials that systemd passes, as the weakest layer above the defaults."""
    layer: Layer = {}
    directory = env.get("CREDENTIALS_DIRECTORY", "")
    for name in CREDENTIALS if directory else ():
        path = here.cwd / directory / name
        if is_present(path):
            text = read_text(path, here.name(path), findings, key=name)
            if text is not None:
                origin = Origin(OriginKind.CREDENTIAL, here.name(path))
                layer[name] = Entry(SecretStr(text.rstrip("\r\n")), None, origin)
    return layer


def warn_of_hidden_keys(layers: Sequence[Layer], findings: Findings) -> None:
    """Say when a key is set in several places: the one that is not used may be the one that was meant."""
    for name in CREDENTIALS:
        places = [layer[name].origin for layer in layers if name in layer]
        if len(places) > 1:
            unused = " and ".join(str(origin) for origin in places[1:])
            findings.warnings.append(f"{name} comes from {places[0]}; the one from {unused} is not used.")
