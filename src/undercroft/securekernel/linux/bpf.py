"""BPF programs, from three sides: what bpf(2) lists, what has code, and what tracepoints run.

A BPF program needs no module to see, and with the right helpers to change, what every process
does.  So each one found at a hook, or with code of its own, must be one that the kernel lists;
and programs of the kinds that watch the kernel are named: whether they are wanted is not in the
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass

from undercroft.base import Finding, JsonValue
from undercroft.securekernel.linux.containers import list_entries, xarray_entries
from undercroft.securekernel.linux.facts import Anomaly, FactSpec, Look, Observer
from undercroft.securekernel.linux.live import LiveKernel, StructureError

MAX_PROGRAMS = 1 << 16
_MAX_FUNCTIONS = 256  # include/linux/bpf_verifier.h, BPF_MAX_SUBPROGS
_MAX_TRACEPOINTS = 1 << 16
_MAX_PROBES = 256
_NAME_LEN = 16

LISTED, CODE, TRACEPOINT = "prog_idr", "bpf_kallsyms", "tracepoint"

WATCHING: Mapping[int, str] = {
    2: "kprobe",
    5: "tracepoint",
    7: "perf_event",
    17: "raw_tracepoint",
    24: "raw_tracepoint_writable",
    26: "tracing",
    27: "struct_ops",
    28: "ext",
    29: "lsm",
}
"""Kinds that run in the kernel's own paths (enum bpf_prog_type in include/uapi/linux/bpf.h).

The others filter packets or belong to a cgroup, as service managers use them.
"""

CROSSVIEW = FactSpec(
    "kernel.bpf.crossview",
    "every BPF program that can run is one that the kernel lists",
    "a BPF program is hidden: it can run, and the kernel does not list it",
    ("programs at kprobes, perf events and network devices are found by their code only",),
)
WATCHERS = FactSpec(
    "kernel.bpf.watchers",
    "no BPF program watches the kernel",
    "BPF programs watch the kernel",
    ("tracing tools and security agents do so lawfully: a person must tell",),
)
SPECS = (CROSSVIEW, WATCHERS)


@dataclass(frozen=True, slots=True)
class Program:
    """What a ``struct bpf_prog`` says of itself; ``uid`` is who loaded it."""

    address: int
    id: int
    type: int
    name: str
    tag: str
    uid: int

    def as_json(self) -> dict[str, JsonValue]:
        """Return it as a JSON object."""
        return {
            "id": self.id,
            "type": WATCHING.get(self.type, str(self.type)),
            "name": self.name,
            "tag": self.tag,
            "uid": self.uid,
            "program": f"{self.address:#x}",
        }


def read_program(kernel: LiveKernel, address: int) -> Program:
    """Read the ``struct bpf_prog`` at ``address``."""
    aux = kernel.member_u64(address, "bpf_prog", "aux")
    user = kernel.member_u64(aux, "bpf_prog_aux", "user")
    return Program(
        address=address,
        id=kernel.member_u32(aux, "bpf_prog_aux", "id"),
        type=kernel.member_u32(address, "bpf_prog", "type"),
        name=kernel.text(aux + kernel.offset("bpf_prog_aux", "name"), _NAME_LEN),
        tag=kernel.read(address + kernel.offset("bpf_prog", "tag"), 8).hex(),
        uid=kernel.member_u32(user, "user_struct", "uid") if user else 0,
    )


def listed_programs(kernel: LiveKernel) -> Iterator[int]:
    """Yield the programs in ``prog_idr``, which bpf(2) and bpftool show."""
    idr = kernel.find_symbol("prog_idr")
    if idr is not None:
        at = idr + kernel.offset("idr", "idr_rt")
        yield from (program for _, program in xarray_entries(kernel, at, limit=MAX_PROGRAMS))


def _functions(kernel: LiveKernel, program: int) -> Iterator[int]:
    """Yield the programs that a program's further functions are compiled as."""
    aux = kernel.member_u64(program, "bpf_prog", "aux")
    count = kernel.member_u32(aux, "bpf_prog_aux", "func_cnt")
    table = kernel.member_u64(aux, "bpf_prog_aux", "func")
    if count > _MAX_FUNCTIONS:
        raise StructureError("a BPF program has absurdly many functions", program, got=count)
    if table:
        yield from (kernel.u64(table + 8 * number) for number in range(count))


