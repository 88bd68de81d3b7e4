"""Fuzz targets for images (PE, OVMF, kernels) and for what the secure kernel writes.

Only FormatError escapes a parser.  What is written as well as read encodes to the input; images
are only read, so there what was parsed is used as its reader uses it.  ``test_images.py`` runs
the targets over the committed corpus and near it.  By hand, with atheris (``pip install -e
'.[fuzz]'``):

    python tests/fuzz/images.py TARGET [libFuzzer options, such as -max_total_time=60]
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
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
from undercroft.formats.launch import launch_text, parse_launch_event, parse_launch_text
from undercroft.formats.pe import parse_pe
from undercroft.testing.tinykernel import bzimage, compress

HERE = Path(__file__).parent
CORPUS = HERE / "corpus" / "images"


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


def _reads(parse: Callable[[bytes], object]) -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        try:
            parse(data)
        except FormatError:
            return

    return target


def _exact(parse: Callable[[bytes], object], encode: Callable[..., bytes]) -> Callable[..., None]:
    """What parses encodes to the input."""

    def target(data: bytes) -> None:
        try:
            value = parse(data)
        except FormatError:
            return
        if encode(value) != data:
            raise AssertionError("encode(parse(x)) is not x")

    return target


TARGETS: dict[str, Callable[[bytes], None]] = {
    "pe": _pe,
    "ovmf": _reads(ovmf_volumes),
    "vmlinuz": _reads(load_kernel),
    "elf": _reads(parse_elf),
    "kernel": _reads(lambda elf: load_kernel(bzimage(compress(elf, "gzip")))),
    "epoch": _exact(parse_epoch, encode_epoch),
    "chain": _exact(parse_chain, encode_chain),
    "launch-event": _exact(parse_launch_event, lambda event: event.encode()),
    "launch-text": _exact(parse_launch_text, lambda value: launch_text(*value)),
}


def main(arguments: list[str]) -> int:
    """Fuzz the target that is named first; the rest goes to libFuzzer."""
    if not arguments or arguments[0] not in TARGETS:
        sys.stderr.write("targets: " + " ".join(TARGETS) + "\n")
        return 2
    import atheris

    name, *options = arguments
    found = HERE.parents[1] / "build" / "fuzz" / "images" / name
    found.mkdir(parents=True, exist_ok=True)
    # Import everything again, instrumented: instrumenting all of Python would take a minute.
    for module in [module for module in sys.modules if module.startswith("undercroft")]:
        del sys.modules[module]
    with atheris.instrument_imports(include=["undercroft"]):
        target = runpy.run_path(__file__)["TARGETS"][name]
    artifacts = f"-artifact_prefix={found}/fault-"
    atheris.Setup([sys.argv[0], artifacts, *options, str(found), str(CORPUS / name)], target)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
