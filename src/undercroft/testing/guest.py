"""A whole guest in software: it boots, measures, and answers a challenge with real evidence.

Event log, IMA list, record and quote are real structures, signed by a simulated TPM; a test
changes one thing and sees which check says no.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from undercroft.base import Digest, Finding, Grade, HashAlgorithm, Nonce, Outcome, PcrBank
from undercroft.formats.eventlog import EventType
from undercroft.formats.evidence import (
    Challenge,
    Evidence,
    HowTrusted,
    QuoteItem,
    SecureKernelRecord,
    Trust,
    encode_record,
    qualifying_data,
)
from undercroft.formats.tpm import PcrSelectionList
from undercroft.reference.model import (
    KernelReference,
    Provenance,
    ReferenceSet,
    ReferenceValue,
)
from undercroft.testing.attester import AkKind, SimulatedAttester
from undercroft.testing.ima import SimulatedIma

BANKS = (HashAlgorithm.SHA1, HashAlgorithm.SHA256)
SELECTION = {HashAlgorithm.SHA256: (*range(11), 14)}
"""What a challenge of :class:`SimulatedGuest` selects."""
NOW = 1_700_000_000
"""When the simulated guest is challenged, in Unix seconds."""

_SPEC = Provenance(Grade.SPECIFICATION, origin="TCG PC Client Platform Firmware Profile 1.06")
_FIRMWARE = Provenance(Grade.PACKAGE, "ovmf", "2022.11-6", "bookworm main", "ab" * 32)
_KERNEL = Provenance(Grade.PACKAGE, "linux-image", "6.1.192-2", "bookworm main", "ab" * 32)
_BUILT = Provenance(Grade.BUILT, note="initramfs")
_GLOBAL = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
_DATABASE = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")
_SHA256_LIST = bytes.fromhex("2616c4c14c509240aca941f936934328")
_OWNER = bytes(range(16))
KERNEL_IMAGE = b"the kernel's EFI image"
"""What stands for the kernel in PCR 4; its SHA-256 is in db."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement: what goes into the log as ``event``, and what is hashed."""

    pcr: int
    type: EventType
    event: bytes
    measured: bytes
    description: str
    provenance: Provenance
    role: str = ""


def _variable(
    name: str, data: bytes, kind: EventType = EventType.EV_EFI_VARIABLE_DRIVER_CONFIG
) -> Measured:
    """Measure a UEFI_VARIABLE_DATA (PFP 1.06, 10.4.2)."""
    guid = _DATABASE if name in ("db", "dbx") else _GLOBAL
    text = name.encode("utf-16-le")
    event = guid + struct.pack("<QQ", len(name), len(data)) + text + data
    role = name if kind is EventType.EV_EFI_VARIABLE_DRIVER_CONFIG else f"authority in {name}"
    return Measured(7, kind, event, event, role, _FIRMWARE, role)


def _hash_list(digest: bytes) -> bytes:
    """Return an EFI_SIGNATURE_LIST with one SHA-256 (UEFI 2.10, 32.4.1)."""
    entry = _OWNER + digest
    return _SHA256_LIST + struct.pack("<III", 28 + len(entry), 0, len(entry)) + entry


def _secure_boot(*, enabled: bool) -> tuple[Measured, ...]:
    """Return what PCR 7 gets: the keys, and the db entry that let the kernel run."""
    kernel = HashAlgorithm.SHA256.hash(KERNEL_IMAGE)
    key, db, revoked = map(_hash_list, (bytes(32), kernel, b"\1" * 32))
    variables = (("PK", key), ("KEK", key), ("db", db), ("dbx", revoked))
    settings = tuple(_variable(name, data if enabled else b"") for name, data in variables)
    boot = (_variable("SecureBoot", bytes([enabled])), *settings, _separator(7))
    if not enabled:
        return boot
    return (*boot, _variable("db", _OWNER + kernel, EventType.EV_EFI_VARIABLE_AUTHORITY))


def _separator(pcr: int) -> Measured:
    zero = bytes(4)
    return Measured(pcr, EventType.EV_SEPARATOR, zero, zero, "separator", _SPEC, "separator")


def _action(pcr: int, text: str) -> Measured:
    data = text.encode()
    return Measured(pcr, EventType.EV_EFI_ACTION, data, data, text, _SPEC, text)


def _tagged(tag: int, name: str, measured: bytes) -> Measured:
    event = struct.pack("<II", tag, len(name) + 1) + name.encode() + b"\0"
    return Measured(9, EventType.EV_EVENT_TAG, event, measured, name, _BUILT, name)


