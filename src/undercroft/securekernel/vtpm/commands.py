"""The TPM 2.0 commands that the secure kernel speaks (part 3), each as marshal and parse.

``xxx(...)`` returns a :class:`Command`; ``parse_xxx(command, response)`` returns its values,
raises TpmError where the TPM refused, FormatError where the response is malformed.
Public areas, attestations and signatures are handed on as the bytes they are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from undercroft.base import PCR_COUNT, HashAlgorithm
from undercroft.formats.reader import BoundedReader
from undercroft.securekernel.vtpm.wire import (
    RH_NULL,
    RH_OWNER,
    Auth,
    Command,
    CommandCode,
    Handle,
    build,
    parse_response,
)

ALG_NULL = 0x0010
CAP_HANDLES = 1
CAP_PCRS = 5
SE_POLICY = 0x01
PCRS_PER_READ = 8
"""TPM2_PCR_Read returns one TPML_DIGEST, which holds at most eight digests (part 2, 10.9.7)."""

PcrSelection: TypeAlias = Mapping[HashAlgorithm, Iterable[int]]
"""Which PCRs of which banks, in the order in which the banks are given."""


def tpm2b(data: bytes) -> bytes:
    """Return ``data`` as a TPM2B: two bytes of size before it."""
    return len(data).to_bytes(2, "big") + data


def encode_selection(selection: PcrSelection) -> bytes:
    """Return TPML_PCR_SELECTION with a 24-bit map for each bank (part 2, 10.9.7)."""
    out = struct.pack(">I", len(selection))
    for algorithm, indices in selection.items():
        bits = 0
        for index in indices:
            if not 0 <= index < PCR_COUNT:
                raise ValueError(f"PCR {index} is not one of 0..{PCR_COUNT - 1}")
            bits |= 1 << index
        out += struct.pack(">HB", algorithm.alg_id, 3) + bits.to_bytes(3, "little")
    return out


def empty(command: Command, response: bytes) -> None:
    """Check the response of a command that returns nothing."""
    _, reader = parse_response(command, response)
    reader.finish()


def startup(*, state: bool) -> Command:
    """TPM2_Startup: SU_CLEAR, or SU_STATE if ``state``."""
    return build(CommandCode.STARTUP, parameters=struct.pack(">H", 1 if state else 0))


@dataclass(frozen=True, slots=True)
class Created:
    """A primary object: its handle, TPMT_PUBLIC bytes and Name."""

    handle: int
    public: bytes
    name: bytes


def create_primary(hierarchy: int, template: bytes) -> Command:
    """TPM2_CreatePrimary with empty authorizations; ``template`` is a TPMT_PUBLIC."""
    sensitive = tpm2b(b"") + tpm2b(b"")
    parameters = tpm2b(sensitive) + tpm2b(template) + tpm2b(b"") + struct.pack(">I", 0)
    return build(
        CommandCode.CREATE_PRIMARY, handles=[hierarchy], auths=[Auth()], parameters=parameters
    )


def parse_create_primary(command: Command, response: bytes) -> Created:
    """Return the created object."""
    handle, reader = parse_response(command, response)
    public = reader.sized(2, "outPublic")
    reader.sized(2, "creationData")
    reader.sized(2, "creationHash", limit=64)
    reader.u16("creationTicket.tag")
    reader.u32("creationTicket.hierarchy")
    reader.sized(2, "creationTicket.digest", limit=64)
    name = reader.sized(2, "name", limit=66)
    reader.finish()
    assert handle is not None
    return Created(handle, public, name)


def read_public(handle: Handle) -> Command:
    """TPM2_ReadPublic."""
    return build(CommandCode.READ_PUBLIC, handles=[handle])


def parse_read_public(command: Command, response: bytes) -> tuple[bytes, bytes]:
    """Return (TPMT_PUBLIC bytes, Name)."""
    _, reader = parse_response(command, response)
    public = reader.sized(2, "outPublic")
    name = reader.sized(2, "name", limit=66)
    reader.sized(2, "qualifiedName", limit=66)
    reader.finish()
    return public, name


def quote(key: Handle, auth: Auth, qualifying_data: bytes, selection: bytes) -> Command:
    """TPM2_Quote with the key's own scheme; ``selection`` is TPML_PCR_SELECTION bytes."""
    parameters = tpm2b(qualifying_data) + struct.pack(">H", ALG_NULL) + selection
    return build(CommandCode.QUOTE, handles=[key], auths=[auth], parameters=parameters)


