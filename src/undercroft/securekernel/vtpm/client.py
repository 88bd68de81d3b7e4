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
from typing import Any, TypeAlias

from undercroft.base import FormatError, HashAlgorithm, PcrBank
from undercroft.securekernel.vtpm import commands, protocol
from undercroft.securekernel.vtpm.commands import PcrSelection
from undercroft.securekernel.vtpm.keys import (
    SECURE_KERNEL_LOCALITY,
    EkType,
    KeyType,
    ak_template,
    ek_template,
)
from undercroft.securekernel.vtpm.launchlog import LaunchConfig
from undercroft.securekernel.vtpm.pcrs import PcrReads, quotes_these
from undercroft.securekernel.vtpm.protocol import Done
from undercroft.securekernel.vtpm.rc import TpmError, VtpmUnavailable
from undercroft.securekernel.vtpm.wire import (
    RH_ENDORSEMENT,
    Auth,
    Command,
    HandleOf,
    response_code,
)

Selected: TypeAlias = tuple[tuple[HashAlgorithm, tuple[int, ...]], ...]

_AUTHORIZE = (
    commands.start_policy_session(),
    commands.policy_locality(HandleOf(1), 1 << SECURE_KERNEL_LOCALITY),
)
"""Commands 1 and 2 of a quote: satisfy the attestation key's policy."""

_ANY_QUOTE = commands.quote(0, Auth(), b"", b"")
"""For parsing the response to a TPM2_Quote that the multiplexer has made."""

NV_CHUNK = 1024
"""Bytes read by one TPM2_NV_Read: TPM_PT_NV_BUFFER_MAX of libtpms."""


