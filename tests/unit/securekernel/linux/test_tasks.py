"""Tasks seen from every side, in a kernel made by hand."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from undercroft.base import Finding, Outcome
from undercroft.securekernel.linux import tasks
from undercroft.securekernel.linux.facts import Observer
from undercroft.securekernel.linux.live import StructureError
from undercroft.testing.fakekernel import DIRECT_MAP, FakeKernel

LIST, PIDS, NODE, GROUP, RT = 64, 96, 160, 176, 192
LAYOUTS = {
    "task_struct": (
        512,
        {
            "__state": 24,
            "tasks": LIST,
            "mm": 80,
            "pid": 88,
            "tgid": 92,
            "pid_links": PIDS,
            "thread_node": NODE,
            "se.group_node": GROUP,
            "rt.run_list": RT,
            "dl.rb_node": 208,
            "exit_state": 232,
            "group_leader": 240,
            "signal": 248,
            "comm": 256,
            "stack": 32,
        },
    ),
    "signal_struct": (64, {"thread_head": 16}),
    "pid": (96, {"tasks": 16}),
    "pid_namespace": (64, {"idr": 0}),
    "idr": (24, {"idr_rt": 0}),
    "xarray": (16, {"xa_head": 8}),
    "xa_node": (576, {"shift": 0, "parent": 8, "slots": 40}),
    "rb_node": (24, {"__rb_parent_color": 0, "rb_right": 8, "rb_left": 16}),
    "rq": (4096, {"curr": 0, "idle": 8, "cfs_tasks": 16, "rt.active.queue": 64, "dl.root": 2048}),
    "kmem_cache": (64, {"size": 24}),
    "slab": (64, {"slab_cache": 24, "objects": 42}),
    "page": (64, {}),
}
OBJECTS = 16


class Guest(FakeKernel):
    """One CPU, an idle task, and user tasks that every view holds."""

    def __init__(self) -> None:
        super().__init__(LAYOUTS)
        self.list_head = self.symbol("init_task", 512)
        signal = self.make("signal_struct")
        self.link_list(signal + 16, [self.list_head + NODE])
        self.put(self.list_head, "task_struct", "signal", signal)
        self.namespace = self.symbol("init_pid_ns", 64)
        area = self.alloc(0x2000)
        self.guest.put_u64(self.symbol("__per_cpu_offset"), area)
        self.guest.put_u32(self.symbol("nr_cpu_ids"), 1)
        self.guest.put_u64(self.symbol("__cpu_online_mask"), 1)
        self.image.symbols.names |= {"current_task": 0x10, "runqueues": 0x40}
        self.current = area + 0x10
        self.queue = area + 0x40
        self.leaders: list[int] = []
        self.pids: dict[int, int] = {}
        self.fair: list[int] = []
        self._slab()
        self.set_current(self.list_head)
        self.put(self.queue, "rq", "idle", self.list_head)
        for priority in range(100):
            self.link_list(self.queue + 64 + 16 * priority, [])
        self.relink()

    def _slab(self) -> None:
        """One slab of task_structs, on frames of its own, and the page structures of all RAM."""
        self.slab = (self.alloc(512 * OBJECTS + 4096) + 4095) & ~4095
        self.free = [self.slab + 512 * number for number in range(OBJECTS)]
        self.cache = self.make("kmem_cache", size=512)
        self.guest.put_u64(self.symbol("task_struct_cachep"), self.cache)
        self.guest.put_u64(self.symbol("page_offset_base"), DIRECT_MAP)
        vmemmap = 0xFFFFEA0000000000
        pages = self.guest.memory.size >> 12
        size = (pages * 64 + 4095) & ~4095
        self.guest.map(vmemmap, size)
        self.guest.put_u64(self.symbol("vmemmap_base"), vmemmap)
        self.page = vmemmap + (self.slab - DIRECT_MAP >> 12) * 64
        self.guest.put_u64(self.page + 24, self.cache)
        self.guest.write(self.page + 42, OBJECTS.to_bytes(2, "little"))

    def set_current(self, task: int) -> None:
        self.guest.put_u64(self.current, task)
        self.put(self.queue, "rq", "curr", task)

    def task(self, pid: int, comm: str, *, leader: int | None = None) -> int:
        """Make a task that every view holds."""
        at = self.free.pop(0)
        self.put(at, "task_struct", "pid", pid, size=4)
        self.guest.write(at + 256, comm.encode())
        head = at if leader is None else leader
        self.put(at, "task_struct", "group_leader", head)
        self.put(at, "task_struct", "tgid", self.kernel().u32(head + 88), size=4)
        if leader is None:
            signal = self.make("signal_struct")
            self.link_list(signal + 16, [at + NODE])
            self.leaders.append(at)
        else:
            signal = self.kernel().u64(leader + 248)
            self.link_list(signal + 16, [leader + NODE, at + NODE])
        self.put(at, "task_struct", "signal", signal)
        pid_struct = self.make("pid")
        self.link_hlist(pid_struct + 16, [at + PIDS])
        self.pids[pid] = pid_struct
        self.relink()
        return at

    def relink(self) -> None:
        self.link_list(self.list_head + LIST, [at + LIST for at in self.leaders])
        self.link_list(self.queue + 16, [at + GROUP for at in self.fair])
        node = self.make("xa_node")
        for pid, at in self.pids.items():
            self.guest.put_u64(node + 40 + 8 * pid, at)
        self.put(self.namespace, "xarray", "xa_head", node | 2)

    def look(self) -> Finding:
        observer = Observer(nullcontext, lambda _: None, (0, 1, 1))
        return tasks.crossview(self.kernel(), observer)

    def anomalies(self) -> list[dict[str, Any]]:
        found = self.look()
        assert found.outcome is Outcome.FAIL
        listed = found.details["anomalies"]
        assert isinstance(listed, list)
        return listed


@pytest.fixture
def fake() -> Guest:
    guest = Guest()
    guest.task(1, "init")
    guest.task(2, "sshd")
    return guest


def test_an_honest_guest_passes(fake: Guest) -> None:
    worker = fake.task(3, "worker", leader=fake.leaders[1])
    fake.fair = [worker]
    fake.set_current(fake.leaders[0])
    fake.relink()
    found = fake.look()
    assert found.outcome is Outcome.PASS
    assert found.details["tasks_by_view"] == {
        "tasks list": 2,
        "pid idr": 3,
        "thread group": 3,
        "slab": 3,
        "current": 1,
        "run queue": 1,
    }
    assert found.details["limits"]


def test_a_task_out_of_the_list_is_named(fake: Guest) -> None:
    hidden = fake.leaders.pop()
    fake.relink()
    assert fake.anomalies() == [
        {
            "pid": 2,
            "tgid": 2,
            "comm": "sshd",
            "task": f"{hidden:#x}",
            "seen_in": ["pid idr", "slab", "thread group"],
            "missing_from": ["tasks list"],
        }
    ]


def test_a_task_out_of_the_pid_idr_is_named(fake: Guest) -> None:
    del fake.pids[2]
    fake.relink()
    (anomaly,) = fake.anomalies()
    assert (anomaly["pid"], anomaly["missing_from"]) == (2, ["pid idr"])


def hide_everywhere(fake: Guest) -> int:
    """Unlink pid 2 from the list, the idr and its thread group; return its address."""
    hidden = fake.leaders.pop()
    del fake.pids[2]
    fake.relink()
    return hidden


def test_a_task_that_only_the_slab_knows_is_named(fake: Guest) -> None:
    hide_everywhere(fake)
    (anomaly,) = fake.anomalies()
    assert anomaly["comm"] == "sshd"
    assert anomaly["seen_in"] == ["slab"]


@pytest.mark.parametrize("where", ["current", "run queue", "real-time queue"])
def test_a_hidden_task_shows_where_it_runs(fake: Guest, where: str) -> None:
    """Even if the slab's page structure is forged as well."""
    hidden = hide_everywhere(fake)
    fake.guest.put_u64(fake.page + 24, 0)
    if where == "current":
        fake.set_current(hidden)
    elif where == "run queue":
        fake.fair = [hidden]
        fake.relink()
    else:
        fake.link_list(fake.queue + 64 + 16 * 50, [hidden + RT])
    (anomaly,) = fake.anomalies()
    assert anomaly["pid"] == 2
    assert anomaly["seen_in"] == [where.replace("real-time queue", "run queue")]


