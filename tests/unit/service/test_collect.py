"""Evidence is of one moment: a list that grew before the quote is read again."""

from __future__ import annotations

from typing import cast

import pytest

from undercroft.base import EnvironmentFault, Finding, Outcome
from undercroft.formats.evidence import SecureKernelRecord, parse_record
from undercroft.securekernel.inspect import SecureKernel
from undercroft.securekernel.vtpm.client import Quote, VtpmClient
from undercroft.service.collect import TRIES, collect
from undercroft.testing.guest import BANKS, SimulatedGuest
from undercroft.testing.launch import encode_launch_log, launch_events

GUEST = SimulatedGuest()


class Kernel:
    """A secure kernel whose guest measures a file after each of the first ``busy`` reads."""

    def __init__(self, busy: int) -> None:
        self.guest = GUEST
        self.reads = 0
        self.busy = busy

    def record(self) -> SecureKernelRecord:
        return GUEST.record()

    def event_log(self) -> bytes:
        return GUEST.log

    def ima_list(self) -> bytes:
        self.reads += 1
        return b"entry" * min(self.reads, self.busy + 1)


class Client:
    """A vTPM that remembers what it was asked to sign."""

    def __init__(self, relaunched: int = 0) -> None:
        self.signed: list[bytes] = []
        self.relaunched = relaunched
        self.logs = 0
        self.recorded: list[tuple[str, bytes]] = []

    def current_launch_log(self) -> bytes:
        self.logs += 1
        return b"launch" * min(self.logs, self.relaunched + 1)

    def record(self, name: str, data: bytes) -> None:
        self.recorded.append((name, data))

    def launch_log(self, quote: Quote) -> bytes:
        return b"launch" * (self.relaunched + 1)

    def quote(self, qualifying_data: bytes, selection: object) -> Quote:
        self.signed.append(qualifying_data)
        return Quote(b"attest", b"signature", b"public", (), 0, 0)


def collected(busy: int) -> tuple[Client, Kernel, bytes | None]:
    kernel, client = Kernel(busy), Client()
    evidence = collect(cast(SecureKernel, kernel), cast(VtpmClient, client), GUEST.challenge())
    return client, kernel, evidence.ima_list


def test_a_quiet_guest_is_asked_once() -> None:
    client, kernel, ima_list = collected(busy=0)
    assert (len(client.signed), kernel.reads) == (1, 2)
    assert ima_list == b"entry"


def test_a_list_that_grew_is_bound_by_another_quote() -> None:
    client, _, ima_list = collected(busy=3)
    assert len(client.signed) == 3
    assert len(set(client.signed)) == 3
    assert ima_list == b"entry" * 4


def test_a_guest_that_never_stops_measuring_is_an_error() -> None:
    with pytest.raises(EnvironmentFault, match="measures new files all the time") as caught:
        collected(busy=10 * TRIES)
    assert caught.value.remedy


def test_a_log_that_the_quote_does_not_cover_is_taken_again() -> None:
    kernel, client = Kernel(0), Client(relaunched=2)
    evidence = collect(cast(SecureKernel, kernel), cast(VtpmClient, client), GUEST.challenge())
    assert evidence.launch_log == b"launch" * 3
    assert len(client.signed) == 3


def test_facts_about_the_machine_are_in_the_record() -> None:
    fact = Finding("descriptor.devices", Outcome.PASS, "as described")
    kernel, client = Kernel(0), Client()
    evidence = collect(
        cast(SecureKernel, kernel), cast(VtpmClient, client), GUEST.challenge(), lambda: [fact]
    )
    assert parse_record(evidence.record or b"").facts[-1] == fact


class LoggedClient(Client):
    """A vTPM with a launch log that grows with what is recorded."""

    def current_launch_log(self) -> bytes:
        return encode_launch_log(launch_events(b"manifest", records=self.recorded), BANKS)

    def status(self) -> dict[str, int]:
        return {"launch": 1, "log_size": 1000}

    def launch_log(self, quote: Quote) -> bytes:
        return self.current_launch_log()


def test_what_is_wrong_goes_to_pcr_19_once() -> None:
    kernel, client = Kernel(0), LoggedClient()
    good = Finding("descriptor.machine", Outcome.PASS, "as described")
    bad = Finding("descriptor.devices", Outcome.FAIL, "chardev/spy appeared")
    for _ in range(2):
        evidence = collect(
            cast(SecureKernel, kernel),
            cast(VtpmClient, client),
            GUEST.challenge(),
            lambda: [good, bad],
        )
        assert evidence.launch_log == client.current_launch_log()
    assert client.recorded == [("finding", b"descriptor.devices\nchardev/spy appeared")]
