"""Recognising a quote says what parsing it says, or says nothing."""

from __future__ import annotations

import importlib.resources
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.appraise.model import Appraisal
from undercroft.appraise.pipeline import Rulebook
from undercroft.appraise.steady import SteadySession
from undercroft.base import FormatError, HashAlgorithm, PcrBank, VerificationError
from undercroft.formats.evidence import Challenge, Evidence
from undercroft.policy import parse_policy
from undercroft.testing.attester import AkKind
from undercroft.testing.guest import NOW, SELECTION, SimulatedGuest

DEFAULT = parse_policy(
    (importlib.resources.files("undercroft.policy") / "policies" / "default.toml").read_text()
)
RULES = Rulebook.of(SimulatedGuest().references, DEFAULT)
NONCE = bytes(range(32, 64))
TEMPLATES = ("ima-ng", "ima-sig")


class General(SteadySession):
    """A session that recognises nothing."""

    def _settle(self, *arguments: object) -> None:
        super()._settle(*arguments)  # type: ignore[arg-type]
        self._swift = None


def both(guest: SimulatedGuest) -> tuple[SteadySession, General]:
    challenge = guest.challenge()
    evidence = guest.evidence(challenge)
    pair = SteadySession(guest.trust, RULES), General(guest.trust, RULES)
    for session in pair:
        session.first(evidence, challenge, NOW)
    return pair


def later(guest: SimulatedGuest, offset: int, challenge: Challenge) -> Evidence:
    guest.attester.advance(1000)
    return guest.evidence(challenge, eventlog=None, ima_list=guest.ima.binary[offset:])


def outcome(session: SteadySession, evidence: Evidence, challenge: Challenge) -> Appraisal | str:
    try:
        return session.next(evidence, challenge, NOW)
    except VerificationError as error:
        return error.check
    except FormatError as error:
        return str(error)


def recognised(session: SteadySession, evidence: Evidence, challenge: Challenge) -> bool:
    swift, state = session._swift, session.state
    assert swift is not None
    assert state is not None
    assert state.ima is not None
    return swift.step(evidence, challenge, state.accepted, state.ima) is not None


FILES = st.lists(st.sampled_from(["/init", "/usr/bin/busybox"]), max_size=4)


@given(st.sampled_from(TEMPLATES), st.lists(FILES, min_size=1, max_size=3), st.integers(0, 3))
def test_what_is_recognised_is_judged_as_what_is_parsed(
    template: str, rounds: list[list[str]], length: int
) -> None:
    guest = SimulatedGuest(template=template)
    swift, general = both(guest)
    for number, names in enumerate(rounds):
        for name in names:
            guest.ima.measure(name, guest.files[name])
        challenge = guest.challenge(nonce=bytes([number]) * (16 + length))
        evidence = later(guest, swift.ima_offset, challenge)
        assert recognised(swift, evidence, challenge)
        assert outcome(swift, evidence, challenge) == outcome(general, evidence, challenge)
        assert swift.state == general.state
        assert swift.state is not None
        assert general.state is not None
        assert swift.state.encode() == general.state.encode()


UNUSUAL = ("unknown", "violation", "signed", "buffer", "other pcr")


@given(st.sampled_from(TEMPLATES), st.lists(st.sampled_from(UNUSUAL), min_size=1, max_size=3))
def test_what_is_unusual_is_left_to_the_general_path(template: str, what: list[str]) -> None:
    guest = SimulatedGuest(template=template)
    swift, general = both(guest)
    for one in what:
        guest.ima.measure("/init", guest.files["/init"])
        if one == "unknown":
            guest.ima.measure("/evil", b"evil")
        elif one == "violation":
            guest.ima.violation("/log")
        elif one == "signed":
            guest.ima.measure("/init", guest.files["/init"], {"sig": b"\x03\x02\x04" + bytes(70)})
        elif one == "buffer":
            guest.ima.buffer("kexec-cmdline", b"root=/dev/vda1")
        else:
            guest.ima.measure("/init", guest.files["/init"], pcr=11)
    challenge = guest.challenge(nonce=NONCE)
    evidence = later(guest, swift.ima_offset, challenge)
    if what != ["signed"] * len(what) or template == "ima-sig":
        assert not recognised(swift, evidence, challenge)
    assert outcome(swift, evidence, challenge) == outcome(general, evidence, challenge)
    assert swift.state == general.state


