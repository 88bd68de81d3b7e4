"""The patch passes on a module: module_finalize() and what follows, with the kernel's choices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from undercroft.formats.kernel import Sites
from undercroft.formats.kernel.kallsyms import SymbolTable
from undercroft.formats.kernel.sites import StaticCallSites
from undercroft.reference.kernel import (
    call_thunks,
    ftrace,
    its,
    jump_labels,
    modules,
    paravirt,
    retpolines,
    returns,
    simple_sites,
    static_calls,
)
from undercroft.reference.kernel.alternatives import Alternatives, CallTargets
from undercroft.reference.kernel.canvas import Canvas, Positions
from undercroft.reference.kernel.guest import GuestValues
from undercroft.reference.kernel.modules import PlacedModule
from undercroft.reference.kernel.replay import Replay
from undercroft.reference.kernel.run_time import OVERLAYS, RULES, RunTime, RunTimeState, paint


@dataclass(slots=True)
class ModuleReplay:
    """A module's expected code.  ``symbols`` name its positions (modulo 2**64)."""

    placed: PlacedModule
    canvas: Canvas
    pristine: Canvas
    run_time: RunTime
    symbols: SymbolTable
    kernel: Replay
    its_pages: frozenset[int] = frozenset()
    """The pages (position >> 12) of the module's ITS thunks."""
    state: RunTimeState | None = None

    def follow(self, values: GuestValues, live: Canvas, narrowed: RunTime | None = None) -> None:
        """Repaint what follows the guest's run-time state, or only the ``narrowed`` sites."""
        self.canvas.lift(OVERLAYS)
        if narrowed is None:
            self.canvas.layers[:] = [
                layer for layer in self.canvas.layers if layer.rule not in RULES
            ]
        kernel = self.kernel
        self.state = paint(
            kernel.image,
            self.run_time if narrowed is None else narrowed,
            self.canvas,
            values,
            live,
            kernel.records,
            some=narrowed is not None,
            uniprocessor=kernel.state is not None and kernel.state.uniprocessor,
        )


def replay_module(
    placed: PlacedModule, kernel: Replay, live: Canvas, values: GuestValues
) -> ModuleReplay:
    """Patch a relocated module as module_finalize() does.

    Features that only this module depends on are inferred from it and added to the kernel's
    vector: the next module has to agree.
    """
    canvas = placed.text
    pristine = Canvas(canvas.start, bytearray(canvas.data))
    image = kernel.image
    sites = modules.sites(placed, image)
    symbols = placed.symbols()
    pages = _boot_passes(sites, kernel, canvas, live, values)
    trampolines = _trampolines(symbols)
    run_time = RunTime(
        labels=jump_labels.decode(sites.jump_table, pristine),
        calls=static_calls.decode([sites.static_calls, trampolines], pristine),
        call_constants=static_calls.constants(image, kernel.choices.returns),
        traced=np.sort(ftrace.decode(sites.mcount, pristine, image.offset("__fentry__"))),
        locks=simple_sites.decode_locks(sites.smp_locks, pristine, _locks_end(placed, kernel)),
        returns=kernel.choices.returns,
        thunks=kernel.choices.call_thunks,
        functions=_functions(symbols),
        pads=(canvas, kernel.canvas),
    )
    return ModuleReplay(placed, canvas, pristine, run_time, symbols, kernel, pages)


def _boot_passes(
    sites: Sites, kernel: Replay, canvas: Canvas, live: Canvas, values: GuestValues
) -> frozenset[int]:
    """Apply module_finalize()'s passes; return the pages of the module's ITS thunks."""
    image, choices = kernel.image, kernel.choices
    vendor = paravirt.vendor(image)
    nop = image.find("_paravirt_nop") or 0
    slots = paravirt.infer(sites.paravirt, live, vendor, nop) | choices.paravirt
    paravirt.apply(sites.paravirt, canvas, slots, vendor.table, nop)
    table = retpolines.decode_sites(image, sites.retpolines, canvas)
    retpolines.apply(table, canvas, choices.retpolines)
    pages: frozenset[int] = frozenset()
    if choices.its:
        pages = its.apply(image, table, canvas, live, values)
    returns.apply(sites.returns, canvas, choices.returns)
    targets = None
    bug, nop_function = image.find("BUG_func"), image.find("nop_func")
    if bug is not None and nop_function is not None:
        targets = CallTargets(choices.paravirt, bug, nop_function)
    alternatives = Alternatives(sites.alternatives, canvas, targets)
    shown = alternatives.infer(live)
    for bit, on in shown.items():
        surely = bit not in alternatives.guessed
        if bit not in choices.features or (surely and bit in choices.guessed):
            choices.features[bit] = on
            (choices.guessed.discard if surely else choices.guessed.add)(bit)
    alternatives.apply(choices.features)
    thunks = choices.call_thunks
    if thunks is not None:
        instr = sites.alternatives.instr
        call_thunks.apply_calls_out(sites.calls, instr, canvas, kernel.canvas, live, thunks)
        call_thunks.apply(sites.calls, instr, canvas, thunks)
    simple_sites.seal_endbr(sites.endbr_seal, canvas)
    return pages


def _functions(symbols: SymbolTable) -> Positions:
    text = np.frombuffer(symbols.kinds, dtype=np.uint8) == ord("t")
    return np.unique(symbols.addresses[text].astype(np.int64))


def _trampolines(symbols: SymbolTable) -> StaticCallSites:
    pairs = [
        (symbols.address(name), key)
        for name in symbols.with_prefix("__SCT__")
        if (key := symbols.get("__SCK__" + name.removeprefix("__SCT__"))) is not None
    ]
    return StaticCallSites(
        site=np.array([site for site, _ in pairs], dtype=np.uint64).astype(np.int64),
        key=np.array([key for _, key in pairs], dtype=np.uint64).astype(np.int64),
        tail=np.ones(len(pairs), dtype=np.bool_),
    )


def _locks_end(placed: PlacedModule, kernel: Replay) -> int:
    """Return where LOCK prefixes stop being patched: until 6.4 with the section .text."""
    text = placed.module.elf.by_name.get(".text")
    if kernel.image.sites.alternatives.wide or text is None:
        return placed.text.stop
    address = placed.address(text.index)
    return placed.position(address) + text.size if address is not None else placed.text.start
