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
from undercroft.reference.boot.legacy import UNMEASURED, LegacyBoot, predict_legacy_boot
from undercroft.reference.boot.log import encode_prediction
from undercroft.reference.boot.ovmf import Verifies
from undercroft.reference.boot.qemu_loader import kernel_as_loaded
from undercroft.reference.boot.secure import Firmware, GrubBoot, predict_grub_boot
from undercroft.reference.boot.uki import UkiBoot, predict_uki_boot

__all__ = [
    "UNMEASURED",
    "DirectBoot",
    "Firmware",
    "GrubBoot",
    "LegacyBoot",
    "PredictedEvent",
    "UkiBoot",
    "Verifies",
    "boot_aggregate",
    "boot_references",
    "encode_prediction",
    "kernel_as_loaded",
    "predict_direct_boot",
    "predict_grub_boot",
    "predict_legacy_boot",
    "predict_uki_boot",
    "predicted_pcrs",
]
