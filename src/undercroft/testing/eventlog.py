"""A firmware that measures: writes real event logs and keeps the PCRs that they lead to.

The PCR values are extended here, event by event as a TPM would, not replayed from the log: what
``verify.eventlog`` makes of the log can be held against them.
"""

from __future__ import annotations

import datetime
import struct
from collections.abc import Iterable, Mapping, Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from undercroft.base import PCR_COUNT, HashAlgorithm, PcrBank
from undercroft.formats.eventlog import EventType, LogFormat
from undercroft.formats.eventlog import signatures as sig
from undercroft.formats.eventlog.devicepath import END_ENTIRE, END_TYPE, DevicePath, DevicePathNode
from undercroft.formats.eventlog.firmware import ImageLoad
from undercroft.formats.eventlog.guid import EFI_GLOBAL_VARIABLE, EFI_IMAGE_SECURITY_DATABASE
from undercroft.formats.eventlog.specid import SPEC_ID_03, SpecIdEvent
from undercroft.formats.eventlog.variables import UefiVariable

ZERO_SEPARATOR = bytes(4)
_SHA1_EVENT = struct.Struct("<II20sI")


class SimulatedFirmware:
    """Writes a log in one of the three formats while extending PCRs.

    ``locality`` is what PCR 0 starts with.  A log in the SHA-1 format has one bank.
    """

    def __init__(
        self,
        algorithms: Sequence[HashAlgorithm] = (HashAlgorithm.SHA256,),
        *,
        kind: LogFormat = LogFormat.CRYPTO_AGILE,
        locality: int = 0,
    ) -> None:
        self.algorithms = tuple(algorithms)
        self.kind = kind
        self.entries: list[bytes] = []
        self.pcrs: dict[HashAlgorithm, dict[int, bytes]] = {
            algorithm: {
                pcr: locality.to_bytes(algorithm.size, "big") if pcr == 0 else bytes(algorithm.size)
                for pcr in range(PCR_COUNT)
            }
            for algorithm in algorithms
        }
        self.extended: set[int] = set()
        if kind is not LogFormat.TCG_1_2:
            self.header(tuple((a.alg_id, a.size) for a in algorithms))

    def header(self, algorithms: tuple[tuple[int, int], ...], vendor_info: bytes = b"") -> None:
        """Write the crypto-agile log's Spec ID event, in place of one written before."""
        data = SpecIdEvent(SPEC_ID_03, 0, 0, 2, 0, 2, algorithms, vendor_info).encode()
        pcr = 1 if self.kind is LogFormat.CCEL else 0
        head = _SHA1_EVENT.pack(pcr, EventType.EV_NO_ACTION, bytes(20), len(data))
        self.entries[:1] = [head + data]

    def entry(self, pcr: int, number: int, data: bytes, digests: Mapping[int, bytes]) -> None:
        """Write an entry with these digests, by TPM_ALG_ID, and extend nothing."""
        if self.kind is LogFormat.TCG_1_2:
            (digest,) = digests.values()
            self.entries.append(_SHA1_EVENT.pack(pcr, number, digest, len(data)) + data)
            return
        parts = [struct.pack("<III", pcr, number, len(digests))]
        parts += [struct.pack("<H", alg_id) + digest for alg_id, digest in digests.items()]
        self.entries.append(b"".join([*parts, struct.pack("<I", len(data)), data]))

    def measure(self, pcr: int, number: int, data: bytes, measured: bytes | None = None) -> None:
        """Extend the hash of ``measured`` (or of the data) and log it with ``data``."""
        content = data if measured is None else measured
        digests = {a: a.hash(content) for a in self.algorithms}
        for algorithm, digest in digests.items():
            bank = self.pcrs[algorithm]
            bank[pcr] = algorithm.hash(bank[pcr], digest)
        self.extended.add(pcr)
        self.entry(pcr, number, data, {a.alg_id: digest for a, digest in digests.items()})

    def no_action(self, data: bytes, pcr: int = 0) -> None:
        """Log an EV_NO_ACTION event: zero digests, nothing extended."""
        digests = {a.alg_id: bytes(a.size) for a in self.algorithms}
        self.entry(pcr, EventType.EV_NO_ACTION, data, digests)

    def separators(self, pcrs: Iterable[int] = range(8), data: bytes = ZERO_SEPARATOR) -> None:
        """Finish PCRs."""
        for pcr in pcrs:
            self.measure(pcr, EventType.EV_SEPARATOR, data)

    def variable(self, name: str, value: bytes, *, guid: bytes | None = None, pcr: int = 7) -> None:
        """Measure a Secure Boot variable, as EV_EFI_VARIABLE_DRIVER_CONFIG."""
        if guid is None:
            in_database = name in ("db", "dbx", "dbr", "dbt")
            guid = EFI_IMAGE_SECURITY_DATABASE if in_database else EFI_GLOBAL_VARIABLE
        data = UefiVariable(guid, name, value, None).encode()
        self.measure(pcr, EventType.EV_EFI_VARIABLE_DRIVER_CONFIG, data)

    def authority(
        self,
        name: str,
        value: bytes,
        *,
        guid: bytes = EFI_IMAGE_SECURITY_DATABASE,
        pcr: int = 7,
    ) -> None:
        """Measure what verified an image, as EV_EFI_VARIABLE_AUTHORITY."""
        data = UefiVariable(guid, name, value, None).encode()
        self.measure(pcr, EventType.EV_EFI_VARIABLE_AUTHORITY, data)

    def image(
        self,
        path: DevicePath,
        image: bytes,
        *,
        pcr: int = 4,
        number: int = EventType.EV_EFI_BOOT_SERVICES_APPLICATION,
    ) -> None:
        """Measure an image; ``image`` stands for what its Authenticode hash covers."""
        data = ImageLoad(0x7E000000, len(image), 0, path).encode()
        self.measure(pcr, number, data, image)

    def grub(self, text: str, prefix: str = "grub_cmd: ", pcr: int = 8) -> None:
        """Measure a command or a command line the way GRUB 2.06 does."""
        self.measure(pcr, EventType.EV_IPL, f"{prefix}{text}\0".encode(), text.encode())

    def grub_file(self, path: str, contents: bytes, pcr: int = 9) -> None:
        """Measure a file the way GRUB does."""
        self.measure(pcr, EventType.EV_IPL, f"{path}\0".encode(), contents)

    def log(self, padding: bytes = b"") -> bytes:
        """Return the log."""
        return b"".join(self.entries) + padding

    def banks(self, pcrs: Iterable[int] | None = None) -> tuple[PcrBank, ...]:
        """Return the PCRs as a quote would have them: those extended, or those named."""
        chosen = sorted(self.extended if pcrs is None else pcrs)
        return tuple(
            PcrBank(algorithm, {pcr: bank[pcr] for pcr in chosen})
            for algorithm, bank in self.pcrs.items()
        )


