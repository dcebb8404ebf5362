"""The processes that serve one relay together, in words."""

from __future__ import annotations

from collections.abc import Sequence

from relayd.admin.schema import InstanceInfo, InstanceRing
from relayd.printable import plural
from tui.model.units import age


def which_have_it(instances: Sequence[InstanceRing]) -> str:
    """Return which instances have a change of keys; empty if there is but one."""
    if len(instances) < 2:  # noqa: PLR2004 - more than this one
        return ""
    behind = [instance.name for instance in instances if not instance.has_it]
    words = f"{len(instances) - len(behind)} of {len(instances)} instances have it"
    return f"{words}; not yet: {', '.join(behind)}." if behind else f"{words}."


def still_serving(boots: set[str], live: set[str]) -> set[str]:
    """Return the boots of the relay that serves now, the ended ones too: all, if one of them still lives."""
    return boots | live if boots & live else live


def stopping_with(instance: InstanceInfo, known: Sequence[InstanceInfo]) -> tuple[str, int]:
    """Return in words what a drain of an instance stops, and how many streams are open there."""
    stopping = [one for one in known if one.stops_with(instance)]
    if len(stopping) < 2:  # noqa: PLR2004 - with other workers of its machine
        return instance.name, instance.streams
    return f"all {len(stopping)} workers of {instance.host}", sum(one.streams for one in stopping)


def in_words(instance: InstanceInfo, now_s: float, started_s: float) -> str:
    """Return all that is known of an instance, in sentences."""
    heard, up = f"{age(instance.heartbeat_age_s)} ago", age(now_s - started_s)
    ring = "the newest keys" if instance.has_ring else "NOT the newest keys"
    worker = "" if instance.worker is None else f", worker {instance.worker}"
    serves = instance.address or "nothing yet"
    lines = (
        f"{instance.name}{worker}: {instance.intake}, {plural(instance.streams, 'open stream')}",
        f"serves {serves}; heard {heard}; has {ring} (generation {instance.generation})",
        f"relayd {instance.version}, process {instance.pid}, boot {instance.boot_id}; up {up}",
    )
    return "\n".join(lines)
