"""Mounts by every list that knows them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from undercroft.base import Finding, Outcome
from undercroft.securekernel.linux import mounts
from undercroft.securekernel.linux.facts import Observer
from undercroft.testing.fakekernel import FakeKernel, Layouts

COMMON: Layouts = {
    "task_struct": (256, {"tasks": 0, "nsproxy": 16}),
    "nsproxy": (72, {"mnt_ns": 24}),
    "super_block": (512, {"s_list": 0, "s_type": 40, "s_mounts": 224}),
    "file_system_type": (72, {"name": 0}),
    "dentry": (192, {"d_parent": 24, "d_name.name": 40}),
    "rb_node": (24, {"__rb_parent_color": 0, "rb_right": 8, "rb_left": 16}),
    "rb_root": (8, {"rb_node": 0}),
}
_MOUNT = {
    "mnt_hash": 0,
    "mnt_parent": 16,
    "mnt_mountpoint": 24,
    "mnt.mnt_sb": 40,
    "mnt.mnt_flags": 48,
    "mnt_instance": 120,
    "mnt_list": 144,
    "mnt_ns": 232,
}
LISTS: Layouts = {
    **COMMON,
    "mount": (320, _MOUNT),
    "mnt_namespace": (120, {"list": 32}),
}
TREES: Layouts = {
    **COMMON,
    "mount": (336, {**_MOUNT, "mnt_node": 64}),
    "mnt_namespace": (136, {"mounts": 32}),
}
INTERNAL = (1 << 64) - 22


class Guest(FakeKernel):
    """One namespace with a root and a file system mounted on /srv."""

    def __init__(self, layouts: Layouts) -> None:
        super().__init__(layouts)
        self.trees = layouts is TREES
        self.namespace = self.make("mnt_namespace")
        proxy = self.make("nsproxy", mnt_ns=self.namespace)
        task, dead = self.make("task_struct", nsproxy=proxy), self.make("task_struct")
        self.link_list(self.symbol("init_task", 256), [task, dead])
        kind = self.make("file_system_type", name=self.string("ext4"))
        self.block = self.make("super_block", s_type=kind)
        self.link_list(self.symbol("super_blocks", 16), [self.block])
        self.table = self.alloc(8 * 4)
        self.guest.put_u64(self.symbol("mount_hashtable"), self.table)
        self.guest.put_u32(self.symbol("m_hash_mask"), 3)
        top = self.make("dentry")
        self.put(top, "dentry", "d_parent", top)
        self.place = self.make("dentry", d_parent=top, d_name__name=self.string("srv"))
        self.root = self.mount(0)
        self.srv = self.mount(self.root)
        self.kernels_own = self.mount(0, namespace=INTERNAL)
        self.arrange()

    def mount(self, parent: int, namespace: int | None = None) -> int:
        made = self.make("mount", mnt_mountpoint=self.place, mnt__mnt_sb=self.block)
        self.put(made, "mount", "mnt_parent", parent or made)
        space = self.namespace if namespace is None else namespace
        self.put(made, "mount", "mnt_ns", space)
        return made

    def arrange(
        self,
        file_system: tuple[int, ...] | None = None,
        table: tuple[int, ...] | None = None,
        shown: tuple[int, ...] | None = None,
    ) -> None:
        """Put the mounts into the three views; what is not given is as it should be."""
        everything = (self.root, self.srv, self.kernels_own)
        chosen = everything if file_system is None else file_system
        self.link_list(self.block + 224, [one + 120 for one in chosen])
        self.link_hlist(self.table + 16, (self.srv,) if table is None else table)
        listed = (self.root, self.srv) if shown is None else shown
        if not self.trees:
            self.link_list(self.namespace + 32, [one + 144 for one in listed])
            return
        self.guest.put_u64(self.namespace + 32, listed[0] + 64 if listed else 0)
        for above, below in zip(listed, (*listed[1:], 0), strict=True):
            self.guest.put_u64(above + 64 + 8, below + 64 if below else 0)
            if below:
                self.guest.put_u64(below + 64, above + 64)

    def look(self) -> Finding:
        return mounts.crossview(self.kernel(), Observer(nullcontext, lambda _: None, (0, 1)))


@pytest.fixture(params=[LISTS, TREES], ids=["lists", "trees"])
def fake(request: pytest.FixtureRequest) -> Guest:
    return Guest(request.param)


def test_views_that_agree_pass(fake: Guest) -> None:
    found = fake.look()
    assert found.outcome is Outcome.PASS
    assert (found.details["mounts"], found.details["namespaces"]) == (2, 1)


@pytest.mark.parametrize(
    ("view", "missing"),
    [
        ("shown", "namespace"),
        ("table", "mount_hashtable"),
        ("file_system", "file system's list"),
    ],
)
def test_a_mount_that_one_view_lacks_is_found(fake: Guest, view: str, missing: str) -> None:
    left = () if view == "table" else (fake.root,)
    fake.arrange(**{view: left})
    found = fake.look()
    assert found.outcome is Outcome.FAIL
    anomalies: Any = found.details["anomalies"]
    (anomaly,) = anomalies
    assert anomaly["missing_from"] == [missing]
    assert (anomaly["mount"], anomaly["file_system"]) == ("/srv", "ext4")


def test_a_namespace_without_a_process_is_looked_at(fake: Guest) -> None:
    other = fake.make("mnt_namespace")
    if not fake.trees:
        fake.link_list(other + 32, [])
    fake.put(fake.srv, "mount", "mnt_ns", other)
    assert fake.look().outcome is Outcome.FAIL  # it says it is there, and is not shown there


def test_an_open_list_of_mounts_is_no_mount() -> None:
    fake = Guest(LISTS)
    cursor = fake.mount(0)
    fake.guest.put_u32(cursor + 48, 0x10000000)
    fake.arrange(shown=(fake.root, cursor, fake.srv))
    assert fake.look().outcome is Outcome.PASS


def test_a_mount_on_itself_ends(fake: Guest) -> None:
    dentry = fake.make("dentry", d_name__name=fake.string("x"))
    other = fake.make("dentry", d_name__name=fake.string("y"), d_parent=dentry)
    fake.put(dentry, "dentry", "d_parent", other)
    loop = fake.mount(fake.srv)
    fake.put(loop, "mount", "mnt_mountpoint", dentry)
    fake.put(fake.srv, "mount", "mnt_parent", loop)
    assert mounts.path_of_mount(fake.kernel(), loop).count("x") > 100


def test_an_absurd_table_is_unknown(fake: Guest) -> None:
    fake.guest.put_u32(fake.symbol("m_hash_mask"), 1 << 30)
    assert fake.look().outcome is Outcome.UNKNOWN
