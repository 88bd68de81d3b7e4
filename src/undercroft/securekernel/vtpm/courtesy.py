"""Which policy sessions of the guest rest on PCRs and are still to be used.

An extend of ours changes pcrUpdateCounter, and that ends every policy session that has gone
through TPM2_PolicyPCR (TPM 2.0 part 3, 23.7).  So a record waits for the guest to use such a
session, or to let go of it, whatever it does and however many it has: for :data:`COURTESY`
seconds, and no more.
"""

from __future__ import annotations

import threading
import time

from undercroft.securekernel.vtpm.wire import HEADER, CommandCode

COURTESY = 2.0
"""Longest wait, in seconds."""

_ENDS = frozenset({CommandCode.FLUSH_CONTEXT, CommandCode.POLICY_RESTART})
_POLICY = frozenset(
    {
        CommandCode.POLICY_NV,
        CommandCode.POLICY_SECRET,
        CommandCode.POLICY_SIGNED,
        CommandCode.POLICY_AUTHORIZE_NV,
    }
)
"""Commands that name a policy session, have an authorization of their own, and do not use it."""
_NO_SESSIONS = 0x8001
_MAX_SESSIONS = 64


class Courtesy:
    """Watches the guest's commands; the caller of :meth:`watch` holds the slot."""

    def __init__(self) -> None:
        self._sessions: set[bytes] = set()
        self._settled = threading.Event()
        self._settled.set()

    @property
    def settled(self) -> bool:
        """Whether no session of the guest would be lost by an extend now."""
        return self._settled.is_set()

    def watch(self, code: int, command: bytes, *, succeeded: bool) -> None:
        """Note a guest command and whether the TPM ran it."""
        if code == CommandCode.POLICY_PCR:
            if succeeded and len(self._sessions) < _MAX_SESSIONS:
                self._sessions.add(command[HEADER.size : HEADER.size + 4])
                self._settled.clear()
        elif self._sessions and code not in _POLICY:
            self._look_for_use(code, command, succeeded=succeeded)

    def _look_for_use(self, code: int, command: bytes, *, succeeded: bool) -> None:
        """A session is used up by the command that it authorizes, right or wrong: its handle
        stands among that command's sessions.  Other bytes that look like it only end the wait."""
        authorizes = HEADER.unpack_from(command)[0] != _NO_SESSIONS
        if authorizes or (code in _ENDS and succeeded):
            used = {handle for handle in self._sessions if handle in command[HEADER.size :]}
            self._sessions -= used
            if not self._sessions:
                self._settled.set()

    def wait(self, deadline: float) -> None:
        """Wait until :attr:`settled`, or ``deadline`` on the monotonic clock."""
        self._settled.wait(max(0.0, deadline - time.monotonic()))

    def end(self) -> None:
        """Forget every session: the wait was long enough, or the TPM has lost them."""
        self._sessions.clear()
        self._settled.set()
