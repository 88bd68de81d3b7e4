"""A TPM in software, as far as attestation goes: PCRs, a clock and keys that sign for it.

It makes and signs real structures, so that a test exercises the parsers and the checks that a
real TPM's evidence meets.  It enforces nothing: a test may sign any lie with :meth:`sign`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from msgspec.structs import replace

from undercroft.base import PCR_COUNT, HashAlgorithm, PcrBank
from undercroft.formats.tpm import (
    TPM_GENERATED_VALUE,
    Attest,
    Attested,
    CertifyInfo,
    ClockInfo,
    CreationData,
    CreationInfo,
    EccPublic,
    EccSignature,
    ObjectAttributes,
    PcrSelectionList,
    Public,
    QuoteInfo,
    RsaPublic,
    RsaSignature,
    Scheme,
    Signature,
    TpmAlg,
    TpmEccCurve,
    TpmRh,
    UnverifiedQuote,
    UnverifiedStatement,
    parse_quote,
    parse_statement,
)
from undercroft.testing.keys import ecc_key, rsa_key
from undercroft.verify.ak import AttestationKey, verify_ak
from undercroft.verify.ak_key import HASHES

AK_ATTRIBUTES = (
    ObjectAttributes.FIXED_TPM
    | ObjectAttributes.FIXED_PARENT
    | ObjectAttributes.SENSITIVE_DATA_ORIGIN
    | ObjectAttributes.USER_WITH_AUTH
    | ObjectAttributes.RESTRICTED
    | ObjectAttributes.SIGN
)
FIRMWARE_VERSION = 0x2019_1023_0016_3636


class AkKind(enum.Enum):
    """The attestation keys that a simulated TPM can have."""

    ECDSA_P256 = (TpmAlg.ECDSA, TpmEccCurve.NIST_P256, HashAlgorithm.SHA256)
    ECDSA_P384 = (TpmAlg.ECDSA, TpmEccCurve.NIST_P384, HashAlgorithm.SHA384)
    ECDSA_P256_SHA1 = (TpmAlg.ECDSA, TpmEccCurve.NIST_P256, HashAlgorithm.SHA1)
    RSASSA = (TpmAlg.RSASSA, None, HashAlgorithm.SHA256)
    RSASSA_SHA1 = (TpmAlg.RSASSA, None, HashAlgorithm.SHA1)
    RSASSA_SHA512 = (TpmAlg.RSASSA, None, HashAlgorithm.SHA512)
    RSAPSS = (TpmAlg.RSAPSS, None, HashAlgorithm.SHA256)

    def __init__(self, scheme: TpmAlg, curve: TpmEccCurve | None, hash_alg: HashAlgorithm) -> None:
        self.scheme = Scheme(scheme, hash_alg)
        self.curve = curve
        self.hash_alg = hash_alg


_CURVES: dict[TpmEccCurve, ec.EllipticCurve] = {
    TpmEccCurve.NIST_P256: ec.SECP256R1(),
    TpmEccCurve.NIST_P384: ec.SECP384R1(),
}


@dataclass(frozen=True, slots=True)
class SimulatedQuote:
    """A quote in the bytes that evidence carries: TPMS_ATTEST, TPMT_SIGNATURE, TPMT_PUBLIC."""

    attest: bytes
    signature: bytes
    public: bytes
    claimed_pcrs: tuple[PcrBank, ...]

    @property
    def unverified(self) -> UnverifiedQuote:
        """The quote, parsed."""
        return parse_quote(self.attest, self.signature, self.claimed_pcrs)

    @property
    def statement(self) -> UnverifiedStatement:
        """The signed structure, parsed, where it is no quote."""
        return parse_statement(self.attest, self.signature)


class SimulatedAttester:
    """A simulated TPM with one attestation key, a primary key of ``hierarchy``.

    ``kind`` is the key's type and scheme, ``label`` names the key (the same label is the same
    key; for RSA one of ``undercroft.testing.keys.RSA_LABELS``), ``banks`` are the PCR banks.
    Everything is deterministic but RSAPSS signatures, which are salted.
    """

    def __init__(
        self,
        kind: AkKind = AkKind.ECDSA_P256,
        *,
        label: str = "ak",
        hierarchy: TpmRh = TpmRh.ENDORSEMENT,
        banks: Iterable[HashAlgorithm] = (HashAlgorithm.SHA1, HashAlgorithm.SHA256),
        attributes: ObjectAttributes = AK_ATTRIBUTES,
        clock_ms: int = 60_000,
    ) -> None:
        self.kind = kind
        self.private = rsa_key(label) if kind.curve is None else ecc_key(label, _CURVES[kind.curve])
        self.public = Public(
            HashAlgorithm.SHA256, attributes, b"", public_key_area(self.private, kind.scheme)
        )
        self.qualified_name = self.public.qualified_name(hierarchy.handle_name)
        self.clock_info = ClockInfo(clock_ms, reset_count=1, restart_count=0, safe=True)
        self.firmware_version = FIRMWARE_VERSION
        self.banks = tuple(banks)
        self._pcrs: dict[HashAlgorithm, dict[int, bytes]] = {}
        self._clear_pcrs()

    @property
    def ak(self) -> AttestationKey:
        """The attestation key as a verifier sees it; raises if its attributes are not an AK's."""
        return verify_ak(self.public)

    def _clear_pcrs(self) -> None:
        # PC Client Platform TPM Profile 1.05, 4.6.2: PCR 17 to 22 start with all bits set.
        self._pcrs = {
            bank: {i: (b"\xff" if 17 <= i <= 22 else b"\0") * bank.size for i in range(PCR_COUNT)}
            for bank in self.banks
        }

    def extend(self, index: int, digests: Mapping[HashAlgorithm, bytes]) -> None:
        """TPM2_PCR_Extend: extend PCR ``index`` of each named bank with a digest."""
        for bank, digest in digests.items():
            self._pcrs[bank][index] = bank.hash(self._pcrs[bank][index], digest)

    def measure(self, index: int, data: bytes) -> None:
        """TPM2_PCR_Event: extend PCR ``index`` of every bank with the hash of ``data``."""
        self.extend(index, {bank: bank.hash(data) for bank in self.banks})

    def set_pcr(self, bank: HashAlgorithm, index: int, value: bytes) -> None:
        """Set a PCR, which no TPM does: to stand where a recorded log leads."""
        if len(value) != bank.size:
            raise ValueError(f"a {bank} PCR has {bank.size} bytes, got {len(value)}")
        self._pcrs[bank][index] = value

    def read(self, selection: PcrSelectionList) -> tuple[PcrBank, ...]:
        """TPM2_PCR_Read: those of the selected PCRs that there are, by bank."""
        return tuple(
            PcrBank(bank, {i: v for i, v in self._pcrs[bank].items() if i in selected.indices})
            for selected in selection.selections
            if (bank := selected.algorithm) is not None
        )

    def advance(self, milliseconds: int) -> None:
        """Let time pass."""
        self.clock_info = replace(self.clock_info, clock=self.clock_info.clock + milliseconds)

    def reset(self) -> None:
        """TPM Reset: the machine boots."""
        self._clear_pcrs()
        resets = self.clock_info.reset_count + 1
        self.clock_info = replace(self.clock_info, reset_count=resets, restart_count=0)

    def restart(self) -> None:
        """TPM Restart or Resume: the machine wakes up; its PCRs stay."""
        restarts = self.clock_info.restart_count + 1
        self.clock_info = replace(self.clock_info, restart_count=restarts)

    def attest(self, attested: Attested, extra_data: bytes) -> Attest:
        """Return what the TPM states about ``attested`` now."""
        return Attest(
            TPM_GENERATED_VALUE,
            self.qualified_name,
            extra_data,
            self.clock_info,
            self.firmware_version,
            attested,
        )

    def sign(self, message: bytes) -> Signature:
        """Sign any bytes with the attestation key, which no TPM does."""
        return sign(self.private, self.kind.scheme, message)

    def quote(
        self, qualifying_data: bytes, banks: Mapping[HashAlgorithm, Iterable[int]]
    ) -> SimulatedQuote:
        """TPM2_Quote over the PCRs in ``banks``, with their values."""
        selection = PcrSelectionList.of(banks)
        claimed = self.read(selection)
        values = (value for bank in claimed for value in bank.values.values())
        digest = self.kind.hash_alg.hash(*values)
        return self.signed(self.attest(QuoteInfo(selection, digest), qualifying_data), claimed)

    def certify(self, public: Public, parent: bytes, qualifying_data: bytes) -> SimulatedQuote:
        """TPM2_Certify of a loaded object whose parent's Qualified Name is ``parent``."""
        info = CertifyInfo(public.name, public.qualified_name(parent))
        return self.signed(self.attest(info, qualifying_data), ())

    def certify_creation(
        self, public: Public, creation: CreationData, qualifying_data: bytes
    ) -> SimulatedQuote:
        """TPM2_CertifyCreation of an object that was created with ``creation``."""
        hash_alg = public.name_alg or HashAlgorithm.SHA256
        info = CreationInfo(public.name, hash_alg.hash(creation.encode()))
        return self.signed(self.attest(info, qualifying_data), ())

    def signed(self, attest: Attest, claimed_pcrs: tuple[PcrBank, ...]) -> SimulatedQuote:
        """Sign ``attest`` and put it beside ``claimed_pcrs``."""
        data = attest.encode()
        return SimulatedQuote(data, self.sign(data).encode(), self.public.encode(), claimed_pcrs)


