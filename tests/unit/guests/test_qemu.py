"""QEMU's command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from undercroft.guests.accel import Accel
from undercroft.guests.qemu import MachineSpec, arguments, default_cpu

SPEC = MachineSpec(
    name="g", folder=Path("/h/guests/g"), accel=Accel.TCG, cpu="max,la57=off", cpus=2,
    memory_mb=512, ram=Path("/dev/shm/ram"), kernel=Path("/b/vmlinuz"), initrd=Path("/b/initrd"),
    command_line="console=ttyS0 a,b", firmware_code=Path("/b/CODE.fd"),
    firmware_vars=Path("/h/guests/g/VARS.fd"), vtpm=Path("/h/guests/g/vtpm.sock"),
)  # fmt: skip


def _values(spec: MachineSpec, option: str) -> list[str]:
    line = arguments(spec)
    return [line[i + 1] for i, word in enumerate(line) if word == option]


def test_memory_is_shared() -> None:
    assert _values(SPEC, "-object") == [
        "memory-backend-file,id=ram,size=512M,mem-path=/dev/shm/ram,share=on"
    ]
    assert "memory-backend=ram" in _values(SPEC, "-machine")[0]


def test_nothing_is_taken_from_the_user_s_configuration() -> None:
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(arguments(SPEC))


def test_firmware_code_cannot_be_written() -> None:
    code, variables = _values(SPEC, "-drive")
    assert "readonly=on,file=/b/CODE.fd" in code
    assert "readonly" not in variables


def test_two_control_sockets() -> None:
    assert _values(SPEC, "-qmp") == [
        "unix:/h/guests/g/qmp.sock,server=on,wait=off",
        "unix:/h/guests/g/qmp-run.sock,server=on,wait=off",
    ]


@pytest.mark.parametrize(
    ("accel", "cpus", "expected"),
    [(Accel.KVM, 2, "kvm"), (Accel.TCG, 1, "tcg"), (Accel.TCG, 2, "tcg,thread=multi")],
)
def test_accelerators(accel: Accel, cpus: int, expected: str) -> None:
    assert _values(replace(SPEC, accel=accel, cpus=cpus), "-accel") == [expected]
    assert default_cpu(accel) == ("host" if accel is Accel.KVM else "max")


def test_a_comma_in_a_path_stays_in_the_path() -> None:
    spec = replace(SPEC, ram=Path("/a,b/ram"), vtpm=Path("/c,d"))
    assert "mem-path=/a,,b/ram,share=on" in _values(spec, "-object")[0]
    assert "socket,id=vtpm,path=/c,,d" in _values(spec, "-chardev")
    assert _values(spec, "-append") == ["console=ttyS0 a,b"]  # not an option list
