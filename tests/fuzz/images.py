"""Fuzz targets for images (PE, OVMF, kernels, modules) and for what the secure kernel writes.

Only FormatError escapes a parser.  What is written as well as read encodes to the input; images
are only read, so there what was parsed is used as its reader uses it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from undercroft.base import FormatError
from undercroft.formats.evidence.interval import (
    encode_chain,
    encode_epoch,
    parse_chain,
    parse_epoch,
)
from undercroft.formats.firmware import ovmf_volumes
from undercroft.formats.kernel import load_kernel, parse_elf
from undercroft.formats.kernel.module import decompress_module, parse_module
from undercroft.formats.kernel.signed_data import parse_signed_data
from undercroft.formats.launch import launch_text, parse_launch_event, parse_launch_text
from undercroft.formats.pe import parse_pe
from undercroft.testing.fuzzing import Suite, Target, exact, fuzz_by_hand, reads
from undercroft.testing.tinykernel import bzimage, compress


def _pe(data: bytes) -> None:
    """An image that parses has an Authenticode digest, and its parts lie inside it."""
    try:
        image = parse_pe(data)
    except FormatError:
        return
    assert len(image.authenticode()) == 32
    for section in image.sections:
        part = image.section(section.name)
        assert part is not None
        assert part in data
    assert all(certificate.data in data for certificate in image.certificates)


def _module(data: bytes) -> None:
    """A module that parses is whole: its content and signature are the file's."""
    try:
        module = parse_module(data)
    except FormatError:
        return
    assert module.name
    assert len(module.content) + len(module.signature) <= len(decompress_module(data))


TARGETS: dict[str, Target] = {
    "pe": _pe,
    "ovmf": reads(ovmf_volumes),
    "vmlinuz": reads(load_kernel),
    "elf": reads(parse_elf),
    "kernel": reads(lambda elf: load_kernel(bzimage(compress(elf, "gzip")))),
    "module": _module,
    "signed-data": reads(parse_signed_data),
    "epoch": exact(parse_epoch, encode_epoch),
    "chain": exact(parse_chain, encode_chain),
    "launch-event": exact(parse_launch_event, lambda event: event.encode()),
    "launch-text": exact(parse_launch_text, lambda value: launch_text(*value)),
}
SUITE = Suite(Path(__file__), TARGETS, largest=1 << 17)

if __name__ == "__main__":
    sys.exit(fuzz_by_hand(__file__, TARGETS))
