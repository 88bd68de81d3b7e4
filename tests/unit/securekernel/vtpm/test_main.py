from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from undercroft.base import EnvironmentFault
from undercroft.securekernel import confine, landlock
from undercroft.securekernel.vtpm import VtpmClient, control
from undercroft.securekernel.vtpm.__main__ import _confine, main
from undercroft.securekernel.vtpm.control import Control
from undercroft.securekernel.vtpm.multiplexer import Multiplexer
from undercroft.securekernel.vtpm.upstream import Upstream
from undercroft.testing.vtpm import HypervisorSide, wait_for

if TYPE_CHECKING:
    from tests.unit.securekernel.vtpm.conftest import FakeSwtpm


def arguments(folder: Path, *more: str) -> list[str]:
    return [
        "--upstream", str(folder / "swtpm"), "--listen", str(folder / "qemu"),
        "--control", str(folder / "kernel"), "--pidfile", str(folder / "pid"), *more,
    ]  # fmt: skip


def spawn(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "undercroft.securekernel.vtpm", *arguments(folder, *more)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(folder / "pid")
    return process


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=10)
    return process.returncode, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_takes_its_sockets_away(
    swtpm: FakeSwtpm, tmp_path: Path, number: signal.Signals
) -> None:
    process = spawn(tmp_path)
    assert (tmp_path / "pid").read_text() == f"{process.pid}\n"
    process.send_signal(number)
    assert finish(process) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["swtpm"]


def test_with_terminate_it_goes_with_the_hypervisor_and_takes_swtpm_along(
    swtpm: FakeSwtpm, tmp_path: Path
) -> None:
    process = spawn(tmp_path, "--terminate")
    HypervisorSide(tmp_path / "qemu").close()
    assert finish(process) == (0, "")
    assert swtpm.controls[-1] == control.request(Control.SHUTDOWN)


def test_it_is_confined_as_far_as_the_kernel_can(swtpm: FakeSwtpm, tmp_path: Path) -> None:
    process = spawn(tmp_path)
    with VtpmClient(tmp_path / "kernel") as client:
        status = client.status()
    rows = Path(f"/proc/{process.pid}/status").read_text()
    process.terminate()
    assert finish(process) == (0, "")
    assert "seccomp" in status["confined_by"]
    assert ("landlock" in status["confined_by"]) == (landlock.version() > 0)
    assert "Seccomp:\t2" in rows
    assert "NoNewPrivs:\t1" in rows


def test_what_could_not_be_given_up_is_noted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise EnvironmentFault("the kernel refuses")

    monkeypatch.setattr(landlock, "restrict", refuse)
    monkeypatch.setattr(confine, "confine", refuse)
    multiplexer = Multiplexer(Upstream(tmp_path / "swtpm"))
    _confine(
        multiplexer, argparse.Namespace(listen=tmp_path, control=None, pidfile=None, keys=None)
    )
    assert multiplexer.confined_by == []
    events = str(multiplexer.status()["events"])
    assert "not confined by landlock" in events
    assert "not confined by seccomp" in events


def test_what_is_to_be_measured_is_read_at_the_start(swtpm: FakeSwtpm, tmp_path: Path) -> None:
    (tmp_path / "manifest").write_text("manifest")
    (tmp_path / "vm").write_text("vm")
    options = ["--manifest", f"{tmp_path}/manifest", "--identity", f"vm={tmp_path}/vm"]
    process = spawn(tmp_path, *options)
    with VtpmClient(tmp_path / "kernel") as client:
        assert client.status()["launch"] == 0
    process.terminate()
    assert finish(process) == (0, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--manifest", "/nowhere/manifest"], "cannot be read"),
        (["--manifest", "large"], "too large"),
        (["--manifest", "small", "--identity", "vm"], "NAME=FILE"),
    ],
)
def test_what_cannot_be_measured_is_an_error(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("large").write_bytes(bytes(65537))
    Path("small").write_bytes(b"")
    assert main(arguments(tmp_path, *options)) == 1
    assert message in capsys.readouterr().err


def test_no_swtpm_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path)) == 1
    assert "cannot connect to swtpm" in capsys.readouterr().err


def test_it_starts_fast(swtpm: FakeSwtpm, tmp_path: Path) -> None:
    start = time.monotonic()
    process = spawn(tmp_path)
    took = time.monotonic() - start
    process.terminate()
    finish(process)
    assert took < 5  # 0.1 s on an idle machine
