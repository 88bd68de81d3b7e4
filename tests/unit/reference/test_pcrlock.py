"""Boot events as systemd-pcrlock components."""

from __future__ import annotations

import json

import pytest

from undercroft.base import Grade, HashAlgorithm
from undercroft.reference.model import Provenance, ReferenceSet, ReferenceValue
from undercroft.reference.pcrlock import pcrlock_components

SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256
SOURCE = Provenance(Grade.PACKAGE)


def value(text: str, role: str = "", *algorithms: HashAlgorithm) -> ReferenceValue:
    digests = tuple(one.digest(text.encode()) for one in algorithms or (SHA1, SHA256))
    return ReferenceValue(digests, text, SOURCE, role)


def test_roles_variants_and_what_may_be_absent() -> None:
    events = {
        4: (value("shim 1", "shim"), value("kernel", "kernel"), value("shim 2", "shim")),
        9: (value("A file!"), value("old", "", SHA1)),
    }
    found = pcrlock_components(ReferenceSet("set", events=events))
    assert list(found) == [
        "0100-pcr4-shim.pcrlock.d/000.pcrlock",
        "0100-pcr4-shim.pcrlock.d/001.pcrlock",
        "0105-pcr4-kernel.pcrlock",
        "0110-pcr9-a-file.pcrlock.d/000.pcrlock",
        "0110-pcr9-a-file.pcrlock.d/001.pcrlock",
    ]
    assert json.loads(found["0105-pcr4-kernel.pcrlock"]) == {
        "records": [
            {
                "pcr": 4,
                "digests": [{"hashAlg": "sha256", "digest": SHA256.digest(b"kernel").value.hex()}],
            }
        ]
    }
    assert json.loads(found["0110-pcr9-a-file.pcrlock.d/001.pcrlock"]) == {"records": []}


def test_a_name_of_nothing_but_signs() -> None:
    (name,) = {n.partition("/")[0] for n in pcrlock_components(
        ReferenceSet("set", events={0: (value("!!!"),)}))}  # fmt: skip
    assert name == "0100-pcr0-event.pcrlock.d"


def test_nothing_to_lock_to() -> None:
    for events in ({}, {0: (value("x", "", SHA1),)}):
        with pytest.raises(ValueError, match="no boot event"):
            pcrlock_components(ReferenceSet("set", events=events))
