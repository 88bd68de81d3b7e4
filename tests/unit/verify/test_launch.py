"""The launch's log against quoted PCRs: each way to lie, and the check that says no."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from undercroft.base import HashAlgorithm, PcrBank, UndercroftError, VerificationError
from undercroft.formats.launch import (
    LAUNCH_PCRS,
    TAG_IDENTITY,
    TAG_MANIFEST,
    TAG_RECORD,
    LaunchEvent,
)
from undercroft.formats.tpm import PcrSelectionList
from undercroft.securekernel.vtpm import keys
from undercroft.testing.attester import AK_ATTRIBUTES, SimulatedAttester
from undercroft.testing.launch import (
    encode_launch_log,
    launch_events,
    perform_launch,
    use_launch_key,
)
from undercroft.verify.launch import AK_POLICY, verify_launch, verify_launch_key

BANKS = (HashAlgorithm.SHA1, HashAlgorithm.SHA256)
GOOD = launch_events(
    b"manifest\n",
    [("vm-descriptor", b"a machine"), ("guest-kernel", b"6.1")],
    [("epoch", b"1"), ("epoch", b"2")],
)


def quoted(attester: SimulatedAttester, *pcrs: int) -> tuple[PcrBank, ...]:
    return attester.read(PcrSelectionList.of(dict.fromkeys(BANKS, pcrs or LAUNCH_PCRS)))


def launched(
    events: tuple[LaunchEvent, ...] = GOOD,
) -> tuple[bytes, tuple[PcrBank, ...]]:
    attester = SimulatedAttester(banks=BANKS)
    log = perform_launch(attester, events)
    return log, quoted(attester)


def refused(log: bytes, pcrs: tuple[PcrBank, ...]) -> str:
    with pytest.raises(VerificationError) as caught:
        verify_launch(log, pcrs)
    return caught.value.check


def test_a_launch_is_proven_with_everything_in_it() -> None:
    launch = verify_launch(*launched())
    assert (launch.reason, launch.number) == ("power-on", 1)
    assert launch.manifest.data == b"manifest\n"
    assert {name: event.data for name, event in launch.identities.items()} == {
        "vm-descriptor": b"a machine",
        "guest-kernel": b"6.1",
    }
    assert [record.data for record in launch.records] == [b"1", b"2"]
    assert launch.banks == BANKS


def test_pcrs_that_were_only_extended_are_no_launch() -> None:
    attester = SimulatedAttester(banks=BANKS)  # PCR 17 to 22 start with all bits set
    log = encode_launch_log(GOOD, BANKS)
    for event in GOOD:
        attester.measure(17, event.encode())
    assert refused(log, quoted(attester)) == "launch.replay"


@pytest.mark.parametrize("cut", range(1, len(GOOD)))
def test_a_log_cut_after_a_whole_event_is_refused(cut: int) -> None:
    _, pcrs = launched()
    expected = "launch.log" if cut < 2 else "launch.replay"
    assert refused(encode_launch_log(GOOD[:cut], BANKS), pcrs) == expected


def test_a_log_without_its_middle_is_refused() -> None:
    _, pcrs = launched()
    assert refused(encode_launch_log(GOOD[:4] + GOOD[5:], BANKS), pcrs) == "launch.replay"


def test_a_changed_event_is_refused() -> None:
    log, pcrs = launched()
    assert refused(log.replace(b"a machine", b"b machine"), pcrs) == "launch.digest"


def test_a_changed_event_with_its_digests_made_right_is_refused() -> None:
    _, pcrs = launched()
    other = launch_events(b"manifest\n", [("vm-descriptor", b"b machine")])
    assert refused(encode_launch_log(other, BANKS), pcrs) == "launch.replay"


def test_a_bank_that_the_log_lacks_is_refused() -> None:
    _, pcrs = launched()
    assert refused(encode_launch_log(GOOD, BANKS[:1]), pcrs) == "launch.replay"


def test_pcrs_that_were_not_quoted_prove_nothing() -> None:
    attester = SimulatedAttester(banks=BANKS)
    log = perform_launch(attester, GOOD)
    assert refused(log, quoted(attester, 17, 18)) == "launch.replay"
    assert refused(log, ()) == "launch.replay"


@pytest.mark.parametrize(
    "events",
    [
        GOOD[1:],
        (GOOD[1], GOOD[0], *GOOD[2:]),
        (GOOD[0], *GOOD[2:]),
        (*GOOD, GOOD[0]),
        (*GOOD, GOOD[2]),
        (*GOOD[:3], GOOD[2]),
        (GOOD[0], GOOD[1], LaunchEvent(TAG_IDENTITY, "launch", b"again")),
        (GOOD[0], LaunchEvent(TAG_IDENTITY, "launch", b"because"), *GOOD[2:]),
        (LaunchEvent(TAG_MANIFEST, "my kernel", b""), *GOOD[1:]),
        (GOOD[0], LaunchEvent(TAG_RECORD, "launch", GOOD[1].data)),
        (),
    ],
)
def test_a_log_of_another_shape_is_refused(events: tuple[LaunchEvent, ...]) -> None:
    assert refused(*launched(events)) == "launch.log"


@pytest.mark.parametrize(
    "change",
    [
        lambda log: log + b"\0" * 8,  # padding, as firmware has it
        lambda log: log.replace(b"\x11\0\0\0\6\0\0\0", b"\x11\0\0\0\7\0\0\0", 1),  # EV_ACTION
        lambda log: log.replace(b"\x12\0\0\0\6\0\0\0", b"\x13\0\0\0\6\0\0\0", 1),  # another PCR
    ],
)
def test_other_events_than_a_launchs_are_refused(change: Callable[[bytes], bytes]) -> None:
    log, pcrs = launched()
    assert refused(change(log), pcrs) == "launch.log"


def test_every_cut_and_flip_of_the_log_is_refused() -> None:
    log, pcrs = launched()
    header = len(encode_launch_log((), BANKS))  # nothing is measured of it; the quote binds it
    for at in range(header, len(log), 7):
        for changed in (log[:at], log[:at] + bytes([log[at] ^ 1]) + log[at + 1 :]):
            with pytest.raises(UndercroftError):
                verify_launch(changed, pcrs)


def test_the_policy_is_that_of_the_secure_kernels_keys() -> None:
    assert keys.AK_POLICY == AK_POLICY


def test_a_key_for_the_secure_kernels_locality_only() -> None:
    attester = SimulatedAttester()
    use_launch_key(attester)
    assert verify_launch_key(attester.public) is attester.public


@pytest.mark.parametrize(
    "change",
    [
        {"auth_policy": b""},
        {"auth_policy": keys.policy_locality_digest(0)},
        {"auth_policy": bytes(32)},
        {"attributes": AK_ATTRIBUTES},  # USER_WITH_AUTH: the empty password would do
        {"name_alg": HashAlgorithm.SHA384},
    ],
)
def test_a_key_that_others_can_use_is_refused(change: dict[str, object]) -> None:
    attester = SimulatedAttester()
    use_launch_key(attester)
    with pytest.raises(VerificationError) as caught:
        verify_launch_key(msgspec.structs.replace(attester.public, **change))
    assert caught.value.check == "launch.key"