def device_path(*nodes: tuple[int, int, bytes]) -> DevicePath:
    """Return a device path of these (type, sub-type, data) nodes and an end node."""
    end = DevicePathNode(END_TYPE, END_ENTIRE, b"")
    return DevicePath((*[DevicePathNode(*node) for node in nodes], end))


def file_path(name: str) -> DevicePath:
    """Return the device path of a file on no device, as GRUB and shim log it."""
    return device_path((4, 4, name.encode("utf-16-le") + b"\0\0"))


def signature_list(type_guid: bytes, owner: bytes, *entries: bytes) -> bytes:
    """Return an EFI_SIGNATURE_LIST of entries of one size."""
    signatures = tuple(sig.Signature(owner, entry) for entry in entries)
    return sig.SignatureList(type_guid, b"", 16 + len(entries[0]), signatures).encode()


def certificate(name: str, *, filler: int = 0) -> bytes:
    """Return a self-signed DER certificate, always the same for the same arguments.

    ``filler`` bytes in an extension bring it to the size of certificates in the field.
    """
    key = Ed25519PrivateKey.from_private_bytes(HashAlgorithm.SHA256.hash(name.encode()))
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2020, 1, 1))
        .not_valid_after(datetime.datetime(2040, 1, 1))
    )
    if filler:
        oid = x509.ObjectIdentifier("1.3.6.1.4.1.311.21.1")
        extension = x509.UnrecognizedExtension(oid, bytes(filler))
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, None).public_bytes(Encoding.DER)
