"""Keeps the attestation key and its policy session loaded between quotes, while nobody looks.

Loading a key for each quote and flushing it again costs a third of the quote itself.  So they stay
in TPM memory until the first guest command or anything else that could notice them; then
:meth:`Resident.evict` flushes them first.
"""

from __future__ import annotations

from dataclasses import dataclass

from undercroft.securekernel.vtpm import commands
from undercroft.securekernel.vtpm.batch import Execute
from undercroft.securekernel.vtpm.keys import SECURE_KERNEL_LOCALITY
from undercroft.securekernel.vtpm.rc import RC_SUCCESS
from undercroft.securekernel.vtpm.wire import Auth, Command, response_code


@dataclass(frozen=True, slots=True)
class _Loaded:
    context: bytes
    key: int
    session: int


class Resident:
    """At most one key and one session.  The caller holds the slot."""

    def __init__(self, execute: Execute) -> None:
        self._execute = execute
        self._loaded: _Loaded | None = None

    def quote(self, context: bytes, qualifying_data: bytes, selection: bytes) -> bytes | None:
        """Quote with the key of this saved context; return TPM2_Quote's successful response.

        None if the TPM refuses any step (its memory may be full of the guest's things): then
        nothing is left loaded, and a batch may do better.
        """
        loaded = self._loaded
        if loaded is None or loaded.context != context:
            self.evict()
            loaded = self._load(context)
        if loaded is None:
            return None
        authorize = commands.policy_locality(loaded.session, 1 << SECURE_KERNEL_LOCALITY)
        quote = commands.quote(loaded.key, Auth(loaded.session), qualifying_data, selection)
        for command in (authorize, quote):
            response = self._run(command)
            if response is None:
                self.evict()
                return None
        return response

    def _load(self, context: bytes) -> _Loaded | None:
        load, start = commands.context_load(context), commands.start_policy_session()
        response = self._run(load)
        if response is None:
            return None
        key = commands.parse_context_load(load, response)
        response = self._run(start)
        if response is None:
            self._execute(commands.flush_context(key).data, 0)
            return None
        session = commands.parse_start_policy_session(start, response)
        self._loaded = _Loaded(context, key, session)
        return self._loaded

    def _run(self, command: Command) -> bytes | None:
        response = self._execute(command.data, SECURE_KERNEL_LOCALITY)
        return response if response_code(response) == RC_SUCCESS else None

    def evict(self) -> None:
        """Flush what is loaded."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            for handle in (loaded.session, loaded.key):
                self._execute(commands.flush_context(handle).data, 0)

    def forget(self) -> None:
        """The TPM has lost its memory: there is nothing to flush."""
        self._loaded = None
