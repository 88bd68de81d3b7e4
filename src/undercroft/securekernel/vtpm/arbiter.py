"""Whose turn it is at the TPM: the guest's or the secure kernel's.

One slot at a time.  While both sides wait they alternate, so neither can starve the other however
many commands it sends; within a side it is first come, first served.
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from undercroft.base import EnvironmentFault


class Side(enum.Enum):
    """Who asks for the TPM."""

    GUEST = "guest"
    SECURE_KERNEL = "secure kernel"


class Busy(EnvironmentFault):
    """No slot was to be had: too many wait already, or it took too long."""


class Cancelled(EnvironmentFault):
    """The wait for a slot was cancelled."""


class _Waiter:
    __slots__ = ("cancelled", "gate")

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.gate.acquire()
        self.cancelled = False


class Arbiter:
    """Hands out the one slot.  At most ``max_waiting`` wait on each side."""

    def __init__(self, *, max_waiting: int = 16) -> None:
        self._mutex = threading.Lock()
        self._taken = False
        self._max_waiting = max_waiting
        self._waiting: dict[Side, deque[_Waiter]] = {side: deque() for side in Side}
        self._served = Side.SECURE_KERNEL

    @contextmanager
    def slot(self, side: Side, *, timeout: float | None = None) -> Iterator[None]:
        """Hold the TPM for the length of the block.

        Raises Busy if the queue is full or ``timeout`` seconds pass, Cancelled if another thread
        calls :meth:`cancel` before it is our turn.
        """
        self._acquire(side, timeout)
        try:
            yield
        finally:
            self._release()

    def cancel(self, side: Side) -> bool:
        """Send away everyone who waits on ``side``; True if anyone did."""
        with self._mutex:
            waiting = self._waiting[side]
            sent_away = bool(waiting)
            for waiter in waiting:
                waiter.cancelled = True
                waiter.gate.release()
            waiting.clear()
            return sent_away

    def _acquire(self, side: Side, timeout: float | None) -> None:
        with self._mutex:
            if not self._taken:
                self._taken = True
                self._served = side
                return
            queue = self._waiting[side]
            if len(queue) >= self._max_waiting:
                raise Busy(f"{len(queue)} already wait for the TPM", where=side.value)
            waiter = _Waiter()
            queue.append(waiter)
        if not waiter.gate.acquire(timeout=-1 if timeout is None else timeout):
            with self._mutex:
                if waiter in queue:
                    queue.remove(waiter)
                    raise Busy(f"no turn at the TPM within {timeout} s", where=side.value)
            waiter.gate.acquire()  # it became our turn, or was cancelled, in between
        if waiter.cancelled:
            raise Cancelled("the wait for the TPM was cancelled", where=side.value)

    def _release(self) -> None:
        with self._mutex:
            other = Side.GUEST if self._served is Side.SECURE_KERNEL else Side.SECURE_KERNEL
            for side in (other, self._served):
                if self._waiting[side]:
                    self._served = side
                    self._waiting[side].popleft().gate.release()
                    return
            self._taken = False
