"""The firmware's TCG event log out of guest memory: no agent in the guest.

The kernel looks for the log in this order (drivers/char/tpm/eventlog/common.c, tpm_read_log):
the area that the ACPI TPM2 table names (LASA, LAML), if it begins with a Spec ID event; then the
EFI configuration table that its boot stub made, followed by the final events that are not in it
(eventlog/efi.c).  We do the same from its own variables.  Nothing here is believed: the log is
authentic when it replays to the PCRs of a quote.

One difference on purpose.  ``binary_bios_measurements`` of the kernels that we know leaves out an
event that ends exactly at the end of the log (eventlog/tpm2.c compares with ``>=``).  We keep it:
its digest is in the PCR.
"""

from __future__ import annotations

import struct

from undercroft.securekernel.linux.live import LiveKernel, StructureError

MAX_LOG = 16 << 20
"""The largest log that we take; the firmware's area is usually 64 KiB."""
_INVALID_TABLE = (1 << 64) - 1
_EV_NO_ACTION = 3
_EVENT_HEADER = struct.Struct("<II20sI")
_SPEC_ID = b"Spec ID Event03\0"
_SPEC_ID_COUNT_AT = 24
_MAX_ALGORITHMS = 16
_MAX_TABLES = 256
_TPM2_LOG_AT = struct.Struct("<IQ")


def read_event_log(kernel: LiveKernel) -> bytes:
    """Return the crypto-agile event log that the kernel took from the firmware.

    Raises StructureError if there is none or it has no end, MemoryFault if it is not in RAM.
    """
    log = _acpi_log(kernel)
    if log is None:
        log = _efi_log(kernel)
    if log is None:
        raise StructureError("the firmware left no TPM event log", kernel.symbol("efi"))
    return log[: log_length(log)]


def _acpi_log(kernel: LiveKernel) -> bytes | None:
    """Return the area that the ACPI TPM2 table names, if it holds a log."""
    table = _acpi_table(kernel, b"TPM2")
    if table is None:
        return None
    at = kernel.size_of("acpi_table_tpm2") + 12  # acpi_tpm2_phy: 12 bytes, LAML, LASA
    if len(table) < at + _TPM2_LOG_AT.size:
        return None
    length, start = _TPM2_LOG_AT.unpack_from(table, at)
    if not start or not length:
        return None
    if length > MAX_LOG:
        raise StructureError("the TPM log area is absurdly large", start, got=length)
    log = kernel.memory.read(start, length)
    return log if _is_crypto_agile(log) else None


def _acpi_table(kernel: LiveKernel, signature: bytes) -> bytes | None:
    """Return the first ACPI table with this signature, found as the kernel's own list has it."""
    tables = kernel.symbol("acpi_gbl_root_table_list")
    count = kernel.member_u32(tables, "acpi_table_list", "current_table_count")
    first = kernel.member_u64(tables, "acpi_table_list", "tables")
    if count > _MAX_TABLES:
        raise StructureError("there are absurdly many ACPI tables", tables, got=count)
    for number in range(count):
        entry = first + number * kernel.size_of("acpi_table_desc")
        if kernel.read(entry + kernel.offset("acpi_table_desc", "signature"), 4) != signature:
            continue
        address = kernel.member_u64(entry, "acpi_table_desc", "address")
        length = kernel.member_u32(entry, "acpi_table_desc", "length")
        if length > 1 << 16:
            raise StructureError("an ACPI table is absurdly long", entry, got=length)
        table = kernel.memory.read(address, length)
        if table[:4] == signature:
            return table
    return None


def _efi_log(kernel: LiveKernel) -> bytes | None:
    """Return the boot stub's copy of the log and the final events that are not in it."""
    efi = kernel.symbol("efi")
    table = kernel.member_u64(efi, "efi", "tpm_log")
    if table in (0, _INVALID_TABLE):
        return None
    header = kernel.memory.read(table, kernel.offset("linux_efi_tpm_eventlog", "log"))
    size, preboot = struct.unpack_from("<II", header)
    version = header[kernel.offset("linux_efi_tpm_eventlog", "version")]
    if not size or size > MAX_LOG:
        raise StructureError("the EFI TPM log table has an absurd size", table, got=size)
    log = kernel.memory.read(table + len(header), size)
    final = kernel.member_u64(efi, "efi", "tpm_final_log")
    final_size = kernel.s32(kernel.symbol("efi_tpm_final_log_size"))
    if final in (0, _INVALID_TABLE) or final_size == 0 or version != 2:
        return log
    if not preboot <= final_size <= MAX_LOG:
        raise StructureError("the final events have an absurd size", final, got=final_size)
    events = final + kernel.offset("efi_tcg2_final_events_table", "events")
    return log + kernel.memory.read(events + preboot, final_size - preboot)


def _is_crypto_agile(log: bytes) -> bool:
    return log[_EVENT_HEADER.size : _EVENT_HEADER.size + len(_SPEC_ID)] == _SPEC_ID


def log_length(log: bytes) -> int:
    """Return where the last event of a crypto-agile log ends, by the kernel's own rule.

    The rule is that of ``__calc_tpm2_event_size`` (include/linux/tpm_eventlog.h): an event has
    one digest for each algorithm of the Spec ID event, and one that has not ends the log.
    Raises StructureError if the first event is no Spec ID event.
    """
    sizes, at = _spec_id(log)
    while True:
        end = _event_end(log, at, sizes)
        if end is None:
            return at
        at = end


def _spec_id(log: bytes) -> tuple[dict[int, int], int]:
    """Return digest sizes by algorithm and where the Spec ID event ends."""
    if len(log) < _EVENT_HEADER.size + _SPEC_ID_COUNT_AT + 4 or not _is_crypto_agile(log):
        raise StructureError("the event log does not start with a Spec ID event", 0)
    pcr, kind, digest, size = _EVENT_HEADER.unpack_from(log)
    count = int.from_bytes(
        log[_EVENT_HEADER.size + _SPEC_ID_COUNT_AT : _EVENT_HEADER.size + _SPEC_ID_COUNT_AT + 4],
        "little",
    )
    table = _EVENT_HEADER.size + _SPEC_ID_COUNT_AT + 4
    end = _EVENT_HEADER.size + size
    if pcr or kind != _EV_NO_ACTION or any(digest) or not 0 < count <= _MAX_ALGORITHMS:
        raise StructureError("the Spec ID event is malformed", 0)
    if table + 4 * count > end or end > len(log):
        raise StructureError("the Spec ID event is cut short", 0)
    pairs = [struct.unpack_from("<HH", log, table + 4 * number) for number in range(count)]
    return dict(pairs), end


def _event_end(log: bytes, at: int, sizes: dict[int, int]) -> int | None:
    """Return where the event at ``at`` ends, or None if there is no event."""
    if at + 12 > len(log):
        return None
    _pcr, kind, count = struct.unpack_from("<III", log, at)
    if count != len(sizes):
        return None
    end = at + 12
    for _ in range(count):
        if end + 2 > len(log):
            return None
        size = sizes.get(int.from_bytes(log[end : end + 2], "little"))
        if size is None:
            return None
        end += 2 + size
    if end + 4 > len(log):
        return None
    event_size = int.from_bytes(log[end : end + 4], "little")
    end += 4 + event_size
    if (kind == 0 and event_size == 0) or end > len(log):
        return None
    return end
