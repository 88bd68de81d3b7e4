"""The operations of every inode in memory, whether or not anybody has it open.

Adore-ng and its kin lead an inode to operations of their own.  ``ops`` looks at what processes
have open; here every file system's list of inodes is walked.  As a file system's inodes share a
few tables of operations, each table is judged once: one in the kernel's constant data is compared
with the package there, and of any other each word that leads to code must lead to lawful code.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from operator import itemgetter

from undercroft.base import Finding
from undercroft.securekernel.linux.code import CodeMap
from undercroft.securekernel.linux.containers import list_entries
from undercroft.securekernel.linux.facts import Anomaly, FactSpec, Look, Observer
from undercroft.securekernel.linux.live import MASK64, LiveKernel, StructureError

MAX_INODES = 1 << 16
"""Inodes of one file system that one look visits; a cache may hold millions."""
_MAX_SUPER_BLOCKS = 1 << 14
_TABLES = ("inode_operations", "file_operations", "address_space_operations")

SPEC = FactSpec(
    "kernel.ops.inodes",
    "every operation of the inodes in memory leads to lawful code",
    "operations of an inode lead to code that nobody vouches for",
    (
        f"of a file system the {MAX_INODES:,} inodes that came last are looked at",
        "without the modules' package that one is signed is the kernel's own word",
    ),
)


class InodeCheck:
    """One look over the inodes of every mounted file system."""

    def __init__(self, kernel: LiveKernel) -> None:
        self._kernel = kernel
        self._code = CodeMap(kernel)
        self._layout = InodeLayout.of(kernel)
        self._a_ops = kernel.offset("address_space", "a_ops")
        self._seen: set[tuple[int, int, int]] = set()
        self._tables: dict[tuple[int, str], tuple[int, str]] = {}
        self.inodes = 0
        self.left_out = 0

    def look(self) -> Look:
        """Look once."""
        kernel = self._kernel
        head, member = kernel.symbol("super_blocks"), kernel.offset("super_block", "s_list")
        for block in list_entries(kernel, head, member, limit=_MAX_SUPER_BLOCKS):
            kind = kernel.member_u64(block, "super_block", "s_type")
            name = kernel.text(kernel.member_u64(kind, "file_system_type", "name"), 32)
            self._visit(block, name)
        anomalies: dict[Hashable, Anomaly] = {}
        for (address, struct_name), (inode, name) in self._tables.items():
            problem, certain = self._code.table_problem(address, struct_name)
            if problem:
                anomalies[address, struct_name] = Anomaly(
                    {
                        "inode": f"{inode:#x}",
                        "number": kernel.member_u64(inode, "inode", "i_ino"),
                        "file_system": name,
                        "operations": f"{struct_name} at {self._code.describe(address)}",
                        "rule": problem,
                    },
                    certain=certain,
                )
        counts = {"inodes": self.inodes, "left_out": self.left_out, "tables": len(self._tables)}
        return Look(anomalies, dict(counts))

    def _visit(self, block: int, name: str) -> None:
        """Walk a file system's list of inodes: one read of each, for there are thousands."""
        kernel, layout = self._kernel, self._layout
        head = block + kernel.offset("super_block", "s_inodes")
        read, unpack, link = kernel.read, layout.fields.unpack, layout.link
        before, at, count = head, kernel.u64(head), 0
        while at != head:
            if count == MAX_INODES:
                self.left_out += 1
                return
            inode = at - link & MASK64
            after, back, i_op, i_fop, mapping, a_ops = layout.order(
                unpack(read(inode, layout.fields.size))
            )
            if back != before:
                raise StructureError(
                    "an inode's neighbour is not the inode before it", at, expected=hex(before)
                )
            if mapping != inode + layout.own_mapping:  # a device's belongs to another inode
                a_ops = kernel.u64(mapping + self._a_ops) if mapping else 0
            if (i_op, i_fop, a_ops) not in self._seen:
                self._note(inode, name, i_op, i_fop, a_ops)
            before, at, count = at, after, count + 1
            self.inodes += 1
        if kernel.u64(head + 8) != before:
            raise StructureError("a list of inodes does not end where it says", head)

    def _note(self, inode: int, name: str, i_op: int, i_fop: int, a_ops: int) -> None:
        """Remember tables that no inode had so far."""
        self._seen.add((i_op, i_fop, a_ops))
        for address, struct_name in zip((i_op, i_fop, a_ops), _TABLES, strict=True):
            if address:
                self._tables.setdefault((address, struct_name), (inode, name))


@dataclass(frozen=True, slots=True)
class InodeLayout:
    """Where an inode has its neighbours and operations, as one structure to unpack.

    ``order`` sorts what was unpacked: next and previous inode, i_op, i_fop, i_mapping and the
    operations of the inode's own mapping.
    """

    fields: struct.Struct
    order: Callable[[tuple[int, ...]], tuple[int, ...]]
    link: int
    own_mapping: int

    @classmethod
    def of(cls, kernel: LiveKernel) -> InodeLayout:
        """Make it from the package's types."""
        link, own = kernel.offset("inode", "i_sb_list"), kernel.offset("inode", "i_data")
        wanted = [link, link + 8]
        wanted += [kernel.offset("inode", name) for name in ("i_op", "i_fop", "i_mapping")]
        wanted.append(own + kernel.offset("address_space", "a_ops"))
        ranks = sorted(range(len(wanted)), key=wanted.__getitem__)
        text, end = "<", 0
        for rank in ranks:
            text += f"{wanted[rank] - end}xQ"
            end = wanted[rank] + 8
        places = sorted(range(len(ranks)), key=ranks.__getitem__)
        return cls(struct.Struct(text), itemgetter(*places), link, own)


def collect(kernel: LiveKernel, observer: Observer) -> Finding:
    """Return ``kernel.ops.inodes``."""
    return observer.settle(SPEC, kernel, lambda fresh: InodeCheck(fresh).look())
