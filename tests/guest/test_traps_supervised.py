"""A secure kernel that dies, again and again, beside a real guest."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from undercroft.base import VerificationError
from undercroft.formats.evidence.interval import epoch_digest, parse_chain, parse_epoch
from undercroft.guests.run import Guest, RunOptions
from undercroft.securekernel.hypervisor.qmp import QmpClient
from undercroft.securekernel.traps.guard import CHANNEL
from undercroft.verify.interval import IntervalDemand, verify_chain, verify_interval

pytestmark = [pytest.mark.guest, pytest.mark.slow]

KILLS = int(os.environ.get("UNDERCROFT_KILLS", "50"))
STEADY = 0.1
"""The part of the deaths that come only when everything is armed."""
StartGuest = Callable[..., Guest]


@pytest.fixture(scope="module")
def guest(start_guest: StartGuest) -> Guest:
    return start_guest(RunOptions(one_thread=True))


@contextmanager
def watching(guest: Guest, home: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`undercroft watch`, which prints one JSON object a line."""
    # fmt: off
    command = [
        sys.executable, "-m", "undercroft.cli", "watch", f"qemu:{guest.info.name}", "--json",
        *options,
    ]
    # fmt: on
    environment = {**os.environ, "UNDERCROFT_HOME": str(home)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()
            for child in children(process.pid):
                os.kill(child, signal.SIGKILL)


def children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def until(condition: Callable[[], bool], limit: float = 120) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def next_child(process: subprocess.Popen[str], last: int) -> int:
    """Return the secure kernel that was started after ``last``."""
    found: list[int] = []

    def started() -> bool:
        found[:] = [child for child in children(process.pid) if child != last]
        return bool(found)

    until(started)
    return found[0]


def is_running(guest: Guest) -> bool:
    with QmpClient(guest.info.qmp) as session:
        status = session.execute("query-status")
    return isinstance(status, dict) and status["running"] is True


def lines(process: subprocess.Popen[str]) -> Iterator[dict[str, object]]:
    assert process.stdout is not None
    return (json.loads(line) for line in process.stdout)


def test_the_guest_stands_still_until_everything_is_proven_again(
    guest: Guest, guest_home: Path, tmp_path: Path
) -> None:
    with watching(guest, guest_home, "--traps-log", str(tmp_path / "log")) as process:
        first = next(line for line in lines(process) if line.get("id") == "kernel.text")
        assert first["outcome"] == "pass"
        (child,) = children(process.pid)
        os.kill(child, signal.SIGKILL)
        death = next(line for line in lines(process) if "died" in line)
        assert death == {"secure_kernel": child, "died": -9, "because": "unknown"}
        again = next(line for line in lines(process) if line.get("id") == "kernel.text")
        assert again["outcome"] == "pass"
        assert guest.console("echo alive", timeout_s=60) == "alive"


def test_evidence_says_for_how_long_nothing_changed(
    guest: Guest, guest_home: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "UNDERCROFT_HOME": str(guest_home)}
    # fmt: off
    command = [
        sys.executable, "-m", "undercroft.cli", "evidence", "collect", f"qemu:{guest.info.name}",
        "--traps", "2", "-o", str(tmp_path / "case"), "--json",
    ]
    # fmt: on
    collected = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False
    )
    assert collected.stdout, collected.stderr
    again = subprocess.run(
        [sys.executable, "-m", "undercroft.cli", "verify", str(tmp_path / "case"), "--json"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    for document in (json.loads(collected.stdout), json.loads(again.stdout)):
        facts = {each["id"]: each for each in document["findings"]}
        unchanged = facts["kernel.unchanged"]
        if unchanged["outcome"] == "unknown":  # what this machine does not let us look into
            assert unchanged["details"]["check"] == "interval.uncovered"
        else:
            assert unchanged["outcome"] == "pass"
        assert unchanged["details"]["t1-ns"] - unchanged["details"]["t0-ns"] > 2_000_000_000
        assert facts["launch.epochs"]["outcome"] == "pass"


def test_fifty_deaths_at_random_moments(guest: Guest, guest_home: Path, tmp_path: Path) -> None:
    """The guest never hangs, and each hole is in the evidence."""
    draw = random.Random(6)
    log = tmp_path / "log"
    toggling = (
        "while :; do for v in 1 0; do echo $v > /proc/sys/kernel/sched_schedstats; done; done"
    )
    worker = guest.console(f"({toggling}) >/dev/null 2>&1 & echo $!")
    with watching(guest, guest_home, "--traps-log", str(log), "--epoch", "1") as process:
        last = 0
        for number in range(KILLS):
            last = next_child(process, last)
            if number in (0, KILLS // 2) or draw.random() < STEADY:
                next(line for line in lines(process) if line.get("id") == "kernel.traps")
                time.sleep(1.5)  # an epoch ends
            else:
                time.sleep(draw.uniform(0, 4))
            with contextlib.suppress(ProcessLookupError):  # it had ended by itself
                os.kill(last, signal.SIGKILL)
        next_child(process, last)
        next(line for line in lines(process) if line.get("id") == "kernel.traps")
        time.sleep(1.5)
        assert is_running(guest)
        assert guest.console(f"kill {worker}; echo alive", timeout_s=60) == "alive"
    chain = parse_chain(log.read_bytes())
    sessions = [
        list(part) for _, part in itertools.groupby(chain, lambda each: parse_epoch(each).session)
    ]
    assert len(sessions) >= 3
    for mine in sessions:
        verify_chain(mine, epoch_digest(mine[-1]))
    first, last_epoch = parse_epoch(sessions[0][0]), parse_epoch(sessions[-1][-1])
    for claimed in (chain, sessions[-1]):
        with pytest.raises(VerificationError) as caught:
            verify_interval(
                claimed,
                first.t0,
                last_epoch.t1,
                head=epoch_digest(claimed[-1]),
                demand=IntervalDemand(("kernel.text",), (CHANNEL,)),
            )
        assert caught.value.check in ("interval.chain", "interval.span")
