"""Epochs and chains: both ways, strict, and only FormatError for what is malformed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import FormatError
from undercroft.formats import cbor
from undercroft.formats.evidence import interval
from undercroft.formats.evidence.interval import (
    FIRST,
    BlindWindow,
    Uncovered,
    encode_chain,
    encode_epoch,
    epoch_digest,
    page_tree_digest,
    parse_chain,
    parse_epoch,
)
from undercroft.testing.epochs import chained, honest_chain, honest_epoch

FULL = replace(
    honest_epoch(2),
    blind=(BlindWindow(1, 2, "kernel.text", "storm"),),
    uncovered=(Uncovered("vfio", 7, "a device"),),
)


def test_an_epoch_is_the_same_after_both_ways() -> None:
    encoded = encode_epoch(FULL)
    assert parse_epoch(encoded) == FULL
    assert encode_epoch(parse_epoch(encoded)) == encoded


def wire(**changes: Any) -> bytes:
    decoded = cbor.decode(encode_epoch(FULL), "test")
    for name, value in changes.items():
        decoded[name.replace("_", "-")] = value
    return cbor.encode(decoded)


@pytest.mark.parametrize(
    "data",
    [
        wire(version=2),
        wire(extra=1),
        wire(session=bytes(15)),
        wire(previous=bytes(33)),
        wire(previous=FIRST),
        wire(sequence=0),
        wire(sequence=1),
        wire(t0=2, t1=1),
        wire(t1=1 << 63),
        wire(ranges=[{"name": "x"}]),
        wire(ranges=[{"name": "x", "extents": [[1, 2]], "digest": bytes(32), "last-modified": 0}]),
        wire(unsettled=-1),
        wire(writes="3"),
        encode_epoch(FULL) + b"\0",
        encode_epoch(FULL)[:-1],
        b"",
    ],
)
def test_what_is_not_an_epoch_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_epoch(data)


def test_a_change_shows_a_few_bytes_only() -> None:
    (change,) = FULL.changes
    long = replace(FULL, changes=(replace(change, before=bytes(65)),))
    with pytest.raises(FormatError):
        parse_epoch(encode_epoch(long))


@given(st.binary(max_size=300))
def test_any_bytes_give_an_epoch_or_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_epoch(data)


@given(st.data())
def test_a_flipped_bit_is_refused_or_encodes_back(data: st.DataObject) -> None:
    encoded = bytearray(encode_epoch(FULL))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        parsed = parse_epoch(bytes(encoded))
    except FormatError:
        return
    assert encode_epoch(parsed) == bytes(encoded)


def test_a_chain_is_split_as_it_was_joined() -> None:
    encoded, head = chained(honest_chain())
    data = encode_chain(encoded)
    assert parse_chain(data) == tuple(encoded)
    assert epoch_digest(parse_chain(data)[-1]) == head
    assert parse_chain(b"") == ()


@pytest.mark.parametrize("data", [b"\0", b"\0\0\0\2\1", b"\xff\xff\xff\xff"])
def test_a_chain_that_is_cut_within_an_epoch_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_chain(data)


def test_a_chain_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interval, "MAX_CHAIN", 2)
    assert len(parse_chain(bytes(8))) == 2
    with pytest.raises(FormatError):
        parse_chain(bytes(12))


def test_a_digest_tells_pages_apart_by_content_and_order() -> None:
    one, two = bytes(32), bytes(31) + b"\1"
    assert page_tree_digest([one, two]) != page_tree_digest([two, one])
