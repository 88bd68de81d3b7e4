"""Events in plain words, for people.

``describe`` gives one sentence and, where there is more to tell, one line per detail.  Text from
the log is escaped and bounded; what no digest proves is introduced as such.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from undercroft.base import HashAlgorithm
from undercroft.formats.eventlog import actions, firmware, gpt, ipl, noaction, spdm, tagged
from undercroft.formats.eventlog import signatures as sig
from undercroft.formats.eventlog import variables as var
from undercroft.formats.eventlog.certificates import summarise_certificate
from undercroft.formats.eventlog.devicepath_text import device_path_text
from undercroft.formats.eventlog.guid import guid_name, guid_text
from undercroft.formats.eventlog.log import CC_REGISTERS, Event, LogFormat
from undercroft.formats.eventlog.specid import SpecIdEvent
from undercroft.formats.eventlog.text import AsciiText, Utf16Text, plain, utf16_text
from undercroft.formats.eventlog.types import EventType
from undercroft.formats.eventlog.value import Claimed, DigestCheck, EventValue, Malformed, Opaque

Lines = list[str]

MAX_DETAILS = 24
"""Detail lines per event; a dbx has hundreds of hashes."""

CHECK_WORDS: Mapping[DigestCheck, str] = MappingProxyType(
    {
        DigestCheck.MATCHES: "the digest confirms it",
        DigestCheck.NOT_RECOMPUTABLE: "the digest is of something outside the log",
        DigestCheck.DIFFERS: "THE DIGEST IS NOT OF THIS DATA",
        DigestCheck.NOT_EXTENDED: "not extended, nobody vouches for it",
    }
)


def register_name(index: int, kind: LogFormat) -> str:
    """Return ``PCR 7`` or, in a CCEL, ``RTMR[0]``."""
    if kind is LogFormat.CCEL:
        return CC_REGISTERS.get(index, f"register {index}")
    return f"PCR {index}" if index < 1 << 16 else "no PCR"


def describe(event: Event) -> Lines:
    """Return one sentence about an event, then its details."""
    first, *details = describe_value(event.decoded, event.type)
    return [first, *shortened(details)]


def shortened(details: Sequence[str]) -> Lines:
    """Return at most ``MAX_DETAILS`` lines, and how many more there are."""
    more = len(details) - MAX_DETAILS
    return [*details[:MAX_DETAILS], *([f"... and {more} more"] if more > 0 else [])]


def describe_value(value: EventValue, number: int) -> Lines:
    """Return a decoded value in words; ``number`` is the type of its event."""
    write = _WORDS.get(type(value))
    return write(value, number) if write else [type(value).__name__]


def _text(value: AsciiText | Utf16Text) -> str:
    return f'"{plain(value.text)}"'


def _bytes(data: bytes) -> str:
    return f'"{plain(data.rstrip(bytes(1)).decode("utf-8", "replace"))}"'


def _hex(data: bytes, limit: int = 32) -> str:
    more = f"... ({len(data)} bytes)" if len(data) > limit else ""
    return (data[:limit].hex() or "no data") + more


def _named_text(value: Any, number: int) -> Lines:
    kind = _TEXT_KINDS.get(number, "text")
    return [f"{kind} {_text(value)}"]


_TEXT_KINDS = {
    int(EventType.EV_ACTION): "action",
    int(EventType.EV_EFI_ACTION): "action",
    int(EventType.EV_POST_CODE): "firmware code or data named",
    int(EventType.EV_POST_CODE2): "firmware code or data named",
    int(EventType.EV_S_CRTM_CONTENTS): "root of trust for measurement named",
    int(EventType.EV_PLATFORM_CONFIG_FLAGS): "platform configuration named",
    int(EventType.EV_EFI_HCRTM_EVENT): "hardware root of trust event",
    int(EventType.EV_OMIT_BOOT_DEVICE_EVENTS): "boot device events left out:",
    int(EventType.EV_COMPACT_HASH): "hash named",
    int(EventType.EV_CPU_MICROCODE): "microcode named",
}


def _claimed(value: Any, number: int) -> Lines:
    first, *rest = describe_value(value.claimed_value, number)
    return [f"claimed: {first}", *rest]


def _opaque(value: Any, _: int) -> Lines:
    return [f"{value.why}: {_hex(value.claimed_data)}"]


def _malformed(value: Any, _: int) -> Lines:
    return [f"does not follow its type: {value.error}", _hex(value.claimed_data)]


def _separator(value: Any, _: int) -> Lines:
    if value.error:
        return [f"separator: the firmware reports an ERROR {_hex(value.data)}"]
    if value.standard:
        return [f"separator {value.data.hex()}: the firmware has finished with this PCR"]
    return [f"separator with words {_bytes(value.data)}"]


def _blob(value: Any, _: int) -> Lines:
    end = value.claimed_base + value.claimed_length
    return [f"firmware volume, claimed at {value.claimed_base:#x} to {end:#x}"]


def _blob2(value: Any, number: int) -> Lines:
    (words,) = _blob(value, number)
    return [f"{words}, claimed to be {_bytes(value.claimed_description)}"]


def _tables(value: Any, _: int) -> Lines:
    names = [
        f"{guid_name(table.claimed_guid)} at {table.claimed_address:#x}"
        for table in value.claimed_tables
    ]
    described = value.claimed_description
    what = f" {_bytes(described)}" if described else ""
    return [f"configuration tables{what}, claimed: {'; '.join(names) or 'none'}"]


_IMAGES = {
    int(EventType.EV_EFI_BOOT_SERVICES_APPLICATION): "EFI application",
    int(EventType.EV_EFI_BOOT_SERVICES_DRIVER): "EFI boot driver",
    int(EventType.EV_EFI_RUNTIME_SERVICES_DRIVER): "EFI runtime driver",
}


def _image(value: Any, number: int) -> Lines:
    where = device_path_text(value.claimed_device_path) or "an unnamed place"
    return [f"{_IMAGES.get(number, 'image')} loaded, claimed from {where}"]


def _crtm(value: Any, _: int) -> Lines:
    version = guid_text(value.guid) if value.guid else f'"{plain(value.version)}"'
    return [f"firmware version {version}"]


def _non_host(value: Any, _: int) -> Lines:
    kind = firmware.MEMORY_ENCRYPTION.get(value.technology, f"number {value.technology}")
    return [f"memory encryption technology: {kind}"]


def _spec_id(value: Any, _: int) -> Lines:
    sizes = ", ".join(
        f"{HashAlgorithm.from_alg_id(alg) or f'{alg:#06x}'} ({size} bytes)"
        for alg, size in value.algorithms
    )
    name = value.signature.rstrip(b"\0").decode("ascii", "replace")
    return [f"log header {plain(name)}, version {value.claimed_version}; {sizes or 'SHA-1 only'}"]


def _locality(value: Any, _: int) -> Lines:
    return [f"claimed: the TPM was started from locality {value.claimed_locality}"]


def _platform_id(value: Any, _: int) -> Lines:
    locator = noaction.LOCATOR_TYPES.get(value.claimed_rim_locator_type, "unknown kind")
    return [
        f"claimed platform {_bytes(value.claimed_platform_manufacturer)} "
        f"{_bytes(value.claimed_platform_model)}, reference manifest "
        f"{guid_text(value.claimed_reference_manifest_guid)}",
        f"firmware by {_bytes(value.claimed_firmware_manufacturer)}, "
        f"version {_bytes(value.claimed_firmware_version)}",
        f"reference manifest at ({locator}) {_bytes(value.claimed_rim_locator)}",
    ]


def _hcrtm(value: Any, _: int) -> Lines:
    what = _bytes(value.claimed_description)
    return [f"claimed: the H-CRTM measured {what}: {_hex(value.claimed_measurement, 64)}"]


def _variable(value: Any, _: int) -> Lines:
    name = f"{plain(value.name)} ({guid_name(value.guid)})"
    return _with_content(f"variable {name}", value.content, value.data)


def _boot_variable(value: Any, _: int) -> Lines:
    return _with_content(f"claimed {plain(value.claimed_name)}", value.content, value.data)


def _with_content(head: str, content: EventValue | None, data: bytes) -> Lines:
    if content is None:
        return [f"{head} = {_hex(data)}" if data else f"{head} is absent or empty"]
    first, *rest = describe_value(content, 0)
    return [f"{head}: {first}", *rest]


def _database(value: Any, _: int) -> Lines:
    lines = []
    for entry in value.lists:
        kind = sig.SIGNATURE_TYPES.get(entry.type_guid) or guid_text(entry.type_guid)
        lines += [f"{kind} {signature_text(s.data)}" for s in entry.signatures]
    return (
        [f"{len(lines)} entries" if len(lines) != 1 else "1 entry", *lines] if lines else ["empty"]
    )


def signature_text(data: bytes) -> str:
    """Return an entry of a signature database in words: who a certificate names, or a hash."""
    certificate = summarise_certificate(data) if data[:1] == b"\x30" else None
    if certificate is None:
        return _hex(data, 64)
    issuer = "self-signed" if certificate.issuer == certificate.subject else certificate.issuer
    return f'"{plain(certificate.subject)}" (issuer: {plain(issuer)})'


def _signature(value: Any, _: int) -> Lines:
    return [f"{signature_text(value.data)}, entered by {guid_name(value.owner)}"]


def _certificate(value: Any, _: int) -> Lines:
    return [signature_text(value.der)]


def _load_option(value: Any, _: int) -> Lines:
    state = "" if value.attributes & 1 else " (not active)"
    path = device_path_text(value.file_path_list) or "no path"
    lines = [f'"{plain(value.description)}"{state} = {path}']
    return lines + ([f"optional data {_hex(value.optional_data)}"] if value.optional_data else [])


def _gpt(value: Any, _: int) -> Lines:
    lines = [f"partition table of disk {guid_text(value.disk_guid)}"]
    for number, part in enumerate(value.partitions, 1):
        kind = gpt.PARTITION_TYPES.get(part.type_guid) or guid_text(part.type_guid)
        span = f"{part.first_lba} to {part.last_lba}"
        name = f' "{plain(part.name)}"' if part.name else ""
        lines.append(f"entry {number}: {kind}{name}, blocks {span}, {guid_text(part.unique_guid)}")
    return lines


def _tagged(value: Any, _: int) -> Lines:
    lines: Lines = []
    _tag_lines(value.tags, 0, lines)
    return [f"{len(lines)} tagged events", *lines]


def _tag_lines(tags: tuple[tagged.Tag, ...], depth: int, lines: Lines) -> None:
    for tag in tags:
        name = tagged.WINDOWS_TAGS.get(tag.id, f"{tag.id:#010x}")
        body = f"{len(tag.children)} inside" if tag.children else _tag_value(tag)
        lines.append("  " * depth + f"{name}: {body}")
        _tag_lines(tag.children, depth + 1, lines)


def _tag_value(tag: tagged.Tag) -> str:
    if tag.id in tagged.WINDOWS_TEXTS and (text := utf16_text(tag.data)):
        return _text(text)
    number = int.from_bytes(tag.data, "little")
    if tag.id in tagged.WINDOWS_NUMBERS and len(tag.data) in (1, 4, 8):
        return str(number)
    if tag.id == tagged.WINDOWS_HASH_ALGORITHM and number in tagged.WINDOWS_HASHES:
        return tagged.WINDOWS_HASHES[number]
    return _hex(tag.data, 16)


def _named(value: Any, _: int) -> Lines:
    what = tagged.NAMED_TAGS[value.claimed_id]
    return [f"claimed {what}, described as {_text(value.claimed_description)}"]


def _grub(value: Any, _: int) -> Lines:
    kind = "GRUB ran" if "grub_cmd" in value.claimed_prefix else "GRUB passed the command line"
    return [f"{kind}: {plain(value.text)}"]


def _shim(value: Any, _: int) -> Lines:
    known = "" if value.flag is None else f" = {value.flag}"
    return [f"shim measured its variable, claimed {value.claimed_name}{known}"]


def _contents(value: Any, _: int) -> Lines:
    return [f"contents measured of something, claimed {_text(value.claimed_name)}"]


def _options(value: Any, _: int) -> Lines:
    return [f'load options "{plain(value.text)}"']


def _section(value: Any, _: int) -> Lines:
    return [f"unified kernel image: section {plain(value.name)} follows"]


def _spdm(value: Any, _: int) -> Lines:
    kind = spdm.DEVICE_TYPES.get(value.device_type, f"device type {value.device_type}")
    return [f"SPDM measurement of a {kind}: {_hex(value.block.measurement, 64)}"]


def _spdm2(value: Any, _: int) -> Lines:
    kind = spdm.DEVICE_TYPES.get(value.device_type, f"device type {value.device_type}")
    state = spdm.AUTH_STATES.get(value.auth_state, f"state {value.auth_state}")
    lines = [f"SPDM, a {kind} at {device_path_text(value.device_path) or 'no path'}: {state}"]
    lines += [f"block {block.index}: {_hex(block.measurement, 64)}" for block in value.blocks]
    chain = value.certificate_chain
    return lines + ([f"certificate chain of {len(chain)} bytes"] if chain else [])


def _nv_dynamic(value: Any, _: int) -> Lines:
    what = _bytes(value.claimed_description)
    return [f"claimed: extended into NV index 0x01c40201, {what}: {_hex(value.claimed_data)}"]


def _nv_instance(value: Any, number: int) -> Lines:
    first, *rest = _spdm2(value.claimed_device, number)
    return [f"claimed: extended into NV index 0x01c40200: {first}", *rest]


_WORDS: Mapping[type, Callable[[Any, int], Lines]] = MappingProxyType(
    {
        AsciiText: _named_text,
        Utf16Text: _named_text,
        Claimed: _claimed,
        Opaque: _opaque,
        Malformed: _malformed,
        actions.Separator: _separator,
        firmware.FirmwareBlob: _blob,
        firmware.FirmwareBlob2: _blob2,
        firmware.HandoffTables: _tables,
        firmware.ImageLoad: _image,
        firmware.CrtmVersion: _crtm,
        firmware.NonHostInfo: _non_host,
        SpecIdEvent: _spec_id,
        noaction.StartupLocality: _locality,
        noaction.PlatformId: _platform_id,
        noaction.HcrtmComponent: _hcrtm,
        var.UefiVariable: _variable,
        var.BootVariable: _boot_variable,
        var.Flag: lambda value, _: [str(value.value)],
        var.Text: lambda value, _: [f'"{plain(value.text.strip())}"'],
        var.Certificate: _certificate,
        var.BootOrder: lambda value, _: [", ".join(f"{n:04X}" for n in value.options) or "empty"],
        var.LoadOption: _load_option,
        sig.SignatureDatabase: _database,
        sig.Signature: _signature,
        gpt.PartitionTable: _gpt,
        tagged.TaggedEvents: _tagged,
        tagged.NamedMeasurement: _named,
        ipl.GrubText: _grub,
        ipl.ShimVariable: _shim,
        ipl.MeasuredContents: _contents,
        ipl.LoadOptions: _options,
        ipl.SectionName: _section,
        spdm.DeviceSecurity: _spdm,
        spdm.DeviceSecurity2: _spdm2,
        spdm.NvIndexDynamic: _nv_dynamic,
        spdm.NvIndexInstance: _nv_instance,
    }
)
