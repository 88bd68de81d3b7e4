"""Programs that outlive us, with real processes."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from undercroft.base import EnvironmentFault
from undercroft.guests.processes import (
    ProcessId,
    end,
    identify,
    spawn,
    tail,
    wait_gone,
)


@pytest.fixture
def sleeper(tmp_path: Path) -> ProcessId:
    return spawn(["sleep", "60"], pid_file=tmp_path / "pid", log=tmp_path / "log")


def test_a_program_runs_on_its_own_and_is_ended(sleeper: ProcessId, tmp_path: Path) -> None:
    assert int((tmp_path / "pid").read_text()) == sleeper.pid
    assert sleeper.is_alive()
    assert os.getsid(sleeper.pid) == sleeper.pid
    assert identify(sleeper.pid) == sleeper
    end(sleeper)
    assert not sleeper.is_alive()
    end(sleeper)  # gone already is fine


def test_another_process_with_that_pid_is_not_it(sleeper: ProcessId) -> None:
    earlier = dataclasses.replace(sleeper, start_ticks=sleeper.start_ticks - 1)
    other_boot = dataclasses.replace(sleeper, boot_id="another")
    for stranger in (earlier, other_boot):
        assert not stranger.is_alive()
        end(stranger)
    assert sleeper.is_alive()
    end(sleeper)


def test_a_zombie_is_dead() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert identify(process.pid) is None


def test_no_process() -> None:
    assert identify(2**22 + 1) is None


def test_one_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = (
        "import signal, time, pathlib; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    )
    process = spawn([sys.executable, "-c", code], pid_file=tmp_path / "pid", log=tmp_path / "log")
    while not ready.exists():
        assert process.is_alive()
    assert not wait_gone(process, 0.05)
    end(process, patience_s=0.2)
    assert not process.is_alive()


@pytest.mark.parametrize("command", [["/nonexistent/program"], ["sh", "-c", "echo reason; exit 3"]])
def test_a_program_that_ends_at_once(tmp_path: Path, command: list[str]) -> None:
    try:
        process = spawn(command, pid_file=tmp_path / "pid", log=tmp_path / "log")
    except EnvironmentFault as fault:
        assert fault.where == str(tmp_path / "log")  # noqa: PT017 - either is right
    else:
        assert wait_gone(process, 5)
    assert tail(tmp_path / "log")


def test_without_setsid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(EnvironmentFault, match="did not start"):
        spawn(["sleep", "1"], pid_file=tmp_path / "pid", log=tmp_path / "log")


def test_signals_go_nowhere_else(sleeper: ProcessId) -> None:
    dataclasses.replace(sleeper, start_ticks=0).send(signal.SIGKILL)
    assert sleeper.is_alive()
    end(sleeper)


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log) == ""
    log.write_bytes(b"one\r\ntwo\r\n\xff\n\n")
    assert tail(log, 2) == "two\n�"
