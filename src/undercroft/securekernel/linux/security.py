"""The guest's own defences: are its security hooks all in place, and are its switches as they were.

An LSM's hooks are static arrays in the kernel's image; the relocation table in the signed file
says where they are, by the heads that they point to.  Once an LSM has registered an array, every
entry of it must be reachable from its head; since Linux 6.12 it must have a static call that is
switched on and leads to it.

A switch is a variable that turns a defence on or off.  The kernel that was attested first is the
baseline: a switch may be turned up, but not down.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np

from undercroft.base import Finding, JsonValue
from undercroft.formats.kernel import KernelImage
from undercroft.securekernel.linux.containers import hlist_entries
from undercroft.securekernel.linux.facts import Anomaly, FactSpec, Look, Observer
from undercroft.securekernel.linux.hooks import security_calls
from undercroft.securekernel.linux.live import LiveKernel

HOOKS = FactSpec(
    "kernel.security.hooks",
    "every security hook that was registered is in place",
    "security hooks were removed",
    ("a hook that returns early because its LSM's own state was changed is still in place",),
)
SWITCHES = FactSpec(
    "kernel.security.switches",
    "no defence of the guest was turned down since it was first looked at",
    "a defence of the guest was turned down",
    ("what was turned down before the first look is reported as it is, not as a change",),
)


_HEADS = (
    ("security_hook_heads", "security_hook_heads", "head"),
    ("static_calls_table", "lsm_static_calls_table", "scalls"),
)
"""Where hooks are registered: the variable, its type, and the member that points there."""


@dataclass(frozen=True, slots=True)
class Switch:
    """A variable of ``size`` bytes; a value lower than the first one seen is a finding.

    ``inverted`` ones protect when they are low.
    """

    symbol: str
    size: int
    offset: tuple[str, str] | None = None
    inverted: bool = False


SWITCH_TABLE = (
    Switch("selinux_state", 1, ("selinux_state", "enforcing")),
    Switch("kernel_locked_down", 4),
    Switch("sig_enforce", 1),
    Switch("modules_disabled", 4),
    Switch("kexec_load_disabled", 4),
    Switch("audit_enabled", 4),
    Switch("ptrace_scope", 4),
    Switch("kptr_restrict", 4),
    Switch("dmesg_restrict", 4),
    Switch("randomize_va_space", 4),
    Switch("sysctl_unprivileged_bpf_disabled", 4),
    Switch("ima_appraise", 4),
    Switch("ima_policy_flag", 4),
    Switch("apparmor_initialized", 4),
    Switch("aa_g_profile_mode", 4, inverted=True),
)
"""Switches by symbol; one that a kernel has not is left out."""


def read_switches(kernel: LiveKernel) -> dict[str, int]:
    """Return the value of every switch that this kernel has."""
    values = {}
    for switch in SWITCH_TABLE:
        address = kernel.find_symbol(switch.symbol)
        if address is None or (switch.offset and not kernel.has(*switch.offset)):
            continue
        if switch.offset:
            address += kernel.offset(*switch.offset)
        raw = kernel.read(address, switch.size)
        values[switch.symbol] = int.from_bytes(raw, "little", signed=switch.size > 1)
    return values


class SecurityState:
    """The hooks of the signed kernel, and the switches as they were first seen."""

    def __init__(self, image: KernelImage) -> None:
        self._base = image.link_base
        self._entries = _hook_entries(image)
        self._first: Mapping[str, int] | None = None

    def hooks(self, kernel: LiveKernel, observer: Observer) -> Finding:
        """Return ``kernel.security.hooks``."""
        return observer.settle(HOOKS, kernel, self._look_at_hooks)

    def switches(self, kernel: LiveKernel, observer: Observer) -> Finding:
        """Return ``kernel.security.switches``; the first call sets the baseline."""
        return observer.settle(SWITCHES, kernel, self._look_at_switches)

    def _look_at_hooks(self, kernel: LiveKernel) -> Look:
        heads = kernel.find_symbol("security_hook_heads")
        if heads is None:
            return self._look_at_calls(kernel)
        member = kernel.offset("security_hook_list", "list")
        linked: set[int] = set()
        for number in range(kernel.size_of("security_hook_heads") // 8):
            linked |= set(hlist_entries(kernel, heads + 8 * number, member, limit=1024))
        anomalies: dict[Hashable, Anomaly] = {}
        registered: dict[str, int] = {}
        for position, number in self._entries:
            entry = self._base + position + kernel.slide
            name = kernel.member_u64(entry, "security_hook_list", "lsm")
            if not name:
                continue  # of an LSM that this boot does not use
            lsm = kernel.text(name, 32)
            registered[lsm] = registered.get(lsm, 0) + 1
            if entry not in linked:
                target = kernel.member_u64(entry, "security_hook_list", "hook")
                anomalies[entry] = Anomaly(
                    {"lsm": lsm, "hook": kernel.name_of(target), "number": number}
                )
        return Look(anomalies, {"hooks": sum(registered.values()), "by_lsm": dict(registered)})

    def _look_at_calls(self, kernel: LiveKernel) -> Look:
        """The hooks as static calls: lsm_static_call_init() in security/security.c."""
        taken = {slot.entry: slot for slot in security_calls(kernel) if slot.entry}
        anomalies: dict[Hashable, Anomaly] = {}
        registered: dict[str, int] = {}
        for position, number in self._entries:
            entry = self._base + position + kernel.slide
            lsm_id = kernel.member_u64(entry, "security_hook_list", "lsmid")
            if not lsm_id:
                continue  # of an LSM that this boot does not use
            lsm = kernel.text(kernel.member_u64(lsm_id, "lsm_id", "name"), 32)
            registered[lsm] = registered.get(lsm, 0) + 1
            hook = kernel.member_u64(entry, "security_hook_list", "hook")
            slot = taken.get(entry)
            rule = "it has no static call"
            if slot is not None:
                leads_to = kernel.member_u64(slot.key, "static_call_key", "func")
                enabled = kernel.s32(slot.active) > 0
                rule = "" if leads_to == hook else f"it leads to {kernel.name_of(leads_to)}"
                rule = rule if enabled else "it is switched off"
            if rule:
                anomalies[entry] = Anomaly(
                    {"lsm": lsm, "hook": kernel.name_of(hook), "number": number, "rule": rule}
                )
        return Look(anomalies, {"hooks": sum(registered.values()), "by_lsm": dict(registered)})

    def _look_at_switches(self, kernel: LiveKernel) -> Look:
        now = read_switches(kernel)
        if self._first is None:
            self._first = now
        anomalies: dict[Hashable, Anomaly] = {}
        for switch in SWITCH_TABLE:
            before, value = self._first.get(switch.symbol), now.get(switch.symbol)
            if before is None or value is None:
                continue
            if (value > before) if switch.inverted else (value < before):
                anomalies[switch.symbol] = Anomaly(
                    {"switch": switch.symbol, "expected": before, "got": value}
                )
        details: dict[str, JsonValue] = {"switches": dict(now)}
        return Look(anomalies, details)


def _hook_entries(image: KernelImage) -> list[tuple[int, int]]:
    """Return (position, hook number) of every ``struct security_hook_list`` in the file."""
    place = next(
        (place for place in _HEADS if image.symbols.get(place[0]) and place[1] in image.btf), None
    )
    if place is None:
        return []
    symbol, struct_name, member = place
    heads = image.symbols.address(symbol)
    size = image.btf.size_of(struct_name)
    head_at = image.btf.offset_of("security_hook_list", member)
    step = image.btf.size_of("lsm_static_call") if member == "scalls" else 8
    memory = np.frombuffer(image.memory, dtype=np.uint8)
    places = image.relocations.r64
    places = places[(places >= head_at) & (places + 8 <= len(memory))]
    values = memory[places[:, None] + np.arange(8)].copy().view("<u8").reshape(-1)
    inside = (values >= np.uint64(heads)) & (values < np.uint64(heads + size))
    return [
        (int(place) - head_at, (int(value) - heads) // step)
        for place, value in zip(places[inside], values[inside], strict=True)
    ]
