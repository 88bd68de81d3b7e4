"""Mounts, by every list that knows them.

A mount that is part of a namespace stands in three places: its file system's list (``s_mounts``),
the table by which paths are looked up (``mount_hashtable``; a namespace's root is not in it), and
the namespace itself, which is what /proc/self/mounts shows.  One that works and is not shown is
hidden.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from undercroft.base import Finding, JsonValue
from undercroft.securekernel.linux.containers import hlist_entries, list_entries, rbtree_entries
from undercroft.securekernel.linux.facts import Anomaly, FactSpec, Look, Observer
from undercroft.securekernel.linux.live import MASK64, LiveKernel, StructureError
from undercroft.securekernel.linux.tasks import task_list

_MAX_MOUNTS = 1 << 17
_MAX_SUPER_BLOCKS = 1 << 14
_MAX_BUCKETS = 1 << 20
_MAX_DEPTH = 256
_MNT_CURSOR = 0x10000000  # include/linux/mount.h: an open /proc/self/mounts, no mount
_ERRORS = MASK64 - 4095  # IS_ERR: a mount of the kernel's own has MNT_NS_INTERNAL
FILE_SYSTEM, TABLE, NAMESPACE = "file system's list", "mount_hashtable", "namespace"

SPEC = FactSpec(
    "kernel.mounts.crossview",
    "every view of the mounts agrees",
    "a mount is hidden: some views of the mounts lack it",
    ("a mount that no list has at all is not found here; the files on it are, when they are open",),
)


@dataclass(frozen=True, slots=True)
class Mount:
    """What a ``struct mount`` says of itself."""

    address: int
    namespace: int
    parent: int
    super_block: int


def read_mount(kernel: LiveKernel, address: int) -> Mount:
    """Read the ``struct mount`` at ``address``."""
    return Mount(
        address,
        kernel.member_u64(address, "mount", "mnt_ns"),
        kernel.member_u64(address, "mount", "mnt_parent"),
        kernel.member_u64(address, "mount", "mnt.mnt_sb"),
    )


def by_file_system(kernel: LiveKernel) -> Iterator[int]:
    """Yield the mounts of every file system."""
    head, member = kernel.symbol("super_blocks"), kernel.offset("super_block", "s_list")
    mounts, instance = (
        kernel.offset("super_block", "s_mounts"),
        kernel.offset("mount", "mnt_instance"),
    )
    for block in list_entries(kernel, head, member, limit=_MAX_SUPER_BLOCKS):
        yield from list_entries(kernel, block + mounts, instance, limit=_MAX_MOUNTS)


def by_table(kernel: LiveKernel) -> Iterator[int]:
    """Yield the mounts that a path can lead to."""
    table, member = kernel.u64(kernel.symbol("mount_hashtable")), kernel.offset("mount", "mnt_hash")
    buckets = kernel.u32(kernel.symbol("m_hash_mask")) + 1
    if buckets > _MAX_BUCKETS:
        raise StructureError("the table of mounts is absurdly large", table, got=buckets)
    heads = kernel.read(table, 8 * buckets)
    for number in range(buckets):
        if any(heads[8 * number : 8 * number + 8]):
            yield from hlist_entries(kernel, table + 8 * number, member, limit=_MAX_MOUNTS)


def by_namespace(kernel: LiveKernel, namespace: int) -> Iterator[int]:
    """Yield the mounts that a namespace shows: a list, or since Linux 6.8 a tree."""
    if kernel.has("mnt_namespace", "list"):
        head = namespace + kernel.offset("mnt_namespace", "list")
        flags = kernel.offset("mount", "mnt.mnt_flags")
        for mount in list_entries(
            kernel, head, kernel.offset("mount", "mnt_list"), limit=_MAX_MOUNTS
        ):
            if not kernel.u32(mount + flags) & _MNT_CURSOR:
                yield mount
        return
    root = namespace + kernel.offset("mnt_namespace", "mounts")
    yield from rbtree_entries(kernel, root, kernel.offset("mount", "mnt_node"), limit=_MAX_MOUNTS)


def namespaces(kernel: LiveKernel) -> Iterator[int]:
    """Yield the mount namespaces of processes."""
    for task in task_list(kernel):
        proxy = kernel.member_u64(task, "task_struct", "nsproxy")
        if proxy:
            yield kernel.member_u64(proxy, "nsproxy", "mnt_ns")


def look(kernel: LiveKernel) -> Look:
    """Compare the views once."""
    views: dict[int, set[str]] = {}
    for name, view in ((FILE_SYSTEM, by_file_system), (TABLE, by_table)):
        for address in view(kernel):
            views.setdefault(address, set()).add(name)
    mounts = {address: read_mount(kernel, address) for address in views}
    spaces = dict.fromkeys(namespaces(kernel))
    spaces |= dict.fromkeys(one.namespace for one in mounts.values() if _is_real(one.namespace))
    for space in spaces:
        for address in by_namespace(kernel, space):
            seen = views.setdefault(address, set())
            if address not in mounts:
                mounts[address] = read_mount(kernel, address)
            if mounts[address].namespace == space:
                seen.add(NAMESPACE)
    anomalies: dict[Hashable, Anomaly] = {}
    shown = 0
    for address, mount in mounts.items():
        if not _is_real(mount.namespace):
            continue
        shown += 1
        wanted = {FILE_SYSTEM, NAMESPACE} | ({TABLE} if mount.parent != address else set())
        missing = wanted - views[address]
        if missing:
            anomalies[address, *sorted(missing)] = _anomaly(kernel, mount, views[address], missing)
    return Look(anomalies, {"mounts": shown, "namespaces": len(spaces)})


def _is_real(namespace: int) -> bool:
    return 0 < namespace < _ERRORS


def _anomaly(kernel: LiveKernel, mount: Mount, seen: set[str], missing: set[str]) -> Anomaly:
    kind = kernel.member_u64(mount.super_block, "super_block", "s_type")
    details: dict[str, JsonValue] = {
        "mount": path_of_mount(kernel, mount.address),
        "file_system": kernel.text(kernel.member_u64(kind, "file_system_type", "name"), 32),
        "address": f"{mount.address:#x}",
        "seen_in": sorted(seen),
        "missing_from": sorted(missing),
    }
    return Anomaly(details)


def path_of_mount(kernel: LiveKernel, mount: int) -> str:
    """Return where a mount stands, as its namespace's root sees it."""
    parts: list[str] = []
    for _ in range(_MAX_DEPTH):
        parent = kernel.member_u64(mount, "mount", "mnt_parent")
        if parent == mount:
            break
        dentry = kernel.member_u64(mount, "mount", "mnt_mountpoint")
        for _ in range(_MAX_DEPTH):
            above = kernel.member_u64(dentry, "dentry", "d_parent")
            if above == dentry:
                break
            name = kernel.member_u64(dentry, "dentry", "d_name.name")
            parts.append(kernel.text(name, 255))
            dentry = above
        mount = parent
    return "/" + "/".join(reversed(parts))


def crossview(kernel: LiveKernel, observer: Observer) -> Finding:
    """Return ``kernel.mounts.crossview``: whether any mount is hidden from any view."""
    return observer.settle(SPEC, kernel, look)
