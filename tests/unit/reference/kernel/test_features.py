"""What the code shows of the processor, against CPUID and against the kernel's own word."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from undercroft.base import FormatError
from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.features import FeatureNames, compare

LINK = 0xFFFF_FFFF_8100_0000
LEAFS = {"CPUID_1_EDX": 0, "CPUID_LNX_1": 1, "CPUID_7_0_EBX": 2, "CPUID_8000_0008_EBX": 3}
SSE, SYNTHETIC, SMAP, BTC_NO = 25, 32 + 5, 64 + 20, 96 + 29
CAPS, BUGS, TEXT = 0, 0x500, 0x800
ALL_ON = {(1, 0, "EDX"): 1 << 25, (7, 0, "EBX"): 1 << 20, (0x8000_0008, 0, "EBX"): 0}


def image(leafs: dict[str, int] | None = None) -> KernelImage:
    """A kernel that names SMAP, and a bug whose flag is the first."""
    memory = bytearray(0x1000)
    struct.pack_into("<Q", memory, CAPS + 8 * SMAP, LINK + TEXT)
    struct.pack_into("<Q", memory, BUGS, LINK + TEXT + 8)
    memory[TEXT : TEXT + 13] = b"smap\0\0\0\0f00f\0"
    offsets = {"x86_cap_flags": CAPS, "x86_bug_flags": BUGS}
    addresses = [LINK + at for at in (CAPS, BUGS, BUGS + 0x100)]
    return cast(
        KernelImage,
        SimpleNamespace(
            btf=SimpleNamespace(enumerators=lambda _name: dict(leafs or LEAFS)),
            symbols=SimpleNamespace(addresses=np.array(addresses, dtype=np.uint64)),
            link_base=LINK,
            memory=memory,
            find=offsets.get,
            read=lambda at, size: bytes(memory[at : at + size]),
        ),
    )


def test_numbers_are_named_by_the_kernels_own_tables() -> None:
    names = FeatureNames(image({**LEAFS, "NR_CPUID_WORDS": 4}))
    assert names.words == 4
    assert names.name(SMAP) == "smap"
    assert names.name(4 * 32) == "f00f"
    assert names.name(SSE) == "cpuid 0x1.0 EDX bit 25"
    assert names.name(SYNTHETIC) == "1*32+5"
    assert names.register(SYNTHETIC) is None
    assert names.register(SMAP) == (7, 0, "EBX")
    assert names.register(BTC_NO) == (0x8000_0008, 0, "EBX")


def test_a_vector_that_all_agree_on() -> None:
    found = compare(
        FeatureNames(image()),
        {SSE: True, SMAP: True, SYNTHETIC: True, BTC_NO: True},
        [1 << 25, 1 << 5, 1 << 20, 1 << 29],
        [ALL_ON, ALL_ON],
    )
    assert (found.impossible, found.denied, found.withheld) == ((), (), ())
    assert found.compared == 3
    assert found.as_json()["compared_with_cpuid"] == 3


def test_a_feature_that_one_vcpu_is_not_shown_is_impossible() -> None:
    other = {**ALL_ON, (7, 0, "EBX"): 0}
    words = [0, 0, 1 << 20, 0]
    found = compare(FeatureNames(image()), {SMAP: True}, words, [ALL_ON, other])
    assert found.impossible == (SMAP,)
    assert found.as_json()["impossible"] == ["smap"]


def test_code_that_does_without_a_defence_that_the_kernel_says_it_uses() -> None:
    found = compare(FeatureNames(image()), {SMAP: False}, [0, 0, 1 << 20, 0], [ALL_ON])
    assert found.denied == (SMAP,)
    assert found.withheld == (SMAP,)


def test_a_feature_that_the_kernel_decided_against_is_stated() -> None:
    found = compare(FeatureNames(image()), {SMAP: False}, [0, 0, 0, 0], [ALL_ON])
    assert (found.impossible, found.denied, found.withheld) == ((), (), (SMAP,))


def test_what_cpuid_computes_when_it_is_asked_is_not_compared() -> None:
    found = compare(FeatureNames(image()), {28: True}, [1 << 28], [ALL_ON])
    assert found.impossible == ()
    assert found.compared == 0


def test_without_cpuid_only_the_kernels_word_is_compared() -> None:
    found = compare(FeatureNames(image()), {SMAP: True}, [0, 0, 0, 0], [])
    assert found.denied == (SMAP,)
    assert found.compared is None


def test_a_kernel_without_names_has_numbers() -> None:
    bare = image()
    bare.find = lambda _name: None  # type: ignore[method-assign,assignment]
    assert FeatureNames(bare).name(SMAP) == "cpuid 0x7.0 EBX bit 20"


def test_a_kernel_without_the_enum_is_refused() -> None:
    def missing(_name: str) -> dict[str, int]:
        raise FormatError("BTF", 0, "there is no enum")

    bare = cast(KernelImage, SimpleNamespace(btf=SimpleNamespace(enumerators=missing)))
    with pytest.raises(FormatError):
        FeatureNames(bare)
