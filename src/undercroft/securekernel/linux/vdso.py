"""The vDSO: code of the kernel's that every process runs.

Its images stand in the data that is read-only after boot, where init_vdso_image()
(arch/x86/entry/vdso/vma.c) applies their alternatives once.  The same is done again here on the
signed file's copy, by the rules that the kernel's own text is replayed with (rule 17), and the
result compared.  That processes have no other vDSO than these frames is for ``user``.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from undercroft.base import Finding, FormatError, JsonValue
from undercroft.formats.kernel import KernelImage
from undercroft.formats.kernel.sites import AltInstr, read_altinstructions
from undercroft.reference.kernel.alternatives import Alternatives, FeatureVector
from undercroft.reference.kernel.canvas import Canvas
from undercroft.securekernel.linux.facts import Anomaly, FactSpec, Look, Observer
from undercroft.securekernel.linux.live import LiveKernel

IMAGES = ("vdso_image_64", "vdso_image_x32", "vdso_image_32")
_MAX_SIZE = 1 << 16
_SHOWN = 16

SPEC = FactSpec(
    "kernel.vdso",
    "the vDSO's images equal the package",
    "the vDSO, which every process runs, was changed",
    ("a changed image that was put back between two looks is for the write traps",),
)


@dataclass(frozen=True, slots=True)
class VdsoImage:
    """One ``struct vdso_image`` of the signed file.

    ``data`` is the link address of its ``content``; ``alternatives`` count positions from there.
    """

    name: str
    data: int
    content: bytes
    alternatives: AltInstr

    def expected(self, live: bytes, features: FeatureVector) -> bytes:
        """Return what must stand in memory under the ``features`` that the kernel's code shows.

        Bits on which only the vDSO depends are taken from ``live``.
        """
        canvas = Canvas(0, bytearray(self.content))
        chosen = Alternatives(self.alternatives, canvas, None)
        chosen.apply({**chosen.infer(Canvas(0, bytearray(live))), **features})
        return bytes(canvas.data)


def read_images(image: KernelImage) -> tuple[VdsoImage, ...]:
    """Return the vDSO images of the signed kernel.  Raises FormatError if they make no sense."""
    return tuple(_read(image, name) for name in IMAGES if image.symbols.get(name) is not None)


def _read(image: KernelImage, name: str) -> VdsoImage:
    at = image.offset(name)

    def member(path: str) -> int:
        raw = image.read(at + image.btf.offset_of("vdso_image", path), 8)
        return int.from_bytes(raw, "little")

    data, size, alt, length = (member(path) for path in ("data", "size", "alt", "alt_len"))
    if not 0 < size <= _MAX_SIZE or not alt <= alt + length <= size:
        raise FormatError("vdso_image", at, "an image of absurd size", got=size)
    content = image.read(data - image.link_base, size)
    wide = image.sites.alternatives.wide
    table = read_altinstructions(content[alt : alt + length], alt, wide=wide)
    return VdsoImage(name, data, content, table)


class Vdso:
    """The images of one signed kernel, read once."""

    def __init__(self, image: KernelImage) -> None:
        self.images = read_images(image)

    def look(self, kernel: LiveKernel, features: FeatureVector) -> Look:
        """Compare once."""
        anomalies: dict[Hashable, Anomaly] = {}
        sizes: dict[str, JsonValue] = {}
        for image in self.images:
            live = kernel.read(image.data + kernel.slide, len(image.content))
            expected = image.expected(live, features)
            sizes[image.name] = len(live)
            if live != expected:
                anomalies[image.name] = _difference(kernel, image, expected, live)
        return Look(anomalies, {"images": sizes})


def _difference(kernel: LiveKernel, image: VdsoImage, expected: bytes, live: bytes) -> Anomaly:
    one, other = (np.frombuffer(data, dtype=np.uint8) for data in (expected, live))
    places = np.flatnonzero(one != other)
    first = int(places[0])
    return Anomaly(
        {
            "image": image.name,
            "offset": first,
            "address": f"{image.data + first + kernel.slide:#x}",
            "bytes": len(places),
            "expected": expected[first : first + _SHOWN].hex(),
            "found": live[first : first + _SHOWN].hex(),
        }
    )


def collect(kernel: LiveKernel, vdso: Vdso, observer: Observer, features: FeatureVector) -> Finding:
    """Return ``kernel.vdso``; ``features`` are those that the kernel's code surely shows."""
    return observer.settle(SPEC, kernel, lambda fresh: vdso.look(fresh, features))
