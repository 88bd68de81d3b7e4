"""SecureKernelRecord and the binding of a quote to it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from undercroft.base import Finding, FormatError, Nonce, Outcome
from undercroft.formats import cbor
from undercroft.formats.evidence.binding import qualifying_data
from undercroft.formats.evidence.record import SecureKernelRecord, encode_record, parse_record

FACT = Finding("kernel.text", Outcome.FAIL, "patched", {"at": "do_sys_open", "sites": [1, 2]}, "x")
RECORD = SecureKernelRecord(
    1, "demo", "6.1.0-56-cloud-amd64", b"\x01" * 20, 10, 20, ("poll",), (FACT,)
)

texts = st.text(st.characters(codec="utf-8"), max_size=10)
details = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | texts | st.floats(-1, 1),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
facts = st.builds(
    Finding,
    st.from_regex(r"[a-z0-9]+([-_.][a-z0-9]+){0,3}", fullmatch=True),
    st.sampled_from(Outcome),
    texts,
    st.dictionaries(texts, details, max_size=3),
    texts,
)
records = st.builds(
    lambda guest, release, build_id, t0, length, channels, facts: SecureKernelRecord(
        1, guest, release, build_id, t0, t0 + length, tuple(channels), tuple(facts)
    ),
    texts,
    texts,
    st.binary(max_size=20),
    st.integers(0, 2**62),
    st.integers(0, 2**61),
    st.lists(texts, max_size=3),
    st.lists(facts, max_size=3),
)


@given(records)
def test_a_record_survives(record: SecureKernelRecord) -> None:
    data = encode_record(record)
    assert parse_record(data) == record
    assert encode_record(parse_record(data)) == data


def changed(**changes: Any) -> bytes:
    return cbor.encode({**cbor.decode(encode_record(RECORD), "record"), **changes})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut short"),
        (encode_record(RECORD)[:-1], "longer than the input"),
        (encode_record(RECORD) + b"\0", "left over"),
        (changed(version=2), "version 2"),
        (changed(t0=21), "t0 <= t1"),
        (changed(t0=-1), "t0 <= t1"),
        (changed(t1=1 << 63), "t0 <= t1"),
        (changed(verdict="affirming"), "unknown field"),
        (changed(kernel={"release": "6", "build-id": "text"}), "Expected `bytes`"),
        (changed(facts=[{**FACT.as_json(), "outcome": "fine"}]), "enum"),
        (changed(facts=[{**FACT.as_json(), "id": "Kernel Text"}]), "fact id"),
        (changed(facts=[{**FACT.as_json(), "details": {"x": b""}}]), "no JSON form"),
        (changed(facts=[{**FACT.as_json(), "details": {"x": [{"y": b""}]}}]), "no JSON form"),
        (changed(facts=[{**FACT.as_json(), "details": {"x": {1: 0}}}]), "no JSON form"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_record(data)


def test_details_without_an_encoding_are_our_own_mistake() -> None:
    fact = structs.replace(FACT, details={"x": float("nan")})
    with pytest.raises(ValueError, match="subset"):
        encode_record(replace(RECORD, facts=(fact,)))


def test_the_binding_is_the_formula() -> None:
    nonce = Nonce(bytes(range(32)))
    parts = [b"\1record", b"\0", b"\1"]
    inner = b"".join(hashlib.sha256(part).digest() for part in parts)
    expected = hashlib.sha256(b"undercroft.evidence.v1\0" + nonce.value + inner).digest()
    assert qualifying_data(nonce, record=b"record", eventlog=None, ima_list=b"") == expected


Part = st.none() | st.binary(max_size=3)
Bound = st.tuples(st.binary(min_size=16, max_size=18), Part, Part, Part, Part)
BoundTuple = tuple[bytes, bytes | None, bytes | None, bytes | None, bytes | None]


def bind(bound: BoundTuple) -> bytes:
    nonce, record, eventlog, ima_list, launch_log = bound
    return qualifying_data(
        Nonce(nonce),
        record=record,
        eventlog=eventlog,
        ima_list=ima_list,
        launch_log=launch_log,
    )


@given(Bound, Bound)
def test_another_nonce_or_part_gives_another_value(
    one: BoundTuple,
    other: BoundTuple,
) -> None:
    assert (bind(one) == bind(other)) is (one == other)
