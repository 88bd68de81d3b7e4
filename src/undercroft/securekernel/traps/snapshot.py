"""Guest RAM in a file, for whoever wants to know what happened to a guest that was frozen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.securekernel.memory import PhysicalMemory
from undercroft.securekernel.traps.writetrap import HostRange

_PIECE = 1 << 20


def save_ram(memory: PhysicalMemory, ranges: Sequence[HostRange], path: Path) -> None:
    """Write guest RAM to a new file, each byte at its guest-physical address; gaps are holes.

    The file must not exist: an earlier snapshot is never overwritten.  Raises EnvironmentFault,
    and leaves no half of a file, if it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot make the snapshot: {error.strerror}", where=str(path)
        ) from error
    try:
        for entry in ranges:
            for at in range(entry.paddr, entry.paddr + entry.size, _PIECE):
                piece = memory.read(at, min(_PIECE, entry.paddr + entry.size - at))
                if piece.count(0) != len(piece):
                    _write(descriptor, piece, at)
        os.ftruncate(descriptor, max(entry.paddr + entry.size for entry in ranges))
        os.fsync(descriptor)
    except OSError as error:
        path.unlink()
        raise EnvironmentFault(
            f"cannot write the snapshot: {error.strerror}", where=str(path)
        ) from error
    finally:
        os.close(descriptor)


def _write(descriptor: int, piece: bytes, at: int) -> None:
    done = 0
    while done < len(piece):
        done += os.pwrite(descriptor, piece[done:], at + done)
