"""What is lawful but worth knowing: who traces, who probes, where calls lead out of the kernel.

Whether that is acceptable is a policy's question; here it is only said, completely.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from undercroft.base import JsonValue
from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.guest import NULL
from undercroft.reference.kernel.run_time import RunTimeState


@dataclass(frozen=True, slots=True)
class Notable:
    """One thing: its ``kind`` is stable, ``text`` is for a person.

    ``foreign`` are the virtual addresses it leads to that are not in the kernel's own text:
    whoever verifies the code there decides whether this is explained.
    """

    kind: str
    text: str
    foreign: tuple[int, ...] = ()

    def as_json(self) -> dict[str, JsonValue]:
        """Return it as a JSON object."""
        return {
            "kind": self.kind,
            "text": self.text,
            "foreign": [f"{address:#x}" for address in self.foreign],
        }


def notable(image: KernelImage, state: RunTimeState, base: int) -> list[Notable]:
    """Return everything notable about the kernel's run-time state; ``base`` is where _text is."""
    found: list[Notable] = []
    own = _in_text(image)
    if state.early_returns:
        text = f"{state.early_returns} static calls kept a ret from before the mitigations"
        found.append(Notable("static-call.early-ret", text))
    if state.late_pads:
        text = f"{state.late_pads} call-depth pads were filled after boot"
        found.append(Notable("call-thunk.late-pad", text))
    if state.uniprocessor:
        found.append(Notable("smp-lock.uniprocessor", "LOCK prefixes are patched out: one CPU"))
    if len(state.moving):
        text = f"{len(state.moving)} places were being patched as we looked"
        found.append(Notable("text-poke", text))
    found += _tracing(image, state, base, own)
    for probe in state.probes:
        where = _name(image, probe.site)
        foreign = [base + at for at in probe.handlers if not own(at)]
        kind = "optimised" if probe.detour is not None else "INT3"
        if probe.detour is not None:
            foreign.append(base + probe.detour)
        found.append(Notable("kprobe", f"a kprobe ({kind}) at {where}", tuple(foreign)))
    out = [base + at for at in state.call_targets.tolist() if at != NULL and not own(at)]
    if out:
        text = f"static calls lead to {len(out)} functions outside the kernel's text"
        found.append(Notable("static-call.foreign", text, tuple(out)))
    return found


def _tracing(
    image: KernelImage, state: RunTimeState, base: int, own: Callable[[int], bool]
) -> list[Notable]:
    tracing = state.tracing
    if not len(tracing.sites):
        return []
    who = ", ".join(dict.fromkeys(_name(image, ops.function) for ops in tracing.ops)) or "nobody"
    foreign = {base + at for at in set(tracing.targets.tolist()) if not own(at)}
    foreign |= {base + ops.function for ops in tracing.ops if not own(ops.function)}
    what = ", ".join(_name(image, site) for site in tracing.sites[:4].tolist())
    text = f"{len(tracing.sites)} functions are traced ({what}), by {who}"
    return [Notable("ftrace", text, tuple(sorted(foreign)))]


def _in_text(image: KernelImage) -> Callable[[int], bool]:
    return lambda position: 0 <= position < image.text_size


def _name(image: KernelImage, position: int) -> str:
    if not 0 <= position < len(image.memory):
        return f"_text{position:+#x}"
    name, distance = image.symbols.locate(image.link_base + position)
    return f"{name}+{distance:#x}" if distance else name
