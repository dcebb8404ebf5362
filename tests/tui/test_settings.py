"""What the app remembers."""

from __future__ import annotations

from pathlib import Path

from tui.settings import SettingsFile, config_dir


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    """The filter comes back with the next start; the directory is made on the way, and a link stays one."""
    path = tmp_path / "deep" / "tui.json"
    first = SettingsFile(path)
    first.settings.filter = "status>=500"
    first.save()
    assert SettingsFile(path).settings.filter == "status>=500"
    assert [entry.name for entry in path.parent.iterdir()] == ["tui.json"]
    link = tmp_path / "link.json"
    link.symlink_to(path)
    linked = SettingsFile(link)
    linked.settings.filter = "status=429"
    linked.save()
    assert link.is_symlink()
    assert SettingsFile(path).settings.filter == "status=429"


def test_two_apps_and_a_person_keep_what_each_changed(tmp_path: Path) -> None:
    """What this run left alone stays as the file has it by now; what it removed is gone."""
    path = tmp_path / "tui.json"
    path.write_text('{"saved_filters": {"audit": {"old": "action=fill"}}}')
    one, other = SettingsFile(path), SettingsFile(path)
    for file in (one, other):
        file.settings.filter_history.setdefault("requests", [])
    one.settings.saved_filters["requests"] = {"mine": "status=502"}
    one.settings.filter_history["requests"].append("status=502")
    one.save()
    path.write_text(path.read_text().replace('"keys": {}', '"keys": {"main.quit": "f6"}'))
    del other.settings.saved_filters["audit"]["old"]
    other.settings.saved_filters["requests"] = {"theirs": "status=429"}
    other.save()
    one.settings.theme = "nord"
    one.save()
    read = SettingsFile(path).settings
    assert read.saved_filters == {"audit": {}, "requests": {"mine": "status=502", "theirs": "status=429"}}
    assert (read.filter_history["requests"], read.theme) == (["status=502"], "nord")
    assert read.keys == {"main.quit": "f6"}
    path.write_text("{")
    assert "can't be read" in one.save()
    assert path.read_text() == "{"


def test_a_broken_file_is_reported_and_left_alone(tmp_path: Path) -> None:
    """A person's slip in the file does not cost them the rest of it."""
    path = tmp_path / "tui.json"
    path.write_text('{"filter": 3}')
    file = SettingsFile(path)
    assert "can't be read" in file.problem
    file.save()
    assert path.read_text() == '{"filter": 3}'


def test_the_config_directory_follows_xdg() -> None:
    """A relative variable is ignored, as the specification asks."""
    assert config_dir({"XDG_CONFIG_HOME": "/etc/xdg", "HOME": "/home/ada"}) == Path("/etc/xdg/relayd")
    assert config_dir({"XDG_CONFIG_HOME": "xdg", "HOME": "/home/ada"}) == Path("/home/ada/.config/relayd")
