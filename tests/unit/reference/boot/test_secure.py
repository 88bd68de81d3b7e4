"""Prediction of a boot through shim and GRUB: each input moves its own PCRs, and no others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from undercroft.base import FormatError, HashAlgorithm
from undercroft.formats.eventlog import parse_eventlog
from undercroft.formats.eventlog.signatures import EFI_CERT_SHA256
from undercroft.formats.pe import parse_pe
from undercroft.reference.boot import (
    GrubBoot,
    boot_references,
    encode_prediction,
    predict_grub_boot,
    predicted_pcrs,
)
from undercroft.reference.boot.measure import (
    EFI_GLOBAL_VARIABLE,
    IMAGE_SECURITY_DATABASE,
    SHIM_LOCK,
    variable,
)
from undercroft.reference.boot.shim import installed_level, shim_parts
from undercroft.reference.model import Grade
from undercroft.testing.bootdisk import (
    CONFIG,
    FIRMWARE_PATH,
    LEVEL,
    OTHER_SIGNER,
    SHIM_SIGNER,
    VENDOR,
    BootDisk,
    boot_option,
    make_partition_table,
    make_pe,
    make_shim,
    signature_list,
    store_variables,
    verifies,
)
from undercroft.verify.eventlog import replay_eventlog

SHA256 = HashAlgorithm.SHA256
BOOT = BootDisk().boot()
DB, DBX = (IMAGE_SECURITY_DATABASE, "db"), (IMAGE_SECURITY_DATABASE, "dbx")


def pcrs(boot: GrubBoot) -> dict[int, bytes]:
    return dict(predicted_pcrs(predict_grub_boot(boot, verifies), SHA256).values)


def with_variables(**changed: bytes) -> GrubBoot:
    variables = store_variables()
    for name, data in changed.items():
        guid = IMAGE_SECURITY_DATABASE if name.startswith("db") else EFI_GLOBAL_VARIABLE
        variables[guid, name] = data
    return BootDisk(variables=variables).boot()


@pytest.mark.parametrize(
    ("changed", "moves"),
    [
        (BootDisk(initrd=b"other").boot(), {9}),
        (BootDisk(kernel=make_pe({".text": b"other kernel"})).boot(), {4, 9}),
        (BootDisk(grub=make_pe({".text": b"other grub"})).boot(), {4}),
        (BootDisk(config=CONFIG.replace("quiet", "quiet init=/bin/sh")).boot(), {8, 9}),
        (BootDisk(config="# a comment\n" + CONFIG).boot(), {9}),
        (BootDisk(shim=make_shim(refused=b"dbx")).boot(), {4, 14}),
        (BootDisk(shim=make_shim(level=LEVEL.replace(b"shim,4", b"shim,5"))).boot(), {4, 7}),
        (with_variables(dbx=signature_list(EFI_CERT_SHA256, b"O" * 16, b"Y" * 32)), {7}),
        (with_variables(Boot0000=boot_option("Other", FIRMWARE_PATH)), {1}),
        (with_variables(Timeout=b"\1\0"), set()),
        (replace(BOOT, firmware=replace(BOOT.firmware, disk_slot=2)), {1}),
        (replace(BOOT, firmware=replace(BOOT.firmware, pei=b"PEI")), {0}),
        (replace(BOOT, partition_table=make_partition_table().replace(b"G", b"H")), {5}),
    ],
)
def test_each_input_moves_its_own_pcrs(changed: GrubBoot, moves: set[int]) -> None:
    before, after = pcrs(BOOT), pcrs(changed)
    assert {index for index in before if before[index] != after[index]} == moves


def test_the_kernel_is_measured_twice_and_bears_its_package() -> None:
    kernels = [e for e in predict_grub_boot(BOOT, verifies) if e.role == "kernel"]
    assert len(kernels) == 2
    assert kernels[0].provenance.package == "linux-image"
    kernel = parse_pe(make_pe({".text": b"kernel"}))
    assert kernels[0].digest(SHA256) == kernel.authenticode(SHA256)


def test_what_we_do_not_know_the_source_of_is_ours() -> None:
    boot = replace(BOOT, provenances={})
    kernel = next(e for e in predict_grub_boot(boot, verifies) if e.role == "kernel")
    assert kernel.provenance.grade is Grade.BUILT


def test_a_long_command_is_shown_in_part() -> None:
    boot = BootDisk(config=CONFIG.replace("quiet", "quiet " * 20)).boot()
    menu = next(e for e in predict_grub_boot(boot, verifies) if "menuentry" in e.description)
    assert menu.description.endswith(" ...")
    assert "\n" not in menu.description


def test_the_prediction_is_an_event_log_that_replays_to_the_predicted_pcrs() -> None:
    events = predict_grub_boot(BOOT, verifies)
    log = parse_eventlog(encode_prediction(events, (SHA256,)))
    assert len(log.events) == len(events) + 1
    predicted = predicted_pcrs(events, SHA256).values
    replayed = replay_eventlog(log).banks[SHA256].values
    assert {pcr: predicted[pcr] for pcr in replayed} == dict(replayed)


def test_the_db_entry_that_verified_shim_is_the_authority() -> None:
    authority = next(e for e in predict_grub_boot(BOOT, verifies) if e.role == "db authority")
    assert authority.data == variable(IMAGE_SECURITY_DATABASE, "db", b"O" * 16 + SHIM_SIGNER)
    assert OTHER_SIGNER not in authority.data


def test_references_name_the_roles_that_have_to_be_filled() -> None:
    references = boot_references("debian", predict_grub_boot(BOOT, verifies))
    assert {value.role for value in references.events[4]} >= {"shim", "boot loader", "kernel"}
    assert "db authority" in {value.role for value in references.events[7]}


@pytest.mark.parametrize(
    ("boot", "reason"),
    [
        (with_variables(db=b""), "no certificate in it verifies"),
        (BootDisk(grub=make_pe({".text": b"shim, not GRUB"})).boot(), "vendor certificate does"),
        (BootDisk(kernel=make_pe({".text": b"a shim"})).boot(), "kernel"),
        (BootDisk(shim=make_pe({".text": b"shim"})).boot(), "a section is missing"),
        (BootDisk(shim=make_shim(level=b"nothing")).boot(), "no revocation level"),
        (replace(BOOT, partition_table=bytes(2048)), "no partition table"),
        (
            replace(
                BOOT, partition_table=make_partition_table().replace(b"\x80\0\0\0", b"\x81\0\0\0")
            ),
            "shape is strange",
        ),
    ],
)
def test_what_would_not_boot_is_not_predicted(boot: GrubBoot, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        predict_grub_boot(boot, verifies)


def test_keys_enrolled_with_shim_are_refused() -> None:
    variables = store_variables() | {(SHIM_LOCK, "MokList"): b"x"}
    with pytest.raises(FormatError, match="keys enrolled"):
        predict_grub_boot(BootDisk(variables=variables).boot(), verifies)


def test_an_entry_that_leaves_shims_section_is_refused() -> None:
    shim = make_shim()
    broken = shim.replace(
        len(VENDOR).to_bytes(4, "little") + bytes(4), b"\xff\xff\0\0" + bytes(4), 1
    )
    with pytest.raises(FormatError, match="leaves the section"):
        shim_parts(parse_pe(broken))


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (b"sbat,1,2026010100\nshim,9\n", b"sbat,1,2026010100\nshim,9\n"),
        (b"sbat,1,2024010100\nshim,1\n", LEVEL),
        (b"rubbish", LEVEL),
    ],
)
def test_the_newer_revocation_level_counts(kept: bytes, expected: bytes) -> None:
    variables = store_variables() | {(SHIM_LOCK, "SbatLevel"): kept}
    events = predict_grub_boot(BootDisk(variables=variables).boot(), verifies)
    level = next(e for e in events if e.role == "SbatLevel")
    assert level.data == variable(SHIM_LOCK, "SbatLevel", expected)
    assert installed_level(shim_parts(parse_pe(make_shim())), ()) == LEVEL
