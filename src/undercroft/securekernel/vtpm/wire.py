"""TPM 2.0 command and response framing (part 1, clause 18), and nothing about single commands.

Commands are built for a *batch*: a handle may be :class:`HandleOf`, which stands for the handle
that an earlier command of the same batch will have returned.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from undercroft.base import FormatError
from undercroft.formats.reader import BoundedReader
from undercroft.securekernel.vtpm.rc import RC_SUCCESS, TpmError

MAX_SIZE = 4096
"""Largest command or response, in bytes: TPM_PT_MAX_COMMAND_SIZE of a PC Client TPM."""

ST_RSP_COMMAND = 0x00C4
ST_NO_SESSIONS = 0x8001
ST_SESSIONS = 0x8002
HEADER = struct.Struct(">HII")
"""tag, size of the whole command or response, command code or response code."""

RH_OWNER = 0x4000_0001
RH_NULL = 0x4000_0007
RS_PW = 0x4000_0009
RH_LOCKOUT = 0x4000_000A
RH_ENDORSEMENT = 0x4000_000B
RH_PLATFORM = 0x4000_000C


class CommandCode(enum.IntEnum):
    """TPM_CC (part 2, clause 6.5.2), as far as the secure kernel speaks or watches for them."""

    EVICT_CONTROL = 0x120
    NV_DEFINE_SPACE = 0x12A
    CREATE_PRIMARY = 0x131
    NV_INCREMENT = 0x134
    STARTUP = 0x144
    SHUTDOWN = 0x145
    ACTIVATE_CREDENTIAL = 0x147
    NV_READ = 0x14E
    POLICY_NV = 0x149
    POLICY_SECRET = 0x151
    CREATE = 0x153
    LOAD = 0x157
    QUOTE = 0x158
    HMAC_START = 0x15B
    POLICY_SIGNED = 0x160
    CONTEXT_LOAD = 0x161
    CONTEXT_SAVE = 0x162
    FLUSH_CONTEXT = 0x165
    LOAD_EXTERNAL = 0x167
    NV_READ_PUBLIC = 0x169
    POLICY_COMMAND_CODE = 0x16C
    POLICY_LOCALITY = 0x16F
    POLICY_PCR = 0x17F
    READ_PUBLIC = 0x173
    START_AUTH_SESSION = 0x176
    GET_CAPABILITY = 0x17A
    GET_RANDOM = 0x17B
    GET_TEST_RESULT = 0x17C
    PCR_READ = 0x17E
    POLICY_RESTART = 0x180
    READ_CLOCK = 0x181
    NV_CERTIFY = 0x184
    PCR_EXTEND = 0x182
    HASH_SEQUENCE_START = 0x186
    CREATE_LOADED = 0x191
    POLICY_AUTHORIZE_NV = 0x192


RETURNS_HANDLE = frozenset(
    {
        CommandCode.CREATE_PRIMARY,
        CommandCode.LOAD,
        CommandCode.HMAC_START,
        CommandCode.CONTEXT_LOAD,
        CommandCode.LOAD_EXTERNAL,
        CommandCode.START_AUTH_SESSION,
        CommandCode.HASH_SEQUENCE_START,
        CommandCode.CREATE_LOADED,
    }
)
"""Commands whose successful response starts with the handle of something now in TPM memory."""


@dataclass(frozen=True, slots=True)
class HandleOf:
    """The handle returned by command number ``index`` (from 0) of the same batch."""

    index: int


Handle: TypeAlias = int | HandleOf


@dataclass(frozen=True, slots=True)
class Auth:
    """One entry of a command's authorization area: the empty password, or a policy session.

    A session whose ``last`` use this is ends with the command (continueSession is clear).
    """

    session: Handle = RS_PW
    last: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """A marshalled command.

    ``patches`` are (byte offset, index): four bytes to be replaced by the handle that command
    ``index`` of the batch returned.  ``ends`` are the indices of those whose handle is gone when
    this command has succeeded.
    """

    code: CommandCode
    data: bytes
    patches: tuple[tuple[int, int], ...] = ()
    ends: tuple[int, ...] = ()


class _Marshal:
    """Bytes so far, and where in them a handle is still open."""

    def __init__(self) -> None:
        self.data = bytearray(HEADER.size)
        self.patches: list[tuple[int, int]] = []

    def handle(self, handle: Handle) -> None:
        if isinstance(handle, HandleOf):
            self.patches.append((len(self.data), handle.index))
            handle = 0
        self.data += handle.to_bytes(4, "big")


def build(
    code: CommandCode,
    *,
    handles: Sequence[Handle] = (),
    auths: Sequence[Auth] = (),
    parameters: bytes = b"",
) -> Command:
    """Return a command of ``handles``, an authorization area (if any ``auths``), ``parameters``."""
    out = _Marshal()
    for handle in handles:
        out.handle(handle)
    if auths:
        size_at = len(out.data)
        out.data += bytes(4)
        for auth in auths:
            out.handle(auth.session)
            # nonceCaller (empty), TPMA_SESSION continueSession, hmac (empty): part 2, 10.13.2
            out.data += bytes([0, 0, not auth.last, 0, 0])
        out.data[size_at : size_at + 4] = (len(out.data) - size_at - 4).to_bytes(4, "big")
    out.data += parameters
    if len(out.data) > MAX_SIZE:
        raise ValueError(f"a command has at most {MAX_SIZE} bytes, got {len(out.data)}")
    HEADER.pack_into(
        out.data, 0, ST_SESSIONS if auths else ST_NO_SESSIONS, len(out.data), int(code)
    )
    ends = tuple(
        auth.session.index for auth in auths if auth.last and isinstance(auth.session, HandleOf)
    )
    return Command(code, bytes(out.data), tuple(out.patches), ends)


def response_code(response: bytes) -> int:
    """Return a response's TPM_RC.  Raises FormatError if it has no proper header."""
    if len(response) < HEADER.size:
        raise FormatError("TPM response", 0, "the header is cut short", got=len(response))
    tag, size, rc = HEADER.unpack_from(response)
    if tag not in (ST_NO_SESSIONS, ST_SESSIONS, ST_RSP_COMMAND):
        raise FormatError("TPM response", 0, "unknown tag", got=hex(tag))
    if size != len(response):
        raise FormatError(
            "TPM response", 2, "responseSize is not the size", expected=len(response), got=size
        )
    return int(rc)


