"""Every kind of hook: where it leads, in a kernel made by hand."""

from __future__ import annotations

import struct
from contextlib import nullcontext
from typing import Any

import pytest

from undercroft.base import Finding, Outcome
from undercroft.securekernel.linux import hooks
from undercroft.securekernel.linux.facts import Observer
from undercroft.securekernel.linux.live import StructureError
from undercroft.testing.fakecode import BAD_MODULE, GOOD_MODULE, FakeCode
from undercroft.testing.fakekernel import Layouts

LAYOUTS: Layouts = {
    "kprobe": (
        128,
        {"hlist": 0, "list": 16, "addr": 40, "pre_handler": 64, "post_handler": 72},
    ),
    "kretprobe": (168, {"kp": 0, "handler": 128, "entry_handler": 136}),
    "tracepoint": (72, {"name": 0, "funcs": 64}),
    "tracepoint_func": (24, {"func": 0}),
    "net": (
        512,
        {
            "list": 0,
            "dev_base_head": 16,
            "nf.hooks_ipv4": 104,
            "nf.hooks_ipv6": 144,
            "nf.hooks_arp": 184,
            "nf.hooks_bridge": 208,
        },
    ),
    "net_device": (256, {"name": 0, "dev_list": 64, "nf_hooks_ingress": 96, "rx_handler": 104}),
    "nf_hook_entries": (8, {"num_hook_entries": 0, "hooks": 8}),
    "nf_hook_entry": (16, {"hook": 0}),
    "packet_type": (72, {"func": 16, "list_func": 24, "list": 56}),
    "net_protocol": (24, {"handler": 0, "err_handler": 8}),
    "inet6_protocol": (24, {"handler": 0, "err_handler": 8}),
    "atomic_notifier_head": (16, {"head": 8}),
    "blocking_notifier_head": (48, {"head": 40}),
    "raw_notifier_head": (8, {"head": 0}),
    "notifier_block": (24, {"notifier_call": 0, "next": 8}),
    "security_hook_heads": (32, {}),
    "security_hook_list": (40, {"list": 0, "head": 16, "hook": 24, "lsm": 32}),
}


class Guest(FakeCode):
    """A kernel with one lawful hook of each kind."""

    def __init__(self, layouts: Layouts = LAYOUTS) -> None:
        super().__init__(layouts)
        good = self.function(1)
        self.ops = self.make("ftrace_ops", func=good, next=self.symbol("ftrace_list_end"))
        self.guest.put_u64(self.symbol("ftrace_ops_list"), self.ops)
        self.table = self.symbol("kprobe_table", 512)
        names = self.image.symbols.names
        names["aggr_pre_handler"] = names["f8"]
        names["pre_handler_kretprobe"] = names["f9"]
        self.probe = self.make("kprobe", pre_handler=good, addr=self.function(5))
        self.link_hlist(self.table + 8 * 7, [self.probe])
        self._tracepoint()
        self._network()
        self.notifier = self.make("notifier_block", notifier_call=good)
        self.guest.put_u64(self.symbol("keyboard_notifier_list", 16) + 8, self.notifier)
        self.guest.put_u64(self.symbol("reboot_notifier_list", 48) + 40, 0)
        self.guest.put_u64(self.symbol("netdev_chain", 8), 0)
        heads = self.symbol("security_hook_heads", 32)
        self.security = self.make("security_hook_list", hook=good, lsm=self.string("yama"))
        self.link_hlist(heads + 8, [self.security])

    def _tracepoint(self) -> None:
        start = self.symbol("__start___tracepoints_ptrs", 8)
        self.image.symbols.names["__stop___tracepoints_ptrs"] = start - self.slide + 8
        self.funcs = self.alloc(24 * 3)
        self.guest.put_u64(self.funcs, self.function(1))
        used, unused = (self.symbol(f"__tracepoint_{name}", 72) for name in ("used", "unused"))
        self.put(used, "tracepoint", "funcs", self.funcs)
        self.put(used, "tracepoint", "name", self.string("sys_enter"))
        for number, tracepoint in enumerate((used, unused)):
            place = start + 4 * number
            self.guest.write(place, struct.pack("<i", tracepoint - place))

    def _network(self) -> None:
        net = self.make("net")
        self.link_list(self.symbol("net_namespace_list", 16), [net])
        self.device = self.make("net_device")
        self.guest.write(self.device, b"eth0")
        self.link_list(net + 16, [self.device + 64])
        self.entries = self.alloc(8 + 16 * 2)
        self.guest.write(self.entries, struct.pack("<H", 2))
        for number in range(2):
            self.guest.put_u64(self.entries + 8 + 16 * number, GOOD_MODULE)
        self.guest.put_u64(net + 104 + 8 * 1, self.entries)
        for number in range(16):
            self.link_list(self.symbol("ptype_base", 256) + 16 * number, [])
        self.packet = self.make("packet_type", func=self.function(1))
        self.link_list(self.symbol("ptype_all", 16), [self.packet + 56])
        self.protocol = self.make("net_protocol", handler=self.function(1))
        self.guest.put_u64(self.symbol("inet_protos", 2048) + 8 * 6, self.protocol)

    def findings(self) -> dict[str, Finding]:
        found = hooks.collect(self.kernel(), Observer(nullcontext, lambda _: None, (0, 1)))
        return {one.id.removeprefix("kernel.hooks."): one for one in found}

    def only(self, kind: str) -> dict[str, Any]:
        findings = self.findings()
        failed = {name for name, one in findings.items() if one.outcome is not Outcome.PASS}
        assert failed == {kind}
        assert findings[kind].outcome is Outcome.FAIL
        anomalies = findings[kind].details["anomalies"]
        assert isinstance(anomalies, list)
        (anomaly,) = anomalies
        return dict(anomaly)


