"""Secure Boot from the log: one case per check in which that check says no, and attacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from undercroft.base import Finding, HashAlgorithm, Outcome
from undercroft.formats.eventlog import EventType, LogFormat, parse_eventlog
from undercroft.formats.eventlog import signatures as sig
from undercroft.formats.eventlog.certificates import summarise_certificate
from undercroft.formats.eventlog.guid import (
    EFI_GLOBAL_VARIABLE,
    EFI_IMAGE_SECURITY_DATABASE,
    MICROSOFT_OWNER,
    SHIM_LOCK,
)
from undercroft.formats.eventlog.variables import UefiVariable
from undercroft.testing.eventlog import (
    SimulatedFirmware,
    certificate,
    file_path,
    signature_list,
)
from undercroft.verify.eventlog import verify_eventlog
from undercroft.verify.secureboot import judge_secure_boot

T = EventType
SHA1, SHA256, SHA384 = HashAlgorithm.SHA1, HashAlgorithm.SHA256, HashAlgorithm.SHA384
PASS, FAIL, UNKNOWN = Outcome.PASS, Outcome.FAIL, Outcome.UNKNOWN

CA = certificate("Example UEFI CA", filler=200)
OTHER = certificate("Other CA", filler=200)
VENDOR = certificate("Example Distribution CA", filler=200)
ENTRY = MICROSOFT_OWNER + CA
SBAT = b"sbat,1,2023012900\nshim,2\ngrub,3\n"

CHECKS = (
    "measured",
    "enabled",
    "mode",
    "keys",
    "debug",
    "authorities",
    "images",
    "drivers",
    "revoked",
    "sbat",
    "shim",
)

Step = Callable[[SimulatedFirmware], None]


def _x509(*certificates: bytes) -> bytes:
    return b"".join(signature_list(sig.EFI_CERT_X509, MICROSOFT_OWNER, c) for c in certificates)


def _hashes(*contents: bytes, kind: bytes = sig.EFI_CERT_SHA256) -> bytes:
    digests = [SHA256.hash(content) for content in contents]
    return signature_list(kind, MICROSOFT_OWNER, *digests)


def _nothing(_: SimulatedFirmware) -> None:
    pass


def _shim(fw: SimulatedFirmware) -> None:
    fw.image(file_path("shim"), b"shim")
    fw.authority("SbatLevel", SBAT, guid=SHIM_LOCK)
    fw.authority("MokListTrusted", b"\1", guid=SHIM_LOCK)
    fw.authority("MokListRT", SHIM_LOCK + VENDOR, guid=SHIM_LOCK)
    fw.image(file_path("grub"), b"grub")


@dataclass
class Case:
    """A boot that passes every check, and what to change in it."""

    variables: dict[str, bytes | None] = field(default_factory=dict)
    before: Step = _nothing
    separator: bool = True
    after: Step = _nothing
    authority: bytes | None = ENTRY
    boot: Step = _shim
    pcrs: tuple[int, ...] = tuple(range(10))
    banks: tuple[HashAlgorithm, ...] = (SHA256,)

    def firmware(self) -> SimulatedFirmware:
        fw = SimulatedFirmware(self.banks)
        values: dict[str, bytes | None] = {
            "SecureBoot": b"\1",
            "PK": _x509(CA),
            "KEK": _x509(CA),
            "db": _x509(CA) + _hashes(b"allowed"),
            "dbx": _hashes(b"revoked"),
            **self.variables,
        }
        for name, value in values.items():
            if value is not None:
                fw.variable(name, value)
        self.before(fw)
        if self.separator:
            fw.separators([7])
        fw.separators(range(7))
        self.after(fw)
        if self.authority is not None:
            fw.authority("db", self.authority)
        self.boot(fw)
        return fw

    def judge(self, change: Callable[[bytes], bytes] = bytes) -> dict[str, Finding]:
        fw = self.firmware()
        log = parse_eventlog(change(fw.log()))
        findings = judge_secure_boot(verify_eventlog(log, fw.banks(self.pcrs)))
        assert [finding.id for finding in findings] == [f"secureboot.{name}" for name in CHECKS]
        return {finding.id.removeprefix("secureboot."): finding for finding in findings}


def _outcomes(findings: Mapping[str, Finding]) -> dict[str, Outcome]:
    return {name: f.outcome for name, f in findings.items() if f.outcome is not PASS}


def test_a_good_boot_passes_every_check() -> None:
    findings = Case().judge()
    assert _outcomes(findings) == {}
    assert findings["sbat"].details["level"] == "2023012900"
    assert findings["keys"].details["db"] == ["Example UEFI CA"]
    assert "Example Distribution CA" in findings["authorities"].summary
    explained = findings["images"].details["explained"]
    assert isinstance(explained, list)
    assert [image["claimed_path"] for image in explained] == ["shim", "grub"]


def _touch(name: str, value: bytes, guid: bytes = SHIM_LOCK) -> Step:
    return lambda fw: fw.authority(name, value, guid=guid)


def _then(*steps: Step) -> Step:
    def run(fw: SimulatedFirmware) -> None:
        for step in steps:
            step(fw)

    return run


def _loader(contents: bytes) -> Step:
    return lambda fw: fw.image(file_path("loader"), contents)


def _driver(fw: SimulatedFirmware) -> None:
    fw.image(file_path("rom"), b"rom", pcr=2, number=T.EV_EFI_BOOT_SERVICES_DRIVER)


def _config(name: str, value: bytes, guid: bytes | None = None) -> Step:
    return lambda fw: fw.variable(name, value, guid=guid)


def _odd(fw: SimulatedFirmware) -> None:
    fw.measure(7, T.EV_PLATFORM_CONFIG_FLAGS, b"vendor's", b"something else")


def _action(text: bytes) -> Step:
    return lambda fw: fw.measure(7, T.EV_EFI_ACTION, text)


def _revokes(kind: bytes, size: int, algorithm: str) -> bytes:
    summary = summarise_certificate(CA)
    assert summary is not None
    entry = summary.tbs_hashes[algorithm] + bytes(16)
    assert len(entry) == size
    return signature_list(kind, MICROSOFT_OWNER, entry)


CASES: dict[str, tuple[Case, dict[str, Outcome]]] = {
    "no-separator": (Case(separator=False), {"measured": FAIL, "enabled": UNKNOWN}),
    "db-changed-after-separator": (Case(after=_config("db", _x509(OTHER))), {"measured": FAIL}),
    "odd-event-before-separator": (
        Case(before=_odd),
        {"measured": UNKNOWN, "enabled": UNKNOWN, "debug": UNKNOWN},
    ),
    "odd-event-after-separator": (
        Case(after=_odd),
        {"measured": UNKNOWN, "debug": UNKNOWN, "authorities": UNKNOWN, "shim": UNKNOWN},
    ),
    "variable-twice": (
        Case(before=_config("SecureBoot", b"\1")),
        {"measured": UNKNOWN, "enabled": UNKNOWN, "debug": UNKNOWN},
    ),
    "variable-of-another-vendor": (
        Case(variables={"SecureBoot": None}, before=_config("SecureBoot", b"\1", SHIM_LOCK)),
        {
            "measured": UNKNOWN,
            "enabled": UNKNOWN,
            "debug": UNKNOWN,
            "images": UNKNOWN,
            "drivers": UNKNOWN,
        },
    ),
    "authority-named-like-a-mode": (
        Case(before=_touch("SecureBoot", b"\1", EFI_GLOBAL_VARIABLE)),
        {"measured": UNKNOWN, "enabled": UNKNOWN, "debug": UNKNOWN},
    ),
    "disabled": (
        Case(variables={"SecureBoot": b"\0"}),
        {"enabled": FAIL, "images": FAIL, "drivers": FAIL},
    ),
    "absent": (
        Case(variables={"SecureBoot": b""}),
        {"enabled": FAIL, "images": FAIL, "drivers": FAIL},
    ),
    "not-measured": (
        Case(variables={"SecureBoot": None}),
        {"enabled": UNKNOWN, "images": UNKNOWN, "drivers": UNKNOWN},
    ),
    "not-a-flag": (
        Case(variables={"SecureBoot": b"\1\1"}),
        {"enabled": UNKNOWN, "images": UNKNOWN, "drivers": UNKNOWN},
    ),
    "setup-mode": (Case(variables={"SetupMode": b"\1"}), {"mode": FAIL}),
    "no-platform-key": (Case(variables={"PK": b""}), {"mode": FAIL, "keys": FAIL}),
    "audit-mode": (Case(variables={"AuditMode": b"\1"}), {"mode": FAIL}),
    "mode-not-told": (Case(variables={"PK": None}), {"mode": UNKNOWN, "keys": UNKNOWN}),
    "deployed-mode": (Case(variables={"DeployedMode": b"\1", "AuditMode": b"\0"}), {}),
    "keys-unreadable": (Case(variables={"KEK": b"short"}), {"keys": UNKNOWN}),
    "keys-empty": (Case(variables={"KEK": b""}), {"keys": FAIL}),
    "db-not-measured": (
        Case(variables={"db": None}),
        {"keys": UNKNOWN, "authorities": FAIL},
    ),
    "debugger": (Case(before=_action(b"UEFI Debug Mode")), {"debug": FAIL}),
    "dma-protection": (Case(after=_action(b"DMA Protection Disabled")), {"debug": FAIL}),
    "other-action": (Case(before=_action(b"vendor's own words")), {}),
    "authority-not-in-db": (Case(authority=MICROSOFT_OWNER + OTHER), {"authorities": FAIL}),
    "authority-of-another-owner": (Case(authority=SHIM_LOCK + CA), {"authorities": FAIL}),
    "authority-without-owner": (Case(authority=CA), {}),
    "no-authority": (
        Case(authority=None, boot=_loader(b"allowed")),
        {"authorities": UNKNOWN},
    ),
    "authorities-without-db": (
        Case(variables={"db": None}, authority=None, boot=_shim),
        {"keys": UNKNOWN, "authorities": UNKNOWN, "images": FAIL},
    ),
    "image-by-hash": (Case(boot=_loader(b"allowed")), {}),
    "image-unexplained": (
        Case(authority=None, boot=_loader(b"unknown")),
        {"authorities": UNKNOWN, "images": FAIL},
    ),
    "authority-after-its-image": (
        Case(
            authority=None,
            boot=_then(_loader(b"x"), _touch("db", ENTRY, EFI_IMAGE_SECURITY_DATABASE)),
        ),
        {},
    ),
    "authority-long-after-an-image": (
        Case(authority=None, boot=_then(_loader(b"x"), _shim)),
        {"images": FAIL},
    ),
    "authority-that-only-sounds-like-shims": (
        Case(boot=_then(_loader(b"x"), _touch("db", MICROSOFT_OWNER + OTHER))),
        {"authorities": FAIL},
    ),
    "no-image": (Case(boot=_nothing), {"images": UNKNOWN}),
    "image-relabelled": (
        Case(
            boot=_then(
                _loader(b"known"), lambda fw: fw.measure(4, T.EV_ACTION, b"an action", b"image")
            )
        ),
        {"images": UNKNOWN, "drivers": UNKNOWN},
    ),
    "driver-before-any-authority": (Case(before=_driver), {"drivers": UNKNOWN}),
    "driver-explained": (
        Case(
            before=_then(_touch("db", ENTRY, EFI_IMAGE_SECURITY_DATABASE), _driver), authority=None
        ),
        {},
    ),
    "image-malformed": (
        Case(boot=lambda fw: fw.measure(4, T.EV_EFI_BOOT_SERVICES_APPLICATION, b"short", b"image")),
        {},
    ),
    "image-revoked": (Case(variables={"dbx": _hashes(b"shim")}), {"revoked": FAIL}),
    "certificate-revoked": (Case(variables={"dbx": _x509(CA)}), {"revoked": FAIL}),
    "certificate-revoked-by-hash": (
        Case(variables={"dbx": _revokes(sig.EFI_CERT_X509_SHA256, 48, "sha256")}),
        {"revoked": FAIL},
    ),
    "certificate-revoked-by-long-hash": (
        Case(variables={"dbx": _revokes(sig.EFI_CERT_X509_SHA512, 80, "sha512")}),
        {"revoked": FAIL},
    ),
    "authority-that-is-the-hash-of-another-image": (
        Case(
            variables={"db": _hashes(b"allowed")},
            authority=MICROSOFT_OWNER + SHA256.hash(b"allowed"),
        ),
        {"images": FAIL},
    ),
    "dbx-not-measured": (Case(variables={"dbx": None}), {"keys": UNKNOWN, "revoked": UNKNOWN}),
    "dbx-empty": (Case(variables={"dbx": b""}), {}),
    "dbx-of-a-kind-the-log-lacks": (Case(banks=(SHA1,)), {"revoked": UNKNOWN}),
    "images-not-quoted": (
        Case(pcrs=(0, 1, 3, 5, 6, 7)),
        {"images": UNKNOWN, "drivers": UNKNOWN, "revoked": UNKNOWN},
    ),
    "shim-without-sbat": (
        Case(boot=_then(_loader(b"x"), _touch("Shim", VENDOR))),
        {"sbat": UNKNOWN},
    ),
    "sbat-unreadable": (
        Case(boot=_then(_loader(b"x"), _touch("SbatLevel", b"\xff"))),
        {"sbat": UNKNOWN},
    ),
    "sbat-of-another-form": (
        Case(boot=_then(_loader(b"x"), _touch("SbatLevel", b"sbat,1\n"))),
        {"sbat": UNKNOWN},
    ),
    "sbat-generation-not-a-number": (
        Case(boot=_then(_loader(b"x"), _touch("SbatLevel", b"sbat,1,2023\nshim,x\n"))),
        {"sbat": UNKNOWN},
    ),
    "sbat-empty": (
        Case(boot=_then(_loader(b"x"), _touch("SbatLevel", b"\n"))),
        {"sbat": UNKNOWN},
    ),
    "no-shim": (Case(boot=_loader(b"x")), {}),
    "shim-lists-as-configuration": (
        Case(boot=_then(_shim, _config("MokList", _x509(VENDOR), SHIM_LOCK))),
        {},
    ),
    "shim-switched-off": (Case(boot=_then(_shim, _touch("MokSBState", b"\1"))), {"shim": FAIL}),
    "shim-on-by-its-own-word": (Case(boot=_then(_shim, _touch("MokSBState", b"\0"))), {}),
    "old-shim-switched-off": (
        Case(
            boot=_then(_shim, lambda fw: fw.measure(14, T.EV_IPL, b"MokSBState\0", b"\1")),
            pcrs=(*range(10), 14),
        ),
        {"shim": FAIL},
    ),
    "old-shim-on": (
        Case(
            boot=_then(_shim, lambda fw: fw.measure(14, T.EV_IPL, b"MokSBState\0", b"\0")),
            pcrs=(*range(10), 14),
        ),
        {},
    ),
    "two-boot-attempts": (Case(after=lambda fw: fw.separators([7])), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_exactly_these_checks_say_no(name: str) -> None:
    case, expected = CASES[name]
    assert _outcomes(case.judge()) == expected


def test_every_check_has_a_case_in_which_it_says_no() -> None:
    said_no = {check for _, expected in CASES.values() for check in expected}
    assert said_no == set(CHECKS)


def test_without_pcr_7_in_the_quote_nothing_is_known() -> None:
    findings = Case(pcrs=(0, 4)).judge()
    assert set(_outcomes(findings)) == set(CHECKS)
    assert {finding.outcome for finding in findings.values()} == {UNKNOWN}


def _relabel(data: bytes, marker: bytes, number: int) -> bytes:
    """Change the type of the event whose data is ``marker``: no digest covers a type."""
    events = parse_eventlog(data).events
    event = next(e for e in events if e.data == marker and e.pcr == 7)
    at = event.offset + 4
    return data[:at] + number.to_bytes(4, "little") + data[at + 4 :]


def test_a_hidden_secure_boot_variable_does_not_let_a_later_one_count() -> None:
    """Secure Boot is off; the attacker extends a full set of good variables and a separator."""

    def forged(fw: SimulatedFirmware) -> None:
        for name, value in (("SecureBoot", b"\1"), ("PK", _x509(CA)), ("KEK", _x509(CA))):
            fw.variable(name, value)
        fw.separators([7])

    case = Case(variables={"SecureBoot": b"\0"}, after=forged)
    true_one = UefiVariable(EFI_GLOBAL_VARIABLE, "SecureBoot", b"\0", None).encode()

    def relabel(log: bytes) -> bytes:
        # Hide the true variable and the true separator under types that claim nothing.
        hidden = _relabel(log, true_one, T.EV_PLATFORM_CONFIG_FLAGS)
        return _relabel(hidden, bytes(4), T.EV_PLATFORM_CONFIG_FLAGS)

    findings = case.judge(relabel)
    assert findings["enabled"].outcome is not PASS
    assert findings["measured"].outcome is FAIL


def test_a_hidden_driver_configuration_makes_the_answer_unknown() -> None:
    case = Case()
    config = UefiVariable(EFI_GLOBAL_VARIABLE, "KEK", _x509(CA), None).encode()
    findings = case.judge(lambda log: _relabel(log, config, T.EV_COMPACT_HASH))
    assert findings["enabled"].outcome is UNKNOWN
    assert findings["measured"].outcome is UNKNOWN


def test_a_revoked_image_is_not_hidden_by_a_bank_that_was_not_quoted() -> None:
    case = Case(variables={"dbx": _hashes(b"shim")}, banks=(SHA1, SHA256))
    fw = case.firmware()
    sha1, _ = fw.banks(range(10))
    forged = fw.log().replace(SHA256.hash(b"shim"), SHA256.hash(b"harmless"))
    # The dbx itself holds the hash as well: put it back there, so that only the event is forged.
    forged = forged.replace(
        MICROSOFT_OWNER + SHA256.hash(b"harmless"), MICROSOFT_OWNER + SHA256.hash(b"shim")
    )
    findings = judge_secure_boot(verify_eventlog(parse_eventlog(forged), (sha1,)))
    (revoked,) = [f for f in findings if f.id == "secureboot.revoked"]
    assert revoked.outcome is UNKNOWN


def test_a_trust_domains_hidden_separator_does_not_let_a_later_variable_count() -> None:
    fw = SimulatedFirmware((SHA384,), kind=LogFormat.CCEL)
    hidden = UefiVariable(EFI_GLOBAL_VARIABLE, "SecureBoot", b"\0", None).encode()
    fw.measure(1, T.EV_PLATFORM_CONFIG_FLAGS, b"ACPI DATA", hidden)
    fw.measure(1, T.EV_PLATFORM_CONFIG_FLAGS, b"ACPI DATA", bytes(4))  # the true separator
    fw.variable("SecureBoot", b"\1", pcr=1)
    fw.variable("PK", _x509(CA), pcr=1)
    fw.separators([1])
    log = parse_eventlog(fw.log())
    findings = judge_secure_boot(verify_eventlog(log, fw.banks((1, 2))))
    outcomes = {f.id: f.outcome for f in findings}
    assert outcomes["secureboot.enabled"] is UNKNOWN
    assert outcomes["secureboot.measured"] is FAIL


def test_a_trust_domains_log_is_judged_by_its_registers() -> None:
    fw = SimulatedFirmware((SHA384,), kind=LogFormat.CCEL)
    fw.measure(1, T.EV_EFI_PLATFORM_FIRMWARE_BLOB2, b"\0" + bytes(16), b"CFV")
    fw.variable("SecureBoot", b"\1", pcr=1)
    for name in ("PK", "KEK", "db"):
        fw.variable(name, _x509(CA), pcr=1)
    fw.variable("dbx", b"", pcr=1)
    fw.separators([1])
    fw.measure(1, T.EV_PLATFORM_CONFIG_FLAGS, b"ACPI DATA", b"tables")
    fw.separators([1, 2])
    fw.authority("db", ENTRY, pcr=1)
    fw.image(file_path("loader"), b"loader", pcr=2)
    log = parse_eventlog(fw.log())
    findings = judge_secure_boot(verify_eventlog(log, fw.banks((1, 2, 3))))
    assert [f for f in findings if f.outcome is not PASS] == []
    findings = judge_secure_boot(verify_eventlog(log, fw.banks((2,))))
    assert {f.outcome for f in findings} == {UNKNOWN}
