from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undercroft.base import Digest, HashAlgorithm
from undercroft.formats.ima import LinuxHash, escape_path
from undercroft.formats.ima.fields import FileDigest

SHOWN = {
    b"/usr/bin/sh": "/usr/bin/sh",
    "/home/zoë/Übung".encode(): "/home/zoë/Übung",
    b"/bad\xff\xfe": "/bad\\xff\\xfe",
    b"/back\\slash": "/back\\x5cslash",
    b"/back\\slash\xff": "/back\\x5cslash\\xff",
    b"/new\nline\x1b[2J": "/new\\x0aline\\x1b[2J",
    "/right\u202eleft".encode(): "/right\\xe2\\x80\\xaeleft",
    b"": "",
}


@pytest.mark.parametrize("path", SHOWN, ids=repr)
def test_paths_are_shown_escaped(path: bytes) -> None:
    assert escape_path(path) == SHOWN[path]


@settings(deadline=None)
@given(st.binary(max_size=20), st.binary(max_size=20))
def test_two_paths_never_look_the_same(one: bytes, other: bytes) -> None:
    assert escape_path(one).isprintable()
    assert (escape_path(one) == escape_path(other)) == (one == other)


def test_the_kernels_names_and_numbers() -> None:
    assert LinuxHash.from_name(b"sha256") is LinuxHash.from_number(4) is LinuxHash.SHA256
    assert LinuxHash.from_name(b"sm3-256") is LinuxHash.from_name(b"sm3") is LinuxHash.SM3_256
    assert LinuxHash.from_name(b"sha3_256") is None
    assert LinuxHash.from_number(23) is None
    assert [member.number for member in LinuxHash] == list(range(23))
    for algorithm in HashAlgorithm:
        linux = LinuxHash.of(algorithm)
        assert linux.algorithm is algorithm
        assert linux.size == algorithm.size


@pytest.mark.parametrize("member", LinuxHash, ids=str)
def test_digest_sizes(member: LinuxHash) -> None:
    other_names = {"rmd160": "ripemd160", "sha3-256": "sha3_256", "sha3-384": "sha3_384"}
    name = other_names.get(member.label, member.label)
    if name in hashlib.algorithms_guaranteed:
        assert hashlib.new(name).digest_size == member.size


def test_a_digest_that_can_be_compared() -> None:
    value = bytes(range(32))
    digest = FileDigest("ima", "sha256", LinuxHash.SHA256, value)
    assert digest.digest == Digest(HashAlgorithm.SHA256, value)
    assert FileDigest("ima", "rmd160", LinuxHash.RIPE_MD_160, bytes(20)).digest is None
