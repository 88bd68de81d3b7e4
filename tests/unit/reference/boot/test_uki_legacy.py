"""Prediction of a unified kernel image, and of a BIOS boot that measures next to nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from undercroft.base import FormatError, HashAlgorithm
from undercroft.formats.eventlog import parse_eventlog
from undercroft.formats.eventlog.words import describe
from undercroft.reference.boot import (
    UNMEASURED,
    LegacyBoot,
    UkiBoot,
    boot_references,
    encode_prediction,
    predict_legacy_boot,
    predict_uki_boot,
    predicted_pcrs,
)
from undercroft.reference.boot.legacy import UNPREDICTED
from undercroft.testing.bootdisk import OURS, PACKAGE, BootDisk, make_pe, verifies

SHA256 = HashAlgorithm.SHA256
PARTS = {".osrel": b"ID=debian", ".cmdline": b"ro quiet\0", ".linux": b"kernel", ".initrd": b"ird"}


def uki(**changed: bytes) -> bytes:
    # The word makes the stand-in for signatures take the shim's signer, who is in db.
    return make_pe({".text": b"shim", **PARTS, **{f".{k}": v for k, v in changed.items()}})


UKI = UkiBoot(
    firmware=BootDisk().boot().firmware,
    partition_table=BootDisk().boot().partition_table,
    systemd_boot=make_pe({".text": b"shim loader"}),
    uki=uki(),
    from_systemd_boot=PACKAGE,
    from_uki=OURS,
    ours=OURS,
)
SECTOR = b"code".ljust(440, b"\0") + bytes(70) + b"\x55\xaa"
LEGACY = LegacyBoot(SECTOR, b"rom", PACKAGE, OURS)


def pcrs(boot: UkiBoot) -> dict[int, bytes]:
    return dict(predicted_pcrs(predict_uki_boot(boot, verifies), SHA256).values)


@pytest.mark.parametrize(
    ("changed", "moves"),
    [
        (uki(initrd=b"other"), {4, 9, 11}),
        (uki(cmdline=b"ro\0"), {4, 9, 11, 12}),
        (uki(linux=b"other"), {4, 11}),
        (uki(text=b"shim 2"), {4}),
        (uki(splash=b"picture"), {4, 11}),
    ],
)
def test_each_part_moves_its_own_pcrs(changed: bytes, moves: set[int]) -> None:
    before, after = pcrs(UKI), pcrs(replace(UKI, uki=changed))
    assert {index for index in before if before[index] != after[index]} == moves


def test_one_key_that_decides_twice_is_measured_once() -> None:
    events = predict_uki_boot(UKI, verifies)
    assert [event.role for event in events].count("db authority") == 1
    assert {8, 14} & {event.pcr for event in events} == set()


def test_sections_are_measured_in_the_order_of_the_stub() -> None:
    roles = [e.role for e in predict_uki_boot(UKI, verifies) if e.pcr == 11]
    assert roles[::2] == [".linux", ".osrel", ".cmdline", ".initrd"]
    assert roles[1::2] == [f"{name} content" for name in roles[::2]]


@pytest.mark.parametrize("boot", [predict_uki_boot(UKI, verifies), predict_legacy_boot(LEGACY)])
def test_the_prediction_reads_as_a_log(boot: tuple[object, ...]) -> None:
    log = parse_eventlog(encode_prediction(boot, (SHA256,)))  # type: ignore[arg-type]
    assert len(log.events) == len(boot) + 1
    assert not any("does not follow" in describe(event)[0] for event in log.events)


@pytest.mark.parametrize(
    "image", [make_pe({".text": b"shim"}), make_pe({".text": b"shim", ".linux": b"kernel"})]
)
def test_an_image_without_its_parts_is_refused(image: bytes) -> None:
    with pytest.raises(FormatError, match="no kernel or no command line"):
        predict_uki_boot(replace(UKI, uki=image), verifies)


def test_a_bios_boot_measures_the_first_sector_and_says_what_it_leaves_out() -> None:
    events = predict_legacy_boot(LEGACY)
    bank = predicted_pcrs(events, SHA256, UNPREDICTED)
    assert 1 not in bank.values
    assert bank.values[8] == bank.values[9] == bytes(32)
    other = predicted_pcrs(
        predict_legacy_boot(replace(LEGACY, first_sector=b"evil" + SECTOR[4:])), SHA256
    )
    assert {i for i in bank.values if bank.values[i] != other.values[i]} == {4}
    assert any("kernel" in line for line in UNMEASURED)
    references = boot_references("legacy", events, UNPREDICTED)
    assert 1 not in references.pcrs
    assert 4 in references.pcrs


def test_an_event_of_a_pcr_that_is_not_predicted_is_left_out() -> None:
    events = (*predict_legacy_boot(LEGACY), replace(predict_legacy_boot(LEGACY)[0], pcr=1))
    assert predicted_pcrs(events, SHA256, UNPREDICTED) == predicted_pcrs(
        predict_legacy_boot(LEGACY), SHA256, UNPREDICTED
    )


@pytest.mark.parametrize("sector", [b"", bytes(512), SECTOR + b"\0"])
def test_what_is_no_boot_sector_is_refused(sector: bytes) -> None:
    with pytest.raises(FormatError, match="no boot sector"):
        predict_legacy_boot(replace(LEGACY, first_sector=sector))
