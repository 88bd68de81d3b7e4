"""A bootable disk image, without root, loop devices or mounts, the same bytes every time.

The root file system is made by ``mke2fs -d`` from the unpacked tree (under fakeroot, unless we are
root), the EFI system partition by mtools; the partition table is written here (``gpt``).
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

from undercroft.base import EnvironmentFault
from undercroft.guests.debian import recipe
from undercroft.guests.debian.gpt import BIOS_BOOT, ESP, ROOT_X86_64, SECTOR, Partition, make_gpt
from undercroft.guests.debian.tools import run

MIB = 1 << 20
BIOS_BOOT_MB = 1
BIOS_BOOT_SECTOR = 2048
"""Where GRUB's core image starts."""
ESP_MB = 64
ROOT_MB = 2048
"""What the root file system may grow to; the image is sparse."""

_PER_MIB = MIB // SECTOR
_BIOS_BOOT_AT = 1
_ESP_AT = _BIOS_BOOT_AT + BIOS_BOOT_MB
_ROOT_AT = _ESP_AT + ESP_MB
_SECTORS = (_ROOT_AT + ROOT_MB + 1) * _PER_MIB


def _partition(name: str, kind: UUID, guid: UUID, at_mb: int, size_mb: int) -> Partition:
    first = at_mb * _PER_MIB
    return Partition(name, kind, guid, first, first + size_mb * _PER_MIB - 1)


PARTITIONS = (
    _partition("esp", ESP, recipe.ESP_GUID, _ESP_AT, ESP_MB),
    _partition("root", ROOT_X86_64, recipe.ROOT_GUID, _ROOT_AT, ROOT_MB),
    _partition("bios", BIOS_BOOT, recipe.BIOS_BOOT_GUID, _BIOS_BOOT_AT, BIOS_BOOT_MB),
)
"""GRUB names partitions by their place in the table: (hd0,gpt1) is the ESP."""


def partition_table() -> tuple[bytes, bytes]:
    """Return the disk's first and last sectors."""
    return make_gpt(recipe.DISK_GUID, PARTITIONS, _SECTORS)


def _write_files(files: Mapping[str, bytes], folder: Path, date: int) -> None:
    """Write ``files`` by absolute path under ``folder``; all of it is dated ``date``."""
    for path, data in sorted(files.items()):
        place = folder / path[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    for place in (folder, *folder.rglob("*")):
        os.utime(place, (date, date))


def make_root(tree: Path, output: Path, date: int, extra: Mapping[str, bytes]) -> None:
    """Write the ext4 file system ``output`` from the tar ``tree`` and ``extra`` files (0644).

    Raises EnvironmentFault with what a tool said.
    """
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".root-") as name:
        folder = Path(name)
        added = folder / "added"
        _write_files(extra, added, date)
        script = (
            'set -e; mkdir "$1/tree"; tar -C "$1/tree" --numeric-owner -xpf "$2"\n'
            'if [ -d "$1/added" ]; then cp -R --preserve=timestamps "$1/added/." "$1/tree/"; fi\n'
            f"mke2fs -q -t ext4 -L root -U {recipe.ROOT_UUID} -m 1 "
            f"-E hash_seed={recipe.ROOT_UUID},root_owner=0:0,lazy_itable_init=1 "
            f'-d "$1/tree" "$3" {ROOT_MB}M\n'
            'find "$1/tree" -printf "/%P\\n" >"$1/names"\n'
        )
        shell = [] if os.geteuid() == 0 else ["fakeroot"]
        environment = {"SOURCE_DATE_EPOCH": str(date), "E2FSPROGS_FAKE_TIME": str(date)}
        run(
            [*shell, "sh", "-c", script, "sh", str(folder), str(tree), str(output)],
            environment=environment,
        )
        _settle_times(output, (folder / "names").read_bytes(), date, environment)
        run(["rm", "-rf", str(folder / "tree")])


def _settle_times(image: Path, names: bytes, date: int, environment: Mapping[str, str]) -> None:
    """Set every inode's change, access and creation time, which no tree can carry, to ``date``."""
    paths = names.decode(errors="surrogateescape").splitlines()
    strange = [path for path in paths if re.search(r'["\t]', path)]
    usual = [path for path in paths if path not in set(strange)]
    if strange:
        raise EnvironmentFault("a file's name cannot be given to debugfs", got=repr(strange[0]))
    fields = ("ctime", "atime", "crtime", "ctime_extra", "atime_extra", "crtime_extra")
    values = dict.fromkeys(fields[:3], f"@{date}") | dict.fromkeys(fields[3:], "0")
    # lost+found is mke2fs's own.
    commands = "\n".join(
        f'sif "{path}" {field} {values[field]}'
        for path in (*usual, "/lost+found")
        for field in fields
    )
    run(
        ["debugfs", "-w", "-f", "-", str(image)],
        stdin=(commands + "\n").encode(errors="surrogateescape"),
        environment=environment,
    )


def make_esp(files: Mapping[str, bytes], output: Path, date: int) -> None:
    """Write the FAT file system ``output`` with ``files`` by absolute path."""
    environment = {"SOURCE_DATE_EPOCH": str(date), "MTOOLS_SKIP_CHECK": "1", "TZ": "UTC"}
    with output.open("wb") as stream:
        stream.truncate(ESP_MB * MIB)
    run(
        ["mkfs.fat", "-F", "32", "-i", recipe.ESP_VOLUME_ID, "--invariant", "-n", "ESP",
         str(output)],
        environment=environment,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".esp-") as name:
        folder = Path(name)
        _write_files(files, folder, date)
        tops = sorted(str(place) for place in folder.iterdir())
        if tops:
            run(
                ["mcopy", "-i", str(output), "-s", "-Q", "-m", *tops, "::/"],
                environment=environment,
            )


def make_disk(
    esp: Path, root: Path, output: Path, boot_code: bytes = b"", core: bytes = b""
) -> None:
    """Join both file systems and the partition table into the disk image ``output``.

    ``boot_code`` (440 bytes at most) goes into the master boot record and ``core`` into the BIOS
    boot partition, for firmware that starts disks that way.
    """
    first, last = partition_table()
    with output.open("wb") as stream:
        stream.truncate(_SECTORS * SECTOR)
        stream.write(boot_code.ljust(440, b"\0")[:440] + first[440:])
        stream.seek(_BIOS_BOOT_AT * MIB)
        stream.write(core)
        stream.seek(_SECTORS * SECTOR - len(last))
        stream.write(last)
    for part, at in ((esp, _ESP_AT), (root, _ROOT_AT)):
        run(
            ["dd", f"if={part}", f"of={output}", "bs=1M", f"seek={at}", "conv=notrunc,sparse",
             "status=none"]
        )  # fmt: skip
