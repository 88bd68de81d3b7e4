"""Reference sets as CoRIM, and what a CoRIM of somebody else gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import Digest, FormatError, Grade, HashAlgorithm
from undercroft.formats import cbor
from undercroft.formats.cbor import CborValue, Tagged
from undercroft.formats.corim import encode_corim, parse_corim
from undercroft.formats.corim.model import (
    TAGS,
    ClassMap,
    Comid,
    Corim,
    Entity,
    Measurement,
    ReferenceTriple,
    Validity,
)
from undercroft.reference.corim import (
    PROFILE,
    encode_reference_corim,
    parse_reference_corim,
    to_corim,
)
from undercroft.reference.model import KernelReference, Provenance, ReferenceSet, ReferenceValue

GIVEN = Provenance(Grade.OBSERVED, origin="somebody's CoRIM")
DEBIAN = Provenance(Grade.PACKAGE, "linux", "6.1", "main", "ab" * 32, "F00", "note")
SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256
VALUE = ReferenceValue((SHA256.digest(b"a"), SHA1.digest(b"a")), "a", DEBIAN, "kernel")
FULL = ReferenceSet(
    "guest",
    {4: (VALUE,)},
    {7: (VALUE, VALUE)},
    {"/init": (VALUE,)},
    (KernelReference("6.1.0", SHA256.digest(b"k"), b"\x01" * 20, GIVEN),),
)

texts = st.text(st.characters(codec="utf-8"), max_size=6)
provenances = st.builds(Provenance, st.sampled_from(Grade), texts, texts, note=texts)
paths = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6).map("/".__add__)
digests = st.sampled_from(HashAlgorithm).flatmap(
    lambda a: st.binary(min_size=a.size, max_size=a.size).map(lambda b: Digest(a, b))
)
values = st.builds(
    ReferenceValue,
    st.lists(digests, min_size=1, max_size=2, unique_by=lambda d: d.algorithm).map(tuple),
    texts,
    provenances,
    texts,
)
groups = st.lists(values, min_size=1, max_size=2).map(tuple)
sets = st.builds(
    ReferenceSet,
    texts,
    st.dictionaries(st.integers(0, 23), groups, max_size=2),
    st.dictionaries(st.integers(0, 23), groups, max_size=2),
    st.dictionaries(paths, groups, max_size=2),
    st.lists(
        st.builds(
            KernelReference,
            texts.filter(bool),
            digests,
            st.binary(min_size=1, max_size=20),
            provenances,
        ),
        max_size=2,
    ).map(tuple),
).filter(lambda references: not references.is_empty)


@given(sets)
def test_any_set_survives(references: ReferenceSet) -> None:
    data = encode_reference_corim(references)
    assert parse_reference_corim(data, GIVEN) == references
    assert encode_corim(parse_corim(data)) == data


def test_an_empty_set_has_no_corim() -> None:
    with pytest.raises(ValueError, match="empty reference set"):
        to_corim(ReferenceSet("x", events={3: ()}))


def corim(*measurements: Measurement, profile: str | None = None, **comid: Any) -> bytes:
    triple = ReferenceTriple(ClassMap(vendor="ACME", model="RoadRunner"), measurements)
    return encode_corim(Corim("x", (Comid("y", (triple,), **comid),), profile))


def test_a_corim_without_a_profile_is_read_where_its_meaning_is_plain() -> None:
    registers = Measurement(integrity_registers={7: (SHA256.digest(b"7"),)})
    file = Measurement("/bin/sh", (SHA256.digest(b"sh"),), name="shell")
    references = parse_reference_corim(corim(registers, file), GIVEN)
    assert references.name == "x"
    assert references.pcrs[7][0] == ReferenceValue((SHA256.digest(b"7"),), "", GIVEN)
    assert references.files["/bin/sh"][0].description == "shell"
    uuid = encode_corim(Corim(bytes(16), parse_corim(corim(file)).comids))
    assert parse_reference_corim(uuid, GIVEN).name == "00" * 16


@pytest.mark.parametrize(
    ("measurement", "reason"),
    [
        (Measurement(None, (SHA256.digest(b""),)), "no profile gives"),
        (Measurement("name", (SHA256.digest(b""),)), "no profile gives"),
        (Measurement("/x", raw_value=b"raw"), "no profile gives"),
        (Measurement(integrity_registers={"ir": (SHA256.digest(b""),)}), "no PCR"),
        (Measurement(integrity_registers={24: (SHA256.digest(b""),)}), "no PCR"),
        (Measurement(3, integrity_registers={1: (SHA256.digest(b""),)}), "key of their own"),
        (
            Measurement(None, (SHA1.digest(b""),), integrity_registers={1: (SHA1.digest(b""),)}),
            "digests or a key",
        ),
        (Measurement("/x", (SHA256.digest(b""),), extensions={-1: 0}), "without a profile"),
    ],
)
def test_what_has_no_plain_meaning_is_refused(measurement: Measurement, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_reference_corim(corim(measurement), GIVEN)


def test_extensions_and_profiles_that_we_do_not_know_are_refused() -> None:
    file = Measurement("/x", (SHA256.digest(b""),))
    with pytest.raises(FormatError, match="without a profile"):
        parse_reference_corim(corim(file, extensions={-1: []}), GIVEN)
    with pytest.raises(FormatError, match="profile that we do not know"):
        parse_reference_corim(corim(file, profile="tag:example.com,2026:x"), GIVEN)


def ours(
    measurement: Measurement,
    model: str = "files",
    *,
    vendor: str = "undercroft",
    index: int | None = None,
    extensions: Mapping[int, CborValue] | None = None,
    count: int = 1,
) -> bytes:
    triple = ReferenceTriple(ClassMap(vendor=vendor, model=model, index=index), (measurement,))
    table = {-1: [{"grade": "built"}]} if extensions is None else extensions
    return encode_corim(Corim("x", (Comid("y", (triple,), extensions=table),) * count, PROFILE))


_DIGESTS = (SHA256.digest(b""),)
_GOOD = Measurement("/x", _DIGESTS, extensions={-1: 0})
_EVENT = Measurement(None, _DIGESTS, extensions={-1: 0})
_RUNNING = Measurement("6.1", _DIGESTS, b"\1", extensions={-1: 0})


def test_our_profile_by_hand() -> None:
    assert parse_reference_corim(ours(_GOOD), GIVEN).files["/x"][0].provenance.grade is Grade.BUILT
    assert parse_reference_corim(ours(_EVENT, "boot-events", index=4), GIVEN).events[4]
    assert parse_reference_corim(ours(_RUNNING, "kernels"), GIVEN).kernels


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (ours(_GOOD, count=2), "one CoMID"),
        (ours(_GOOD, vendor="ACME"), "environment"),
        (ours(_GOOD, "firmware"), "kind of value"),
        (ours(_GOOD, extensions={}), "Expected `array`"),
        (ours(_GOOD, extensions={-1: [{"grade": "x"}]}), "enum"),
        (ours(_GOOD, extensions={-1: [{"grade": "built"}], -9: 0}), "does not have"),
        (ours(Measurement("/x", _DIGESTS)), "without a provenance"),
        (ours(Measurement("/x", _DIGESTS, extensions={-1: 1})), "without a provenance"),
        (ours(Measurement("/x", _DIGESTS, extensions={-1: True})), "without a provenance"),
        (ours(Measurement("/x", _DIGESTS, extensions={-1: 0, -2: 5})), "does not have"),
        (ours(Measurement("/x", _DIGESTS, extensions={-1: 0, -3: 5})), "does not have"),
        (ours(Measurement(5, _DIGESTS, extensions={-1: 0})), "without its path"),
        (ours(Measurement("/x", raw_value=b"", extensions={-1: 0})), "at least one digest"),
        (ours(Measurement("x", _DIGESTS, extensions={-1: 0})), "absolute path"),
        (ours(_EVENT, "boot-events"), "without its PCR"),
        (ours(_GOOD, "boot-events", index=4), "with a key"),
        (ours(_EVENT, "boot-events", index=24), "PCR 24"),
        (ours(_EVENT, "kernels"), "release"),
        (ours(Measurement("6", (), b"\1", extensions={-1: 0}), "kernels"), "one digest"),
        (ours(Measurement("6", _DIGESTS, None, extensions={-1: 0}), "kernels"), "build id"),
        (ours(Measurement("6", _DIGESTS, b"", extensions={-1: 0}), "kernels"), "build id"),
    ],
)
def test_a_broken_corim_of_our_profile_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_reference_corim(data, GIVEN)


EVERYTHING = Corim(
    "id",
    (
        Comid(
            bytes(16),
            (
                ReferenceTriple(
                    ClassMap(Tagged(37, bytes(16)), "ACME Inc.", "ACME RoadRunner", 1, 0),
                    (
                        Measurement(5, (SHA256.digest(b""),), b"raw", "name"),
                        Measurement(integrity_registers={"ir": (SHA256.digest(b""),)}),
                    ),
                ),
                ReferenceTriple(ClassMap(Tagged(111, b"\x2a")), (Measurement(name="x"),)),
            ),
            3,
            "en",
            (Entity("ACME Inc.", (0,), "https://acme.example"),),
        ),
    ),
    b"\x2a\x03",
    Validity(200, 100),
    (Entity("ACME", (1, 2)),),
)


def test_a_full_corim_survives() -> None:
    data = encode_corim(EVERYTHING)
    assert parse_corim(data) == EVERYTHING


def decoded() -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Return the maps of a CoRIM and of its CoMID, to be broken."""
    corim_map = cbor.decode(encode_corim(EVERYTHING), "corim", tags=TAGS).value
    return corim_map, cbor.decode(corim_map[1][0].value, "comid", tags=TAGS)


