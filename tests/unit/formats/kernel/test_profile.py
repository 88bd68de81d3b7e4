"""A profile gives back what went in, names itself, and refuses any other byte."""

from __future__ import annotations

import hashlib
import struct

import pytest

from undercroft.base import FormatError
from undercroft.formats import cbor
from undercroft.formats.kernel.profile import (
    MAGIC,
    PackageIdentity,
    VmlinuzIdentity,
    encode_profile,
    parse_profile,
)
from undercroft.testing import tinykernel
from undercroft.testing.tinykernel import TinyKernel
from undercroft.testing.tinymodule import ALLOC, EXEC, TinyModule

PACKAGE = PackageIdentity("linux-image-tiny", "6.1-1", "amd64", "ab" * 32)
VMLINUZ = VmlinuzIdentity("cd" * 32, tinykernel.VERSION, "CN=Signer")


def kernel_elf() -> bytes:
    tiny = TinyKernel()
    tiny.code(0x100, "c3", "one")
    tiny.alternative(0x120, 3, 7, b"\x90")
    return tiny.elf()


def module() -> bytes:
    tiny = TinyModule("thing")
    tiny.section(".text", ALLOC | EXEC, b"\xc3")
    return tiny.build()


def profile() -> bytes:
    return encode_profile(PACKAGE, VMLINUZ, kernel_elf(), {"thing": module()})


def header_of(data: bytes) -> tuple[bytes, int]:
    (size,) = struct.unpack_from("<I", data, len(MAGIC))
    start = len(MAGIC) + 4
    return data[start : start + size], start


def with_header(data: bytes, **changes: cbor.CborValue) -> bytes:
    header, start = header_of(data)
    decoded = cbor.decode(header, "test")
    assert isinstance(decoded, dict)
    new = cbor.encode({**decoded, **changes})
    return MAGIC + struct.pack("<I", len(new)) + new + data[start + len(header) :]


def test_what_goes_in_comes_out() -> None:
    data = profile()
    parsed = parse_profile(data)
    assert (parsed.package, parsed.vmlinuz) == (PACKAGE, VMLINUZ)
    assert parsed.modules == ("thing",)
    assert parsed.kernel.symbols.address("one") == tinykernel.LINK_BASE + 0x100
    assert parsed.kernel.sha256 == VMLINUZ.sha256
    found = parsed.module("thing")
    assert found is not None
    assert found.name == "thing"
    assert parsed.module("thing") is found
    assert parsed.module("nothing") is None
    assert parsed.module("vmlinux") is None


def test_the_same_inputs_give_the_same_bytes_and_the_id_is_the_headers() -> None:
    data = profile()
    assert data == profile()
    header, _ = header_of(data)
    assert parse_profile(data).id == hashlib.sha256(header).hexdigest()


def test_a_changed_part_is_refused_when_it_is_used() -> None:
    other = TinyModule("thing")
    other.section(".text", ALLOC | EXEC, b"\x90")
    data, swapped = (
        profile(),
        encode_profile(PACKAGE, VMLINUZ, kernel_elf(), {"thing": other.build()}),
    )
    header, start = header_of(data)
    other_header, other_start = header_of(swapped)
    mixed = data[: start + len(header)] + swapped[other_start + len(other_header) :]
    if len(mixed) != len(data):
        with pytest.raises(FormatError):
            parse_profile(mixed)
        return
    with pytest.raises(FormatError, match="not what the header says"):
        parse_profile(mixed).module("thing")


@pytest.mark.parametrize("at", [-1, -40])
def test_a_flipped_byte(at: int) -> None:
    data = bytearray(profile())
    data[at] ^= 1
    with pytest.raises(FormatError):
        parse_profile(bytes(data)).module("thing")


@pytest.mark.parametrize("cut", [3, len(MAGIC) + 2, len(MAGIC) + 20, -1])
def test_a_cut_profile(cut: int) -> None:
    with pytest.raises(FormatError):
        parse_profile(profile()[:cut])


def test_bytes_behind_the_parts() -> None:
    with pytest.raises(FormatError, match="not what follows"):
        parse_profile(profile() + b"more")


def test_another_version() -> None:
    with pytest.raises(FormatError, match="another version"):
        parse_profile(with_header(profile(), version=2))


def test_another_key() -> None:
    with pytest.raises(FormatError):
        parse_profile(with_header(profile(), extra=1))


def rows(data: bytes) -> list[list[cbor.CborValue]]:
    decoded = cbor.decode(header_of(data)[0], "test")
    assert isinstance(decoded, dict)
    parts = decoded["parts"]
    assert isinstance(parts, list)
    return parts


def test_parts_that_stand_twice_are_too_long_or_have_no_kernel() -> None:
    data = profile()
    parts = rows(data)
    for changed in ([parts[0], parts[0]], [[*parts[0][:3], 1 << 40]], [parts[1], parts[0]]):
        with pytest.raises(FormatError):
            parse_profile(with_header(data, parts=changed))


def test_a_header_of_absurd_size() -> None:
    with pytest.raises(FormatError, match="longer than the file"):
        parse_profile(MAGIC + b"\xff\xff\xff\xff" + bytes(100))


def test_something_else() -> None:
    with pytest.raises(FormatError, match="not a kernel profile"):
        parse_profile(b"something else")
