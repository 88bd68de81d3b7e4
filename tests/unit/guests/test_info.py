"""guest.json: what is written is read, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from undercroft.base import FormatError
from undercroft.guests.info import GuestInfo, encode_info, load_info, parse_info, save_info
from undercroft.guests.processes import ProcessId


def sample(folder: Path, **changes: Any) -> GuestInfo:
    """A guest that never ran."""
    fields: dict[str, Any] = {
        "name": "g", "folder": folder, "build": Path("/b/build.json"), "kernel_release": "6.1",
        "accel": "tcg", "cpu": "max", "cpus": 2, "memory_mb": 512, "ram": Path("/dev/shm/x"),
        "command_line": "quiet", "started": "2026-01-02T03:04:05+00:00",
        "qmp": folder / "qmp.sock", "run_qmp": folder / "qmp-run.sock",
        "serial": folder / "serial.sock", "serial_log": folder / "serial.log",
        "vtpm": folder / "swtpm.sock", "vtpm_control": None,
        "processes": {n: ProcessId(2**22 + 5, 1, "b") for n in ("qemu", "swtpm")},
        "arguments": ("qemu-system-x86_64", "-m", "512M"),
    }  # fmt: skip
    return GuestInfo(**{**fields, **changes})


@pytest.mark.parametrize("inside", [True, False])
def test_a_round_trip(tmp_path: Path, inside: bool) -> None:
    info = sample(
        tmp_path,
        ram=tmp_path / "ram" if inside else Path("/dev/shm/x"),
        vtpm_control=tmp_path / "vtpm-ctl.sock" if inside else None,
    )
    save_info(info)
    assert load_info(tmp_path) == info
    data = encode_info(info)
    assert encode_info(parse_info(data, tmp_path)) == data
    assert info.qemu.pid == 2**22 + 5
    assert [p.name for p in tmp_path.iterdir()] == ["guest.json"]


def test_the_folder_may_move(tmp_path: Path) -> None:
    data = encode_info(sample(tmp_path / "one"))
    assert parse_info(data, tmp_path / "two").qmp == tmp_path / "two" / "qmp.sock"


@pytest.mark.parametrize(
    "change",
    [
        {"format": "undercroft.guest/2"},
        {"extra": 1},
        {"cpus": "2"},
        {"memory_mb": None},
        {"processes": {}},
        {"processes": {"qemu": {"pid": 1}}},
        {"arguments": "qemu"},
    ],
)
def test_anything_else_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    document = json.loads(encode_info(sample(tmp_path)))
    with pytest.raises(FormatError):
        parse_info(json.dumps({**document, **change}).encode(), tmp_path)


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    data = encode_info(sample(tmp_path))
    with pytest.raises(FormatError):
        parse_info(data[: len(data) // 2], tmp_path)
    with pytest.raises(FileNotFoundError):
        load_info(tmp_path)