def programs_with_code(kernel: LiveKernel) -> Iterator[int]:
    """Yield the programs that the kernel compiled, by the symbols of their code."""
    head = kernel.find_symbol("bpf_kallsyms")
    if head is None:
        return
    member = kernel.offset("bpf_ksym", "lnode")
    inside = kernel.offset("bpf_prog_aux", "ksym")
    for ksym in list_entries(kernel, head, member, limit=MAX_PROGRAMS):
        if kernel.u8(ksym + kernel.offset("bpf_ksym", "prog")):
            yield kernel.member_u64(ksym - inside, "bpf_prog_aux", "prog")


def programs_at_tracepoints(kernel: LiveKernel) -> Iterator[int]:
    """Yield the programs that tracepoints run.

    A tracepoint calls ``__bpf_trace_NAME`` with the program as its data; since 6.10 with the
    link that leads to the program (kernel/trace/bpf_trace.c, __bpf_probe_register).
    """
    start = kernel.symbol("__start___tracepoints_ptrs")
    end = kernel.symbol("__stop___tracepoints_ptrs")
    if not 0 <= end - start <= 4 * _MAX_TRACEPOINTS:
        raise StructureError("there are absurdly many tracepoints", start, got=end - start)
    step, data_at = kernel.size_of("tracepoint_func"), kernel.offset("tracepoint_func", "data")
    by_link = kernel.has("bpf_raw_tp_link", "cookie")
    for place in range(start, end, 4):  # a PC-relative reference each
        probe = kernel.member_u64(place + kernel.s32(place), "tracepoint", "funcs")
        for _ in range(_MAX_PROBES if probe else 0):
            target = kernel.member_u64(probe, "tracepoint_func", "func")
            if not target:
                break
            if kernel.name_of(target).startswith("__bpf_trace_"):
                data = kernel.u64(probe + data_at)
                yield kernel.member_u64(data, "bpf_link", "prog") if by_link else data
            probe += step


_VIEWS: tuple[tuple[str, Callable[[LiveKernel], Iterator[int]]], ...] = (
    (LISTED, listed_programs),
    (CODE, programs_with_code),
    (TRACEPOINT, programs_at_tracepoints),
)


def look(kernel: LiveKernel) -> Mapping[str, Look]:
    """Find every program once."""
    views: dict[int, set[str]] = {}
    for name, view in _VIEWS:
        for address in view(kernel):
            views.setdefault(address, set()).add(name)
    listed = [address for address, seen in views.items() if LISTED in seen]
    parts = {part for address in listed for part in _functions(kernel, address)}
    hidden: dict[Hashable, Anomaly] = {}
    watchers: dict[Hashable, Anomaly] = {}
    shown: list[JsonValue] = []
    for address, seen in views.items():
        if address in parts and LISTED not in seen:
            continue
        program = read_program(kernel, address)
        described = {**program.as_json(), "seen_in": sorted(seen)}
        if LISTED not in seen:
            hidden[address] = Anomaly(described)
        if program.type in WATCHING or TRACEPOINT in seen:
            watchers[address] = Anomaly(described, certain=False)
        else:
            shown.append(described)
    return {
        CROSSVIEW.id: Look(hidden, {"programs": len(views)}),
        WATCHERS.id: Look(watchers, {"others": shown}),
    }


def collect(kernel: LiveKernel, observer: Observer) -> tuple[Finding, ...]:
    """Return the findings on BPF programs."""
    return observer.settle_all(SPECS, kernel, look)