def test_a_hidden_thread_is_named(fake: Guest) -> None:
    fake.task(3, "worker", leader=fake.leaders[1])
    signal = fake.kernel().u64(fake.leaders[1] + 248)
    fake.link_list(signal + 16, [fake.leaders[1] + NODE])
    (anomaly,) = fake.anomalies()
    assert (anomaly["pid"], anomaly["missing_from"]) == (3, ["thread group"])


def test_a_task_that_calls_itself_idle_is_not_believed(fake: Guest) -> None:
    hidden = hide_everywhere(fake)
    fake.put(hidden, "task_struct", "pid", 0, size=4)
    fake.set_current(hidden)
    (anomaly,) = fake.anomalies()
    assert anomaly["pid"] == 0


@pytest.mark.parametrize(
    ("member", "value"), [("exit_state", 0x10), ("exit_state", 0x30), ("__state", 0x80)]
)
def test_a_dead_task_is_not_a_hidden_one(fake: Guest, member: str, value: int) -> None:
    hidden = hide_everywhere(fake)
    fake.put(hidden, "task_struct", member, value, size=4)
    assert fake.look().outcome is Outcome.PASS


def test_a_newborn_in_the_slab_is_not_a_hidden_task(fake: Guest) -> None:
    hidden = hide_everywhere(fake)
    fake.put(hidden, "task_struct", "__state", 0x800, size=4)
    assert fake.look().outcome is Outcome.PASS


