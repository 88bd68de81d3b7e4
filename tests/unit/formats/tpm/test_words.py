"""Every statement of a TPM has words: the fields by their specification's names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from undercroft.base import HashAlgorithm, PcrBank
from undercroft.formats.tpm import (
    KeyedHashPublic,
    PcrSelection,
    PcrSelectionList,
    QuoteInfo,
    QuoteInfo2,
    VersionInfo12,
    parse_attest,
    parse_public_2b,
    parse_quote_info12,
    parse_signature,
)
from undercroft.formats.tpm.words import (
    attest_fields,
    bank_fields,
    lines,
    public_fields,
    quote12_fields,
    signature_fields,
)
from undercroft.testing import SimulatedAttester

RECORDED = Path(__file__).parents[3] / "vectors" / "tpm" / "recorded"
TPM = SimulatedAttester()


def recorded(name: str) -> dict[str, Any]:
    case: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
    return case


@pytest.mark.parametrize(
    ("name", "kind", "fields"),
    [
        ("quote-ecdsa-p256-sha256", "QUOTE", {"pcrSelect", "pcrDigest"}),
        ("certify", "CERTIFY", {"name", "qualifiedName"}),
        ("creation", "CREATION", {"objectName", "creationHash"}),
        ("nv", "NV", {"indexName", "offset", "nvContents"}),
        ("nv-digest", "NV_DIGEST", {"indexName", "nvDigest"}),
        ("time", "TIME", {"time", "clockInfo", "firmwareVersion"}),
        (
            "command-audit",
            "COMMAND_AUDIT",
            {"auditCounter", "digestAlg", "auditDigest", "commandDigest"},
        ),
        ("session-audit", "SESSION_AUDIT", {"exclusiveSession", "sessionDigest"}),
    ],
)
def test_a_recorded_statement_is_told_by_its_fields(name: str, kind: str, fields: set[str]) -> None:
    raw = bytes.fromhex(recorded(name)["attest"])
    attest = parse_attest(raw)
    said = attest_fields(attest)
    assert json.loads(json.dumps(said)) == said
    assert said["magic"] == "0xff544347"
    assert said["type"] == f"TPM_ST_ATTEST_{kind}"
    assert said["type"] == str(attest.type)
    attested = said["attested"]
    assert isinstance(attested, dict)
    assert set(attested) == fields
    # What is shown in hexadecimal is in the bytes that were signed.
    values = [*attested.values(), said["extraData"], said["qualifiedSigner"]]
    for value in values:
        if isinstance(value, str) and len(value) >= 40:
            assert bytes.fromhex(value.removeprefix("0x")) in raw
    assert any(line.strip().startswith(sorted(fields)[0]) for line in lines(said))


def test_keys_signatures_and_banks_have_words() -> None:
    ecc, rsa = recorded("quote-ecdsa-p256-sha256"), recorded("quote-rsapss-sha256")
    key = public_fields(parse_public_2b(bytes.fromhex(ecc["ak_public"])))
    assert (key["type"], key["curveID"]) == ("ecc", "NIST_P256")
    key = public_fields(parse_public_2b(bytes.fromhex(rsa["ak_public"])))
    assert (key["type"], key["keyBits"]) == ("rsa", 2048)
    assert "restricted" in str(key["objectAttributes"])
    signature = signature_fields(parse_signature(bytes.fromhex(rsa["signature"])))
    assert signature == {"sigAlg": "rsapss", "hash": "sha256"}
    bank = PcrBank(HashAlgorithm.SHA1, {3: bytes(20)})
    assert bank_fields((bank,)) == {"sha1": {"3": "00" * 20}}


def test_a_tpm_1_2_quote_has_words() -> None:
    plain = b"\x01\x01\x00\x00QUOT" + bytes(range(20)) + bytes(20)
    fields = quote12_fields(parse_quote_info12(plain))
    assert fields["type"] == "TPM_QUOTE_INFO"
    assert fields["digestValue"] == bytes(range(20)).hex()
    assert "localityAtRelease" not in fields


@pytest.mark.parametrize("version", [None, VersionInfo12(bytes(4), 2, 3, b"ACME", b"")])
def test_a_quote2_of_a_tpm_1_2_says_more(version: VersionInfo12 | None) -> None:
    info = QuoteInfo2(bytes(20), b"\x81\x00", 1, bytes(range(20)), version)
    fields = quote12_fields(info)
    assert (fields["type"], fields["pcrSelect"]) == ("TPM_QUOTE_INFO2", "8100")
    assert fields["localityAtRelease"] == 1
    assert ("versionInfo" in fields) is (version is not None)


def test_a_sealed_object_has_no_key() -> None:
    fields = public_fields(replace(TPM.public, key=KeyedHashPublic(None, bytes(32))))
    assert fields["type"] == "keyedhash"
    assert "scheme" not in fields


def test_an_unknown_bank_keeps_its_number() -> None:
    info = QuoteInfo(PcrSelectionList((PcrSelection(0x99, b""),)), b"")
    fields = attest_fields(TPM.attest(info, b""))
    text = "\n".join(lines(fields))
    assert "hash 0x0099 pcrs none" in text
    assert "pcrDigest  (empty)" in text
    assert lines({}) == []
