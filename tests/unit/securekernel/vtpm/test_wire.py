import struct

import pytest

from undercroft.base import FormatError, HashAlgorithm
from undercroft.securekernel.vtpm import commands, protocol
from undercroft.securekernel.vtpm.rc import TpmError
from undercroft.securekernel.vtpm.wire import (
    HEADER,
    RH_ENDORSEMENT,
    Auth,
    CommandCode,
    HandleOf,
    build,
    error_response,
    parse_response,
    response_code,
)


def test_a_command_without_authorizations() -> None:
    command = build(CommandCode.READ_PUBLIC, handles=[0x80000001])
    assert command.data == bytes.fromhex("8001 0000000e 00000173 80000001")
    assert command.patches == ()


def test_a_command_with_the_empty_password() -> None:
    command = build(CommandCode.NV_READ, handles=[1, 1], auths=[Auth()], parameters=b"\0\x08\0\0")
    assert command.data == bytes.fromhex(
        "8002 00000023 0000014e 00000001 00000001 00000009 40000009 0000 01 0000 0008 0000"
    )


def test_open_handles_are_noted_in_the_handle_and_authorization_areas() -> None:
    command = build(CommandCode.QUOTE, handles=[HandleOf(0)], auths=[Auth(HandleOf(1))])
    assert command.patches == ((10, 0), (18, 1))
    assert command.data[10:22].hex() == "00000000" + "00000009" + "00000000"


def test_a_command_beyond_4096_bytes_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="4096"):
        build(CommandCode.PCR_READ, parameters=bytes(4096))


@pytest.mark.parametrize(
    "response",
    [
        b"",
        bytes.fromhex("8001 0000000a 0000"),
        bytes.fromhex("8001 0000000b 00000000"),
        bytes.fromhex("8001 00000009 00000000"),
        bytes.fromhex("1234 0000000a 00000000"),
    ],
    ids=["empty", "header cut", "size too large", "size too small", "unknown tag"],
)
def test_malformed_responses_are_refused(response: bytes) -> None:
    with pytest.raises(FormatError):
        response_code(response)


def test_a_refusal_is_a_typed_error() -> None:
    command = commands.flush_context(0x80000000)
    with pytest.raises(TpmError, match="TPM_RC_LOCALITY") as caught:
        parse_response(command, error_response(0x907))
    assert caught.value.command == "TPM2_FLUSH_CONTEXT"


def test_the_answers_tag_must_be_the_commands() -> None:
    command = commands.flush_context(0x80000000)
    with pytest.raises(FormatError, match="tag"):
        parse_response(command, HEADER.pack(0x8002, 10, 0))


def test_session_areas_are_checked_for_form() -> None:
    command = commands.pcr_extend(16, {HashAlgorithm.SHA256: bytes(32)})
    good = HEADER.pack(0x8002, 19, 0) + bytes(4) + bytes.fromhex("0000 01 0000")
    commands.empty(command, good)
    with pytest.raises(FormatError):
        commands.empty(command, HEADER.pack(0x8002, 18, 0) + bytes(4) + bytes.fromhex("000001 00"))
    with pytest.raises(FormatError, match="left over"):
        commands.empty(command, HEADER.pack(0x8002, 15, 0) + struct.pack(">I", 1) + b"x")


def test_selections_are_little_endian_bit_maps() -> None:
    encoded = commands.encode_selection({HashAlgorithm.SHA256: [0, 7, 10, 23]})
    assert encoded.hex() == "00000001" + "000b" + "03" + "810480"
    with pytest.raises(ValueError, match="PCR 24"):
        commands.encode_selection({HashAlgorithm.SHA1: [24]})


def test_pcr_reads_hold_at_most_eight() -> None:
    parts = commands.chunks({HashAlgorithm.SHA1: range(10), HashAlgorithm.SHA256: [3, 3]})
    assert parts == [
        (HashAlgorithm.SHA1, tuple(range(8))),
        (HashAlgorithm.SHA1, (8, 9)),
        (HashAlgorithm.SHA256, (3,)),
    ]


@pytest.mark.parametrize(
    "body",
    [
        struct.pack(">II", 1, 17),
        struct.pack(">III", 1, 0, 9),
        struct.pack(">III", 1, 0, 1) + b"\0\x41" + bytes(65),
        struct.pack(">III", 1, 0, 1) + b"\0\x20" + bytes(31),
        struct.pack(">III", 1, 0, 0) + b"x",
    ],
    ids=["too many banks", "too many digests", "digest too long", "digest cut", "leftover"],
)
def test_malformed_pcr_reads_are_refused(body: bytes) -> None:
    command = commands.pcr_read({HashAlgorithm.SHA256: [0]})
    with pytest.raises(FormatError):
        commands.parse_pcr_read(command, HEADER.pack(0x8001, 10 + len(body), 0) + body)


def test_handles_of_another_capability_are_refused() -> None:
    body = struct.pack(">BII", 0, 2, 0)
    with pytest.raises(FormatError, match="capability"):
        commands.parse_get_handles(
            commands.get_handles(0x80000000), HEADER.pack(0x8001, 10 + len(body), 0) + body
        )


def test_a_batch_survives_the_socket() -> None:
    create = commands.create_primary(RH_ENDORSEMENT, b"template")
    flush = commands.flush_context(HandleOf(0))
    body = protocol.encode_batch(2, [create, flush])
    batch = protocol.parse_batch(body[1:])
    assert batch.locality == 2
    assert [c.data for c in batch.commands] == [create.data, flush.data]
    assert [c.patches for c in batch.commands] == [(), ((10, 0),)]


GOOD = build(CommandCode.READ_PUBLIC, handles=[0]).data


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes([5, 1]) + struct.pack(">I", 14) + GOOD + b"\0\0",
        bytes([0, 0]),
        bytes([0, 33]) + (struct.pack(">I", 14) + GOOD + b"\0\0") * 33,
        bytes([0, 1]) + struct.pack(">I", 4097) + bytes(4097) + b"\0\0",
        bytes([0, 1]) + struct.pack(">I", 13) + GOOD[:13] + b"\0\0",
        bytes([0, 1]) + struct.pack(">I", 14) + GOOD + b"\1" + struct.pack(">HB", 10, 0) + b"\0",
        bytes([0, 1]) + struct.pack(">I", 14) + GOOD + b"\0\1\0",
        bytes([0, 1]) + struct.pack(">I", 14) + GOOD + b"\0\0" + b"x",
    ],
    ids=[
        "empty",
        "no such locality",
        "no command",
        "too many commands",
        "command too large",
        "size disagrees",
        "patch refers to itself",
        "ends itself",
        "leftover",
    ],
)
def test_malformed_batches_are_refused(body: bytes) -> None:
    with pytest.raises(FormatError):
        protocol.parse_batch(body)


def test_a_patch_outside_the_command_is_refused() -> None:
    one = struct.pack(">I", 14) + GOOD
    for offset in (0, 9, 11, 0xFFFF):
        body = bytes([0, 2]) + one + b"\0\0" + one + b"\1" + struct.pack(">HB", offset, 0)
        with pytest.raises(FormatError, match="patch"):
            protocol.parse_batch(body)
