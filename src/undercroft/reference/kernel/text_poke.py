"""Rule 14: a patch in progress.

text_poke_bp_batch() changes running code in three steps: INT3 over the first byte, then the
tail, then the first byte.  In between, neither the old nor the new bytes stand there.  We do not
accept what stands there: we wait until it is over, and then one of the rules has to explain it.
``bp_desc.refs`` is not zero while a batch is under way (arch/x86/kernel/alternative.c).
"""

from __future__ import annotations

from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.guest import GuestStructs, GuestValues


def in_flight(image: KernelImage, values: GuestValues) -> bool:
    """Tell whether the kernel says that it is patching code at this moment."""
    descriptor = image.find("bp_desc")
    if descriptor is None or "bp_patching_desc" not in image.btf:
        return False
    address = values.address(descriptor)
    return GuestStructs(values, image.btf).u32(address, "bp_patching_desc", "refs") != 0
