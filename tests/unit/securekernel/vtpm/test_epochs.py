"""What PCR 19 is extended with: every epoch, once, and all again after a reset."""

from __future__ import annotations

from typing import cast

from undercroft.base import HashAlgorithm
from undercroft.formats.evidence.interval import epoch_digest
from undercroft.formats.launch import EPOCH, parse_epoch_record
from undercroft.securekernel.vtpm import VtpmClient
from undercroft.securekernel.vtpm.epochs import EpochKeeper
from undercroft.testing.epochs import chained, honest_chain
from undercroft.testing.launch import encode_launch_log, launch_events

CHAIN, _ = chained(honest_chain())
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


def keeper(client: Client) -> EpochKeeper:
    return EpochKeeper(cast(VtpmClient, client))


def test_each_epoch_is_kept_once_and_in_order() -> None:
    client = Client()
    keep = keeper(client)
    assert [keep.keep(CHAIN[:2]), keep.keep(CHAIN[:2]), keep.keep(CHAIN)] == [2, 0, 2]
    assert client.epochs == DIGESTS
    assert client.logs == 1


def test_another_keeper_goes_on_where_the_first_ended() -> None:
    client = Client()
    client.record("finding", b"kernel.text\nbad")
    keeper(client).keep(CHAIN[:3])
    assert keeper(client).keep(CHAIN) == 1
    assert client.epochs == DIGESTS


def test_after_a_reset_the_whole_chain_is_kept_again() -> None:
    client = Client()
    keep = keeper(client)
    keep.keep(CHAIN)
    client.launch, client.records = 2, []
    assert keep.keep(CHAIN) == len(CHAIN)
    assert client.epochs == DIGESTS


def test_without_a_launch_there_is_nothing_to_keep_it_in() -> None:
    client = Client(launch=0)
    assert keeper(client).keep(CHAIN) == 0
    assert client.records == []
