from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import FormatError
from undercroft.formats.ima import InodeMetadata, parse_inode

IDS = st.integers(0, 2**32 - 1)
NAMES = st.binary(min_size=1, max_size=9).filter(lambda name: not {0, ord("|")} & set(name))
INODES = st.builds(
    InodeMetadata,
    IDS,
    IDS,
    st.integers(0, 2**16 - 1),
    st.dictionaries(NAMES, st.binary(max_size=9), max_size=4).map(lambda d: tuple(d.items())),
)
GOOD = InodeMetadata(1, 2, 3, ((b"security.ima", b"12345"), (b"security.selinux", b"")))


@given(inode=INODES, big=st.booleans())
def test_fields_survive(inode: InodeMetadata, big: bool) -> None:
    fields = inode.encode("big" if big else "little")
    assert parse_inode(fields, "big" if big else "little") == inode


BAD = {
    "owner": {"iuid": b""},
    "mode": {"imode": bytes(4)},
    "no-nul": {"xattrnames": b"security.ima|security.selinux"},
    "names": {"xattrnames": b"security.ima\0"},
    "empty-name": {"xattrnames": b"security.ima|\0"},
    "name-twice": {"xattrnames": b"security.ima|security.ima\0"},
    "lengths": {"xattrlengths": bytes(4)},
    "longer": {"xattrlengths": b"\6\0\0\0\0\0\0\0"},
    "shorter": {"xattrlengths": b"\4\0\0\0\0\0\0\0"},
}


@pytest.mark.parametrize("case", BAD)
def test_what_no_kernel_writes_is_refused(case: str) -> None:
    with pytest.raises(FormatError):
        parse_inode({**GOOD.encode("little"), **BAD[case]}, "little")


def test_no_attributes_at_all() -> None:
    assert parse_inode(InodeMetadata(0, 0, 0, ()).encode("little"), "little").xattrs == ()
