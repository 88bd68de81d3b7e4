"""From an event's type to the decoder of its data."""

from __future__ import annotations

from collections.abc import Callable

from undercroft.base import FormatError
from undercroft.formats.eventlog import actions, firmware, gpt, ipl, spdm, tagged, variables
from undercroft.formats.eventlog.noaction import decode_no_action
from undercroft.formats.eventlog.types import NO_ACTION
from undercroft.formats.eventlog.types import EventType as T
from undercroft.formats.eventlog.value import (
    Decoded,
    DigestCheck,
    Digests,
    EventValue,
    Malformed,
    Opaque,
    hashes_to,
)

_VENDOR = (
    T.EV_PREBOOT_CERT,
    T.EV_UNUSED,
    T.EV_CPU_MICROCODE,
    T.EV_PLATFORM_CONFIG_FLAGS,
    T.EV_TABLE_OF_DEVICES,
    T.EV_COMPACT_HASH,
    T.EV_IPL_PARTITION_DATA,
    T.EV_NONHOST_CODE,
    T.EV_NONHOST_CONFIG,
    T.EV_OMIT_BOOT_DEVICE_EVENTS,
)

# Types whose digest covers their data, or may.
_COVERED: dict[int, Callable[[bytes, Digests], Decoded]] = {
    **{int(number): firmware.decode_vendor for number in _VENDOR},
    int(T.EV_POST_CODE): firmware.decode_code,
    int(T.EV_POST_CODE2): firmware.decode_code,
    int(T.EV_S_CRTM_CONTENTS): firmware.decode_code,
    int(T.EV_S_CRTM_VERSION): firmware.decode_crtm_version,
    int(T.EV_NONHOST_INFO): firmware.decode_nonhost_info,
    int(T.EV_SEPARATOR): actions.decode_separator,
    int(T.EV_ACTION): actions.decode_action,
    int(T.EV_EFI_ACTION): actions.decode_action,
    int(T.EV_EVENT_TAG): tagged.decode_event_tag,
    int(T.EV_IPL): ipl.decode_ipl,
    int(T.EV_EFI_VARIABLE_DRIVER_CONFIG): variables.decode_driver_config,
    int(T.EV_EFI_SPDM_DEVICE_POLICY): variables.decode_driver_config,
    int(T.EV_EFI_VARIABLE_AUTHORITY): variables.decode_authority,
    int(T.EV_EFI_SPDM_DEVICE_AUTHORITY): variables.decode_authority,
    int(T.EV_EFI_VARIABLE_BOOT): variables.decode_boot,
    int(T.EV_EFI_VARIABLE_BOOT2): variables.decode_boot2,
    int(T.EV_EFI_GPT_EVENT): gpt.decode_gpt,
    int(T.EV_EFI_GPT_EVENT2): gpt.decode_gpt,
    int(T.EV_EFI_SPDM_FIRMWARE_BLOB): spdm.decode_spdm,
    int(T.EV_EFI_SPDM_FIRMWARE_CONFIG): spdm.decode_spdm,
}

_LAUNCH = ("EV_TXT_", "EV_AMD_SL_", "EV_ARM_")

# Types whose digest is of something that is not in the log.
_CLAIMS: dict[int, Callable[[bytes], EventValue]] = {
    **{int(n): firmware.decode_label for n in T if n.name.startswith(_LAUNCH)},
    int(T.EV_EFI_BOOT_SERVICES_APPLICATION): firmware.decode_image,
    int(T.EV_EFI_BOOT_SERVICES_DRIVER): firmware.decode_image,
    int(T.EV_EFI_RUNTIME_SERVICES_DRIVER): firmware.decode_image,
    int(T.EV_EFI_PLATFORM_FIRMWARE_BLOB): firmware.decode_blob,
    int(T.EV_EFI_PLATFORM_FIRMWARE_BLOB2): firmware.decode_blob2,
    int(T.EV_EFI_HANDOFF_TABLES): firmware.decode_handoff,
    int(T.EV_EFI_HANDOFF_TABLES2): firmware.decode_handoff2,
    int(T.EV_EFI_HCRTM_EVENT): firmware.decode_label,
}

UNKNOWN_TYPE = "unknown event type"


def decode_event(number: int, data: bytes, digests: Digests) -> Decoded:
    """Return the decoded data of an event of type ``number`` and what its digests prove.

    Never raises: data that does not follow its type is a :class:`Malformed` value, data of an
    unknown type an :class:`Opaque` one, so that neither breaks the log nor passes silently.
    """
    try:
        if covered := _COVERED.get(number):
            return covered(data, digests)
        if claim := _CLAIMS.get(number):
            return claim(data), DigestCheck.NOT_RECOMPUTABLE
        if number == NO_ACTION:
            return decode_no_action(data), DigestCheck.NOT_EXTENDED
        value: EventValue = Opaque(data, UNKNOWN_TYPE)
    except FormatError as error:
        value = Malformed(data, str(error))
        if number == NO_ACTION:
            return value, DigestCheck.NOT_EXTENDED
    matches = hashes_to(digests, data)
    return value, DigestCheck.MATCHES if matches else DigestCheck.NOT_RECOMPUTABLE