def standard_boot(*, secure_boot: bool = True) -> tuple[Measured, ...]:
    """Return the measurements of a small UEFI boot, firmware to initrd."""
    image = struct.pack("<QQQQ", 0x1000, 0x2000, 0, 0)
    blob = struct.pack("<QQ", 0x820000, 0xE0000)
    return (
        Measured(
            0, EventType.EV_S_CRTM_VERSION, bytes(2), bytes(2), "version", _FIRMWARE, "version"
        ),
        Measured(
            0,
            EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB,
            blob,
            b"firmware volume",
            "firmware volume",
            _FIRMWARE,
            "firmware",
        ),
        *_secure_boot(enabled=secure_boot),
        *(_separator(pcr) for pcr in range(7)),
        _action(4, "Calling EFI Application from Boot Option"),
        Measured(
            4,
            EventType.EV_EFI_BOOT_SERVICES_APPLICATION,
            image,
            KERNEL_IMAGE,
            "kernel",
            _KERNEL,
            "kernel",
        ),
        _tagged(0x8F3B22ED, "LOADED_IMAGE::LoadOptions", "quiet\0".encode("utf-16-le")),
        _tagged(0x8F3B22EC, "Linux initrd", b"the initrd"),
        _action(5, "Exit Boot Services Invocation"),
        _action(5, "Exit Boot Services Returned with Success"),
    )


FILES: Mapping[str, bytes] = {"/usr/bin/busybox": b"busybox", "/init": b"#!/bin/sh\n"}
FACTS = (
    Finding("kernel.located", Outcome.PASS, "Linux runs", {"base": 0xFFFFFFFF81000000}),
    Finding("kernel.text", Outcome.PASS, "kernel text is as the package says", {"bytes": 14 << 20}),
    Finding("kernel.rodata", Outcome.PASS, "constant data is as the package says"),
    Finding("kernel.generated", Outcome.PASS, "code that the kernel made is what it makes"),
    Finding("kernel.realmode", Outcome.PASS, "the real-mode trampoline is the signed one"),
    Finding("kernel.modules.text", Outcome.PASS, "every module is as the package says"),
    Finding("kernel.features", Outcome.PASS, "the code's features are the processor's"),
    Finding("kernel.closure.owned", Outcome.PASS, "every executable page has an owner"),
    Finding("kernel.closure.wx", Outcome.PASS, "no executable page is writable"),
    Finding("kernel.closure.alias", Outcome.PASS, "no frame of kernel code is writable"),
    Finding("kernel.closure.roots", Outcome.PASS, "every page table is the kernel's"),
    Finding("cpu.idt", Outcome.PASS, "every interrupt gate is the kernel's"),
    Finding("cpu.gdt", Outcome.PASS, "every segment is the kernel's"),
    Finding("cpu.syscall", Outcome.PASS, "system calls enter the kernel"),
    Finding("cpu.control", Outcome.PASS, "the processor's protections are on"),
    Finding("cpu.debug", Outcome.PASS, "no hardware breakpoint is set in the kernel"),
    Finding("kernel.modules.crossview", Outcome.PASS, "every view of the modules agrees"),
    Finding("kernel.tasks.crossview", Outcome.PASS, "every view of the tasks agrees"),
)


def encode_log(boot: Iterable[Measured], banks: Sequence[HashAlgorithm] = BANKS) -> bytes:
    """Write ``boot`` as a crypto-agile event log (PFP 1.06, 10.2)."""
    sizes = b"".join(struct.pack("<HH", bank.alg_id, bank.size) for bank in banks)
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 2, 2, len(banks)) + sizes + b"\0"
    parts = [struct.pack("<II20sI", 0, EventType.EV_NO_ACTION, bytes(20), len(spec)) + spec]
    for one in boot:
        digests = [struct.pack("<H", bank.alg_id) + bank.hash(one.measured) for bank in banks]
        parts.append(struct.pack("<III", one.pcr, one.type, len(banks)) + b"".join(digests))
        parts.append(struct.pack("<I", len(one.event)) + one.event)
    return b"".join(parts)


