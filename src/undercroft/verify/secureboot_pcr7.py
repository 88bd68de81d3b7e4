"""PCR 7 taken apart by what its digests prove (PFP 1.06, section 3.3.4.8).

The end of the firmware's part is the first event whose digest is a separator's, whatever type
the log gives it.  Before it count variables whose digest covers their name; after it, what
verified images, and shim's settings.  What fits neither is ``odd`` and kept by its index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from undercroft.formats.eventlog import DigestCheck, Event, EventType, LogFormat
from undercroft.formats.eventlog import signatures as sig
from undercroft.formats.eventlog.actions import SEPARATORS
from undercroft.formats.eventlog.certificates import CertificateSummary, summarise_certificate
from undercroft.formats.eventlog.guid import (
    EFI_GLOBAL_VARIABLE,
    EFI_IMAGE_SECURITY_DATABASE,
    SHIM_LOCK,
)
from undercroft.formats.eventlog.text import AsciiText
from undercroft.formats.eventlog.value import hashes_to
from undercroft.formats.eventlog.variables import Certificate, Flag, UefiVariable

KEYS: Mapping[str, bytes] = {
    "PK": EFI_GLOBAL_VARIABLE,
    "KEK": EFI_GLOBAL_VARIABLE,
    "db": EFI_IMAGE_SECURITY_DATABASE,
    "dbx": EFI_IMAGE_SECURITY_DATABASE,
}
MODES = ("SecureBoot", "SetupMode", "AuditMode", "DeployedMode")
_GUIDS = {**KEYS, **dict.fromkeys(MODES, EFI_GLOBAL_VARIABLE)}

_SHIM_LISTS = frozenset({"Shim", "MokList", "MokListRT"})
_VENDOR_LISTS = frozenset({"vendor_db", "vendor_cert"})
_SHIM_SETTINGS = frozenset(
    {
        "SbatLevel",
        "SbatLevelRT",
        "MokListTrusted",
        "MokSBState",
        "MokDBState",
        "MokIgnoreDB",
        "MokPolicy",
        "HSIStatus",
    }
)

_CONFIG_TYPES = frozenset(
    {EventType.EV_EFI_VARIABLE_DRIVER_CONFIG, EventType.EV_EFI_SPDM_DEVICE_POLICY}
)

# A CCEL puts PCR 1 and PCR 7 into one register: these types are PCR 1's and left alone there.
_PCR_1_TYPES = frozenset(
    {
        EventType.EV_EFI_VARIABLE_BOOT,
        EventType.EV_EFI_VARIABLE_BOOT2,
        EventType.EV_EFI_HANDOFF_TABLES,
        EventType.EV_EFI_HANDOFF_TABLES2,
        EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB2,
        EventType.EV_PLATFORM_CONFIG_FLAGS,
    }
)


@dataclass(frozen=True, slots=True)
class Authority:
    """A database entry that firmware or shim says verified an image.

    ``index`` is its event.  ``owner`` is None where the log has the bare certificate.
    """

    index: int
    variable: UefiVariable
    owner: bytes | None
    data: bytes
    certificate: CertificateSummary | None

    @property
    def name(self) -> str:
        """The database and who stands in it, for people."""
        who = self.certificate.subject if self.certificate else self.data.hex()
        return f"{self.variable.name}: {who}"

    @property
    def is_shims(self) -> bool:
        """Does the entry come from shim's own lists (its vendor key, MokList), not from db?"""
        name = self.variable.name
        own = self.variable.guid == SHIM_LOCK and name in _SHIM_LISTS
        return own or name in _VENDOR_LISTS


