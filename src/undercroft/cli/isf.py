"""``undercroft reference kernel --isf``: a symbol file for volatility3."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.formats.kernel import load_kernel
from undercroft.reference.isf import write_isf
from undercroft.wiring import read_kernel


def write_symbol_file(package: Path, output: Path) -> int:
    """Write the symbol file of a package's kernel; compressed if its name ends in .xz or .gz.

    Returns its size in bytes.
    """
    data = write_isf(load_kernel(read_kernel(package)))
    if output.suffix == ".xz":
        data = lzma.compress(data, preset=1)
    elif output.suffix == ".gz":
        data = gzip.compress(data, 6, mtime=0)
    try:
        output.write_bytes(data)
    except OSError as error:
        raise EnvironmentFault(f"cannot write: {error.strerror}", where=str(output)) from error
    return len(data)