def broken_corim(key: int, value: CborValue) -> bytes:
    corim_map, _ = decoded()
    changed = {k: v for k, v in {**corim_map, key: value}.items() if v is not None}
    return cbor.encode(Tagged(501, changed))


def broken_comid(key: int, value: CborValue) -> bytes:
    _, comid = decoded()
    changed = {k: v for k, v in {**comid, key: value}.items() if v is not None}
    return broken_corim(1, [Tagged(506, cbor.encode(changed))])


def broken_triple(environment: CborValue, measurement: CborValue) -> bytes:
    return broken_comid(4, {0: [[environment, [measurement]]]})


_ENV = {0: {1: "ACME"}}
_NAME = {1: {11: "x"}}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut short"),
        (cbor.encode({}), "not tagged 501"),
        (cbor.encode(Tagged(501, [])), "not a map"),
        (broken_corim(0, None), "0 is missing"),
        (broken_corim(0, b"short"), "UUID"),
        (broken_corim(1, []), "at least one"),
        (broken_corim(1, [Tagged(506, {})]), "not bytes"),
        (broken_corim(1, [Tagged(506, b"\xff")]), "deterministic|simple value"),
        (broken_corim(2, []), "do not understand"),
        (broken_corim(3, "text"), "URI"),
        (broken_corim(4, {0: Tagged(1, 5)}), "1 is missing"),
        (broken_corim(4, {1: 5}), "not tagged 1"),
        (broken_corim(4, {1: Tagged(1, True)}), "unsigned"),
        (broken_corim(5, [{0: "x"}]), "2 is missing"),
        (broken_corim(5, [{0: "x", 2: []}]), "at least one"),
        (broken_corim(5, [{0: 5, 2: [1]}]), "not text"),
        (broken_comid(1, {}), "0 is missing"),
        (broken_comid(3, []), "do not understand"),
        (broken_comid(4, {0: [], 1: []}), "at least one"),
        (broken_comid(4, {0: [[_ENV, [_NAME]]], 1: []}), "do not understand"),
        (broken_comid(4, {0: [[_ENV]]}), "environment, measurements"),
        (broken_triple({}, _NAME), "0 is missing"),
        (broken_triple({0: {}}, _NAME), "empty class"),
        (broken_triple({**_ENV, 1: Tagged(560, b"")}, _NAME), "do not understand"),
        (broken_triple({0: {0: Tagged(37, b"short")}}, _NAME), "neither a UUID"),
        (broken_triple({0: {3: -1}}, _NAME), "unsigned"),
        (broken_triple(_ENV, {}), "1 is missing"),
        (broken_triple(_ENV, {1: {}}), "without a value"),
        (broken_triple(_ENV, {1: {1: 5}}), "do not understand"),
        (broken_triple(_ENV, {0: b"", 1: {11: "x"}}), "unsigned"),
        (broken_triple(_ENV, {1: {4: b"untagged"}}), "not tagged 560"),
        (broken_triple(_ENV, {1: {2: []}}), "at least one"),
        (broken_triple(_ENV, {1: {2: [[1]]}}), "algorithm, digest"),
        (broken_triple(_ENV, {1: {2: [[True, bytes(32)]]}}), "algorithm, digest"),
        (broken_triple(_ENV, {1: {2: [["my-alg-id", b""]]}}), "unknown hash"),
        (broken_triple(_ENV, {1: {2: [[1, b""]]}}), "not a sha256"),
        (broken_triple(_ENV, {1: {2: [[1, bytes(32)], [1, bytes(32)]]}}), "two digests"),
        (broken_triple(_ENV, {1: {14: {}}}), "not a map of registers"),
        (broken_triple(_ENV, {1: {14: {-1: [[1, bytes(32)]]}}}), "negative"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_corim(data)


@given(st.integers(min_value=0), st.integers(0, 255))
def test_one_changed_byte_is_refused_or_kept(place: int, byte: int) -> None:
    data = bytearray(FULL_BYTES)
    data[place % len(data)] = byte
    try:
        parsed = parse_corim(bytes(data))
    except FormatError:
        return
    assert encode_corim(parsed) == bytes(data)


FULL_BYTES = encode_reference_corim(FULL)