@pytest.fixture
def fake() -> Guest:
    return Guest()


def test_lawful_hooks_pass_and_are_counted(fake: Guest) -> None:
    findings = fake.findings()
    assert all(one.outcome is Outcome.PASS for one in findings.values())
    assert {name: one.details["hooks"] for name, one in findings.items()} == {
        "ftrace": 1,
        "kprobes": 1,
        "tracepoints": 1,
        "netfilter": 2,
        "packets": 2,
        "notifiers": 1,
        "lsm": 1,
    }
    assert findings["netfilter"].details["into_modules"] == {"good": 2}


def test_an_ftrace_callback(fake: Guest) -> None:
    fake.put(fake.ops, "ftrace_ops", "func", BAD_MODULE + 0x20)
    found = fake.only("ftrace")
    assert found["name"] == "[bad]+0x20"
    assert "not signed" in found["rule"]


@pytest.mark.parametrize("handler", ["pre_handler", "post_handler"])
def test_a_kprobe(fake: Guest, handler: str) -> None:
    fake.put(fake.probe, "kprobe", handler, BAD_MODULE)
    assert fake.only("kprobes")["hook"] == f"kprobe at f5, {handler}"


def test_probes_that_share_an_address(fake: Guest) -> None:
    fake.put(fake.probe, "kprobe", "pre_handler", fake.function(8))
    first = fake.make("kprobe", pre_handler=fake.function(1))
    second = fake.make("kprobe", pre_handler=BAD_MODULE, addr=fake.function(5))
    fake.link_list(fake.probe + 16, [first + 16, second + 16])
    assert fake.only("kprobes")["target"] == f"{BAD_MODULE:#x}"


@pytest.mark.parametrize("handler", ["handler", "entry_handler"])
def test_a_kretprobe(fake: Guest, handler: str) -> None:
    probe = fake.make("kretprobe")
    fake.put(probe, "kprobe", "pre_handler", fake.function(9))
    fake.put(probe, "kprobe", "addr", fake.function(5))
    fake.put(probe, "kretprobe", handler, BAD_MODULE)
    fake.link_hlist(fake.table, [probe])
    assert fake.only("kprobes")["hook"] == f"kretprobe at f5, {handler}"


def test_a_tracepoint(fake: Guest) -> None:
    fake.guest.put_u64(fake.funcs + 24, BAD_MODULE)
    assert fake.only("tracepoints")["hook"] == "tracepoint sys_enter"


def test_a_tracepoint_that_does_not_end_is_unknown(fake: Guest) -> None:
    funcs = fake.alloc(24 * 300)
    for number in range(300):
        fake.guest.put_u64(funcs + 24 * number, fake.function(1))
    used = fake.symbol("__tracepoint_used")
    fake.put(used, "tracepoint", "funcs", funcs)
    assert fake.findings()["tracepoints"].outcome is Outcome.UNKNOWN


def test_a_netfilter_hook(fake: Guest) -> None:
    fake.guest.put_u64(fake.entries + 8 + 16, BAD_MODULE)
    assert fake.only("netfilter")["hook"] == "netfilter ipv4 hook 1"