PARTS = ("attest", "signature", "public", "pcr", "ima", "record")
GUEST = SimulatedGuest()
SWIFT, GENERAL = both(GUEST)
STATE = SWIFT.state
GUEST.ima.measure("/init", GUEST.files["/init"])
CHALLENGE = GUEST.challenge(nonce=NONCE)
GOOD = later(GUEST, SWIFT.ima_offset, CHALLENGE)


def flipped(data: bytes | None, place: int, mask: int) -> bytes:
    changed = bytearray(data or b"\0")
    changed[place % len(changed)] ^= mask
    return bytes(changed)


def changed(part: str, place: int, mask: int) -> Evidence:
    item = GOOD.quote
    if part == "ima":
        return replace(GOOD, ima_list=flipped(GOOD.ima_list, place, mask))
    if part == "record":
        return replace(GOOD, record=flipped(GOOD.record, place, mask))
    if part == "pcr":
        (bank,) = item.claimed_pcrs
        index = sorted(bank.values)[place % len(bank.values)]
        values = {**bank.values, index: flipped(bank.values[index], place, mask)}
        return replace(GOOD, quote=replace(item, claimed_pcrs=(PcrBank(bank.algorithm, values),)))
    if part == "public":
        return replace(
            GOOD,
            quote=replace(item, claimed_ak_public=flipped(item.claimed_ak_public, place, mask)),
        )
    if part == "attest":
        return replace(GOOD, quote=replace(item, attest=flipped(item.attest, place, mask)))
    return replace(GOOD, quote=replace(item, signature=flipped(item.signature, place, mask)))


@given(st.sampled_from(PARTS), st.integers(min_value=0), st.integers(1, 255))
def test_a_changed_byte_is_refused_alike(part: str, place: int, mask: int) -> None:
    evidence = changed(part, place, mask)
    assert not recognised(SWIFT, evidence, CHALLENGE)
    assert outcome(SWIFT, evidence, CHALLENGE) == outcome(GENERAL, evidence, CHALLENGE)
    assert SWIFT.state is STATE


@pytest.mark.parametrize(
    "evidence",
    [
        replace(GOOD, eventlog=GUEST.log),
        replace(GOOD, ima_list=None),
        # Nothing vouches for a log that the quote does not bind.
        replace(GOOD, launch_log=GUEST.log),
        replace(
            GOOD,
            quote=replace(
                GOOD.quote,
                signature=GOOD.quote.signature[:6] + bytes(32) + GOOD.quote.signature[38:],
            ),
        ),
        replace(GOOD, quote=replace(GOOD.quote, signature=GOOD.quote.signature[:-32] + bytes(32))),
        replace(GOOD, quote=replace(GOOD.quote, claimed_pcrs=())),
        replace(GOOD, quote=replace(GOOD.quote, signature=b"")),
        replace(GOOD, quote=replace(GOOD.quote, attest=GOOD.quote.attest + b"\0")),
        replace(GOOD, ima_list=(GOOD.ima_list or b"")[:-1]),
        replace(GOOD, ima_list=(GOOD.ima_list or b"") + b"\0"),
        GUEST.evidence(CHALLENGE, eventlog=None, ima_list=GUEST.ima.binary[:-1]),
        GUEST.evidence(CHALLENGE, eventlog=None, ima_list=(GOOD.ima_list or b"") + bytes(3)),
        GUEST.evidence(CHALLENGE, eventlog=None, ima_list=(GOOD.ima_list or b"") * 2),
    ],
)
def test_another_shape_is_refused_alike(evidence: Evidence) -> None:
    assert not recognised(SWIFT, evidence, CHALLENGE)
    assert outcome(SWIFT, evidence, CHALLENGE) == outcome(GENERAL, evidence, CHALLENGE)


