"""What processes can execute: every page, and whether it is part of a file.

Found through the page tables, not through the list of mappings that a process shows in
/proc/PID/maps: each page that user mode can execute is looked up in the kernel's page structures.
A page of the page cache belongs to a file; an anonymous one was written by somebody: injected
code, a patched copy of a file's page, or a program that generates code.  The vDSO's pages are
the kernel's own.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from undercroft.base import Finding, JsonValue, MemoryFault
from undercroft.securekernel.arch.x86_64.paging import PAGE_SIZE, AddressSpace
from undercroft.securekernel.arch.x86_64.walk import U, W, X, slots_of, walk_all
from undercroft.securekernel.linux.containers import hlist_entries
from undercroft.securekernel.linux.facts import Anomaly, FactSpec, Look, Observer
from undercroft.securekernel.linux.live import LiveKernel
from undercroft.securekernel.linux.tasks import task_list
from undercroft.securekernel.linux.usercode import SPEC as CODE
from undercroft.securekernel.linux.usercode import CodeCheck, FileLibrary, FrameMap
from undercroft.securekernel.linux.vmas import Mapping, Mappings

_USER_HALF = range(256)
_PAGE_MAPPING_ANON, _PAGE_MAPPING_FLAGS = 1, 3
_MAX_PATH_PARTS = 64
_MAX_NAME = 255
_MAX_ENVIRONMENT = 128 << 10
_LOADER_VARIABLES = {b"LD_PRELOAD": True, b"LD_AUDIT": True, b"LD_LIBRARY_PATH": False}
"""What the loader obeys, and whether it is more than another place to look in."""

ANONYMOUS = FactSpec(
    "user.exec.anonymous",
    "every page that a process can execute is part of a file",
    "processes can execute memory that is part of no file",
    (
        "programs that generate code while they run (JIT) fail this, as does one that a debugger "
        "or a uprobe set a breakpoint in",
        "pages that are swapped out or were never touched are counted, not seen",
    ),
)
FILES = FactSpec(
    "user.exec.files",
    "every file that a process executes still has its name",
    "processes execute files that were deleted",
    ("what the files hold is compared where the guest's packages are known (user.code)",),
)
PRELOAD = FactSpec(
    "user.preload",
    "no process tells its loader to load something else",
    "processes tell their loader to load something else",
    ("the environment is the process's own to change; /etc/ld.so.preload is measured by IMA",),
)
SPECS = (ANONYMOUS, FILES, PRELOAD)


@dataclass(frozen=True, slots=True)
class Process:
    """A process with memory of its own.  ``root`` is its page-table root's physical address."""

    pid: int
    comm: str
    mm: int
    root: int


@dataclass(slots=True)
class _Seen:
    """What one look found, by fact."""

    anonymous: dict[Hashable, Anomaly] = field(default_factory=dict)
    files: dict[Hashable, Anomaly] = field(default_factory=dict)
    preload: dict[Hashable, Anomaly] = field(default_factory=dict)
    paths: dict[int, str] = field(default_factory=dict)
    pages: int = 0
    absent: int = 0


def processes(kernel: LiveKernel) -> list[Process]:
    """Return every process in the task list that has memory of its own, once for each memory."""
    found: dict[int, Process] = {}
    for task in task_list(kernel):
        mm = kernel.member_u64(task, "task_struct", "mm")
        if mm and mm not in found:
            found[mm] = Process(
                pid=kernel.member_u32(task, "task_struct", "pid"),
                comm=kernel.text(task + kernel.offset("task_struct", "comm"), 16),
                mm=mm,
                root=kernel.space.translate(kernel.member_u64(mm, "mm_struct", "pgd")),
            )
    return list(found.values())


