"""The journal: a chain of epochs, in memory and in a file that outlives who wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from undercroft.formats.evidence.interval import encode_chain, parse_chain, parse_epoch
from undercroft.securekernel.traps.journal import Clock, Journal
from undercroft.testing.epochs import lawful_change
from undercroft.verify.interval import verify_chain


def close(journal: Journal) -> None:
    journal.close("time", (), ("write-trap",), (), 0)


def test_epochs_follow_each_other_without_a_hole(tmp_path: Path) -> None:
    journal = Journal("observe", Clock(), tmp_path / "log")
    close(journal)
    journal.add(lawful_change(1))
    close(journal)
    assert len(verify_chain(journal.chain, journal.head)) == 2
    assert parse_chain((tmp_path / "log").read_bytes()) == tuple(journal.chain)
    assert parse_epoch(journal.chain[1]).changes


@pytest.mark.parametrize("left", [1, 3, 4, 5, 20])
def test_a_writer_that_was_killed_leaves_half_an_epoch(tmp_path: Path, left: int) -> None:
    first = Journal("observe", Clock(), tmp_path / "log")
    close(first)
    close(first)
    whole = encode_chain(first.chain[:1])
    (tmp_path / "log").write_bytes(encode_chain(first.chain)[: len(whole) + left])
    second = Journal("observe", Clock(), tmp_path / "log")
    assert second.fault is None
    close(second)
    chain = parse_chain((tmp_path / "log").read_bytes())
    assert chain == (first.chain[0], second.chain[0])
    sessions = {parse_epoch(each).session for each in chain}
    assert len(sessions) == 2


def test_a_log_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    journal = Journal("observe", Clock(), tmp_path / "log")
    close(journal)
    assert journal.fault is not None
    assert len(journal.chain) == 1