def parse_quote(command: Command, response: bytes) -> tuple[bytes, bytes]:
    """Return (TPMS_ATTEST bytes, TPMT_SIGNATURE bytes)."""
    _, reader = parse_response(command, response)
    attest = reader.sized(2, "quoted")
    return attest, reader.rest()


def pcr_read(selection: PcrSelection) -> Command:
    """TPM2_PCR_Read of at most :data:`PCRS_PER_READ` registers."""
    return build(CommandCode.PCR_READ, parameters=encode_selection(selection))


def parse_pcr_read(command: Command, response: bytes) -> tuple[int, bytes, list[bytes]]:
    """Return (pcrUpdateCounter, TPML_PCR_SELECTION bytes of what was read, digests)."""
    _, reader = parse_response(command, response)
    counter = reader.u32("pcrUpdateCounter")
    start = reader.offset
    banks = reader.u32("pcrSelectionOut.count")
    for _ in range(_count(reader, banks, "pcrSelectionOut.count", 16)):
        reader.u16("hash")
        reader.sized(1, "pcrSelect", limit=4)
    selection = reader.data[start : reader.offset]
    count = _count(reader, reader.u32("pcrValues.count"), "pcrValues.count", PCRS_PER_READ)
    digests = [reader.sized(2, "digest", limit=64) for _ in range(count)]
    reader.finish()
    return counter, selection, digests


def pcr_extend(index: int, digests: Mapping[HashAlgorithm, bytes]) -> Command:
    """TPM2_PCR_Extend of one register, one digest for each bank."""
    out = struct.pack(">I", len(digests))
    for algorithm, digest in digests.items():
        out += struct.pack(">H", algorithm.alg_id) + digest
    return build(CommandCode.PCR_EXTEND, handles=[index], auths=[Auth()], parameters=out)


def start_policy_session() -> Command:
    """TPM2_StartAuthSession: unsalted, unbound, SHA-256, policy.

    The session protects nothing on the wire; it only carries a policy digest.  The caller's
    nonce is therefore a constant.
    """
    parameters = (
        tpm2b(bytes(16))
        + tpm2b(b"")
        + struct.pack(">BHH", SE_POLICY, ALG_NULL, HashAlgorithm.SHA256.alg_id)
    )
    return build(CommandCode.START_AUTH_SESSION, handles=[RH_NULL, RH_NULL], parameters=parameters)


def parse_start_policy_session(command: Command, response: bytes) -> int:
    """Return the session's handle."""
    handle, reader = parse_response(command, response)
    reader.sized(2, "nonceTPM", limit=64)
    reader.finish()
    assert handle is not None
    return handle


def policy_locality(session: Handle, locality: int) -> Command:
    """TPM2_PolicyLocality; ``locality`` is a TPMA_LOCALITY."""
    return build(
        CommandCode.POLICY_LOCALITY, handles=[session], parameters=struct.pack(">B", locality)
    )


def policy_secret(entity: Handle, session: Handle) -> Command:
    """TPM2_PolicySecret with the empty password for ``entity``, no nonce and no expiration."""
    parameters = tpm2b(b"") + tpm2b(b"") + tpm2b(b"") + struct.pack(">i", 0)
    return build(
        CommandCode.POLICY_SECRET, handles=[entity, session], auths=[Auth()], parameters=parameters
    )


