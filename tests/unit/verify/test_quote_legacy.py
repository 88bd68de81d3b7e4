"""TPM 1.2 quotes verify, and never as anything but legacy."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from undercroft.base import FormatError, HashAlgorithm, VerificationError
from undercroft.formats.tpm import PcrComposite, QuoteInfo12, UnverifiedQuote12
from undercroft.testing.attester12 import VERSION_INFO, SimulatedAttester12
from undercroft.verify.checks import QuoteGrade, Weakness
from undercroft.verify.quote_legacy import load_identity_key, verify_quote12

DATA = bytes(range(20))


def tpm() -> SimulatedAttester12:
    attester = SimulatedAttester12()
    attester.measure(4, b"boot loader")
    return attester


@pytest.mark.parametrize(
    "quote",
    [
        tpm().quote(DATA, range(8)),
        tpm().quote2(DATA, range(8)),
        tpm().quote2(DATA, range(8), VERSION_INFO),
    ],
)
def test_quotes_of_both_commands_verify_as_legacy(quote: UnverifiedQuote12) -> None:
    verified = verify_quote12(quote, load_identity_key(tpm().public), DATA, range(8))
    (bank,) = verified.pcrs
    assert bank.algorithm is HashAlgorithm.SHA1
    assert bank.values[4] == tpm().pcrs[4]
    assert verified.qualifying_data == DATA
    assert verified.grade is QuoteGrade.LEGACY
    assert Weakness.TPM12 in verified.weaknesses


def test_quote2_signs_the_selection_itself() -> None:
    good = tpm().quote2(DATA, range(8))
    other = replace(good.claimed_composite, pcr_select=b"\xff\0\0\0")
    with pytest.raises(VerificationError) as caught:
        verify_quote12(
            replace(good, claimed_composite=other), load_identity_key(tpm().public), DATA, range(8)
        )
    assert caught.value.check == "quote12.selection"


@pytest.mark.parametrize(("data", "pcrs"), [(b"", [0]), (bytes(19), [0]), (DATA, [])])
def test_the_callers_mistakes(data: bytes, pcrs: list[int]) -> None:
    with pytest.raises(ValueError, match="20 bytes"):
        verify_quote12(tpm().quote(DATA, range(8)), load_identity_key(tpm().public), data, pcrs)


def test_a_pcr_that_no_tpm_has_is_a_format_error() -> None:
    composite = PcrComposite(b"\0\0\0\1", (bytes(20),))
    quote = tpm().signed(QuoteInfo12(composite.digest, DATA), composite)
    with pytest.raises(FormatError):
        verify_quote12(quote, load_identity_key(tpm().public), DATA, [24])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"modulus": bytes(255) + b"\1"}, "no attestation identity key"),
        ({"exponent": b"\4"}, "cannot be used"),
    ],
)
def test_an_identity_key_is_an_rsa_key(change: dict[str, bytes], why: str) -> None:
    with pytest.raises(VerificationError, match=why) as caught:
        load_identity_key(replace(tpm().public, **change))
    assert caught.value.check == "quote12.key"