class SimulatedGuest:
    """A guest that booted ``boot`` and ran ``files`` on the kernel ``release``."""

    def __init__(
        self,
        *,
        name: str = "demo",
        kind: AkKind = AkKind.ECDSA_P256,
        boot: Sequence[Measured] | None = None,
        files: Mapping[str, bytes] = FILES,
        facts: Sequence[Finding] = FACTS,
        template: str = "ima-ng",
        release: str = "6.1.0-56-cloud-amd64",
        build_id: bytes = b"\x5a" * 20,
    ) -> None:
        self.name = name
        self.boot = tuple(standard_boot() if boot is None else boot)
        self.attester = SimulatedAttester(kind, banks=BANKS)
        for one in self.boot:
            self.attester.measure(one.pcr, one.measured)
        self.log = encode_log(self.boot)
        self.ima = SimulatedIma(self._boot_pcrs(), template=template)
        self.ima.boot_aggregate()
        self.files = dict(files)
        for path, content in files.items():
            self.ima.measure(path, content)
        self.facts = tuple(facts)
        self.release, self.build_id = release, build_id

    @property
    def trust(self) -> Trust:
        """What a verifier that made this guest trusts."""
        return Trust(self.name, self.attester.public.encode(), HowTrusted.MADE_HERE)

    def challenge(self, *, nonce: bytes = bytes(range(32)), issued_at: int = NOW) -> Challenge:
        """Return a challenge for :data:`SELECTION`."""
        return Challenge(Nonce(nonce), SELECTION, issued_at)

    def record(self, *, at: int = NOW) -> SecureKernelRecord:
        """Return what the secure kernel reports of the second that ends at ``at``."""
        end = at * 1_000_000_000
        return SecureKernelRecord(
            1, self.name, self.release, self.build_id, end - 10**9, end, ("poll",), self.facts
        )

    def evidence(
        self, challenge: Challenge, *, at: int | None = None, **parts: bytes | None
    ) -> Evidence:
        """Answer ``challenge`` at ``at`` (Unix s; default: when it was issued).

        ``parts`` replaces what the evidence is made of (``record``, ``eventlog``, ``ima_list``;
        None leaves it out): the quote then binds the replacement, as a lying collector would.
        """
        whole: dict[str, bytes | None] = {
            "record": encode_record(self.record(at=challenge.issued_at if at is None else at)),
            "eventlog": self.log,
            "ima_list": self.ima.binary,
            **parts,
        }
        for bank in BANKS:
            self.attester.set_pcr(bank, 10, self.ima.bank(bank).values[10])
        quote = self.attester.quote(qualifying_data(challenge.nonce, **whole), challenge.selection)
        item = QuoteItem(quote.attest, quote.signature, quote.public, quote.claimed_pcrs)
        return Evidence(item, **whole)

    @property
    def references(self) -> ReferenceSet:
        """Reference values that describe this guest as it was made: events, files, kernel."""
        events: dict[int, list[ReferenceValue]] = {}
        for one in self.boot:
            digests = tuple(Digest(bank, bank.hash(one.measured)) for bank in BANKS)
            value = ReferenceValue(digests, one.description, one.provenance, one.role)
            events.setdefault(one.pcr, []).append(value)
        vmlinuz = HashAlgorithm.SHA256.digest(b"vmlinuz")
        return ReferenceSet(
            f"references of {self.name}",
            events={pcr: tuple(values) for pcr, values in events.items()},
            pcrs={pcr: (self._untouched(pcr),) for pcr in (8, 14) if pcr not in events},
            files={
                path: (
                    ReferenceValue(
                        (HashAlgorithm.SHA256.digest(content),),
                        path,
                        Provenance(Grade.PACKAGE, "busybox-static", "1.35"),
                    ),
                )
                for path, content in self.files.items()
            },
            kernels=(KernelReference(self.release, vmlinuz, self.build_id, _KERNEL),),
        )

    def predicted(self) -> ReferenceSet:
        """Return :attr:`references` with a predicted value for every boot PCR too."""
        references = self.references
        banks = self._boot_pcrs()
        values = {
            pcr: (
                ReferenceValue(
                    tuple(Digest(bank.algorithm, bank.values[pcr]) for bank in banks),
                    f"predicted PCR {pcr}",
                    _FIRMWARE,
                ),
            )
            for pcr in references.events
        }
        return replace(references, pcrs={**references.pcrs, **values})

    def _boot_pcrs(self) -> tuple[PcrBank, ...]:
        return self.attester.read(PcrSelectionList.of(dict.fromkeys(BANKS, range(10))))

    def _untouched(self, pcr: int) -> ReferenceValue:
        digests = tuple(Digest(bank, bytes(bank.size)) for bank in BANKS)
        return ReferenceValue(digests, f"nothing is measured into PCR {pcr}", _SPEC)
