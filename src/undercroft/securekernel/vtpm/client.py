"""What the secure kernel and the collector call: quotes, PCR values, keys of the guest's TPM.

Nothing is left in the TPM between calls: keys are loaded from a saved context, or made again from
their template, inside the slot that uses them.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from undercroft.base import EnvironmentFault, FormatError, HashAlgorithm, PcrBank
from undercroft.securekernel.vtpm import commands, protocol
from undercroft.securekernel.vtpm.commands import PcrSelection
from undercroft.securekernel.vtpm.keys import (
    SECURE_KERNEL_LOCALITY,
    KeyType,
    ak_template,
    ek_template,
)
from undercroft.securekernel.vtpm.rc import TpmError, VtpmUnavailable
from undercroft.securekernel.vtpm.wire import (
    RH_ENDORSEMENT,
    Auth,
    Command,
    HandleOf,
    response_code,
)

NV_CHUNK = 1024
"""Bytes read by one TPM2_NV_Read: TPM_PT_NV_BUFFER_MAX of libtpms."""


@dataclass(frozen=True, slots=True)
class AttestationKey:
    """The attestation key: TPMT_PUBLIC bytes and its Name (nameAlg and digest)."""

    key_type: KeyType
    public: bytes
    name: bytes


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote with the PCR values of the same slot: TPMS_ATTEST, TPMT_SIGNATURE, TPMT_PUBLIC."""

    attest: bytes
    signature: bytes
    ak_public: bytes
    pcrs: tuple[PcrBank, ...]


class VtpmClient:
    """A connection to the multiplexer's secure-kernel socket.  Not for use by several threads.

    Every call raises VtpmUnavailable where the TPM cannot be reached, TpmError where it refuses,
    FormatError where it answers nonsense.
    """

    def __init__(self, path: Path, *, timeout: float = 120.0) -> None:
        self._path = path
        self._peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._peer.settimeout(timeout)
        try:
            self._peer.connect(str(path))
        except OSError as fault:
            self._peer.close()
            raise VtpmUnavailable(
                f"cannot connect: {fault}",
                where=str(path),
                remedy="is the guest running, with its TPM multiplexer?",
            ) from fault
        self._contexts: dict[KeyType, bytes] = {}
        self._keys: dict[KeyType, AttestationKey] = {}

    def __enter__(self) -> VtpmClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._peer.close()

    # --- the connection -----------------------------------------------------------------------

    def _ask(self, kind: protocol.Kind, body: bytes) -> bytes:
        try:
            protocol.send(self._peer, kind, body)
            message = protocol.receive(self._peer)
        except OSError as fault:
            raise VtpmUnavailable(f"the multiplexer was lost: {fault}") from fault
        if message is None:
            raise VtpmUnavailable("the multiplexer closed the connection", where=str(self._path))
        reply, answer = message
        if reply == protocol.Reply.OK:
            return answer
        text = answer.decode("utf-8", "replace")
        if reply == protocol.Reply.MALFORMED:
            raise FormatError("vTPM message", 0, f"the multiplexer refused it: {text}")
        raise VtpmUnavailable(text, where=str(self._path))

    def status(self) -> dict[str, Any]:
        """Return the multiplexer's state and counters."""
        status = json.loads(self._ask(protocol.Kind.STATUS, b""))
        if not isinstance(status, dict):
            raise FormatError("vTPM status", 0, "not an object")
        return status

    def batch(self, batch: Sequence[Command], *, locality: int = 0) -> list[bytes]:
        """Run commands in one slot; return the responses, up to and with the first refusal."""
        body = protocol.encode_batch(locality, batch)[1:]
        responses = protocol.parse_responses(self._ask(protocol.Kind.BATCH, body))
        complete = len(responses) == len(batch)
        if not responses or len(responses) > len(batch):
            raise FormatError("vTPM batch responses", 0, "wrong number", got=len(responses))
        if not complete and response_code(responses[-1]) == 0:
            raise FormatError("vTPM batch responses", 0, "some are missing", got=len(responses))
        return responses

    def run(self, batch: Sequence[Command], *, locality: int = 0) -> list[bytes]:
        """Run commands in one slot; raise TpmError if one of them is refused."""
        responses = self.batch(batch, locality=locality)
        code = response_code(responses[-1])
        if code != 0:
            raise TpmError(f"TPM2_{batch[len(responses) - 1].code.name}", code)
        return responses

    # --- PCRs -------------------------------------------------------------------------------

    def pcr_read(self, selection: PcrSelection) -> tuple[PcrBank, ...]:
        """Return the values of ``selection``, all of one moment; one bank per hash algorithm."""
        reads = _PcrReads(selection)
        return reads.parse(self.run(reads.commands))

    def pcr_extend(
        self,
        index: int,
        digests: Mapping[HashAlgorithm, bytes],
        *,
        locality: int = SECURE_KERNEL_LOCALITY,
    ) -> None:
        """Extend one PCR in the given banks."""
        command = commands.pcr_extend(index, digests)
        commands.empty(command, self.run([command], locality=locality)[0])

    # --- the attestation key --------------------------------------------------------------------

    def create_ak(self, key_type: KeyType = KeyType.ECC) -> AttestationKey:
        """Make the attestation key (the same one every time) and keep its saved context."""
        create = commands.create_primary(RH_ENDORSEMENT, ak_template(key_type))
        save = commands.context_save(HandleOf(0))
        created_bytes, saved_bytes = self.run([create, save])
        created = commands.parse_create_primary(create, created_bytes)
        self._contexts[key_type] = commands.parse_context_save(save, saved_bytes)
        self._keys[key_type] = AttestationKey(key_type, created.public, created.name)
        return self._keys[key_type]

    def quote(
        self,
        qualifying_data: bytes,
        selection: PcrSelection,
        *,
        key_type: KeyType = KeyType.ECC,
    ) -> Quote:
        """Quote ``selection`` and read it in the same slot.

        ``qualifying_data`` is at most 64 bytes.  Banks are quoted in the order given.
        """
        ordered = {algorithm: tuple(indices) for algorithm, indices in selection.items()}
        reads = _PcrReads(ordered)
        session = HandleOf(1)
        tail = [
            start := commands.start_policy_session(),
            policy := commands.policy_locality(session, 1 << SECURE_KERNEL_LOCALITY),
            quote := commands.quote(HandleOf(0), Auth(session), qualifying_data, ordered),
            *reads.commands,
        ]
        responses = self._with_ak(key_type, tail)
        commands.parse_start_policy_session(start, responses[1])
        commands.empty(policy, responses[2])
        attest, signature = commands.parse_quote(quote, responses[3])
        key = self._keys[key_type]
        return Quote(attest, signature, key.public, reads.parse(responses[4:]))

    def _with_ak(self, key_type: KeyType, tail: Sequence[Command]) -> list[bytes]:
        """Run ``tail`` after the key is loaded, as command 0 of the batch.

        A saved context does not survive a TPM reset; the key is then made again.
        """
        for fresh in (key_type not in self._contexts, True):
            if fresh:
                self.create_ak(key_type)
            batch = [commands.context_load(self._contexts[key_type]), *tail]
            responses = self.batch(batch, locality=SECURE_KERNEL_LOCALITY)
            code = response_code(responses[-1])
            if code == 0:
                return responses
            if len(responses) > 1 or fresh:
                break
        raise TpmError(f"TPM2_{batch[len(responses) - 1].code.name}", code)

    # --- the endorsement key ----------------------------------------------------------------------

    def ek_public(self, key_type: KeyType = KeyType.ECC) -> bytes:
        """Return the endorsement key's TPMT_PUBLIC bytes."""
        create = commands.create_primary(RH_ENDORSEMENT, ek_template(key_type))
        return commands.parse_create_primary(create, self.run([create])[0]).public

    def ek_certificate(self, key_type: KeyType = KeyType.ECC) -> bytes | None:
        """Return the EK certificate (DER) from NV memory, or None if this TPM has none."""
        index = key_type.ek_certificate_index
        ask = commands.nv_read_public(index)
        response = self.batch([ask])[0]
        if response_code(response) == _HANDLE_1:
            return None
        size = commands.parse_nv_read_public(ask, response)
        parts = [
            commands.nv_read(index, min(NV_CHUNK, size - offset), offset)
            for offset in range(0, size, NV_CHUNK)
        ]
        responses = self.run(parts)
        return b"".join(map(_parse_nv_read, parts, responses))

    def activate_credential(
        self, blob: bytes, secret: bytes, *, key_type: KeyType = KeyType.ECC
    ) -> bytes:
        """Open a credential made for our attestation key and this TPM's EK of the same type.

        ``blob`` is TPMS_ID_OBJECT bytes, ``secret`` the encrypted seed (both without their size).
        """
        ek, session = HandleOf(1), HandleOf(2)
        tail = [
            commands.create_primary(RH_ENDORSEMENT, ek_template(key_type)),
            commands.start_policy_session(),
            policy := commands.policy_secret(RH_ENDORSEMENT, session),
            activate := commands.activate_credential(
                HandleOf(0), Auth(), ek, Auth(session), blob, secret
            ),
        ]
        responses = self._with_ak(key_type, tail)
        commands.parse_policy_secret(policy, responses[3])
        return commands.parse_activate_credential(activate, responses[4])