def activate_credential(
    key: Handle, key_auth: Auth, ek: Handle, ek_auth: Auth, blob: bytes, secret: bytes
) -> Command:
    """TPM2_ActivateCredential; ``blob`` is TPMS_ID_OBJECT, ``secret`` the encrypted seed."""
    return build(
        CommandCode.ACTIVATE_CREDENTIAL,
        handles=[key, ek],
        auths=[key_auth, ek_auth],
        parameters=tpm2b(blob) + tpm2b(secret),
    )


def parse_activate_credential(command: Command, response: bytes) -> bytes:
    """Return the credential."""
    _, reader = parse_response(command, response)
    value = reader.sized(2, "certInfo", limit=64)
    reader.finish()
    return value


def flush_context(handle: Handle) -> Command:
    """TPM2_FlushContext: the handle is a parameter, not in the handle area (part 3, 28.4)."""
    # Both areas start at the same byte as long as there is no authorization area.
    return build(CommandCode.FLUSH_CONTEXT, handles=[handle])


def context_save(handle: Handle) -> Command:
    """TPM2_ContextSave."""
    return build(CommandCode.CONTEXT_SAVE, handles=[handle])


def parse_context_save(command: Command, response: bytes) -> bytes:
    """Return the TPMS_CONTEXT bytes, as TPM2_ContextLoad takes them."""
    _, reader = parse_response(command, response)
    start = reader.offset
    reader.u64("sequence")
    reader.u32("savedHandle")
    reader.u32("hierarchy")
    reader.sized(2, "contextBlob")
    reader.finish()
    return reader.data[start : reader.offset]


def context_load(context: bytes) -> Command:
    """TPM2_ContextLoad of TPMS_CONTEXT bytes."""
    return build(CommandCode.CONTEXT_LOAD, parameters=context)


def parse_context_load(command: Command, response: bytes) -> int:
    """Return the handle under which the context now is in TPM memory."""
    handle, reader = parse_response(command, response)
    reader.finish()
    assert handle is not None
    return handle


def get_handles(first: int, count: int = 64) -> Command:
    """TPM2_GetCapability of TPM_CAP_HANDLES: handles of one type from ``first`` on."""
    parameters = struct.pack(">III", CAP_HANDLES, first, count)
    return build(CommandCode.GET_CAPABILITY, parameters=parameters)


def parse_get_handles(command: Command, response: bytes) -> list[int]:
    """Return the handles."""
    _, reader = parse_response(command, response)
    reader.u8("moreData")
    capability = reader.u32("capability")
    if capability != CAP_HANDLES:
        raise reader.fail("another capability", expected=CAP_HANDLES, got=capability)
    count = _count(reader, reader.u32("count"), "count", 254)
    handles = [reader.u32("handle") for _ in range(count)]
    reader.finish()
    return handles


def get_pcr_banks() -> Command:
    """TPM2_GetCapability of TPM_CAP_PCRS: which PCRs of which banks are allocated."""
    return build(CommandCode.GET_CAPABILITY, parameters=struct.pack(">III", CAP_PCRS, 0, 1))


def parse_get_pcr_banks(command: Command, response: bytes) -> list[int]:
    """Return the TPM_ALG_ID of every bank that has at least one PCR."""
    _, reader = parse_response(command, response)
    reader.u8("moreData")
    capability = reader.u32("capability")
    if capability != CAP_PCRS:
        raise reader.fail("another capability", expected=CAP_PCRS, got=capability)
    banks = []
    for _ in range(_count(reader, reader.u32("count"), "count", 16)):
        alg_id = reader.u16("hash")
        if any(reader.sized(1, "pcrSelect", limit=4)):
            banks.append(alg_id)
    reader.finish()
    return banks


def nv_read_public(index: int) -> Command:
    """TPM2_NV_ReadPublic."""
    return build(CommandCode.NV_READ_PUBLIC, handles=[index])


