"""Write traps on a real guest (TCG with one thread, unless KVM can be used).

``attach_s``
    protect a located kernel's text, constants and page tables and begin to answer;
``lawful_write_us``
    one lawful write, from the moment that we see it until its page is protected again;
``slowdown_ratio``, ``slowdown_compile_ratio``
    time of a command in the guest that makes system calls, and of one that computes and forks,
    with traps over without, paired runs;
``slowdown_cpu_ratio``
    the same for both, in processor time of QEMU and the time that writes waited for us: what else
    the machine does meanwhile does not count;
``violation_to_notice_ms``
    from an unlawful write's entry in the log until a subscriber in another thread has it;
``transient_caught``
    of 1,000 changes of a byte that last 1 us each, in text and in constants;
``transient_caught_polling``
    of 100 changes that last 10 ms, by comparing all text every 100 ms, against D/T.
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
from pathlib import Path

from benchmarks._guest import BenchGuest, bench_guest
from benchmarks.figures import Against, Figure, from_samples
from undercroft import wiring
from undercroft.formats.evidence.interval import Change
from undercroft.guests.attacks import PATCHED_FUNCTION, inline_patch, transient
from undercroft.guests.run import RunOptions
from undercroft.securekernel.hypervisor.qemu import QemuGuest
from undercroft.securekernel.inspect import SecureKernel
from undercroft.securekernel.traps.attach import guard_kernel
from undercroft.securekernel.traps.guard import Guard

ATTACHES, TOGGLES, PAIRS, NOTICES = 15, 40, 11, 40
TRANSIENTS = 1000
POLLED, POLL_S, POLL_DWELL_S = 100, 0.1, 0.01
WORK = "ls -lR /proc/sys /sys/kernel >/dev/null 2>&1; true"
COMPUTE = (
    "for i in 1 2 3 4 5 6 7 8; do sh -c 'awk \"BEGIN { for (i = 0; i < 30000; i++) s += i % 7; "
    "print s }\" > /tmp/out; sort /tmp/out | md5sum > /dev/null'; done"
)


class _Bench:
    def __init__(self, bench: BenchGuest) -> None:
        self.guest = bench.guest
        target = wiring.open_target(f"qemu:{bench.guest.info.name}")
        if not isinstance(target.guest, QemuGuest):
            raise TypeError("not a guest of QEMU")
        self.kernel = SecureKernel(target.guest, target.image)
        self.pid, self.ranges = target.guest.pid, target.guest.host_ranges()
        self.events: queue.SimpleQueue[tuple[int, Change]] = queue.SimpleQueue()

    def guarded(self) -> Guard:
        return guard_kernel(self.kernel.proof, self.pid, self.ranges, on_change=self._note)

    def _note(self, change: Change) -> None:
        self.events.put((time.monotonic_ns(), change))

    def address(self, symbol: str) -> int:
        located = self.kernel.proof.kernel
        if located is None:
            raise RuntimeError("the kernel was lost")
        return located.base + self.kernel.image.offset(symbol)

    def drain(self) -> list[Change]:
        found = []
        while not self.events.empty():
            found.append(self.events.get()[1])
        return found


def run() -> list[Figure]:
    """Return the figures."""
    with bench_guest("bench-traps", RunOptions(one_thread=True)) as guest:
        bench = _Bench(guest)
        return [
            from_samples("attach_s", "s", _attaches(bench), against=Against("limit", 1)),
            from_samples("lawful_write_us", "us", _lawful(bench), against=Against("limit", 300)),
            *_slowdowns(bench),
            from_samples(
                "violation_to_notice_ms", "ms", _notices(bench), against=Against("limit", 10)
            ),
            _transients(bench),
            _polled(bench),
        ]


def _attaches(bench: _Bench) -> list[float]:
    samples = []
    for _ in range(ATTACHES):
        started = time.perf_counter()
        guard = bench.guarded()
        samples.append(time.perf_counter() - started)
        guard.close()
    return samples


def _lawful(bench: _Bench) -> list[float]:
    with bench.guarded() as guard:
        for number in range(TOGGLES):
            bench.guest.console(f"echo {(number + 1) % 2} > /proc/sys/kernel/sched_schedstats")
        status = guard.status()
    if status.violations:
        raise RuntimeError(f"a lawful change was refused: {bench.drain()}")
    return list(status.answer_us)


def _slowdowns(bench: _Bench) -> list[Figure]:
    limit = Against("limit", 1.03)
    system_calls, compute = _slowdown(bench, WORK), _slowdown(bench, COMPUTE)
    processor = [cpu for _, cpu in (*system_calls, *compute)]
    return [
        from_samples("slowdown_ratio", "x", [wall for wall, _ in system_calls], against=limit),
        from_samples("slowdown_compile_ratio", "x", [wall for wall, _ in compute], against=limit),
        from_samples("slowdown_cpu_ratio", "x", processor, against=limit),
    ]


def _slowdown(bench: _Bench, work: str) -> list[tuple[float, float]]:
    """Return the ratio of each pair: of the time that passed, and of what it cost QEMU."""

    def cost(guard: Guard | None) -> tuple[float, float]:
        started, processor = time.perf_counter(), _processor_time(bench.pid)
        waited = sum(guard.status().answer_us) if guard is not None else 0.0
        bench.guest.console(work, timeout_s=300)
        passed = time.perf_counter() - started
        if guard is not None:
            waited = sum(guard.status().answer_us) - waited
        return passed, _processor_time(bench.pid) - processor + waited / 1e6

    def trapped() -> tuple[float, float]:
        with bench.guarded() as guard:
            return cost(guard)

    ratios = []
    cost(None)
    for number in range(PAIRS):
        if number % 2:
            without = cost(None)
            with_traps = trapped()
        else:
            with_traps = trapped()
            without = cost(None)
        ratios.append((with_traps[0] / without[0], with_traps[1] / without[1]))
    return ratios


def _processor_time(pid: int) -> float:
    """Return the seconds of processor time of all threads of a process (schedstat, ns)."""
    return sum(
        int((thread / "schedstat").read_text().split()[0]) / 1e9
        for thread in Path(f"/proc/{pid}/task").iterdir()
    )


def _notices(bench: _Bench) -> list[float]:
    bench.drain()
    latencies: list[float] = []

    def subscribe() -> None:
        while True:
            put, change = bench.events.get()
            if change.range == "":
                return
            latencies.append((time.monotonic_ns() - put) / 1e6)

    subscriber = threading.Thread(target=subscribe)
    subscriber.start()
    with bench.guarded(), inline_patch(bench.guest, bench.address(PATCHED_FUNCTION)) as adversary:
        for number in range(NOTICES):
            adversary.switch(not number % 2)
    end = Change(0, "", 0, 0, "", "", b"", b"", "", 0, 0, True, True, "")
    bench.events.put((time.monotonic_ns(), end))
    subscriber.join()
    return latencies


def _transients(bench: _Bench) -> Figure:
    caught = []
    for symbol, offset in ((PATCHED_FUNCTION, 9), ("linux_banner", 3)):
        seen = 0
        with (
            bench.guarded(),
            transient(bench.guest, bench.address(symbol) + offset) as adversary,
        ):
            for _ in range(TRANSIENTS):
                bench.drain()
                adversary.run(1, dwell_ns=1000, gap_us=1)
                seen += any(not change.lawful for change in bench.drain())
        caught.append(float(seen))
    return from_samples(
        "transient_caught", "of 1000", caught, against=Against("limit", float(TRANSIENTS))
    )


def _polled(bench: _Bench) -> Figure:
    """The same attack against polling alone: it is caught if a look falls into its dwell."""
    stop = threading.Event()
    found: list[float] = []

    def poll() -> None:
        while not stop.wait(POLL_S):
            if not bench.kernel.proof.text_equal():
                found.append(time.monotonic())

    with transient(bench.guest, bench.address(PATCHED_FUNCTION) + 9) as adversary:
        poller = threading.Thread(target=poll)
        poller.start()
        adversary.run(POLLED, dwell_ns=int(POLL_DWELL_S * 1e9), gap_us=70_000)
        stop.set()
        poller.join()
    theory = 100 * POLL_DWELL_S / POLL_S
    value = 100 * len(found) / POLLED
    return Figure(
        "transient_caught_polling", value, "%", POLLED, statistics.median([value]), value,
        Against("theory D/T", theory),
    )  # fmt: skip
