"""Hooks: the places where the kernel lets others join in, and where each of them leads.

Every kind is walked from the hooked side (what the kernel will call), not from a list that the
hooker keeps: ftrace, kprobes and kretprobes, tracepoints, netfilter, packet and protocol
handlers, notifier chains, LSM hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass

from undercroft.base import Finding, FormatError, JsonValue
from undercroft.securekernel.linux.code import CodeMap
from undercroft.securekernel.linux.containers import hlist_entries, list_entries
from undercroft.securekernel.linux.facts import WALK_ERRORS, Anomaly, FactSpec, Look, Observer
from undercroft.securekernel.linux.live import LiveKernel, StructureError
from undercroft.securekernel.linux.owners import registered_ops

MAX_HOOKS = 1 << 16
_KPROBE_TABLE_SIZE = 64
_MAX_TRACEPOINTS = 1 << 16
_MAX_PROBES = 256
_MAX_NETS = 1 << 14
_MAX_HOOK_ENTRIES = 1024  # net/netfilter/core.c, MAX_HOOK_COUNT
_PTYPE_HASH_SIZE = 16
_MAX_INET_PROTOS = 256
_NF_CHAINS = {"ipv4": 5, "ipv6": 5, "arp": 3, "bridge": 5}
_NF_DEVICE_HOOKS = ("nf_hooks_ingress", "nf_hooks_egress")

_NOTIFIERS = {
    "keyboard_notifier_list": "atomic_notifier_head",
    "vt_notifier_list": "atomic_notifier_head",
    "panic_notifier_list": "atomic_notifier_head",
    "die_chain": "atomic_notifier_head",
    "restart_handler_list": "atomic_notifier_head",
    "netevent_notif_chain": "atomic_notifier_head",
    "inet6addr_chain": "atomic_notifier_head",
    "reboot_notifier_list": "blocking_notifier_head",
    "module_notify_list": "blocking_notifier_head",
    "inetaddr_chain": "blocking_notifier_head",
    "usb_notifier_list": "blocking_notifier_head",
    "netdev_chain": "raw_notifier_head",
}
"""Chains by symbol, with the type of their head (include/linux/notifier.h)."""

_LIMITS = (
    "a module counts by its code, compared with its package; where no package is at hand, by the "
    "kernel's mark that it was signed",
    "a hook on a function of the kernel itself is lawful here, whatever it is used for",
)


def hook_spec(kind: str, what: str) -> FactSpec:
    """Return the fact on one kind of hook."""
    return FactSpec(
        f"kernel.hooks.{kind}",
        f"every {what} leads to lawful code",
        f"a {what} leads to code that nobody vouches for",
        _LIMITS,
    )


@dataclass(frozen=True, slots=True)
class Hook:
    """One place that leads to code: what for a person calls it, and where it leads."""

    where: str
    target: int


def ftrace_hooks(kernel: LiveKernel) -> Iterator[Hook]:
    """Yield the callback of every registered ftrace_ops."""
    for ops in registered_ops(kernel):
        yield Hook(
            f"ftrace_ops {kernel.name_of(ops)}", kernel.member_u64(ops, "ftrace_ops", "func")
        )


def kprobe_hooks(kernel: LiveKernel) -> Iterator[Hook]:
    """Yield the handlers of every kprobe, of those that share an address, and of kretprobes."""
    table = kernel.find_symbol("kprobe_table")
    if table is None:
        return
    shared = kernel.find_symbol("aggr_pre_handler")
    member = kernel.offset("kprobe", "hlist")
    for bucket in range(_KPROBE_TABLE_SIZE):
        for probe in hlist_entries(kernel, table + 8 * bucket, member, limit=MAX_HOOKS):
            if kernel.member_u64(probe, "kprobe", "pre_handler") == shared:
                sharing = kernel.offset("kprobe", "list")
                for one in list_entries(kernel, probe + sharing, sharing, limit=MAX_HOOKS):
                    yield from _handlers(kernel, one)
            else:
                yield from _handlers(kernel, probe)


def _handlers(kernel: LiveKernel, probe: int) -> Iterator[Hook]:
    at = kernel.name_of(kernel.member_u64(probe, "kprobe", "addr"))
    for name in ("pre_handler", "post_handler"):
        target = kernel.member_u64(probe, "kprobe", name)
        if target:
            yield Hook(f"kprobe at {at}, {name}", target)
    returning = kernel.find_symbol("pre_handler_kretprobe")
    if returning and kernel.member_u64(probe, "kprobe", "pre_handler") == returning:
        kretprobe = probe - kernel.offset("kretprobe", "kp")
        for name in ("handler", "entry_handler"):
            target = kernel.member_u64(kretprobe, "kretprobe", name)
            if target:
                yield Hook(f"kretprobe at {at}, {name}", target)


def tracepoint_hooks(kernel: LiveKernel) -> Iterator[Hook]:
    """Yield every probe of every tracepoint of the kernel, and its (un)registering functions."""
    start = kernel.symbol("__start___tracepoints_ptrs")
    end = kernel.symbol("__stop___tracepoints_ptrs")
    if not 0 <= end - start <= 4 * _MAX_TRACEPOINTS:
        raise StructureError("there are absurdly many tracepoints", start, got=end - start)
    for place in range(start, end, 4):  # a PC-relative reference each
        tracepoint = place + kernel.s32(place)
        probe = kernel.member_u64(tracepoint, "tracepoint", "funcs")
        if not probe:
            continue
        name = kernel.text(kernel.member_u64(tracepoint, "tracepoint", "name"), 64)
        for _ in range(_MAX_PROBES):
            target = kernel.member_u64(probe, "tracepoint_func", "func")
            if not target:
                break
            yield Hook(f"tracepoint {name}", target)
            probe += kernel.size_of("tracepoint_func")
        else:
            raise StructureError("a tracepoint has absurdly many probes", tracepoint)


def network_namespaces(kernel: LiveKernel) -> Iterator[int]:
    """Yield every ``struct net``."""
    head = kernel.symbol("net_namespace_list")
    yield from list_entries(kernel, head, kernel.offset("net", "list"), limit=_MAX_NETS)


def network_devices(kernel: LiveKernel, net: int) -> Iterator[int]:
    """Yield every ``struct net_device`` of a network namespace."""
    head = net + kernel.offset("net", "dev_base_head")
    member = kernel.offset("net_device", "dev_list")
    yield from list_entries(kernel, head, member, limit=MAX_HOOKS)


def netfilter_hooks(kernel: LiveKernel) -> Iterator[Hook]:
    """Yield every netfilter hook of every network namespace and device."""
    for net in network_namespaces(kernel):
        for family, count in _NF_CHAINS.items():
            path = f"nf.hooks_{family}"
            if not kernel.has("net", path):
                continue
            for number in range(count):
                entries = kernel.u64(net + kernel.offset("net", path) + 8 * number)
                yield from _hook_entries(kernel, entries, f"netfilter {family} hook {number}")
        for device in network_devices(kernel, net):
            for path in _NF_DEVICE_HOOKS:
                if kernel.has("net_device", path):
                    entries = kernel.member_u64(device, "net_device", path)
                    name = kernel.text(device + kernel.offset("net_device", "name"), 16)
                    yield from _hook_entries(kernel, entries, f"netfilter {path} of {name}")


def _hook_entries(kernel: LiveKernel, entries: int, where: str) -> Iterator[Hook]:
    if not entries:
        return
    count = kernel.u16(entries + kernel.offset("nf_hook_entries", "num_hook_entries"))
    if count > _MAX_HOOK_ENTRIES:
        raise StructureError("a netfilter chain is absurdly long", entries, got=count)
    first = entries + kernel.offset("nf_hook_entries", "hooks")
    for number in range(count):
        yield Hook(where, kernel.u64(first + number * kernel.size_of("nf_hook_entry")))


def packet_hooks(kernel: LiveKernel) -> Iterator[Hook]:
    """Yield who gets packets: taps, protocol handlers, and the handlers of devices."""
    member = kernel.offset("packet_type", "list")
    heads = [("ptype_all", _taps(kernel))]
    base = kernel.symbol("ptype_base")
    heads += [(f"ptype_base[{number}]", base + 16 * number) for number in range(_PTYPE_HASH_SIZE)]
    for name, head in heads:
        for entry in list_entries(kernel, head, member, limit=MAX_HOOKS):
            for field in ("func", "list_func"):
                target = kernel.member_u64(entry, "packet_type", field)
                if target:
                    yield Hook(f"{name}, {field}", target)
    for name, struct_name in (("inet_protos", "net_protocol"), ("inet6_protos", "inet6_protocol")):
        table = kernel.find_symbol(name)
        if table is not None:
            yield from _protocols(kernel, table, name, struct_name)
    for net in network_namespaces(kernel):
        for device in network_devices(kernel, net):
            target = kernel.member_u64(device, "net_device", "rx_handler")
            if target:
                name = kernel.text(device + kernel.offset("net_device", "name"), 16)
                yield Hook(f"rx_handler of {name}", target)


def _taps(kernel: LiveKernel) -> int:
    """Return the list of who taps every packet; it is in net_hotdata since Linux 6.9."""
    moved = kernel.find_symbol("net_hotdata")
    if moved is not None and kernel.has("net_hotdata", "ptype_all"):
        return moved + kernel.offset("net_hotdata", "ptype_all")
    return kernel.symbol("ptype_all")


def _protocols(kernel: LiveKernel, table: int, name: str, struct_name: str) -> Iterator[Hook]:
    for number in range(_MAX_INET_PROTOS):
        protocol = kernel.u64(table + 8 * number)
        if not protocol:
            continue
        for field in ("handler", "err_handler"):
            target = kernel.member_u64(protocol, struct_name, field)
            if target:
                yield Hook(f"{name}[{number}], {field}", target)


def notifier_hooks(kernel: LiveKernel) -> Iterator[Hook]:
    """Yield the callbacks of the notifier chains that rootkits like."""
    for name, head_type in _NOTIFIERS.items():
        head = kernel.find_symbol(name)
        if head is None:
            continue
        block = kernel.member_u64(head, head_type, "head")
        for _ in range(MAX_HOOKS):
            if not block:
                break
            yield Hook(name, kernel.member_u64(block, "notifier_block", "notifier_call"))
            block = kernel.member_u64(block, "notifier_block", "next")
        else:
            raise StructureError("a notifier chain does not end", head)


def lsm_hooks(kernel: LiveKernel) -> Iterator[Hook]:
    """Yield every security hook: in lists, or since Linux 6.12 in a table of static calls."""
    heads = kernel.find_symbol("security_hook_heads")
    if heads is None:
        for slot in security_calls(kernel):
            if slot.entry:
                target = kernel.member_u64(slot.key, "static_call_key", "func")
                yield Hook(f"security call {slot.number}", target)
        return
    member = kernel.offset("security_hook_list", "list")
    for number in range(kernel.size_of("security_hook_heads") // 8):
        head = heads + 8 * number
        for entry in hlist_entries(kernel, head, member, limit=1024):
            target = kernel.member_u64(entry, "security_hook_list", "hook")
            name = kernel.text(kernel.member_u64(entry, "security_hook_list", "lsm"), 32)
            yield Hook(f"security hook {number} of {name}", target)


@dataclass(frozen=True, slots=True)
class SecurityCall:
    """One ``struct lsm_static_call``: its place in the table and the hook that took it (or 0)."""

    number: int
    address: int
    key: int
    entry: int
    active: int


def security_calls(kernel: LiveKernel) -> list[SecurityCall]:
    """Return every slot of static_calls_table (security/security.c, since Linux 6.12)."""
    table = kernel.symbol("static_calls_table")
    size = kernel.size_of("lsm_static_calls_table")
    step = kernel.size_of("lsm_static_call")
    if not step or size > 1 << 20:
        raise StructureError("the table of security calls has an absurd size", table, got=size)
    at = {name: kernel.offset("lsm_static_call", name) for name in ("key", "hl", "active")}
    data = kernel.read(table, size)

    def pointer(place: int) -> int:
        return int.from_bytes(data[place : place + 8], "little")

    return [
        SecurityCall(
            number=place // step,
            address=table + place,
            key=pointer(place + at["key"]),
            entry=pointer(place + at["hl"]),
            active=pointer(place + at["active"]),
        )
        for place in range(0, size - step + 1, step)
    ]


Kinds = Mapping[str, tuple[FactSpec, Callable[[LiveKernel], Iterator[Hook]]]]
"""Kinds of hooks by the id of their fact, each with its walk."""

KINDS: Kinds = {
    spec.id: (spec, walk)
    for spec, walk in (
        (hook_spec("ftrace", "ftrace callback"), ftrace_hooks),
        (hook_spec("kprobes", "kprobe handler"), kprobe_hooks),
        (hook_spec("tracepoints", "tracepoint probe"), tracepoint_hooks),
        (hook_spec("netfilter", "netfilter hook"), netfilter_hooks),
        (hook_spec("packets", "packet handler"), packet_hooks),
        (hook_spec("notifiers", "notifier"), notifier_hooks),
        (hook_spec("lsm", "security hook"), lsm_hooks),
    )
}


def look(kernel: LiveKernel, kinds: Kinds = KINDS) -> Mapping[str, Look]:
    """Walk every kind once.  A kind that cannot be walked leaves the others alone."""
    code = CodeMap(kernel)
    looks: dict[str, Look] = {}
    for name, (_, walk) in kinds.items():
        try:
            looks[name] = _judge(code, walk(kernel))
        except (*WALK_ERRORS, FormatError) as error:
            looks[name] = Look({"walk": Anomaly({"walk": str(error)}, certain=False)})
    return looks


def _judge(code: CodeMap, hooks: Iterator[Hook]) -> Look:
    anomalies: dict[Hashable, Anomaly] = {}
    modules: dict[str, int] = {}
    count = 0
    for hook in hooks:
        count += 1
        module = code.module_at(hook.target)
        if module is not None:
            modules[module.name] = modules.get(module.name, 0) + 1
        problem = code.problem(hook.target, generated=True)
        if problem:
            anomalies[hook.where, hook.target] = Anomaly(
                {
                    "hook": hook.where,
                    "target": f"{hook.target:#x}",
                    "name": code.describe(hook.target),
                    "rule": problem,
                },
                certain=code.is_certain(hook.target),
            )
    details: dict[str, JsonValue] = {"hooks": count, "into_modules": dict(modules)}
    return Look(anomalies, details)


def collect(kernel: LiveKernel, observer: Observer, kinds: Kinds = KINDS) -> tuple[Finding, ...]:
    """Return a finding for each kind of hook."""
    specs = [spec for spec, _ in kinds.values()]
    return observer.settle_all(specs, kernel, lambda fresh: look(fresh, kinds))