class UserCode:
    """One look over the memory of every process; with ``library`` at what its files hold too."""

    def __init__(self, kernel: LiveKernel, library: FileLibrary | None = None) -> None:
        self._kernel = kernel
        self._frames = FrameMap(kernel)
        self._vdso = _vdso_frames(kernel)
        self._seen = _Seen()
        self._of_files: set[int] = set()
        self._mappings: dict[int, Mappings] = {}
        self._code = CodeCheck(kernel, library) if library is not None else None
        self._root: int | None = None

    def look(self) -> dict[str, Look]:
        """Look once."""
        found = processes(self._kernel)
        if found:
            self._check_pages(found)
        for process in found:
            self._check_environment(process)
        seen = self._seen
        details: dict[str, JsonValue] = {
            "processes": len(found),
            "executable_pages": seen.pages,
            "anonymous_pages_not_in_memory": seen.absent,
        }
        looks = {
            ANONYMOUS.id: Look(seen.anonymous, details),
            FILES.id: Look(seen.files, {"files": sorted(set(seen.paths.values()))}),
            PRELOAD.id: Look(seen.preload, {"processes": len(found)}),
        }
        if self._code is not None:
            looks[CODE.id] = self._code.look()
        return looks

    def _check_pages(self, found: Sequence[Process]) -> None:
        """Look at every page that any process can execute; a page of a file is looked at once."""
        kernel = self._kernel
        by_root = {process.root: process for process in found}
        pages = walk_all(
            kernel.memory,
            dict.fromkeys(by_root, slots_of(_USER_HALF)),
            kernel.space.la57,
            executable_only=True,
        ).with_rights(X | U)
        self._seen.pages = int(pages.size.sum()) // PAGE_SIZE
        rows = zip(
            pages.root.tolist(),
            pages.vaddr.tolist(),
            pages.paddr.tolist(),
            pages.size.tolist(),
            pages.rights.tolist(),
            strict=True,
        )
        present: dict[int, int] = {}
        for root, vaddr, paddr, size, rights in rows:
            process = by_root[root]
            mapping = self._mapping_at(process, vaddr)
            if mapping is None:
                self._anonymous(process, vaddr, size, rights, "of no mapping")
                continue
            if mapping.is_anonymous:
                present[process.mm] = present.get(process.mm, 0) + size // PAGE_SIZE
            if paddr not in self._of_files:
                self._check_page(process, vaddr, paddr, size, rights, mapping)
        for mm, known in self._mappings.items():
            may = sum(one.pages for one in known.all if one.executable and one.is_anonymous)
            self._seen.absent += max(0, may - present.get(mm, 0))

    def _mapping_at(self, process: Process, vaddr: int) -> Mapping | None:
        """Return the mapping through which a process may execute an address, if there is one."""
        known = self._mappings.get(process.mm)
        if known is None:
            known = self._mappings[process.mm] = Mappings(self._kernel, process.mm)
        found = known.at(vaddr)
        return found if found is not None and found.executable else None

    def _check_page(
        self, process: Process, vaddr: int, paddr: int, size: int, rights: int, where: Mapping
    ) -> None:
        if any(start <= paddr and paddr + size <= end for start, end in self._vdso):
            return
        mapping = self._frames.mapping(paddr)
        if mapping and not mapping & _PAGE_MAPPING_FLAGS:
            self._of_files.add(paddr)
            inode, path = self._check_file(process, mapping)
            if self._code is not None:
                user = f"{process.comm} ({process.pid})"
                packaged = path if self._is_on_root(inode) else None
                self._code.add(mapping, path, packaged, inode, paddr, size, user)
            return
        if mapping & _PAGE_MAPPING_ANON and self._is_equal_copy(where, vaddr, paddr, size):
            return
        kind = "anonymous" if mapping & _PAGE_MAPPING_ANON else "of no file"
        self._anonymous(process, vaddr, size, rights, kind)

    def _anonymous(self, process: Process, vaddr: int, size: int, rights: int, kind: str) -> None:
        self._seen.anonymous[process.mm, vaddr] = Anomaly(
            {
                "pid": process.pid,
                "comm": process.comm,
                "address": f"{vaddr:#x}",
                "size": size,
                "kind": kind,
                "writable": bool(rights & W),
            }
        )

    def _is_equal_copy(self, where: Mapping, vaddr: int, paddr: int, size: int) -> bool:
        """Whether a page was copied for writing, but still is what its file's package has."""
        if self._code is None or not where.file or size != PAGE_SIZE:
            return False
        inode = self._kernel.member_u64(where.file, "file", "f_inode")
        if not self._is_on_root(inode):
            return False
        return self._code.is_equal_copy(path_of(self._kernel, inode), where.index(vaddr), paddr)

    def _is_on_root(self, inode: int) -> bool:
        """Whether a file is on the file system that the packages were unpacked to.

        On another one, a container's say, its path means nothing to the guest's packages.
        """
        if self._root is None:
            self._root = root_file_system(self._kernel)
        return self._root != 0 and self._kernel.member_u64(inode, "inode", "i_sb") == self._root

    def _check_file(self, process: Process, mapping: int) -> tuple[int, str]:
        """Return a mapping's inode and its path; a deleted file is an anomaly."""
        kernel = self._kernel
        inode = kernel.member_u64(mapping, "address_space", "host")
        known = self._seen.paths.get(mapping)
        if known is not None:
            return inode, known
        path = self._seen.paths[mapping] = path_of(kernel, inode)
        if not kernel.member_u32(inode, "inode", "i_nlink"):
            self._seen.files[inode] = Anomaly(
                {"pid": process.pid, "comm": process.comm, "file": path, "rule": "it was deleted"}
            )
        return inode, path

    def _check_environment(self, process: Process) -> None:
        start = self._kernel.member_u64(process.mm, "mm_struct", "env_start")
        end = self._kernel.member_u64(process.mm, "mm_struct", "env_end")
        for variable in self._environment(process, start, end).split(b"\0"):
            certain = _LOADER_VARIABLES.get(variable.partition(b"=")[0])
            if certain is not None:
                text = variable[:200].decode("ascii", errors="backslashreplace")
                self._seen.preload[process.mm, text] = Anomaly(
                    {"pid": process.pid, "comm": process.comm, "variable": text}, certain=certain
                )

    def _environment(self, process: Process, start: int, end: int) -> bytes:
        """Return the environment as far as it is in memory, and no more than exec takes."""
        if not 0 < end - start <= _MAX_ENVIRONMENT:
            return b""
        space = AddressSpace(self._kernel.memory, process.root, self._kernel.space.la57)
        parts = []
        while start < end:
            size = min(end - start, PAGE_SIZE - start % PAGE_SIZE)
            try:
                parts.append(space.read(start, size))
            except MemoryFault:
                parts.append(b"\0")
            start += size
        return b"".join(parts)


