"""Epochs in PCR 19: each way to hide one, and the check that says no."""

from __future__ import annotations

import pytest

from undercroft.base import FormatError, HashAlgorithm, VerificationError
from undercroft.formats.evidence.interval import epoch_digest, parse_epoch
from undercroft.formats.launch import (
    EPOCH,
    LAUNCH_PCRS,
    TAG_RECORD,
    EpochRecord,
    LaunchEvent,
    parse_epoch_record,
)
from undercroft.formats.tpm import PcrSelectionList
from undercroft.testing.attester import SimulatedAttester
from undercroft.testing.epochs import chained, honest_chain
from undercroft.testing.launch import launch_events, perform_launch
from undercroft.verify.epochs import RecordedRun, recorded_runs, verify_epochs
from undercroft.verify.launch import VerifiedLaunch, verify_launch

CHAIN, _ = chained(honest_chain())
RECORDS = [
    EpochRecord(epoch.session, epoch.sequence, epoch_digest(encoded))
    for encoded in CHAIN
    for epoch in [parse_epoch(encoded)]
]
RESTARTED = [EpochRecord(b"\xee" * 16, number, bytes([number]) * 32) for number in (1, 2)]


def events(*records: EpochRecord) -> list[LaunchEvent]:
    return [LaunchEvent(TAG_RECORD, EPOCH, record.encode()) for record in records]


def runs(*records: EpochRecord) -> tuple[RecordedRun, ...]:
    return recorded_runs(events(*records))


def refused(*records: EpochRecord) -> str:
    with pytest.raises(VerificationError) as caught:
        runs(*records)
    return caught.value.check


def launched(*records: EpochRecord) -> VerifiedLaunch:
    attester = SimulatedAttester(banks=[HashAlgorithm.SHA256])
    recorded = [("note", b"something else"), *((EPOCH, record.encode()) for record in records)]
    log = perform_launch(attester, launch_events(b"manifest\n", records=recorded))
    quoted = attester.read(PcrSelectionList.of({HashAlgorithm.SHA256: LAUNCH_PCRS}))
    return verify_launch(log, quoted)


def test_a_record_comes_back_as_it_was() -> None:
    for record in RECORDS:
        assert parse_epoch_record(record.encode()) == record


@pytest.mark.parametrize("data", [b"", bytes(56), RECORDS[0].encode()[:-1], bytes(57)])
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_epoch_record(data)


def test_the_whole_chain_is_what_the_pcr_names() -> None:
    launch = launched(*RECORDS)
    assert [run.epochs for run in launch.runs] == [tuple(RECORDS)]
    assert verify_epochs(launch.runs, CHAIN) == launch.runs[0]


@pytest.mark.parametrize("first", range(len(RECORDS)))
def test_the_newest_stands_for_all_before_it(first: int) -> None:
    assert verify_epochs(runs(*RECORDS[first:]), CHAIN).epochs == tuple(RECORDS[first:])
    assert verify_epochs(runs(*RECORDS[first:-1:2], RECORDS[-1]), CHAIN)


def test_an_epoch_named_twice_is_refused() -> None:
    assert refused(*RECORDS[:2], *RECORDS[1:]) == "launch.epochs"


def test_a_run_that_goes_on_after_another_is_refused() -> None:
    again = EpochRecord(RECORDS[0].session, 1, bytes(32))
    assert refused(*RECORDS, *RESTARTED, again) == "launch.epochs"
    assert refused(*RECORDS[:2], *RESTARTED, *RECORDS[2:]) == "launch.epochs"


def test_the_launch_refuses_what_the_epochs_refuse() -> None:
    with pytest.raises(VerificationError) as caught:
        launched(*RECORDS[1:], RECORDS[0])
    assert caught.value.check == "launch.epochs"


@pytest.mark.parametrize(
    "shown",
    [
        CHAIN[:-1],
        CHAIN[1:],
        [],
        [*CHAIN, CHAIN[-1]],
        [*CHAIN[:-1], CHAIN[-1] + b"\0"],
        [CHAIN[0], CHAIN[1] + b"\0", *CHAIN[2:]],
    ],
)
def test_another_chain_than_the_pcr_names_is_refused(shown: list[bytes]) -> None:
    with pytest.raises(VerificationError) as caught:
        verify_epochs(runs(*RECORDS), shown)
    assert caught.value.check == "launch.chain"


def test_a_chain_that_the_pcr_does_not_name_at_all_is_refused() -> None:
    for shown in (CHAIN, []):
        with pytest.raises(VerificationError) as caught:
            verify_epochs((), shown)
        assert caught.value.check == "launch.chain"


def test_a_restarted_secure_kernel_cannot_hide_the_hole() -> None:
    launch = launched(*RESTARTED, *RECORDS)
    assert [run.session for run in launch.runs] == [b"\xee" * 16, RECORDS[0].session]
    assert verify_epochs(launch.runs, CHAIN).epochs == tuple(RECORDS)
    with pytest.raises(VerificationError):
        verify_epochs(launch.runs[:1], CHAIN)
