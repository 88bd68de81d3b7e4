"""The Secure Boot judgement that a verified event log allows.

What rests on the quote: the events of PCR 7 in their order, and of each the data that its digest
covers, names included.  Event *types* and the order of events between PCRs are the log writer's
word.  So the end of the firmware's part of PCR 7 is found by the separator's digest, whatever
type the log gives it; before it only variables whose digest covers their name count, and one
event that we do not understand there makes the answer UNKNOWN: a log could hide the real
SecureBoot variable under another type and show one that was extended later.

The checks are numbered; ``secureboot_checks.CHECKS`` is the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from undercroft.base import Finding, HashAlgorithm, JsonValue, Outcome
from undercroft.formats.eventlog import DigestCheck, Event, EventType, LogFormat
from undercroft.formats.eventlog import signatures as sig
from undercroft.formats.eventlog.actions import DMA_PROTECTION_DISABLED, UEFI_DEBUG_MODE
from undercroft.formats.eventlog.certificates import summarise_certificate
from undercroft.formats.eventlog.devicepath_text import device_path_text
from undercroft.formats.eventlog.firmware import ImageLoad
from undercroft.formats.eventlog.ipl import ShimVariable
from undercroft.formats.eventlog.variables import Flag, Text, UefiVariable
from undercroft.verify.eventlog import ReplayedLog
from undercroft.verify.secureboot_checks import finding
from undercroft.verify.secureboot_pcr7 import KEYS, MODES, Authority, Policy, take_apart

_APPLICATION = EventType.EV_EFI_BOOT_SERVICES_APPLICATION
_IMAGE_TYPES = frozenset(
    {
        _APPLICATION,
        EventType.EV_EFI_BOOT_SERVICES_DRIVER,
        EventType.EV_EFI_RUNTIME_SERVICES_DRIVER,
    }
)


@dataclass(frozen=True, slots=True)
class _Image:
    """An image that was loaded: its event and its Authenticode digests, with no path proven."""

    event: Event
    claimed_path: str

    @property
    def details(self) -> dict[str, JsonValue]:
        digests = {str(alg): digest.hex() for alg, digest in self.event.digests.items()}
        where = {"event": self.event.index, "pcr": self.event.pcr}
        return {**where, "claimed_path": self.claimed_path, "digests": digests}


@dataclass(frozen=True, slots=True)
class _Boot:
    """All that the checks look at; ``unvouched`` are PCRs of images that the quote lacks."""

    policy: Policy
    images: tuple[_Image, ...]
    odd_images: tuple[int, ...]
    unvouched: tuple[int, ...]
    events: tuple[Event, ...]


def judge_secure_boot(replayed: ReplayedLog) -> tuple[Finding, ...]:
    """Return one finding per check, in the order of that table.

    Where the quote does not vouch for PCR 7 every finding is UNKNOWN.
    """
    kind = replayed.log.format
    register = 1 if kind is LogFormat.CCEL else 7
    if register not in replayed.explained:
        why = f"the quote vouches for no event of PCR 7 (register {register} of the log)"
        return tuple(finding(name, Outcome.UNKNOWN, why) for name in _JUDGES)
    policy = take_apart([e for e in replayed.vouched if e.pcr == register], kind)
    boot = _boot(replayed, policy)
    return tuple(check(boot) for check in _JUDGES.values())


def _boot(replayed: ReplayedLog, policy: Policy) -> _Boot:
    registers = {2} if replayed.log.format is LogFormat.CCEL else {2, 4}
    images: list[_Image] = []
    odd: list[int] = []
    for event in replayed.vouched:
        if event.pcr not in registers:
            continue
        if event.type in _IMAGE_TYPES:
            images.append(_Image(event, _claimed_path(event)))
        elif event.check is not DigestCheck.MATCHES:
            odd.append(event.index)
    unvouched = tuple(sorted(registers - replayed.explained))
    return _Boot(policy, tuple(images), tuple(odd), unvouched, replayed.vouched)


def _claimed_path(event: Event) -> str:
    loaded = event.decoded
    return device_path_text(loaded.claimed_device_path) if isinstance(loaded, ImageLoad) else ""


def _measured(boot: _Boot) -> Finding:
    policy = boot.policy
    if not policy.separated:
        return finding("measured", Outcome.FAIL, "PCR 7 has no separator: firmware never left it")
    if policy.changed:
        return finding(
            "measured",
            Outcome.FAIL,
            "Secure Boot variables changed after the firmware had finished with PCR 7",
            events=policy.changed,
        )
    odd = [*policy.odd_before, *policy.odd_after]
    if odd:
        return finding(
            "measured",
            Outcome.UNKNOWN,
            "PCR 7 holds events that its data does not explain",
            events=odd,
        )
    return finding("measured", Outcome.PASS, "PCR 7 has the shape that firmware gives it")


def _enabled(boot: _Boot) -> Finding:
    value = boot.policy.flag("SecureBoot")
    if value == 1 and boot.policy.separated and not boot.policy.odd_before:
        return finding("enabled", Outcome.PASS, "Secure Boot was enabled")
    if value == 0:
        return finding("enabled", Outcome.FAIL, "Secure Boot was disabled", SecureBoot=0)
    why = "the variable SecureBoot is not measured in a way that can be believed"
    return finding("enabled", Outcome.UNKNOWN, why, SecureBoot=value)


def _mode(boot: _Boot) -> Finding:
    policy = boot.policy
    flags = {name: policy.flag(name) for name in MODES}
    platform_key = policy.variables.get("PK")
    if flags["AuditMode"] == 1:
        return finding("mode", Outcome.FAIL, "audit mode: images run without verification", **flags)
    if flags["SetupMode"] == 1 or (platform_key and not platform_key.data):
        return finding("mode", Outcome.FAIL, "setup mode: no platform key is enrolled", **flags)
    if flags["DeployedMode"] == 1:
        return finding("mode", Outcome.PASS, "deployed mode", **flags)
    if platform_key:
        # Setup mode and audit mode have no platform key (UEFI 2.10, section 32.3).
        return finding("mode", Outcome.PASS, "user mode, or deployed and not measured", **flags)
    return finding("mode", Outcome.UNKNOWN, "the log does not tell the mode", **flags)


def _keys(boot: _Boot) -> Finding:
    counts: dict[str, JsonValue] = {}
    missing: list[str] = []
    for name in KEYS:
        lists = boot.policy.lists(name)
        if lists is None:
            missing.append(name)
        else:
            counts[name] = sum(len(entry.signatures) for entry in lists)
    if missing:
        why = f"not measured, or not readable: {', '.join(missing)}"
        return finding("keys", Outcome.UNKNOWN, why, entries=counts)
    empty = [name for name in ("PK", "KEK", "db") if not counts[name]]
    if empty:
        return finding("keys", Outcome.FAIL, f"empty: {', '.join(empty)}", entries=counts)
    subjects = [
        certificate.subject
        for entry in boot.policy.lists("db") or ()
        if entry.type_guid == sig.EFI_CERT_X509
        for signature in entry.signatures
        if (certificate := summarise_certificate(signature.data))
    ]
    return finding(
        "keys", Outcome.PASS, "PK, KEK, db and dbx are measured", entries=counts, db=subjects
    )


def _debug(boot: _Boot) -> Finding:
    seen = [
        text for text in boot.policy.actions if text in (UEFI_DEBUG_MODE, DMA_PROTECTION_DISABLED)
    ]
    if seen:
        return finding("debug", Outcome.FAIL, f"the firmware reports: {', '.join(seen)}")
    if boot.policy.odd_before or boot.policy.odd_after:
        return finding("debug", Outcome.UNKNOWN, "PCR 7 holds events that are not understood")
    return finding("debug", Outcome.PASS, "no debugger and no disabled DMA protection reported")


def _in_db(policy: Policy, authority: Authority) -> bool:
    return any(
        signature.data == authority.data and authority.owner in (None, signature.owner)
        for _, signature in policy.entries("db")
    )


def _authorities(boot: _Boot) -> Finding:
    policy = boot.policy
    named = [authority.name for authority in policy.authorities]
    strangers = [
        authority.name
        for authority in policy.authorities
        if not authority.is_shims and not _in_db(policy, authority)
    ]
    if strangers:
        why = "an image was verified by an entry that db does not have"
        return finding("authorities", Outcome.FAIL, why, strangers=strangers, authorities=named)
    if policy.odd_after or policy.lists("db") is None:
        why = "not everything in PCR 7 that may have verified an image is understood"
        return finding("authorities", Outcome.UNKNOWN, why, authorities=named)
    if not named:
        return finding("authorities", Outcome.UNKNOWN, "no entry verified an image")
    return finding(
        "authorities",
        Outcome.PASS,
        f"images were verified by {'; '.join(named)}",
        authorities=named,
    )


_HASH_TYPES = {
    sig.EFI_CERT_SHA1: HashAlgorithm.SHA1,
    sig.EFI_CERT_SHA256: HashAlgorithm.SHA256,
    sig.EFI_CERT_SHA384: HashAlgorithm.SHA384,
    sig.EFI_CERT_SHA512: HashAlgorithm.SHA512,
}


def _listed(policy: Policy, database: str, image: _Image) -> bool:
    """Does a database list the image by one of its Authenticode hashes?"""
    return any(
        kind in _HASH_TYPES and image.event.digests.get(_HASH_TYPES[kind]) == entry.data
        for kind, entry in policy.entries(database)
    )


def _explain(boot: _Boot, image: _Image) -> str:
    """Return what verified an image, "" if nothing in the log did.

    An authority is measured once, with the first image that it verifies, before that image or
    (shim, older edk2) as the next event: a later image may owe itself to any certificate of
    them.  An authority that is a hash verified the image with that hash and no other.  The order
    between PCRs is the log's word.
    """
    if _listed(boot.policy, "db", image):
        return "its hash is in db"
    last = image.event.index + 1
    verified = [a for a in boot.policy.authorities if a.index <= last]
    names = [a.name for a in verified if a.certificate or a.data in image.event.digests.values()]
    return "one of " + "; ".join(names) if len(names) > 1 else "".join(names)


def _images(boot: _Boot) -> Finding:
    return _explained("images", boot, [i for i in boot.images if i.event.type == _APPLICATION])


def _drivers(boot: _Boot) -> Finding:
    return _explained("drivers", boot, [i for i in boot.images if i.event.type != _APPLICATION])


def _no_images(boot: _Boot) -> str:
    pcrs = ", ".join(map(str, boot.unvouched))
    return f"the quote vouches for no image: PCR {pcrs} is not among its PCRs"


def _explained(check: str, boot: _Boot, images: Iterable[_Image]) -> Finding:
    enabled = boot.policy.flag("SecureBoot")
    if enabled == 0:
        why = "Secure Boot was disabled: nothing verified what was loaded"
        return finding(check, Outcome.FAIL, why)
    if boot.unvouched:
        return finding(check, Outcome.UNKNOWN, _no_images(boot))
    reasons = [(image, _explain(boot, image)) for image in images]
    explained = [{**i.details, "claimed_verified_by": why} for i, why in reasons if why]
    unexplained = [i.details for i, why in reasons if not why]
    details: dict[str, JsonValue] = {"explained": explained, "unexplained": unexplained}
    if unexplained:
        # edk2's PcdOptionRomImageVerificationPolicy may let option ROMs run unverified.
        outcome = Outcome.FAIL if check == "images" else Outcome.UNKNOWN
        why = f"{len(unexplained)} of the {check} were loaded with no entry of db to explain them"
        return finding(check, outcome, why, **details)
    if boot.odd_images or enabled is None or (check == "images" and not explained):
        why = f"the log does not tell all {check} that were loaded, or what verified them"
        return finding(check, Outcome.UNKNOWN, why, events=boot.odd_images, **details)
    why = f"all {len(explained)} {check} that were loaded are explained"
    return finding(check, Outcome.PASS, why, **details)


def _revoked(boot: _Boot) -> Finding:
    policy = boot.policy
    if policy.lists("dbx") is None:
        return finding("revoked", Outcome.UNKNOWN, "dbx is not measured or not readable")
    images = [image.details for image in boot.images if _listed(policy, "dbx", image)]
    authorities = [a.name for a in policy.authorities if _is_revoked(policy, a)]
    if images or authorities:
        why = "dbx revokes something that was used in this boot"
        return finding("revoked", Outcome.FAIL, why, images=images, authorities=authorities)
    if boot.unvouched:
        return finding("revoked", Outcome.UNKNOWN, _no_images(boot))
    kinds = {kind for kind, _ in policy.entries("dbx") if kind in _HASH_TYPES}
    unseen = [
        str(_HASH_TYPES[kind])
        for kind in sorted(kinds)
        if any(_HASH_TYPES[kind] not in image.event.digests for image in boot.images)
    ]
    if unseen:
        why = f"dbx has hashes of a kind that the log lacks: {', '.join(unseen)}"
        return finding("revoked", Outcome.UNKNOWN, why)
    count = sum(1 for _ in policy.entries("dbx"))
    return finding(
        "revoked", Outcome.PASS, f"none of the {count} entries of dbx was used", entries=count
    )


def _is_revoked(policy: Policy, authority: Authority) -> bool:
    tbs = authority.certificate.tbs_hashes if authority.certificate else {}
    revoking = {
        sig.EFI_CERT_X509_SHA256: tbs.get("sha256"),
        sig.EFI_CERT_X509_SHA384: tbs.get("sha384"),
        sig.EFI_CERT_X509_SHA512: tbs.get("sha512"),
    }
    for kind, entry in policy.entries("dbx"):
        if entry.data == authority.data:
            return True
        # The hash is followed by a 16-byte time of revocation (UEFI 2.10, section 32.4.1).
        if (digest := revoking.get(kind)) and entry.data[:-16] == digest:
            return True
    return False


def _sbat(boot: _Boot) -> Finding:
    policy = boot.policy
    variable = policy.settings.get("SbatLevel") or policy.settings.get("SbatLevelRT")
    if variable is None:
        if policy.uses_shim or policy.odd_after:
            why = "shim is in the chain and measured no SBAT level"
            return finding("sbat", Outcome.UNKNOWN, why)
        return finding("sbat", Outcome.PASS, "no shim in the chain: no SBAT level applies")
    levels = _sbat_levels(variable)
    if levels is None:
        return finding("sbat", Outcome.UNKNOWN, "the SBAT level is not readable")
    level, generations = levels
    return finding(
        "sbat", Outcome.PASS, f"SBAT level {level}", level=level, generations=generations
    )


def _sbat_levels(variable: UefiVariable) -> tuple[str, dict[str, JsonValue]] | None:
    """Return the level's date and the minimum generation per component (shim, SBAT.md)."""
    if not isinstance(variable.content, Text):
        return None
    rows = [line.split(",") for line in variable.content.text.split("\n") if line.strip("\0")]
    if not rows or len(rows[0]) != 3 or rows[0][0] != "sbat":
        return None
    if not all(len(row) >= 2 and row[1].isascii() and row[1].isdigit() for row in rows):
        return None
    return rows[0][2], {row[0]: int(row[1][:9]) for row in rows}


