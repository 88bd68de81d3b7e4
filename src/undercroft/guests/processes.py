"""Programs that outlive us: started, found again by pid file, watched and ended.

A pid alone is not a name: pids are used again.  A process is named by its pid and the time it
started (field 22 of /proc/PID/stat, proc(5), in clock ticks since boot), together with the boot.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from undercroft.base import EnvironmentFault

SPAWN_TIMEOUT_S = 10.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# setsid forks, so that the program belongs to init and not to us; the shell names itself before
# it becomes the program, so that there is no time without a pid file.
_WRAPPER = 'echo $$ >"$0.new" && mv "$0.new" "$0" && exec "$@"'


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, for ever: ``start_ticks`` after the boot ``boot_id`` it got ``pid``."""

    pid: int
    start_ticks: int
    boot_id: str

    def is_alive(self) -> bool:
        """Whether the process still runs; one that nobody has waited for (a zombie) does not."""
        return _stat(self.pid) == (self.start_ticks, True) and self.boot_id == boot_id()

    def send(self, number: signal.Signals) -> None:
        """Send a signal if the process is still there."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def boot_id() -> str:
    """Return what names this boot of this machine."""
    return _BOOT_ID.read_text().strip()


def _stat(pid: int) -> tuple[int, bool] | None:
    """Return the start time in ticks and whether the process runs; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may itself hold parentheses and spaces.
    fields = text[text.rindex(")") + 2 :].split()
    return int(fields[19]), fields[0] not in "ZX"


def identify(pid: int) -> ProcessId | None:
    """Return the identity of the running process ``pid``, or None."""
    stat = _stat(pid)
    return ProcessId(pid, stat[0], boot_id()) if stat and stat[1] else None


def tail(path: Path, lines: int = 8) -> str:
    """Return the last lines of a log, or nothing if there is none."""
    if not path.is_file():
        return ""
    text = path.read_bytes()[-8192:].decode(errors="replace").replace("\r", "")
    return "\n".join(text.rstrip().splitlines()[-lines:])


def spawn(
    command: Sequence[str],
    *,
    pid_file: Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> ProcessId:
    """Start ``command`` in a session of its own and return who it is.

    What it prints goes to ``log``.  Raises EnvironmentFault if it cannot be started or ends at
    once.
    """
    pid_file.unlink(missing_ok=True)
    with log.open("ab") as output:
        try:
            subprocess.run(
                ["setsid", "--fork", "sh", "-c", _WRAPPER, str(pid_file), *command],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True,
                env=None if environment is None else dict(environment),
            )  # fmt: skip
        except (OSError, subprocess.CalledProcessError) as error:
            raise EnvironmentFault(
                f"{command[0]} did not start", got=error, remedy="apt-get install util-linux"
            ) from error
    deadline = time.monotonic() + SPAWN_TIMEOUT_S
    while time.monotonic() < deadline:
        if pid_file.is_file() and (text := pid_file.read_text().strip()):
            if process := identify(int(text)):
                return process
            break
        time.sleep(0.005)
    raise EnvironmentFault(
        f"{command[0]} did not start",
        where=str(log),
        got=tail(log),
        remedy="`undercroft doctor` says what is missing",
    )


def end(process: ProcessId, *, patience_s: float = 5.0) -> None:
    """End a process: ask it (SIGTERM), wait, then make it (SIGKILL).  Gone already is fine."""
    for number, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5.0)):
        process.send(number)
        if wait_gone(process, wait_s):
            return
    raise EnvironmentFault(f"process {process.pid} does not end, not even by SIGKILL")


def wait_gone(process: ProcessId, timeout_s: float) -> bool:
    """Wait until the process is gone; return whether it is."""
    deadline = time.monotonic() + timeout_s
    while process.is_alive():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True
