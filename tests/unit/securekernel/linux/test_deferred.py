"""What the kernel will call later, in a kernel made by hand."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from undercroft.base import Finding, Outcome
from undercroft.securekernel.linux import deferred, hooks
from undercroft.securekernel.linux.facts import Observer
from undercroft.testing.fakecode import BAD_MODULE, GOOD_MODULE, FakeCode
from undercroft.testing.fakekernel import Layouts

LAYOUTS: Layouts = {
    "timer_base": (4736, {"vectors": 112}),
    "timer_list": (40, {"entry": 0, "function": 24}),
    "hrtimer_cpu_base": (640, {"clock_base": 64}),
    "hrtimer_clock_base": (64, {"active": 32}),
    "hrtimer": (64, {"node": 0, "function": 40}),
    "delayed_work": (88, {"work": 0, "timer": 32}),
    "work_struct": (32, {"entry": 8, "func": 24}),
    "worker_pool": (768, {"worklist": 40, "workers": 680}),
    "worker": (160, {"current_func": 24, "scheduled": 48, "node": 80}),
    "pool_workqueue": (256, {"inactive_works": 104, "pwqs_node": 120}),
    "workqueue_struct": (320, {"pwqs": 0, "list": 16, "name": 176}),
    "tasklet_struct": (40, {"next": 0, "func": 24}),
    "irq_desc": (448, {"action": 112}),
    "irqaction": (128, {"handler": 0, "next": 24, "thread_fn": 32, "irq": 56}),
    "idr": (24, {"idr_rt": 0}),
    "xarray": (16, {"xa_head": 8}),
    "xa_node": (576, {"shift": 0, "parent": 8, "slots": 40}),
    "maple_tree": (24, {"ma_root": 8}),
    "task_struct": (
        128,
        {"tasks": 0, "flags": 16, "pid": 24, "comm": 32, "worker_private": 64},
    ),
    "kthread": (64, {"threadfn": 16}),
}
TIMERS, WORK, INTERRUPTS, THREADS = (
    f"kernel.hooks.{name}" for name in ("timers", "work", "interrupts", "threads")
)
KERNEL_THREAD = 0x00200000


class Guest(FakeCode):
    """A kernel on one CPU with one of everything that is deferred."""

    def __init__(self, *, maple: bool = False, bases: int = 2) -> None:
        super().__init__(LAYOUTS)
        self.guest.put_u32(self.symbol("nr_cpu_ids"), 1)
        area = self.alloc(0x8000, align=4096)
        names = self.image.symbols.names
        names |= {"timer_bases": 0x1000, "hrtimer_bases": 0x6000, "tasklet_vec": 0x7000}
        if bases == 3:
            names["timer_expire_remote"] = self.function(40) - self.slide
        self.guest.put_u64(self.symbol("__per_cpu_offset"), area - 0)
        names["delayed_work_timer_fn"] = self.function(9) - self.slide
        good = self.function(1)
        self.timer = self.make("timer_list", function=good)
        self.link_hlist(area + 0x1000 + 112 + 8 * 575, [self.timer])
        self.delayed = self.make("delayed_work", timer=0)
        self.guest.put_u64(self.delayed + 24, good)
        self.guest.put_u64(self.delayed + 32 + 24, self.function(9))
        last = area + 0x1000 + (bases - 1) * 4736 + 112
        self.link_hlist(last, [self.delayed + 32])
        self.hrtimer = self.make("hrtimer", function=good)
        self.guest.put_u64(area + 0x6000 + 64 + 7 * 64 + 32, self.hrtimer)
        self._work(good)
        self.tasklet = self.make("tasklet_struct", func=good)
        self.guest.put_u64(area + 0x7000, self.tasklet)
        self._interrupts(good, maple=maple)
        self.thread = self.make("kthread", threadfn=good)
        tasks = [
            self._task(2, KERNEL_THREAD, self.make("kthread")),  # kthreadd
            self._task(3, KERNEL_THREAD, self.thread),
            self._task(4, KERNEL_THREAD, 0),  # not made yet
            self._task(7, 0, BAD_MODULE),  # a process: this is something else there
        ]
        self.link_list(self.symbol("init_task", 128), tasks)

    def _task(self, pid: int, flags: int, private: int) -> int:
        task = self.make("task_struct", worker_private=private)
        self.put(task, "task_struct", "flags", flags, size=4)
        self.put(task, "task_struct", "pid", pid, size=4)
        self.guest.write(task + 32, b"miner")
        return task

    def _work(self, good: int) -> None:
        pool = self.make("worker_pool")
        self.guest.put_u64(self.symbol("worker_pool_idr", 24) + 8, pool)
        self.waiting, self.scheduled, self.inactive = (
            self.make("work_struct", func=good) for _ in range(3)
        )
        self.worker = self.make("worker", current_func=good)
        self.link_list(pool + 40, [self.waiting + 8])
        self.link_list(pool + 680, [self.worker + 80])
        self.link_list(self.worker + 48, [self.scheduled + 8])
        queue, link = self.make("workqueue_struct"), self.make("pool_workqueue")
        self.guest.write(queue + 176, b"events")
        self.link_list(self.symbol("workqueues", 16), [queue + 16])
        self.link_list(queue, [link + 120])
        self.link_list(link + 104, [self.inactive + 8])

    def _interrupts(self, good: int, *, maple: bool) -> None:
        self.action = self.make("irqaction", handler=good)
        self.put(self.action, "irqaction", "irq", 9, size=4)
        descriptor = self.make("irq_desc", action=self.action)
        self.guest.put_u64(
            self.symbol("sparse_irqs" if maple else "irq_desc_tree", 24) + 8, descriptor
        )

    def findings(self) -> dict[str, Finding]:
        observer = Observer(nullcontext, lambda _: None, (0, 1))
        found = hooks.collect(self.kernel(), observer, deferred.KINDS)
        return {one.id: one for one in found}

    def only(self, name: str) -> str:
        found = self.findings()
        assert {key for key, one in found.items() if one.outcome is Outcome.FAIL} == {name}
        anomalies: Any = found[name].details["anomalies"]
        (anomaly,) = anomalies
        assert "not signed" in anomaly["rule"]
        return str(anomaly["hook"])


@pytest.mark.parametrize(("maple", "bases"), [(False, 2), (True, 3)], ids=["6.1", "6.12"])
def test_everything_lawful_passes(maple: bool, bases: int) -> None:
    found = Guest(maple=maple, bases=bases).findings()
    assert {one.outcome for one in found.values()} == {Outcome.PASS}
    counts = {key: one.details["hooks"] for key, one in found.items()}
    assert counts == {TIMERS: 4, WORK: 5, INTERRUPTS: 1, THREADS: 1}


@pytest.mark.parametrize(
    ("name", "offset", "fact", "where"),
    [
        ("timer", 24, TIMERS, "timer of CPU 0"),
        ("delayed", 24, TIMERS, "delayed work of CPU 0"),
        ("hrtimer", 40, TIMERS, "high-resolution timer of CPU 0"),
        ("waiting", 24, WORK, "work for pool 0"),
        ("worker", 24, WORK, "running work of pool 0"),
        ("scheduled", 24, WORK, "next work of pool 0"),
        ("inactive", 24, WORK, "work that waits in events"),
        ("tasklet", 24, WORK, "tasklet of CPU 0"),
        ("thread", 16, THREADS, "kernel thread miner (3)"),
        ("action", 0, INTERRUPTS, "interrupt 9, handler"),
        ("action", 32, INTERRUPTS, "interrupt 9, thread_fn"),
    ],
)
def test_each_that_leads_elsewhere_is_named(name: str, offset: int, fact: str, where: str) -> None:
    fake = Guest()
    fake.guest.put_u64(getattr(fake, name) + offset, BAD_MODULE + 0x40)
    assert fake.only(fact) == where


def test_a_signed_modules_timer_is_lawful() -> None:
    fake = Guest()
    fake.guest.put_u64(fake.timer + 24, GOOD_MODULE + 0x40)
    assert fake.findings()[TIMERS].outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("name", "offset", "fact"), [("tasklet", 0, WORK), ("action", 24, INTERRUPTS)]
)
def test_a_chain_without_an_end_is_unknown(name: str, offset: int, fact: str) -> None:
    fake = Guest()
    at = getattr(fake, name)
    fake.guest.put_u64(at + offset, at)
    assert fake.findings()[fact].outcome is Outcome.UNKNOWN