def _shim(boot: _Boot) -> Finding:
    insecure = [
        name
        for name in ("MokSBState",)
        if (variable := boot.policy.settings.get(name)) and variable.content != Flag(0)
    ]
    # Before 15.3 shim measures MokSBState into PCR 14 only, where the name is but claimed.
    insecure += [
        "MokSBState"
        for event in boot.events
        if isinstance(event.decoded, ShimVariable)
        and event.decoded.claimed_name == "MokSBState"
        and event.decoded.flag != 0
    ]
    if insecure:
        why = "shim's verification is switched off (MokSBState)"
        return finding("shim", Outcome.FAIL, why)
    if boot.policy.odd_after:
        return finding("shim", Outcome.UNKNOWN, "PCR 7 holds events that are not understood")
    if not boot.policy.uses_shim:
        return finding("shim", Outcome.PASS, "no shim in the chain")
    return finding("shim", Outcome.PASS, "shim verifies what it loads")


_JUDGES: Mapping[str, Callable[[_Boot], Finding]] = {
    "measured": _measured,
    "enabled": _enabled,
    "mode": _mode,
    "keys": _keys,
    "debug": _debug,
    "authorities": _authorities,
    "images": _images,
    "drivers": _drivers,
    "revoked": _revoked,
    "sbat": _sbat,
    "shim": _shim,
}
