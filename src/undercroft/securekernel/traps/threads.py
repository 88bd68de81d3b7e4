"""The hypervisor's threads: what they are called, and whether one has run."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class Threads:
    """Looks at the threads of one process in /proc; keeps descriptors, for it is asked often."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}/task")
        self._names: dict[int, str] = {}
        self._statistics: dict[int, int] = {}

    def name(self, thread: int) -> str:
        """Return ``name (id)``; QEMU names its vCPUs ``CPU 0/KVM`` if told debug-threads=on."""
        if thread not in self._names:
            try:
                name = (self._folder / str(thread) / "comm").read_text().strip()
            except OSError:
                return str(thread)
            self._names[thread] = f"{name} ({thread})"
        return self._names[thread]

    def slices(self, thread: int) -> int:
        """Return how often the thread was put on a processor; -1 if that is not known.

        It is the third field of /proc/PID/task/TID/schedstat (sched-stats in the kernel's
        documentation), which needs CONFIG_SCHED_INFO.
        """
        try:
            if thread not in self._statistics:
                path = self._folder / str(thread) / "schedstat"
                self._statistics[thread] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return int(os.pread(self._statistics[thread], 64, 0).split()[2])
        except (OSError, ValueError, IndexError):
            return -1

    def close(self) -> None:
        """Close the descriptors."""
        for descriptor in self._statistics.values():
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._statistics.clear()
