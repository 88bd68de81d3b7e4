"""A boot against its prediction: every planted change is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from undercroft.appraise.prediction import Comparison, compare_prediction
from undercroft.base import HashAlgorithm
from undercroft.formats.eventlog import parse_eventlog
from undercroft.formats.eventlog.signatures import EFI_CERT_SHA256, EFI_CERT_X509
from undercroft.reference.boot import GrubBoot, encode_prediction, predict_grub_boot
from undercroft.reference.boot.measure import IMAGE_SECURITY_DATABASE
from undercroft.testing.bootdisk import (
    CONFIG,
    INITRD_PATH,
    SHIM_SIGNER,
    BootDisk,
    make_pe,
    signature_list,
    store_variables,
    verifies,
)

PREDICTED = predict_grub_boot(BootDisk().boot(), verifies)
BANKS = (HashAlgorithm.SHA1, HashAlgorithm.SHA256)


def compared(boot: GrubBoot) -> Comparison:
    """Let ``boot`` really happen, where the unchanged disk was predicted."""
    log = parse_eventlog(encode_prediction(predict_grub_boot(boot, verifies), BANKS))
    return compare_prediction(PREDICTED, log)


def test_the_boot_that_was_predicted() -> None:
    found = compared(BootDisk().boot())
    assert found.deviations == ()
    assert found.same == (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14)


def variables(name: str, entry: bytes) -> BootDisk:
    changed = store_variables()
    changed[IMAGE_SECURITY_DATABASE, name] += entry
    return BootDisk(variables=changed)


@pytest.mark.parametrize(
    ("disk", "pcrs", "words", "detail"),
    [
        (BootDisk(initrd=b"evil"), {9},
         f"PCR 9: other content: file read by GRUB: {INITRD_PATH}", "expected sha256:"),
        (BootDisk(config=CONFIG.replace("quiet", "init=/bin/sh")), {8, 9},
         "PCR 8: GRUB passed the command line", "added: init=/bin/sh"),
        (BootDisk(config="set superusers=me\n" + CONFIG), {8, 9},
         "PCR 8: measured, and not predicted: GRUB ran: set superusers=me", ""),
        (BootDisk(config=CONFIG.replace("set timeout=0\n", "")), {8, 9},
         "PCR 8: predicted, and not measured: GRUB command: set timeout=0", ""),
        (BootDisk(config=CONFIG + "# touched\n"), {9},
         "PCR 9: other content: file read by GRUB: (hd0,gpt2)/boot/grub/grub.cfg", "found sha256:"),
        (BootDisk(config=CONFIG.replace("'Debian'", "\"It's\"")), {8, 9},
         "PCR 8: GRUB ran: menuentry It's", "removed: Debian"),
        (BootDisk(kernel=make_pe({".text": b"old kernel"})), {4, 9},
         "PCR 4: another program was started: kernel (Authenticode digest)", ""),
        (variables("dbx", signature_list(EFI_CERT_SHA256, b"O" * 16, b"Z" * 32)), {7},
         "PCR 7: another value: Secure Boot variable dbx", "added 5a5a5a"),
        (variables("db", signature_list(EFI_CERT_X509, b"O" * 16, SHIM_SIGNER + b"2")), {7},
         "PCR 7: another value: Secure Boot variable db", "added "),
    ],
)  # fmt: skip
def test_a_planted_change_is_named(disk: BootDisk, pcrs: set[int], words: str, detail: str) -> None:
    found = compared(disk.boot())
    assert {one.pcr for one in found.deviations} == pcrs
    assert pcrs.isdisjoint(found.same)
    named = [one for one in found.deviations if one.words.startswith(words)]
    assert named, [one.words for one in found.deviations]
    assert any(line.startswith(detail) for one in named for line in one.details) or not detail


def test_firmware_and_authority() -> None:
    boot = BootDisk().boot()
    other = replace(boot, firmware=replace(boot.firmware, dxe=b"evil"))
    (firmware,) = compared(other).deviations
    assert firmware.words == "PCR 0: another firmware: DXE volume"
    assert firmware.predicted is not None
    assert firmware.predicted.provenance.package == "ovmf"


def test_pcrs_that_were_not_predicted_are_not_compared() -> None:
    log = parse_eventlog(encode_prediction([*PREDICTED, replace(PREDICTED[0], pcr=12)], BANKS))
    assert compare_prediction(PREDICTED, log).deviations == ()


def test_without_a_common_bank_nothing_can_be_said() -> None:
    some = tuple(
        replace(event, digests=tuple(d for d in event.digests if d.algorithm.size == 64))
        for event in PREDICTED
    )
    log = parse_eventlog(encode_prediction(PREDICTED, BANKS))
    with pytest.raises(ValueError, match="no bank"):
        compare_prediction(some, log)
    with pytest.raises(ValueError, match="no bank"):
        compare_prediction((), log)
