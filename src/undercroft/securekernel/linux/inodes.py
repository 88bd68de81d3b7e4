"""The operations of every inode in memory, whether or not anybody has it open.

Adore-ng and its kin lead an inode to operations of their own.  ``ops`` looks at what processes
have open; here every file system's list of inodes is walked.  As a file system's inodes share a
few tables of operations, each table is judged once: one in the kernel's constant data is compared
with the package there, and of any other each word that leads to code must lead to lawful code.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable

from undercroft.base import Finding
from undercroft.securekernel.linux.code import CodeMap
from undercroft.securekernel.linux.containers import list_entries
from undercroft.securekernel.linux.facts import Anomaly, FactSpec, Look, Observer
from undercroft.securekernel.linux.live import LiveKernel

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
        self._at = [kernel.offset("inode", name) for name in ("i_op", "i_fop", "i_mapping")]
        self._span = max(self._at) + 8
        self._a_ops = kernel.offset("address_space", "a_ops")
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
        kernel = self._kernel
        head = block + kernel.offset("super_block", "s_inodes")
        member = kernel.offset("inode", "i_sb_list")
        for count, inode in enumerate(list_entries(kernel, head, member)):
            if count == MAX_INODES:
                self.left_out += 1
                return
            self.inodes += 1
            data = kernel.read(inode, self._span)
            i_op, i_fop, mapping = (
                int(struct.unpack_from("<Q", data, offset)[0]) for offset in self._at
            )
            a_ops = kernel.u64(mapping + self._a_ops) if mapping else 0
            for address, struct_name in zip((i_op, i_fop, a_ops), _TABLES, strict=True):
                if address:
                    self._tables.setdefault((address, struct_name), (inode, name))


def collect(kernel: LiveKernel, observer: Observer) -> Finding:
    """Return ``kernel.ops.inodes``."""
    return observer.settle(SPEC, kernel, lambda fresh: InodeCheck(fresh).look())
