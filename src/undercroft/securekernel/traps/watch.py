"""A thread that looks at the guest again and again, and covers what comes and goes in it."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod

from undercroft.base import EnvironmentFault, FormatError
from undercroft.formats.kernel import KernelImage
from undercroft.securekernel.linux.facts import WALK_ERRORS
from undercroft.securekernel.linux.live import LiveKernel
from undercroft.securekernel.linux.locate import LocatedKernel
from undercroft.securekernel.memory import PhysicalMemory
from undercroft.securekernel.traps.guard import Guard


class Watch(ABC):
    """Calls :meth:`look` every ``poll_s`` seconds from :meth:`start` until :meth:`close`.

    ``what`` names, for a person, what is not covered any more if looking fails.
    """

    def __init__(self, guard: Guard, what: str, poll_s: float) -> None:
        self._guard = guard
        self._what = what
        self._poll_s = poll_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=what, daemon=True)

    @abstractmethod
    def look(self) -> None:
        """Look once.  What a torn walk raises is looked at again next time."""

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking; what is covered stays covered."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set() and not self._guard.status().frozen:
                with contextlib.suppress(*WALK_ERRORS, FormatError):
                    self.look()
                self._stop.wait(self._poll_s)
        except EnvironmentFault as error:
            if not self._stop.is_set():
                self._guard.note_fault(f"{self._what} are no longer covered: {error}")


def live_kernel(memory: PhysicalMemory, image: KernelImage, kernel: LocatedKernel) -> LiveKernel:
    """Return a reader of a located kernel; each look takes a fresh() one."""
    return LiveKernel(memory, image, slide=kernel.slide, cr3=kernel.cr3, la57=kernel.la57)