@dataclass(frozen=True, slots=True)
class AttestationKey:
    """The attestation key: TPMT_PUBLIC bytes, its Name (nameAlg and digest), its hierarchy.

    ``hierarchy`` is "platform" for the key of the launch, "endorsement" for the one that stands
    in where the launch could make none.
    """

    key_type: KeyType
    public: bytes
    name: bytes
    hierarchy: str


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote with the PCR values of the same slot: TPMS_ATTEST, TPMT_SIGNATURE, TPMT_PUBLIC.

    ``launch`` and ``log_size`` say which launch held and how much of its log the quote covers;
    see :meth:`VtpmClient.launch_log`.
    """

    attest: bytes
    signature: bytes
    ak_public: bytes
    pcrs: tuple[PcrBank, ...]
    launch: int
    log_size: int


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
        self._last_pcrs: dict[Selected, tuple[PcrBank, ...]] = {}

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
            message = protocol.receive(self._peer, protocol.MAX_ANSWER)
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

    def batch(self, batch: Sequence[Command], *, locality: int = 0) -> Done:
        """Run commands in one slot; return the responses, up to and with the first refusal."""
        body = protocol.encode_batch(locality, batch)[1:]
        done = protocol.parse_done(self._ask(protocol.Kind.BATCH, body))
        count = len(done.responses)
        if not 1 <= count <= len(batch):
            raise FormatError("vTPM batch responses", 0, "wrong number", got=count)
        if count < len(batch) and response_code(done.responses[-1]) == 0:
            raise FormatError("vTPM batch responses", 0, "some are missing", got=count)
        return done

    def run(self, batch: Sequence[Command], *, locality: int = 0) -> tuple[bytes, ...]:
        """Run commands in one slot; raise TpmError if one of them is refused."""
        responses = self.batch(batch, locality=locality).responses
        code = response_code(responses[-1])
        if code != 0:
            raise TpmError(f"TPM2_{batch[len(responses) - 1].code.name}", code)
        return responses

    # --- the launch -----------------------------------------------------------------------------

    def launch(self, config: LaunchConfig) -> None:
        """Have the secure kernel measured at every start of the TPM, and now if it runs.

        A launch now is marked "attach" in PCR 18: what the guest did before was not covered.
        """
        self._ask(protocol.Kind.LAUNCH, protocol.encode_launch(config))

    def record(self, name: str, data: bytes) -> None:
        """Extend PCR 19 with a record (at most 64 KiB) and append it to the launch's log."""
        self._ask(protocol.Kind.RECORD, protocol.encode_named(name, data))

    def launch_log(self, quote: Quote) -> bytes:
        """Return the launch's crypto-agile event log, exactly as far as ``quote`` covers it.

        Empty where there was no launch.  Raises VtpmUnavailable if the TPM was started again.
        """
        log = self._ask(protocol.Kind.LOG, quote.launch.to_bytes(4, "big"))
        if len(log) < quote.log_size:
            raise FormatError("vTPM log", 0, "cut short", expected=quote.log_size, got=len(log))
        return log[: quote.log_size]

    def current_launch_log(self) -> bytes:
        """Return the log of the launch that holds now, empty where there was none.

        A quote taken later covers it only if ``launch_log`` of that quote is the same.
        """
        return self._ask(protocol.Kind.LOG, int(self.status()["launch"]).to_bytes(4, "big"))

    # --- PCRs -------------------------------------------------------------------------------

    def pcr_read(self, selection: PcrSelection) -> tuple[PcrBank, ...]:
        """Return the values of ``selection``, all of one moment; one bank per hash algorithm."""
        reads = PcrReads(selection)
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
        """Return the attestation key, the same one every time; its saved context is kept."""
        keys = json.loads(self._ask(protocol.Kind.KEYS, b""))
        if key_type.value not in keys:
            return self._create_stand_in(key_type)
        key = keys[key_type.value]
        self._contexts[key_type] = bytes.fromhex(key["context"])
        self._keys[key_type] = AttestationKey(
            key_type, bytes.fromhex(key["public"]), bytes.fromhex(key["name"]), "platform"
        )
        return self._keys[key_type]

    def _create_stand_in(self, key_type: KeyType) -> AttestationKey:
        """Make a key in the endorsement hierarchy: the platform hierarchy is closed by now."""
        create = commands.create_primary(RH_ENDORSEMENT, ak_template(key_type))
        save = commands.context_save(HandleOf(0))
        created_bytes, saved_bytes = self.run([create, save])
        created = commands.parse_create_primary(create, created_bytes)
        self._contexts[key_type] = commands.parse_context_save(save, saved_bytes)
        self._keys[key_type] = AttestationKey(key_type, created.public, created.name, "endorsement")
        return self._keys[key_type]

    def quote(
        self,
        qualifying_data: bytes,
        selection: PcrSelection,
        *,
        key_type: KeyType = KeyType.ECC,
    ) -> Quote:
        """Quote ``selection``, with the values that the quote's pcrDigest is of.

        They are read in the same slot, or, if that digest says that none has changed, are those
        of this connection's last quote.
        ``qualifying_data`` is at most 64 bytes.  Banks are quoted in the order given.
        """
        if len(qualifying_data) > protocol.MAX_DATA:
            raise ValueError(f"qualifyingData has at most {protocol.MAX_DATA} bytes")
        selected = tuple((bank, tuple(indices)) for bank, indices in selection.items())
        encoded = commands.encode_selection(dict(selected))
        unchanged = self._quote_unchanged(key_type, qualifying_data, selected, encoded)
        if unchanged is not None:
            return unchanged
        quote = commands.quote(HandleOf(0), Auth(HandleOf(1), last=True), qualifying_data, encoded)
        reads = PcrReads(dict(selected))
        done = self._with_ak(key_type, [*_AUTHORIZE, quote, *reads.commands])
        pcrs = self._last_pcrs[selected] = reads.parse(done.responses[4:])
        return self._quoted(key_type, quote, done, done.responses[3], pcrs)

    def _quote_unchanged(
        self, key_type: KeyType, qualifying_data: bytes, selected: Selected, encoded: bytes
    ) -> Quote | None:
        """Quote with the key that the launch made, if no PCR has changed since the last quote."""
        pcrs, key = self._last_pcrs.get(selected), self._keys.get(key_type)
        if pcrs is None or key is None or key.hierarchy != "platform":
            return None
        body = protocol.encode_quote(key_type, qualifying_data, encoded)
        done = protocol.parse_done(self._ask(protocol.Kind.QUOTE, body))
        if len(done.responses) != 1:
            return None
        quote = self._quoted(key_type, _ANY_QUOTE, done, done.responses[0], pcrs)
        return quote if quotes_these(quote.attest, pcrs) else None

    def _quoted(
        self,
        key_type: KeyType,
        command: Command,
        done: Done,
        response: bytes,
        pcrs: tuple[PcrBank, ...],
    ) -> Quote:
        attest, signature = commands.parse_quote(command, response)
        public = self._keys[key_type].public
        return Quote(attest, signature, public, pcrs, done.launch, done.log_size)

    def _with_ak(self, key_type: KeyType, tail: Sequence[Command]) -> Done:
        """Run ``tail`` after the key is loaded, as command 0 of the batch.

        A saved context does not survive a TPM reset; the key is then asked for again.
        """
        known = key_type in self._contexts
        if not known:
            self.create_ak(key_type)
        done = self._load_and_run(key_type, tail)
        if known and len(done.responses) == 1:
            self.create_ak(key_type)
            done = self._load_and_run(key_type, tail)
        code = response_code(done.responses[-1])
        if code != 0:
            failed = [commands.context_load(b""), *tail][len(done.responses) - 1]
            raise TpmError(f"TPM2_{failed.code.name}", code)
        return done

    def _load_and_run(self, key_type: KeyType, tail: Sequence[Command]) -> Done:
        batch = [commands.context_load(self._contexts[key_type]), *tail]
        return self.batch(batch, locality=SECURE_KERNEL_LOCALITY)

    # --- the endorsement key ----------------------------------------------------------------------

    def ek_public(self, ek_type: EkType = EkType.RSA_2048) -> bytes:
        """Return the endorsement key's TPMT_PUBLIC bytes."""
        create = commands.create_primary(RH_ENDORSEMENT, ek_template(ek_type))
        return commands.parse_create_primary(create, self.run([create])[0]).public

    def ek_certificate(self, ek_type: EkType = EkType.RSA_2048) -> bytes | None:
        """Return the EK certificate (DER) from NV memory, or None if this TPM has none."""
        index = ek_type.certificate_index
        ask = commands.nv_read_public(index)
        response = self.batch([ask]).responses[0]
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
        self,
        blob: bytes,
        secret: bytes,
        *,
        key_type: KeyType = KeyType.ECC,
        ek_type: EkType = EkType.RSA_2048,
    ) -> bytes:
        """Open a credential made for our attestation key and an EK of this TPM.

        ``blob`` is TPMS_ID_OBJECT bytes, ``secret`` the encrypted seed (both without their size).
        """
        ak, ek, session = HandleOf(0), HandleOf(1), HandleOf(2)
        tail = [commands.create_primary(RH_ENDORSEMENT, ek_template(ek_type))]
        ek_auth = Auth()
        if not ek_type.with_auth:
            ek_auth = Auth(session)
            tail += [
                commands.start_policy_session(),
                commands.policy_secret(RH_ENDORSEMENT, session),
            ]
        activate = commands.activate_credential(ak, Auth(), ek, ek_auth, blob, secret)
        responses = self._with_ak(key_type, [*tail, activate]).responses
        return commands.parse_activate_credential(activate, responses[-1])


_HANDLE_1 = 0x18B
"""TPM_RC_HANDLE for the first handle: there is no such NV index."""


def _parse_nv_read(command: Command, response: bytes) -> bytes:
    return commands.parse_nv_read(command, response)
