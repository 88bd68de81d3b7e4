"""The simulated TPM signs what a verifier accepts, and the same thing every time."""

from __future__ import annotations

import pytest

from undercroft.base import HashAlgorithm
from undercroft.formats.tpm import PcrSelectionList, Scheme, TpmAlg
from undercroft.testing import AkKind, SimulatedAttester
from undercroft.testing.attester import sign
from undercroft.verify.quote import verify_quote

SHA256 = HashAlgorithm.SHA256
NONCE = bytes(range(32))


@pytest.mark.parametrize("kind", AkKind)
def test_a_quote_of_every_key_kind_verifies(kind: AkKind) -> None:
    attester = SimulatedAttester(kind)
    attester.measure(4, b"boot loader")
    quote = attester.quote(NONCE, {SHA256: range(8), HashAlgorithm.SHA1: [10]})
    selection = PcrSelectionList.of({SHA256: range(8), HashAlgorithm.SHA1: [10]})
    verified = verify_quote(quote.unverified, attester.ak, NONCE, selection)
    assert verified.pcrs == attester.read(selection)
    assert verified.pcrs[0].values[4] == SHA256.hash(bytes(32), SHA256.hash(b"boot loader"))


@pytest.mark.parametrize("kind", [k for k in AkKind if k is not AkKind.RSAPSS])
def test_the_same_attester_signs_the_same_bytes(kind: AkKind) -> None:
    one, two = (SimulatedAttester(kind).quote(NONCE, {SHA256: [0]}) for _ in range(2))
    assert one == two


def test_another_label_is_another_key() -> None:
    assert SimulatedAttester(label="a").public != SimulatedAttester(label="b").public


def test_reset_clears_the_pcrs_and_counts() -> None:
    attester = SimulatedAttester()
    before = attester.read(PcrSelectionList.of({SHA256: range(24)}))
    attester.measure(0, b"x")
    attester.restart()
    attester.advance(5)
    assert (attester.clock_info.restart_count, attester.clock_info.clock) == (1, 60_005)
    assert attester.read(PcrSelectionList.of({SHA256: range(24)})) != before
    attester.reset()
    assert (attester.clock_info.reset_count, attester.clock_info.restart_count) == (2, 0)
    assert attester.read(PcrSelectionList.of({SHA256: range(24)})) == before
    assert before[0].values[17] == b"\xff" * 32


def test_a_pcr_can_be_set_but_not_to_another_length() -> None:
    attester = SimulatedAttester()
    attester.set_pcr(SHA256, 0, b"\x07" * 32)
    (bank,) = attester.read(PcrSelectionList.of({SHA256: [0]}))
    assert bank.values[0] == b"\x07" * 32
    with pytest.raises(ValueError, match="32 bytes"):
        attester.set_pcr(SHA256, 0, b"\x07" * 20)


def test_a_scheme_without_a_hash_cannot_sign() -> None:
    attester = SimulatedAttester(AkKind.RSASSA)
    with pytest.raises(ValueError, match="no hash"):
        sign(attester.private, Scheme(TpmAlg.RSAES), b"message")
