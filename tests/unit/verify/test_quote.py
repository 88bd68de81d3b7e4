"""What a verified quote says, and which mistakes of the caller are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import PCR_COUNT, HashAlgorithm, PcrBank, VerificationError
from undercroft.formats.tpm import PcrSelection, PcrSelectionList, TpmRh
from undercroft.testing import AkKind, SimulatedAttester
from undercroft.verify.checks import QuoteGrade, Weakness, grade_of
from undercroft.verify.quote import AcceptedState, verify_quote

SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256
NONCE = bytes(range(32))
BOOT = PcrSelectionList.of({SHA256: range(8)})


def test_a_verified_quote_says_what_the_tpm_said() -> None:
    tpm = SimulatedAttester()
    tpm.measure(4, b"boot loader")
    tpm.restart()
    quote = tpm.quote(NONCE, {SHA256: range(8)}).unverified
    verified = verify_quote(quote, tpm.ak, NONCE, BOOT)
    assert verified.pcrs == tpm.read(BOOT)
    assert verified.ak_name == tpm.public.name
    assert verified.hierarchy is TpmRh.ENDORSEMENT
    assert verified.qualifying_data == NONCE
    assert (verified.clock, verified.reset_count, verified.restart_count) == (60_000, 1, 1)
    assert verified.safe is True
    assert verified.firmware_version == tpm.firmware_version
    assert (verified.resets, verified.restarts) == (None, None)
    assert (verified.weaknesses, verified.grade) == ((), QuoteGrade.FULL)
    assert verified.accepted_state == AcceptedState(
        tpm.public.name, 60_000, 1, 1, tpm.firmware_version
    )


def test_resets_and_restarts_are_counted_from_the_accepted_evidence() -> None:
    tpm = SimulatedAttester(hierarchy=TpmRh.NULL)

    def quoted(last: AcceptedState | None) -> tuple[AcceptedState, int | None, int | None]:
        quote = tpm.quote(NONCE, {SHA256: range(8)}).unverified
        verified = verify_quote(quote, tpm.ak, NONCE, BOOT, last)
        return verified.accepted_state, verified.resets, verified.restarts

    state, _, _ = quoted(None)
    tpm.restart()
    tpm.restart()
    state, *counted = quoted(state)
    assert counted == [0, 2]
    tpm.reset()
    tpm.reset()
    state, *counted = quoted(state)
    assert counted == [2, 0]


@pytest.mark.parametrize(
    ("kind", "banks", "weaknesses"),
    [
        (AkKind.RSASSA, [SHA256], ()),
        (AkKind.RSASSA, [SHA1, SHA256], (Weakness.SHA1_PCR_BANK,)),
        (AkKind.RSASSA_SHA1, [SHA256], (Weakness.SHA1_SIGNATURE,)),
        (AkKind.ECDSA_P256_SHA1, [SHA1], (Weakness.SHA1_SIGNATURE, Weakness.SHA1_PCR_BANK)),
    ],
)
def test_sha1_is_graded_weak(
    kind: AkKind, banks: list[HashAlgorithm], weaknesses: tuple[Weakness, ...]
) -> None:
    tpm = SimulatedAttester(kind)
    selection = {bank: [0] for bank in banks}
    quote = tpm.quote(NONCE, selection).unverified
    verified = verify_quote(quote, tpm.ak, NONCE, PcrSelectionList.of(selection))
    assert verified.weaknesses == weaknesses
    assert verified.grade is (QuoteGrade.WEAK if weaknesses else QuoteGrade.FULL)


def test_tpm_12_is_graded_legacy_whatever_else() -> None:
    assert grade_of((Weakness.SHA1_SIGNATURE, Weakness.TPM12)) is QuoteGrade.LEGACY


def test_the_key_of_another_parent_has_no_hierarchy() -> None:
    tpm = SimulatedAttester()
    tpm.qualified_name = tpm.public.qualified_name(b"\0\x0b" + bytes(32))
    quote = tpm.quote(NONCE, {SHA256: range(8)}).unverified
    assert verify_quote(quote, tpm.ak, NONCE, BOOT).hierarchy is None


@pytest.mark.parametrize(
    "selection",
    [
        PcrSelectionList(()),
        PcrSelectionList.of({SHA256: []}),
        PcrSelectionList(2 * BOOT.selections),
    ],
)
def test_an_empty_or_double_expectation_is_the_callers_mistake(
    selection: PcrSelectionList,
) -> None:
    tpm = SimulatedAttester()
    quote = tpm.quote(NONCE, {SHA256: range(8)}).unverified
    with pytest.raises(ValueError, match="no selection to expect"):
        verify_quote(quote, tpm.ak, NONCE, selection)


def test_expecting_no_qualifying_data_is_the_callers_mistake() -> None:
    tpm = SimulatedAttester()
    quote = tpm.quote(b"", {SHA256: range(8)}).unverified
    with pytest.raises(ValueError, match="not fresh"):
        verify_quote(quote, tpm.ak, b"", BOOT)


@given(
    asked=st.sets(st.integers(0, PCR_COUNT - 1), min_size=1),
    signed=st.sets(st.integers(0, PCR_COUNT - 1)),
    claimed=st.sets(st.integers(0, PCR_COUNT - 1)),
)
def test_a_quote_is_accepted_only_if_asked_signed_and_claimed_agree(
    asked: set[int], signed: set[int], claimed: set[int]
) -> None:
    tpm = SimulatedAttester()
    quote = tpm.quote(NONCE, {SHA256: signed})
    values = tpm.read(PcrSelectionList.of({SHA256: claimed}))
    unverified = tpm.signed(quote.unverified.attest, values).unverified
    expected = PcrSelectionList.of({SHA256: asked})
    if asked == signed == claimed:
        assert verify_quote(unverified, tpm.ak, NONCE, expected).pcrs == values
    else:
        with pytest.raises(VerificationError) as caught:
            verify_quote(unverified, tpm.ak, NONCE, expected)
        wanted = "quote.claimed-pcrs" if asked == signed else "quote.selection"
        assert caught.value.check == wanted


@given(st.integers(0, 31), st.integers(0, 7))
def test_any_changed_bit_of_a_value_is_found(byte: int, bit: int) -> None:
    tpm = SimulatedAttester()
    quote = tpm.quote(NONCE, {SHA256: [3]})
    value = bytearray(32)
    value[byte] ^= 1 << bit
    unverified = tpm.signed(
        quote.unverified.attest, (PcrBank(SHA256, {3: bytes(value)}),)
    ).unverified
    with pytest.raises(VerificationError) as caught:
        verify_quote(unverified, tpm.ak, NONCE, PcrSelectionList.of({SHA256: [3]}))
    assert caught.value.check == "quote.pcr-digest"


def test_an_error_shows_both_selections() -> None:
    tpm = SimulatedAttester()
    signed = PcrSelection(0x1234, b"\x01")
    quote = tpm.quote(NONCE, {SHA256: [0]}).unverified.attest
    info = type(quote.attested)(PcrSelectionList((signed,)), bytes(32))  # type: ignore[call-arg,arg-type]
    unverified = tpm.signed(tpm.attest(info, NONCE), ()).unverified
    with pytest.raises(VerificationError) as caught:
        verify_quote(unverified, tpm.ak, NONCE, BOOT)
    assert caught.value.expected == "sha256:0,1,2,3,4,5,6,7"
    assert caught.value.got == "0x1234:0"
