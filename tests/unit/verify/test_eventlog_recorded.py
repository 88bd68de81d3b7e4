"""Logs of our own guests against what their TPMs held (tests/vectors/eventlog/record.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from undercroft.base import HashAlgorithm, Outcome, PcrBank, VerificationError
from undercroft.formats.eventlog import DigestCheck, LogFormat, Malformed, Opaque, parse_eventlog
from undercroft.formats.eventlog.firmware import ImageLoad
from undercroft.formats.eventlog.ipl import GrubText, LoadOptions, SectionName
from undercroft.formats.eventlog.tagged import NamedMeasurement
from undercroft.verify.eventlog import ReplayedLog, verify_eventlog
from undercroft.verify.eventlog_findings import judge_eventlog
from undercroft.verify.secureboot import judge_secure_boot

RECORDED = Path(__file__).parents[2] / "vectors" / "eventlog" / "recorded"
PCRS: dict[str, dict[str, dict[str, str]]] = json.loads((RECORDED / "pcrs.json").read_text())


def _banks(name: str) -> tuple[PcrBank, ...]:
    banks = []
    for bank, values in PCRS[name].items():
        algorithm = HashAlgorithm.from_name(bank)
        assert algorithm is not None
        banks.append(PcrBank(algorithm, {int(n): bytes.fromhex(v) for n, v in values.items()}))
    return tuple(banks)


def _verify(name: str) -> ReplayedLog:
    log = parse_eventlog((RECORDED / f"{name}.bin").read_bytes())
    return verify_eventlog(log, _banks(name))


def _failed(replayed: ReplayedLog) -> set[str]:
    return {f.id for f in judge_secure_boot(replayed) if f.outcome is not Outcome.PASS}


def test_there_are_recordings_of_every_kind_of_boot() -> None:
    assert set(PCRS) == {path.stem for path in RECORDED.glob("*.bin")}
    assert len(PCRS) == 6


@pytest.mark.parametrize("name", PCRS)
def test_the_log_accounts_for_all_that_the_tpm_holds_but_ima(name: str) -> None:
    replayed = _verify(name)
    assert replayed.unexplained == {10}
    assert replayed.explained == set(range(24)) - {10}
    assert {bank.algorithm for bank in replayed.banks} >= {HashAlgorithm.SHA1}
    assert [fired.quirk.id for fired in replayed.quirks] == (
        ["sha1-log"] if replayed.log.format is LogFormat.TCG_1_2 else []
    )


@pytest.mark.parametrize("name", PCRS)
def test_every_event_is_understood_and_keeps_its_bytes(name: str) -> None:
    data = (RECORDED / f"{name}.bin").read_bytes()
    log = parse_eventlog(data)
    assert log.encode() == data
    for event in log.events:
        assert not isinstance(event.decoded, Malformed | Opaque)
        assert event.check is not DigestCheck.DIFFERS
        assert event.decoded.encode() == event.data
    findings = {f.id: f.outcome for f in judge_eventlog(_verify(name))}
    assert findings.pop("eventlog.pcrs") is Outcome.UNKNOWN
    assert set(findings.values()) == {Outcome.PASS}


@pytest.mark.parametrize("name", PCRS)
@pytest.mark.parametrize("pcr", range(10))
def test_another_value_of_a_boot_pcr_is_refused(name: str, pcr: int) -> None:
    log = parse_eventlog((RECORDED / f"{name}.bin").read_bytes())
    banks = tuple(
        PcrBank(b.algorithm, {**b.values, pcr: b.algorithm.hash(b"another")}) for b in _banks(name)
    )
    with pytest.raises(VerificationError, match=f"PCR {pcr} of the sha1 bank") as caught:
        verify_eventlog(log, banks)
    assert caught.value.check == "eventlog.replay"


@pytest.mark.parametrize("name", ["ovmf-secureboot-shim-grub", "ovmf-secureboot-systemd-boot-uki"])
def test_secure_boot_is_proven_and_every_image_explained(name: str) -> None:
    assert _failed(_verify(name)) == set()


def test_without_keys_secure_boot_is_off() -> None:
    failed = _failed(_verify("ovmf-direct-kernel"))
    assert {"secureboot.enabled", "secureboot.mode", "secureboot.keys"} < failed


def test_a_kernel_that_no_event_measures_is_not_passed_over() -> None:
    """QEMU changes the setup header of a kernel that it loads: OVMF then starts it unmeasured."""
    replayed = _verify("ovmf-secureboot-direct-kernel")
    assert not any(isinstance(e.decoded, ImageLoad) for e in replayed.vouched)
    assert _failed(replayed) == {"secureboot.authorities", "secureboot.images"}


def test_what_each_loader_writes_is_decoded() -> None:
    grub = [e.decoded for e in _verify("ovmf-secureboot-shim-grub").vouched]
    assert any(isinstance(v, GrubText) and v.claimed_prefix == "kernel_cmdline: " for v in grub)
    uki = [e.decoded for e in _verify("ovmf-secureboot-systemd-boot-uki").vouched]
    sections = [v.name for v in uki if isinstance(v, SectionName)]
    assert sections == [".linux", ".osrel", ".cmdline", ".initrd"]
    assert any(isinstance(v, LoadOptions) for v in uki)
    tags = [v.claimed_id for v in uki if isinstance(v, NamedMeasurement)]
    assert tags == [0x8F3B22ED, 0x8F3B22EC]
