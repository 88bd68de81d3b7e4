"""Incremental appraisal says what the whole appraisal says, and refuses to go on from elsewhere."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undercroft.appraise.model import Appraisal
from undercroft.appraise.pipeline import Rulebook, appraise, verify_evidence
from undercroft.appraise.steady import CHECKS, SteadySession
from undercroft.appraise.steady_state import SteadyState, parse_steady_state
from undercroft.base import Finding, FormatError, HashAlgorithm, Outcome, VerificationError
from undercroft.formats import cbor
from undercroft.formats.ear import Tier
from undercroft.formats.evidence import Challenge, Evidence
from undercroft.formats.tpm import ClockInfo
from undercroft.policy import Requirement, parse_policy
from undercroft.testing.guest import NOW, SELECTION, SimulatedGuest

DEFAULT = parse_policy(
    (importlib.resources.files("undercroft.policy") / "policies" / "default.toml").read_text()
)
RULES = Rulebook.of(SimulatedGuest().references, DEFAULT)
SHA256 = HashAlgorithm.SHA256


def started(
    guest: SimulatedGuest, rules: Rulebook = RULES, **parts: Any
) -> tuple[SteadySession, Appraisal]:
    session = SteadySession(guest.trust, rules)
    evidence = guest.evidence(guest.challenge(), **parts)
    return session, session.first(evidence, guest.challenge(), NOW)


def later(
    session: SteadySession, guest: SimulatedGuest, challenge: Challenge, **parts: Any
) -> Evidence:
    """Return what a guest sends after the first time: no log, new IMA entries only."""
    guest.attester.advance(1000)
    new = guest.ima.binary[session.ima_offset :]
    return guest.evidence(challenge, **{"eventlog": None, "ima_list": new, **parts})


def told(appraisal: Appraisal) -> list[tuple[str, Outcome, Tier | None]]:
    """Return what an appraisal says; quirks of a log are stated in the same place."""
    return [(j.finding.id, j.finding.outcome, j.tier) for j in appraisal.judgements]


def test_the_first_is_the_whole_appraisal() -> None:
    guest = SimulatedGuest()
    _, first = started(guest)
    challenge = guest.challenge()
    verified = verify_evidence(guest.evidence(challenge), guest.trust, challenge)
    assert first == appraise(verified, RULES.references, DEFAULT, NOW)
    assert first.verdict is Tier.AFFIRMING


def test_without_a_record_what_is_demanded_of_it_is_missing_every_time() -> None:
    guest = SimulatedGuest()
    session, first = started(guest, record=None)
    challenge = guest.challenge()
    verified = verify_evidence(guest.evidence(challenge, record=None), guest.trust, challenge)
    assert first == appraise(verified, RULES.references, DEFAULT, NOW)
    again = session.next(later(session, guest, challenge, record=None), challenge, NOW)
    assert again.verdict is first.verdict is Tier.NONE
    demanded = set(DEFAULT.secure_kernel.facts)
    assert demanded <= {judgement.finding.id for judgement in again.unmet()}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(["/init", "/usr/bin/busybox", "/evil", "violation"]), max_size=4),
    st.lists(st.sampled_from(["/init", "/evil"]), max_size=3),
    st.sampled_from(Outcome),
)
def test_going_on_says_what_the_whole_says(
    second: list[str], third: list[str], text: Outcome
) -> None:
    guest = SimulatedGuest()
    session, _ = started(guest)
    for number, names in enumerate((second, third), 1):
        for name in names:
            if name == "violation":
                guest.ima.violation("/log")
            else:
                guest.ima.measure(name, guest.files.get(name, b"evil"))
        guest.facts = (*guest.facts[:-1], msgspec.structs.replace(guest.facts[-1], outcome=text))
        challenge = guest.challenge(nonce=bytes([number]) * 16)
        evidence = later(session, guest, challenge)
        session = SteadySession(guest.trust, RULES, parse_steady_state(_state(session).encode()))
        going_on = session.next(evidence, challenge, NOW)
        whole = verify_evidence(guest.evidence(challenge), guest.trust, challenge)
        expected = appraise(whole, RULES.references, DEFAULT, NOW)
        assert told(going_on) == told(expected)
        assert going_on.trust_vector == expected.trust_vector
        assert going_on.expires_at == expected.expires_at


def _state(session: SteadySession) -> SteadyState:
    assert session.state is not None
    return session.state


def failed_check(action: Callable[[], object]) -> str:
    with pytest.raises(VerificationError) as caught:
        action()
    return caught.value.check


def test_each_check_alone_says_no() -> None:
    guest = SimulatedGuest()
    session, _ = started(guest)
    state = _state(session)
    challenge = guest.challenge(nonce=bytes(16))
    touched = SimulatedGuest()
    touched.attester.advance(5000)
    touched.attester.measure(14, b"late")
    other_log = later(session, guest, challenge, eventlog=guest.log + b"\xff")
    no_list = later(session, guest, challenge, ima_list=None)
    seen = [
        failed_check(lambda: session.next(later(session, touched, challenge), challenge, NOW)),
        failed_check(lambda: session.next(other_log, challenge, NOW)),
        failed_check(lambda: session.next(no_list, challenge, NOW)),
        failed_check(
            lambda: SteadySession(guest.trust, RULES, msgspec.structs.replace(state, rules_id=b""))
        ),
    ]
    assert seen == [check.id for check in CHECKS]
    # Nothing of what was refused has left a trace.
    assert session.state is state
    good = later(session, guest, challenge, eventlog=guest.log)
    assert session.next(good, challenge, NOW).verdict is Tier.AFFIRMING


def test_a_reset_needs_the_whole_evidence() -> None:
    guest = SimulatedGuest()
    session, _ = started(guest)
    challenge = guest.challenge(nonce=bytes(16))
    again = SimulatedGuest()
    again.attester.clock_info = ClockInfo(90_000, reset_count=2, restart_count=0, safe=True)
    evidence = again.evidence(challenge, eventlog=None, ima_list=b"")
    assert failed_check(lambda: session.next(evidence, challenge, NOW)) == "steady.boot"
    last = _state(session).accepted
    whole = again.evidence(challenge)
    assert session.first(whole, challenge, NOW, last=last).verdict is Tier.AFFIRMING
    assert _state(session).accepted.reset_count == 2


def test_a_pcr_that_is_not_quoted_any_more_is_not_unchanged() -> None:
    guest = SimulatedGuest()
    session, _ = started(guest)
    for selection in ({SHA256: (10,)}, {HashAlgorithm.SHA1: SELECTION[SHA256]}):
        challenge = Challenge(guest.challenge().nonce, selection, NOW)
        evidence = later(session, guest, challenge)
        assert failed_check(lambda e=evidence, c=challenge: session.next(e, c, NOW)) == (  # type: ignore[misc]
            "steady.boot"
        )


def test_an_old_quote_is_not_taken_again() -> None:
    guest = SimulatedGuest()
    session, _ = started(guest)
    challenge = guest.challenge(nonce=bytes(16))
    old = later(session, guest, challenge)
    newer = later(session, guest, challenge)
    session.next(newer, challenge, NOW)
    assert failed_check(lambda: session.next(old, challenge, NOW)) == "quote.clock"


def test_without_a_list_or_log_there_is_nothing_to_go_on_with() -> None:
    policy = replace(
        DEFAULT,
        boot=replace(DEFAULT.boot, secure_boot=Requirement.NOT_REQUIRED),
        files=replace(DEFAULT.files, ima=Requirement.NOT_REQUIRED),
    )
    guest = SimulatedGuest()
    rules = Rulebook.of(guest.predicted(), policy)
    session, first = started(guest, rules, ima_list=None, eventlog=None)
    assert first.verdict is Tier.AFFIRMING
    assert session.ima_offset == 0
    challenge = guest.challenge(nonce=bytes(16))
    evidence = later(session, guest, challenge)
    state = session.state
    assert failed_check(lambda: session.next(evidence, challenge, NOW)) == "steady.ima"
    logged = later(session, guest, challenge, ima_list=None, eventlog=guest.log)
    assert failed_check(lambda: session.next(logged, challenge, NOW)) == "steady.eventlog"
    assert session.state is state
    bare = later(session, guest, challenge, ima_list=None)
    # PCR 10 belongs to no list here, so it is a PCR like the others.
    assert session.next(bare, challenge, NOW).verdict is Tier.AFFIRMING
    guest.ima.measure("/new", b"new")
    moved = later(session, guest, challenge, ima_list=None)
    assert failed_check(lambda: session.next(moved, challenge, NOW)) == "steady.boot"


def test_first_comes_first() -> None:
    guest = SimulatedGuest()
    session = SteadySession(guest.trust, RULES)
    assert session.ima_offset == 0
    with pytest.raises(ValueError, match="first"):
        session.next(guest.evidence(guest.challenge()), guest.challenge(), NOW)


def test_rulebooks_are_told_apart_by_what_they_say() -> None:
    references = SimulatedGuest().references
    assert Rulebook.of(references, DEFAULT).id == RULES.id
    assert Rulebook.of(replace(references, files={}), DEFAULT).id != RULES.id
    assert Rulebook.of(references, replace(DEFAULT, id="other")).id != RULES.id


def _changed(**changes: Any) -> bytes:
    session, _ = started(SimulatedGuest())
    return cbor.encode({**cbor.decode(_state(session).encode(), "state"), **changes})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut short"),
        (_changed(version=2), "version 2"),
        (_changed(pcrs=[["md5", {}]]), "unknown hash"),
        (_changed(pcrs=[["sha1", {0: b""}]]), "20 bytes"),
        (_changed(ima=b"x"), "carried|decode|IMA"),
        (_changed(boot=[{**Finding("a", Outcome.PASS, "").as_json(), "tier": "x", "claim": None}]),
         "x"),
        (_changed(more=1), "unknown field"),
    ],
)  # fmt: skip
def test_a_broken_state_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_steady_state(data)


def test_the_state_is_small() -> None:
    session, _ = started(SimulatedGuest())
    data = _state(session).encode()
    assert len(data) < 16 << 10
    assert parse_steady_state(data).encode() == data