def parse_nv_read_public(command: Command, response: bytes) -> int:
    """Return the size of the index's data, in bytes."""
    _, reader = parse_response(command, response)
    public = reader.sized(2, "nvPublic")
    reader.sized(2, "nvName", limit=66)
    reader.finish()
    inner = BoundedReader(public, "TPMS_NV_PUBLIC", order="big")
    inner.u32("nvIndex")
    inner.u16("nameAlg")
    inner.u32("attributes")
    inner.sized(2, "authPolicy", limit=64)
    size = inner.u16("dataSize")
    inner.finish()
    return size


def parse_nv_public_area(command: Command, response: bytes) -> bytes:
    """Return the TPMS_NV_PUBLIC bytes that TPM2_NV_ReadPublic gave."""
    _, reader = parse_response(command, response)
    public = reader.sized(2, "nvPublic")
    reader.sized(2, "nvName", limit=66)
    reader.finish()
    return public


NV_COUNTER = 0x0206_0016
"""TPMA_NV of a counter that owner and empty authValue read and count up (part 2, 13.4):
OWNERWRITE, AUTHWRITE, TPM_NT_COUNTER, OWNERREAD, AUTHREAD, NO_DA."""


def nv_define_counter(index: int) -> Command:
    """TPM2_NV_DefineSpace of a counter, by an owner with the empty password."""
    public = struct.pack(">IHIHH", index, HashAlgorithm.SHA256.alg_id, NV_COUNTER, 0, 8)
    return build(
        CommandCode.NV_DEFINE_SPACE,
        handles=[RH_OWNER],
        auths=[Auth()],
        parameters=tpm2b(b"") + tpm2b(public),
    )


def nv_increment(index: int) -> Command:
    """TPM2_NV_Increment with the index's own empty authorization."""
    return build(CommandCode.NV_INCREMENT, handles=[index, index], auths=[Auth()])


def nv_certify(key: Handle, index: int, qualifying_data: bytes, size: int) -> Command:
    """TPM2_NV_Certify of an index's first ``size`` bytes; the response is as a quote's."""
    parameters = tpm2b(qualifying_data) + struct.pack(">HHH", ALG_NULL, size, 0)
    return build(
        CommandCode.NV_CERTIFY,
        handles=[key, index, index],
        auths=[Auth(), Auth()],
        parameters=parameters,
    )


def nv_read(index: int, size: int, offset: int) -> Command:
    """TPM2_NV_Read with the index's own empty authorization."""
    return build(
        CommandCode.NV_READ,
        handles=[index, index],
        auths=[Auth()],
        parameters=struct.pack(">HH", size, offset),
    )


def parse_nv_read(command: Command, response: bytes) -> bytes:
    """Return the data."""
    _, reader = parse_response(command, response)
    data = reader.sized(2, "data")
    reader.finish()
    return data


def evict_control(hierarchy: int, handle: Handle, persistent: int) -> Command:
    """TPM2_EvictControl: make an object persistent, or take it away again."""
    return build(
        CommandCode.EVICT_CONTROL,
        handles=[hierarchy, handle],
        auths=[Auth()],
        parameters=struct.pack(">I", persistent),
    )


def _count(reader: BoundedReader, value: int, what: str, limit: int) -> int:
    if value > limit:
        raise reader.fail(f"{what} is too large", expected=f"at most {limit}", got=value)
    return value


def chunks(selection: PcrSelection) -> Sequence[tuple[HashAlgorithm, tuple[int, ...]]]:
    """Split a selection into parts that one TPM2_PCR_Read can answer in full."""
    parts: list[tuple[HashAlgorithm, tuple[int, ...]]] = []
    for algorithm, indices in selection.items():
        ordered = sorted(set(indices))
        parts += [
            (algorithm, tuple(ordered[start : start + PCRS_PER_READ]))
            for start in range(0, len(ordered), PCRS_PER_READ)
        ]
    return parts
