"""What processes can execute, found through their page tables."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest

from undercroft.base import Finding, Outcome
from undercroft.securekernel.linux import user
from undercroft.securekernel.linux.facts import Observer
from undercroft.testing.fakekernel import DIRECT_MAP, FakeKernel

MAPPINGS = {
    "maple_tree": (24, {"ma_root": 8}),
    "maple_range_64": (256, {"pivot": 8, "slot": 128}),
    "maple_arange_64": (248, {"pivot": 8, "slot": 80}),
    "vm_area_struct": (
        152,
        {
            "vm_start": 0,
            "vm_end": 8,
            "vm_flags": 32,
            "vm_pgoff": 104,
            "vm_file": 112,
            "vm_private_data": 120,
        },
    ),
}
LAYOUTS = {
    "task_struct": (256, {"tasks": 0, "mm": 16, "pid": 32, "comm": 40, "fs": 64}),
    "fs_struct": (56, {"root.mnt": 24}),
    "vfsmount": (32, {"mnt_sb": 8}),
    "mm_struct": (256, {"pgd": 8, "env_start": 16, "env_end": 24, "mm_mt": 64}),
    "page": (64, {"compound_head": 8, "mapping": 24, "index": 32}),
    "address_space": (192, {"host": 0, "i_pages": 8}),
    "xarray": (16, {"xa_head": 8}),
    "xa_node": (576, {"shift": 0, "parent": 8, "slots": 40}),
    "file": (64, {"f_inode": 8}),
    **MAPPINGS,
    "inode": (384, {"i_sb": 40, "i_nlink": 72, "i_dentry": 312}),
    "dentry": (192, {"d_parent": 24, "d_name": 32, "d_u": 176}),
    "qstr": (16, {"len": 4, "name": 8}),
    "vdso_image": (152, {"data": 0, "size": 8}),
}
CODE, STACK = 0x400000, 0x7FFF00000000
VMEMMAP = 0xFFFFEA0000000000


class Library:
    """Packages that have one file."""

    def __init__(self, path: str, *contents: bytes) -> None:
        self._path, self._contents = path, contents

    def contents(self, path: str) -> Sequence[bytes]:
        return self._contents if path == self._path else ()


class Guest(FakeKernel):
    """One process that runs /bin/sh, with its vDSO and an environment."""

    def __init__(self) -> None:
        super().__init__(LAYOUTS)
        self.guest.map(VMEMMAP, (self.guest.memory.size >> 12) * 64 + 4095 & ~4095)
        self.guest.put_u64(self.symbol("vmemmap_base"), VMEMMAP)
        self.root = self.guest.frame()
        self.guest.map(DIRECT_MAP + self.root, paddr=self.root)
        self.mm = self.make("mm_struct", pgd=DIRECT_MAP + self.root)
        task = self.make("task_struct", mm=self.mm)
        self.put(task, "task_struct", "pid", 7, size=4)
        self.guest.write(task + 40, b"sh")
        thread = self.make("task_struct", mm=self.mm)  # the same memory again
        kernel_thread = self.make("task_struct")
        self.block = 0xFFFF888000ABC000
        root = self.make("fs_struct", root__mnt=self.make("vfsmount", mnt_sb=self.block))
        self.first = self.make("task_struct", fs=root)
        self.put(self.first, "task_struct", "pid", 1, size=4)
        tasks = [self.first, task, thread, kernel_thread]
        self.link_list(self.symbol("init_task", 256), tasks)
        self.areas: list[int] = []
        self.file = self._file("bin", "sh")
        self.open_file = self.make("file", f_inode=self.inode)
        self.area(CODE, CODE + 0x3000, file=self.open_file)
        self.area(0x500000, 0x502000)
        self.area(STACK - 0x2000, STACK - 0x1000, private=1)
        self.text = self.executable(CODE, self.file)
        self._vdso()
        self.library: Library | None = None

    def _file(self, *parts: str) -> int:
        """Make an inode with a path of directory entries; return its address_space."""
        dentry = self.make("dentry")
        self.put(dentry, "dentry", "d_parent", dentry)
        for part in parts:
            parent, dentry = dentry, self.make("dentry")
            self.put(dentry, "dentry", "d_parent", parent)
            self.guest.put_u32(dentry + 32 + 4, len(part))
            self.guest.put_u64(dentry + 32 + 8, self.string(part))
        self.inode = self.make("inode", i_sb=self.block)
        self.put(self.inode, "inode", "i_nlink", 1, size=4)
        self.link_hlist(self.inode + 312, [dentry + 176])
        return self.make("address_space", host=self.inode)

    def area(self, start: int, end: int, *, file: int = 0, private: int = 0, flags: int = 5) -> int:
        """Add a mapping, executable unless ``flags`` say otherwise."""
        area = self.make(
            "vm_area_struct", vm_start=start, vm_end=end, vm_flags=flags, vm_file=file,
            vm_private_data=private,
        )  # fmt: skip
        self.areas.append(area)
        leaf = self.alloc(256, align=256)
        for number, one in enumerate(self.areas):
            self.guest.put_u64(leaf + 128 + 16 * number + 8, one)  # between two holes
            last = self.guest_u64(one + 8) - 1
            self.guest.put_u64(leaf + 8 + 16 * number, self.guest_u64(one) - 1)
            self.guest.put_u64(leaf + 8 + 16 * number + 8, last)
        self.put(self.mm, "mm_struct", "mm_mt", 0)
        self.guest.put_u64(self.mm + 64 + 8, leaf | 1 << 3 | 2)
        return area

    def guest_u64(self, address: int) -> int:
        return self.kernel().u64(address)

    def page(self, paddr: int) -> int:
        return VMEMMAP + (paddr >> 12) * 64

    def executable(self, vaddr: int, mapping: int, *, writable: bool = False) -> int:
        paddr = self.guest.map(vaddr, executable=True, user=True, writable=writable, root=self.root)
        self.put(self.page(paddr), "page", "mapping", mapping)
        return paddr

    def _vdso(self) -> None:
        frame = self.guest.frame()
        data = DIRECT_MAP + frame
        self.guest.map(data, paddr=frame)
        image = self.symbol("vdso_image_64", 152)
        self.put(image, "vdso_image", "data", data)
        self.put(image, "vdso_image", "size", 0x1000)
        self.guest.map(
            STACK - 0x2000, paddr=frame, executable=True, user=True, writable=False, root=self.root
        )

    def environment(self, data: bytes) -> None:
        paddr = self.guest.map(STACK, user=True, root=self.root)
        self.guest.memory.write(paddr, data)
        self.put(self.mm, "mm_struct", "env_start", STACK)
        self.put(self.mm, "mm_struct", "env_end", STACK + len(data))

    def findings(self) -> dict[str, Finding]:
        observer = Observer(nullcontext, lambda _: None, (0, 1))
        found = user.collect(self.kernel(), observer, self.library)
        return {one.id: one for one in found}

    def only(self, name: str) -> dict[str, Any]:
        findings = self.findings()
        assert {key for key, one in findings.items() if one.outcome is not Outcome.PASS} == {name}
        anomalies: Any = findings[name].details["anomalies"]
        (anomaly,) = anomalies
        return dict(anomaly)

    def cache(self, *pages: int) -> None:
        """Let the page cache hold these frames of the file, from its first page on."""
        node = self.make("xa_node")
        for index, paddr in enumerate(pages):
            self.guest.put_u64(node + 40 + 8 * index, self.page(paddr) if paddr else 0)
        self.guest.put_u64(self.file + 8 + 8, node + 2)


ANONYMOUS, FILES, PRELOAD = "user.exec.anonymous", "user.exec.files", "user.preload"
CODE_FACT = "user.code"
PAGES = (b"\1" * 4096, b"\2" * 4096, b"the end")
PROGRAM = b"".join(PAGES)


@pytest.fixture
def fake() -> Guest:
    return Guest()


def test_files_and_the_vdso_pass(fake: Guest) -> None:
    fake.environment(b"HOME=/\0PATH=/bin\0")
    findings = fake.findings()
    assert all(one.outcome is Outcome.PASS for one in findings.values())
    assert findings[FILES].details["files"] == ["/bin/sh"]
    assert findings[ANONYMOUS].details["executable_pages"] == 2
    assert findings[ANONYMOUS].details["processes"] == 1


def test_injected_code_is_found(fake: Guest) -> None:
    fake.executable(0x500000, 0xFFFF888000001001, writable=True)
    found = fake.only(ANONYMOUS)
    assert found == {
        "pid": 7,
        "comm": "sh",
        "address": "0x500000",
        "size": 4096,
        "kind": "anonymous",
        "writable": True,
    }


def test_a_patched_copy_of_a_files_page_is_found(fake: Guest) -> None:
    """A write through ptrace makes the page anonymous, where the file was mapped."""
    fake.put(fake.page(fake.text), "page", "mapping", 0xFFFF888000001001)
    assert fake.only(ANONYMOUS)["address"] == f"{CODE:#x}"


def test_a_patched_vdso_is_found(fake: Guest) -> None:
    fake.executable(STACK - 0x2000, 0xFFFF888000001001)
    assert fake.only(ANONYMOUS)["address"] == f"{STACK - 0x2000:#x}"


def test_a_kernel_page_that_users_can_execute_is_found(fake: Guest) -> None:
    fake.executable(0x500000, 0)
    assert fake.only(ANONYMOUS)["kind"] == "of no file"


def test_a_page_of_a_larger_one_belongs_to_its_head(fake: Guest) -> None:
    tail = fake.executable(0x500000, 0)
    fake.put(fake.page(tail), "page", "compound_head", fake.page(fake.text) + 1)
    assert fake.findings()[ANONYMOUS].outcome is Outcome.PASS


def test_data_is_not_code(fake: Guest) -> None:
    paddr = fake.guest.map(0x600000, user=True, root=fake.root)
    fake.put(fake.page(paddr), "page", "mapping", 0xFFFF888000001001)
    assert fake.findings()[ANONYMOUS].outcome is Outcome.PASS


def test_a_deleted_file_is_found(fake: Guest) -> None:
    fake.put(fake.inode, "inode", "i_nlink", 0, size=4)
    found = fake.only(FILES)
    assert (found["file"], found["rule"]) == ("/bin/sh", "it was deleted")


@pytest.mark.parametrize(
    ("variable", "outcome"),
    [
        ("LD_PRELOAD=/x.so", Outcome.FAIL),
        ("LD_AUDIT=/x.so", Outcome.FAIL),
        ("LD_LIBRARY_PATH=/x", Outcome.UNKNOWN),
    ],
)
def test_a_loader_variable_is_found(fake: Guest, variable: str, outcome: Outcome) -> None:
    fake.environment(b"HOME=/\0" + variable.encode() + b"\0")
    assert fake.only(PRELOAD)["variable"] == variable
    assert fake.findings()[PRELOAD].outcome is outcome


def test_an_environment_that_is_not_in_memory_is_passed_over(fake: Guest) -> None:
    fake.environment(b"HOME=/\0")
    fake.put(fake.mm, "mm_struct", "env_end", STACK + 0x3000)
    assert fake.findings()[PRELOAD].outcome is Outcome.PASS


@pytest.mark.parametrize("end", [STACK - 1, STACK + (1 << 30)])
def test_an_absurd_environment_is_not_read(fake: Guest, end: int) -> None:
    fake.environment(b"LD_PRELOAD=/x.so\0")
    fake.put(fake.mm, "mm_struct", "env_end", end)
    assert fake.findings()[PRELOAD].outcome is Outcome.PASS


def test_a_path_that_has_no_end_is_cut(fake: Guest) -> None:
    loop = fake.make("dentry")
    other = fake.make("dentry")
    for one, parent in ((loop, other), (other, loop)):
        fake.put(one, "dentry", "d_parent", parent)
        fake.guest.put_u32(one + 36, 1)
        fake.guest.put_u64(one + 40, fake.string("x"))
    fake.link_hlist(fake.inode + 312, [loop + 176])
    assert user.path_of(fake.kernel(), fake.inode).count("/x") == 64


def test_a_file_without_a_directory_entry_goes_by_its_inode(fake: Guest) -> None:
    fake.link_hlist(fake.inode + 312, [])
    assert user.path_of(fake.kernel(), fake.inode) == f"inode {fake.inode:#x}"


def test_wild_pointers_are_unknown(fake: Guest) -> None:
    fake.put(fake.file, "address_space", "host", 0x10)
    assert fake.findings()[FILES].outcome is Outcome.UNKNOWN


def test_a_page_that_no_mapping_covers_is_found(fake: Guest) -> None:
    """Somebody wrote into the page tables; no list of mappings tells of it."""
    fake.executable(0x700000, fake.file)
    assert fake.only(ANONYMOUS)["kind"] == "of no mapping"


def test_a_page_of_a_mapping_that_may_not_be_executed_is_found(fake: Guest) -> None:
    fake.area(0x800000, 0x801000, file=fake.open_file, flags=1)
    fake.executable(0x800000, fake.file)
    assert fake.only(ANONYMOUS)["kind"] == "of no mapping"


def test_anonymous_pages_that_are_not_in_memory_are_counted(fake: Guest) -> None:
    details = fake.findings()[ANONYMOUS].details
    assert details["anonymous_pages_not_in_memory"] == 2  # of the mapping at 0x500000


class Program(Guest):
    """Its first page is executed, its second and last are in the page cache."""

    def __init__(self) -> None:
        super().__init__()
        self.library = Library("/bin/sh", PROGRAM)
        self.cached = [self.text, self.guest.frame(), self.guest.frame()]
        for frame, content in zip(self.cached, PAGES, strict=True):
            self.guest.memory.write(frame, content)
        self.cache(*self.cached)


@pytest.fixture
def program() -> Program:
    return Program()


def test_code_that_is_the_packages_passes(program: Program) -> None:
    found = program.findings()[CODE_FACT]
    assert found.outcome is Outcome.PASS
    assert found.details["files"] == ["/bin/sh"]
    assert found.details["executed_pages_compared"] == 1
    assert found.details["cached_pages_compared"] == 2
    assert found.details["pages_not_in_memory"] == 0


def test_without_packages_nothing_is_said_of_code(fake: Guest) -> None:
    assert CODE_FACT not in fake.findings()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_changed_page_is_found_at_its_place(program: Program, number: int) -> None:
    program.guest.memory.write(program.cached[number] + 0x123, b"\xcc")
    found = program.only(CODE_FACT)
    assert (found["file"], found["offset"]) == ("/bin/sh", f"{4096 * number + 0x123:#x}")
    assert found["got"].startswith("cc")
    assert found["bytes"] == 1


def test_a_page_behind_the_end_of_the_file_is_found(program: Program) -> None:
    extra = program.guest.frame()
    program.guest.memory.write(extra, b"\x90")
    program.cache(*program.cached, extra)
    assert program.only(CODE_FACT)["offset"] == "0x3000"


def test_pages_that_are_not_in_memory_are_counted(program: Program) -> None:
    program.cache(program.cached[0])
    found = program.findings()[CODE_FACT]
    assert found.outcome is Outcome.PASS
    assert found.details["pages_not_in_memory"] == 2


def test_any_version_that_a_package_has_will_do(program: Program) -> None:
    program.library = Library("/bin/sh", b"another", PROGRAM)
    assert program.findings()[CODE_FACT].outcome is Outcome.PASS


def test_a_mixture_of_two_versions_is_found(program: Program) -> None:
    program.library = Library("/bin/sh", PROGRAM, bytes(4096) + PROGRAM[4096:])
    program.guest.memory.write(program.cached[1], bytes(4096))
    assert program.only(CODE_FACT)["offset"] == "0x1000"


def test_a_file_that_no_package_has_is_unknown(program: Program) -> None:
    program.library = Library("/bin/other", PROGRAM)
    found = program.findings()[CODE_FACT]
    assert found.outcome is Outcome.UNKNOWN
    assert found.details["without_reference"] == ["/bin/sh"]


def test_larger_pages_are_compared_whole(program: Program) -> None:
    """Three frames in a row under one head, as large folios are."""
    first = program.guest.frames(3)
    program.cache(first)
    for number, content in enumerate(PAGES):
        program.guest.memory.write(first + 4096 * number, content)
        if number:
            tail = program.page(first + 4096 * number)
            program.put(tail, "page", "compound_head", program.page(first) + 1)
    assert program.findings()[CODE_FACT].details["cached_pages_compared"] == 2
    program.guest.memory.write(first + 0x2003, b"!")
    assert program.only(CODE_FACT)["offset"] == "0x2003"


def test_a_private_copy_that_still_is_the_files_passes(program: Program) -> None:
    copy = program.executable(CODE + 0x1000, 0xFFFF888000001001)
    program.guest.memory.write(copy, PAGES[1])
    found = program.findings()
    assert found[ANONYMOUS].outcome is Outcome.PASS
    assert found[CODE_FACT].details["equal_copies"] == 1
    program.guest.memory.write(copy, b"\xcc")
    assert program.only(ANONYMOUS)["address"] == f"{CODE + 0x1000:#x}"


@pytest.mark.parametrize("change", ["another file system", "no process 1", "no root"])
def test_a_path_on_another_file_system_means_nothing(program: Program, change: str) -> None:
    """A container's /bin/sh is not the guest's."""
    if change == "another file system":
        program.put(program.inode, "inode", "i_sb", 0xFFFF888000DEF000)
    elif change == "no process 1":
        program.put(program.first, "task_struct", "pid", 2, size=4)
    else:
        program.put(program.first, "task_struct", "fs", 0)
    program.guest.memory.write(program.cached[0], b"another shell")
    assert program.findings()[CODE_FACT].outcome is Outcome.UNKNOWN
    copy = program.executable(CODE + 0x1000, 0xFFFF888000001001)
    program.guest.memory.write(copy, PAGES[1])
    assert program.findings()[ANONYMOUS].outcome is Outcome.FAIL
