"""The tables in which the build lists every place that the kernel may patch in itself.

Source: the structures named in each function, and include/asm-generic/vmlinux.lds.h and
arch/x86/kernel/vmlinux.lds.S for the sections.  Positions are offsets from the link base
(int64): they do not move with KASLR, and a table is one numpy array per field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from undercroft.base import FormatError

_FORMAT = "patch sites"
Offsets = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class AltInstr:
    """``struct alt_instr``: alternatives, in the order in which the kernel applies them.

    ``wide`` tells the layout of 6.3 and later (14 bytes, flags of their own) from the earlier
    one (12 bytes, ALTINSTR_FLAG_INV in cpuid); the kernel's way of patching changed with it.
    """

    instr: Offsets
    replacement: Offsets
    cpuid: Words
    inverted: npt.NDArray[np.bool_]
    direct_call: npt.NDArray[np.bool_]
    instr_len: Bytes
    replacement_len: Bytes
    wide: bool

    def __len__(self) -> int:
        return len(self.instr)


@dataclass(frozen=True, slots=True)
class ParavirtSites:
    """``struct paravirt_patch_site`` (until 6.7): call sites through pv_ops[type]."""

    instr: Offsets
    type: Bytes
    length: Bytes


@dataclass(frozen=True, slots=True)
class JumpTable:
    """``struct jump_entry``: static-key branches.  ``branch`` is bit 0 of the key field."""

    code: Offsets
    target: Offsets
    key: Offsets
    branch: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class StaticCallSites:
    """``struct static_call_site``: call sites of a static_call_key; ``tail`` calls are jumps."""

    site: Offsets
    key: Offsets
    tail: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class RuntimeConst:
    """One ``runtime_ptr_*`` or ``runtime_shift_*`` section: where a symbol's value is baked in."""

    symbol: str
    size: int
    sites: Offsets


@dataclass(frozen=True, slots=True)
class Sites:
    """Every patch-site table of a kernel or module; one that it does not have is empty."""

    alternatives: AltInstr
    paravirt: ParavirtSites
    retpolines: Offsets
    returns: Offsets
    calls: Offsets
    endbr_seal: Offsets
    smp_locks: Offsets
    jump_table: JumpTable
    static_calls: StaticCallSites
    tramp_keys: Mapping[int, int]
    mcount: Offsets
    runtime_const: tuple[RuntimeConst, ...]


def parse_pc_relative(data: bytes, at: int, name: str, *, padded: bool = False) -> Offsets:
    """A list of s32, each relative to itself, as objtool writes it (.return_sites ...).

    ``at`` is the table's own offset.  A ``padded`` table ends with zero words.
    """
    values = _array(data, np.dtype("<i4"), name).astype(np.int64)
    sites: Offsets = values + at + 4 * np.arange(len(values))
    return sites[values != 0] if padded else sites


def parse_altinstructions(data: bytes, at: int, within: int, replacements: range) -> AltInstr:
    """Parse ``.altinstructions``; the layout is the one in which every entry is possible.

    ``within`` bounds the patched instructions, ``replacements`` the replacement bytes.
    """
    for wide, size in ((True, 14), (False, 12)):
        if len(data) % size:
            continue
        table = read_altinstructions(data, at, wide=wide)
        ends = table.replacement + table.replacement_len
        if (
            np.all((table.instr >= 0) & (table.instr < within))
            and np.all((table.replacement >= replacements.start) & (ends <= replacements.stop))
            and np.all(table.instr_len >= table.replacement_len)
        ):
            return table
    raise FormatError(_FORMAT, at, ".altinstructions has a layout that is not known")


def read_altinstructions(data: bytes, at: int, *, wide: bool) -> AltInstr:
    """Read ``.altinstructions`` in the layout that is known from elsewhere."""
    fields: list[tuple[str, str]] = [("instr", "<i4"), ("repl", "<i4"), ("cpuid", "<u2")]
    fields += [("flags", "<u2")] if wide else []
    raw = np.frombuffer(data, dtype=np.dtype([*fields, ("ilen", "u1"), ("rlen", "u1")]))
    here = at + raw.dtype.itemsize * np.arange(len(raw))
    cpuid: Words = raw["cpuid"]
    flags: Words = raw["flags"] if wide else cpuid >> np.uint16(15)
    return AltInstr(
        instr=raw["instr"].astype(np.int64) + here,
        replacement=raw["repl"].astype(np.int64) + here + 4,
        cpuid=cpuid if wide else cpuid & np.uint16(0x7FFF),
        inverted=(flags & 1) != 0,
        direct_call=(flags & 2) != 0,
        instr_len=raw["ilen"],
        replacement_len=raw["rlen"],
        wide=wide,
    )