def test_values_of_other_pcrs_are_refused_alike() -> None:
    (bank,) = GOOD.quote.claimed_pcrs
    fewer = PcrBank(bank.algorithm, {0: bank.values[0]})
    evidence = replace(GOOD, quote=replace(GOOD.quote, claimed_pcrs=(fewer,)))
    assert not recognised(SWIFT, evidence, CHALLENGE)
    assert outcome(SWIFT, evidence, CHALLENGE) == outcome(GENERAL, evidence, CHALLENGE)


def test_a_signature_field_that_lies_about_its_size_is_refused_alike() -> None:
    guest = SimulatedGuest(template="ima-sig")
    swift, general = both(guest)
    guest.ima.measure("/init", guest.files["/init"])
    challenge = guest.challenge(nonce=NONCE)
    entries = guest.ima.binary[swift.ima_offset :]
    guest.attester.advance(1000)
    lying = entries[:-4] + b"\1\0\0\0"
    evidence = guest.evidence(challenge, eventlog=None, ima_list=lying)
    assert not recognised(swift, evidence, challenge)
    assert outcome(swift, evidence, challenge) == outcome(general, evidence, challenge)


def test_counters_that_moved_are_looked_at() -> None:
    guest = SimulatedGuest()
    swift, general = both(guest)
    challenge = guest.challenge(nonce=NONCE)
    guest.attester.restart()
    evidence = later(guest, swift.ima_offset, challenge)
    assert not recognised(swift, evidence, challenge)
    assert outcome(swift, evidence, challenge) == outcome(general, evidence, challenge)
    guest.attester.advance(-5000)
    back = later(guest, swift.ima_offset, challenge)
    assert not recognised(swift, back, challenge)
    assert outcome(swift, back, challenge) == outcome(general, back, challenge) == "quote.clock"


def test_another_selection_is_looked_at() -> None:
    guest = SimulatedGuest()
    swift, general = both(guest)
    challenge = Challenge(guest.challenge().nonce, {HashAlgorithm.SHA256: range(12)}, NOW)  # type: ignore[dict-item]
    evidence = later(guest, swift.ima_offset, challenge)
    assert not recognised(swift, evidence, challenge)
    assert outcome(swift, evidence, challenge) == outcome(general, evidence, challenge)


def test_there_is_no_pattern_for_other_keys_banks_and_lists() -> None:
    def pattern(
        guest: SimulatedGuest,
        challenge: Challenge,
        rules: Rulebook = RULES,
        **parts: bytes | None,
    ) -> SteadySession:
        session = SteadySession(guest.trust, rules)
        evidence = guest.evidence(challenge, **parts)  # type: ignore[arg-type]
        session.first(evidence, challenge, NOW)
        return session

    guest = SimulatedGuest()
    challenge = guest.challenge()
    assert pattern(guest, challenge)._swift is not None
    rsa = SimulatedGuest(kind=AkKind.RSASSA)
    assert pattern(rsa, challenge)._swift is None
    sha1 = SimulatedGuest(kind=AkKind.ECDSA_P256_SHA1)
    assert pattern(sha1, challenge)._swift is None
    two = Challenge(challenge.nonce, {HashAlgorithm.SHA1: (0,), **SELECTION}, NOW)
    assert pattern(guest, two)._swift is None
    other = Challenge(challenge.nonce, {HashAlgorithm.SHA1: SELECTION[HashAlgorithm.SHA256]}, NOW)
    assert pattern(guest, other)._swift is None
    assert pattern(guest, challenge, ima_list=None)._swift is None
    deviant = SimulatedGuest(files={**guest.files, "/evil": b"evil"})
    assert pattern(deviant, challenge)._swift is None
    files = replace(DEFAULT.files, exclude=("/run/*",))
    excluding = Rulebook.of(guest.references, replace(DEFAULT, files=files))
    assert pattern(guest, challenge, excluding)._swift is None
