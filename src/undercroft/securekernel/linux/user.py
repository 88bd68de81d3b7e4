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

_USER_HALF = range(256)
_PAGE_MAPPING_ANON, _PAGE_MAPPING_FLAGS = 1, 3
_COMPOUND_TAIL = 1
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
        "programs that generate code while they run (JIT) fail this",
        "pages that are swapped out or were never touched are not seen",
    ),
)
FILES = FactSpec(
    "user.exec.files",
    "every file that a process executes still has its name",
    "processes execute files that were deleted",
    ("what the files hold is for IMA to say, and is not compared here",),
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
    """One look over the memory of every process."""

    def __init__(self, kernel: LiveKernel) -> None:
        self._kernel = kernel
        self._vmemmap = kernel.u64(kernel.symbol("vmemmap_base"))
        self._page_size = kernel.size_of("page")
        self._mapping_at = kernel.offset("page", "mapping")
        self._head_at = kernel.offset("page", "compound_head")
        self._vdso = _vdso_frames(kernel)
        self._seen = _Seen()
        self._of_files: set[int] = set()

    def look(self) -> dict[str, Look]:
        """Look once."""
        found = processes(self._kernel)
        if found:
            self._check_pages(found)
        for process in found:
            self._check_environment(process)
        seen = self._seen
        details: dict[str, JsonValue] = {"processes": len(found), "executable_pages": seen.pages}
        return {
            ANONYMOUS.id: Look(seen.anonymous, details),
            FILES.id: Look(seen.files, {"files": sorted(set(seen.paths.values()))}),
            PRELOAD.id: Look(seen.preload, {"processes": len(found)}),
        }

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
        for root, vaddr, paddr, size, rights in zip(
            pages.root.tolist(),
            pages.vaddr.tolist(),
            pages.paddr.tolist(),
            pages.size.tolist(),
            pages.rights.tolist(),
            strict=True,
        ):
            if paddr not in self._of_files:
                self._check_page(by_root[root], vaddr, paddr, size, rights)

    def _check_page(self, process: Process, vaddr: int, paddr: int, size: int, rights: int) -> None:
        if any(start <= paddr and paddr + size <= end for start, end in self._vdso):
            return
        mapping = self._mapping(paddr)
        if mapping and not mapping & _PAGE_MAPPING_FLAGS:
            self._of_files.add(paddr)
            self._check_file(process, mapping)
            return
        kind = "anonymous" if mapping & _PAGE_MAPPING_ANON else "of no file"
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

    def _mapping(self, paddr: int) -> int:
        """Return ``page->mapping`` of the page at ``paddr``, or of the one that it is part of."""
        page = self._vmemmap + (paddr >> 12) * self._page_size
        head = self._kernel.u64(page + self._head_at)
        if head & _COMPOUND_TAIL:
            page = head - _COMPOUND_TAIL
        return self._kernel.u64(page + self._mapping_at)

    def _check_file(self, process: Process, mapping: int) -> None:
        if mapping in self._seen.paths:
            return
        kernel = self._kernel
        inode = kernel.member_u64(mapping, "address_space", "host")
        path = path_of(kernel, inode)
        self._seen.paths[mapping] = path
        links = kernel.member_u32(inode, "inode", "i_nlink")
        if not links:
            self._seen.files[inode] = Anomaly(
                {"pid": process.pid, "comm": process.comm, "file": path, "rule": "it was deleted"}
            )

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


def collect(kernel: LiveKernel, observer: Observer) -> tuple[Finding, ...]:
    """Return the three findings on what processes execute."""
    return observer.settle_all(SPECS, kernel, lambda fresh: UserCode(fresh).look())