def public_key_area(
    private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, scheme: Scheme | None
) -> RsaPublic | EccPublic:
    """Return the type-specific public area of a signing key."""
    if isinstance(private, rsa.RSAPrivateKey):
        modulus = private.public_key().public_numbers().n
        size = private.key_size
        return RsaPublic(None, scheme, size, 0, modulus.to_bytes(size // 8, "big"))
    curve = next(c for c, known in _CURVES.items() if known.name == private.curve.name)
    point = private.public_key().public_numbers()
    size = (private.key_size + 7) // 8
    x, y = point.x.to_bytes(size, "big"), point.y.to_bytes(size, "big")
    return EccPublic(None, scheme, curve, None, x, y)


def sign(
    private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, scheme: Scheme, message: bytes
) -> Signature:
    """Sign ``message`` as a TPM key with ``scheme`` does: RSASSA, RSAPSS or ECDSA."""
    if scheme.hash_alg is None:
        raise ValueError(f"{scheme} has no hash")
    primitive = HASHES[scheme.hash_alg]
    if isinstance(private, rsa.RSAPrivateKey):
        pss = padding.PSS(padding.MGF1(primitive), padding.PSS.DIGEST_LENGTH)
        pad = pss if scheme.algorithm is TpmAlg.RSAPSS else padding.PKCS1v15()
        return RsaSignature(
            scheme.algorithm, scheme.hash_alg, private.sign(message, pad, primitive)
        )
    der = private.sign(message, ec.ECDSA(primitive, deterministic_signing=True))
    size = (private.key_size + 7) // 8
    r, s = (number.to_bytes(size, "big") for number in decode_dss_signature(der))
    return EccSignature(scheme.algorithm, scheme.hash_alg, r, s)
