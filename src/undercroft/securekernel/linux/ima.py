"""The IMA measurement list out of kernel memory: no agent in the guest.

The bytes are those of ``/sys/kernel/security/ima/binary_runtime_measurements``, which the kernel
makes from the same list (security/integrity/ima/ima_fs.c, ima_measurements_show).  Nothing here
is believed: the list is authentic when it replays to PCR 10 of a quote.
"""

from __future__ import annotations

import struct

from undercroft.securekernel.linux.containers import list_entries
from undercroft.securekernel.linux.live import LiveKernel, StructureError

SHA1_SIZE = 20
MAX_ENTRIES = 1 << 20
MAX_FIELD = 1 << 20
MAX_FIELDS = 16
MAX_LIST = 256 << 20
_MAX_NAME = 64
_IMA_TEMPLATE = "ima"


class ImaListReader:
    """Reads the list; remembers what a template or a field is called between entries."""

    def __init__(self, kernel: LiveKernel) -> None:
        self._kernel = kernel
        self._names: dict[int, tuple[str, tuple[str, ...]]] = {}
        sha1_index = kernel.find_symbol("ima_sha1_idx")
        index = kernel.s32(sha1_index) if sha1_index is not None else 0
        if not 0 <= index < 16:
            raise StructureError("ima_sha1_idx is absurd", sha1_index or 0, got=index)
        self._digest_offset = index * kernel.size_of("tpm_digest") + kernel.offset(
            "tpm_digest", "digest"
        )

    def read(self) -> bytes:
        """Return the whole list.  Raises StructureError or MemoryFault if it cannot be walked.

        An entry that is being added while we read may make the walk fail: try again.
        """
        kernel = self._kernel
        entry_at = kernel.offset("ima_queue_entry", "entry")
        parts: list[bytes] = []
        total = 0
        for queued in list_entries(
            kernel,
            kernel.symbol("ima_measurements"),
            kernel.offset("ima_queue_entry", "later"),
            limit=MAX_ENTRIES,
        ):
            parts.append(self._entry(kernel.u64(queued + entry_at)))
            total += len(parts[-1])
            if total > MAX_LIST:
                raise StructureError("the measurement list is too long", queued)
        return b"".join(parts)

    def _template(self, address: int) -> tuple[str, tuple[str, ...]]:
        """Return a template's name (its format if it has none) and its fields' ids."""
        known = self._names.get(address)
        if known is not None:
            return known
        kernel = self._kernel
        name = kernel.text(kernel.member_u64(address, "ima_template_desc", "name"), _MAX_NAME)
        if not name:
            name = kernel.text(kernel.member_u64(address, "ima_template_desc", "fmt"), _MAX_NAME)
        count = kernel.member_s32(address, "ima_template_desc", "num_fields")
        if not 0 < count <= MAX_FIELDS:
            raise StructureError("a template has an absurd number of fields", address, got=count)
        fields = kernel.member_u64(address, "ima_template_desc", "fields")
        id_at = kernel.offset("ima_template_field", "field_id")
        ids = tuple(
            kernel.text(kernel.u64(fields + 8 * number) + id_at, _MAX_NAME)
            for number in range(count)
        )
        self._names[address] = (name, ids)
        return name, ids

    def _entry(self, address: int) -> bytes:
        """Return one entry as the kernel prints it: pcr, digest, name, fields."""
        kernel = self._kernel
        name, fields = self._template(
            kernel.member_u64(address, "ima_template_entry", "template_desc")
        )
        digests = kernel.member_u64(address, "ima_template_entry", "digests")
        out = bytearray(struct.pack("<I", kernel.member_u32(address, "ima_template_entry", "pcr")))
        out += kernel.read(digests + self._digest_offset, SHA1_SIZE)
        encoded = name.encode()
        out += struct.pack("<I", len(encoded)) + encoded
        old = name == _IMA_TEMPLATE
        size = kernel.member_u32(address, "ima_template_entry", "template_data_len")
        data = b"".join(self._field(address, number, old, id_) for number, id_ in enumerate(fields))
        if not old:
            if size != len(data):
                raise StructureError(
                    "an entry's fields do not have its length",
                    address,
                    expected=size,
                    got=len(data),
                )
            out += struct.pack("<I", size)
        return bytes(out + data)

    def _field(self, entry: int, number: int, old: bool, field_id: str) -> bytes:
        """Return one field's bytes, with its length except in the old template's digest."""
        kernel = self._kernel
        at = (
            entry
            + kernel.offset("ima_template_entry", "template_data")
            + number * kernel.size_of("ima_field_data")
        )
        data = kernel.member_u64(at, "ima_field_data", "data")
        size = kernel.member_u32(at, "ima_field_data", "len")
        if size > MAX_FIELD:
            raise StructureError("a field is absurdly long", at, got=size)
        content = kernel.read(data, size) if size else b""
        if old and field_id == "d":
            return content
        if old and field_id == "n":
            content = content.partition(b"\0")[0]
        return struct.pack("<I", len(content)) + content


def read_ima_list(kernel: LiveKernel) -> bytes:
    """Return the IMA measurement list as binary_runtime_measurements would give it.

    Raises StructureError or MemoryFault where the list cannot be walked, FormatError if the
    kernel has no IMA.
    """
    return ImaListReader(kernel).read()