def parse_response(command: Command, response: bytes) -> tuple[int | None, BoundedReader]:
    """Return the response's handle (if the command has one) and a reader over its parameters.

    Raises TpmError where the TPM refused, FormatError where the bytes are not a response.
    The authorization area is checked for form and dropped: sessions here carry no secret.
    """
    rc = response_code(response)
    if rc != RC_SUCCESS:
        raise TpmError(f"TPM2_{command.code.name}", rc)
    reader = BoundedReader(response, f"TPM2_{command.code.name} response", order="big")
    tag, _, _ = HEADER.unpack(reader.take(HEADER.size, "header"))
    (sent_tag,) = struct.unpack_from(">H", command.data)
    if tag != sent_tag:
        raise reader.fail("the tag is not the command's", expected=hex(sent_tag), got=hex(tag))
    handle = reader.u32("handle") if command.code in RETURNS_HANDLE else None
    if tag == ST_NO_SESSIONS:
        return handle, reader
    start = reader.offset + 4
    parameters = reader.sized(4, "parameters")
    while reader.remaining:
        reader.sized(2, "nonceTPM", limit=64)
        reader.u8("sessionAttributes")
        reader.sized(2, "hmac", limit=64)
    return handle, BoundedReader(parameters, reader.format_name, order="big", base=start)


def error_response(rc: int) -> bytes:
    """Return the ten bytes with which a TPM refuses a command."""
    tag = ST_RSP_COMMAND if rc == 0x01E else ST_NO_SESSIONS
    return HEADER.pack(tag, HEADER.size, rc)
