"""Tasks, seen from every side at once: a process hidden from one view stands out in another.

Six views, none of which is made from another: the task list, the pid idr, the thread groups, the
run queues, what each CPU runs now, and the slab of task_struct.  The first three must agree on
every task; the last three must hold none that those lack.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

from undercroft.base import Finding, JsonValue, MemoryFault
from undercroft.securekernel.linux.containers import (
    hlist_entries,
    list_entries,
    rbtree_entries,
    xarray_entries,
)
from undercroft.securekernel.linux.facts import Anomaly, FactSpec, Look, Observer
from undercroft.securekernel.linux.live import LiveKernel
from undercroft.securekernel.linux.slab import slab_objects

MAX_TASKS = 1 << 18
TASK_COMM_LEN = 16
_MAX_RT_PRIO = 100
_PIDTYPE_PID = 0
_THREAD_SIZE = 16 << 10

_EXIT_DEAD = 0x10  # include/linux/sched.h
_TASK_DEAD = 0x80
_TASK_NEW = 0x800

TASK_LIST, PID_IDR, THREADS = "tasks list", "pid idr", "thread group"
CURRENT, RUN_QUEUE, SLAB = "current", "run queue", "slab"

SPEC = FactSpec(
    id="kernel.tasks.crossview",
    passed="every view of the tasks agrees",
    failed="a task is hidden: some views of the tasks lack it",
    limits=(
        "a sleeping task in no list is not told from freed memory if it is forged to look dead, "
        "nor from a fork in progress if it bears a parent's pid and stands on its stack",
        "a task hidden for less than half a second is not seen by polling",
    ),
)


@dataclass(frozen=True, slots=True)
class Task:
    """What we read of one task_struct.  ``address`` and pointers are guest-virtual."""

    address: int
    pid: int
    tgid: int
    comm: str
    state: int
    exit_state: int
    group_leader: int
    signal: int
    mm: int
    stack: int

    @property
    def dead(self) -> bool:
        """Whether the task is past its end: unlinked, waiting to be freed."""
        return bool(self.exit_state & _EXIT_DEAD or self.state & _TASK_DEAD)


class TaskReader:
    """Reads task_structs, each with one read of the span that holds the fields."""

    _FIELDS = (
        *("__state", "pid", "tgid", "comm", "exit_state"),
        *("group_leader", "signal", "mm", "stack"),
    )

    def __init__(self, kernel: LiveKernel) -> None:
        self._kernel = kernel
        offsets = {name: kernel.offset("task_struct", name) for name in self._FIELDS}
        self._start = min(offsets.values())
        self._size = max(offsets.values()) + TASK_COMM_LEN - self._start
        self._at = {name: offset - self._start for name, offset in offsets.items()}

    def read(self, address: int) -> Task:
        """Return the task at ``address``, or raise MemoryFault."""
        data = self._kernel.read(address + self._start, self._size)
        at = self._at

        def u32(name: str) -> int:
            return int(struct.unpack_from("<I", data, at[name])[0])

        def u64(name: str) -> int:
            return int(struct.unpack_from("<Q", data, at[name])[0])

        comm = data[at["comm"] : at["comm"] + TASK_COMM_LEN].partition(b"\0")[0]
        return Task(
            address=address,
            pid=u32("pid"),
            tgid=u32("tgid"),
            comm=comm.decode("ascii", errors="backslashreplace"),
            state=u32("__state"),
            exit_state=u32("exit_state"),
            group_leader=u64("group_leader"),
            signal=u64("signal"),
            mm=u64("mm"),
            stack=u64("stack"),
        )


def task_list(kernel: LiveKernel) -> Iterator[int]:
    """Yield the addresses in the list of thread group leaders, init_task first."""
    init = kernel.symbol("init_task")
    member = kernel.offset("task_struct", "tasks")
    yield init
    yield from list_entries(kernel, init + member, member, limit=MAX_TASKS)


def pid_idr(kernel: LiveKernel) -> Iterator[int]:
    """Yield the tasks that the initial pid namespace's idr leads to."""
    idr = kernel.symbol("init_pid_ns") + kernel.offset("pid_namespace", "idr")
    heads = kernel.offset("pid", "tasks") + 8 * _PIDTYPE_PID
    links = kernel.offset("task_struct", "pid_links") + 16 * _PIDTYPE_PID
    for _, pid in xarray_entries(kernel, idr + kernel.offset("idr", "idr_rt"), limit=MAX_TASKS):
        yield from hlist_entries(kernel, pid + heads, links, limit=16)


def thread_group(kernel: LiveKernel, signal: int) -> Iterator[int]:
    """Yield the tasks that share a signal_struct."""
    head = signal + kernel.offset("signal_struct", "thread_head")
    member = kernel.offset("task_struct", "thread_node")
    yield from list_entries(kernel, head, member, limit=MAX_TASKS)


def current_tasks(kernel: LiveKernel) -> Iterator[int]:
    """Yield what each online CPU runs, by the per-CPU pointer and by the run queue's."""
    for cpu in kernel.online_cpus():
        if kernel.find_symbol("pcpu_hot") is not None:  # since 6.2
            hot = kernel.per_cpu("pcpu_hot", cpu)
            yield kernel.member_u64(hot, "pcpu_hot", "current_task")
        else:
            yield kernel.u64(kernel.per_cpu("current_task", cpu))
        yield kernel.member_u64(kernel.per_cpu("runqueues", cpu), "rq", "curr")


