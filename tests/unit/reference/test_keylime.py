"""Keylime's runtime policies: read with what has no place told, and written."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from undercroft.base import FormatError, Grade, HashAlgorithm
from undercroft.reference.keylime import encode_runtime_policy, parse_runtime_policy
from undercroft.reference.model import Provenance

SOURCE = Provenance(Grade.OBSERVED, note="from Keylime")
ONE, TWO = hashlib.sha256(b"1").hexdigest(), hashlib.sha1(b"2").hexdigest()
POLICY: dict[str, Any] = {
    "meta": {"version": 1, "generator": 3, "timestamp": "2026-01-01"},
    "release": 0,
    "digests": {"/usr/bin/a": [ONE, TWO, ONE.upper()], "boot_aggregate": [ONE], "/empty": []},
    "excludes": ["^/tmp/.*"],
    "keyrings": {},
    "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": None},
    "ima-buf": {},
    "verification-keys": "",
}


def parsed(**changes: Any) -> Any:
    return parse_runtime_policy(json.dumps({**POLICY, **changes}).encode(), "k", SOURCE)


def test_files_become_references() -> None:
    policy = parsed()
    assert list(policy.references.files) == ["/usr/bin/a"]
    one, two = policy.references.files["/usr/bin/a"]
    assert [d.algorithm for v in (one, two) for d in v.digests] == [
        HashAlgorithm.SHA256,
        HashAlgorithm.SHA1,
    ]
    assert one.provenance is SOURCE
    assert (policy.excludes, policy.left_out) == (("^/tmp/.*",), ())
    assert parsed(excludes=None).excludes == ()


def test_what_has_no_place_is_named() -> None:
    policy = parsed(
        keyrings={".ima": ["00"]},
        **{"ima-buf": {"x": ["00"]}, "verification-keys": "PEM"},
        ima={"ignored_keyrings": ["*"], "log_hash_alg": "sha1", "dm_policy": None},
    )
    assert policy.left_out == ("keyrings", "ima-buf", "ignored_keyrings", "verification-keys")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"digests": {"/a": ["zz"]}}, "not a digest"),
        ({"digests": {"/a": ["00"]}}, "not a digest"),
        ({"digests": {"a": [ONE]}}, "not an absolute path"),
        ({"digests": 5}, "Expected `object`"),
        ({"meta": {"version": 2}}, "another version"),
        ({"ima": {"dm_policy": {}}}, "device-mapper"),
        ({"new-part": 1}, "unknown field"),
    ],
)
def test_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parsed(**changes)


def test_a_policy_is_written_as_keylime_reads_it() -> None:
    data = encode_runtime_policy(
        [(b"/b", bytes(32)), (b"/a\xff", b"\1" * 32), (b"/b", b"\2" * 32), (b"/b", bytes(32))]
    )
    document = json.loads(data)
    assert document["digests"] == {"/a\\xff": ["01" * 32], "/b": ["00" * 32, "02" * 32]}
    assert document.keys() == POLICY.keys()
    again = parse_runtime_policy(data, "k", SOURCE).references
    assert len(again.files["/b"]) == 2
