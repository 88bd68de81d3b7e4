"""The newc archive, read back by a reader of the test's own."""

from __future__ import annotations

import stat

import pytest

from undercroft.guests.cpio import (
    CpioEntry,
    character_device,
    directory,
    file,
    symlink,
    write_cpio,
)


def read_cpio(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Return mode, content and device of every entry; times and owners have to be 0."""
    entries: dict[str, tuple[int, bytes, tuple[int, int]]] = {}
    at, inodes = 0, set()
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i :][:8], 16) for i in range(13)]
        inode, mode, uid, gid, _links, mtime, size, _, _, major, minor, name_size, check = fields
        assert (uid, gid, mtime, check) == (0, 0, 0, 0)
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        at = -(-(at + 110 + name_size) // 4) * 4
        content = data[at : at + size]
        at = -(-(at + size) // 4) * 4
        if name == "TRAILER!!!":
            assert at == len(data)
            return entries
        assert inode not in inodes
        inodes.add(inode)
        entries[name] = (mode, content, (major, minor))


def test_every_kind_of_entry() -> None:
    entries = read_cpio(
        write_cpio(
            [
                file("/bin/tool", b"odd", mode=0o755),
                symlink("/bin/link", "tool"),
                character_device("/dev/console", 5, 1),
                directory("/proc"),
                file("/init", b""),
            ]
        )
    )
    assert entries == {
        "bin": (stat.S_IFDIR | 0o755, b"", (0, 0)),
        "bin/link": (stat.S_IFLNK | 0o777, b"tool", (0, 0)),
        "bin/tool": (stat.S_IFREG | 0o755, b"odd", (0, 0)),
        "dev": (stat.S_IFDIR | 0o755, b"", (0, 0)),
        "dev/console": (stat.S_IFCHR | 0o600, b"", (5, 1)),
        "init": (stat.S_IFREG | 0o644, b"", (0, 0)),
        "proc": (stat.S_IFDIR | 0o755, b"", (0, 0)),
    }


def test_a_folder_comes_before_what_it_holds() -> None:
    names = list(read_cpio(write_cpio([file("/a/b/c/d", b"1"), file("/a-b", b"2")])))
    assert all(names.index(n.rpartition("/")[0]) < names.index(n) for n in names if "/" in n)


def test_the_order_of_the_input_does_not_matter() -> None:
    entries = [file("/b", b"1"), file("/a/x", b"2"), directory("/c")]
    assert write_cpio(entries) == write_cpio(reversed(entries))


@pytest.mark.parametrize("path", ["relative", "/", "//x", "/a/", "/a/../b", "/./a", ""])
def test_strange_paths_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="absolute"):
        write_cpio([CpioEntry(path, stat.S_IFREG)])


def test_one_path_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        write_cpio([file("/a", b"1"), file("/a", b"2")])
