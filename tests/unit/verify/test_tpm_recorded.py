"""What a real TPM (swtpm, driven with tpm2-tools) signed verifies, and says what it must."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from undercroft.base import HashAlgorithm, PcrBank, VerificationError
from undercroft.formats.tpm import (
    CommandAuditInfo,
    NvCertifyInfo,
    NvDigestCertifyInfo,
    PcrSelectionList,
    SessionAuditInfo,
    TimeAttestInfo,
    TpmRh,
    UnverifiedQuote,
    parse_attest,
    parse_creation_data_2b,
    parse_public_2b,
    parse_quote,
    parse_signature,
    parse_statement,
    parse_tools_credential,
)
from undercroft.formats.tpm.certificate import parse_certificate
from undercroft.verify.ak import AttestationKey, verify_ak
from undercroft.verify.ak_key import verify_signature
from undercroft.verify.certify import verify_certify, verify_creation
from undercroft.verify.checks import Check, QuoteGrade
from undercroft.verify.ek import verify_ek, verify_ek_certificate
from undercroft.verify.quote import verify_quote

RECORDED = Path(__file__).parents[2] / "vectors" / "tpm" / "recorded"
QUOTES = sorted(path.stem for path in RECORDED.glob("quote-*.json"))
STATEMENTS: dict[str, type] = {
    "command-audit": CommandAuditInfo,
    "nv": NvCertifyInfo,
    "nv-digest": NvDigestCertifyInfo,
    "session-audit": SessionAuditInfo,
    "time": TimeAttestInfo,
}
NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
CHECK = Check("X1", "x.signature", "says", "source")


def load(name: str) -> dict[str, Any]:
    case: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
    return case


def raw(case: dict[str, Any], field: str) -> bytes:
    return bytes.fromhex(case[field])


def quote_of(case: dict[str, Any]) -> tuple[UnverifiedQuote, PcrSelectionList]:
    banks = []
    for name, values in case["pcrs"].items():
        algorithm = HashAlgorithm.from_name(name)
        assert algorithm is not None
        banks.append(PcrBank(algorithm, {int(i): bytes.fromhex(v) for i, v in values.items()}))
    quote = parse_quote(raw(case, "attest"), raw(case, "signature"), banks)
    return quote, PcrSelectionList.of({bank.algorithm: list(bank.values) for bank in banks})


def ak_of(case: dict[str, Any], parent: bytes | None = None) -> AttestationKey:
    return verify_ak(parse_public_2b(raw(case, "ak_public")), parent=parent)


def test_nothing_is_missing() -> None:
    assert len(QUOTES) == 6
    assert all((RECORDED / f"{name}.json").is_file() for name in STATEMENTS)


@pytest.mark.parametrize("name", QUOTES)
def test_a_recorded_quote_verifies_under_its_endorsement_key(name: str) -> None:
    case = load(name)
    quote, selection = quote_of(case)
    ek = parse_public_2b(raw(load("identity"), "ek_rsa_public"))
    parent = ek.qualified_name(TpmRh.ENDORSEMENT.handle_name)
    verified = verify_quote(quote, ak_of(case, parent), raw(case, "qualifying_data"), selection)
    assert verified.grade is (QuoteGrade.WEAK if "sha1" in str(case["pcrs"]) else QuoteGrade.FULL)
    assert verified.hierarchy is None
    assert verified.safe
    assert quote.attest.encode() == quote.attest_bytes
    assert quote.signature.encode() == raw(case, "signature")
    with pytest.raises(VerificationError) as caught:
        verify_quote(quote, ak_of(case, b"elsewhere"), raw(case, "qualifying_data"), selection)
    assert caught.value.check == "quote.signer"


@pytest.mark.parametrize(
    ("name", "hierarchy", "plain"),
    [
        ("progress-endorsement", TpmRh.ENDORSEMENT, True),
        ("progress-owner", TpmRh.OWNER, False),
    ],
)
def test_a_reset_is_seen_through_the_owners_offset(
    name: str, hierarchy: TpmRh, plain: bool
) -> None:
    first, second = load(name)["quotes"]
    (early, selection), (late, _) = quote_of(first), quote_of(second)
    data = raw(first, "qualifying_data")
    before = verify_quote(early, ak_of(first), data, selection)
    after = verify_quote(late, ak_of(second), data, selection, before.accepted_state)
    assert (after.hierarchy, after.resets, after.restarts) == (hierarchy, 1, 0)
    # The TPM hides its counters from the owner's keys behind a key-specific offset.
    assert (before.reset_count < 100) is plain
    with pytest.raises(VerificationError) as caught:
        verify_quote(early, ak_of(first), data, selection, after.accepted_state)
    assert caught.value.check == "quote.reset-count"


@pytest.mark.parametrize("name", STATEMENTS)
def test_every_other_statement_parses_and_is_signed(name: str) -> None:
    case = load(name)
    attest = parse_attest(raw(case, "attest"))
    assert isinstance(attest.attested, STATEMENTS[name])
    assert attest.encode() == raw(case, "attest")
    assert attest.tpm_generated
    signature = parse_signature(raw(case, "signature"))
    verify_signature(ak_of(case).key, signature, raw(case, "attest"), CHECK)


def test_certify_and_creation() -> None:
    endorsement, owner = TpmRh.ENDORSEMENT.handle_name, TpmRh.OWNER.handle_name
    for name in ("certify", "creation"):
        case = load(name)
        ak = ak_of(case, endorsement)
        subject = parse_public_2b(raw(case, "subject_public"))
        statement = parse_statement(raw(case, "attest"), raw(case, "signature"))
        data = raw(case, "qualifying_data")
        if name == "certify":
            certified = verify_certify(statement, ak, subject, data, parent=owner)
            assert certified.name == subject.name
        else:
            creation = parse_creation_data_2b(raw(case, "creation_data"))
            created = verify_creation(statement, ak, subject, creation.encode(), data)
            assert created.creation.outside_info == b"abc"
            assert created.creation.parent_name == owner


@pytest.mark.parametrize(("kind", "template"), [("rsa", "L-1"), ("ecc", "H-3")])
def test_the_endorsement_keys_of_swtpms_own_ca(kind: str, template: str) -> None:
    case = load("identity")
    ek = verify_ek(parse_public_2b(raw(case, f"ek_{kind}_public")))
    assert ek.template == template
    certified = verify_ek_certificate(
        ek,
        parse_certificate(raw(case, f"ek_{kind}_certificate")),
        intermediates=[parse_certificate(case["intermediate"].encode())],
        roots=[parse_certificate(case["root"].encode())],
        crls=[],
        now=NOW,
    ).certificate
    assert certified.identity is not None
    assert certified.identity.model == "swtpm"
    assert certified.quirks == ()
    assert len(certified.path) == 3
    assert len(certified.revocation.unknown) == 2


def test_a_credential_of_tpm2_tools_parses() -> None:
    blob = raw(load("credential"), "blob")
    assert parse_tools_credential(blob).encode_tools_file() == blob