def parse_parainstructions(data: bytes, link_base: int) -> ParavirtSites:
    """Parse ``.parainstructions``: {u64 instr, u8 type, u8 len}, padded to 16 bytes."""
    padded = data + bytes(-len(data) % 16)
    fields = [("instr", "<u8"), ("type", "u1"), ("len", "u1"), ("pad", "6u1")]
    raw = _array(padded, np.dtype(fields), ".parainstructions")
    instr = (raw["instr"] - np.uint64(link_base)).astype(np.int64)
    return ParavirtSites(instr, raw["type"], raw["len"])


def parse_jump_table(data: bytes, at: int) -> JumpTable:
    """Parse ``__jump_table``: {s32 code, s32 target, s64 key | branch | init}."""
    fields = [("code", "<i4"), ("target", "<i4"), ("key", "<i8")]
    raw = _array(data, np.dtype(fields), "__jump_table")
    here = at + 16 * np.arange(len(raw))
    key = raw["key"].astype(np.int64) + here + 8
    return JumpTable(
        code=raw["code"].astype(np.int64) + here,
        target=raw["target"].astype(np.int64) + here + 4,
        key=key & ~np.int64(3),
        branch=(key & 1) != 0,
    )


def parse_static_call_sites(data: bytes, at: int) -> StaticCallSites:
    """Parse ``.static_call_sites``: {s32 addr, s32 key | tail | init}."""
    raw = _array(data, np.dtype([("addr", "<i4"), ("key", "<i4")]), ".static_call_sites")
    here = at + 8 * np.arange(len(raw))
    key = raw["key"].astype(np.int64) + here + 4
    return StaticCallSites(
        site=raw["addr"].astype(np.int64) + here, key=key & ~np.int64(3), tail=(key & 1) != 0
    )


def parse_tramp_keys(data: bytes, at: int) -> Mapping[int, int]:
    """Parse ``.static_call_tramp_key``: {s32 tramp, s32 key} -> key by trampoline.

    A module that may not see a key names the trampoline instead (kernel/static_call_inline.c).
    """
    raw = _array(data, np.dtype([("tramp", "<i4"), ("key", "<i4")]), ".static_call_tramp_key")
    here = at + 8 * np.arange(len(raw))
    tramp = raw["tramp"].astype(np.int64) + here
    key = raw["key"].astype(np.int64) + here + 4
    return dict(zip(tramp.tolist(), key.tolist(), strict=True))


def parse_mcount_loc(data: bytes, link_base: int) -> Offsets:
    """Parse ``__mcount_loc``: u64 link addresses of calls to __fentry__."""
    raw = _array(data, np.dtype("<u8"), "__mcount_loc")
    sites: Offsets = (raw - np.uint64(link_base)).astype(np.int64)
    return sites


def parse_ksymtab(data: bytes, at: int, strings: bytes, strings_at: int) -> list[tuple[str, int]]:
    """Parse ``__ksymtab``: {s32 value, s32 name, s32 namespace} -> (name, offset of value)."""
    fields = [("value", "<i4"), ("name", "<i4"), ("namespace", "<i4")]
    raw = _array(data, np.dtype(fields), "__ksymtab")
    here = at + 12 * np.arange(len(raw))
    values = raw["value"].astype(np.int64) + here
    names = raw["name"].astype(np.int64) + here + 4 - strings_at
    exports = []
    for value, start in zip(values.tolist(), names.tolist(), strict=True):
        end = strings.find(b"\0", start) if 0 <= start < len(strings) else -1
        if end < 0:
            raise FormatError(_FORMAT, at, "an exported symbol has no name")
        exports.append((strings[start:end].decode("latin-1"), value))
    return exports


def _array(data: bytes, dtype: np.dtype[Any], name: str) -> npt.NDArray[Any]:
    if len(data) % dtype.itemsize:
        raise FormatError(
            _FORMAT,
            0,
            f"{name} is not a whole number of entries",
            expected=f"a multiple of {dtype.itemsize}",
            got=len(data),
        )
    return np.frombuffer(data, dtype=dtype)
