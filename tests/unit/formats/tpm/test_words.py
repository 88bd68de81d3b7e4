"""Objects without a public key, and odd selections, have words as well."""

from __future__ import annotations

from msgspec.structs import replace

from undercroft.formats.tpm import KeyedHashPublic, PcrSelection, PcrSelectionList, QuoteInfo
from undercroft.formats.tpm.words import attest_fields, lines, public_fields
from undercroft.testing import SimulatedAttester

TPM = SimulatedAttester()


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
