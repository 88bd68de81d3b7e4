"""The dynamic launch: measures the secure kernel into PCR 17 before the guest may use its TPM.

At every start of the TPM (power-on, reset, resume), in one slot:

1. a D-RTM event (_TPM_Hash_Start, _Data, _End at locality 4) resets PCR 17 to 22 and measures the
   secure kernel's manifest into PCR 17 (TPM 2.0 part 1, 34.2);
2. the reason and number of the launch, then each identity it was given (VM descriptor, guest
   kernel, configuration) go to PCR 18, at locality 2;
3. the attestation keys are made in the platform hierarchy, whose authorization is empty only now,
   and their contexts kept here, so that the guest can neither use nor evict them.

Records follow in PCR 19.  None of these PCRs can be written at locality 0.
"""

from __future__ import annotations

import contextlib

from undercroft.base import EnvironmentFault, HashAlgorithm
from undercroft.securekernel.vtpm import commands, control, launchlog
from undercroft.securekernel.vtpm.batch import BatchRunner
from undercroft.securekernel.vtpm.control import Control
from undercroft.securekernel.vtpm.keyfile import KeyFile, LaunchedKey
from undercroft.securekernel.vtpm.keys import SECURE_KERNEL_LOCALITY, KeyType, ak_template
from undercroft.securekernel.vtpm.launchlog import MAX_MEASURED, LaunchConfig
from undercroft.securekernel.vtpm.protocol import Batch
from undercroft.securekernel.vtpm.rc import RC_SUCCESS
from undercroft.securekernel.vtpm.upstream import Upstream
from undercroft.securekernel.vtpm.wire import RH_PLATFORM, HandleOf, response_code

MAX_LOG = 32 * 1024 * 1024
"""Largest log of one launch, in bytes; after that records are refused."""

HASH_CHUNK = 4096


class Launcher:
    """State of the launch.  The caller of every method that talks to the TPM holds the slot."""

    def __init__(
        self,
        upstream: Upstream,
        runner: BatchRunner,
        config: LaunchConfig | None,
        keys: KeyFile | None = None,
    ) -> None:
        self._upstream = upstream
        self._runner = runner
        self._key_file = keys
        self.config = config
        self.keys: dict[KeyType, LaunchedKey] = keys.load() if keys else {}
        self.number = 0
        self.reason = ""
        self._banks: tuple[HashAlgorithm, ...] = ()
        self._log = bytearray()

    @property
    def log_size(self) -> int:
        """Bytes of the log so far; 0 where no launch was made."""
        return len(self._log)

    def log(self) -> bytes:
        """Return the log of the launch that holds now."""
        return bytes(self._log)

    def perform(self, reason: str) -> None:
        """Launch.  Raises VtpmUnavailable; EnvironmentFault if the TPM refuses a step."""
        self.number += 1
        self.reason = reason
        self._log.clear()
        self._make_keys()
        if self.config is None:
            return
        self._banks = self._active_banks()
        self._log += launchlog.spec_id_event(self._banks)
        self._measure_manifest(self.config.manifest)
        text = launchlog.launch_text(reason, self.number)
        self._extend(launchlog.PCR_IDENTITY, launchlog.TAG_IDENTITY, launchlog.LAUNCH, text)
        for name, data in self.config.identities:
            self._extend(launchlog.PCR_IDENTITY, launchlog.TAG_IDENTITY, name, data)

    def forget(self) -> None:
        """The TPM has stopped: what was launched no longer holds."""
        self._log.clear()

    def record(self, name: str, data: bytes) -> None:
        """Extend PCR 19 with a record and append it to the log.

        Raises EnvironmentFault where there was no launch or the TPM refuses: then neither the
        PCR nor the log has changed.
        """
        if not self._log:
            raise EnvironmentFault("there was no launch to record for")
        if len(data) > MAX_MEASURED or len(self._log) > MAX_LOG:
            raise EnvironmentFault(
                "the record or the log is too large", expected=MAX_MEASURED, got=len(data)
            )
        self._extend(launchlog.PCR_RECORD, launchlog.TAG_RECORD, name, data)

    def _active_banks(self) -> tuple[HashAlgorithm, ...]:
        """Return the allocated banks.  One that we cannot hash for is refused: its PCRs would
        not be what the log says."""
        ask = commands.get_pcr_banks()
        banks = []
        for alg_id in commands.parse_get_pcr_banks(ask, self._upstream.execute(ask.data, 0)):
            bank = HashAlgorithm.from_alg_id(alg_id)
            if bank is None:
                raise EnvironmentFault("a PCR bank of an unknown algorithm", got=hex(alg_id))
            banks.append(bank)
        return tuple(banks)

    def _measure_manifest(self, manifest: bytes) -> None:
        event = launchlog.tagged_event(launchlog.TAG_MANIFEST, launchlog.MANIFEST, manifest)
        self._hash(Control.HASH_START)
        for start in range(0, len(event), HASH_CHUNK):
            part = event[start : start + HASH_CHUNK]
            self._hash(Control.HASH_DATA, len(part).to_bytes(4, "big") + part)
        self._hash(Control.HASH_END)
        self._log += launchlog.event2(launchlog.PCR_MANIFEST, event, self._banks)

    def _hash(self, number: Control, body: bytes = b"") -> None:
        code = control.result_code(self._upstream.control(control.request(number, body)))
        if code != control.TPM_SUCCESS:
            raise EnvironmentFault(
                "the TPM refused the dynamic launch", where=number.name, expected=0, got=hex(code)
            )

    def _extend(self, pcr: int, tag: int, name: str, data: bytes) -> None:
        event = launchlog.tagged_event(tag, name, data)
        extend = commands.pcr_extend(pcr, {bank: bank.hash(event) for bank in self._banks})
        commands.empty(extend, self._upstream.execute(extend.data, SECURE_KERNEL_LOCALITY))
        self._log += launchlog.event2(pcr, event, self._banks)

    # --- keys ---------------------------------------------------------------------------------

    def _make_keys(self) -> None:
        """Make the attestation keys, or keep those whose contexts still load.

        After a resume the firmware's platform authorization is in force and no key can be made;
        but contexts outlive everything short of a TPM Reset (part 1, 30.3), and with a key file
        the process that made them.
        """
        for key_type in KeyType:
            made = self._make_key(key_type)
            if made is not None:
                self.keys[key_type] = made
            elif key_type in self.keys and not self._loads(self.keys[key_type].context):
                del self.keys[key_type]
        if self._key_file is not None:
            # Without the file a later process makes a stand-in key; the guest runs on regardless.
            with contextlib.suppress(OSError):
                self._key_file.save(self.keys)

    def _make_key(self, key_type: KeyType) -> LaunchedKey | None:
        create = commands.create_primary(RH_PLATFORM, ak_template(key_type))
        save = commands.context_save(HandleOf(0))
        responses = self._runner.run(Batch.of(0, [create, save]))
        if response_code(responses[-1]) != RC_SUCCESS:
            return None
        created = commands.parse_create_primary(create, responses[0])
        context = commands.parse_context_save(save, responses[1])
        return LaunchedKey(created.public, created.name, context)

    def _loads(self, context: bytes) -> bool:
        (response,) = self._runner.run(Batch.of(0, [commands.context_load(context)]))
        return response_code(response) == RC_SUCCESS
