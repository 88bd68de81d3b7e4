"""Credentials: lawful ones, and each unlawful kind."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from undercroft.base import Finding, Outcome
from undercroft.securekernel.linux.creds import Credentials
from undercroft.securekernel.linux.facts import Observer
from undercroft.testing.fakekernel import DIRECT_MAP, FakeKernel

PIDS, NODE = 64, 80
LAYOUTS = {
    "task_struct": (
        512,
        {
            "tasks": 0,
            "pid": 16,
            "tgid": 20,
            "flags": 24,
            "self_exec_id": 28,
            "start_boottime": 32,
            "real_cred": 40,
            "signal": 48,
            "pid_links": PIDS,
            "thread_node": NODE,
            "comm": 96,
        },
    ),
    "signal_struct": (32, {"thread_head": 16}),
    "pid": (96, {"tasks": 16}),
    "pid_namespace": (64, {"idr": 0}),
    "idr": (24, {"idr_rt": 0}),
    "xarray": (16, {"xa_head": 8}),
    "cred": (
        128,
        {
            "usage": 0,
            "uid": 4,
            "suid": 8,
            "euid": 12,
            "fsuid": 16,
            "cap_permitted": 24,
            "cap_effective": 32,
            "user_ns": 40,
        },
    ),
    "kmem_cache": (64, {"size": 24}),
    "slab": (64, {"slab_cache": 24, "objects": 42}),
    "page": (64, {}),
}
ALL_CAPS = (1 << 41) - 1
ID_FIELDS = ("uid", "suid", "euid", "fsuid")


class Guest(FakeKernel):
    """init_task, a kernel thread, and processes of root and of a user."""

    def __init__(self) -> None:
        super().__init__(LAYOUTS)
        self.symbol("init_pid_ns", 64)
        self._slab()
        self.leaders: list[int] = []
        self.init_cred = self.symbol("init_cred", 128)
        self.fill(self.init_cred, 0, ALL_CAPS)
        self.init = self.symbol("init_task", 512)
        self.task(0, "swapper", self.init_cred, kernel_thread=True, at=self.init)
        self.root = self.task(1, "init", self.cred(0, ALL_CAPS))
        self.user = self.task(7, "sh", self.cred(1000, 0))
        self.credentials = Credentials()

    def _slab(self) -> None:
        slab = (self.alloc(3 * 4096) + 4095) & ~4095
        self.free = [slab + 128 * number for number in range(32)]
        cache = self.make("kmem_cache", size=128)
        self.guest.put_u64(self.symbol("cred_jar"), cache)
        self.guest.put_u64(self.symbol("page_offset_base"), DIRECT_MAP)
        vmemmap = 0xFFFFEA0000000000
        self.guest.map(vmemmap, ((self.guest.memory.size >> 12) * 64 + 4095) & ~4095)
        self.guest.put_u64(self.symbol("vmemmap_base"), vmemmap)
        page = vmemmap + (slab - DIRECT_MAP >> 12) * 64
        self.guest.put_u64(page + 24, cache)
        self.guest.write(page + 42, (32).to_bytes(2, "little"))

    def fill(self, at: int, uid: int, caps: int) -> None:
        self.put(at, "cred", "usage", 1, size=4)
        for name in ID_FIELDS:
            self.put(at, "cred", name, uid, size=4)
        self.put(at, "cred", "cap_permitted", caps)
        self.put(at, "cred", "cap_effective", caps)
        self.put(at, "cred", "user_ns", 0x1234)

    def cred(self, uid: int, caps: int) -> int:
        at = self.free.pop(0)
        self.fill(at, uid, caps)
        return at

    def task(
        self, pid: int, comm: str, cred: int, *, kernel_thread: bool = False, at: int = 0
    ) -> int:
        task = at or self.make("task_struct")
        self.put(task, "task_struct", "pid", pid, size=4)
        self.put(task, "task_struct", "tgid", pid, size=4)
        self.put(task, "task_struct", "flags", 0x200000 if kernel_thread else 0, size=4)
        self.put(task, "task_struct", "real_cred", cred)
        self.put(task, "task_struct", "start_boottime", 1000 + pid)
        self.guest.write(task + 96, comm.encode())
        signal = self.make("signal_struct")
        self.link_list(signal + 16, [task + NODE])
        self.put(task, "task_struct", "signal", signal)
        if not at:
            self.leaders.append(task)
        self.link_list(self.init, self.leaders)
        return task

    def cred_of(self, task: int) -> int:
        return self.kernel().u64(task + 40)

    def set_ids(self, task: int, uid: int) -> None:
        for name in ID_FIELDS:
            self.put(self.cred_of(task), "cred", name, uid, size=4)

    def look(self) -> Finding:
        return self.credentials.collect(
            self.kernel(), Observer(nullcontext, lambda _: None, (0, 1))
        )

    def rules(self) -> list[str]:
        found = self.look()
        assert found.outcome is Outcome.FAIL
        anomalies: Any = found.details["anomalies"]
        return [str(one["rule"]) for one in anomalies]


@pytest.fixture
def fake() -> Guest:
    guest = Guest()
    assert guest.look().outcome is Outcome.PASS
    return guest


def test_an_honest_guest_passes_again(fake: Guest) -> None:
    found = fake.look()
    assert found.outcome is Outcome.PASS
    assert (found.details["tasks"], found.details["credentials"]) == (3, 3)


def test_root_without_an_exec_is_found_for_as_long_as_it_lasts(fake: Guest) -> None:
    fake.set_ids(fake.user, 0)
    for _ in range(2):
        (rule,) = fake.rules()
        assert rule == "it became root without an exec (uid 1000 to 0)"
    fake.set_ids(fake.user, 1000)
    assert fake.look().outcome is Outcome.PASS


def test_root_with_an_exec_is_lawful(fake: Guest) -> None:
    fake.set_ids(fake.user, 0)
    fake.put(fake.user, "task_struct", "self_exec_id", 1, size=4)
    assert fake.look().outcome is Outcome.PASS


def test_a_saved_root_id_may_come_back(fake: Guest) -> None:
    """sudo and the like drop their effective id for a while."""
    cred = fake.cred(1000, 0)
    fake.put(cred, "cred", "suid", 0, size=4)
    task = fake.task(9, "sudo", cred)
    assert fake.look().outcome is Outcome.PASS
    fake.set_ids(task, 0)
    assert fake.look().outcome is Outcome.PASS


def test_who_may_set_ids_may_become_root(fake: Guest) -> None:
    task = fake.task(9, "daemon", fake.cred(1000, 1 << 7))
    fake.look()
    fake.set_ids(task, 0)
    assert fake.look().outcome is Outcome.PASS


def test_capabilities_out_of_nowhere_are_found(fake: Guest) -> None:
    fake.put(fake.cred_of(fake.user), "cred", "cap_permitted", 1 << 21)
    (rule,) = fake.rules()
    assert "gained capabilities without an exec (0x200000)" in rule


def test_capabilities_in_a_new_user_namespace_are_lawful(fake: Guest) -> None:
    fake.put(fake.cred_of(fake.user), "cred", "cap_permitted", ALL_CAPS)
    fake.put(fake.cred_of(fake.user), "cred", "user_ns", 0x5678)
    assert fake.look().outcome is Outcome.PASS


def test_the_kernels_own_credentials_are_found(fake: Guest) -> None:
    fake.put(fake.root, "task_struct", "real_cred", fake.init_cred)
    assert "a process has the kernel's own credentials" in fake.rules()


def test_shared_credentials_are_found(fake: Guest) -> None:
    fake.put(fake.user, "task_struct", "real_cred", fake.cred_of(fake.root))
    assert "it shares its credentials with process 1" in fake.rules()


def test_credentials_outside_their_slab_are_found(fake: Guest) -> None:
    forged = fake.alloc(128)
    fake.fill(forged, 0, ALL_CAPS)
    fake.put(fake.root, "task_struct", "real_cred", forged)
    assert fake.rules() == ["its credentials are no object of the kernel's cred_jar"]


def test_effective_beyond_permitted_is_found(fake: Guest) -> None:
    fake.put(fake.cred_of(fake.user), "cred", "cap_effective", 1)
    assert fake.rules() == ["its effective capabilities exceed the permitted ones"]


def test_credentials_without_users_are_found(fake: Guest) -> None:
    fake.put(fake.cred_of(fake.user), "cred", "usage", 0, size=4)
    assert fake.rules() == ["its credentials have no users"]


def test_a_process_that_ended_is_forgotten(fake: Guest) -> None:
    fake.leaders.remove(fake.user)
    fake.link_list(fake.init, fake.leaders)
    assert fake.look().outcome is Outcome.PASS
    task = fake.task(7, "sh", fake.cred(0, ALL_CAPS))  # the same pid, another process
    fake.put(task, "task_struct", "start_boottime", 5000)
    assert fake.look().outcome is Outcome.PASS
