"""The firmware's run alone: the same machine without a kernel, and nothing believed unchecked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from undercroft.base import EnvironmentFault
from undercroft.guests import firmware
from undercroft.guests.accel import Accel
from undercroft.guests.qemu import MachineSpec, arguments
from undercroft.guests.references import memory_below_4g

PACKAGED, DXE = bytes(4096), b"dxe" * 100
FILLED_IN = bytes(4000) + b"\1" * 20 + bytes(76)


@pytest.fixture
def machine(tmp_path: Path) -> MachineSpec:
    files = {}
    for name in ("kernel", "initrd", "code", "vars"):
        files[name] = tmp_path / name
        files[name].write_bytes(name.encode())
    return MachineSpec(
        name="m", folder=tmp_path, accel=Accel.TCG, cpu="max", cpus=2, memory_mb=512,
        ram=tmp_path / "ram", kernel=files["kernel"], initrd=files["initrd"],
        command_line="console=ttyS0 -kernel", firmware_code=files["code"],
        firmware_vars=files["vars"], vtpm=tmp_path / "vtpm.sock",
    )  # fmt: skip


@pytest.fixture(autouse=True)
def volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware, "ovmf_volumes", lambda _code: (PACKAGED, DXE))


def learns(monkeypatch: pytest.MonkeyPatch, *results: bytes) -> list[bytes]:
    left = list(results)
    monkeypatch.setattr(firmware, "_learn", lambda *_: left.pop(0))
    return left


def test_what_was_learned_is_kept_for_this_firmware_and_shape(
    machine: MachineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = learns(monkeypatch, FILLED_IN, PACKAGED)
    run = firmware.firmware_run(machine, tmp_path)
    assert (run.pei, run.dxe, run.differing) == (FILLED_IN, DXE, 20)
    assert firmware.firmware_run(machine, tmp_path) == run
    assert len(left) == 1
    machine.firmware_code.write_bytes(b"another build")
    assert firmware.firmware_run(machine, tmp_path).differing == 0
    assert not left


def test_a_kept_volume_of_another_size_is_learned_again(
    machine: MachineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learns(monkeypatch, FILLED_IN, FILLED_IN)
    firmware.firmware_run(machine, tmp_path)
    (kept,) = (tmp_path / "firmware").iterdir()
    kept.write_bytes(b"cut")
    assert firmware.firmware_run(machine, tmp_path).pei == FILLED_IN


def test_a_volume_that_is_not_the_packaged_one_is_refused(
    machine: MachineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learns(monkeypatch, b"\1" * 257 + bytes(len(PACKAGED) - 257))
    with pytest.raises(EnvironmentFault, match="not the packaged one") as caught:
        firmware.firmware_run(machine, tmp_path)
    assert caught.value.got == "257 bytes differ"


class Client:
    """A connection to a vTPM that is never asked anything."""

    def __init__(self, control: Path) -> None:
        self.control = control

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None: ...


def run_alone(
    machine: MachineSpec, monkeypatch: pytest.MonkeyPatch, pcr0: list[bytes], ram: bytes
) -> bytes:
    class Process:
        def is_alive(self) -> bool:
            return bool(pcr0)

    @contextmanager
    def bare(spec: MachineSpec, _home: Path) -> Iterator[tuple[MachineSpec, Path, Process]]:
        machine.ram.write_bytes(bytes(firmware.PEI_VOLUME_ADDRESS) + ram)
        yield spec, Path("control"), Process()

    monkeypatch.setattr(firmware, "_bare_machine", bare)
    monkeypatch.setattr(firmware, "VtpmClient", Client)
    monkeypatch.setattr(firmware, "_pcr0", lambda _client: pcr0.pop(0))
    return firmware.firmware_run(machine, machine.folder).pei


def test_ram_is_believed_once_pcr_0_replays_with_it(
    machine: MachineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = firmware._replayed(FILLED_IN, DXE)
    assert run_alone(machine, monkeypatch, [b"", bytes(32), good], FILLED_IN) == FILLED_IN


def test_ram_that_pcr_0_does_not_vouch_for_is_refused(
    machine: MachineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = firmware._replayed(PACKAGED, DXE)
    with pytest.raises(EnvironmentFault, match="did not measure itself"):
        run_alone(machine, monkeypatch, [other, other], FILLED_IN)


def test_the_bare_machine_is_the_same_but_for_the_kernel(machine: MachineSpec) -> None:
    full = arguments(machine)
    bare = firmware._without_kernel(full)
    assert [a for a in full if a not in bare] == [
        "-kernel", str(machine.kernel), "-initrd", str(machine.initrd), "-append",
        machine.command_line,
    ]  # fmt: skip


@pytest.mark.parametrize(("memory_mb", "low_mb"), [(512, 512), (2815, 2815), (2816, 2048)])
def test_q35_splits_its_memory_at_2816_mib(memory_mb: int, low_mb: int) -> None:
    assert memory_below_4g(memory_mb) == low_mb << 20
