"""What the kernel will call later, and what its threads run: timers, work, tasklets, interrupts.

Walked as ``hooks`` are, from the side that calls: the timer wheel and the trees of
high-resolution timers of every CPU, the worker pools with what waits for them, each interrupt's
actions.  A rootkit that only wakes up now and then hangs here and nowhere else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from undercroft.securekernel.linux.containers import (
    hlist_entries,
    list_entries,
    rbtree_entries,
    xarray_entries,
)
from undercroft.securekernel.linux.hooks import MAX_HOOKS, Hook, Kinds, hook_spec
from undercroft.securekernel.linux.live import MASK64, LiveKernel, StructureError
from undercroft.securekernel.linux.tasks import task_list
from undercroft.securekernel.linux.vmas import maple_entries

_WHEEL_SIZE = 9 * 64  # kernel/time/timer.c: LVL_DEPTH levels of LVL_SIZE buckets
_CLOCK_BASES = 8  # HRTIMER_MAX_CLOCK_BASES
_MAX_POOLS = 1 << 16
_MAX_CHAIN = 4096
_PF_KTHREAD = 0x00200000  # include/linux/sched.h


def timers(kernel: LiveKernel) -> Iterator[Hook]:
    """Yield every pending timer; a delayed work's is followed by the work itself."""
    delayed = kernel.find_symbol("delayed_work_timer_fn")
    size, vectors = kernel.size_of("timer_base"), kernel.offset("timer_base", "vectors")
    function = kernel.offset("timer_list", "function")
    # BASE_LOCAL and BASE_GLOBAL came with the timer migration (7ee988770326, Linux 6.9).
    bases = 3 if kernel.find_symbol("timer_expire_remote") is not None else 2
    for cpu in range(kernel.cpu_count()):
        first = kernel.per_cpu("timer_bases", cpu)
        for base in range(bases):
            wheel = first + base * size + vectors
            heads = struct.unpack(f"<{_WHEEL_SIZE}Q", kernel.read(wheel, 8 * _WHEEL_SIZE))
            for bucket in (number for number, head in enumerate(heads) if head):
                for timer in hlist_entries(kernel, wheel + 8 * bucket, limit=MAX_HOOKS):
                    target = kernel.u64(timer + function)
                    yield Hook(f"timer of CPU {cpu}", target)
                    if target == delayed:
                        yield _delayed_work(kernel, timer, cpu)


def _delayed_work(kernel: LiveKernel, timer: int, cpu: int) -> Hook:
    work = timer - kernel.offset("delayed_work", "timer") + kernel.offset("delayed_work", "work")
    return Hook(f"delayed work of CPU {cpu}", kernel.member_u64(work, "work_struct", "func"))


def high_resolution_timers(kernel: LiveKernel) -> Iterator[Hook]:
    """Yield every pending high-resolution timer."""
    first = kernel.offset("hrtimer_cpu_base", "clock_base")
    step, active = (
        kernel.size_of("hrtimer_clock_base"),
        kernel.offset("hrtimer_clock_base", "active"),
    )
    for cpu in range(kernel.cpu_count()):
        base = kernel.per_cpu("hrtimer_bases", cpu) + first
        for clock in range(_CLOCK_BASES):
            root = base + clock * step + active
            for timer in rbtree_entries(kernel, root, limit=MAX_HOOKS):
                target = kernel.member_u64(timer, "hrtimer", "function")
                yield Hook(f"high-resolution timer of CPU {cpu}", target)


def all_timers(kernel: LiveKernel) -> Iterator[Hook]:
    """Yield pending timers of both kinds."""
    yield from timers(kernel)
    yield from high_resolution_timers(kernel)


def work(kernel: LiveKernel) -> Iterator[Hook]:
    """Yield every work that waits or runs, of every worker pool and workqueue; and tasklets."""
    entry = kernel.offset("work_struct", "entry")
    func = kernel.offset("work_struct", "func")
    node = kernel.offset("worker", "node")
    pools = kernel.symbol("worker_pool_idr") + kernel.offset("idr", "idr_rt")
    for number, pool in xarray_entries(kernel, pools, limit=_MAX_POOLS):
        head = pool + kernel.offset("worker_pool", "worklist")
        for item in list_entries(kernel, head, entry, limit=MAX_HOOKS):
            yield Hook(f"work for pool {number}", kernel.u64(item + func))
        workers = pool + kernel.offset("worker_pool", "workers")
        for worker in list_entries(kernel, workers, node, limit=MAX_HOOKS):
            running = kernel.member_u64(worker, "worker", "current_func")
            if running:
                yield Hook(f"running work of pool {number}", running)
            scheduled = worker + kernel.offset("worker", "scheduled")
            for item in list_entries(kernel, scheduled, entry, limit=MAX_HOOKS):
                yield Hook(f"next work of pool {number}", kernel.u64(item + func))
    yield from _inactive_work(kernel)
    yield from _tasklets(kernel)