def test_a_netfilter_hook_of_a_device(fake: Guest) -> None:
    entries = fake.alloc(24)
    fake.guest.write(entries, struct.pack("<H", 1))
    fake.guest.put_u64(entries + 8, BAD_MODULE)
    fake.put(fake.device, "net_device", "nf_hooks_ingress", entries)
    assert fake.only("netfilter")["hook"] == "netfilter nf_hooks_ingress of eth0"


@pytest.mark.parametrize("field", ["func", "list_func"])
def test_a_packet_tap(fake: Guest, field: str) -> None:
    fake.put(fake.packet, "packet_type", field, BAD_MODULE)
    assert fake.only("packets")["hook"] == f"ptype_all, {field}"


def test_a_protocol_handler(fake: Guest) -> None:
    fake.put(fake.protocol, "net_protocol", "err_handler", BAD_MODULE)
    assert fake.only("packets")["hook"] == "inet_protos[6], err_handler"


def test_a_device_handler(fake: Guest) -> None:
    fake.put(fake.device, "net_device", "rx_handler", BAD_MODULE)
    assert fake.only("packets")["hook"] == "rx_handler of eth0"


def test_a_notifier(fake: Guest) -> None:
    block = fake.make("notifier_block", notifier_call=BAD_MODULE)
    fake.put(fake.notifier, "notifier_block", "next", block)
    assert fake.only("notifiers")["hook"] == "keyboard_notifier_list"


def test_a_security_hook(fake: Guest) -> None:
    fake.put(fake.security, "security_hook_list", "hook", fake.stray())
    assert fake.only("lsm")["hook"] == "security hook 1 of yama"


def test_a_hook_into_the_middle_of_a_function(fake: Guest) -> None:
    fake.put(fake.ops, "ftrace_ops", "func", fake.function(1) + 5)
    assert "middle" in fake.only("ftrace")["rule"]


def test_absurd_lengths_are_refused(fake: Guest) -> None:
    fake.guest.write(fake.entries, struct.pack("<H", 2000))
    with pytest.raises(StructureError, match="absurdly long"):
        list(hooks.netfilter_hooks(fake.kernel()))
    fake.put(fake.notifier, "notifier_block", "next", fake.notifier)
    with pytest.raises(StructureError, match="does not end"):
        list(hooks.notifier_hooks(fake.kernel()))
    names = fake.image.symbols.names
    names["__stop___tracepoints_ptrs"] = names["__start___tracepoints_ptrs"] - 8
    with pytest.raises(StructureError, match="tracepoints"):
        list(hooks.tracepoint_hooks(fake.kernel()))


def test_a_kernel_without_some_kinds(fake: Guest) -> None:
    for name in ("kprobe_table", "inet_protos", "keyboard_notifier_list"):
        del fake.image.symbols.names[name]
    assert all(one.outcome is Outcome.PASS for one in fake.findings().values())


def test_a_kind_that_cannot_be_walked_leaves_the_others_alone(fake: Guest) -> None:
    del fake.image.symbols.names["security_hook_heads"]
    findings = fake.findings()
    assert {name for name, one in findings.items() if one.outcome is not Outcome.PASS} == {"lsm"}
    assert findings["lsm"].outcome is Outcome.UNKNOWN


def test_taps_moved_with_linux_6_9() -> None:
    layouts = {**LAYOUTS, "net_hotdata": (64, {"ptype_all": 16})}
    fake = Guest(layouts)
    hot = fake.symbol("net_hotdata", 64)
    del fake.image.symbols.names["ptype_all"]
    fake.link_list(hot + 16, [fake.packet + 56])
    assert fake.findings()["packets"].outcome is Outcome.PASS
    fake.put(fake.packet, "packet_type", "func", BAD_MODULE)
    assert fake.only("packets")["hook"] == "ptype_all, func"


def test_security_hooks_are_static_calls_since_linux_6_12() -> None:
    layouts = {
        **LAYOUTS,
        "lsm_static_calls_table": (64, {}),
        "lsm_static_call": (32, {"key": 0, "hl": 16, "active": 24}),
        "static_call_key": (16, {"func": 0}),
    }
    fake = Guest(layouts)
    del fake.image.symbols.names["security_hook_heads"]
    table = fake.symbol("static_calls_table", 64)
    key = fake.make("static_call_key", func=fake.function(1))
    fake.put(table + 32, "lsm_static_call", "key", key)
    fake.put(table + 32, "lsm_static_call", "hl", 0xFFFF888000000000)
    findings = fake.findings()
    assert findings["lsm"].outcome is Outcome.PASS
    assert findings["lsm"].details["hooks"] == 1
    fake.put(key, "static_call_key", "func", BAD_MODULE)
    assert fake.only("lsm")["hook"] == "security call 1"
