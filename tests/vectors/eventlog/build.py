"""Builds the event logs of this folder and what is expected of them.

    python3 tests/vectors/eventlog/build.py

``<name>.bin`` is a log; ``expected.json`` says of each either the PCR values that the simulated
firmware extended, the number of events and the quirks, or the error that parsing must give.
Names say what is special, or what is wrong.  A test builds them again and compares every byte.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

from undercroft.base import HashAlgorithm
from undercroft.formats.eventlog import EventType as T
from undercroft.formats.eventlog import LogFormat, spdm
from undercroft.formats.eventlog import signatures as sig
from undercroft.formats.eventlog.devicepath import DevicePath
from undercroft.formats.eventlog.firmware import (
    ConfigurationTable,
    FirmwareBlob,
    FirmwareBlob2,
    HandoffTables,
)
from undercroft.formats.eventlog.gpt import Partition, PartitionTable
from undercroft.formats.eventlog.guid import (
    EFI_GLOBAL_VARIABLE,
    MICROSOFT_OWNER,
    SHIM_LOCK,
    guid_bytes,
)
from undercroft.formats.eventlog.noaction import (
    SP800_155,
    SP800_155_2,
    SP800_155_3,
    HcrtmComponent,
    PlatformId,
    StartupLocality,
)
from undercroft.formats.eventlog.specid import SPEC_ID_00, SPEC_ID_02, SpecIdEvent
from undercroft.formats.eventlog.tagged import Tag, TaggedEvents
from undercroft.formats.eventlog.variables import BootOrder, LoadOption, UefiVariable
from undercroft.testing.eventlog import (
    SimulatedFirmware,
    certificate,
    device_path,
    file_path,
    signature_list,
)

HERE = Path(__file__).parent
SHA1, SHA256, SHA384 = HashAlgorithm.SHA1, HashAlgorithm.SHA256, HashAlgorithm.SHA384
OWNER = guid_bytes("11111111-2222-3333-4444-123456789abc")
ESP = guid_bytes("a88ed452-9a52-45c4-91ce-3da7707caaab")
DISK = guid_bytes("a8d60e59-43a9-4968-b0c2-3cf775e007b2")
VOLUME = guid_bytes("7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1")
UI_APP = guid_bytes("462caa21-7614-4503-836e-8ab6f4662331")
SBAT = b"sbat,1,2023012900\nshim,2\ngrub,3\ngrub.debian,4\n"

ROOT_PORT = ((2, 1, struct.pack("<II", 0x0A0341D0, 0)), (1, 1, bytes([0, 4])))
PARTITION = (4, 1, struct.pack("<IQQ16sBB", 1, 0x800, 0x12C000, ESP, 2, 2))


def utf16(text: str) -> bytes:
    return text.encode("utf-16-le") + b"\0\0"


def on_disk(file: str) -> DevicePath:
    return device_path(*ROOT_PORT, PARTITION, (4, 4, utf16(file)))


def x509_list(*names: str, filler: int = 0) -> bytes:
    lists = [
        signature_list(sig.EFI_CERT_X509, MICROSOFT_OWNER, certificate(name, filler=filler))
        for name in names
    ]
    return b"".join(lists)


def hash_list(count: int) -> bytes:
    hashes = [SHA256.hash(f"revoked {n}".encode()) for n in range(count)]
    return signature_list(sig.EFI_CERT_SHA256, MICROSOFT_OWNER, *hashes)


def boot_variable(name: str, value: bytes) -> tuple[bytes, bytes]:
    return UefiVariable(EFI_GLOBAL_VARIABLE, name, value, None).encode(), value


def partition_table() -> bytes:
    parts = (
        Partition(guid_bytes("c12a7328-f81f-11d2-ba4b-00a0c93ec93b"), ESP, 2048, 1230847, 0, b""),
        Partition(guid_bytes("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"), OWNER, 1230848, 9999, 0, b""),
    )
    named = tuple(
        Partition(p.type_guid, p.unique_guid, p.first_lba, p.last_lba, 0, name)
        for p, name in zip(parts, (utf16("EFI").ljust(72, b"\0"), bytes(72)), strict=True)
    )
    numbers = (0x10000, 92, 0x1234, 0, 1, 99999, 34, 99966, DISK, 2, 128, 128, 0x5678)
    return PartitionTable(b"EFI PART", *numbers, named).encode()


def ovmf_start(fw: SimulatedFirmware, version: str = "2022.11-6") -> None:
    fw.measure(0, T.EV_S_CRTM_VERSION, utf16(version))
    for base, length in ((0x820000, 0xE0000), (0x900000, 0xC00000)):
        blob = FirmwareBlob(base, length).encode()
        fw.measure(0, T.EV_EFI_PLATFORM_FIRMWARE_BLOB, blob, b"volume %x" % base)


def secure_boot(fw: SimulatedFirmware, revoked: int = 2, filler: int = 0) -> None:
    fw.variable("SecureBoot", b"\x01")
    fw.variable("PK", x509_list("Example Platform Key", filler=filler))
    fw.variable("KEK", x509_list("Example KEK", "Example KEK 2023", filler=filler))
    authorities = ("Example UEFI CA", "Example UEFI CA 2023", "Example PCA", "Example CA")
    fw.variable("db", x509_list(*authorities, filler=filler))
    fw.variable("dbx", hash_list(revoked))
    fw.separators([7])


def db_authority(fw: SimulatedFirmware, name: str = "Example UEFI CA", filler: int = 0) -> None:
    fw.authority("db", MICROSOFT_OWNER + certificate(name, filler=filler))


def boot_options(fw: SimulatedFirmware) -> None:
    shim = LoadOption(1, "debian", on_disk("\\EFI\\debian\\shimx64.efi"), b"")
    menu = LoadOption(0x109, "UiApp", device_path((4, 7, VOLUME), (4, 6, UI_APP)), b"")
    options = {"BootOrder": BootOrder((1, 0)), "Boot0001": shim, "Boot0000": menu}
    for name, value in options.items():
        fw.measure(1, T.EV_EFI_VARIABLE_BOOT, *boot_variable(name, value.encode()))
    fw.measure(4, T.EV_EFI_ACTION, b"Calling EFI Application from Boot Option")


def shim_starts(fw: SimulatedFirmware) -> None:
    fw.image(on_disk("\\EFI\\debian\\shimx64.efi"), b"shim")
    fw.measure(14, T.EV_IPL, b"MokList\0", b"the list")
    fw.measure(14, T.EV_IPL, b"MokListX\0", b"the other list")
    fw.authority("SbatLevel", SBAT, guid=SHIM_LOCK)
    fw.measure(14, T.EV_IPL, b"MokListTrusted\0", b"\x01")


def exit_boot_services(fw: SimulatedFirmware) -> None:
    fw.measure(5, T.EV_EFI_ACTION, b"Exit Boot Services Invocation")
    fw.measure(5, T.EV_EFI_ACTION, b"Exit Boot Services Returned with Success")


MENU = """menuentry 'Debian GNU/Linux' --class debian --class gnu-linux --class gnu {
\tload_video
\tinsmod gzio
\tinsmod part_gpt
\tinsmod ext2
\tsearch --no-floppy --fs-uuid --set=root 4dbc98d4-cc1a-4f57-af34-3f374f4954bf
\techo\t'Loading Linux 6.1.0-56-cloud-amd64 ...'
\tlinux\t/vmlinuz-6.1.0-56-cloud-amd64 root=UUID=4dbc98d4-cc1a-4f57-af34-3f374f4954bf ro quiet
\techo\t'Loading initial ramdisk ...'
\tinitrd\t/initrd.img-6.1.0-56-cloud-amd64
}"""


def grub_boots(fw: SimulatedFirmware, commands: int) -> None:
    fw.grub_file("(hd0,gpt1)/EFI/debian/grub.cfg", b"first configuration")
    for number in range(commands):
        fw.grub(f"set variable_{number}=(hd0,gpt2)/boot/grub/value-{number}")
    fw.grub_file("(hd0,gpt2)/boot/grub/grub.cfg", b"configuration")
    for number in range(3):
        fw.grub(MENU.replace("Debian", f"Debian {number}"))
    line = "/vmlinuz-6.1.0-56-cloud-amd64 root=/dev/vda2 ro quiet ima_policy=tcb"
    fw.grub(f"linux {line}")
    fw.grub_file("/vmlinuz-6.1.0-56-cloud-amd64", b"the kernel")
    fw.image(DevicePath(()), b"the kernel")
    fw.grub(line, "kernel_cmdline: ")
    fw.grub("initrd /initrd.img-6.1.0-56-cloud-amd64")
    fw.grub_file("/initrd.img-6.1.0-56-cloud-amd64", b"the initrd")


def secureboot_grub() -> SimulatedFirmware:
    """OVMF, Secure Boot, shim, GRUB: of the size of the log that Keylime tests with."""
    fw = SimulatedFirmware((SHA256,))
    ovmf_start(fw)
    secure_boot(fw, revoked=371, filler=1190)
    fw.measure(1, T.EV_PLATFORM_CONFIG_FLAGS, b"ACPI DATA", b"tables")
    boot_options(fw)
    fw.separators(range(7))
    db_authority(fw, filler=1190)
    fw.measure(5, T.EV_EFI_GPT_EVENT, partition_table())
    shim_starts(fw)
    fw.authority("MokListRT", SHIM_LOCK + certificate("Example Distribution CA"), guid=SHIM_LOCK)
    fw.image(file_path("\\EFI\\debian\\grubx64.efi"), b"grub")
    grub_boots(fw, 55)
    exit_boot_services(fw)
    return fw


def small(locality: int = 0, banks: tuple[HashAlgorithm, ...] = (SHA256,)) -> SimulatedFirmware:
    """A short boot with Secure Boot: what the quirk and error cases start from."""
    fw = SimulatedFirmware(banks, locality=locality)
    if locality:
        fw.no_action(StartupLocality(locality).encode())
    ovmf_start(fw)
    secure_boot(fw)
    fw.separators(range(7))
    db_authority(fw)
    fw.image(on_disk("\\EFI\\BOOT\\BOOTX64.EFI"), b"loader")
    exit_boot_services(fw)
    return fw


def systemd_uki() -> SimulatedFirmware:
    fw = SimulatedFirmware((SHA1, SHA256))
    ovmf_start(fw)
    secure_boot(fw)
    fw.measure(4, T.EV_EFI_ACTION, b"Calling EFI Application from Boot Option")
    fw.separators(range(7))
    db_authority(fw)
    fw.image(on_disk("\\EFI\\systemd\\systemd-bootx64.efi"), b"systemd-boot")
    conf = Tag(0xF5BC582A, utf16("loader.conf")).encode()
    fw.measure(5, T.EV_EVENT_TAG, conf, b"timeout 3\n")
    fw.image(on_disk("\\EFI\\Linux\\debian.efi"), b"the unified kernel image")
    for section in (".linux", ".osrel", ".cmdline", ".initrd"):
        fw.measure(11, T.EV_IPL, utf16(section), section.encode() + b"\0")
        fw.measure(11, T.EV_IPL, utf16(section), b"contents of " + section.encode())
    line = "root=/dev/vda2 ro quiet"
    fw.measure(12, T.EV_IPL, utf16(line), utf16(line)[:-2])
    fw.measure(12, T.EV_IPL, utf16("Credentials initrd"), b"credentials")
    for number, what in ((0x8F3B22ED, b"LOADED_IMAGE::LoadOptions\0"), (0x8F3B22EC, b"initrd\0")):
        fw.measure(9, T.EV_EVENT_TAG, Tag(number, what).encode(), b"something else")
    exit_boot_services(fw)
    return fw


def seabios_sha1() -> SimulatedFirmware:
    """SeaBIOS with a TPM 1.2: its own header, separators of ones, an MBR."""
    fw = SimulatedFirmware((SHA1,), kind=LogFormat.TCG_1_2)
    header = SpecIdEvent(SPEC_ID_00, 0, 21, 1, 1, 0, (), b"").encode()
    fw.entry(0, T.EV_NO_ACTION, header, {SHA1.alg_id: bytes(20)})
    fw.measure(1, T.EV_EVENT_TAG, TaggedEvents((Tag(1, bytes(range(20))),)).encode())
    fw.measure(2, T.EV_ACTION, b"Start Option ROM Scan")
    fw.measure(4, T.EV_ACTION, b"Calling INT 19h")
    fw.separators(range(8), b"\xff\xff\xff\xff")
    fw.measure(4, T.EV_ACTION, b"Booting BCV device 80h (HDD)")
    fw.measure(4, T.EV_IPL, b"MBR", b"code" * 110)
    fw.measure(5, T.EV_IPL_PARTITION_DATA, b"MBR PARTITION TABLE", b"table" * 14)
    return fw


def tdx_ccel() -> SimulatedFirmware:
    fw = SimulatedFirmware((SHA384,), kind=LogFormat.CCEL)
    tables = (ConfigurationTable(guid_bytes("93bb96af-b9f2-4eb8-9462-e0ba74564236"), 0x809000),)
    fw.measure(1, T.EV_EFI_HANDOFF_TABLES2, HandoffTables(tables, b"TdxTable\0").encode(), b"table")
    volume = FirmwareBlob2(b"Fv(48DB5E17)\0", 0xFFE00000, 0x20000).encode()
    fw.measure(1, T.EV_EFI_PLATFORM_FIRMWARE_BLOB2, volume, b"CFV")
    fw.variable("SecureBoot", b"\x01", pcr=1)
    for name in ("PK", "KEK", "db"):
        fw.variable(name, x509_list("Example UEFI CA"), pcr=1)
    fw.variable("dbx", b"", pcr=1)
    fw.separators([1])
    fw.measure(1, T.EV_PLATFORM_CONFIG_FLAGS, b"ACPI DATA", b"tables")
    fw.measure(1, T.EV_EFI_VARIABLE_BOOT, *boot_variable("BootOrder", b"\0\0"))
    fw.measure(2, T.EV_EFI_ACTION, b"Calling EFI Application from Boot Option")
    fw.separators([2])
    fw.authority("db", MICROSOFT_OWNER + certificate("Example UEFI CA"), pcr=1)
    fw.image(on_disk("\\EFI\\BOOT\\BOOTX64.EFI"), b"loader", pcr=2)
    fw.grub("linux /vmlinuz", pcr=3)
    fw.measure(3, T.EV_EVENT_TAG, b"LOADED_IMAGE::LoadOptions\0", b"options")
    fw.measure(2, T.EV_EFI_ACTION, b"Exit Boot Services Invocation")
    fw.measure(2, T.EV_EFI_ACTION, b"Exit Boot Services Returned with Success")
    return fw


def windows() -> SimulatedFirmware:
    fw = small()
    modules = Tag(0x40010003, b"".join([Tag(0x00070001, utf16("\\ntoskrnl.exe")).encode()]))
    settings = modules.encode() + Tag(0x00050001, b"\0").encode()
    fw.measure(11, T.EV_COMPACT_HASH, b"\x10\0\0\0")
    fw.measure(12, T.EV_EVENT_TAG, Tag(0x40010001, settings).encode())
    for pcr in (12, 13, 14):
        fw.measure(pcr, T.EV_SEPARATOR, b"WBCL")
    fw.no_action(Tag(0xC0010004, Tag(0x80080001, b"quote").encode()).encode(), 0xFFFFFFFF)
    return fw


def measurement_block(index: int) -> spdm.MeasurementBlock:
    return spdm.MeasurementBlock(index, 1, bytes([1]) + struct.pack("<H", 32) + bytes(32))


PCI = spdm.PciContext(0, 16, 0x8086, 0x1234, 1, b"\0\0\2", 0x8086, 0x5678)


def device_2(kind: int) -> bytes:
    blocks = (measurement_block(1), measurement_block(2)) if kind == 0 else ()
    chain = b"certificate chain" if kind else b""
    head = 8 if kind < 2 else 0
    size = head + sum(len(block.encode()) for block in blocks) + len(chain)
    numbers = (2, 0, 0, 0, 1, kind, size, 77)
    sub = (0x13, len(blocks), 0, 2) if kind < 2 else (0, 0, 0, 0)
    path = device_path(*ROOT_PORT)
    return spdm.DeviceSecurity2(*numbers, path, *sub, blocks, chain, PCI).encode()


def platform_ids() -> list[bytes]:
    strings = (b"Example\0", b"Model\0", b"1\0", b"Example\0", 4711, b"2.0\0")
    uri = b"https://rim.example/rim"
    return [
        PlatformId(SP800_155, 4711, OWNER).encode(),
        PlatformId(SP800_155_2, 4711, OWNER, *strings).encode(),
        PlatformId(SP800_155_3, 4711, OWNER, *strings, 1, uri, 0, b"").encode(),
    ]


def every_type() -> SimulatedFirmware:
    """One event of every type of the profile, each with data that follows its structure."""
    fw = SimulatedFirmware((SHA1, SHA256, SHA384), locality=4)
    fw.no_action(StartupLocality(4).encode())
    for data in platform_ids():
        fw.no_action(data)
    fw.no_action(HcrtmComponent(b"SEC\0", 1, bytes(34)).encode())
    fw.no_action(SpecIdEvent(SPEC_ID_02, 0, 2, 1, 2, 2, (), b"x").encode())
    fw.no_action(
        spdm.NvIndexDynamic(b"NvIndexDynamic \0", 1, bytes(6), 77, b"n", b"nonce").encode()
    )
    chain = struct.pack("<16sH6s", b"NvIndexInstance", 1, bytes(6)) + device_2(1)
    fw.no_action(chain)
    fw.measure(0, T.EV_EFI_HCRTM_EVENT, b"HCRTM", b"contents")
    fw.measure(0, T.EV_S_CRTM_VERSION, OWNER)
    for number, data in (
        (T.EV_S_CRTM_CONTENTS, b"Boot Guard Measured S-CRTM\0"),
        (T.EV_POST_CODE, FirmwareBlob(0xFF000000, 0x1000).encode()),
        (T.EV_POST_CODE2, FirmwareBlob2(b"POST CODE", 0xFF000000, 0x1000).encode()),
        (T.EV_CPU_MICROCODE, b"CPU microcode"),
        (T.EV_NONHOST_CODE, b"\1\2\3"),
        (T.EV_NONHOST_INFO, b"GCE NonHostInfo\0\3" + bytes(15)),
        (T.EV_EFI_PLATFORM_FIRMWARE_BLOB, FirmwareBlob(0x820000, 0xE0000).encode()),
        (T.EV_EFI_PLATFORM_FIRMWARE_BLOB2, FirmwareBlob2(b"FV", 0, 1).encode()),
    ):
        fw.measure(0, number, data, b"code that is not in the log")
    acpi = ConfigurationTable(guid_bytes("8868e871-e4f1-11d3-bc22-0080c73c8881"), 0x1000)
    for number, data in (
        (T.EV_PLATFORM_CONFIG_FLAGS, b"\0\1"),
        (T.EV_TABLE_OF_DEVICES, bytes(32)),
        (T.EV_NONHOST_CONFIG, b"configuration"),
        (T.EV_EFI_HANDOFF_TABLES, HandoffTables((acpi,)).encode()),
        (T.EV_EFI_HANDOFF_TABLES2, HandoffTables((acpi,), b"ACPI\0").encode()),
    ):
        fw.measure(1, number, data, b"tables that are not in the log")
    fw.measure(1, T.EV_EFI_VARIABLE_BOOT, *boot_variable("BootOrder", b"\0\0"))
    fw.measure(1, T.EV_EFI_VARIABLE_BOOT2, boot_variable("BootOrder", b"\0\0")[0])
    for number in (T.EV_EFI_BOOT_SERVICES_DRIVER, T.EV_EFI_RUNTIME_SERVICES_DRIVER):
        fw.image(device_path(*ROOT_PORT), b"option ROM", pcr=2, number=number)
    block = spdm.DeviceSecurity(1, 99, 2, 1, measurement_block(1), PCI).encode()
    fw.measure(2, T.EV_EFI_SPDM_FIRMWARE_BLOB, block)
    fw.measure(3, T.EV_EFI_SPDM_FIRMWARE_CONFIG, device_2(0))
    fw.measure(2, T.EV_EFI_SPDM_FIRMWARE_BLOB, device_2(1))
    secure_boot(fw)
    devdb = UefiVariable(OWNER, "devdb", x509_list("Example Device CA"), None).encode()
    fw.measure(7, T.EV_EFI_SPDM_DEVICE_POLICY, devdb)
    device = UefiVariable(OWNER, "devdb", OWNER + certificate("Example Device CA"), None)
    fw.measure(7, T.EV_EFI_SPDM_DEVICE_AUTHORITY, device.encode())
    fw.measure(4, T.EV_ACTION, b"Calling INT 19h")
    fw.measure(4, T.EV_OMIT_BOOT_DEVICE_EVENTS, b"BOOT ATTEMPTS OMITTED")
    boot_options(fw)
    fw.separators(range(7))
    db_authority(fw)
    fw.image(on_disk("\\EFI\\BOOT\\BOOTX64.EFI"), b"loader")
    fw.measure(5, T.EV_EFI_GPT_EVENT, partition_table())
    fw.measure(5, T.EV_EFI_GPT_EVENT2, partition_table())
    fw.measure(5, T.EV_IPL_PARTITION_DATA, b"MBR PARTITION TABLE", b"table")
    fw.measure(6, T.EV_COMPACT_HASH, b"vendor", b"vendor's own")
    fw.measure(9, T.EV_EVENT_TAG, Tag(0x8F3B22EC, b"Linux initrd\0").encode(), b"the initrd")
    fw.grub("linux /vmlinuz")
    fw.measure(16, T.EV_PREBOOT_CERT, b"certificate", b"?")
    for number in (T.EV_TXT_HASH_START, T.EV_AMD_SL_LOAD, T.EV_ARM_DLME):
        fw.measure(16, number, b"", b"launch")
    exit_boot_services(fw)
    return fw


def unknown_type() -> SimulatedFirmware:
    fw = small()
    fw.measure(6, 0x80000F00, b"of the future")
    fw.measure(6, 0x00001234, b"unlike what was hashed", b"this")
    return fw


def malformed_data() -> SimulatedFirmware:
    """Events whose data does not follow their type: the log stays readable."""
    fw = small()
    name = UefiVariable(EFI_GLOBAL_VARIABLE, "db", b"", None).encode()
    for data in (
        name[:20],
        struct.pack("<16sQQ", OWNER, 2**63, 0),
        struct.pack("<16sQQ", OWNER, 1, 2**64 - 1) + b"a\0",
        struct.pack("<16sQQ", OWNER, 2, 0) + b"\x00\xd8a\0",
    ):
        fw.measure(7, T.EV_EFI_VARIABLE_AUTHORITY, data)
    deep = device_path((3, 1, b"")).encode()[:3]
    image = struct.pack("<QQQQ", 0, 0, 0, len(deep)) + deep
    fw.measure(4, T.EV_EFI_BOOT_SERVICES_APPLICATION, image, b"image")
    fw.measure(5, T.EV_EFI_GPT_EVENT, partition_table()[:-1])
    fw.measure(1, T.EV_EFI_HANDOFF_TABLES, struct.pack("<Q", 2**60), b"tables")
    fw.no_action(b"StartupLocality\0")
    return fw


def quirk_no_action_digest() -> SimulatedFirmware:
    fw = small()
    fw.entry(0, T.EV_NO_ACTION, b"vendor's note", {SHA256.alg_id: SHA256.hash(b"note")})
    return fw


def quirk_digest_order() -> SimulatedFirmware:
    fw = small(banks=(SHA1, SHA256))
    fw.algorithms = (SHA256, SHA1)
    fw.measure(6, T.EV_ACTION, b"the other way round")
    return fw


def quirk_digest_missing() -> SimulatedFirmware:
    fw = small(banks=(SHA1, SHA256))
    fw.algorithms = (SHA256,)
    fw.measure(6, T.EV_ACTION, b"without SHA-1")
    del fw.pcrs[SHA1]
    return fw


def quirk_pcr_out_of_range() -> SimulatedFirmware:
    fw = small()
    fw.entry(24, T.EV_ACTION, b"no such PCR", {SHA256.alg_id: SHA256.hash(b"no such PCR")})
    return fw


def quirk_digest_not_of_data() -> SimulatedFirmware:
    fw = small()
    fw.measure(6, T.EV_ACTION, b"words", b"other words")
    return fw


def quirk_separator_text() -> SimulatedFirmware:
    fw = small()
    fw.measure(12, T.EV_SEPARATOR, b"WBCL")
    fw.measure(6, T.EV_SEPARATOR, b"Skiboot Boot", b"\xff\xff\xff\xff")
    return fw


def quirk_startup_locality_late() -> SimulatedFirmware:
    fw = small(locality=3)
    fw.no_action(StartupLocality(0).encode())
    return fw


def quirk_shim_slack() -> SimulatedFirmware:
    fw = small()
    key = certificate("Example Distribution CA")
    variable = UefiVariable(SHIM_LOCK, "Shim", key, None, bytes(5)).encode()
    fw.measure(7, T.EV_EFI_VARIABLE_AUTHORITY, variable + b"\xaf", variable)
    fw.measure(14, T.EV_IPL, b"MokList\0\xaf", b"list")
    fw.measure(4, T.EV_EFI_BOOT_SERVICES_APPLICATION, bytes(32) + b"\0\x74\x11\xaf", b"grub")
    return fw


def quirk_utf16_cut() -> SimulatedFirmware:
    fw = small()
    fw.measure(8, T.EV_IPL, utf16("root=/dev/sda1")[:-1], utf16("root=/dev/sda1"))
    return fw


def quirk_untagged() -> SimulatedFirmware:
    fw = small()
    fw.measure(9, T.EV_EVENT_TAG, b"LOADED_IMAGE::LoadOptions\0", b"options")
    return fw


def quirk_boot_variable_whole() -> SimulatedFirmware:
    fw = small()
    fw.measure(1, T.EV_EFI_VARIABLE_BOOT, boot_variable("BootOrder", b"\1\0")[0])
    return fw


def quirk_platform_id_padded() -> SimulatedFirmware:
    fw = small()
    fw.no_action(platform_ids()[2] + bytes(6))
    return fw


def quirk_spec_id_odd() -> SimulatedFirmware:
    """A header without vendorInfo; another log has bytes after it."""
    fw = small()
    data = fw.entries[0][32:-1]
    fw.entries[0] = fw.entries[0][:28] + struct.pack("<I", len(data)) + data
    return fw


def unknown_algorithm() -> SimulatedFirmware:
    """A bank whose algorithm we do not know: kept, not replayed."""
    fw = SimulatedFirmware((SHA256,))
    fw.header(((SHA256.alg_id, 32), (0x7777, 5)))
    digest = SHA256.hash(b"version")
    fw.pcrs[SHA256][0] = SHA256.hash(fw.pcrs[SHA256][0], digest)
    fw.extended.add(0)
    fw.entry(0, T.EV_ACTION, b"version", {SHA256.alg_id: digest, 0x7777: b"12345"})
    return fw


GOOD: dict[str, tuple[Callable[[], SimulatedFirmware], tuple[str, ...]]] = {
    "secureboot-grub": (secureboot_grub, ()),
    "systemd-uki": (systemd_uki, ()),
    "seabios-sha1": (seabios_sha1, ("sha1-log",)),
    "tdx-ccel": (tdx_ccel, ("padding-ones", "untagged-event-tag")),
    "windows": (windows, ("separator-text",)),
    "every-type": (every_type, ()),
    "startup-locality-3": (lambda: small(locality=3), ()),
    "hcrtm-locality-4": (lambda: small(locality=4), ()),
    "unknown-type": (unknown_type, ()),
    "unknown-algorithm": (unknown_algorithm, ()),
    "malformed-data": (malformed_data, ()),
    "quirk-padding-zeros": (small, ("padding-zeros",)),
    "quirk-no-action-digest": (quirk_no_action_digest, ("no-action-digest",)),
    "quirk-digest-order": (quirk_digest_order, ("digest-order",)),
    "quirk-digest-missing": (quirk_digest_missing, ("digest-missing",)),
    "quirk-pcr-out-of-range": (quirk_pcr_out_of_range, ("pcr-out-of-range",)),
    "quirk-digest-not-of-data": (quirk_digest_not_of_data, ("digest-not-of-data",)),
    "quirk-separator-text": (quirk_separator_text, ("separator-text", "digest-not-of-data")),
    "quirk-startup-locality-late": (quirk_startup_locality_late, ("startup-locality-late",)),
    "quirk-shim-event-slack": (quirk_shim_slack, ("shim-event-slack",)),
    "quirk-utf16-log-cut": (quirk_utf16_cut, ("utf16-log-cut",)),
    "quirk-untagged-event-tag": (quirk_untagged, ("untagged-event-tag",)),
    "quirk-boot-variable-whole": (quirk_boot_variable_whole, ("boot-variable-whole",)),
    "quirk-platform-id-padded": (quirk_platform_id_padded, ("platform-id-padded",)),
    "quirk-spec-id-odd": (quirk_spec_id_odd, ("spec-id-odd",)),
}
PADDING = {"tdx-ccel": b"\xff" * 512, "quirk-padding-zeros": bytes(300)}


def header(algorithms: tuple[tuple[int, int], ...], count: int | None = None) -> bytes:
    fw = SimulatedFirmware((SHA256,))
    fw.header(algorithms)
    log = fw.log()
    return log if count is None else log[:56] + struct.pack("<I", count) + log[60:]


def event(body: bytes, algorithms: tuple[tuple[int, int], ...] = ((0x0B, 32),)) -> bytes:
    return header(algorithms) + body


def digest(alg_id: int, size: int = 32) -> bytes:
    return struct.pack("<H", alg_id) + bytes(size)


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the log is empty"),
    "only-padding": (b"\xff" * 64, "the log is empty"),
    "header-cut": (header(((0x0B, 32),))[:40], "Event is longer than the input"),
    "first-event-cut": (header(((0x0B, 32),))[:20], "the event header is cut short"),
    "spec-id-cut": (
        struct.pack("<II20sI", 0, 3, bytes(20), 18) + b"Spec ID Event03\0\1\2",
        "the Spec ID event is cut short",
    ),
    "algorithms-2-to-32": (header(((0x0B, 32),), 2**32 - 1), "numberOfAlgorithms"),
    "algorithms-none": (header((), 0), "numberOfAlgorithms"),
    "algorithm-twice-in-header": (header(((0x0B, 32), (0x0B, 32))), "stands twice"),
    "digest-of-no-length": (header(((0x0B, 0),)), "digestSize of sha256"),
    "digest-of-wrong-length": (header(((0x0B, 20),)), "digestSize of sha256"),
    "unknown-digest-of-no-length": (header(((0x7777, 0),)), "digestSize of 0x7777"),
    "digests-2-to-32": (
        event(struct.pack("<III", 0, 5, 2**32 - 1)),
        "more digests than the header has algorithms",
    ),
    "algorithm-twice-in-event": (
        event(struct.pack("<III", 0, 5, 2) + digest(0x0B) * 2 + bytes(4), ((0x0B, 32), (0x04, 20))),
        "an algorithm that is twice in one event",
    ),
    "algorithm-not-in-header": (
        event(struct.pack("<III", 0, 5, 1) + digest(0x0C, 48) + bytes(4)),
        "an algorithm that is not in the header",
    ),
    "digest-cut": (event(struct.pack("<III", 0, 5, 1) + digest(0x0B, 31)), "digest is longer"),
    "event-2-to-32": (
        event(struct.pack("<III", 0, 5, 1) + digest(0x0B) + struct.pack("<I", 2**32 - 1)),
        "event is longer than the input",
    ),
    "count-of-none-before-a-digest": (
        event(struct.pack("<IIIH", 0, 5, 0, 0x0B) + b"\xff" * 32 + bytes(4)),
        "event is longer than the input",
    ),
    "event-cut": (small().log()[:-1], "event is longer than the input"),
    "sha1-event-cut": (seabios_sha1().log()[:-1], "Event is longer than the input"),
}


def expected(fw: SimulatedFirmware, quirks: tuple[str, ...]) -> dict[str, object]:
    pcrs = {
        str(bank.algorithm): {str(pcr): value.hex() for pcr, value in bank.values.items()}
        for bank in fw.banks()
    }
    # An entry for no PCR (Windows' trust point) is not counted.
    events = len(fw.entries) - sum(entry[:4] == b"\xff" * 4 for entry in fw.entries)
    return {"events": events, "pcrs": pcrs, "quirks": sorted(quirks)}


def build() -> dict[str, bytes]:
    """Return every file of this folder by name, except this script."""
    files: dict[str, bytes] = {}
    table: dict[str, object] = {}
    for name, (make, quirks) in GOOD.items():
        fw = make()
        files[f"{name}.bin"] = fw.log(PADDING.get(name, b""))
        table[name] = expected(fw, quirks)
    for name, (log, error) in BAD.items():
        files[f"bad-{name}.bin"] = log
        table[f"bad-{name}"] = {"error": error}
    files["expected.json"] = (json.dumps(table, indent=1) + "\n").encode()
    return files


if __name__ == "__main__":
    for name, content in build().items():
        (HERE / name).write_bytes(content)
