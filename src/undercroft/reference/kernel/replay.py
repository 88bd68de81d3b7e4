"""The pipeline: from the package's image to the code that must stand in memory.

relocate -> the boot-time passes in the kernel's order -> the passes that follow run-time state.
What the kernel decided once (features, thunks) is inferred from the live code; what it decides
all the time (static keys, static calls, tracing) is read from the guest's variables.  Either
only ever selects among byte strings that the vendor's image and rules allow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from undercroft.base import JsonValue
from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel import (
    call_thunks,
    ftrace,
    jump_labels,
    paravirt,
    retpolines,
    returns,
    simple_sites,
    static_calls,
)
from undercroft.reference.kernel.alternatives import Alternatives, infer_call_targets
from undercroft.reference.kernel.canvas import Canvas
from undercroft.reference.kernel.guest import GuestValues
from undercroft.reference.kernel.relocate import relocate
from undercroft.reference.kernel.rules import Rule


@dataclass(frozen=True, slots=True)
class BootChoices:
    """What the kernel decided once, while it booted, as its own code shows."""

    features: dict[int, bool]
    returns: returns.ReturnChoice
    retpolines: retpolines.Choice
    paravirt: dict[int, int]
    call_thunks: call_thunks.CallThunks | None

    def as_json(self) -> dict[str, JsonValue]:
        """Return the choices as a JSON object; features are listed by number."""
        return {
            "features_set": [bit for bit, on in self.features.items() if on],
            "features_clear": [bit for bit, on in self.features.items() if not on],
            "returns": self.returns.name,
            "indirect_branches": self.retpolines.mode.value,
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
    labels: jump_labels.JumpLabels
    calls: static_calls.StaticCalls
    call_constants: static_calls.StaticCallConstants
    traced: np.ndarray[tuple[int], np.dtype[np.int64]]
    early_returns: int = 0
    late_pads: int = 0
    uniprocessor: bool = False
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

    def notable(self) -> list[str]:
        """Return what is lawful but worth a policy's attention, one phrase each."""
        found = []
        if self.early_returns:
            found.append(f"{self.early_returns} static calls kept an early ret")
        if self.late_pads:
            found.append(f"{self.late_pads} call-depth pads were filled for modules")
        if self.uniprocessor:
            found.append("LOCK prefixes are patched out: one CPU")
        return found

    def follow(self, values: GuestValues, live: Canvas) -> None:
        """Repaint what follows the guest's run-time state."""
        keep = [layer for layer in self.canvas.layers if layer.rule not in _RUN_TIME]
        self.canvas.layers[:] = keep
        self._statistics = None
        sites = self.image.sites
        thunks = self.choices.call_thunks
        if thunks is not None:
            self.late_pads = call_thunks.late_pads(self.image, self.canvas, live, thunks)
        ftrace.apply(self.traced, self.canvas)
        ftrace.apply_calls(self.image, self.canvas, values, live, thunks)
        jump_labels.apply(self.labels, self.canvas, jump_labels.enabled(self.labels, values))
        self.early_returns = static_calls.apply(
            self.calls,
            self.canvas,
            static_calls.functions(self.calls, values),
            self.choices.returns,
            self.call_constants,
            live,
            thunks,
        )
        locks = sites.smp_locks
        self.uniprocessor = simple_sites.infer_uniprocessor(locks, self.pristine, live)
        simple_sites.smp_locks(
            locks, self.canvas, uniprocessor=self.uniprocessor, stop=self.image.text_size
        )


_RUN_TIME = frozenset((Rule.FTRACE, Rule.JUMP_LABEL, Rule.STATIC_CALL, Rule.SMP_LOCK))


def replay(image: KernelImage, slide: int, live: Canvas, values: GuestValues) -> Replay:
    """Build the expected memory of a kernel moved by ``slide``, as ``live`` shows it.

    ``live`` holds the guest's code from position 0 on.  Raises MemoryFault if a variable that
    decides a site is not mapped.
    """
    canvas = Canvas(0, relocate(image, slide))
    pristine = Canvas(0, bytearray(canvas.data))
    sites = image.sites
    labels = jump_labels.decode(sites.jump_table, canvas)
    calls = static_calls.decode([sites.static_calls, static_calls.trampolines(image)], canvas)
    traced = ftrace.decode(sites.mcount, canvas, image.offset("__fentry__"))
    choices = boot_passes(image, canvas, live)
    for constant in sites.runtime_const:
        value = values.read(image.offset(constant.symbol), constant.size)
        simple_sites.runtime_const(constant.sites, canvas, value)
    result = Replay(
        image=image,
        canvas=canvas,
        pristine=pristine,
        choices=choices,
        labels=labels,
        calls=calls,
        call_constants=static_calls.constants(image, choices.returns),
        traced=traced,
    )
    result.follow(values, live)
    return result


def boot_passes(image: KernelImage, canvas: Canvas, live: Canvas) -> BootChoices:
    """Apply what alternative_instructions() applies, in its order."""
    sites = image.sites
    vendor = paravirt.vendor(image)
    nop = image.find("_paravirt_nop") or 0
    slots = paravirt.infer(sites.paravirt, live, vendor, nop)
    paravirt.apply(sites.paravirt, canvas, slots, vendor.table, nop)
    table = retpolines.decode_sites(image, sites.retpolines, canvas)
    branches = retpolines.infer(image, table, canvas, live)
    retpolines.apply(table, canvas, branches)
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
        call_thunks.apply(image, canvas, thunks)
    simple_sites.seal_endbr(sites.endbr_seal, canvas)
    return BootChoices(features, how, branches, dict(targets.by_slot) if targets else slots, thunks)
