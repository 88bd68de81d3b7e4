"""Numbers of the TPM 2.0 Library Specification, Part 2 (rev. 1.59), under its own names."""

from __future__ import annotations

import enum

TPM_GENERATED_VALUE = 0xFF544347
"""First four bytes of everything that a TPM attests to: 0xFF "TCG" (Part 2, 6.2)."""

MAX_DIGEST = 64
"""Largest TPMU_HA: a SHA-512 digest (Part 2, 10.3.1)."""
MAX_TPMT_HA = 2 + MAX_DIGEST
"""Largest TPMT_HA, and so the largest TPM2B_DATA and TPM2B_NAME (Part 2, 10.4.3 and 10.5.3)."""
MAX_RSA_KEY_BYTES = 512
"""RSA-4096, the largest key that the PC Client profile and the EK profile name."""
MAX_ECC_KEY_BYTES = 80
"""ECC_BN_P638, the largest curve of the TCG Algorithm Registry."""


class TpmAlg(enum.IntEnum):
    """TPM_ALG_ID of what is not a hash (TCG Algorithm Registry rev. 1.34, table 3).

    Hashes are :class:`undercroft.base.HashAlgorithm`.
    """

    RSA = 0x0001
    TDES = 0x0003
    HMAC = 0x0005
    AES = 0x0006
    MGF1 = 0x0007
    KEYEDHASH = 0x0008
    XOR = 0x000A
    NULL = 0x0010
    SM4 = 0x0013
    RSASSA = 0x0014
    RSAES = 0x0015
    RSAPSS = 0x0016
    OAEP = 0x0017
    ECDSA = 0x0018
    ECDH = 0x0019
    ECDAA = 0x001A
    SM2 = 0x001B
    ECSCHNORR = 0x001C
    ECMQV = 0x001D
    KDF1_SP800_56A = 0x0020
    KDF2 = 0x0021
    KDF1_SP800_108 = 0x0022
    ECC = 0x0023
    SYMCIPHER = 0x0025
    CAMELLIA = 0x0026
    CTR = 0x0040
    OFB = 0x0041
    CBC = 0x0042
    CFB = 0x0043
    ECB = 0x0044

    def __str__(self) -> str:
        return self.name.lower()


class TpmEccCurve(enum.IntEnum):
    """TPM_ECC_CURVE (TCG Algorithm Registry rev. 1.34, table 4)."""

    NIST_P192 = 0x0001
    NIST_P224 = 0x0002
    NIST_P256 = 0x0003
    NIST_P384 = 0x0004
    NIST_P521 = 0x0005
    BN_P256 = 0x0010
    BN_P638 = 0x0011
    SM2_P256 = 0x0020

    def __str__(self) -> str:
        return self.name


class TpmSt(enum.IntEnum):
    """TPM_ST of attestation structures (Part 2, 6.9); also TPMI_ST_ATTEST (10.12.10)."""

    ATTEST_NV = 0x8014
    ATTEST_COMMAND_AUDIT = 0x8015
    ATTEST_SESSION_AUDIT = 0x8016
    ATTEST_CERTIFY = 0x8017
    ATTEST_QUOTE = 0x8018
    ATTEST_TIME = 0x8019
    ATTEST_CREATION = 0x801A
    ATTEST_NV_DIGEST = 0x801C

    def __str__(self) -> str:
        return f"TPM_ST_{self.name}"


class TpmRh(enum.IntEnum):
    """TPM_RH of the hierarchies (Part 2, 7.4).  A hierarchy's Name is its handle."""

    OWNER = 0x40000001
    NULL = 0x40000007
    ENDORSEMENT = 0x4000000B
    PLATFORM = 0x4000000C

    @property
    def handle_name(self) -> bytes:
        """The hierarchy's Name: its handle, four bytes (Part 1, 16)."""
        return self.to_bytes(4, "big")


class ObjectAttributes(enum.IntFlag, boundary=enum.STRICT):
    """TPMA_OBJECT (Part 2, 8.3); FIRMWARE_LIMITED and SVN_LIMITED came with rev. 1.83.

    A reserved bit "shall be zero": constructing a value with one raises ValueError.
    """

    FIXED_TPM = 1 << 1
    ST_CLEAR = 1 << 2
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    USER_WITH_AUTH = 1 << 6
    ADMIN_WITH_POLICY = 1 << 7
    FIRMWARE_LIMITED = 1 << 8
    SVN_LIMITED = 1 << 9
    NO_DA = 1 << 10
    ENCRYPTED_DUPLICATION = 1 << 11
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18
    X509_SIGN = 1 << 19

    @property
    def labels(self) -> tuple[str, ...]:
        """The set attributes, as the specification spells them (``fixedTPM``)."""
        return tuple(_ATTRIBUTE_LABELS[attribute] for attribute in self)


_ATTRIBUTE_LABELS = {
    ObjectAttributes.FIXED_TPM: "fixedTPM",
    ObjectAttributes.ST_CLEAR: "stClear",
    ObjectAttributes.FIXED_PARENT: "fixedParent",
    ObjectAttributes.SENSITIVE_DATA_ORIGIN: "sensitiveDataOrigin",
    ObjectAttributes.USER_WITH_AUTH: "userWithAuth",
    ObjectAttributes.ADMIN_WITH_POLICY: "adminWithPolicy",
    ObjectAttributes.FIRMWARE_LIMITED: "firmwareLimited",
    ObjectAttributes.SVN_LIMITED: "svnLimited",
    ObjectAttributes.NO_DA: "noDA",
    ObjectAttributes.ENCRYPTED_DUPLICATION: "encryptedDuplication",
    ObjectAttributes.RESTRICTED: "restricted",
    ObjectAttributes.DECRYPT: "decrypt",
    ObjectAttributes.SIGN: "sign",
    ObjectAttributes.X509_SIGN: "x509sign",
}
