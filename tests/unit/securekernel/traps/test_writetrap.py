"""Which memory can be trapped at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from undercroft.base import EnvironmentFault
from undercroft.securekernel.guest import GuestGone
from undercroft.securekernel.traps.writetrap import refuse_huge_pages

SMAPS = """\
7f0000000000-7f0000400000 rw-s 00000000 00:0f 12 /anon_hugepage (deleted)
Size:               4096 kB
KernelPageSize:     2048 kB
VmFlags: rd wr sh mr mw me ms de ht
7f0000400000-7f0000800000 rw-s 00000000 00:01 13 /memfd:ram (deleted)
Size:               4096 kB
KernelPageSize:        4 kB
VmFlags: rd wr sh mr mw me ms
"""


def test_huge_pages_are_refused_and_ordinary_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "smaps").write_text(SMAPS)
    refuse_huge_pages(7, 0x7F0000400000, proc=tmp_path)
    with pytest.raises(EnvironmentFault, match="huge pages"):
        refuse_huge_pages(7, 0x7F00003FF000, proc=tmp_path)


def test_a_process_that_ended_has_no_memory(tmp_path: Path) -> None:
    with pytest.raises(GuestGone):
        refuse_huge_pages(7, 0, proc=tmp_path)
