"""verify_interval: one test for each way in which only that check says no."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import FormatError, VerificationError
from undercroft.formats.evidence.interval import (
    BlindWindow,
    Epoch,
    Uncovered,
    epoch_digest,
    sample_times,
)
from undercroft.testing.epochs import (
    LENGTH,
    RODATA,
    START,
    TEXT,
    chained,
    honest_chain,
    lawful_change,
    seed,
)
from undercroft.verify.interval import IntervalDemand, VerifiedInterval, verify_interval

DEMAND = IntervalDemand((TEXT, RODATA), ("write-trap:userfaultfd",))
T0, T1 = START + LENGTH // 2, START + 3 * LENGTH + 1
Change = Callable[[list[Epoch]], object]


def verify(
    epochs: list[Epoch], t0: int = T0, t1: int = T1, demand: IntervalDemand = DEMAND
) -> VerifiedInterval:
    chain, head = chained(epochs)
    return verify_interval(chain, t0, t1, head=head, demand=demand)


def refused(epochs: list[Epoch], demand: IntervalDemand = DEMAND) -> str:
    with pytest.raises(VerificationError) as caught:
        verify(epochs, demand=demand)
    return caught.value.check


def changed(index: int, **fields: object) -> list[Epoch]:
    epochs = honest_chain()
    epochs[index] = replace(epochs[index], **fields)  # type: ignore[arg-type]
    return epochs


def test_an_honest_chain_proves_the_interval() -> None:
    verified = verify(honest_chain())
    assert (verified.t0, verified.t1) == (T0, T1)
    assert [epoch.sequence for epoch in verified.epochs] == [1, 2, 3, 4]
    assert [change.symbol for change in verified.changes] == ["enqueue_entity+0x11d"]
    assert verified.last_modified == {TEXT: START + 2 * LENGTH, RODATA: None}
    assert verified.blind == ()


def test_only_the_epochs_of_the_interval_count() -> None:
    verified = verify(honest_chain(), START + 2 * LENGTH, START + 3 * LENGTH)
    assert [epoch.sequence for epoch in verified.epochs] == [3]
    assert verified.changes == ()


@pytest.mark.parametrize(
    ("t0", "t1"), [(START - 1, T1), (T0, START + 4 * LENGTH + 1), (T1, T0), (T0, T0)]
)
def test_what_the_chain_does_not_reach_is_refused(t0: int, t1: int) -> None:
    with pytest.raises(VerificationError) as caught:
        verify(honest_chain(), t0, t1)
    assert caught.value.check == "interval.span"


def test_no_epochs_and_no_demand_are_refused() -> None:
    with pytest.raises(VerificationError) as caught:
        verify_interval([], T0, T1, head=bytes(32), demand=DEMAND)
    assert caught.value.check == "interval.chain"
    for demand in (replace(DEMAND, ranges=()), replace(DEMAND, channels=())):
        assert refused(honest_chain(), demand) == "interval.ranges"


def test_a_chain_that_was_cut_at_its_end_is_refused() -> None:
    chain, head = chained(honest_chain())
    with pytest.raises(VerificationError) as caught:
        verify_interval(chain[:-1], T0, T0 + 1, head=head, demand=DEMAND)
    assert caught.value.check == "interval.head"


def test_a_chain_that_was_cut_at_its_beginning_is_refused() -> None:
    chain, head = chained(honest_chain())
    with pytest.raises(VerificationError) as caught:
        verify_interval(chain[1:], T1 - 1, T1, head=head, demand=DEMAND)
    assert caught.value.check == "interval.chain"


def test_an_epoch_that_is_left_out_or_edited_breaks_the_chain() -> None:
    chain, head = chained(honest_chain())
    edited, _ = chained(changed(1, writes=4))
    for forged in ([chain[0], *chain[2:]], [chain[0], edited[1], *chain[2:]]):
        with pytest.raises(VerificationError) as caught:
            verify_interval(forged, T0, T1, head=head, demand=DEMAND)
        assert caught.value.check == "interval.chain"


@pytest.mark.parametrize(
    ("epochs", "check"),
    [
        (changed(2, session=bytes(16)), "interval.chain"),
        (changed(2, sequence=7), "interval.chain"),
        (changed(2, t0=START + 2 * LENGTH + 1), "interval.hole"),
        (changed(2, t0=START + 2 * LENGTH - 1), "interval.hole"),
        (changed(2, channels=("poll",)), "interval.channels"),
        (changed(2, ranges=honest_chain()[2].ranges[:1]), "interval.ranges"),
        (changed(2, ranges=honest_chain()[2].ranges + honest_chain()[2].ranges), "interval.ranges"),
        (changed(2, uncovered=(Uncovered("vfio", 7, "a network card"),)), "interval.uncovered"),
        (changed(2, blind=(BlindWindow(5, 6, TEXT, "paused"),)), "interval.blind"),
        (changed(2, blind=(BlindWindow(5, 5, "", "ended"),)), "interval.blind"),
        (changed(3, unsettled=1), "interval.change"),
        (
            changed(1, changes=(replace(lawful_change(1), lawful=False, reason="no rule"),)),
            "interval.change",
        ),
        (
            changed(1, changes=(replace(lawful_change(1), lawful=False, landed=False, symbol=""),)),
            "interval.digest",
        ),
        (changed(1, changes=(replace(lawful_change(1), open_ns=10**9),)), "interval.open"),
        (changed(1, changes=()), "interval.digest"),
        (changed(1, ranges=honest_chain()[0].ranges), "interval.digest"),
        (
            changed(2, sampling=replace(honest_chain()[2].sampling, revealed=bytes(32))),
            "interval.sampling",
        ),
    ],
)
def test_each_check_says_no(epochs: list[Epoch], check: str) -> None:
    assert refused(epochs) == check


def test_a_range_that_moved_is_refused() -> None:
    ranges = honest_chain()[2].ranges
    moved = replace(ranges[0], extents=((0, 0x5000000, 0xE00000),))
    assert refused(changed(2, ranges=(moved, ranges[1]))) == "interval.ranges"


def test_an_attempt_that_was_refused_is_still_a_violation() -> None:
    epochs = honest_chain()
    attempt = replace(lawful_change(1), lawful=False, landed=False, symbol="")
    epochs[2] = replace(epochs[2], changes=(attempt,))
    assert refused(epochs) == "interval.change"


def test_what_the_relying_party_accepts_is_accepted() -> None:
    window = BlindWindow(5, 105, TEXT, "paused")
    epochs = changed(2, blind=(window,), uncovered=(Uncovered("hidden-process", 1, ""),))
    demand = replace(DEMAND, blind_ns=100, uncovered=frozenset({"hidden-process"}))
    assert verify(epochs, demand=demand).blind == (window,)
    assert refused(epochs, replace(demand, blind_ns=99)) == "interval.blind"
    assert refused(epochs, replace(demand, uncovered=frozenset({"vfio"}))) == "interval.uncovered"


MEAN, LATE = 1_000_000_000, 200_000_000


def sampled() -> list[Epoch]:
    """An honest chain whose registers were looked at 1 ms after each time that was drawn."""
    epochs = []
    for epoch in honest_chain():
        planned = sample_times(seed(epoch.sequence), epoch.t0, MEAN)
        times = itertools.takewhile(epoch.t1.__gt__, planned)
        sampling = replace(epoch.sampling, times=tuple(at + 1_000_000 for at in times))
        epochs.append(replace(epoch, sampling=sampling))
    return epochs


def test_registers_were_looked_at_when_the_secret_seed_said() -> None:
    demand = replace(DEMAND, sampling=(MEAN, LATE))
    assert len(verify(sampled(), demand=demand).epochs) == 4
    later = verify(sampled(), START + 2 * LENGTH, START + 3 * LENGTH, demand)
    assert [epoch.sequence for epoch in later.epochs] == [3]
    assert refused(sampled(), replace(demand, sampling=(MEAN - 1, LATE))) == "interval.sampling"
    assert refused(sampled(), replace(demand, sampling=(MEAN, 999_999))) == "interval.sampling"


@pytest.mark.parametrize("forge", [lambda t: t[:-2], lambda t: (t[0] - 2_000_000, *t[1:])])
def test_a_sample_that_is_missing_or_too_early_is_noticed(
    forge: Callable[[tuple[int, ...]], tuple[int, ...]],
) -> None:
    epochs = sampled()
    times = forge(epochs[1].sampling.times)
    epochs[1] = replace(epochs[1], sampling=replace(epochs[1].sampling, times=times))
    assert refused(epochs, replace(DEMAND, sampling=(MEAN, LATE))) == "interval.sampling"


def test_what_was_not_sampled_at_all_is_refused() -> None:
    epochs = [replace(e, sampling=replace(e.sampling, mean_ns=0)) for e in sampled()]
    assert refused(epochs, replace(DEMAND, sampling=(MEAN, LATE))) == "interval.sampling"


def test_a_malformed_epoch_is_a_format_error() -> None:
    with pytest.raises(FormatError):
        verify_interval([b"\xa0"], T0, T1, head=epoch_digest(b"\xa0"), demand=DEMAND)


@given(st.integers(0, 3), st.data())
def test_no_single_byte_of_a_chain_can_be_changed(index: int, data: st.DataObject) -> None:
    chain, head = chained(honest_chain())
    at = data.draw(st.integers(0, len(chain[index]) - 1))
    flipped = bytearray(chain[index])
    flipped[at] ^= data.draw(st.integers(1, 255))
    chain[index] = bytes(flipped)
    with pytest.raises((VerificationError, FormatError)):
        verify_interval(chain, T0, T1, head=head, demand=DEMAND)
