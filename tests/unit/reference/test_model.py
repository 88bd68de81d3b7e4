"""The reference model: construction, merging, matching and its JSON form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import Digest, FormatError, HashAlgorithm
from undercroft.reference.match import (
    Difference,
    DifferenceKind,
    KernelDifference,
    match_event,
    match_file,
    match_kernel,
    match_pcr,
    missing_roles,
)
from undercroft.reference.model import (
    Grade,
    KernelReference,
    Provenance,
    ReferenceSet,
    ReferenceValue,
    merge,
)
from undercroft.reference.serialise import encode_reference_set, parse_reference_set

SHA256, SHA1 = HashAlgorithm.SHA256, HashAlgorithm.SHA1
DEBIAN = Provenance(Grade.PACKAGE, "shim-signed", "1.51", "Debian bookworm main", "ab" * 32, "F0")
SEEN = Provenance(Grade.OBSERVED, note="first boot of run 3")


def value(text: str, *, role: str = "", source: Provenance = DEBIAN) -> ReferenceValue:
    return ReferenceValue((SHA256.digest(text.encode()),), text, source, role)


KERNEL = KernelReference("6.1.0-56-cloud-amd64", SHA256.digest(b"vmlinuz"), b"\x01" * 20, DEBIAN)
FULL = ReferenceSet(
    "guest",
    events={4: (value("shim", role="shim"), value("kernel", role="kernel"))},
    pcrs={7: (value("secure boot"),)},
    files={"/usr/bin/true": (value("true", source=SEEN),)},
    kernels=(KERNEL,),
)


def test_provenance_names_its_best_subject() -> None:
    assert str(DEBIAN) == "package: shim-signed 1.51"
    assert str(SEEN) == "observed: first boot of run 3"
    assert str(Provenance(Grade.SPECIFICATION, origin="PC Client")) == "specification: PC Client"
    assert str(Provenance(Grade.BUILT)) == "built"


def test_a_value_needs_digests_each_of_another_algorithm() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ReferenceValue((), "nothing", DEBIAN)
    with pytest.raises(ValueError, match="one digest for each"):
        ReferenceValue((SHA256.digest(b"a"), SHA256.digest(b"b")), "two", DEBIAN)


def test_a_kernel_needs_a_release_and_a_build_id() -> None:
    with pytest.raises(ValueError, match="release"):
        KernelReference("", SHA256.digest(b""), b"\0", DEBIAN)
    for build_id in (b"", bytes(65)):
        with pytest.raises(ValueError, match="build id"):
            KernelReference("6.1", SHA256.digest(b""), build_id, DEBIAN)


@pytest.mark.parametrize("index", [-1, 24])
def test_a_set_has_only_pcrs_that_exist(index: int) -> None:
    with pytest.raises(ValueError, match="PCR"):
        ReferenceSet("x", events={index: ()})
    with pytest.raises(ValueError, match="PCR"):
        ReferenceSet("x", pcrs={index: ()})


def test_emptiness_and_grades() -> None:
    assert ReferenceSet("x").is_empty
    assert ReferenceSet("x").grades() == frozenset()
    assert not FULL.is_empty
    assert FULL.grades() == {Grade.PACKAGE, Grade.OBSERVED}


def test_merging_keeps_every_value_once_and_in_order() -> None:
    newer = ReferenceSet("newer", events={4: (value("kernel", role="kernel"), value("kernel 2"))})
    both = merge("both", [FULL, newer])
    assert both.name == "both"
    assert [v.description for v in both.events[4]] == ["shim", "kernel", "kernel 2"]
    assert both.pcrs == FULL.pcrs
    assert both.files == FULL.files
    assert merge("guest", [FULL, FULL]) == FULL


def test_matching_gives_the_value_or_the_difference() -> None:
    shim = FULL.events[4][0]
    assert match_event(FULL, 4, shim.digests[0]) is shim
    other = match_event(FULL, 4, SHA256.digest(b"evil"))
    assert isinstance(other, Difference)
    assert other.kind is DifferenceKind.OTHER_VALUE
    assert other.expected == FULL.events[4]
    assert other.found == str(SHA256.digest(b"evil"))

    nothing = match_event(FULL, 5, shim.digests[0])
    assert nothing == Difference(
        DifferenceKind.NO_REFERENCE, "PCR 5 event", str(shim.digests[0]), ()
    )
    algorithm = match_pcr(FULL, 7, SHA1.digest(b"secure boot"))
    assert isinstance(algorithm, Difference)
    assert algorithm.kind is DifferenceKind.OTHER_ALGORITHM
    assert match_pcr(FULL, 7, SHA256.digest(b"secure boot")) is FULL.pcrs[7][0]
    assert isinstance(match_file(FULL, "/usr/bin/true", SHA256.digest(b"true")), ReferenceValue)
    assert isinstance(match_file(FULL, "/usr/bin/false", SHA256.digest(b"true")), Difference)


def test_a_kernel_matches_by_release_and_build_id_together() -> None:
    assert match_kernel(FULL, KERNEL.release, KERNEL.build_id) is KERNEL
    for release, build_id in ((KERNEL.release, b"\x02" * 20), ("6.1.0-57", KERNEL.build_id)):
        near = match_kernel(FULL, release, build_id)
        assert near == KernelDifference(DifferenceKind.OTHER_VALUE, release, build_id, (KERNEL,))
    far = match_kernel(FULL, "6.12", b"\x03")
    assert isinstance(far, KernelDifference)
    assert far.nearest == ()
    unknown = match_kernel(ReferenceSet("x"), KERNEL.release, KERNEL.build_id)
    assert isinstance(unknown, KernelDifference)
    assert unknown.kind is DifferenceKind.NO_REFERENCE


def test_roles_that_were_not_filled_are_named() -> None:
    shim, kernel = FULL.events[4]
    assert missing_roles(FULL, 4, [shim, kernel]) == []
    assert missing_roles(FULL, 4, [shim]) == ["kernel"]
    assert missing_roles(FULL, 4, []) == ["kernel", "shim"]
    assert missing_roles(FULL, 5, []) == []


def test_json_round_trip_writes_each_provenance_once() -> None:
    data = encode_reference_set(FULL)
    assert parse_reference_set(data) == FULL
    assert encode_reference_set(parse_reference_set(data)) == data
    assert len(json.loads(data)["provenances"]) == 2
    assert parse_reference_set(encode_reference_set(ReferenceSet("x"))) == ReferenceSet("x")


def changed(**changes: Any) -> bytes:
    return json.dumps({**json.loads(encode_reference_set(FULL)), **changes}).encode()


_WIRE = {"digests": ["sha256:" + "00" * 32], "description": "", "provenance": 0}
_KERNEL = {"release": "6", "vmlinuz": "sha256:" + "00" * 32, "build_id": "00", "provenance": 0}


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("not json", b"{", "not JSON"),
        ("not utf-8", b'{"name": "\xff"}', "UTF-8"),
        ("lone surrogate", b'{"format": "undercroft.reference/1", "name": "\\ud800"}', "UTF-8"),
        ("nan", b'{"format": NaN}', "not a JSON number"),
        ("duplicate name", b'{"name": "a", "name": "b"}', "occurs twice"),
        ("deep", b"[" * 100_000, "deeply"),
        ("huge integer", b"[" + b"9" * 5000 + b"]", "integer"),
        ("array", b"[]", "Expected `object`"),
        ("other version", changed(format="undercroft.reference/2"), "version"),
        ("unknown field", changed(trust="me"), "unknown field"),
        ("unknown grade", changed(provenances=[{"grade": "rumour"}]), "enum"),
        ("no provenance", changed(events={"4": [{**_WIRE, "provenance": 9}]}), "provenance"),
        ("negative", changed(events={"4": [{**_WIRE, "provenance": -1}]}), "provenance"),
        ("pcr 24", changed(events={"24": []}), "PCR"),
        ("pcr 04", changed(pcrs={"04": []}), "PCR"),
        ("no digest", changed(files={"/a": [{**_WIRE, "digests": []}]}), "at least one"),
        ("algorithm", changed(files={"/a": [{**_WIRE, "digests": ["md5:00"]}]}), "algorithm"),
        ("length", changed(files={"/a": [{**_WIRE, "digests": ["sha1:00"]}]}), "20 bytes"),
        ("case", changed(files={"/a": [{**_WIRE, "digests": ["sha1:" + "AA" * 20]}]}), "hexa"),
        ("path", changed(files={"a": [_WIRE]}), "absolute path"),
        ("nul", changed(files={"/a\0": [_WIRE]}), "absolute path"),
        ("build id", changed(kernels=[{**_KERNEL, "build_id": ""}]), "build id"),
        ("release", changed(kernels=[{**_KERNEL, "release": ""}]), "release"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_json_is_a_format_error(name: str, data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason) as caught:
        parse_reference_set(data)
    assert caught.value.format_name == "reference set"


def test_a_document_over_the_limit_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undercroft.reference.serialise.MAX_SIZE", 4)
    with pytest.raises(FormatError, match="too large"):
        parse_reference_set(b"     ")


def test_escaped_characters_outside_the_basic_plane_are_read() -> None:
    data = b'{"format": "undercroft.reference/1", "name": "\\ud83d\\ude00"}'
    assert parse_reference_set(data).name == "\N{GRINNING FACE}"


texts = st.text(st.characters(codec="utf-8"), max_size=12)
provenances = st.builds(Provenance, st.sampled_from(Grade), texts, texts, note=texts)
paths = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6).map("/".__add__)
digests = st.sampled_from([SHA1, SHA256]).flatmap(
    lambda a: st.binary(min_size=a.size, max_size=a.size).map(lambda b: Digest(a, b))
)
values = st.builds(
    ReferenceValue,
    st.lists(digests, min_size=1, max_size=2, unique_by=lambda d: d.algorithm).map(tuple),
    texts,
    provenances,
    texts,
)
groups = st.lists(values, max_size=3).map(tuple)
kernels = st.builds(
    KernelReference,
    texts.filter(bool),
    digests,
    st.binary(min_size=1, max_size=64),
    provenances,
)
reference_sets = st.builds(
    ReferenceSet,
    texts,
    st.dictionaries(st.integers(0, 23), groups, max_size=3),
    st.dictionaries(st.integers(0, 23), groups, max_size=3),
    st.dictionaries(paths, groups, max_size=3),
    st.lists(kernels, max_size=2).map(tuple),
)


@given(reference_sets)
def test_any_set_survives_json(references: ReferenceSet) -> None:
    assert parse_reference_set(encode_reference_set(references)) == references


@given(st.binary(max_size=200))
def test_only_format_errors_escape(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_reference_set(data)
