"""Every source file has its test file, or stands here with the reason why not."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path(__file__).parent.parent
_MOST_LINES = 300

# The source file, and where it is proved instead: what only has a meaning together with its neighbours,
# and what is nothing but names.
_PROVED_ELSEWHERE = {
    "__main__.py": "e2e/daemon.py",
    "demo/__main__.py": "demo/test_upstream.py",
    "descriptors.py": "public/test_listener.py",
    "admin/base.py": "admin/test_app.py",
    "admin/denied.py": "admin/test_client.py",
    "admin/errors.py": "admin/test_app.py",
    "admin/link.py": "admin/test_client.py",
    "admin/logroutes.py": "admin/test_client.py",
    "admin/parts.py": "admin/room.py",
    "admin/progress.py": "admin/test_eventsroute.py",
    "admin/side.py": "test_server.py",
    "admin/status.py": "admin/test_client.py",
    "admin/statusroutes.py": "admin/test_client.py",
    "admin/wire.py": "admin/test_client.py",
    "commands/check.py": "test_checkcmd.py",
    "commands/console.py": "commands/test_status.py",
    "commands/control.py": "commands/test_status.py",
    "commands/logline.py": "commands/test_log.py",
    "commands/remote.py": "test_cli.py",
    "commands/words.py": "commands/test_status.py",
    "doctor/finding.py": "doctor/test_command.py",
    "init/desk.py": "init/test_command.py",
    "init/plans.py": "init/test_command.py",
    "public/app.py": "public/test_health.py",
    "public/base.py": "public/test_chat.py",
    "public/head.py": "public/test_exchange.py",
    "public/refusal.py": "public/test_guard.py",
    "public/service.py": "public/test_chat.py",
    "relay/ends.py": "relay/test_stream.py",
    "state/audit.py": "state/test_ringchange.py",
    "state/errors.py": "state/test_state.py",
    "state/queries.py": "state/test_reader.py",
}


def _sources() -> dict[str, Path]:
    """Each source file of the daemon by its path in relayd/."""
    return {
        str(path.relative_to(_ROOT / "relayd")): path
        for path in sorted((_ROOT / "relayd").rglob("*.py"))
        if path.name != "__init__.py"
    }


def _test_of(source: str) -> Path:
    path = Path(source)
    return _ROOT / "tests" / path.parent / f"test_{path.name}"


def test_every_source_has_its_test() -> None:
    """A new file comes with `tests/…/test_<name>.py`, or with a line in the list above."""
    missing = [
        source for source in _sources() if source not in _PROVED_ELSEWHERE and not _test_of(source).exists()
    ]
    assert missing == []


def test_the_list_of_exceptions_is_true() -> None:
    """Each exception is a file that exists, proved by one that exists."""
    for source, place in _PROVED_ELSEWHERE.items():
        assert source in _sources(), f"{source} is gone"
        assert (_ROOT / "tests" / place).exists(), f"{place} is gone"


def test_no_source_outgrows_its_screen() -> None:
    """One concern a file: what grows over 300 lines holds two."""
    long = {
        source: lines
        for source, path in _sources().items()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > _MOST_LINES
    }
    assert long == {}
