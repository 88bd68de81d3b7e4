"""Runs a batch of the secure kernel's commands so that the guest cannot tell.

What a batch creates (objects, sessions, sequences) is flushed at its end.  Where TPM memory is
full of the guest's things, some of them are saved, flushed, and loaded again under the very
handles that the guest knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from undercroft.base import FormatError, UndercroftError
from undercroft.securekernel.vtpm import commands, rc
from undercroft.securekernel.vtpm.protocol import Batch, RawCommand
from undercroft.securekernel.vtpm.wire import (
    HEADER,
    RETURNS_HANDLE,
    response_code,
)

TRANSIENT_FIRST = 0x8000_0000
LOADED_SESSION_FIRST = 0x0200_0000
_SESSION_TYPES = (0x02, 0x03)

_OBJECTS_FULL = {rc.RC_OBJECT_MEMORY, rc.RC_OBJECT_HANDLES, rc.RC_MEMORY}
_SESSIONS_FULL = {rc.RC_SESSION_MEMORY}
_TRY_AGAIN = {rc.RC_RETRY, rc.RC_YIELDED, rc.RC_TESTING, rc.RC_CANCELED}
_MAX_TRIES = 8
_PAUSE = 0.005

Execute = Callable[[bytes, int], bytes]
"""Runs one command at a locality; raises VtpmUnavailable."""


class StateLost(UndercroftError):  # noqa: N818 - a state, not a bug
    """Something of the guest's could not be put back.  Must not happen; recorded if it does."""


@dataclass(slots=True)
class _Run:
    """One batch under way: what it created and what it moved out of the way."""

    handles: list[int | None] = field(default_factory=list)
    moved: dict[int, bytes] = field(default_factory=dict)


class BatchRunner:
    """Runs batches through ``execute``.  The caller holds the slot."""

    def __init__(self, execute: Execute) -> None:
        self._execute = execute
        self.evictions = 0

    def run(self, batch: Batch) -> list[bytes]:
        """Return the responses, up to and with the first refusal.

        Raises VtpmUnavailable if swtpm is lost on the way, StateLost if something of the guest's
        could not be restored.
        """
        run = _Run()
        responses: list[bytes] = []
        try:
            for command in batch.commands:
                response, code = self._command(run, command, batch.locality)
                responses.append(response)
                if code != rc.RC_SUCCESS:
                    break
        finally:
            self._clean_up(run)
        return responses

    def _command(self, run: _Run, command: RawCommand, locality: int) -> tuple[bytes, int]:
        data = _patched(command, run.handles) if command.patches else command.data
        response, code = self._persistently(run, data, locality)
        run.handles.append(None)
        if code == rc.RC_SUCCESS:
            for index in command.ends:
                run.handles[index] = None
            if HEADER.unpack_from(data)[2] in RETURNS_HANDLE:
                run.handles[-1] = int.from_bytes(response[10:14], "big")
        return response, code

    def _persistently(self, run: _Run, data: bytes, locality: int) -> tuple[bytes, int]:
        """Run a command; make room or wait a moment as often as that helps."""
        for _ in range(_MAX_TRIES):
            response = self._execute(data, locality)
            code = response_code(response)
            if code == rc.RC_SUCCESS:
                break
            if code in _TRY_AGAIN:
                time.sleep(_PAUSE)
            elif not (
                (code in _OBJECTS_FULL and self._move_away(run, TRANSIENT_FIRST))
                or (code in _SESSIONS_FULL and self._move_away(run, LOADED_SESSION_FIRST))
            ):
                break
        return response, code

    def _move_away(self, run: _Run, first: int) -> bool:
        """Save and remove one of the guest's objects or loaded sessions; False if none can be."""
        ask = commands.get_handles(first)
        listed = commands.parse_get_handles(ask, self._execute(ask.data, 0))
        for victim in reversed(listed):
            if victim in run.handles:
                continue
            save = commands.context_save(victim)
            response = self._execute(save.data, 0)
            if response_code(response) != rc.RC_SUCCESS:
                continue
            run.moved[victim] = commands.parse_context_save(save, response)
            if victim >> 24 not in _SESSION_TYPES:  # saving a session has already removed it
                self._execute(commands.flush_context(victim).data, 0)
            self.evictions += 1
            return True
        return False

    def _clean_up(self, run: _Run) -> None:
        for handle in run.handles:
            if handle is not None:
                # A sequence that was completed is gone already; the answer is TPM_RC_HANDLE.
                self._execute(commands.flush_context(handle).data, 0)
        for handle, context in sorted(run.moved.items()):
            self._restore(handle, context)

    def _restore(self, handle: int, context: bytes) -> None:
        """Load a context under the handle it had.

        The TPM gives the lowest free handle.  While that is a lower one, the context is loaded
        once more; the surplus copies are flushed at the end.
        """
        load = commands.context_load(context)
        surplus: list[int] = []
        got = -1
        while True:
            response = self._execute(load.data, 0)
            if response_code(response) != rc.RC_SUCCESS:
                break
            got = commands.parse_context_load(load, response)
            if got >= handle:
                break
            surplus.append(got)
        for other in surplus:
            self._execute(commands.flush_context(other).data, 0)
        if got != handle:
            raise StateLost(
                "an object or session of the guest could not be restored",
                expected=hex(handle),
                got=rc.rc_name(response_code(response)),
            )


def _patched(command: RawCommand, handles: Sequence[int | None]) -> bytes:
    data = bytearray(command.data)
    for offset, index in command.patches:
        handle = handles[index]
        if handle is None:
            raise FormatError("vTPM batch", offset, f"there is no handle of command {index}")
        data[offset : offset + 4] = handle.to_bytes(4, "big")
    return bytes(data)
