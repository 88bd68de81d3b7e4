"""What QEMU tells of the machine as a whole: that it was reset, that it stands still.

A QMP socket serves one client at a time, and events go to whoever is connected.  So this needs
a socket of its own (a second ``-qmp``), which it keeps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from undercroft.securekernel.hypervisor.qmp import QmpClient

_RESET, _STOP, _RESUME = "RESET", "STOP", "RESUME"


class MachineEvents:
    """The state of the machine as its events tell it, from construction to close().

    ``replaced`` says why what was in memory is no longer what the guest's kernel left there;
    empty while nothing of the kind was told.  ``stopped`` tells whether all vCPUs stand still.
    Events: qapi/run-state.json in QEMU's source.  Not for several threads.
    """

    def __init__(self, path: Path, *, timeout: float = 10.0) -> None:
        self._client = QmpClient(path, timeout=timeout)
        answer = self._client.execute("query-status")
        self.stopped = isinstance(answer, Mapping) and answer.get("running") is False
        self.replaced = ""

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when something is told."""
        return self._client.fileno()

    def look(self, timeout: float) -> None:
        """Take what was told, and wait up to ``timeout`` seconds for what says ``replaced``.

        Raises GuestGone if QEMU closed the connection.
        """
        deadline = time.monotonic() + timeout
        while not self.replaced:
            event = self._client.next_event(max(0.0, deadline - time.monotonic()))
            if event is None:
                return
            name, data = event.get("event"), event.get("data")
            if name == _RESET:
                why = data.get("reason") if isinstance(data, Mapping) else None
                self.replaced = f"the guest was reset ({why or 'no reason given'})"
            elif name in (_STOP, _RESUME):
                self.stopped = name == _STOP

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
