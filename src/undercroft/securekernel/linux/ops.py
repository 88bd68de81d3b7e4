"""Operation tables that objects point to: files, inodes, /proc, file systems, sockets.

A table in the kernel's constant data is compared with the package there.  A table anywhere else
(in a module, or made at run time) is read word by word: whatever in it leads to code must lead
to lawful code.  So it does not matter whether the pointer to the table was swapped or the table
itself changed.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

from undercroft.base import Finding
from undercroft.securekernel.linux.code import CodeMap
from undercroft.securekernel.linux.containers import list_entries, rbtree_entries
from undercroft.securekernel.linux.facts import Anomaly, FactSpec, Look, Observer
from undercroft.securekernel.linux.live import LiveKernel, StructureError
from undercroft.securekernel.linux.tasks import task_list

_MAX_FDS = 1 << 16
_MAX_PROC_ENTRIES = 1 << 17
_MAX_PROC_DEPTH = 32
_MAX_SUPER_BLOCKS = 1 << 14
_AF_PACKET = 17

_LIMITS = (
    "inodes that no process has open, and that are no root of a file system, are not looked at",
    "without the modules' package that one is signed is the kernel's own word",
)
FILES = FactSpec(
    "kernel.ops.files",
    "every operation of open files, /proc and file systems leads to lawful code",
    "operations of a file lead to code that nobody vouches for",
    _LIMITS,
)
SOCKETS = FactSpec(
    "kernel.ops.sockets",
    "every operation of open sockets leads to lawful code",
    "operations of a socket lead to code that nobody vouches for",
    _LIMITS,
)
PACKETS = FactSpec(
    "kernel.sockets.packet",
    "no process listens to raw packets",
    "processes listen to raw packets",
    ("DHCP clients, packet capture and network managers do so lawfully: a person must tell",),
)
SPECS = (FILES, SOCKETS, PACKETS)

_SOCK_CALLBACKS = (
    "sk_state_change",
    "sk_data_ready",
    "sk_write_space",
    "sk_error_report",
    "sk_backlog_rcv",
    "sk_destruct",
)


@dataclass(frozen=True, slots=True)
class Table:
    """A pointer to a table of type ``struct_name``, or to a function where that is ""."""

    where: str
    address: int
    struct_name: str


class OpsCheck:
    """One look over the operation tables; a table is judged once."""

    def __init__(self, kernel: LiveKernel) -> None:
        self._kernel = kernel
        self._code = CodeMap(kernel)
        self._judged: dict[tuple[int, str], tuple[str, bool]] = {}
        self._socket_ops = kernel.find_symbol("socket_file_ops")
        self._packets: dict[Hashable, Anomaly] = {}
        self._line_by_line: dict[int, bool] = {}

    def look(self) -> Mapping[str, Look]:
        """Look once."""
        files: dict[Hashable, Anomaly] = {}
        sockets: dict[Hashable, Anomaly] = {}
        for table in (*_proc_tables(self._kernel), *_super_block_tables(self._kernel)):
            self._judge(table, files)
        opened = 0
        for where, file in open_files(self._kernel):
            opened += 1
            for table in (*_file_tables(self._kernel, where, file), *self._sequences(where, file)):
                self._judge(table, files)
            if self._kernel.member_u64(file, "file", "f_op") == self._socket_ops:
                for table in self._socket_tables(where, file):
                    self._judge(table, sockets)
        details = {"tables": len(self._judged), "open_files": opened}
        return {
            FILES.id: Look(files, details),
            SOCKETS.id: Look(sockets, details),
            PACKETS.id: Look(self._packets),
        }

    def _sequences(self, where: str, file: int) -> Iterator[Table]:
        """Yield what makes the lines of a file that the kernel writes line by line (seq_file)."""
        kernel = self._kernel
        operations = kernel.member_u64(file, "file", "f_op")
        if operations not in self._line_by_line:
            readers = ("read", "seq_read"), ("read_iter", "seq_read_iter")
            self._line_by_line[operations] = bool(operations) and any(
                kernel.member_u64(operations, "file_operations", member) == kernel.find_symbol(name)
                for member, name in readers
            )
        sequence = kernel.member_u64(file, "file", "private_data")
        if self._line_by_line[operations] and sequence:
            table = kernel.member_u64(sequence, "seq_file", "op")
            yield Table(f"{where}, seq_ops", table, "seq_operations")

    def _judge(self, table: Table, anomalies: dict[Hashable, Anomaly]) -> None:
        if not table.address:
            return
        key = (table.address, table.struct_name)
        judged = self._judged.get(key)
        if judged is None:
            judged = self._judged[key] = self._problem(table)
        problem, certain = judged
        if problem:
            anomalies[table.where, table.address] = Anomaly(
                {
                    "object": table.where,
                    "operations": self._code.describe(table.address),
                    "address": f"{table.address:#x}",
                    "rule": problem,
                },
                certain=certain,
            )

    def _problem(self, table: Table) -> tuple[str, bool]:
        if table.struct_name:
            return self._code.table_problem(table.address, table.struct_name)
        return self._code.problem(table.address), self._code.is_certain(table.address)

    def _socket_tables(self, where: str, file: int) -> Iterator[Table]:
        kernel = self._kernel
        socket = kernel.member_u64(file, "file", "private_data")
        yield Table(where, kernel.member_u64(socket, "socket", "ops"), "proto_ops")
        sock = kernel.member_u64(socket, "socket", "sk")
        if not sock:
            return
        proto = kernel.member_u64(sock, "sock", "__sk_common.skc_prot")
        yield Table(f"{where}, sk_prot", proto, "proto")
        for callback in _SOCK_CALLBACKS:
            yield Table(f"{where}, {callback}", kernel.member_u64(sock, "sock", callback), "")
        if kernel.u16(sock + kernel.offset("sock", "__sk_common.skc_family")) == _AF_PACKET:
            self._packets[sock] = Anomaly(
                {
                    "socket": where,
                    "filter": bool(kernel.member_u64(sock, "sock", "sk_filter")),
                    "sock": f"{sock:#x}",
                },
                certain=False,
            )


def open_files(kernel: LiveKernel) -> Iterator[tuple[str, int]]:
    """Yield every open file: ("comm (pid) fd 3", ``struct file``); shared tables once."""
    seen: set[int] = set()
    for task in task_list(kernel):
        table = kernel.member_u64(task, "task_struct", "files")
        if not table or table in seen:
            continue
        seen.add(table)
        name = kernel.text(task + kernel.offset("task_struct", "comm"), 16)
        who = f"{name} ({kernel.member_u32(task, 'task_struct', 'pid')})"
        fdt = kernel.member_u64(table, "files_struct", "fdt")
        count = kernel.member_u32(fdt, "fdtable", "max_fds")
        if count > _MAX_FDS:
            raise StructureError("a process has absurdly many files", fdt, got=count)
        data = kernel.read(kernel.member_u64(fdt, "fdtable", "fd"), 8 * count)
        for number, file in enumerate(struct.unpack(f"<{count}Q", data)):
            if file:
                yield f"{who} fd {number}", file


def _file_tables(kernel: LiveKernel, where: str, file: int) -> Iterator[Table]:
    yield Table(where, kernel.member_u64(file, "file", "f_op"), "file_operations")
    inode = kernel.member_u64(file, "file", "f_inode")
    if inode:
        yield from _inode_tables(kernel, where, inode)
    dentry = kernel.member_u64(file, "file", "f_path.dentry")
    if dentry:
        operations = kernel.member_u64(dentry, "dentry", "d_op")
        yield Table(f"{where}, d_op", operations, "dentry_operations")


def _inode_tables(kernel: LiveKernel, where: str, inode: int) -> Iterator[Table]:
    yield Table(f"{where}, i_op", kernel.member_u64(inode, "inode", "i_op"), "inode_operations")
    yield Table(f"{where}, i_fop", kernel.member_u64(inode, "inode", "i_fop"), "file_operations")
    mapping = kernel.member_u64(inode, "inode", "i_mapping")
    if mapping:
        operations = kernel.member_u64(mapping, "address_space", "a_ops")
        yield Table(f"{where}, a_ops", operations, "address_space_operations")


def _proc_tables(kernel: LiveKernel) -> Iterator[Table]:
    """Yield the tables of every entry under /proc that is not a process."""
    root = kernel.symbol("proc_root")
    name_at = kernel.offset("proc_dir_entry", "name")
    member = kernel.offset("proc_dir_entry", "subdir_node")
    subdir = kernel.offset("proc_dir_entry", "subdir")
    stack = [(root, "/proc", 0)]
    count = 0
    while stack:
        entry, path, depth = stack.pop()
        count += 1
        if count > _MAX_PROC_ENTRIES or depth > _MAX_PROC_DEPTH:
            raise StructureError("/proc does not end", entry)
        yield from _proc_entry_tables(kernel, entry, path)
        for child in rbtree_entries(kernel, entry + subdir, member, limit=_MAX_PROC_ENTRIES):
            name = kernel.text(kernel.u64(child + name_at), 64)
            stack.append((child, f"{path}/{name}", depth + 1))


def _proc_entry_tables(kernel: LiveKernel, entry: int, path: str) -> Iterator[Table]:
    yield Table(path, kernel.member_u64(entry, "proc_dir_entry", "proc_iops"), "inode_operations")
    operations = kernel.member_u64(entry, "proc_dir_entry", "proc_ops")
    mode = kernel.u16(entry + kernel.offset("proc_dir_entry", "mode"))
    directory = mode & 0o170000 == 0o040000
    yield Table(path, operations, "file_operations" if directory else "proc_ops")
    dentry = kernel.member_u64(entry, "proc_dir_entry", "proc_dops")
    yield Table(f"{path}, d_op", dentry, "dentry_operations")
    if operations and operations == kernel.find_symbol("proc_single_ops"):
        show = kernel.member_u64(entry, "proc_dir_entry", "single_show")
        yield Table(f"{path}, single_show", show, "")
    elif operations and operations == kernel.find_symbol("proc_seq_ops"):
        show = kernel.member_u64(entry, "proc_dir_entry", "seq_ops")
        yield Table(f"{path}, seq_ops", show, "seq_operations")


def _super_block_tables(kernel: LiveKernel) -> Iterator[Table]:
    """Yield the tables of every mounted file system, and of its root directory."""
    head = kernel.symbol("super_blocks")
    member = kernel.offset("super_block", "s_list")
    for block in list_entries(kernel, head, member, limit=_MAX_SUPER_BLOCKS):
        kind = kernel.member_u64(block, "super_block", "s_type")
        name = kernel.text(kernel.member_u64(kind, "file_system_type", "name"), 32)
        where = f"file system {name}"
        yield Table(where, kernel.member_u64(block, "super_block", "s_op"), "super_operations")
        yield Table(f"{where}, type", kind, "file_system_type")
        d_op = kernel.member_u64(block, "super_block", "s_d_op")
        yield Table(f"{where}, d_op", d_op, "dentry_operations")
        root = kernel.member_u64(block, "super_block", "s_root")
        inode = kernel.member_u64(root, "dentry", "d_inode") if root else 0
        if inode:
            yield from _inode_tables(kernel, f"{where}, root", inode)


def collect(kernel: LiveKernel, observer: Observer) -> tuple[Finding, ...]:
    """Return the findings on operation tables and raw packet sockets."""
    return observer.settle_all(SPECS, kernel, lambda fresh: OpsCheck(fresh).look())
