"""Keeps a secure kernel running beside a guest, and says at once when it does not.

If the secure kernel dies, its traps end and the guest runs on unprotected.  The supervisor waits
on the child's pidfd, which becomes readable at that moment, and does what was decided
beforehand: hold the guest still until a new secure kernel has proven everything again, end it,
or let the lease lapse (do nothing: whoever needs a fresh result does not get one).

A new secure kernel begins a new session.  The time between is a hole that no chain of epochs
covers; the supervisor tells how long it was.
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

BACKOFF_S, MAX_BACKOFF_S = 0.1, 30.0
"""A child that died is started again after so long; twice as long each time it dies at once."""
STEADY_S = 60.0
"""A child that lived so long did not die at once."""


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

    ``noticed`` is on the monotonic clock, in ns.
    """

    pid: int
    status: int
    noticed: int


class Supervisor:
    """Runs ``command``, which prints a line when it has proven and armed everything.

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
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, *, deaths: int | None = None) -> str:
        """Supervise until the guest ends, the policy ended it, or ``deaths`` children died.

        Returns why it ended.
        """
        backoff, count, paused = BACKOFF_S, 0, False
        try:
            while True:
                started = time.monotonic()
                child = self._start()
                if self._is_armed(child) and paused:
                    self._controls.resume()
                    paused = False
                if not self._wait(child):
                    return "the guest ended"
                noticed = time.monotonic_ns()
                death = Death(child.pid, child.wait(), noticed)
                _close(child)
                if self._policy is OnDeath.KILL:
                    self._controls.kill()
                elif self._policy is OnDeath.PAUSE and not paused:
                    self._controls.pause()
                    paused = True
                self._on_death(death)
                count += 1
                if self._policy is OnDeath.KILL:
                    return "the guest was ended, for its secure kernel died"
                if count == deaths:
                    return "too many deaths"
                backoff = BACKOFF_S if time.monotonic() - started > STEADY_S else backoff
                if self._guest_ended(backoff):
                    return "the guest ended"
                backoff = min(2 * backoff, MAX_BACKOFF_S)
        finally:
            self._end()

    @property
    def child(self) -> int | None:
        """The pid of the secure kernel that runs now."""
        return None if self._child is None else self._child.pid

    def _start(self) -> subprocess.Popen[bytes]:
        self._child = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        return self._child

    def _is_armed(self, child: subprocess.Popen[bytes]) -> bool:
        """Wait for the child's line; False if it died or did not print one in time."""
        assert child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], self._proof_timeout)
        if not ready:
            child.kill()  # it never proved anything: as good as dead
            return False
        return bool(child.stdout.readline())

    def _wait(self, child: subprocess.Popen[bytes]) -> bool:
        """Wait until the child dies (True) or the guest does (False)."""
        descriptor = os.pidfd_open(child.pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.register(self._guest, select.POLLIN)
            ended = {number for number, _ in poll.poll()}
            return self._guest not in ended
        finally:
            os.close(descriptor)

    def _guest_ended(self, timeout: float) -> bool:
        poll = select.poll()
        poll.register(self._guest, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def _end(self) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()
            self._child.wait()
            _close(self._child)
        os.close(self._guest)


def _close(child: subprocess.Popen[bytes]) -> None:
    if child.stdout is not None:
        child.stdout.close()
