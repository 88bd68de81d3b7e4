"""Learning from a machine: what nobody spoke of, marked, and nothing that contradicts."""

from __future__ import annotations

import importlib.resources
from dataclasses import replace

from undercroft.appraise.learn import Learned, learn
from undercroft.appraise.pipeline import appraise, judge_of, verify_evidence
from undercroft.base import Grade, HashAlgorithm
from undercroft.formats.ear import Tier
from undercroft.policy import parse_policy
from undercroft.reference.model import ReferenceSet, merge
from undercroft.testing.guest import NOW, SimulatedGuest

DEFAULT = parse_policy(
    (importlib.resources.files("undercroft.policy") / "policies" / "default.toml").read_text()
)
LATER = 1_790_000_000


def learned(guest: SimulatedGuest, known: ReferenceSet, **parts: None) -> Learned:
    challenge = guest.challenge()
    verified = verify_evidence(guest.evidence(challenge, **parts), guest.trust, challenge)
    return learn(verified, known, judge_of(known, DEFAULT), LATER)


def test_what_nobody_spoke_of_is_learned_and_marked() -> None:
    guest = SimulatedGuest()
    known = replace(guest.references, files={})
    guest.ima.measure("/init", b"#!/bin/sh\n")  # again
    result = learned(guest, known)
    assert result.contradicting == ()
    assert set(result.references.files) == set(guest.files)
    assert result.references.grades() == {Grade.OBSERVED}
    (value,) = result.references.files["/init"]
    assert value.digests == (HashAlgorithm.SHA256.digest(b"#!/bin/sh\n"),)
    assert value.provenance.note == "seen on demo, 2026-09-21"
    assert not result.references.pcrs  # the boot is known already


def test_a_machine_that_was_learned_is_not_affirmed_by_the_default() -> None:
    guest = SimulatedGuest()
    known = replace(guest.references, files={})
    both = merge("both", [known, learned(guest, known).references])
    challenge = guest.challenge()
    verified = verify_evidence(guest.evidence(challenge), guest.trust, challenge)
    assert appraise(verified, both, DEFAULT, NOW).verdict is Tier.WARNING
    lax = replace(DEFAULT, reference=replace(DEFAULT.reference, affirm=tuple(Grade)))
    assert appraise(verified, both, lax, NOW).verdict is Tier.AFFIRMING


def test_a_boot_that_nobody_knows() -> None:
    guest = SimulatedGuest()
    known = replace(guest.references, events={}, pcrs={})
    result = learned(guest, known)
    assert set(result.references.pcrs) == {*range(10), 14}
    (value,) = result.references.pcrs[4]
    assert value.digests[0].algorithm is HashAlgorithm.SHA256


def test_what_contradicts_is_listed_and_not_learned() -> None:
    guest = SimulatedGuest(release="6.1.0-99", build_id=b"\1" * 20)
    known = SimulatedGuest().predicted()
    (wrong,) = known.pcrs[4]
    other = replace(wrong, digests=(HashAlgorithm.SHA256.digest(b"?"),))
    known = replace(known, events={}, pcrs={**known.pcrs, 4: (other,)})
    guest.ima.measure("/init", b"changed")
    result = learned(guest, known)
    assert result.contradicting == ("/init", "kernel 6.1.0-99", "PCR 4")
    assert result.references.is_empty


def test_neither_violations_nor_buffers_nor_unknown_digests_are_learned() -> None:
    guest = SimulatedGuest(files={})
    guest.ima.violation("/log")
    guest.ima.measure("/new", b"x")
    guest.ima.buffer(".ima", b"a key")
    guest.ima.entry("/odd", bytes(32), name="blake3")
    result = learned(guest, guest.references)
    assert set(result.references.files) == {"/new"}


def test_without_a_list_or_a_record() -> None:
    guest = SimulatedGuest()
    result = learned(guest, guest.references, ima_list=None, record=None)
    assert result.references.is_empty
