"""Hold a guest of QEMU still, let it go on, or end it, on behalf of the supervisor."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.securekernel.guest import GuestGone
from undercroft.securekernel.hypervisor.qmp import QmpClient
from undercroft.securekernel.traps import freeze


class QemuControls:
    """Implements :class:`undercroft.securekernel.supervise.Controls` for one QEMU process.

    A process that a secure kernel froze already (SIGSTOP) is left alone: it stands, and its
    monitor does not answer.
    """

    def __init__(self, qmp: Path, pid: int, *, timeout: float = 10.0) -> None:
        self._qmp = qmp
        self._pid = pid
        self._timeout = timeout
        self._stopped = False

    def pause(self) -> None:
        """Stop every vCPU, if one runs.  Raises GuestGone if QEMU ended."""
        if freeze.is_frozen(self._pid):
            return
        with QmpClient(self._qmp, timeout=self._timeout) as session:
            status = session.execute("query-status")
            if isinstance(status, Mapping) and status.get("running") is True:
                session.execute("stop")
                self._stopped = True

    def resume(self) -> None:
        """Let the vCPUs go on that :meth:`pause` stopped; not those that somebody else did."""
        if self._stopped:
            with QmpClient(self._qmp, timeout=self._timeout) as session:
                session.execute("cont")
            self._stopped = False

    def kill(self) -> None:
        """End QEMU at once."""
        try:
            pidfd = os.pidfd_open(self._pid)
        except ProcessLookupError as error:
            raise GuestGone("QEMU ended", where=f"process {self._pid}") from error
        try:
            freeze.kill(self._pid, pidfd)
        except PermissionError as error:
            raise EnvironmentFault("may not end QEMU", where=f"process {self._pid}") from error
        finally:
            os.close(pidfd)