@dataclass(slots=True)
class Policy:
    """What PCR 7 says.

    ``variables`` are the firmware's, by name, each measured once before the separator;
    ``settings`` shim's; ``actions`` the texts measured; ``changed`` the events that measure a
    Secure Boot variable after the separator; ``odd_before`` and ``odd_after`` those that no
    digest explains, or that do not belong where they stand.
    """

    separated: bool
    variables: dict[str, UefiVariable] = field(default_factory=dict)
    authorities: list[Authority] = field(default_factory=list)
    settings: dict[str, UefiVariable] = field(default_factory=dict)
    actions: list[str] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)
    odd_before: list[int] = field(default_factory=list)
    odd_after: list[int] = field(default_factory=list)

    def flag(self, name: str) -> int | None:
        """Return a one-byte variable; 0 if it is measured as absent, None if not measured."""
        variable = self.variables.get(name)
        if variable is None:
            return None
        if not variable.data:
            return 0
        return variable.content.value if isinstance(variable.content, Flag) else None

    def lists(self, name: str) -> tuple[sig.SignatureList, ...] | None:
        """Return a signature database, None if it is not measured or not readable."""
        variable = self.variables.get(name)
        content = variable.content if variable else None
        return content.lists if isinstance(content, sig.SignatureDatabase) else None

    def entries(self, name: str) -> Iterator[tuple[bytes, sig.Signature]]:
        """Yield the signature type and the entry of every entry of a database."""
        for entry in self.lists(name) or ():
            for signature in entry.signatures:
                yield entry.type_guid, signature

    @property
    def uses_shim(self) -> bool:
        """Did shim measure anything into PCR 7?"""
        return bool(self.settings) or any(a.is_shims for a in self.authorities)


def take_apart(events: list[Event], kind: LogFormat) -> Policy:
    """Sort the events of PCR 7 (in a CCEL: of its register), which the caller had vouched for."""
    skipped = _PCR_1_TYPES if kind is LogFormat.CCEL else frozenset()
    cut = next((i for i, event in enumerate(events) if _is_separator(event)), len(events))
    policy = Policy(separated=cut < len(events))
    for event in events[:cut]:
        if event.type not in skipped:
            _before(policy, event)
    for event in events[cut:]:
        # A second separator is a second boot attempt without a reset in between.
        if event.type not in skipped and not _is_separator(event):
            _after(policy, event)
    return policy


def _is_separator(event: Event) -> bool:
    return any(hashes_to(event.digests, data) for data in SEPARATORS)


def _before(policy: Policy, event: Event) -> None:
    value = event.decoded
    if _took_action(policy, event):
        return
    if isinstance(value, UefiVariable):
        if event.type in _CONFIG_TYPES:
            right_guid = _GUIDS.get(value.name, value.guid) == value.guid
            if right_guid and value.name not in policy.variables:
                policy.variables[value.name] = value
                return
        elif value.name not in MODES:
            # A driver's verification, before the firmware left PCR 7.
            _from_loader(policy, event.index, value)
            return
    policy.odd_before.append(event.index)


def _after(policy: Policy, event: Event) -> None:
    value = event.decoded
    if _took_action(policy, event):
        return
    if not isinstance(value, UefiVariable):
        policy.odd_after.append(event.index)
    elif event.type in _CONFIG_TYPES and value.guid != SHIM_LOCK:
        policy.changed.append(event.index)
    elif event.type in _CONFIG_TYPES:
        policy.settings[value.name] = value
    else:
        _from_loader(policy, event.index, value)


def _from_loader(policy: Policy, index: int, variable: UefiVariable) -> None:
    if variable.guid == SHIM_LOCK and variable.name in _SHIM_SETTINGS:
        policy.settings[variable.name] = variable
    else:
        policy.authorities.append(_authority(index, variable))


def _took_action(policy: Policy, event: Event) -> bool:
    value = event.decoded
    if isinstance(value, AsciiText) and event.check is DigestCheck.MATCHES:
        policy.actions.append(value.text)
        return True
    return False


def _authority(index: int, variable: UefiVariable) -> Authority:
    content = variable.content
    if isinstance(content, sig.Signature):
        owner, data = content.owner, content.data
    else:
        owner, data = None, content.der if isinstance(content, Certificate) else variable.data
    return Authority(index, variable, owner, data, summarise_certificate(data))
