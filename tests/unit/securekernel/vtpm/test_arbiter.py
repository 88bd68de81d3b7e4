import threading
import time
from collections.abc import Callable

import pytest

from undercroft.securekernel.vtpm.arbiter import Arbiter, Busy, Cancelled, Side


def _in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_sides_alternate_while_both_wait() -> None:
    arbiter = Arbiter()
    order: list[Side] = []

    def take(side: Side) -> None:
        with arbiter.slot(side):
            order.append(side)

    with arbiter.slot(Side.GUEST):
        threads = []
        for side in [Side.GUEST] * 4 + [Side.SECURE_KERNEL] * 2:
            threads.append(_in_thread(lambda side=side: take(side)))  # type: ignore[misc]
            time.sleep(0.02)
    for thread in threads:
        thread.join(5)
    kernel, guest = Side.SECURE_KERNEL, Side.GUEST
    assert order == [kernel, guest, kernel, guest, guest, guest]


def test_a_full_queue_is_busy() -> None:
    arbiter = Arbiter(max_waiting=0)
    with (
        arbiter.slot(Side.GUEST),
        pytest.raises(Busy, match="already wait"),
        arbiter.slot(Side.SECURE_KERNEL),
    ):
        raise AssertionError("unreachable")


def test_a_wait_ends_in_time_and_leaves_no_trace() -> None:
    arbiter = Arbiter()
    with (
        arbiter.slot(Side.GUEST),
        pytest.raises(Busy, match="no turn"),
        arbiter.slot(Side.SECURE_KERNEL, timeout=0.01),
    ):
        raise AssertionError("unreachable")
    with arbiter.slot(Side.GUEST), pytest.raises(Busy), arbiter.slot(Side.GUEST, timeout=0.01):
        raise AssertionError("unreachable")


def test_a_waiting_guest_command_can_be_cancelled() -> None:
    arbiter = Arbiter()
    outcome: list[str] = []

    def wait() -> None:
        try:
            with arbiter.slot(Side.GUEST):
                outcome.append("ran")
        except Cancelled:
            outcome.append("cancelled")

    with arbiter.slot(Side.SECURE_KERNEL):
        thread = _in_thread(wait)
        time.sleep(0.05)
        assert arbiter.cancel(Side.GUEST)
        assert not arbiter.cancel(Side.GUEST)
        thread.join(5)
    assert outcome == ["cancelled"]
    with arbiter.slot(Side.GUEST):
        pass


def test_a_slot_is_given_back_after_an_error() -> None:
    arbiter = Arbiter()
    with pytest.raises(RuntimeError), arbiter.slot(Side.GUEST):
        raise RuntimeError
    with arbiter.slot(Side.SECURE_KERNEL, timeout=0):
        pass
