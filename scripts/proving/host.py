"""How this machine reaches its registries, handed to a fresh Debian when it is made.

A rented server reaches the public ones by itself. Where only a mirror, a proxy or a directory can be
reached, the proof has to know of it; that is asked of pip and apt when it runs, and kept nowhere.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

_PIP_KEYS = {
    "index-url": "index-url",
    "extra-index-url": "extra-index-url",
    "find-links": "find-links",
    "no-index": "no-index",
    "trusted-host": "trusted-host",
    "proxy": "proxy",
    "cert": "cert",
    "timeout": "timeout",
    "default-timeout": "timeout",
    "retries": "retries",
}
"""Names that pip knows, and the one that a file takes; of the rest nothing reaches a registry."""
_SECTIONS = ("global", "install", ":env:")
"""From the weakest to the one that wins."""
_PLACES = ("index-url", "extra-index-url", "find-links")
_APT_KEYS = (
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
)
_AUTHORITIES = Path("usr/local/share/ca-certificates")


def pip_settings(told: str) -> dict[str, str]:
    """What counts of `pip config list`: the environment over files, `install` over `global`."""
    lines = [line.partition("=") for line in told.splitlines()]
    settings: dict[str, str] = {}
    for section in _SECTIONS:
        for name, _, value in lines:
            where, _, key = name.rpartition(".")
            if where == section and key in _PIP_KEYS:
                settings[_PIP_KEYS[key]] = " ".join(str(ast.literal_eval(value)).split())
    return settings


def directories(settings: Mapping[str, str]) -> tuple[Path, ...]:
    """The directories of this machine that pip's settings name, and what lies beside an index."""
    found = set()
    for key in _PLACES:
        for place in settings.get(key, "").split():
            url = urlsplit(place)
            if url.scheme not in {"", "file"}:
                continue
            path = Path(unquote(url.path))
            # The pages of an index point to files beside it.
            found.add(path if key == "find-links" else path.parent)
    return tuple(sorted(path for path in found if path.is_dir() and path != Path("/")))


def effective_pip_settings() -> dict[str, str]:
    """Those of whoever runs this."""
    return pip_settings(_asked(sys.executable, "-m", "pip", "config", "list"))


def apt_sources(release: str) -> list[tuple[str, str]]:
    """Address and suite of each Debian source for a release; empty where this machine has another one."""
    form = "$(ORIGIN) $(COMPONENT) $(CODENAME) $(REPO_URI)"
    lines = [line.split() for line in _asked("apt-get", "indextargets", "--format", form).splitlines()]
    found = [
        (words[3], words[2])
        for words in lines
        if len(words) == 4 and words[:2] == ["Debian", "main"] and words[2].partition("-")[0] == release  # noqa: PLR2004 - the words of `form`
    ]
    return list(dict.fromkeys(found))


def hand_over(root: Path, release: str, settings: Mapping[str, str]) -> None:
    """Write pip's settings, apt's sources and this machine's own authorities into a tree."""
    if settings:
        lines = [f"{key} = {value}\n" for key, value in settings.items()]
        (root / "etc/pip.conf").write_text("[global]\n" + "".join(lines))
    sources = apt_sources(release)
    if sources:
        lines = [f"deb {url} {suite} main\n" for url, suite in sources]
        (root / "etc/apt/sources.list").write_text("".join(lines))
    told = _asked("apt-config", "dump").splitlines()
    kept = [line + "\n" for line in told if line.partition(" ")[0] in _APT_KEYS]
    (root / "etc/apt/apt.conf.d/80host").write_text("".join(kept))
    own = sorted((Path("/") / _AUTHORITIES).glob("*.crt"))
    (root / _AUTHORITIES).mkdir(parents=True, exist_ok=True)
    for authority in own:
        shutil.copy(authority, root / _AUTHORITIES)
    print(
        f"--- from this machine: pip's {', '.join(settings) or 'defaults'};"
        f" {len(sources)} sources of apt; {len(own)} authorities",
        flush=True,
    )


def _asked(*words: str) -> str:
    if shutil.which(words[0]) is None:
        return ""
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60).stdout
