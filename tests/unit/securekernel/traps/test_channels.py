"""Ways around the traps are found in a /proc written for the test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from undercroft.base import EnvironmentFault
from undercroft.securekernel.guest import GuestGone
from undercroft.securekernel.traps.channels import uncovered_channels

RAM = "7f0000000000-7f0020000000 rw-s 00000000 00:1a 77   /dev/shm/guest.ram"
HOST = 0x7F0000100000


class Proc:
    def __init__(self, root: Path) -> None:
        self.root = root

    def process(self, pid: int, *maps: str) -> Path:
        folder = self.root / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "fdinfo").mkdir()
        (folder / "maps").write_text("".join(row + "\n" for row in maps))
        return folder


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def kinds(proc: Proc, pid: int = 100) -> list[tuple[str, int]]:
    return [(c.kind, c.pid) for c in uncovered_channels(pid, HOST, proc=proc.root)]


def test_one_mapping_in_the_hypervisor_alone_is_covered(proc: Proc) -> None:
    proc.process(100, RAM, "7f1000000000-7f1000001000 rw-p 00000000 00:00 0")
    proc.process(200, "400000-401000 r-xp 00000000 08:01 5 /bin/sh")
    assert kinds(proc) == []


def test_the_pieces_of_one_mapping_are_not_a_second_one(proc: Proc) -> None:
    proc.process(
        100,
        "7f0000000000-7f0000100000 rw-s 00000000 00:1a 77 /dev/shm/guest.ram",
        "7f0000100000-7f0000200000 rw-s 00100000 00:1a 77 /dev/shm/guest.ram",
        "7f0000200000-7f0020000000 rw-s 00200000 00:1a 77 /dev/shm/guest.ram",
    )
    assert kinds(proc) == []


def test_a_second_mapping_in_the_hypervisor_is_found(proc: Proc) -> None:
    proc.process(100, RAM, "7f2000000000-7f2020000000 rw-s 00000000 00:1a 77 /dev/shm/guest.ram")
    assert kinds(proc) == [("second-mapping", 100)]


def test_a_writable_mapping_elsewhere_is_found_and_a_read_only_one_is_not(proc: Proc) -> None:
    proc.process(100, RAM)
    proc.process(200, "6f0000000000-6f0020000000 r--s 00000000 00:1a 77 /dev/shm/guest.ram")
    proc.process(300, "5f0000000000-5f0020000000 rw-s 00000000 00:1a 77 /dev/shm/guest.ram")
    assert kinds(proc) == [("foreign-mapping", 300)]


def test_our_own_process_is_not_reported(proc: Proc) -> None:
    proc.process(100, RAM)
    proc.process(os.getpid(), RAM)
    assert kinds(proc) == []


def test_private_ram_has_no_other_mapping(proc: Proc) -> None:
    proc.process(100, "7f0000000000-7f0020000000 rw-p 00000000 00:00 0")
    proc.process(300, "5f0000000000-5f0020000000 rw-p 00000000 00:00 0")
    assert kinds(proc) == []


@pytest.mark.parametrize(("flags", "found"), [("0100002", True), ("0100000", False)])
def test_a_descriptor_open_for_writing_is_found(proc: Proc, flags: str, found: bool) -> None:
    ram = proc.root / "ram"
    ram.write_bytes(b"")
    status = ram.stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    proc.process(100, f"7f0000000000-7f0020000000 rw-s 00000000 {device} {status.st_ino} {ram}")
    holder = proc.process(300)
    (holder / "fd" / "7").symlink_to(ram)
    (holder / "fdinfo" / "7").write_text(f"pos:\t0\nflags:\t{flags}\n")
    (holder / "fd" / "8").symlink_to("/nonexistent")
    (holder / "fd" / "9").symlink_to(ram)
    (holder / "fdinfo" / "9").write_text("pos:\t0\n")
    assert kinds(proc) == ([("foreign-descriptor", 300)] if found else [])


def test_vfio_is_named(proc: Proc) -> None:
    folder = proc.process(100, RAM)
    (folder / "fd" / "20").symlink_to("/dev/vfio/12")
    (folder / "fd" / "21").symlink_to("anon_inode:[vfio-device]")
    (folder / "fd" / "22").write_text("not a link")
    assert kinds(proc) == [("vfio", 100), ("vfio", 100)]


def test_what_is_hidden_is_reported_not_assumed(
    proc: Proc, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc.process(100, RAM)
    hidden = proc.process(300) / "maps"
    read_text = Path.read_text

    def refusing(self: Path, **kwargs: str) -> str:
        if self == hidden:
            raise PermissionError
        return read_text(self, **kwargs)

    monkeypatch.setattr(Path, "read_text", refusing)
    assert kinds(proc) == [("hidden-process", 300)]
    with pytest.raises(EnvironmentFault, match="may not read"):
        uncovered_channels(300, HOST, proc=proc.root)


def test_a_process_without_the_ram_is_gone(proc: Proc) -> None:
    proc.process(100, "7f1000000000-7f1000001000 rw-p 00000000 00:00 0")
    with pytest.raises(GuestGone):
        uncovered_channels(100, HOST, proc=proc.root)
    with pytest.raises(GuestGone):
        uncovered_channels(999, HOST, proc=proc.root)
