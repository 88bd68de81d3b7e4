"""The pipeline: from the package's image to the code that must stand in memory.

relocate -> the boot-time passes in the kernel's order -> the passes that follow run-time state.
What the kernel decided once (features, thunks) is inferred from the live code; what it decides
all the time (static keys, static calls, tracing) is read from the guest's variables.  Either
only ever selects among byte strings that the vendor's image and rules allow.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from undercroft.base import JsonValue
from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel import (
    call_thunks,
    ftrace,
    its,
    jump_labels,
    paravirt,
    retpolines,
    returns,
    simple_sites,
    static_calls,
)
from undercroft.reference.kernel.alternatives import Alternatives, infer_call_targets
from undercroft.reference.kernel.canvas import Canvas
from undercroft.reference.kernel.ftrace import Records
from undercroft.reference.kernel.guest import GuestValues
from undercroft.reference.kernel.relocate import relocate
from undercroft.reference.kernel.run_time import OVERLAYS, RULES, RunTime, RunTimeState, paint


@dataclass(frozen=True, slots=True)
class BootChoices:
    """What the kernel decided once, while it booted, as its own code shows."""

    features: dict[int, bool]
    returns: returns.ReturnChoice
    retpolines: retpolines.Choice
    paravirt: dict[int, int]
    call_thunks: call_thunks.CallThunks | None
    guessed: set[int]
    """Features that the kernel's code does not show, and that a module's may."""
    its: bool = False
    """Whether indirect branches in a lower half of a cache line go through thunks."""
    its_pages: frozenset[int] = frozenset()
    """The pages (position >> 12) of the kernel's own ITS thunks."""

    def shown_features(self) -> dict[int, bool]:
        """Return the features that some site shows, without those that were only guessed."""
        return {bit: on for bit, on in self.features.items() if bit not in self.guessed}

    def as_json(self) -> dict[str, JsonValue]:
        """Return the choices as a JSON object; features are listed by number."""
        return {
            "features_set": [bit for bit, on in self.features.items() if on],
            "features_clear": [bit for bit, on in self.features.items() if not on],
            "features_not_shown": sorted(self.guessed),
            "returns": self.returns.name,
            "indirect_branches": self.retpolines.mode.value,
            "its": self.its,
            "call_depth": self.call_thunks is not None,
            "paravirt_slots": len(self.paravirt),
        }


@dataclass(slots=True)
class Replay:
    """A kernel's expected memory, and what is needed to follow its run-time state.

    ``canvas`` starts at position 0.  ``pristine`` is the relocated image before any patching.
    """

    image: KernelImage
    canvas: Canvas
    pristine: Canvas
    choices: BootChoices
    run_time: RunTime
    state: RunTimeState | None = None
    records: Records = field(default_factory=Records)
    _statistics: dict[str, JsonValue] | None = None

    def statistics(self) -> dict[str, JsonValue]:
        """Return, by rule, how many sites it decided and at how many the bytes changed."""
        if self._statistics is not None:
            return self._statistics
        sites: dict[str, dict[str, int]] = {}
        for layer in self.canvas.layers:
            entry = sites.setdefault(layer.rule.label, {"sites": 0, "changed": 0})
            entry["sites"] += len(layer.sites)
            entry["changed"] += layer.changed(self.pristine, self.canvas)
        self._statistics = dict(sites)
        return self._statistics

    def follow(self, values: GuestValues, live: Canvas, narrowed: RunTime | None = None) -> None:
        """Repaint what follows the guest's run-time state, or only the ``narrowed`` sites."""
        self._statistics = None
        self.canvas.lift(OVERLAYS)
        mine = self.run_time if narrowed is None else narrowed
        if narrowed is None:
            self.canvas.layers[:] = [
                layer for layer in self.canvas.layers if layer.rule not in RULES
            ]
        before = len(self.canvas.layers)
        known = None if narrowed is None or self.state is None else self.state.uniprocessor
        state = paint(
            self.image,
            mine,
            self.canvas,
            values,
            live,
            self.records,
            some=narrowed is not None,
            uniprocessor=known,
        )
        if narrowed is None or self.state is None:
            self.state = state
        else:  # keep the whole kernel's layers and counts; take what was read in full
            self.canvas.layers[before:] = [
                layer for layer in self.canvas.layers[before:] if layer.rule in OVERLAYS
            ]
            self.state = replace(
                self.state, probes=state.probes, moving=state.moving, under_way=state.under_way
            )


def replay(image: KernelImage, slide: int, live: Canvas, values: GuestValues) -> Replay:
    """Build the expected memory of a kernel moved by ``slide``, as ``live`` shows it.

    ``live`` holds the guest's code from position 0 on.  Raises MemoryFault if a variable that
    decides a site is not mapped.
    """
    canvas = Canvas(0, relocate(image, slide))
    pristine = Canvas(0, bytearray(canvas.data))
    sites = image.sites
    choices = boot_passes(image, canvas, live, values)
    for constant in sites.runtime_const:
        value = values.read(image.offset(constant.symbol), constant.size)
        simple_sites.runtime_const(constant.sites, canvas, value)
    calls = [sites.static_calls, static_calls.trampolines(image)]
    run_time = RunTime(
        labels=jump_labels.decode(sites.jump_table, pristine),
        calls=static_calls.decode(calls, pristine),
        call_constants=static_calls.constants(image, choices.returns),
        traced=np.sort(ftrace.decode(sites.mcount, pristine, image.offset("__fentry__"))),
        locks=simple_sites.decode_locks(sites.smp_locks, pristine, image.text_size),
        returns=choices.returns,
        thunks=choices.call_thunks,
        functions=call_thunks.functions(image),
    )
    run_time = run_time.below(image.text_size)
    result = Replay(image, canvas, pristine, choices, run_time)
    result.follow(values, live)
    return result


def boot_passes(
    image: KernelImage, canvas: Canvas, live: Canvas, values: GuestValues
) -> BootChoices:
    """Apply what alternative_instructions() applies, in its order."""
    sites = image.sites
    vendor = paravirt.vendor(image)
    nop = image.find("_paravirt_nop") or 0
    slots = paravirt.infer(sites.paravirt, live, vendor, nop)
    paravirt.apply(sites.paravirt, canvas, slots, vendor.table, nop)
    table = retpolines.decode_sites(image, sites.retpolines, canvas)
    branches = retpolines.infer(image, table, canvas, live)
    direct = branches.mode is retpolines.Mode.INDIRECT and its.infer(table, canvas, live)
    retpolines.apply(table, canvas, branches)
    pages: frozenset[int] = frozenset()
    if direct:
        pages = its.apply(image, table, canvas, live, values)
    how = returns.infer(image, sites.returns, live)
    returns.apply(sites.returns, canvas, how)
    tracking = branches.mode is retpolines.Mode.CALL_DEPTH
    thunks = call_thunks.load(image, canvas) if tracking else None
    pad = thunks.size if thunks is not None else 0
    targets = infer_call_targets(image, sites.alternatives, canvas, live, vendor, pad)
    alternatives = Alternatives(sites.alternatives, canvas, targets)
    features = alternatives.infer(live)
    alternatives.apply(features)
    if thunks is not None:
        call_thunks.apply(sites.calls, sites.alternatives.instr, canvas, thunks)
    simple_sites.seal_endbr(sites.endbr_seal, canvas)
    paravirt_slots = dict(targets.by_slot) if targets else slots
    return BootChoices(
        features,
        how,
        branches,
        paravirt_slots,
        thunks,
        set(alternatives.guessed),
        its=direct,
        its_pages=pages,
    )