def idle_tasks(kernel: LiveKernel) -> Iterator[int]:
    """Yield each CPU's idle task, which no list holds."""
    yield kernel.symbol("init_task")
    for cpu in kernel.online_cpus():
        yield kernel.member_u64(kernel.per_cpu("runqueues", cpu), "rq", "idle")


def run_queues(kernel: LiveKernel) -> Iterator[int]:
    """Yield the tasks that wait to run: fair, real-time and deadline."""
    fair = kernel.offset("task_struct", "se.group_node")
    real_time = kernel.offset("task_struct", "rt.run_list")
    deadline = kernel.offset("task_struct", "dl.rb_node")
    for cpu in kernel.online_cpus():
        queue = kernel.per_cpu("runqueues", cpu)
        yield from list_entries(
            kernel, queue + kernel.offset("rq", "cfs_tasks"), fair, limit=MAX_TASKS
        )
        priorities = queue + kernel.offset("rq", "rt.active.queue")
        for priority in range(_MAX_RT_PRIO):
            yield from list_entries(kernel, priorities + 16 * priority, real_time, limit=MAX_TASKS)
        root = queue + kernel.offset("rq", "dl.root")
        yield from rbtree_entries(kernel, root, deadline, limit=MAX_TASKS)


def slab_tasks(kernel: LiveKernel) -> Iterator[int]:
    """Yield every slot for a task_struct, free ones included."""
    yield from slab_objects(kernel, kernel.u64(kernel.symbol("task_struct_cachep")))


_VIEWS: tuple[tuple[str, Callable[[LiveKernel], Iterator[int]]], ...] = (
    (TASK_LIST, task_list),
    (PID_IDR, pid_idr),
    (CURRENT, current_tasks),
    (RUN_QUEUE, run_queues),
    (SLAB, slab_tasks),
)


@dataclass(frozen=True, slots=True)
class Census:
    """Every task found, with the views that hold it; idle tasks apart."""

    tasks: dict[int, Task]
    views: dict[int, set[str]]
    idle: frozenset[int]


def take_census(kernel: LiveKernel) -> Census:
    """Look at the tasks from every side.  Raises StructureError or MemoryFault."""
    reader = TaskReader(kernel)
    views: dict[int, set[str]] = {}
    for name, view in _VIEWS:
        for address in view(kernel):
            views.setdefault(address, set()).add(name)
    tasks: dict[int, Task] = {}
    for address, seen in views.items():
        try:
            tasks[address] = reader.read(address)
        except MemoryFault:
            if seen != {SLAB}:
                raise
    linked = {address for address, seen in views.items() if seen & {TASK_LIST, PID_IDR}}
    for signal in {tasks[address].signal for address in linked}:
        for address in thread_group(kernel, signal):
            views.setdefault(address, set()).add(THREADS)
            if address not in tasks:
                tasks[address] = reader.read(address)
    return Census(tasks, views, frozenset(idle_tasks(kernel)))


def missing_views(task: Task, seen: set[str]) -> list[str]:
    """Return the views that must hold this live task and do not."""
    required = [PID_IDR, THREADS]
    if task.group_leader == task.address:
        required.insert(0, TASK_LIST)
    return [view for view in required if view not in seen]


def _is_leftover(task: Task, seen: set[str]) -> bool:
    """Whether a slot of the slab holds no live task: free, dead, or not yet born."""
    return task.dead or (seen == {SLAB} and (task.pid == 0 or bool(task.state & _TASK_NEW)))


def _is_being_born(kernel: LiveKernel, task: Task, census: Census) -> bool:
    """Whether this is a copy that its parent's fork has made and not yet linked.

    Until late in copy_process (kernel/fork.c) the copy carries its parent's pid, and the parent,
    which may sleep there, has the copy's address on its kernel stack.
    """
    address = struct.pack("<Q", task.address)
    for other in census.tasks.values():
        linked = PID_IDR in census.views[other.address] and other.address != task.address
        if linked and (other.pid, other.tgid) == (task.pid, task.tgid):
            try:
                return address in kernel.read(other.stack, _THREAD_SIZE)
            except MemoryFault:
                return False
    return False


def look(kernel: LiveKernel) -> Look:
    """Compare the views once."""
    census = take_census(kernel)
    anomalies: dict[Hashable, Anomaly] = {}
    counts: dict[str, JsonValue] = {}
    for address, task in census.tasks.items():
        seen = census.views[address]
        if address in census.idle or _is_leftover(task, seen):
            continue
        for view in seen:
            counts[view] = int(str(counts.get(view, 0))) + 1
        missing = missing_views(task, seen)
        if missing and not (seen == {SLAB} and _is_being_born(kernel, task, census)):
            anomalies[address] = Anomaly(
                {
                    "pid": task.pid,
                    "tgid": task.tgid,
                    "comm": task.comm,
                    "task": f"{address:#x}",
                    "seen_in": sorted(seen),
                    "missing_from": missing,
                }
            )
    return Look(anomalies, {"tasks_by_view": counts})


def crossview(kernel: LiveKernel, observer: Observer) -> Finding:
    """Return ``kernel.tasks.crossview``: whether any task is hidden from any view."""
    return observer.settle(SPEC, kernel, look)
