"""What the secure kernel asks for: batches, quotes, records, the launch and its log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from undercroft.base import EnvironmentFault, JsonValue
from undercroft.securekernel.vtpm.arbiter import Side
from undercroft.securekernel.vtpm.batch import StateLost
from undercroft.securekernel.vtpm.courtesy import COURTESY
from undercroft.securekernel.vtpm.keys import KeyType
from undercroft.securekernel.vtpm.launchlog import LaunchConfig
from undercroft.securekernel.vtpm.protocol import Batch, Done
from undercroft.securekernel.vtpm.rc import VtpmUnavailable
from undercroft.securekernel.vtpm.shared import SharedTpm

MAX_WAIT = 30.0
"""Longest wait for a slot, in seconds."""


class KernelSide:
    """The secure kernel's requests.  May be called from any thread."""

    def __init__(self, tpm: SharedTpm) -> None:
        self._tpm = tpm

    @contextmanager
    def _slot(self) -> Iterator[None]:
        tpm = self._tpm
        with tpm.arbiter.slot(Side.SECURE_KERNEL, timeout=MAX_WAIT):
            try:
                if not tpm.upstream.fault and not tpm.guest.running:
                    raise VtpmUnavailable("the guest's TPM is not running")
                yield
                if tpm.guest.orderly is not None:
                    # The guest has shut its TPM down; what we did since has ended that.
                    tpm.resident.evict()
                    tpm.upstream.execute(tpm.guest.orderly, 0)
            except StateLost as fault:
                tpm.note(str(fault))
                raise
            except VtpmUnavailable as fault:
                tpm.lost(fault)
                raise

    def run_batch(self, batch: Batch) -> Done:
        """Run a batch in one slot.  Raises VtpmUnavailable, Busy, FormatError or StateLost."""
        tpm = self._tpm
        with self._slot():
            tpm.counters.batches += 1
            tpm.resident.evict()
            responses = tuple(tpm.runner.run(batch))
            return Done(tpm.launcher.number, tpm.launcher.log_size, responses)

    def quote(self, key_type: KeyType, qualifying_data: bytes, selection: bytes) -> Done:
        """Quote with the launch's key; Done without a response if only a batch can do it.

        Raises VtpmUnavailable or Busy.
        """
        tpm = self._tpm
        with self._slot():
            tpm.counters.batches += 1
            key = tpm.launcher.keys.get(key_type)
            response = tpm.resident.quote(key.context, qualifying_data, selection) if key else None
            responses = () if response is None else (response,)
            return Done(tpm.launcher.number, tpm.launcher.log_size, responses)

    def record(self, name: str, data: bytes) -> None:
        """Extend PCR 19 with a record.  Raises EnvironmentFault (VtpmUnavailable, Busy).

        It waits for a guest that would lose a policy session by it; see ``courtesy``.
        """
        courtesy = self._tpm.courtesy
        deadline = time.monotonic() + COURTESY
        while True:
            courtesy.wait(deadline)
            with self._slot():
                if courtesy.settled or time.monotonic() >= deadline:
                    courtesy.end()
                    self._tpm.launcher.record(name, data)
                    return

    def launch(self, config: LaunchConfig) -> None:
        """Launch with this configuration at every start from now on, and at once if the TPM runs.

        Raises EnvironmentFault (VtpmUnavailable, Busy) where the TPM refuses.
        """
        tpm = self._tpm
        if not tpm.guest.running:
            tpm.launcher.config = config
            return
        with self._slot():
            tpm.launcher.config = config
            tpm.resident.evict()
            tpm.launcher.perform("attach")

    def log(self, launch: int) -> bytes:
        """Return the log of the launch of this number; EnvironmentFault if another one holds."""
        launcher = self._tpm.launcher
        if launch != launcher.number:
            raise EnvironmentFault(
                "the TPM was started again", expected=launch, got=launcher.number
            )
        return launcher.log()

    def keys(self) -> dict[str, JsonValue]:
        """Return the attestation keys that the launch made, by type."""
        return {kind.value: key.as_json() for kind, key in self._tpm.launcher.keys.items()}
