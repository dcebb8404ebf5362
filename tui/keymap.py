"""Keys that the operator chose: the ids of the actions, and what is wrong with a choice.

Each action has an id, `part.action`, made from its binding: `clients.rotate`, `requests.error_next`. The
part is a screen, or `main`, `list` or `app`, whose keys work on every screen. `keys` in tui.json gives
ids other keys; Textual's own keymap puts them in place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from textual.binding import Binding, BindingType, InvalidBinding
from textual.dom import DOMNode
from textual.keys import Keys, key_to_character

EVERYWHERE = ("main", "list", "app")
"""The parts whose keys work on every screen."""
_ANSWERS = frozenset({"y", "enter", "escape"})
"""Keys that answer dialogs: an action on one of them could confirm the dialog that it opens."""
_NAMES = frozenset(key.value for key in Keys)
_STEPS = {"1": "next", "-1": "previous"}
_ACTION = re.compile(r"(?:\w+\.)?(\w+)(?:\((.*)\))?")
Parts = Mapping[str, Iterable[BindingType]]
"""The bindings of each part of the app."""


def action_id(part: str, action: str) -> str:
    """Return the id of an action: `turn(-1)` of `requests` is `requests.turn_previous`."""
    found = _ACTION.fullmatch(action)
    name, given = found.groups(default="") if found is not None else (action, "")
    given = given.strip("'\"")
    return f"{part}.{name}" + (f"_{_STEPS.get(given, given)}" if given else "")


def with_ids(part: str, bindings: Iterable[BindingType]) -> list[BindingType]:
    """Return the bindings of a part, each with its id."""
    return [replace(b, id=action_id(part, b.action)) for b in bindings if isinstance(b, Binding)]


def bindings_of(kind: type[DOMNode], base: type[DOMNode]) -> Iterator[Binding]:
    """Yield the bindings of a class and of its bases, below `base`."""
    for part in kind.__mro__[: kind.__mro__.index(base)]:
        yield from (b for b in part.__dict__.get("BINDINGS", ()) if isinstance(b, Binding))


def usable(keys: Mapping[str, str], parts: Parts) -> tuple[dict[str, str], list[str]]:
    """Return the choices that can be used, and a sentence for each that can't.

    Args:
        keys: by the id of an action its keys, separated by commas.
        parts: every action that there is.
    """
    defaults = {name: dict(_keys(bindings)) for name, bindings in parts.items()}
    known = {id_ for actions in defaults.values() for id_ in actions}
    chosen: dict[str, frozenset[str]] = {}
    faults = []
    for id_, text in keys.items():
        found, fault = _parsed(text)
        if id_ not in known:
            fault = "there is no such action"
        elif found & _ANSWERS:
            fault = f"{', '.join(sorted(found & _ANSWERS))} answers dialogs"
        if fault:
            faults.append(f"{id_}: {fault}.")
        else:
            chosen[id_] = found
    while (clash := _clash(chosen, defaults)) is not None:
        id_, key, other = clash
        del chosen[id_]
        faults.append(f"{id_}: {key} is {other}.")
    return {id_: ",".join(sorted(found)) for id_, found in chosen.items()}, faults


def _keys(bindings: Iterable[BindingType]) -> Iterator[tuple[str, frozenset[str]]]:
    """Return each action's id with all its keys."""
    found: dict[str, set[str]] = {}
    for binding in Binding.make_bindings(bindings):
        if binding.id is not None:
            found.setdefault(binding.id, set()).add(binding.key)
    yield from ((id_, frozenset(keys)) for id_, keys in found.items())


def _parsed(text: str) -> tuple[frozenset[str], str]:
    """Return keys by Textual's names, and what is wrong with them."""
    try:
        found = frozenset(binding.key for binding in Binding.make_bindings([Binding(text, "")]))
    except InvalidBinding:
        return frozenset(), "no key is named"
    unknown = [key for key in found if not _is_key(key)]
    return found, f"{unknown[0]} is not the name of a key" if unknown else ""


def _is_key(name: str) -> bool:
    last = name.rpartition("+")[2]
    return name in _NAMES or last in _NAMES or key_to_character(last) is not None


def _clash(
    chosen: Mapping[str, frozenset[str]], defaults: Mapping[str, Mapping[str, frozenset[str]]]
) -> tuple[str, str, str] | None:
    """Return a chosen action, its key, and another action on that key where both can be meant."""
    for id_ in reversed(list(chosen)):
        part = id_.partition(".")[0]
        for other_part, actions in defaults.items():
            if other_part != part and part not in EVERYWHERE and other_part not in EVERYWHERE:
                continue
            for other, keys in actions.items():
                both = chosen[id_] & chosen.get(other, keys)
                if other != id_ and both:
                    return id_, min(both), other
    return None
