"""The configuration and the health of one instance, as rows that can be searched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from relayd.admin.schema import Applies, Configuration, LastReload, Reloaded, Setting, Status, epoch_s
from relayd.printable import plural
from tui.model.units import age, bytes_text, day_clock, duration, moment

_FULL_SHARE = 0.8
_RELOADS = "S reloads"
_RESTART = "needs a restart"
_PROBLEM, _WARNING = "problem", "warning"
_REMARKS = {_PROBLEM, _WARNING}


class Shown(StrEnum):
    """Which rows are shown."""

    ALL = "all"
    SET = "set"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Row:
    """A setting, or a fact about the health of the instance."""

    name: str
    value: str
    source: str
    """Where it was set, or what puts its change in force; empty for what is no setting."""
    lines: tuple[str, ...]
    """All that is known, in sentences."""
    setting: Setting | None = None
    is_trouble: bool = False

    @property
    def key(self) -> str:
        """What identifies the row: several warnings have the same name."""
        return self.value if self.name in _REMARKS else self.name

    @property
    def is_changed(self) -> bool:
        """Whether its sources say something else by now."""
        return self.setting is not None and self.setting.new_value is not None

    def is_among(self, shown: Shown) -> bool:
        """Return whether the row is one of these."""
        match shown:
            case Shown.ALL:
                return True
            case Shown.SET:
                return self.setting is not None and (not self.setting.is_default or self.is_changed)
        return self.is_changed

    def has_words(self, words: Iterable[str]) -> bool:
        """Return whether each of these words, in lower case, is anywhere in what is known of the row."""
        text = " ".join((self.name, self.value, self.source, *self.lines)).lower()
        return all(word in text for word in words)


def remarks(known: Configuration) -> Iterator[Row]:
    """Yield what is wrong with the sources, and what is probably not intended."""
    for text in known.problems:
        yield _trouble(_PROBLEM, text, "A reload changes nothing until this is mended.")
    for text in known.warnings:
        yield _trouble(_WARNING, text, "It works, but is probably not intended.")


def settings(known: Configuration) -> Iterator[Row]:
    """Yield every setting in the order of relayd.toml."""
    return map(_row, known.settings)


def _trouble(name: str, text: str, meaning: str) -> Row:
    return Row(name, text, "", (text, meaning), is_trouble=True)


def health(known: Configuration, status: Status | None, now_s: float) -> Iterator[Row]:
    """Yield how files, disk, log and process are."""
    read = f"read at {day_clock(epoch_s(known.read_at))}"
    place = known.file or "none: defaults, environment and command line"
    yield Row("relayd.toml", place, "", (f"relayd.toml: {place}", f"What is in force was {read}."))
    yield _last_reload(known.last_reload, now_s)
    if status is not None:
        yield from _disk(status)
        yield _log(known, status, now_s)
        yield _queue(status)
    process = known.process
    words = f"{process.instance}: relayd {process.version}, up {age(process.uptime_s)}, pid {process.pid}"
    yield Row("process", words, "", (words, f"boot {process.boot_id}"))
    yield Row("memory", bytes_text(process.memory_bytes), "", ("Resident memory of this process.",))
    most = process.max_open_files
    share = 0.0 if most is None else process.open_files / most
    words = f"{process.open_files:,} of {'no limit' if most is None else f'{most:,}'}"
    remedy = "LimitNOFILE of the unit raises the limit; a stream takes up to three."
    yield Row("open files", words, "", (f"Open files: {words}.", remedy), is_trouble=share > _FULL_SHARE)


def _disk(status: Status) -> Iterator[Row]:
    disk, engine = status.disk, status.engine
    error = engine.error or ""
    if disk is None:
        where = f"The database is another machine's: {engine.where}"
        yield Row("disk", "—", "", (f"{where}.",))
    else:
        free = bytes_text(disk.free_bytes)
        tight = disk.free_bytes < disk.database_bytes
        sentence = f"{free} are free beside {engine.where or status.state_dir}."
        hint = "Less is free than the database takes: make room, or lower log.max_mib." if tight else ""
        yield Row("disk", f"{free} free", "", (sentence, hint), is_trouble=tight)
    size = "" if disk is None else f", {bytes_text(disk.database_bytes)} (WAL {bytes_text(disk.wal_bytes)})"
    latency = "" if engine.latency_ms is None else f", answers in {duration(engine.latency_ms)}"
    words = f"{engine.kind.value}{size}{latency}"
    yield Row(
        "database",
        words if engine.ok else f"DOWN: {error or 'it does not answer'}",
        "",
        (f"{words}, at {engine.where or '—'}", error),
        is_trouble=not engine.ok,
    )


def _log(known: Configuration, status: Status, now_s: float) -> Row:
    kept = {setting.name: setting.value for setting in known.settings}
    bounds = (
        f"Kept for {kept.get('log.retention_days', '—')} days, at most {kept.get('log.max_mib', '—')} MiB."
    )
    if known.log is None:
        return Row("log", "can't be read now", "", (status.log.error or "", bounds), is_trouble=True)
    oldest = known.log.oldest_at
    since = "" if oldest is None else f" since {moment(epoch_s(oldest), now_s)}"
    words = f"{plural(known.log.records, 'record')}{since}"
    return Row("log", words, "", (f"Request log: {words}.", bounds))


def _queue(status: Status) -> Row:
    log = status.log
    words = f"{log.queued:,} waiting for the disk, {log.lost:,} lost"
    return Row("log queue", words, "", (words, log.error or ""), is_trouble=bool(log.lost or log.error))


def _last_reload(last: LastReload | None, now_s: float) -> Row:
    if last is None:
        return Row("last reload", "none since the start", "", ("The configuration was not read again.",))
    at, report = epoch_s(last.at), last.report
    words = f"{moment(at, now_s)} {summary(report)}"
    lines = (f"Last reload: {day_clock(at)}.", *outcome(report))
    return Row("last reload", words, "", lines, is_trouble=report.error is not None)


def _row(setting: Setting) -> Row:
    value, source = setting.value, setting.source
    if setting.new_value is not None:
        value = f"{setting.value} → {setting.new_value}"
        source = _RELOADS if setting.applies is Applies.RELOAD else _RESTART
    return Row(setting.name, value, source, tuple(_lines(setting)), setting)


def _lines(setting: Setting) -> Iterator[str]:
    yield f"{setting.name} = {setting.value}"
    if setting.new_value is not None:
        how = "a restart" if setting.applies is Applies.RESTART else "a reload (S)"
        yield f"{setting.new_source} says by now: {setting.new_value}. It takes {how}."
    yield f"{setting.about[:1].upper()}{setting.about[1:]}."
    default = f"; the default is {setting.default}" if setting.default and not setting.is_default else ""
    yield f"From: {setting.source}{default}."
    named = f" {setting.variable} sets it, too." if setting.variable else ""
    changes = "Only a restart changes it." if setting.applies is Applies.RESTART else "A reload changes it."
    yield f"{changes}{named}"


def summary(report: Reloaded) -> str:
    """Return in a few words what a reload led to."""
    if report.error is not None:
        return "REFUSED: nothing was changed"
    if not report.changed and not report.waiting:
        return "nothing had changed"
    parts = [f"{plural(len(report.changed), 'change')} in force"]
    if report.waiting:
        parts.append(f"{len(report.waiting)} only after a restart")
    return ", ".join(parts)


def outcome(report: Reloaded) -> Iterator[str]:
    """Yield what a reload led to, a sentence on each line."""
    if report.error is not None:
        yield "Nothing was changed:"
        yield from report.error.splitlines()
        return
    yield from (f"{change}." for change in report.changed)
    if report.waiting:
        yield f"Only after a restart: {', '.join(report.waiting)}."
    if not report.changed and not report.waiting:
        yield "The configuration has not changed."
    yield from report.notes
    yield from (f"Not reloaded on {failure}" for failure in report.failed)


def what_a_reload_does(known: Configuration) -> Iterator[str]:
    """Yield what a reload would lead to, as the sources are now."""
    if known.problems:
        yield "As the sources are now, it would be refused, and nothing would change:"
        yield from known.problems
        return
    changed = [setting for setting in known.settings if setting.new_value is not None]
    for setting in changed:
        if setting.applies is Applies.RELOAD:
            yield f"{setting.name}: {setting.value} → {setting.new_value}"
    waiting = [setting.name for setting in changed if setting.applies is Applies.RESTART]
    if waiting:
        yield f"Only a restart changes {', '.join(waiting)}."
    if not changed:
        yield "No setting has changed since they were read."
    yield "Certificates and the files of provider keys are read again. Open streams go on."
