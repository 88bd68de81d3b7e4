"""What changed between two boots."""

from __future__ import annotations

import pytest

from undercroft.base import HashAlgorithm
from undercroft.formats.eventlog import EventType, LogFormat, parse_eventlog
from undercroft.formats.eventlog import signatures as sig
from undercroft.formats.eventlog.guid import MICROSOFT_OWNER
from undercroft.testing.eventlog import SimulatedFirmware, file_path, signature_list
from undercroft.verify import eventlog_diff
from undercroft.verify.eventlog_diff import LogDifference, diff_eventlogs

T = EventType
SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256


def _hashes(*names: bytes) -> bytes:
    return signature_list(sig.EFI_CERT_SHA256, MICROSOFT_OWNER, *[SHA256.hash(n) for n in names])


def _boot(
    *commands: str, dbx: tuple[bytes, ...] = (b"a", b"b"), kernel: bytes = b"kernel"
) -> SimulatedFirmware:
    fw = SimulatedFirmware((SHA1, SHA256))
    fw.variable("dbx", _hashes(*dbx))
    fw.separators((7,))
    fw.image(file_path("grub"), b"grub")
    for command in commands:
        fw.grub(command)
    fw.grub_file("/vmlinuz", kernel)
    return fw


def _diff(before: SimulatedFirmware, after: SimulatedFirmware) -> LogDifference:
    return diff_eventlogs(parse_eventlog(before.log()), parse_eventlog(after.log()))


def _words(found: LogDifference) -> list[str]:
    return [change.words for change in found.changes]


def test_the_same_boot_twice_has_no_difference() -> None:
    found = _diff(_boot("ls"), _boot("ls"))
    assert found.changes == ()
    assert found.same == (4, 7, 8, 9)


def test_added_and_removed_commands() -> None:
    found = _diff(_boot("a", "b", "c"), _boot("a", "c", "d"))
    assert _words(found) == ["PCR 8: gone: GRUB ran: b", "PCR 8: new: GRUB ran: d"]
    assert found.same == (4, 7, 9)
    gone, new = found.changes
    assert gone.after is None
    assert new.before is None
    assert gone.before is not None


def test_a_changed_command_is_one_change() -> None:
    found = _diff(_boot("linux /a"), _boot("linux /b"))
    assert _words(found) == ["PCR 8: was GRUB ran: linux /a; is GRUB ran: linux /b"]


def test_a_file_with_other_contents_is_another_digest() -> None:
    found = _diff(_boot(kernel=b"one"), _boot(kernel=b"two"))
    (change,) = found.changes
    assert change.words.startswith("PCR 9: another digest for contents measured")
    assert '"/vmlinuz"' in change.words


def test_a_database_names_what_came_and_went() -> None:
    (change,) = _diff(_boot(dbx=(b"a", b"b")), _boot(dbx=(b"b", b"c"))).changes
    assert change.details == (
        f"removed {SHA256.hash(b'a').hex()}",
        f"added {SHA256.hash(b'c').hex()}",
    )


def test_a_pcr_only_one_boot_has() -> None:
    after = _boot()
    after.measure(5, T.EV_EFI_ACTION, b"Exit Boot Services Invocation")
    assert _words(_diff(_boot(), after)) == ['PCR 5: new: action "Exit Boot Services Invocation"']


def test_a_variable_is_compared_with_itself() -> None:
    before, after = _boot(), _boot()
    for fw, values in ((before, (b"\0", b"\1")), (after, (b"\1", b"\0"))):
        fw.variable("SecureBoot", values[0])
        fw.variable("SetupMode", values[1])
    words = _words(_diff(before, after))
    assert all("SecureBoot" in line or "SetupMode" in line for line in words)
    assert "variable SecureBoot (EFI_GLOBAL_VARIABLE): 0; is variable SecureBoot" in words[0]


def test_logs_of_different_formats_share_their_common_bank() -> None:
    old = SimulatedFirmware((SHA1,), kind=LogFormat.TCG_1_2)
    old.separators((7,))
    new = SimulatedFirmware((SHA1, SHA256))
    new.separators((7,))
    assert _diff(old, new).same == (7,)


def test_logs_without_a_common_bank_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="no hash algorithm in common"):
        _diff(SimulatedFirmware((SHA1,)), SimulatedFirmware((SHA256,)))


def test_long_differences_are_compared_as_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventlog_diff, "MAX_WORK", 3)
    found = _diff(_boot("a", "b", "c", "d"), _boot("b", "c", "x", "a"))
    assert _words(found) == ["PCR 8: was GRUB ran: d; is GRUB ran: x"]
