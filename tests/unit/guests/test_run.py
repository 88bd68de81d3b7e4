"""Starting and ending guests, with programs that only look like QEMU and swtpm."""

from __future__ import annotations

import datetime as dt
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from undercroft.base import EnvironmentFault, FormatError
from undercroft.guests import micro, run
from undercroft.guests.accel import Accel
from undercroft.guests.manifest import GuestBuild
from undercroft.guests.processes import identify, wait_gone
from undercroft.guests.run import Guest, RunOptions, folder_of, guests, start

FakePrograms = Callable[..., Path]
NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
OPTIONS = RunOptions(accel=Accel.TCG, memory_mb=256, interposer=False)


@pytest.fixture
def launch(
    machine: FakePrograms, build: GuestBuild, tmp_path: Path
) -> Iterator[Callable[..., Guest]]:
    """A function that starts a guest; all are stopped at the end."""
    started: list[Guest] = []

    def go(name: str = "g", **changes: Any) -> Guest:
        guest = start(build, tmp_path / "home", name, replace(OPTIONS, **changes), now=NOW)
        started.append(guest)
        return guest

    (tmp_path / "home").mkdir()
    yield go
    for guest in started:
        guest.stop()


def test_a_guest_is_started_and_ended(launch: Callable[..., Guest], tmp_path: Path) -> None:
    guest = launch()
    info = guest.info
    assert guest.is_alive()
    assert info.folder == tmp_path / "home" / "guests" / "g"
    assert info.started == "2026-01-02T03:04:05+00:00"
    assert info.folder.stat().st_mode & 0o777 == 0o700
    assert info.ram.stat().st_size == 256 << 20
    assert Guest.load(tmp_path / "home", "g").info == info
    guest.stop()
    assert not any(process.is_alive() for process in info.processes.values())
    assert not info.ram.exists()
    assert not info.vtpm.exists()
    guest.remove()
    assert not info.folder.exists()


def test_a_running_guest_is_not_removed(launch: Callable[..., Guest]) -> None:
    guest = launch()
    with pytest.raises(EnvironmentFault, match="still runs"):
        guest.remove()
    assert guest.info.folder.exists()


def test_the_command_line_of_the_guest(launch: Callable[..., Guest]) -> None:
    guest = launch(extra_command_line="nokaslr", cpu="qemu64", cpus=1)
    assert guest.info.command_line == "quiet nokaslr"
    assert "qemu64" in guest.info.arguments


def test_memory_is_in_the_folder_where_shared_memory_is_full(
    launch: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_SHM", Path("/nonexistent"))
    guest = launch()
    assert guest.info.ram == guest.info.folder / "ram"


def test_a_guest_is_not_started_twice(launch: Callable[..., Guest]) -> None:
    guest = launch()
    with pytest.raises(EnvironmentFault, match="runs already"):
        launch()
    assert guest.is_alive()


def test_what_a_dead_guest_left_is_cleared(launch: Callable[..., Guest]) -> None:
    first = launch()
    first.info.qemu.send(signal.SIGKILL)
    assert wait_gone(first.info.qemu, 5)
    second = launch()
    assert not first.info.processes["swtpm"].is_alive()
    assert second.is_alive()
    assert second.info.ram.exists()


def test_the_tpm_is_made_once(launch: Callable[..., Guest]) -> None:
    guest = launch()
    state = guest.info.folder / "tpm" / "tpm2-00.permall"
    state.write_text("keys")
    guest.stop()
    launch()
    assert state.read_text() == "keys"


def test_ready(launch: Callable[..., Guest]) -> None:
    guest = launch()
    guest.info.serial_log.write_text(f"noise\r\n{micro.READY_MARKER} 1.0\r\n")
    assert guest.wait_ready(5) < 5


def test_not_ready_in_time(launch: Callable[..., Guest]) -> None:
    guest = launch()
    guest.info.serial_log.write_text("Kernel panic - not syncing")
    with pytest.raises(EnvironmentFault, match="not ready") as caught:
        guest.wait_ready(0.1)
    assert "Kernel panic" in caught.value.got


def test_a_guest_that_dies_early(launch: Callable[..., Guest], machine: FakePrograms) -> None:
    machine(**{"qemu-system-x86_64": "echo 'cannot open pflash' >&2; sleep 0.3; exit 1"})
    guest = launch()
    with pytest.raises(EnvironmentFault, match="ended while it started") as caught:
        guest.wait_ready(10)
    assert "pflash" in caught.value.got
    with pytest.raises(EnvironmentFault, match="ended while it was asked"):
        guest.console("true")


def test_without_qemu(
    launch: Callable[..., Guest], machine: FakePrograms, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine() / "qemu-system-x86_64").unlink()
    monkeypatch.setenv("PATH", str(machine()))
    with pytest.raises(EnvironmentFault, match="qemu-system-x86_64 is not installed"):
        launch()


def test_a_vtpm_that_cannot_be_made(launch: Callable[..., Guest], machine: FakePrograms) -> None:
    machine(swtpm_setup="echo 'no space left' >&2; exit 1")
    with pytest.raises(EnvironmentFault, match="could not be made") as caught:
        launch()
    assert "no space left" in caught.value.got


def test_a_vtpm_that_does_not_listen(launch: Callable[..., Guest], machine: FakePrograms) -> None:
    machine(swtpm="echo 'bad state' >&2; sleep 0.2; exit 1")
    with pytest.raises(EnvironmentFault, match=r"does not listen|did not start") as caught:
        launch()
    assert "bad state" in caught.value.got


def test_a_qemu_that_does_not_start_leaves_nothing(
    launch: Callable[..., Guest], machine: FakePrograms, tmp_path: Path
) -> None:
    machine(**{"qemu-system-x86_64": "exit 1"})
    try:
        guest = launch()
    except EnvironmentFault:
        pass
    else:
        guest.stop()  # it was seen before it ended
    folder = tmp_path / "home" / "guests" / "g"
    swtpm = int((folder / "swtpm.pid").read_text())
    assert identify(swtpm) is None
    assert not list(folder.glob("ram"))


@pytest.mark.parametrize("name", ["", "../x", "A", "x" * 33, "-x", "a/b", "a b"])
def test_strange_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(EnvironmentFault, match="not a name"):
        folder_of(tmp_path, name)


def test_a_home_too_long_for_sockets(
    machine: FakePrograms, build: GuestBuild, tmp_path: Path
) -> None:
    with pytest.raises(EnvironmentFault, match="too long"):
        start(build, tmp_path / ("x" * 100), "g", OPTIONS, now=NOW)


def test_no_such_guest(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="there is no guest g"):
        Guest.load(tmp_path, "g")


def test_a_broken_guest_does_not_hide_the_others(
    launch: Callable[..., Guest], tmp_path: Path
) -> None:
    launch()
    broken = tmp_path / "home" / "guests" / "broken"
    broken.mkdir()
    (broken / "guest.json").write_text("{")
    found = list(guests(tmp_path / "home"))
    assert [type(guest) for guest in found] == [EnvironmentFault, Guest]
    with pytest.raises(FormatError):
        Guest.load(tmp_path / "home", "broken")
    assert launch("broken").is_alive()  # starting it anew mends it
