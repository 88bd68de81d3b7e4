"""The values of ``base`` refuse what they cannot be."""

from __future__ import annotations

import hashlib

import pytest

from undercroft.base import Digest, Finding, HashAlgorithm, Nonce, Outcome, PcrBank, worst
from undercroft.base.errors import FormatError, MemoryFault, UndercroftError, VerificationError


def test_hash_algorithms_are_found_by_tcg_id_and_linux_name() -> None:
    assert HashAlgorithm.from_alg_id(0x000B) is HashAlgorithm.SHA256
    assert HashAlgorithm.from_alg_id(0x0010) is None
    assert HashAlgorithm.from_name("sha384") is HashAlgorithm.SHA384
    assert HashAlgorithm.from_name("md5") is None
    assert str(HashAlgorithm.SHA1) == "sha1"


def test_a_digest_hashes_all_parts_in_order() -> None:
    digest = HashAlgorithm.SHA256.digest(b"a", bytearray(b"b"), memoryview(b"c"))
    assert digest.value == hashlib.sha256(b"abc").digest()
    assert str(digest) == "sha256:" + hashlib.sha256(b"abc").hexdigest()


def test_a_digest_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes, got 20"):
        Digest(HashAlgorithm.SHA256, bytes(20))


def test_digests_match_only_with_the_same_algorithm_and_value() -> None:
    one = HashAlgorithm.SHA256.digest(b"x")
    assert one.matches(HashAlgorithm.SHA256.digest(b"x"))
    assert not one.matches(HashAlgorithm.SHA256.digest(b"y"))
    assert not one.matches(Digest(HashAlgorithm.SHA3_256, one.value))


def test_extending_a_pcr_is_hash_of_old_and_new() -> None:
    bank = PcrBank(HashAlgorithm.SHA1, {3: bytes(20), 1: b"\1" * 20})
    assert list(bank.values) == [1, 3]
    after = bank.extended(3, b"\2" * 20)
    assert after.values[3] == hashlib.sha1(bytes(20) + b"\2" * 20).digest()
    assert bank.values[3] == bytes(20)


@pytest.mark.parametrize(("index", "value"), [(24, bytes(32)), (-1, bytes(32)), (0, bytes(20))])
def test_a_bank_refuses_impossible_pcrs(index: int, value: bytes) -> None:
    with pytest.raises(ValueError, match="PCR"):
        PcrBank(HashAlgorithm.SHA256, {index: value})


def test_a_nonce_is_neither_short_nor_padded() -> None:
    with pytest.raises(ValueError, match="16 to 64"):
        Nonce(bytes(15))
    with pytest.raises(ValueError, match="16 to 64"):
        Nonce(bytes(65))
    nonce = Nonce(b"n" * 20)
    assert nonce.matches(b"n" * 20)
    assert not nonce.matches(b"n" * 20 + b"\0")
    assert str(nonce) == (b"n" * 20).hex()


def test_nothing_checked_is_nothing_known() -> None:
    assert worst([]) is Outcome.UNKNOWN
    assert worst([Outcome.PASS, Outcome.UNKNOWN]) is Outcome.UNKNOWN
    assert worst([Outcome.UNKNOWN, Outcome.FAIL, Outcome.PASS]) is Outcome.FAIL


def test_a_finding_has_one_json_form() -> None:
    finding = Finding("quote.nonce", Outcome.PASS, "the nonce is ours", {"size": 32}, "challenge")
    assert finding.as_json() == {
        "id": "quote.nonce",
        "outcome": "pass",
        "summary": "the nonce is ours",
        "details": {"size": 32},
        "source": "challenge",
    }


def test_errors_say_where_expected_and_got() -> None:
    assert str(UndercroftError("it broke")) == "it broke"
    error = FormatError("TPMS_ATTEST", 4, "wrong magic", expected="ff544347", got="00")
    assert str(error) == "TPMS_ATTEST at offset 4: wrong magic (expected ff544347, got 00)"
    assert (error.format_name, error.offset, error.reason) == ("TPMS_ATTEST", 4, "wrong magic")
    assert str(VerificationError("quote.nonce", "stale", got="x")) == (
        "quote.nonce: stale (expected nothing, got x)"
    )
    fault = MemoryFault(0x1000, kind="virtual")
    assert fault.address == 0x1000
    assert "virtual address 0x1000" in str(fault)
