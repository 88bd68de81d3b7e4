"""Keeps a secure kernel running beside a guest, and says at once when it does not.

If the secure kernel dies, its traps end and the guest runs on unprotected.  The supervisor waits
on the child's pidfd, which becomes readable at that moment, and does what was decided
beforehand: hold the guest still until a new secure kernel has proven everything again, end it,
or let the lease lapse (do nothing: whoever needs a fresh result does not get one).

A new secure kernel begins a new session.  The time between is a hole that no chain of epochs
covers; the supervisor tells how long it was.

The child gets ``--ready-fd N`` and writes single words there, each on a line:

=============  =====================================================================
word           what
=============  =====================================================================
``armed``      everything is armed and was proven after that
``failed``     everything is armed, and something is wrong
``booting``    there is no kernel yet that could be guarded
``replaced``   the guest was reset or restored: it has to be proven anew
=============  =====================================================================

After the last two the guest has to run on for a kernel to be there, whatever the policy says.
"""

from __future__ import annotations

import contextlib
import enum
import os
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from undercroft.base import EnvironmentFault

BACKOFF_S, MAX_BACKOFF_S = 0.1, 5.0
"""A child that died is started again after so long; twice as long after each that armed nothing."""
READY_OPTION = "--ready-fd"
_MAX_WORDS = 4096


class Word(enum.Enum):
    """What a secure kernel tells its supervisor."""

    ARMED = "armed"
    FAILED = "failed"
    BOOTING = "booting"
    REPLACED = "replaced"


_TO_RUN_ON = frozenset({Word.BOOTING, Word.REPLACED})


def tell(descriptor: int | None, word: Word) -> None:
    """Tell the supervisor, if there is one (the secure kernel's side)."""
    if descriptor is not None:
        with contextlib.suppress(BrokenPipeError):  # it died: there is nobody to tell
            os.write(descriptor, word.value.encode() + b"\n")


class OnDeath(enum.Enum):
    """What happens to the guest while there is no secure kernel."""

    PAUSE = "pause"
    KILL = "kill"
    LAPSE = "lapse"


class Controls(Protocol):
    """What the supervisor can do to the guest.  Each raises GuestGone if it ended."""

    def pause(self) -> None:
        """Stop every vCPU."""

    def resume(self) -> None:
        """Let the vCPUs go on."""

    def kill(self) -> None:
        """End the guest."""


@dataclass(frozen=True, slots=True)
class Death:
    """A secure kernel that died: its pid and exit status (negative: the signal), and when.

    ``noticed`` is on the monotonic clock, in ns.  ``told`` is the last word it said.
    """

    pid: int
    status: int
    noticed: int
    told: Word | None = None


@dataclass(slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    words: int
    told: Word | None = None

    def hear(self) -> bool:
        """Take what the child has written; False if it will write no more."""
        data = os.read(self.words, _MAX_WORDS)
        known = {word.value.encode(): word for word in Word}
        for line in data.split(b"\n"):
            self.told = known.get(line, self.told)
        return bool(data)


class Supervisor:
    """Runs ``command``, a secure kernel that says when it is armed (see above).

    ``guest_pid`` is the hypervisor: when it ends, so does supervision.  ``on_death`` is told of
    every death.
    """

    def __init__(
        self,
        command: Sequence[str],
        guest_pid: int,
        controls: Controls,
        policy: OnDeath,
        *,
        on_death: Callable[[Death], None] = lambda _death: None,
        proof_timeout: float = 120.0,
    ) -> None:
        self._command = list(command)
        self._controls = controls
        self._policy = policy
        self._on_death = on_death
        self._proof_timeout = proof_timeout
        try:
            self._guest = os.pidfd_open(guest_pid)
        except ProcessLookupError as error:
            raise EnvironmentFault("the guest is not running", where=f"{guest_pid}") from error
        self._child: _Child | None = None
        self.armed = 0
        """How many secure kernels said that everything is armed and proven."""

    def run(self, *, deaths: int | None = None) -> str:
        """Supervise until the guest ends, the policy ended it, or ``deaths`` children died.

        Returns why it ended.
        """
        backoff, count, paused = BACKOFF_S, 0, False
        try:
            while True:
                child = self._start()
                self._await_word(child)
                if child.told is Word.ARMED:
                    self.armed += 1
                if paused and child.told in (Word.ARMED, *_TO_RUN_ON):
                    self._controls.resume()
                    paused = False
                if not self._wait(child):
                    return "the guest ended"
                death = self._bury(child)
                if self._policy is OnDeath.KILL and death.told not in _TO_RUN_ON:
                    self._controls.kill()
                elif self._policy is OnDeath.PAUSE and death.told not in _TO_RUN_ON and not paused:
                    self._controls.pause()
                    paused = True
                self._on_death(death)
                count += 1
                if self._policy is OnDeath.KILL and death.told not in _TO_RUN_ON:
                    return "the guest was ended, for its secure kernel died"
                if count == deaths:
                    return "too many deaths"
                backoff = BACKOFF_S if death.told is Word.ARMED else backoff
                if self._guest_ended(backoff):
                    return "the guest ended"
                backoff = min(2 * backoff, MAX_BACKOFF_S)
        finally:
            self._end()

    @property
    def child(self) -> int | None:
        """The pid of the secure kernel that runs now."""
        return None if self._child is None else self._child.process.pid

    def _start(self) -> _Child:
        words, pen = os.pipe()
        try:
            process = subprocess.Popen(
                [*self._command, READY_OPTION, str(pen)], stdin=subprocess.DEVNULL, pass_fds=(pen,)
            )
        except BaseException:
            os.close(words)
            raise
        finally:
            os.close(pen)
        self._child = _Child(process, words)
        return self._child

    def _await_word(self, child: _Child) -> None:
        """Wait for the child's first word; one that says nothing in time is ended."""
        deadline = time.monotonic() + self._proof_timeout
        while child.told is None:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([child.words, self._guest], [], [], max(0.0, left))
            if not ready:
                child.process.kill()  # it never proved anything: as good as dead
                return
            if self._guest in ready or not child.hear():
                return

    def _wait(self, child: _Child) -> bool:
        """Wait until the child dies (True) or the guest does (False)."""
        descriptor = os.pidfd_open(child.process.pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.register(self._guest, select.POLLIN)
            ended = {number for number, _ in poll.poll()}
            return self._guest not in ended
        finally:
            os.close(descriptor)

    def _bury(self, child: _Child) -> Death:
        """Take the last words and the exit status of a child that died."""
        noticed = time.monotonic_ns()
        while child.hear():
            pass
        os.close(child.words)
        self._child = None
        return Death(child.process.pid, child.process.wait(), noticed, child.told)

    def _guest_ended(self, timeout: float) -> bool:
        poll = select.poll()
        poll.register(self._guest, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def _end(self) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                self._child.process.kill()
            self._child.process.wait()
            os.close(self._child.words)
            self._child = None
        os.close(self._guest)
