"""Which processor features the code shows, in the kernel's own words and in CPUID's.

Nothing here is copied from a kernel's headers: the kernel's own tables say what a number means.
``enum cpuid_leafs`` (in its BTF) has the word of each CPUID register, ``x86_cap_flags`` and
``x86_bug_flags`` (in its .rodata) the names that /proc/cpuinfo prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from undercroft.base import JsonValue
from undercroft.formats.kernel import KernelImage

_WORD = 32
_LEAF = re.compile(r"CPUID_([0-9A-F]{1,4}(?:_[0-9A-F]{4})?)(?:_([0-9A-F]))?_(E[ABCD]X)")
_MAX_NAME = 32


CpuidRegister = tuple[int, int, str]
"""One register of one CPUID leaf: leaf, subleaf, and EAX, EBX, ECX or EDX."""

Cpuid = Mapping[CpuidRegister, int]
"""What CPUID returns, as far as it is known."""

_FORCED: Mapping[tuple[int, str], frozenset[int]] = {
    (0x8000_0001, "ECX"): frozenset({8, 19, 22}),
    # 3DNOWPREFETCH, NODEID_MSR, TOPOEXT: cpu/amd.c
    (0x8000_0008, "EBX"): frozenset({29}),  # BTC_NO: cpu/amd.c, init_amd_zen*
    (0x8000_0021, "EAX"): frozenset({2, 5, 27, 28, 29}),
    # LFENCE_RDTSC, VERW_CLEAR, SBPB, IBPB_BRTYPE, SRSO_NO: cpu/amd.c, cpu/bugs.c
}
"""Features with a CPUID bit that Linux may set where CPUID does not (set_cpu_cap,
setup_force_cpu_cap in arch/x86/kernel/cpu)."""

_BY_STATE: Mapping[tuple[int, str], frozenset[int]] = {
    (1, "EDX"): frozenset({9, 28}),  # APIC (while it is enabled), HTT (topology)
    (1, "ECX"): frozenset({27}),  # OSXSAVE: CR4
    (7, "ECX"): frozenset({4}),  # OSPKE: CR4
    (0x8000_0001, "ECX"): frozenset({1}),  # CmpLegacy: topology
}
"""Bits that CPUID computes when it is asked: no model has them (Intel SDM vol. 2, CPUID)."""


class FeatureNames:
    """What the feature numbers of one kernel mean."""

    def __init__(self, image: KernelImage) -> None:
        leafs = image.btf.enumerators("cpuid_leafs")
        self.words: int = leafs.pop("NR_CPUID_WORDS", len(leafs))
        """How many words are features; the bits behind them are the processor's bugs."""
        self._registers: dict[int, CpuidRegister] = {}
        for name, word in leafs.items():
            if (register := _register(name)) is not None:
                self._registers[word] = register
        self._names = _names(image, self.words)

    def register(self, feature: int) -> CpuidRegister | None:
        """Return where CPUID tells of a feature; None if only the kernel knows it."""
        return self._registers.get(feature // _WORD)

    def name(self, feature: int) -> str:
        """Return what /proc/cpuinfo calls a feature, else where CPUID has it, else its number."""
        if feature in self._names:
            return self._names[feature]
        register = self.register(feature)
        if register is None:
            return f"{feature // _WORD}*32+{feature % _WORD}"
        leaf, subleaf, where = register
        return f"cpuid {leaf:#x}.{subleaf} {where} bit {feature % _WORD}"


def _register(name: str) -> CpuidRegister | None:
    """Read ``CPUID_7_0_EBX`` or ``CPUID_8000_0001_EDX``; None for the kernel's own words."""
    match = _LEAF.fullmatch(name)
    if match is None:
        return None
    leaf = int(match[1].replace("_", ""), 16)
    return leaf, int(match[2] or "0", 16), match[3]


def _names(image: KernelImage, words: int) -> dict[int, str]:
    found: dict[int, str] = {}
    for symbol, first, count in (
        ("x86_cap_flags", 0, words * _WORD),
        ("x86_bug_flags", words * _WORD, 2 * _WORD),
    ):
        table = image.find(symbol)
        if table is None:
            continue
        after = image.symbols.addresses > np.uint64(image.link_base + table)
        if np.any(after):
            end = int(image.symbols.addresses[after].min()) - image.link_base
            count = min(count, (end - table) // 8)
        raw = image.read(table, 8 * count)
        for number in range(count):
            at = int.from_bytes(raw[8 * number : 8 * number + 8], "little") - image.link_base
            if 0 <= at < len(image.memory) - _MAX_NAME:
                text = image.read(at, _MAX_NAME).split(b"\0", 1)[0]
                found[first + number] = text.decode("ascii", errors="replace")
    return found


@dataclass(frozen=True, slots=True)
class Comparison:
    """The features that the code shows, beside what others say of them; all by number.

    ``impossible``: the code has them, and the hypervisor does not show them to the guest.
    ``denied``: the code and the kernel's own boot_cpu_data disagree.
    ``withheld``: the hypervisor shows them, and the kernel decided against them.
    ``compared`` counts those that CPUID tells of; None if there was no CPUID to ask.
    """

    names: FeatureNames
    impossible: tuple[int, ...]
    denied: tuple[int, ...]
    withheld: tuple[int, ...]
    compared: int | None

    def as_json(self) -> dict[str, JsonValue]:
        """Return the comparison as a JSON object, with names."""
        lists = {"impossible": self.impossible, "denied": self.denied, "withheld": self.withheld}
        return {
            **{key: [self.names.name(bit) for bit in bits] for key, bits in lists.items()},
            "compared_with_cpuid": self.compared,
        }


def compare(
    names: FeatureNames, shown: Mapping[int, bool], claimed: Iterable[int], cpuids: Iterable[Cpuid]
) -> Comparison:
    """Compare the vector that the code shows with boot_cpu_data's words and with CPUID.

    ``claimed`` are the 32-bit words of ``x86_capability``; ``cpuids`` what each vCPU is shown.
    """
    words = list(claimed)
    machines = list(cpuids)
    impossible, denied, withheld = [], [], []
    compared = 0
    for bit, on in sorted(shown.items()):
        word, place = divmod(bit, _WORD)
        if word < len(words) and bool(words[word] >> place & 1) != on:
            denied.append(bit)
        register = names.register(bit)
        if register is None or _is_computed(register, place):
            continue
        answers = {
            bool(machine[register] >> place & 1) for machine in machines if register in machine
        }
        if not answers:
            continue
        compared += 1
        if on and False in answers and not _may_be_forced(register, place):
            impossible.append(bit)
        if not on and answers == {True}:
            withheld.append(bit)
    return Comparison(
        names, tuple(impossible), tuple(denied), tuple(withheld), compared if machines else None
    )


def _may_be_forced(register: CpuidRegister, place: int) -> bool:
    return place in _FORCED.get((register[0], register[2]), frozenset())


def _is_computed(register: CpuidRegister, place: int) -> bool:
    return place in _BY_STATE.get((register[0], register[2]), frozenset())