def test_a_copy_that_fork_has_not_linked_is_not_a_hidden_task(fake: Guest) -> None:
    """It bears its parent's pid, and its address is on its parent's kernel stack."""
    parent = fake.leaders[0]
    hidden = hide_everywhere(fake)
    fake.put(hidden, "task_struct", "pid", 1, size=4)
    fake.put(hidden, "task_struct", "tgid", fake.kernel().u32(parent + 92), size=4)
    assert len(fake.anomalies()) == 1  # the parent's stack cannot be read
    stack = fake.alloc(16 << 10)
    fake.put(parent, "task_struct", "stack", stack)
    assert len(fake.anomalies()) == 1  # nothing on it
    fake.guest.put_u64(stack + 0x3000, hidden)
    assert fake.look().outcome is Outcome.PASS
    fake.set_current(hidden)  # what runs was born long ago
    assert len(fake.anomalies()) == 1


def test_a_zombie_is_still_a_task(fake: Guest) -> None:
    hidden = hide_everywhere(fake)
    fake.put(hidden, "task_struct", "exit_state", 0x20, size=4)
    assert len(fake.anomalies()) == 1


def test_a_broken_list_is_unknown_not_fine(fake: Guest) -> None:
    fake.guest.put_u64(fake.leaders[0] + LIST, 0x1000)
    found = fake.look()
    assert found.outcome is Outcome.UNKNOWN
    assert "could not tell" in found.summary


def test_a_kernel_without_a_symbol_is_unknown(fake: Guest) -> None:
    del fake.image.symbols.names["task_struct_cachep"]
    assert fake.look().outcome is Outcome.UNKNOWN


@pytest.mark.parametrize("size", [0, 1 << 30])
def test_an_absurd_slab_is_refused(fake: Guest, size: int) -> None:
    fake.put(fake.cache, "kmem_cache", "size", size, size=4)
    with pytest.raises(StructureError, match="object size"):
        list(tasks.slab_tasks(fake.kernel()))


def test_since_6_2_the_current_task_is_in_pcpu_hot(fake: Guest) -> None:
    fake.image.btf.layouts = {**LAYOUTS, "pcpu_hot": (64, {"current_task": 0})}
    fake.image.symbols.names["pcpu_hot"] = 0x10
    del fake.image.symbols.names["current_task"]
    fake.set_current(fake.leaders[1])
    assert fake.leaders[1] in list(tasks.current_tasks(fake.kernel()))
