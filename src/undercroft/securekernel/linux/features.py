"""Are the processor features that the code shows those that the processor has?

The feature vector is inferred from the code, site by site.  It has to be possible under the CPUID
that the hypervisor shows the guest, and to be the one that the kernel noted for itself
(``boot_cpu_data``, the guest's own claim): code that was patched for another processor, or a
defence such as SMAP that is missing from all of the code, shows here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from undercroft.base import Finding, FormatError, MemoryFault, Outcome
from undercroft.reference.kernel.features import Comparison, Cpuid, FeatureNames, compare
from undercroft.reference.kernel.replay import Replay
from undercroft.securekernel.linux.live import LiveKernel

FINDING = "kernel.features"
_BUG_WORDS = 2


def collect(
    kernel: LiveKernel, replay: Replay | None, cpuid: Callable[[], Sequence[Cpuid]]
) -> Finding:
    """Compare the features that the code shows; UNKNOWN if that cannot be done."""
    if replay is None:
        return _cannot("the kernel's code was not replayed")
    try:
        names = FeatureNames(replay.image)
        claimed = _claimed(kernel, names)
    except FormatError as error:
        return _cannot(f"the package does not say what its feature numbers mean: {error.reason}")
    except MemoryFault as fault:
        return _cannot(f"boot_cpu_data cannot be read: {fault}")
    return _finding(compare(names, replay.choices.shown_features(), claimed, cpuid()))


def _claimed(kernel: LiveKernel, names: FeatureNames) -> tuple[int, ...]:
    at = kernel.symbol("boot_cpu_data") + kernel.offset("cpuinfo_x86", "x86_capability")
    count = names.words + _BUG_WORDS
    return struct.unpack(f"<{count}I", kernel.read(at, 4 * count))


def _cannot(why: str) -> Finding:
    return Finding(FINDING, Outcome.UNKNOWN, why)


def _finding(found: Comparison) -> Finding:
    details = found.as_json()
    wrong = [*found.impossible, *found.denied]
    if wrong:
        text = ", ".join(found.names.name(bit) for bit in wrong[:6])
        why = (
            "the hypervisor does not show them" if found.impossible else "boot_cpu_data denies them"
        )
        summary = f"the code was patched for features that contradict the processor: {text}; {why}"
        return Finding(FINDING, Outcome.FAIL, summary, details)
    if found.compared is None:
        summary = "the code agrees with boot_cpu_data; there is no hypervisor to ask for CPUID"
        return Finding(FINDING, Outcome.UNKNOWN, summary, details)
    summary = (
        f"the code was patched for the processor that the guest has ({found.compared} features)"
    )
    if found.withheld:
        names = ", ".join(found.names.name(bit) for bit in found.withheld[:6])
        summary += f"; the kernel does without {names}"
    return Finding(FINDING, Outcome.PASS, summary, details)
