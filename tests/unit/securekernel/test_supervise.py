"""The supervisor notices a death at once and does what was decided beforehand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from undercroft.base import EnvironmentFault
from undercroft.securekernel import supervise
from undercroft.securekernel.supervise import Death, OnDeath, Supervisor, Word, tell

SAYS = "import os, sys, time; os.write(int(sys.argv[2]), b'{}\\n')"
"""A secure kernel that says one word; its arguments are --ready-fd N."""


def says(word: str, then: str = "time.sleep(60)") -> list[str]:
    return [sys.executable, "-S", "-c", f"{SAYS.format(word)}; {then}"]


ARMED = says("armed")
DIES = [sys.executable, "-S", "-c", "raise SystemExit(3)"]
SILENT = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]


class Recorder:
    def __init__(self, guest: subprocess.Popen[bytes]) -> None:
        self.guest = guest
        self.calls: list[str] = []

    def pause(self) -> None:
        self.calls.append("pause")

    def resume(self) -> None:
        self.calls.append("resume")

    def kill(self) -> None:
        self.calls.append("kill")
        self.guest.kill()


@pytest.fixture
def guest() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "BACKOFF_S", 0.001)


def supervised(
    guest: subprocess.Popen[bytes], command: list[str], policy: OnDeath, kills: int
) -> tuple[Recorder, list[Death], list[float], str]:
    """Kill the secure kernel ``kills`` times while it runs; return what happened."""
    recorder, deaths = Recorder(guest), list[Death]()
    supervisor = Supervisor(command, guest.pid, recorder, policy, on_death=deaths.append)
    killed: list[float] = []

    def killer() -> None:
        last = None
        for _ in range(kills):
            while supervisor.child in (None, last):
                time.sleep(0.002)
            last = supervisor.child
            time.sleep(0.2)
            killed.append(time.monotonic_ns())
            assert last is not None
            os.kill(last, signal.SIGKILL)

    thread = threading.Thread(target=killer)
    thread.start()
    why = supervisor.run(deaths=max(kills, 1))
    thread.join()
    return recorder, deaths, killed, why


def test_a_killed_secure_kernel_pauses_the_guest_until_the_next_is_armed(
    guest: subprocess.Popen[bytes],
) -> None:
    recorder, deaths, killed, _ = supervised(guest, ARMED, OnDeath.PAUSE, 3)
    assert recorder.calls == ["pause", "resume", "pause", "resume", "pause"]
    assert [death.status for death in deaths] == [-signal.SIGKILL] * 3
    late = [death.noticed - at for death, at in zip(deaths, killed, strict=True)]
    assert max(late) < 1_000_000_000
    assert guest.poll() is None


def test_a_secure_kernel_that_cannot_prove_anything_leaves_the_guest_paused(
    guest: subprocess.Popen[bytes],
) -> None:
    recorder = Recorder(guest)
    supervisor = Supervisor(DIES, guest.pid, recorder, OnDeath.PAUSE)
    assert supervisor.run(deaths=3) == "too many deaths"
    assert recorder.calls == ["pause"]


@pytest.mark.parametrize("word", ["booting", "replaced"])
def test_a_guest_that_has_to_boot_is_not_held(guest: subprocess.Popen[bytes], word: str) -> None:
    recorder, deaths = Recorder(guest), list[Death]()
    command = says(word, "time.sleep(0.01)")
    supervisor = Supervisor(command, guest.pid, recorder, OnDeath.PAUSE, on_death=deaths.append)
    assert supervisor.run(deaths=2) == "too many deaths"
    assert recorder.calls == []
    assert [death.told for death in deaths] == [Word(word)] * 2
    assert supervisor.armed == 0


def test_a_guest_in_which_something_is_wrong_stays_paused(
    guest: subprocess.Popen[bytes],
) -> None:
    recorder, _, _, _ = supervised(guest, says("failed"), OnDeath.PAUSE, 2)
    assert recorder.calls == ["pause"]


def test_what_is_told_to_nobody_is_lost_and_no_error() -> None:
    tell(None, Word.ARMED)
    words, pen = os.pipe()
    tell(pen, Word.ARMED)
    assert os.read(words, 100) == b"armed\n"
    os.close(words)
    tell(pen, Word.ARMED)
    os.close(pen)


def test_one_that_never_says_that_it_is_armed_is_ended(guest: subprocess.Popen[bytes]) -> None:
    recorder, deaths = Recorder(guest), list[Death]()
    supervisor = Supervisor(
        SILENT, guest.pid, recorder, OnDeath.LAPSE, on_death=deaths.append, proof_timeout=0.2
    )
    assert supervisor.run(deaths=1) == "too many deaths"
    assert deaths[0].status == -signal.SIGKILL
    assert recorder.calls == []


def test_by_policy_the_guest_is_ended(guest: subprocess.Popen[bytes]) -> None:
    recorder, _, _, why = supervised(guest, ARMED, OnDeath.KILL, 1)
    assert recorder.calls == ["kill"]
    assert why == "the guest was ended, for its secure kernel died"


def test_supervision_ends_with_the_guest(guest: subprocess.Popen[bytes]) -> None:
    supervisor = Supervisor(ARMED, guest.pid, Recorder(guest), OnDeath.PAUSE)
    threading.Timer(0.3, guest.kill).start()
    assert supervisor.run() == "the guest ended"


def test_a_guest_that_is_not_there_is_an_error(guest: subprocess.Popen[bytes]) -> None:
    guest.kill()
    guest.wait()
    with pytest.raises(EnvironmentFault):
        Supervisor(ARMED, guest.pid, Recorder(guest), OnDeath.PAUSE)
