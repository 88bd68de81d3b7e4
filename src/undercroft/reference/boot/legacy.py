"""Prediction for SeaBIOS and GRUB from the master boot record: little is measured, and so said.

Source: SeaBIOS 1.16, src/tcgbios.c (tpm_add_*, called from boot.c and optionroms.c).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from undercroft.base import FormatError
from undercroft.reference.boot.event import PredictedEvent
from undercroft.reference.boot.measure import SPECIFICATION, event
from undercroft.reference.model import Provenance

UNPREDICTED = {1: "SeaBIOS measures the SMBIOS tables, which QEMU makes for each machine"}
"""PCRs of this chain that no value is predicted for, and why."""

UNVOUCHED = {
    0: "SeaBIOS does not measure itself",
    8: "GRUB's BIOS build measures no command",
    9: "GRUB's BIOS build measures no file",
}
"""PCRs that stay as they are whatever is started: a value that equals its prediction says nothing,
so that a result must not call it good."""

UNMEASURED = (
    "SeaBIOS itself: PCR 0 holds a separator only",
    "GRUB's core image, behind the first sector of the disk",
    "GRUB's configuration, commands and modules: its BIOS build has no TPM support",
    "the kernel, its command line and the initrd: PCR 4 to 9 say nothing of them",
)
"""What this chain starts and no PCR holds: IMA's list starts from a kernel that nobody measured."""

_OPTION_ROM_TAG = 7
_SEPARATOR = b"\xff\xff\xff\xff"


@dataclass(frozen=True, slots=True)
class LegacyBoot:
    """``first_sector`` of the disk (512 bytes), and the option ROM that QEMU always has."""

    first_sector: bytes
    option_rom: bytes
    from_option_rom: Provenance
    ours: Provenance


def predict_legacy_boot(boot: LegacyBoot) -> tuple[PredictedEvent, ...]:
    """Return every measurement but those of ``UNPREDICTED``.  Raises FormatError."""
    sector = boot.first_sector
    if len(sector) != 512 or sector[510:] != b"\x55\xaa":
        raise FormatError("master boot record", 510, "no boot sector", expected="55aa")
    rom = hashlib.sha1(boot.option_rom).digest()
    # OptionROMExecuteEvent: two reserved fields and the ROM's SHA-1 in a tagged event.
    tagged = struct.pack("<III", _OPTION_ROM_TAG, 4 + len(rom), 0) + rom
    return (
        _action(2, "Start Option ROM Scan"),
        event(2, "EV_EVENT_TAG", "option ROM kvmvapic", boot.from_option_rom, tagged, "option ROM"),
        _action(4, "Calling INT 19h"),
        *(
            event(pcr, "EV_SEPARATOR", "end of firmware", SPECIFICATION, _SEPARATOR, "separator")
            for pcr in (0, 2, 3, 4, 5, 6, 7)
        ),
        _action(4, "Booting BCV device 80h (HDD)"),
        event(4, "EV_IPL", "boot code in the master boot record", boot.ours, sector[:440],
              "boot code", data=b"MBR"),
        event(5, "EV_IPL_PARTITION_DATA", "partition data in the master boot record", boot.ours,
              sector[440:], "partition data", data=b"MBR PARTITION_TABLE"),
    )  # fmt: skip


def _action(pcr: int, text: str) -> PredictedEvent:
    return event(pcr, "EV_ACTION", text, SPECIFICATION, text.encode("ascii"), text)
