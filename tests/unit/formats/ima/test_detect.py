from __future__ import annotations

from dataclasses import replace

import pytest

from undercroft.base import FormatError, HashAlgorithm
from undercroft.formats.ima import (
    ListForm,
    detect,
    encode_ascii,
    encode_binary,
    parse_binary,
    parse_list,
)
from undercroft.testing.ima import SimulatedIma, boot_pcrs

SHA1 = HashAlgorithm.SHA1
ALGORITHMS = [SHA1, HashAlgorithm.SHA256, HashAlgorithm.SHA384, HashAlgorithm.SHA512]


def booted(template: str = "ima-ng", order: str = "little") -> SimulatedIma:
    kernel = SimulatedIma(boot_pcrs(SHA1), template=template, order=order)  # type: ignore[arg-type]
    kernel.boot_aggregate()
    kernel.measure("/init", b"init")
    return kernel


@pytest.mark.parametrize("template", ["ima", "ima-ng", "ima-sig", "d-ng|n-ng|iuid"])
def test_both_forms_are_told_apart(template: str) -> None:
    kernel = booted(template)
    assert detect(kernel.binary) == ListForm(False, SHA1, "little")
    assert detect(kernel.ascii) == ListForm(True, SHA1, "little")
    assert parse_list(kernel.binary) == parse_list(kernel.ascii)


def test_the_byte_order_shows() -> None:
    kernel = booted(order="big")
    assert detect(kernel.binary) == ListForm(False, SHA1, "big")
    assert parse_list(kernel.binary).order == "big"


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_the_bank_of_the_hash_column_shows(algorithm: HashAlgorithm) -> None:
    sha1 = parse_binary(booted().binary)
    hashes = tuple(algorithm.hash(data) for data in sha1.template_data)
    other = replace(sha1, hash_algorithm=algorithm, claimed_template_hashes=hashes)
    assert parse_list(encode_binary(other)) == other
    assert parse_list(encode_ascii(other)) == other


NEITHER = {
    "nothing": b"",
    "text": b"hello, world\n",
    "zeros": bytes(200),
    "ascii-hash-odd-size": b"10 " + b"ab" * 21 + b" ima-ng sha1:00 /x\n",
    "ascii-template-unknown": b"10 " + b"ab" * 20 + b" ima-2030 sha1:00 /x\n",
    "binary-cut": b"\x0a\0\0\0" + bytes(20) + b"\x06\0\0\0ima",
    "binary-name-long": b"\x0a\0\0\0" + bytes(20) + b"\0\1\0\0" + b"d-ng|" * 52,
    "binary-template-unknown": b"\x0a\0\0\0" + bytes(20) + b"\x08\0\0\0ima-2030",
}


@pytest.mark.parametrize("case", NEITHER)
def test_anything_else_is_refused(case: str) -> None:
    with pytest.raises(FormatError, match="neither a binary nor an ASCII list"):
        parse_list(NEITHER[case])
