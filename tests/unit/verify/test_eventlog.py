"""Replay and its comparison with quoted PCRs: which check says no, and which quirk explains."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest

from undercroft.base import HashAlgorithm, PcrBank, VerificationError
from undercroft.formats.eventlog import EventType, LogFormat, parse_eventlog, value
from undercroft.formats.eventlog.noaction import StartupLocality
from undercroft.testing.eventlog import SimulatedFirmware
from undercroft.verify.eventlog import (
    OS_EXTENDED_PCRS,
    ReplayedLog,
    replay_eventlog,
    verify_eventlog,
)
from undercroft.verify.quirks import DRTM_PCRS

T = EventType
SHA1, SHA256, SHA384 = HashAlgorithm.SHA1, HashAlgorithm.SHA256, HashAlgorithm.SHA384


def _boot(
    banks: tuple[HashAlgorithm, ...] = (SHA256,), locality: int = 0, *, logged: bool = True
) -> SimulatedFirmware:
    fw = SimulatedFirmware(banks, locality=locality)
    if locality and logged:
        fw.no_action(StartupLocality(locality).encode())
    fw.measure(0, T.EV_S_CRTM_VERSION, b"\0\0")
    fw.separators()
    fw.grub("linux /vmlinuz")
    return fw


def _verify(
    fw: SimulatedFirmware, pcrs: Iterable[int] = (*range(10), 14), log: bytes | None = None
) -> ReplayedLog:
    return verify_eventlog(parse_eventlog(fw.log() if log is None else log), fw.banks(pcrs))


def _refused(
    fw: SimulatedFirmware, pcrs: Iterable[int] = range(10), log: bytes | None = None
) -> VerificationError:
    with pytest.raises(VerificationError) as caught:
        _verify(fw, pcrs, log)
    return caught.value


def _fired(verified: ReplayedLog) -> list[str]:
    return [fired.quirk.id for fired in verified.quirks]


def test_a_log_that_leads_to_the_quoted_pcrs_is_vouched_for() -> None:
    fw = _boot((SHA1, SHA256))
    verified = _verify(fw)
    assert verified.explained == {*range(10), 14}
    assert verified.unexplained == frozenset()
    assert [event.pcr for event in verified.vouched] == [0, *range(8), 8]
    assert verified.banks == fw.banks((*range(10), 14))
    assert verified.quirks == ()


def test_events_of_pcrs_that_are_not_quoted_are_not_vouched_for() -> None:
    verified = _verify(_boot(), (0, 7))
    assert {event.pcr for event in verified.vouched} == {0, 7}


def test_digests_of_banks_that_are_not_quoted_are_not_vouched_for() -> None:
    fw = _boot((SHA1, SHA256, SHA384))
    log = parse_eventlog(fw.log())
    sha1, sha256, _ = fw.banks((0, 7))
    only_0 = PcrBank(SHA1, {0: sha1.values[0]})
    for event in verify_eventlog(log, (only_0, sha256)).vouched:
        assert set(event.digests) == ({SHA1, SHA256} if event.pcr == 0 else {SHA256})
        assert event.alg_ids == tuple(a.alg_id for a in event.digests)


def test_the_first_pcr_that_differs_is_named() -> None:
    fw = _boot((SHA1, SHA256))
    good = fw.pcrs[SHA256][4]
    fw.pcrs[SHA256][4] = b"x" * 32
    fw.pcrs[SHA256][5] = b"y" * 32
    error = _refused(fw)
    assert error.check == "eventlog.replay"
    assert "PCR 4 of the sha256 bank" in error.what
    assert (error.expected, error.got) == (good.hex(), (b"x" * 32).hex())
    assert error.remedy


def test_a_changed_digest_is_refused() -> None:
    fw = _boot()
    at = len(b"".join(fw.entries[:-1])) + 14
    log = bytearray(fw.log())
    log[at] ^= 1
    assert "PCR 8" in _refused(fw, log=bytes(log)).what


def test_a_log_without_its_last_event_is_refused() -> None:
    fw = _boot()
    log = b"".join(fw.entries[:-1])
    assert "PCR 8" in _refused(fw, log=log).what


def test_a_log_with_two_events_exchanged_is_refused() -> None:
    fw = _boot()
    fw.grub("initrd /initrd.img")
    log = b"".join([*fw.entries[:-2], fw.entries[-1], fw.entries[-2]])
    assert "PCR 8" in _refused(fw, log=log).what


def test_a_firmware_pcr_without_events_has_its_start_value() -> None:
    fw = SimulatedFirmware((SHA256,))
    fw.separators(range(7))
    assert 7 in _verify(fw, range(8)).explained
    fw.pcrs[SHA256][7] = b"x" * 32
    assert "PCR 7" in _refused(fw, range(8)).what


@pytest.mark.parametrize("pcr", sorted(OS_EXTENDED_PCRS))
def test_what_the_os_extends_later_is_unexplained_and_not_vouched_for(pcr: int) -> None:
    fw = _boot()
    fw.measure(pcr, T.EV_IPL, b"before", b"before")
    fw.pcrs[SHA256][pcr] = b"x" * 32
    verified = _verify(fw, (0, pcr))
    assert verified.unexplained == {pcr}
    assert pcr not in {event.pcr for event in verified.vouched}


def test_the_caller_may_name_what_the_os_extends() -> None:
    fw = _boot()
    fw.pcrs[SHA256][9] = b"x" * 32
    log = parse_eventlog(fw.log())
    assert verify_eventlog(log, fw.banks([9]), os_extended={9}).unexplained == {9}
    with pytest.raises(VerificationError):
        verify_eventlog(log, fw.banks([9]), os_extended=())


@pytest.mark.parametrize("banks", [(), (PcrBank(SHA256, {}),)])
def test_nothing_quoted_is_nothing_proven(banks: tuple[PcrBank, ...]) -> None:
    with pytest.raises(VerificationError) as caught:
        verify_eventlog(parse_eventlog(_boot().log()), banks)
    assert caught.value.check == "eventlog.bank"


def test_a_quoted_bank_that_the_log_lacks_is_refused() -> None:
    fw = _boot((SHA1, SHA256))
    log = SimulatedFirmware((SHA1,), kind=LogFormat.TCG_1_2)
    log.measure(0, T.EV_S_CRTM_VERSION, b"\0\0")
    error = _refused(fw, [0], log.log())
    assert error.check == "eventlog.bank"
    assert (error.expected, error.got) == ("sha1", "sha256")


def test_a_bank_with_a_missing_digest_is_refused() -> None:
    fw = _boot((SHA1, SHA256))
    fw.entry(6, T.EV_ACTION, b"x", {SHA256.alg_id: SHA256.hash(b"x")})
    error = _refused(fw)
    assert error.check == "eventlog.bank"
    assert "event 11 has no sha1 digest" in error.what


def test_a_bank_that_this_machine_cannot_compute_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fw = _boot((SHA1, SHA256))
    monkeypatch.setattr(value, "_HASHLIB", {SHA1: value.hasher(SHA1)})
    replayed = replay_eventlog(parse_eventlog(fw.log()))
    assert list(replayed.banks) == [SHA1]
    assert replayed.left_out == {SHA256: "this machine cannot compute sha256"}
    error = _refused(fw)
    assert "this machine cannot compute sha256" in error.what


def test_no_bank_at_all_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fw = _boot()
    monkeypatch.setattr(value, "_HASHLIB", {})
    assert _refused(fw).expected == "a bank that the log has"


# -- start values


@pytest.mark.parametrize("locality", [0, 3, 4])
def test_pcr_0_starts_with_the_startup_locality(locality: int) -> None:
    fw = _boot((SHA1, SHA256), locality)
    verified = _verify(fw)
    assert verified.startup_locality == locality
    assert _fired(verified) == []


@pytest.mark.parametrize("locality", [3, 4])
def test_a_locality_that_is_not_logged_is_a_quirk(locality: int) -> None:
    fw = _boot((SHA1, SHA256), locality, logged=False)
    verified = _verify(fw)
    assert verified.startup_locality == locality
    assert _fired(verified) == ["startup-locality-unlogged"]


def test_a_locality_that_no_tpm_is_started_from_is_refused() -> None:
    assert "PCR 0" in _refused(_boot(locality=2, logged=False)).what


def test_a_quirk_must_hold_in_every_bank() -> None:
    fw = _boot((SHA1, SHA256), 3, logged=False)
    other = _boot((SHA1, SHA256), 4, logged=False)
    fw.pcrs[SHA1] = other.pcrs[SHA1]
    error = _refused(fw)
    assert "PCR 0 of the sha1 bank" in error.what


def test_only_the_second_bank_may_differ() -> None:
    fw = _boot((SHA1, SHA256))
    fw.pcrs[SHA256][0] = b"x" * 32
    assert "PCR 0 of the sha256 bank" in _refused(fw).what
    banks = (PcrBank(SHA1, {1: fw.pcrs[SHA1][1]}), PcrBank(SHA256, {0: b"x" * 32}))
    with pytest.raises(VerificationError, match="PCR 0 of the sha256 bank"):
        verify_eventlog(parse_eventlog(fw.log()), banks)


# -- replay quirks


def test_firmware_that_extends_its_notes_is_a_quirk() -> None:
    fw = _boot()
    note = SHA256.hash(b"note")
    fw.entry(0, T.EV_NO_ACTION, b"note", {SHA256.alg_id: note})
    start = bytes(32)
    for digest in (bytes(32), SHA256.hash(b"\0\0"), SHA256.hash(bytes(4)), note):
        start = SHA256.hash(start, digest)
    fw.pcrs[SHA256][0] = start
    assert "no-action-extended" in _fired(_verify(fw))


def test_an_event_in_pcr_0_only_counts_there() -> None:
    fw = _boot()
    fw.pcrs[SHA256][3] = SHA256.hash(fw.pcrs[SHA256][3], bytes(32))
    assert "PCR 3" in _refused(fw).what


@pytest.mark.parametrize("late", [1, 2])
def test_a_log_taken_before_exit_boot_services_is_a_quirk(late: int) -> None:
    fw = _boot()
    taken_at = len(fw.entries) + 2 - late
    fw.measure(5, T.EV_EFI_ACTION, b"Exit Boot Services Invocation")
    fw.measure(5, T.EV_EFI_ACTION, b"Exit Boot Services Returned with Success")
    log = b"".join(fw.entries[:taken_at])
    assert _fired(_verify(fw, log=log)) == ["exit-boot-services-unlogged"]


def test_what_else_is_extended_into_pcr_5_is_no_quirk() -> None:
    fw = _boot()
    log = fw.log()
    fw.measure(5, T.EV_EFI_ACTION, b"Exit Boot Services Returned with Failure")
    assert "PCR 5" in _refused(fw, log=log).what


# -- dynamic launch


def _launched(fw: SimulatedFirmware, pcr: int = 17) -> None:
    fw.measure(pcr, T.EV_TXT_HASH_START, b"SINIT", b"code")


def test_drtm_pcrs_start_at_zero_with_a_launch() -> None:
    fw = _boot()
    _launched(fw)
    assert 17 in _verify(fw, (0, 17)).explained


def test_drtm_pcrs_without_a_launch_are_all_ones() -> None:
    fw = _boot()
    for pcr in DRTM_PCRS:
        fw.pcrs[SHA256][pcr] = b"\xff" * 32
    verified = _verify(fw, (0, *DRTM_PCRS))
    assert verified.explained == {0, *DRTM_PCRS}


def test_a_launch_that_the_log_does_not_hold_is_unexplained() -> None:
    fw = _boot()
    fw.pcrs[SHA256][17] = b"x" * 32
    assert _verify(fw, (0, 17)).unexplained == {17}


def test_events_without_a_launch_are_a_quirk() -> None:
    fw = _boot()
    _launched(fw)
    fw.pcrs[SHA256][17] = SHA256.hash(b"\xff" * 32, SHA256.hash(b"code"))
    assert _fired(_verify(fw, (0, 17))) == ["no-dynamic-launch"]


def test_a_launch_that_differs_is_refused() -> None:
    fw = _boot()
    _launched(fw)
    fw.pcrs[SHA256][17] = b"x" * 32
    assert "PCR 17" in _refused(fw, (0, 17)).what


# -- CCEL


def _trust_domain() -> SimulatedFirmware:
    fw = SimulatedFirmware((SHA384,), kind=LogFormat.CCEL)
    fw.measure(1, T.EV_EFI_ACTION, b"one")
    fw.measure(3, T.EV_EFI_ACTION, b"three")
    return fw


def test_a_ccel_replays_to_its_registers() -> None:
    fw = _trust_domain()
    fw.pcrs[SHA384][0] = b"m" * 48  # MRTD is built, not extended
    fw.pcrs[SHA384][4] = b"r" * 48  # RTMR[3] is the guest's own
    verified = _verify(fw, range(5))
    assert verified.explained == {1, 2, 3}
    assert verified.unexplained == {0, 4}


def test_a_ccel_knows_no_startup_locality() -> None:
    fw = _trust_domain()
    fw.no_action(StartupLocality(3).encode(), 1)
    verified = _verify(fw, (1, 3))
    assert verified.startup_locality == 0


@pytest.mark.parametrize("register", [1, 2, 3])
def test_a_ccel_that_differs_is_refused(register: int) -> None:
    fw = _trust_domain()
    fw.pcrs[SHA384][register] = b"x" * 48
    assert f"RTMR[{register - 1}]" in _refused(fw, range(5)).what


def test_an_entry_for_no_pcr_is_neither_replayed_nor_counted() -> None:
    fw = _boot()
    fw.no_action(struct.pack("<II", 0xC0010004, 0), 0xFFFFFFFF)
    replayed = replay_eventlog(parse_eventlog(fw.log()))
    assert replayed.events == len(fw.entries) - 1
    _verify(fw)
