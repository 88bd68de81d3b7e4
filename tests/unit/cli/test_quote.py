"""``undercroft quote show`` shows every kind of statement, and says what it did not check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from undercroft.base import EnvironmentFault, FormatError, HashAlgorithm, PcrBank
from undercroft.cli import quote as command
from undercroft.formats.evidence import Evidence, QuoteItem, encode_evidence
from undercroft.formats.tpm import CertifyInfo
from undercroft.testing import AkKind, SimulatedAttester, SimulatedQuote
from undercroft.testing.attester12 import VERSION_INFO, SimulatedAttester12

RECORDED = Path(__file__).parents[2] / "vectors" / "tpm" / "recorded"
SHA256 = HashAlgorithm.SHA256
NONCE = bytes(range(32))


def evidence(
    quote: SimulatedQuote, claimed: tuple[PcrBank, ...] | None = None, public: bytes | None = None
) -> bytes:
    item = QuoteItem(
        quote.attest,
        quote.signature,
        quote.public if public is None else public,
        quote.claimed_pcrs if claimed is None else claimed,
    )
    return encode_evidence(Evidence(item))


def show(tmp_path: Path, data: bytes) -> tuple[dict[str, Any], str]:
    """Run the command both ways; return the JSON and the text."""
    file = tmp_path / "quote"
    file.write_bytes(data)
    outputs = []
    for arguments in (["show", str(file), "--json"], ["show", str(file)]):
        result = CliRunner().invoke(command.app, arguments, catch_exceptions=False)
        assert result.exit_code == 0
        outputs.append(result.stdout)
    return json.loads(outputs[0]), outputs[1]


def test_a_quote_is_shown_by_the_specifications_names(tmp_path: Path) -> None:
    data = SimulatedAttester().quote(NONCE, {SHA256: [0, 7]}).attest
    for form in (data, len(data).to_bytes(2, "big") + data):
        fields, text = show(tmp_path, form)
        assert fields["extraData"] == NONCE.hex()
        assert fields["clockInfo"] == {
            "clock": 60000,
            "resetCount": 1,
            "restartCount": 0,
            "safe": True,
        }
        assert fields["attested"]["pcrSelect"] == [{"hash": "sha256", "pcrs": [0, 7]}]
        assert "TPM_ST_ATTEST_QUOTE" in text
        assert "pcrs 0; 7" in text
        assert "safe          yes" in text


@pytest.mark.parametrize(
    ("kind", "key"), [(AkKind.RSASSA, "keyBits"), (AkKind.ECDSA_P256, "curveID")]
)
def test_evidence_shows_key_and_values_and_whether_they_fit(
    tmp_path: Path, kind: AkKind, key: str
) -> None:
    quote = SimulatedAttester(kind).quote(NONCE, {SHA256: [0]})
    fields, text = show(tmp_path, evidence(quote))
    assert fields["claimed PCRs"] == {"sha256": {"0": bytes(32).hex()}}
    assert "restricted" in fields["claimed AK"]["objectAttributes"]
    assert key in fields["claimed AK"]
    assert fields["fits together"].startswith("yes")
    assert "authPolicy        (empty)" in text


def test_what_does_not_fit_together_is_said(tmp_path: Path) -> None:
    tpm = SimulatedAttester()
    quote = tpm.quote(NONCE, {SHA256: [0]})
    other = SimulatedAttester(label="other")
    certify = tpm.signed(tpm.attest(CertifyInfo(b"", b""), NONCE), ())
    reasons = {
        "pcr-digest": evidence(quote, (PcrBank(SHA256, {0: b"\1" * 32}),)),
        "quote.signature": evidence(quote, public=other.public.encode()),
        "no PCR values": evidence(quote, ()),
        "not a quote": evidence(certify),
    }
    for reason, data in reasons.items():
        fields, _ = show(tmp_path, data)
        assert fields["fits together"].startswith("no")
        assert reason in fields["fits together"]


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("certify", "qualifiedName"),
        ("creation", "creationHash"),
        ("nv", "nvContents"),
        ("nv-digest", "nvDigest"),
        ("time", "time"),
        ("command-audit", "auditCounter"),
        ("session-audit", "exclusiveSession"),
    ],
)
def test_every_other_statement_of_a_real_tpm_is_shown(
    tmp_path: Path, name: str, field: str
) -> None:
    case = json.loads((RECORDED / f"{name}.json").read_text())
    fields, text = show(tmp_path, bytes.fromhex(case["attest"]))
    assert field in fields["attested"]
    assert field in text


def test_tpm_12_quotes_are_shown(tmp_path: Path) -> None:
    tpm = SimulatedAttester12()
    fields, _ = show(tmp_path, tpm.quote(bytes(20), [0]).info_bytes)
    assert fields["type"] == "TPM_QUOTE_INFO"
    fields, _ = show(tmp_path, tpm.quote2(bytes(20), [0]).info_bytes)
    assert fields["pcrSelect"] == "010000"
    fields, _ = show(tmp_path, tpm.quote2(bytes(20), [0], VERSION_INFO).info_bytes)
    assert fields["versionInfo"] == VERSION_INFO.encode().hex()


@pytest.mark.parametrize("data", [b"", b"\x00\x18\x00\x0b a signature"])
def test_other_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "junk"
    file.write_bytes(data)
    with pytest.raises(FormatError, match="none of the structures"):
        CliRunner().invoke(command.app, ["show", str(file)], catch_exceptions=False)


def test_a_file_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "MAX_SIZE", 3)
    file = tmp_path / "large"
    file.write_bytes(b"junk")
    with pytest.raises(FormatError, match="too large"):
        CliRunner().invoke(command.app, ["show", str(file)], catch_exceptions=False)


def test_a_missing_file_is_our_machines_fault(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cannot read"):
        CliRunner().invoke(command.app, ["show", str(tmp_path / "none")], catch_exceptions=False)
