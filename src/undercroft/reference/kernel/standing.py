"""What stands in a kernel for good and is lawful, but worth knowing: livepatches and taints.

A livepatch redirects functions through ftrace to a module's code; both are proved like any other
(the sites by ftrace's rule, the code with the module's package).  Here it is only named.
"""

from __future__ import annotations

from collections.abc import Iterator

from undercroft.base import FormatError, MemoryFault
from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.guest import GuestStructs, GuestValues
from undercroft.reference.kernel.notable import Notable

_NAME = 64
_LISTED = 4
_TAINTS = 64


def standing(image: KernelImage, values: GuestValues) -> list[Notable]:
    """Return what is notable; what cannot be read is said, as one more notable thing."""
    try:
        guest = GuestStructs(values, image.btf)
        return [*_livepatches(image, guest), *_taints(image, values)]
    except MemoryFault as fault:
        text = f"whether the kernel is patched or tainted cannot be read: {fault}"
        return [Notable("unreadable", text)]


def _livepatches(image: KernelImage, guest: GuestStructs) -> Iterator[Notable]:
    """Yield the entries of klp_patches (kernel/livepatch/core.c)."""
    head = image.find("klp_patches")
    if head is None or "klp_patch" not in image.btf:
        return
    for patch in guest.list(guest.values.address(head), "klp_patch", "list"):
        module = guest.u64(patch, "klp_patch", "mod")
        name = _text(guest, module + image.btf.offset_of("module", "name"))
        functions: list[str] = []
        addresses: list[int] = []
        objects = patch + image.btf.offset_of("klp_patch", "obj_list")
        for part in guest.list(objects, "klp_object", "node"):
            listed = part + image.btf.offset_of("klp_object", "func_list")
            for function in guest.list(listed, "klp_func", "node"):
                functions.append(_text(guest, guest.u64(function, "klp_func", "old_name")))
                addresses.append(guest.u64(function, "klp_func", "new_func"))
        what = ", ".join(functions[:_LISTED]) or "no function"
        more = f" and {len(functions) - _LISTED} more" if len(functions) > _LISTED else ""
        text = f"the livepatch {name} replaces {what}{more}"
        yield Notable("livepatch", text, tuple(addresses))


def _text(guest: GuestStructs, address: int) -> str:
    """Return a name as the guest gives it: only for a person."""
    values = guest.values
    position = values.position(address)
    room = 4096 - address % 4096
    raw = values.read(position, min(_NAME, room))
    return raw.split(b"\0", 1)[0].decode("ascii", errors="backslashreplace")


def _taints(image: KernelImage, values: GuestValues) -> Iterator[Notable]:
    """Yield the kernel's taint flags as /proc/sys/kernel/tainted has them (kernel/panic.c).

    The letters come from the package's taint_flags[], the mask from the guest.
    """
    mask_at, table = image.find("tainted_mask"), image.find("taint_flags")
    if mask_at is None:
        return
    mask = values.u64(mask_at)
    if not mask:
        return
    letters = [_letter(image, table, bit) for bit in range(_TAINTS) if mask >> bit & 1]
    yield Notable("taint", f"the kernel says that it is tainted: {' '.join(letters)}")


def _letter(image: KernelImage, table: int | None, bit: int) -> str:
    try:
        if table is not None:
            size = image.btf.size_of("taint_flag")
            true = image.btf.offset_of("taint_flag", "c_true")
            letter = image.read(table + bit * size + true, 1)
            if letter.isalpha() and letter.isupper():
                return letter.decode("ascii")
    except FormatError:
        pass
    return f"bit {bit}"