def _inactive_work(kernel: LiveKernel) -> Iterator[Hook]:
    """Yield work that waits until its queue may run more at once."""
    entry, func = (kernel.offset("work_struct", name) for name in ("entry", "func"))
    queues = kernel.symbol("workqueues")
    link = kernel.offset("pool_workqueue", "pwqs_node")
    for queue in list_entries(kernel, queues, kernel.offset("workqueue_struct", "list")):
        name = kernel.text(queue + kernel.offset("workqueue_struct", "name"), 24)
        head = queue + kernel.offset("workqueue_struct", "pwqs")
        for pool in list_entries(kernel, head, link, limit=MAX_HOOKS):
            waiting = pool + kernel.offset("pool_workqueue", "inactive_works")
            for item in list_entries(kernel, waiting, entry, limit=MAX_HOOKS):
                yield Hook(f"work that waits in {name}", kernel.u64(item + func))


def _tasklets(kernel: LiveKernel) -> Iterator[Hook]:
    for name in ("tasklet_vec", "tasklet_hi_vec"):
        if kernel.find_symbol(name) is None:
            continue
        for cpu in range(kernel.cpu_count()):
            tasklet = kernel.u64(kernel.per_cpu(name, cpu))
            for _ in range(_MAX_CHAIN):
                if not tasklet:
                    break
                target = kernel.member_u64(tasklet, "tasklet_struct", "func")
                yield Hook(f"tasklet of CPU {cpu}", target)
                tasklet = kernel.member_u64(tasklet, "tasklet_struct", "next")
            else:
                raise StructureError("a list of tasklets does not end", tasklet)


def interrupts(kernel: LiveKernel) -> Iterator[Hook]:
    """Yield the handlers of every interrupt."""
    for descriptor in _descriptors(kernel):
        action = kernel.member_u64(descriptor, "irq_desc", "action")
        for _ in range(_MAX_CHAIN):
            if not action:
                break
            number = kernel.member_u32(action, "irqaction", "irq")
            for name in ("handler", "thread_fn"):
                target = kernel.member_u64(action, "irqaction", name)
                if target:
                    yield Hook(f"interrupt {number}, {name}", target)
            action = kernel.member_u64(action, "irqaction", "next")
        else:
            raise StructureError("an interrupt's actions do not end", descriptor)


def threads(kernel: LiveKernel) -> Iterator[Hook]:
    """Yield the function of every kernel thread; the first of them, kthreadd, has none."""
    flags_at, pid_at = (kernel.offset("task_struct", name) for name in ("flags", "pid"))
    for task in task_list(kernel):
        if not kernel.u32(task + flags_at) & _PF_KTHREAD:
            continue
        thread = kernel.member_u64(task, "task_struct", "worker_private")
        target = kernel.member_u64(thread, "kthread", "threadfn") if thread else 0
        if target:
            name = kernel.text(task + kernel.offset("task_struct", "comm"), 16)
            yield Hook(f"kernel thread {name} ({kernel.u32(task + pid_at)})", target)


def _descriptors(kernel: LiveKernel) -> Iterator[int]:
    """Yield every ``struct irq_desc``: in a radix tree, or since Linux 6.5 in a maple tree."""
    tree = kernel.find_symbol("sparse_irqs")
    if tree is not None:
        yield from maple_entries(kernel, tree, limit=MAX_HOOKS)
        return
    for _, descriptor in xarray_entries(kernel, kernel.symbol("irq_desc_tree"), limit=MAX_HOOKS):
        yield descriptor & MASK64


KINDS: Kinds = {
    spec.id: (spec, walk)
    for spec, walk in (
        (hook_spec("timers", "timer"), all_timers),
        (hook_spec("work", "deferred work"), work),
        (hook_spec("interrupts", "interrupt handler"), interrupts),
        (hook_spec("threads", "kernel thread"), threads),
    )
}
