"""What a guest's boot will measure, computed before it boots.

A prediction is a list of :class:`PredictedEvent`, in the order of the extends within each PCR.
"""

from undercroft.reference.boot.direct import DirectBoot, predict_direct_boot
from undercroft.reference.boot.event import (
    PredictedEvent,
    boot_aggregate,
    boot_references,
    predicted_pcrs,
)
from undercroft.reference.boot.qemu_loader import kernel_as_loaded

__all__ = [
    "DirectBoot",
    "PredictedEvent",
    "boot_aggregate",
    "boot_references",
    "kernel_as_loaded",
    "predict_direct_boot",
    "predicted_pcrs",
]
