"""Hold a hypervisor process still, or end it, while one of its vCPUs waits in a write fault.

A vCPU that waits for our answer cannot answer the monitor's ``stop``, so the process itself is
stopped: SIGSTOP ends the wait (a fault taken from user mode is interruptible, fs/userfaultfd.c)
and stops every thread before it goes back to user mode.  The store has not happened; it is tried
again, and trapped again, only after SIGCONT.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.securekernel.guest import GuestGone

STOP_TIMEOUT_S = 2.0
_POLL_S = 0.0002
_STILL = frozenset("TtXZ")
"""States in /proc/PID/task/TID/stat of a thread that runs no instruction (proc(5))."""


def freeze(pid: int, pidfd: int) -> None:
    """Stop every thread of the process and return when all of them stand.

    Raises GuestGone if it ended, EnvironmentFault if some thread does not stop in 2 s.
    """
    _send(pid, pidfd, signal.SIGSTOP)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while not is_frozen(pid):
        if time.monotonic() > deadline:
            raise EnvironmentFault(
                "the hypervisor was told to stop and does not", where=f"process {pid}"
            )
        time.sleep(_POLL_S)


def thaw(pid: int, pidfd: int) -> None:
    """Let the process go on.  The write that waited is tried again."""
    _send(pid, pidfd, signal.SIGCONT)


def kill(pid: int, pidfd: int) -> None:
    """End the process at once."""
    _send(pid, pidfd, signal.SIGKILL)


def is_frozen(pid: int) -> bool:
    """Tell whether every thread of the process stands.  Raises GuestGone if it ended."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError) as error:
        raise GuestGone("the hypervisor process ended", where=f"process {pid}") from error
    return all(_state(thread) in _STILL for thread in threads)


def _state(thread: Path) -> str:
    try:
        text = (thread / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return "X"
    return text[text.rindex(")") + 2]


def _send(pid: int, pidfd: int, number: signal.Signals) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError as error:
        raise GuestGone("the hypervisor process ended", where=f"process {pid}") from error
    except PermissionError as error:
        raise EnvironmentFault(
            f"may not send {number.name} to the hypervisor",
            where=f"process {pid}",
            remedy="run as root or as the hypervisor's user",
        ) from error
