"""Loaded modules, by every list that knows them, with the ranges they own.

Three views that the kernel keeps apart: the ``modules`` list (/proc/modules), the tree that
resolves addresses (``mod_tree``), and the kset behind /sys/module.  A live module is in all of
them.  A module that took itself out of all of them still has executable pages that nobody owns:
``closure`` finds those without any list.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from undercroft.base import Finding, JsonValue
from undercroft.securekernel.linux.containers import list_entries, rbtree_entries
from undercroft.securekernel.linux.facts import Anomaly, FactSpec, Look, Observer
from undercroft.securekernel.linux.live import LiveKernel, StructureError

MAX_MODULES = 1 << 14
MAX_MODULE_SIZE = 1 << 30
_NAME_LEN = 56
_STATE_LIVE = 0

_MOD_TEXT, _MOD_INIT_TEXT = 0, 4  # enum mod_mem_type, since 6.4
_MOD_MEM_TYPES = 7

LIST, TREE, KSET = "modules list", "mod_tree", "module kset"

SPEC = FactSpec(
    id="kernel.modules.crossview",
    passed="every view of the modules agrees",
    failed="a module is hidden: some views of the modules lack it",
    limits=(
        "a module that is in no list at all is found by its executable pages "
        "(kernel.closure.owned), not here",
    ),
)


@dataclass(frozen=True, slots=True)
class Span:
    """``size`` bytes at ``start``."""

    start: int
    size: int

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class Module:
    """What a ``struct module`` says of itself.  ``address`` is where it stands.

    ``text`` and ``init_text`` are the executable parts, in bytes; a part of size 0 is not there.
    """

    address: int
    name: str
    state: int
    text: Span
    init_text: Span
    taints: int
    has_sections: bool

    @property
    def live(self) -> bool:
        """Whether the module is loaded and neither coming nor going."""
        return self.state == _STATE_LIVE


def read_module(kernel: LiveKernel, address: int) -> Module:
    """Read the ``struct module`` at ``address``."""
    text, init_text = _text_spans(kernel, address)
    if text.size > MAX_MODULE_SIZE or init_text.size > MAX_MODULE_SIZE:
        raise StructureError("a module is absurdly large", address, got=text.size)
    return Module(
        address=address,
        name=kernel.text(address + kernel.offset("module", "name"), _NAME_LEN),
        state=kernel.member_u32(address, "module", "state"),
        text=text,
        init_text=init_text,
        taints=kernel.member_u64(address, "module", "taints"),
        has_sections=bool(kernel.member_u64(address, "module", "sect_attrs")),
    )


def _text_spans(kernel: LiveKernel, address: int) -> tuple[Span, Span]:
    if kernel.has("module", "mem"):  # since 6.4
        memory = address + kernel.offset("module", "mem")
        step = kernel.size_of("module_memory")
        text, init = (
            Span(
                kernel.member_u64(memory + step * kind, "module_memory", "base"),
                kernel.member_u32(memory + step * kind, "module_memory", "size"),
            )
            for kind in (_MOD_TEXT, _MOD_INIT_TEXT)
        )
        return text, init
    core, init = (
        Span(
            kernel.member_u64(address, "module", f"{part}.base"),
            kernel.member_u32(address, "module", f"{part}.text_size"),
        )
        for part in ("core_layout", "init_layout")
    )
    return core, init


def module_list(kernel: LiveKernel) -> Iterator[int]:
    """Yield the addresses in the ``modules`` list."""
    member = kernel.offset("module", "list")
    yield from list_entries(kernel, kernel.symbol("modules"), member, limit=MAX_MODULES)


def module_tree(kernel: LiveKernel) -> Iterator[int]:
    """Yield the modules in the address tree; a module has a node for each of its parts.

    The tree is latched: two copies, of which one is whole while the other changes.
    """
    tree = kernel.symbol("mod_tree") + kernel.offset("mod_tree_root", "root.tree")
    node = kernel.offset("mod_tree_node", "node")
    copies = []
    for which in (0, 1):
        copy = node + which * kernel.size_of("rb_node")
        entries = rbtree_entries(
            kernel,
            tree + which * kernel.size_of("rb_root"),
            copy,
            limit=MAX_MODULES * _MOD_MEM_TYPES,
        )
        copies.append([kernel.member_u64(entry, "mod_tree_node", "mod") for entry in entries])
    if set(copies[0]) != set(copies[1]):
        raise StructureError("the two copies of mod_tree differ", tree)
    yield from dict.fromkeys(copies[0])


def module_kset(kernel: LiveKernel) -> Iterator[int]:
    """Yield the modules behind /sys/module; built-in ones have no ``struct module``."""
    kset = kernel.u64(kernel.symbol("module_kset"))
    member = kernel.offset("kobject", "entry")
    kobj = kernel.offset("module_kobject", "kobj")
    for entry in list_entries(kernel, kset + kernel.offset("kset", "list"), member, limit=1 << 16):
        module = kernel.member_u64(entry - kobj, "module_kobject", "mod")
        if module:
            yield module


def modules_by_view(kernel: LiveKernel) -> dict[int, set[str]]:
    """Return every module that any view holds, with the views that do."""
    views: dict[int, set[str]] = {}
    for name, view in ((LIST, module_list), (TREE, module_tree), (KSET, module_kset)):
        for address in view(kernel):
            views.setdefault(address, set()).add(name)
    return views


def look(kernel: LiveKernel) -> Look:
    """Compare the views once."""
    anomalies: dict[Hashable, Anomaly] = {}
    names: list[JsonValue] = []
    for address, seen in modules_by_view(kernel).items():
        module = read_module(kernel, address)
        if not module.live:
            continue
        names.append(module.name)
        missing = [view for view in (LIST, TREE, KSET) if view not in seen]
        if not module.has_sections:
            missing.append("section attributes")
        if missing:
            anomalies[address] = Anomaly(
                {
                    "module": module.name,
                    "address": f"{address:#x}",
                    "text": f"{module.text.start:#x}+{module.text.size:#x}",
                    "seen_in": sorted(seen),
                    "missing_from": missing,
                }
            )
    return Look(anomalies, {"modules": sorted(names, key=str)})


def crossview(kernel: LiveKernel, observer: Observer) -> Finding:
    """Return ``kernel.modules.crossview``: whether any module is hidden from any view."""
    return observer.settle(SPEC, kernel, look)
