"""Operation tables of files, /proc, file systems and sockets."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from undercroft.base import Finding, Outcome
from undercroft.securekernel.linux import ops
from undercroft.securekernel.linux.facts import Observer
from undercroft.securekernel.linux.live import StructureError
from undercroft.testing.fakecode import BAD_MODULE, GOOD_MODULE, FakeCode

TABLE: tuple[int, dict[str, int]] = (64, {})
LAYOUTS: dict[str, tuple[int, dict[str, int]]] = {
    "task_struct": (256, {"tasks": 0, "files": 16, "pid": 32, "comm": 40}),
    "files_struct": (64, {"fdt": 32}),
    "fdtable": (56, {"max_fds": 0, "fd": 8}),
    "file": (128, {"f_path.dentry": 16, "f_inode": 32, "f_op": 40, "private_data": 48}),
    "inode": (128, {"i_op": 32, "i_mapping": 48, "i_fop": 56}),
    "address_space": (192, {"a_ops": 144}),
    "dentry": (192, {"d_inode": 48, "d_op": 96}),
    "super_block": (256, {"s_list": 0, "s_type": 40, "s_op": 48, "s_root": 104, "s_d_op": 112}),
    "file_system_type": (64, {"name": 0}),
    "proc_dir_entry": (
        192,
        {
            "proc_iops": 40,
            "proc_ops": 48,
            "proc_dops": 56,
            "single_show": 64,
            "seq_ops": 64,
            "subdir": 72,
            "subdir_node": 80,
            "name": 104,
            "mode": 112,
        },
    ),
    "file_operations": (64, {"read": 0, "read_iter": 8}),
    "seq_file": (120, {"op": 88}),
    "socket": (64, {"ops": 0, "sk": 8}),
    "sock": (
        256,
        {
            "__sk_common.skc_family": 16,
            "__sk_common.skc_prot": 40,
            "sk_filter": 64,
            **{name: 72 + 8 * n for n, name in enumerate(ops._SOCK_CALLBACKS)},
        },
    ),
    **dict.fromkeys(
        (
            "inode_operations",
            "address_space_operations",
            "dentry_operations",
            "super_operations",
            "proc_ops",
            "seq_operations",
            "proto_ops",
            "proto",
        ),
        TABLE,
    ),
}


class Guest(FakeCode):
    """One process with a file and a socket open, one file system, /proc with one entry."""

    def __init__(self) -> None:
        super().__init__(LAYOUTS)
        rodata = self.symbol("__start_rodata", 256)
        self.image.symbols.names["__end_rodata"] = rodata - self.slide + 256
        self.constant = rodata + 64
        self.table = self.ops(self.function(1), GOOD_MODULE, 0, 7)
        mapping = self.make("address_space", a_ops=self.constant)
        self.inode = self.make("inode", i_op=self.table, i_fop=self.constant, i_mapping=mapping)
        self.dentry = self.make("dentry", d_inode=self.inode, d_op=self.constant)
        self.file = self.make("file", f_op=self.constant, f_inode=self.inode)
        self.put(self.file, "file", "f_path.dentry", self.dentry)
        self._socket()
        self._process([0, self.file, 0, self.socket_file])
        kind = self.make("file_system_type", name=self.string("ext4"))
        self.block = self.make("super_block", s_type=kind, s_op=self.constant, s_root=self.dentry)
        self.link_list(self.symbol("super_blocks", 16), [self.block])
        self._proc()

    def ops(self, *words: int) -> int:
        """Make an operation table on the heap."""
        at = self.alloc(64)
        for number, word in enumerate(words):
            self.guest.put_u64(at + 8 * number, word)
        return at

    def _socket(self) -> None:
        self.image.symbols.names["socket_file_ops"] = self.constant - self.slide + 8
        self.sock = self.make("sock", sk_data_ready=self.function(2))
        self.put(self.sock, "sock", "__sk_common.skc_prot", self.constant)
        socket = self.make("socket", ops=self.constant, sk=self.sock)
        self.socket_file = self.make("file", f_op=self.constant + 8, private_data=socket)

    def _process(self, files: list[int]) -> None:
        array = self.alloc(8 * len(files))
        for number, file in enumerate(files):
            self.guest.put_u64(array + 8 * number, file)
        self.fdt = self.make("fdtable", fd=array)
        self.put(self.fdt, "fdtable", "max_fds", len(files), size=4)
        table = self.make("files_struct", fdt=self.fdt)
        task = self.make("task_struct", files=table)
        self.put(task, "task_struct", "pid", 7, size=4)
        self.guest.write(task + 40, b"sh")
        self.link_list(self.symbol("init_task", 256), [task])

    def _proc(self) -> None:
        self.root = self.symbol("proc_root", 192)
        self.put(self.root, "proc_dir_entry", "mode", 0o040555, size=2)
        self.put(self.root, "proc_dir_entry", "proc_ops", self.constant)
        self.entry = self.make("proc_dir_entry", proc_ops=self.constant, proc_iops=self.constant)
        self.put(self.entry, "proc_dir_entry", "name", self.string("version"))
        self.put(self.root, "proc_dir_entry", "subdir", self.entry + 80)
        self.guest.put_u64(self.entry + 80, 1)  # black, no parent

    def findings(self) -> dict[str, Finding]:
        found = ops.collect(self.kernel(), Observer(nullcontext, lambda _: None, (0, 1)))
        return {one.id: one for one in found}

    def anomalies(self, name: str) -> list[dict[str, Any]]:
        findings = self.findings()
        failed = {key for key, one in findings.items() if one.outcome is Outcome.FAIL}
        assert failed == {name}
        listed = findings[name].details["anomalies"]
        assert isinstance(listed, list)
        return listed


FILES, SOCKETS, PACKETS = "kernel.ops.files", "kernel.ops.sockets", "kernel.sockets.packet"


@pytest.fixture
def fake() -> Guest:
    return Guest()


def test_lawful_tables_pass(fake: Guest) -> None:
    findings = fake.findings()
    assert all(one.outcome is Outcome.PASS for one in findings.values())
    assert findings[FILES].details["open_files"] == 2


def test_a_changed_table_is_found_wherever_it_is(fake: Guest) -> None:
    fake.guest.put_u64(fake.table + 8 * 3, BAD_MODULE + 0x10)
    found = fake.anomalies(FILES)
    assert {one["object"] for one in found} == {"sh (7) fd 1, i_op", "file system ext4, root, i_op"}
    assert found[0]["rule"].startswith("operation 3: it leads into module bad")


def test_a_swapped_pointer_to_a_table_in_a_module_is_found(fake: Guest) -> None:
    fake.put(fake.file, "file", "f_op", fake.ops(0, fake.stray()))
    (found,) = fake.anomalies(FILES)
    assert found["object"] == "sh (7) fd 1"
    assert "no known code" in found["rule"]


@pytest.mark.parametrize(
    ("struct_name", "member", "object_name"),
    [
        ("dentry", "d_op", "sh (7) fd 1, d_op"),
        ("super_block", "s_op", "file system ext4"),
        ("super_block", "s_d_op", "file system ext4, d_op"),
        ("proc_dir_entry", "proc_ops", "/proc/version"),
        ("proc_dir_entry", "proc_iops", "/proc/version"),
        ("proc_dir_entry", "proc_dops", "/proc/version, d_op"),
    ],
)
def test_every_pointer_to_a_table(
    fake: Guest, struct_name: str, member: str, object_name: str
) -> None:
    place = {"dentry": fake.dentry, "super_block": fake.block, "proc_dir_entry": fake.entry}
    fake.put(place[struct_name], struct_name, member, fake.ops(BAD_MODULE))
    assert [one["object"] for one in fake.anomalies(FILES)] == [object_name]


def test_seq_operations_and_single_show_of_proc(fake: Guest) -> None:
    names = fake.image.symbols.names
    names["proc_seq_ops"] = fake.constant - fake.slide
    fake.put(fake.entry, "proc_dir_entry", "seq_ops", fake.ops(BAD_MODULE))
    assert fake.anomalies(FILES)[0]["object"] == "/proc/version, seq_ops"
    names["proc_single_ops"] = names.pop("proc_seq_ops")
    fake.put(fake.entry, "proc_dir_entry", "single_show", fake.function(3))
    assert fake.findings()[FILES].outcome is Outcome.PASS
    fake.put(fake.entry, "proc_dir_entry", "single_show", BAD_MODULE)
    assert fake.anomalies(FILES)[0]["object"] == "/proc/version, single_show"


def test_sockets_have_operations_a_protocol_and_callbacks(fake: Guest) -> None:
    fake.put(fake.sock, "sock", "sk_data_ready", BAD_MODULE)
    fake.put(fake.sock, "sock", "__sk_common.skc_prot", fake.ops(BAD_MODULE))
    assert {one["object"] for one in fake.anomalies(SOCKETS)} == {
        "sh (7) fd 3, sk_data_ready",
        "sh (7) fd 3, sk_prot",
    }


def test_a_packet_socket_is_for_a_person_to_judge(fake: Guest) -> None:
    fake.put(fake.sock, "sock", "__sk_common.skc_family", 17, size=2)
    fake.put(fake.sock, "sock", "sk_filter", 0xFFFF888000000000)
    found = fake.findings()[PACKETS]
    assert found.outcome is Outcome.UNKNOWN
    anomalies = found.details["anomalies"]
    assert isinstance(anomalies, list)
    assert (anomalies[0]["socket"], anomalies[0]["filter"]) == ("sh (7) fd 3", True)


def test_a_socket_without_sock_and_null_operations_pass(fake: Guest) -> None:
    socket = fake.make("socket")
    fake.put(fake.socket_file, "file", "private_data", socket)
    fake.put(fake.file, "file", "f_inode", 0)
    assert all(one.outcome is Outcome.PASS for one in fake.findings().values())


def test_absurd_sizes_are_refused(fake: Guest) -> None:
    fake.put(fake.fdt, "fdtable", "max_fds", 1 << 20, size=4)
    with pytest.raises(StructureError, match="absurdly many files"):
        list(ops.open_files(fake.kernel()))


def test_a_proc_tree_that_holds_itself_ends(fake: Guest) -> None:
    node = fake.entry + 80
    fake.put(fake.entry, "proc_dir_entry", "subdir", node)
    found = fake.findings()[FILES]
    assert found.outcome is Outcome.UNKNOWN


@pytest.mark.parametrize("reader", ["read", "read_iter"])
def test_what_makes_the_lines_of_a_file_is_looked_at(fake: Guest, reader: str) -> None:
    names = fake.image.symbols.names
    names |= {
        "seq_read": fake.function(5) - fake.slide,
        "seq_read_iter": fake.function(6) - fake.slide,
    }
    words = (fake.function(5), 0) if reader == "read" else (0, fake.function(6))
    fake.put(fake.file, "file", "f_op", fake.ops(*words))
    lines = fake.ops(fake.function(1), BAD_MODULE)
    sequence = fake.make("seq_file", op=lines)
    assert fake.findings()["kernel.ops.files"].outcome is Outcome.PASS  # it has no seq_file yet
    fake.put(fake.file, "file", "private_data", sequence)
    (found,) = fake.anomalies("kernel.ops.files")
    assert found["object"] == "sh (7) fd 1, seq_ops"
