"""What a verifier remembers: a vTPM that goes back is refused, and nothing is forgotten."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from undercroft import wiring
from undercroft.base import EnvironmentFault, FormatError, VerificationError
from undercroft.service.accepted import AcceptedStates, encode_accepted, parse_accepted
from undercroft.service.casefile import ACCEPTED, Case, load_case, save_case
from undercroft.service.verifier import accept_case, appraise_case
from undercroft.testing.guest import NOW, SimulatedGuest, standard_boot
from undercroft.verify.quote import AcceptedState

STATE = AcceptedState(b"\0\x0b" + bytes(32), 5000, 3, 1, 0x20220101)
POLICY = wiring.shipped_policy("direct-boot")


@pytest.fixture
def states(tmp_path: Path) -> AcceptedStates:
    return AcceptedStates(tmp_path / "accepted")


def case_of(guest: SimulatedGuest, nonce: bytes = bytes(32)) -> Case:
    challenge = guest.challenge(nonce=nonce)
    return Case(guest.evidence(challenge), challenge, guest.trust, guest.predicted(), POLICY)


def test_a_state_comes_back_as_it_was(states: AcceptedStates) -> None:
    assert states.load(STATE.ak_name) is None
    states.accept("demo", STATE)
    assert states.load(STATE.ak_name) == STATE
    assert parse_accepted(encode_accepted("demo", STATE)) == STATE
    assert states.load(b"\0\x0b" + bytes([1]) * 32) is None


@pytest.mark.parametrize("field", ["clock", "reset_count", "restart_count"])
def test_it_goes_forward_only(states: AcceptedStates, field: str) -> None:
    states.accept("demo", STATE)
    older = msgspec.structs.replace(STATE, **{field: getattr(STATE, field) - 1})
    states.accept("demo", older)
    assert states.load(STATE.ak_name) == STATE
    newer = msgspec.structs.replace(STATE, **{field: getattr(STATE, field) + 1})
    states.accept("demo", newer)
    assert states.load(STATE.ak_name) == newer


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        encode_accepted("demo", STATE).replace(b"state/1", b"state/2"),
        encode_accepted("demo", STATE).replace(b'"000b', b'"000B'),
        encode_accepted("demo", STATE).replace(b"5000", b'"5000"'),
        encode_accepted("demo", STATE)[:-4],
    ],
)
def test_what_is_not_readable_accepts_nothing(states: AcceptedStates, data: bytes) -> None:
    states.accept("demo", STATE)
    states.path(STATE.ak_name).write_bytes(data)
    with pytest.raises(FormatError):
        states.load(STATE.ak_name)


def test_a_file_that_cannot_be_read_accepts_nothing(states: AcceptedStates) -> None:
    states.path(STATE.ak_name).mkdir(parents=True)
    with pytest.raises(EnvironmentFault, match="cannot read"):
        states.load(STATE.ak_name)


def test_a_rolled_back_vtpm_is_refused(states: AcceptedStates) -> None:
    guest = SimulatedGuest(boot=standard_boot(secure_boot=False))
    guest.attester.clock_info = msgspec.structs.replace(guest.attester.clock_info, clock=9_000)
    held, _ = accept_case(case_of(guest), NOW, states)
    assert held.last is None
    again, appraisal = accept_case(case_of(guest, b"\1" * 32), NOW, states)
    assert again.last is not None
    assert again.last.clock == 9_000
    assert appraisal.verdict.label == "affirming"
    guest.attester.clock_info = msgspec.structs.replace(guest.attester.clock_info, clock=8_999)
    back = case_of(guest, b"\2" * 32)
    with pytest.raises(VerificationError, match="clock went back") as caught:
        accept_case(back, NOW, states)
    assert caught.value.check == "quote.clock"
    assert str(states.folder) in caught.value.remedy
    assert appraise_case(back, NOW).verdict.label == "affirming", "without state nobody can tell"


def test_other_refusals_keep_their_words(states: AcceptedStates) -> None:
    case = case_of(SimulatedGuest(boot=standard_boot(secure_boot=False)))
    other = replace(case, challenge=SimulatedGuest().challenge(nonce=b"\7" * 32))
    with pytest.raises(VerificationError) as caught:
        accept_case(other, NOW, states)
    assert caught.value.check == "quote.nonce"
    assert not states.folder.exists(), "what is not authentic leaves nothing behind"


def test_a_case_keeps_what_it_was_held_to(tmp_path: Path) -> None:
    guest = SimulatedGuest(boot=standard_boot(secure_boot=False))
    case = replace(case_of(guest), last=STATE)
    save_case(tmp_path, case)
    assert load_case(tmp_path).last == STATE
    with pytest.raises(VerificationError) as caught:
        appraise_case(load_case(tmp_path), NOW)
    assert caught.value.check == "quote.state"
    save_case(tmp_path, replace(case, last=None))
    assert not (tmp_path / ACCEPTED).exists()
    assert load_case(tmp_path).last is None
