"""GRUB for a BIOS: the code in the master boot record and the core image behind it.

What grub-bios-setup writes into a disk, computed without one.  Source: GRUB 2.06,
util/setup.c and include/grub/i386/pc/boot.h, kernel.h.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.guests.debian.tools import run
from undercroft.packages import VerifiedPackage
from undercroft.packages.unpack import unpack

PACKAGES = ("grub-common", "grub-pc-bin", "libdevmapper1.02.1", "liblzma5")
"""What has grub-mkimage, its libraries, and GRUB's modules."""

_MODULES = (
    "biosdisk", "part_gpt", "ext2", "normal", "search", "search_fs_uuid", "configfile", "linux",
    "test", "serial", "echo",
)  # fmt: skip
_KERNEL_SECTOR, _DRIVE_CHECK = 0x5C, 0x66
_BLOCK_LIST = 512 - 12
_TWO_NOPS = b"\x90\x90"


def grub_for_bios(
    packages: Sequence[VerifiedPackage], config: str, sector: int
) -> tuple[bytes, bytes]:
    """Return boot code (440 bytes) and the core image that is to lie at ``sector``.

    ``packages`` are those of ``PACKAGES``; ``config`` is built into the core image.
    Raises EnvironmentFault.
    """
    with tempfile.TemporaryDirectory(prefix="undercroft-grub-") as name:
        folder = Path(name)
        tree = folder / "tree"
        unpack(packages, tree, lambda path: not path.startswith("/usr/share/"))
        (folder / "config").write_text(config)
        libraries = [str(path) for path in tree.glob("*/x86_64-linux-gnu")]
        libraries += [str(path) for path in tree.glob("usr/lib/x86_64-linux-gnu")]
        modules = tree / "usr" / "lib" / "grub" / "i386-pc"
        run(
            [str(tree / "usr/bin/grub-mkimage"), "-O", "i386-pc", "-d", str(modules),
             "-c", str(folder / "config"), "-p", "/boot/grub", "-o", str(folder / "core"),
             *_MODULES],
            environment={"LD_LIBRARY_PATH": ":".join(libraries)},
        )  # fmt: skip
        core = bytearray((folder / "core").read_bytes())
        boot = bytearray((modules / "boot.img").read_bytes()[:440])
    if len(boot) != 440 or len(core) < 1024:
        raise EnvironmentFault("GRUB's images are too short", got=f"{len(boot)}, {len(core)}")
    struct.pack_into("<Q", boot, _KERNEL_SECTOR, sector)
    # Some BIOSes name the wrong drive: as for every hard disk, do not check.
    boot[_DRIVE_CHECK : _DRIVE_CHECK + 2] = _TWO_NOPS
    struct.pack_into("<Q", core, _BLOCK_LIST, sector + 1)
    return bytes(boot), bytes(core)
