"""KVM is believed when a kernel came up under it, and asked once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from undercroft.guests import accel
from undercroft.guests.accel import Accel, choose, kvm_works, probe_kvm

FakePrograms = Callable[..., Path]
KERNEL = Path("/nonexistent/vmlinuz")

# A QEMU that writes to the serial log that it was given.
_LOG = 'for word in "$@"; do case $word in file:*) log=${word#file:};; esac; done; '


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let /dev/kvm open; most machines that run tests have none."""
    monkeypatch.setattr(accel, "kvm_device_fault", lambda: "")
    monkeypatch.setattr(accel, "FIRST_LINE_S", 0.5)
    monkeypatch.setattr(accel, "BOOTED_S", 1.0)


def _qemu(programs: FakePrograms, body: str) -> None:
    programs(**{"qemu-system-x86_64": _LOG + body})


def test_a_kernel_that_looks_for_its_root_came_up(programs: FakePrograms) -> None:
    _qemu(programs, 'echo "Linux version 6; VFS: Unable to mount root fs" > "$log"; exec sleep 9')
    works, reason = probe_kvm(KERNEL)
    assert works
    assert "boots under KVM" in reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("exit 1", "ends at once"),
        ("exec sleep 9", "hangs: no line"),
        ('echo "Linux version 6" > "$log"; exec sleep 9', "does not boot"),
    ],
)
def test_a_guest_that_does_not_come_up(programs: FakePrograms, body: str, reason: str) -> None:
    _qemu(programs, body)
    works, why = probe_kvm(KERNEL)
    assert not works
    assert reason in why


def test_no_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert probe_kvm(KERNEL) == (False, "qemu-system-x86_64 is not installed")


def test_no_device_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "kvm_device_fault", lambda: "there is no /dev/kvm")
    assert kvm_works(tmp_path, KERNEL) == (False, "there is no /dev/kvm")
    assert list(tmp_path.iterdir()) == []


def test_the_answer_is_kept_for_this_boot(
    programs: FakePrograms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def probe(kernel: Path) -> tuple[bool, str]:
        asked.append(kernel)
        return True, "boots"

    monkeypatch.setattr(accel, "probe_kvm", probe)
    assert kvm_works(tmp_path, KERNEL) == kvm_works(tmp_path, KERNEL) == (True, "boots")
    assert len(asked) == 1
    monkeypatch.setattr(accel, "boot_id", lambda: "another boot")
    assert kvm_works(tmp_path, KERNEL) == (True, "boots")
    (tmp_path / "kvm.json").write_text("{broken")
    assert kvm_works(tmp_path, KERNEL) == (True, "boots")
    assert len(asked) == 3


def test_what_was_asked_for_is_not_tried_out(tmp_path: Path) -> None:
    assert choose(Accel.KVM, tmp_path, KERNEL).accel is Accel.KVM
    assert not (tmp_path / "kvm.json").exists()


@pytest.mark.parametrize(("works", "expected"), [(True, Accel.KVM), (False, Accel.TCG)])
def test_the_best_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool, expected: Accel
) -> None:
    monkeypatch.setattr(accel, "probe_kvm", lambda _kernel: (works, "why"))
    choice = choose(None, tmp_path, KERNEL)
    assert (choice.accel, choice.reason) == (expected, "why")
