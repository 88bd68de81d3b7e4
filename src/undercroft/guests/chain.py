"""How a guest gets from its firmware to its kernel."""

from __future__ import annotations

import enum


class Chain(enum.StrEnum):
    """The ways that we build guests for."""

    DIRECT = "direct"
    """OVMF without Secure Boot, and kernel and initrd given by QEMU."""
    GRUB = "grub"
    """OVMF with Secure Boot, shim and GRUB as the distribution signed them, on a disk."""
    UKI = "uki"
    """OVMF with Secure Boot, systemd-boot and a unified kernel image, on a disk."""
    LEGACY = "legacy"
    """SeaBIOS, and GRUB from the disk's master boot record."""

    @property
    def secure_boot(self) -> bool:
        """Whether the firmware verifies what it starts."""
        return self in (Chain.GRUB, Chain.UKI)
