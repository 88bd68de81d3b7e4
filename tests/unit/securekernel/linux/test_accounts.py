"""User ids and the accounts they are charged to, in a kernel made by hand."""

from __future__ import annotations

from contextlib import nullcontext
from typing import cast

import pytest

from undercroft.base import Finding, Outcome
from undercroft.securekernel.linux import accounts
from undercroft.securekernel.linux.facts import Observer
from undercroft.testing.fakekernel import FakeKernel

TASKS, THREADS = 8, 24
LAYOUTS = {
    "task_struct": (
        256,
        {
            "tasks": TASKS,
            "thread_node": THREADS,
            "signal": 40,
            "pid": 48,
            "comm": 56,
            "real_cred": 72,
            "cred": 80,
            "pid_links": 96,
        },
    ),
    "signal_struct": (32, {"thread_head": 8}),
    "cred": (64, {"uid": 8, "user": 16}),
    "user_struct": (16, {"uid": 8}),
    "pid_namespace": (64, {"idr": 8}),
    "idr": (24, {"idr_rt": 8}),
    "xarray": (16, {"xa_head": 8}),
    "xa_node": (576, {"shift": 0, "parent": 8, "slots": 40}),
    "pid": (64, {"tasks": 16}),
}


class Guest(FakeKernel):
    """init_task and what the test adds, each its own thread group."""

    def __init__(self) -> None:
        super().__init__(LAYOUTS)
        self.init = self.symbol("init_task", 256)
        self.symbol("init_pid_ns", 64)
        self.tasks: list[int] = []
        self.equip(self.init, 0, "swapper", uid=0, account=0)

    def equip(self, task: int, pid: int, comm: str, *, uid: int, account: int) -> None:
        signal = self.make("signal_struct")
        self.link_list(signal + 8, [task + THREADS])
        cred = self.make("cred", user=self.make("user_struct", uid=account))
        self.put(cred, "cred", "uid", uid, size=4)
        for name, value in (("signal", signal), ("real_cred", cred), ("cred", cred)):
            self.put(task, "task_struct", name, value)
        self.put(task, "task_struct", "pid", pid, size=4)
        self.guest.write(task + 56, comm.encode())

    def task(self, pid: int, comm: str, *, uid: int, account: int) -> int:
        at = self.make("task_struct")
        self.equip(at, pid, comm, uid=uid, account=account)
        self.tasks.append(at)
        return at

    def look(self) -> Finding:
        self.link_list(self.init + TASKS, [task + TASKS for task in self.tasks])
        observer = Observer(nullcontext, lambda _: None, (0, 1))
        return accounts.collect(self.kernel(), observer)


@pytest.fixture
def fake() -> Guest:
    guest = Guest()
    guest.task(1, "init", uid=0, account=0)
    guest.task(200, "sleep", uid=1000, account=1000)
    return guest


def test_an_honest_guest_passes(fake: Guest) -> None:
    found = fake.look()
    assert found.outcome is Outcome.PASS
    assert (found.details["tasks"], found.details["credentials"]) == (3, 3)


def test_an_id_that_was_overwritten_is_named(fake: Guest) -> None:
    fake.task(300, "shell", uid=0, account=1000)
    found = fake.look()
    assert found.outcome is Outcome.FAIL
    for anomaly in cast("list[dict[str, object]]", found.details["anomalies"]):
        assert (anomaly["pid"], anomaly["comm"]) == (300, "shell")
        assert (anomaly["uid"], anomaly["account"]) == (0, 1000)


def test_the_credentials_that_a_task_acts_with_count_too(fake: Guest) -> None:
    task = fake.task(300, "shell", uid=1000, account=1000)
    forged = fake.make("cred", user=fake.make("user_struct", uid=1000))
    fake.put(task, "task_struct", "cred", forged)
    found = fake.look()
    assert found.outcome is Outcome.FAIL
    assert found.details["count"] == 1


def test_a_thread_that_is_in_no_other_list_counts(fake: Guest) -> None:
    leader = fake.task(300, "shell", uid=1000, account=1000)
    thread = fake.task(301, "thread", uid=0, account=1000)
    fake.tasks.remove(thread)
    signal = fake.kernel().u64(leader + 40)
    fake.link_list(signal + 8, [leader + THREADS, thread + THREADS])
    assert fake.look().outcome is Outcome.FAIL


def test_credentials_that_cannot_be_read_are_unknown(fake: Guest) -> None:
    fake.put(fake.tasks[1], "task_struct", "cred", 0x1234)
    assert fake.look().outcome is Outcome.UNKNOWN
