"""The evidence file: CMW collection, its items, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undercroft.base import FormatError, HashAlgorithm, PcrBank
from undercroft.formats import cbor
from undercroft.formats.evidence import cmw
from undercroft.formats.evidence.collection import (
    TYPE,
    Evidence,
    QuoteItem,
    encode_evidence,
    encode_quote_item,
    parse_evidence,
    parse_quote_item,
)

BANK = PcrBank(HashAlgorithm.SHA256, {0: bytes(32), 10: b"\x01" * 32})
QUOTE = QuoteItem(b"attest", b"signature", b"public", (BANK,))
EVIDENCE = Evidence(QUOTE, b"log", b"ima", b"record", b"launch")

banks = st.sampled_from([HashAlgorithm.SHA1, HashAlgorithm.SHA256]).flatmap(
    lambda a: st.dictionaries(
        st.integers(0, 23), st.binary(min_size=a.size, max_size=a.size), max_size=4
    ).map(lambda values: PcrBank(a, values))
)
quotes = st.builds(
    QuoteItem,
    st.binary(max_size=8),
    st.binary(max_size=8),
    st.binary(max_size=8),
    st.lists(banks, max_size=2, unique_by=lambda bank: bank.algorithm).map(
        lambda found: tuple(sorted(found, key=lambda b: (len(b.algorithm.label), str(b))))
    ),
)
parts = st.none() | st.binary(max_size=8)
evidences = st.builds(Evidence, quotes, parts, parts, parts)


@given(evidences)
def test_evidence_survives(evidence: Evidence) -> None:
    data = encode_evidence(evidence)
    assert encode_evidence(parse_evidence(data)) == data
    parsed = parse_evidence(data)
    assert (parsed.eventlog, parsed.ima_list, parsed.record) == (
        evidence.eventlog,
        evidence.ima_list,
        evidence.record,
    )
    assert {str(b) for b in parsed.quote.claimed_pcrs} == {
        str(b) for b in evidence.quote.claimed_pcrs
    }


def test_absent_and_empty_are_two_things() -> None:
    absent, empty = Evidence(QUOTE), Evidence(QUOTE, b"", b"", b"")
    assert parse_evidence(encode_evidence(absent)) == absent
    assert parse_evidence(encode_evidence(empty)) == empty


@settings(deadline=None)
@given(st.integers(min_value=0), st.integers(0, 255))
def test_one_changed_byte_is_refused_or_kept(place: int, byte: int) -> None:
    data = bytearray(encode_evidence(EVIDENCE))
    data[place % len(data)] = byte
    try:
        evidence = parse_evidence(bytes(data))
    except FormatError:
        return
    assert encode_evidence(evidence) == bytes(data)


def file(**changes: Any) -> bytes:
    value = {**cbor.decode(encode_evidence(EVIDENCE), "evidence"), **changes}
    return cbor.encode({k: v for k, v in value.items() if v is not None})


_TYPE = "application/vnd.undercroft.tcg-eventlog"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut short"),
        (b"\x00", "not an evidence collection"),
        (cbor.encode([_TYPE, b""]), "not an evidence collection"),
        (file(__cmwc_t="tag:example.com,2026:other"), "not an evidence collection"),
        (file(__cmwc_t=None), "not an evidence collection"),
        (cbor.encode({"__cmwc_t": TYPE}), "without a quote"),
        (file(**{"tpm-quote": None}), "without a quote"),
        (file(extra=[_TYPE, b"", 4]), "does not have"),
        (cbor.encode({"__cmwc_t": TYPE, 5: [_TYPE, b"", 4]}), "does not have"),
        (file(**{"tcg-eventlog": {"a": [_TYPE, b""]}}), "not a record of evidence"),
        (file(**{"tcg-eventlog": ["text/plain", b"", 4]}), "not a record of evidence"),
        (file(**{"tcg-eventlog": [_TYPE, b"", 8]}), "not a record of evidence"),
        (file(**{"tcg-eventlog": [_TYPE, b"", 4.0]}), "not a record of evidence"),
        (file(**{"tcg-eventlog": [_TYPE, b""]}), "not a record of evidence"),
        (file(**{"tcg-eventlog": [_TYPE, "text", 4]}), "not a record of evidence"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_evidence(data)


def quote_item(**changes: Any) -> bytes:
    return cbor.encode({**cbor.decode(encode_quote_item(QUOTE), "quote"), **changes})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (quote_item(pcrs={"md5": [bytes(3), b""]}), "unknown hash"),
        (quote_item(pcrs={"sha256": [bytes(4), b""]}), "pcrSelect"),
        (quote_item(pcrs={"sha256": [b"\1\0", bytes(32)]}), "pcrSelect"),
        (quote_item(pcrs={"sha256": [b"\1\0\0", bytes(33)]}), "pcrSelect"),
        (quote_item(pcrs={"sha256": [b"\0\0\0", bytes(32)]}), "pcrSelect"),
        (quote_item(pcrs={"sha256": [b"\1\0\0"]}), "length 2"),
        (quote_item(pcrs={"sha256": [7, bytes(32)]}), "Expected `bytes`"),
        (quote_item(nonce=b""), "unknown field"),
        (quote_item(attest="text"), "Expected `bytes`"),
    ],
)
def test_a_bad_quote_item_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_quote_item(data)


def test_two_banks_of_one_algorithm_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="two PCR banks"):
        encode_quote_item(QuoteItem(b"", b"", b"", (BANK, BANK)))


def test_any_cmw_survives() -> None:
    inner = cmw.CmwCollection("", {0: cmw.CmwRecord(30001, b"x")})
    outer = cmw.CmwCollection("1.2.3", {"inner": inner, "r": cmw.CmwRecord("a/b", b"", 31)})
    assert cmw.parse_cmw(cmw.encode_cmw(outer)) == outer


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (0, "neither a record"),
        ({}, "at least one"),
        ({"__cmwc_t": 7, 0: ["a/b", b""]}, "URI"),
        ({"__cmwc_t": "", 0: ["a/b", b""]}, "URI"),
        ({0: {1: 5}}, "neither a record"),
        (["a/b"], "two or three"),
        (["a/b", b"", 4, 4], "two or three"),
        (["a/b", "text"], "byte string"),
        (["", b""], "media type"),
        ([True, b""], "media type"),
        ([65536, b""], "media type"),
        (["a/b", b"", 0], "ind is"),
        (["a/b", b"", True], "ind is"),
        (["a/b", b"", 1 << 32], "ind is"),
    ],
)
def test_what_is_no_cmw_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        cmw.parse_cmw(cbor.encode(value))


def test_evidence_is_a_cmw() -> None:
    collection = cmw.parse_cmw(encode_evidence(EVIDENCE))
    assert isinstance(collection, cmw.CmwCollection)
    assert collection.type == TYPE
    assert len(collection.items) == 5


def test_the_example_of_the_draft_is_read() -> None:
    # draft-ietf-rats-msg-wrap-23, "CBOR-encoded Record".
    assert cmw.parse_cmw(bytes.fromhex("8219fde7442347da55")) == cmw.CmwRecord(
        64999, bytes.fromhex("2347da55")
    )
