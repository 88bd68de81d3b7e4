"""What a running secure kernel records: failures at once, epochs now and then, faults as facts."""

from __future__ import annotations

from typing import cast

from undercroft.base import Finding, Outcome
from undercroft.formats.launch import EPOCH, FINDING, parse_epoch_record
from undercroft.securekernel.vtpm import VtpmClient, VtpmUnavailable
from undercroft.service.running import FACT, RunningRecord
from undercroft.testing.epochs import chained, honest_chain
from undercroft.testing.guest import BANKS
from undercroft.testing.launch import encode_launch_log, launch_events

CHAIN, _ = chained(honest_chain())
BAD = Finding("kernel.text", Outcome.FAIL, "13 bytes")


class Client:
    """A multiplexer's log in memory."""

    def __init__(self) -> None:
        self.records: list[tuple[str, bytes]] = []
        self.gone = False

    def status(self) -> dict[str, int]:
        if self.gone:
            raise VtpmUnavailable("the multiplexer was lost")
        return {"launch": 1, "log_size": 1000}

    def current_launch_log(self) -> bytes:
        return encode_launch_log(launch_events(b"manifest", records=self.records), BANKS)

    def record(self, name: str, data: bytes) -> None:
        self.records.append((name, data))

    @property
    def epochs(self) -> list[int]:
        return [parse_epoch_record(data).sequence for name, data in self.records if name == EPOCH]


def running(client: Client, every_s: float = 3600.0) -> RunningRecord:
    return RunningRecord(cast(VtpmClient, client), every_s=every_s)


def test_an_epoch_is_recorded_now_and_then_and_at_the_end() -> None:
    client = Client()
    record = running(client)
    record.keep([])
    for count in (1, 2, 3):
        assert record.keep([], CHAIN[:count]) == ()
    assert client.epochs == [1]
    record.keep([], CHAIN, last=True)
    assert client.epochs == [1, 4]


def test_a_failure_is_recorded_at_once_and_once() -> None:
    client = Client()
    record = running(client)
    record.keep([], CHAIN[:1])
    for _ in range(3):
        record.keep([BAD], CHAIN[:2])
    assert client.records[1:] == [(FINDING, b"kernel.text\n13 bytes")]


def test_a_tpm_that_is_gone_is_a_fact_and_what_was_missed_is_recorded_later() -> None:
    client = Client()
    record = running(client)
    client.gone = True
    (fact,) = record.keep([BAD], CHAIN[:1])
    assert (fact.id, fact.outcome) == (FACT, Outcome.UNKNOWN)
    assert "was lost" in fact.summary
    client.gone = False
    assert record.keep([BAD], CHAIN) == ()
    assert [name for name, _ in client.records] == [FINDING, EPOCH]
    assert client.epochs == [4]
