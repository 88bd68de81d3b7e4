"""Templates (TPMT_PUBLIC) and policies of the keys that the secure kernel uses.

The attestation key is a primary key in the platform hierarchy (or, where the multiplexer could not
make it there before the firmware closed that hierarchy, in the endorsement hierarchy): it comes
back, the same, from its template for as long as the primary seed lives.  Its authPolicy is
TPM2_PolicyLocality(locality 2) and userWithAuth is clear, so that no one at locality 0, where the
guest is held, can sign with it; a verifier reads both from the public area.  adminWithPolicy is
clear: TPM2_ActivateCredential (ADMIN role) takes the empty password, which reveals nothing but
that the key is in this TPM.
"""

from __future__ import annotations

import enum
import struct

from undercroft.base import HashAlgorithm
from undercroft.securekernel.vtpm.wire import CommandCode

SECURE_KERNEL_LOCALITY = 2
"""The locality of the "trusted OS" of a dynamic launch (PC Client Platform TPM Profile, 4.7)."""

_SHA256 = HashAlgorithm.SHA256.alg_id
_ALG_RSA, _ALG_AES, _ALG_NULL = 0x0001, 0x0006, 0x0010
_ALG_RSASSA, _ALG_ECDSA, _ALG_ECC, _ALG_CFB = 0x0014, 0x0018, 0x0023, 0x0043
_ECC_NIST_P256, _ECC_NIST_P384 = 0x0003, 0x0004
_SHA384 = HashAlgorithm.SHA384.alg_id

# TPMA_OBJECT, part 2, 8.3
_FIXED_TPM, _FIXED_PARENT, _SENSITIVE_DATA_ORIGIN, _USER_WITH_AUTH = 1 << 1, 1 << 4, 1 << 5, 1 << 6
_ADMIN_WITH_POLICY, _NO_DA = 1 << 7, 1 << 10
_RESTRICTED, _DECRYPT, _SIGN = 1 << 16, 1 << 17, 1 << 18

AK_ATTRIBUTES = _FIXED_TPM | _FIXED_PARENT | _SENSITIVE_DATA_ORIGIN | _NO_DA | _RESTRICTED | _SIGN
_EK_ATTRIBUTES = (
    _FIXED_TPM
    | _FIXED_PARENT
    | _SENSITIVE_DATA_ORIGIN
    | _ADMIN_WITH_POLICY
    | _RESTRICTED
    | _DECRYPT
)
# PolicySecret(TPM_RH_ENDORSEMENT): TCG EK Credential Profile 2.4, B.6.2, "PolicyA".
_EK_POLICY = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")

# PolicyB: PolicyA or the policy in NV index 0x01C07F02, SHA-384 (EK profile, B.6.4).
_EK_POLICY_B_SHA384 = bytes.fromhex(
    "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4"
    "cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)


class KeyType(enum.Enum):
    """Kinds of attestation key: ECDSA P-256 or RSASSA 2048, both with SHA-256."""

    ECC = "ecc"
    RSA = "rsa"


class EkType(enum.Enum):
    """Kinds of endorsement key: a label and the NV index of the certificate (EK profile, 2.2.1).

    ``L-1`` and ``L-2`` are the low-range templates, ``H-3`` the high-range P-384 template; swtpm
    provisions RSA_2048 and ECC_P384.
    """

    RSA_2048 = ("L-1", 0x01C0_0002)
    ECC_P256 = ("L-2", 0x01C0_000A)
    ECC_P384 = ("H-3", 0x01C0_0016)

    def __init__(self, template: str, certificate_index: int) -> None:
        self.template = template
        self.certificate_index = certificate_index

    @property
    def with_auth(self) -> bool:
        """Whether the empty authValue authorizes its use (userWithAuth), else PolicySecret."""
        return self is EkType.ECC_P384


def policy_locality_digest(locality: int) -> bytes:
    """Return the SHA-256 policyDigest of TPM2_PolicyLocality for one locality (part 3, 23.8)."""
    return HashAlgorithm.SHA256.hash(
        bytes(32), struct.pack(">IB", CommandCode.POLICY_LOCALITY, 1 << locality)
    )


AK_POLICY = policy_locality_digest(SECURE_KERNEL_LOCALITY)


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _public(kind: int, attributes: int, policy: bytes, parameters: bytes) -> bytes:
    return struct.pack(">HHI", kind, _SHA256, attributes) + _sized(policy) + parameters


def ak_template(key_type: KeyType) -> bytes:
    """Return the template: ECDSA P-256 with SHA-256, or RSASSA 2048 with SHA-256."""
    if key_type is KeyType.ECC:
        parameters = (
            struct.pack(">HHHHH", _ALG_NULL, _ALG_ECDSA, _SHA256, _ECC_NIST_P256, _ALG_NULL)
            + _sized(b"") * 2
        )
        return _public(_ALG_ECC, AK_ATTRIBUTES, AK_POLICY, parameters)
    parameters = struct.pack(">HHHHI", _ALG_NULL, _ALG_RSASSA, _SHA256, 2048, 0) + _sized(b"")
    return _public(_ALG_RSA, AK_ATTRIBUTES, AK_POLICY, parameters)


def host_ak_template(key_type: KeyType) -> bytes:
    """Return the template of a host's attestation key: the same, by the empty password."""
    template = bytearray(ak_template(key_type))
    _, name_alg, _ = struct.unpack_from(">HHI", template)
    kind = int.from_bytes(template[:2], "big")
    head = struct.pack(">HHI", kind, name_alg, AK_ATTRIBUTES | _USER_WITH_AUTH) + _sized(b"")
    return head + bytes(template[8 + 2 + len(AK_POLICY) :])


def ek_template(ek_type: EkType) -> bytes:
    """Return the template of the EK profile, B.3 and B.4."""
    if ek_type is EkType.ECC_P384:
        aes_256_cfb = struct.pack(">HHH", _ALG_AES, 256, _ALG_CFB)
        parameters = aes_256_cfb + struct.pack(">HHH", _ALG_NULL, _ECC_NIST_P384, _ALG_NULL)
        head = struct.pack(">HHI", _ALG_ECC, _SHA384, _EK_ATTRIBUTES | _USER_WITH_AUTH)
        return head + _sized(_EK_POLICY_B_SHA384) + parameters + _sized(b"") * 2
    aes_128_cfb = struct.pack(">HHH", _ALG_AES, 128, _ALG_CFB)
    if ek_type is EkType.ECC_P256:
        parameters = aes_128_cfb + struct.pack(">HHH", _ALG_NULL, _ECC_NIST_P256, _ALG_NULL)
        return _public(_ALG_ECC, _EK_ATTRIBUTES, _EK_POLICY, parameters + _sized(bytes(32)) * 2)
    parameters = aes_128_cfb + struct.pack(">HHI", _ALG_NULL, 2048, 0)
    return _public(_ALG_RSA, _EK_ATTRIBUTES, _EK_POLICY, parameters + _sized(bytes(256)))
