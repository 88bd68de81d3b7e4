"""What PCR 19 is extended with: once in a launch, and again after a reset."""

from __future__ import annotations

from typing import cast

from undercroft.base import Finding, HashAlgorithm, Outcome
from undercroft.formats.evidence.interval import epoch_digest
from undercroft.formats.launch import EPOCH, parse_epoch_record
from undercroft.securekernel.vtpm import VtpmClient
from undercroft.securekernel.vtpm.records import MAX_FINDINGS, RecordKeeper
from undercroft.testing.epochs import chained, honest_chain
from undercroft.testing.launch import encode_launch_log, launch_events

CHAIN, _ = chained(honest_chain())
BAD = Finding("kernel.text", Outcome.FAIL, "13 bytes")
DIGESTS = [epoch_digest(encoded) for encoded in CHAIN]


class Client:
    """A multiplexer's log in memory; a ``launch`` of 0 stands for none."""

    def __init__(self, launch: int = 1) -> None:
        self.launch = launch
        self.records: list[tuple[str, bytes]] = []
        self.logs = 0

    def status(self) -> dict[str, int]:
        return {"launch": self.launch, "log_size": 1000 * bool(self.launch)}

    def current_launch_log(self) -> bytes:
        self.logs += 1
        return encode_launch_log(
            launch_events(b"manifest", records=self.records), [HashAlgorithm.SHA256]
        )

    def record(self, name: str, data: bytes) -> None:
        self.records.append((name, data))

    @property
    def epochs(self) -> list[bytes]:
        return [parse_epoch_record(data).digest for name, data in self.records if name == EPOCH]


def keeper(client: Client) -> RecordKeeper:
    return RecordKeeper(cast(VtpmClient, client))


def test_the_newest_epoch_is_kept_once() -> None:
    client = Client()
    keep = keeper(client)
    assert [keep.keep_epochs(CHAIN[:n]) for n in (0, 1, 1, 4, 4)] == [0, 1, 0, 1, 0]
    assert client.epochs == [DIGESTS[0], DIGESTS[3]]
    assert client.logs == 1


def test_another_keeper_knows_what_was_kept() -> None:
    client = Client()
    assert keeper(client).keep_findings([BAD]) == 1
    keeper(client).keep_epochs(CHAIN)
    assert keeper(client).keep_epochs(CHAIN) == keeper(client).keep_findings([BAD]) == 0
    assert [name for name, _ in client.records] == ["finding", EPOCH]


def test_after_a_reset_all_is_kept_again() -> None:
    client = Client()
    keep = keeper(client)
    keep.keep_epochs(CHAIN)
    keep.keep_findings([BAD])
    client.launch, client.records = 2, []
    assert keep.keep_epochs(CHAIN) == keep.keep_findings([BAD]) == 1


def test_without_a_launch_there_is_nothing_to_keep_it_in() -> None:
    client = Client(launch=0)
    assert keeper(client).keep_epochs(CHAIN) == keeper(client).keep_findings([BAD]) == 0
    assert client.records == []


def test_only_what_failed_is_a_finding_and_each_once() -> None:
    client = Client()
    good = Finding("kernel.text", Outcome.PASS, "as it should be")
    unsure = Finding("kernel.text", Outcome.UNKNOWN, "nobody knows")
    assert keeper(client).keep_findings([good, BAD, unsure, BAD]) == 1


def test_a_guest_that_varies_its_findings_fills_nothing_and_epochs_have_their_own_room() -> None:
    client = Client()
    keep = keeper(client)
    many = [Finding("kernel.text", Outcome.FAIL, f"{n} bytes") for n in range(300)]
    assert keep.keep_findings(many) == MAX_FINDINGS
    assert keep.keep_findings([BAD]) == 0
    assert keep.keep_epochs(CHAIN) == 1