_HANDLE_1 = 0x18B
"""TPM_RC_HANDLE for the first handle: there is no such NV index."""


def _parse_nv_read(command: Command, response: bytes) -> bytes:
    return commands.parse_nv_read(command, response)


class _PcrReads:
    """The commands that read a selection, and the banks that their responses make."""

    def __init__(self, selection: PcrSelection) -> None:
        self._parts = commands.chunks(selection)
        if not self._parts:
            raise ValueError("an empty PCR selection")
        self.commands = [commands.pcr_read({bank: indices}) for bank, indices in self._parts]

    def parse(self, responses: Sequence[bytes]) -> tuple[PcrBank, ...]:
        """Return the banks.  Raises EnvironmentFault where the TPM lacks one, FormatError where
        the parts are not of one moment."""
        banks: dict[HashAlgorithm, dict[int, bytes]] = {}
        counters = set()
        for (bank, indices), command, response in zip(
            self._parts, self.commands, responses, strict=True
        ):
            counter, got, digests = commands.parse_pcr_read(command, response)
            counters.add(counter)
            if got != commands.encode_selection({bank: indices}) or len(digests) != len(indices):
                raise EnvironmentFault(
                    "the TPM did not return the PCRs that were asked for",
                    expected=f"{bank} {list(indices)}",
                    got=f"selection {got.hex()}, {len(digests)} values",
                    remedy="is that PCR bank allocated?",
                )
            banks.setdefault(bank, {}).update(zip(indices, digests, strict=True))
        if len(counters) != 1:
            raise FormatError("TPML_DIGEST", 0, "PCRs changed between reads", got=sorted(counters))
        return tuple(PcrBank(bank, values) for bank, values in banks.items())