def root_file_system(kernel: LiveKernel) -> int:
    """Return the super block that process 1 has as its root; 0 if there is none."""
    pid_at = kernel.offset("task_struct", "pid")
    for task in task_list(kernel):
        if kernel.u32(task + pid_at) == 1:
            fs = kernel.member_u64(task, "task_struct", "fs")
            mount = kernel.member_u64(fs, "fs_struct", "root.mnt") if fs else 0
            return kernel.member_u64(mount, "vfsmount", "mnt_sb") if mount else 0
    return 0


def path_of(kernel: LiveKernel, inode: int) -> str:
    """Return a path of ``inode`` within its file system, by its first directory entry."""
    head = inode + kernel.offset("inode", "i_dentry")
    dentry = next(hlist_entries(kernel, head, kernel.offset("dentry", "d_u"), limit=1 << 12), 0)
    parts: list[str] = []
    while dentry and len(parts) < _MAX_PATH_PARTS:
        parent = kernel.member_u64(dentry, "dentry", "d_parent")
        if parent == dentry:
            break
        parts.append(_name(kernel, dentry))
        dentry = parent
    return "/" + "/".join(reversed(parts)) if parts else f"inode {inode:#x}"


def _name(kernel: LiveKernel, dentry: int) -> str:
    at = dentry + kernel.offset("dentry", "d_name")
    (length,) = struct.unpack("<I", kernel.read(at + kernel.offset("qstr", "len"), 4))
    data = kernel.read(kernel.u64(at + kernel.offset("qstr", "name")), min(length, _MAX_NAME))
    return data.decode("utf-8", errors="backslashreplace")


def _vdso_frames(kernel: LiveKernel) -> list[tuple[int, int]]:
    """Return where the kernel's vDSO images lie in physical memory."""
    frames = []
    for name in ("vdso_image_64", "vdso_image_32", "vdso_image_x32"):
        image = kernel.find_symbol(name)
        if image is None:
            continue
        start = kernel.member_u64(image, "vdso_image", "data")
        size = kernel.member_u64(image, "vdso_image", "size")
        for offset in range(0, min(size, 1 << 16), PAGE_SIZE):
            frame = kernel.space.translate(start + offset) & ~(PAGE_SIZE - 1)
            frames.append((frame, frame + PAGE_SIZE))
    return frames


def collect(
    kernel: LiveKernel, observer: Observer, library: FileLibrary | None = None
) -> tuple[Finding, ...]:
    """Return the findings on what processes execute; ``user.code`` only with a library."""
    specs = SPECS if library is None else (*SPECS, CODE)
    return observer.settle_all(specs, kernel, lambda fresh: UserCode(fresh, library).look())
