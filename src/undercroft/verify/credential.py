"""Credential activation: proof that an attestation key lives in the TPM of an endorsement key.

The verifier encrypts a secret to the endorsement key under the attestation key's Name
(TPM2_MakeCredential, done here in software); only the TPM that holds both can give the secret
back (TPM2_ActivateCredential).  Source: TPM 2.0 Part 1, 24 (protocol), 11.4.10 (KDFa, KDFe),
annex B.10 (RSA) and C.6 (ECC).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from undercroft.base import HashAlgorithm
from undercroft.formats.tpm import CredentialBlob, EccPoint, EncryptedSecret, IdObject
from undercroft.formats.tpm.fields import encode_2b
from undercroft.verify.ak import AttestationKey
from undercroft.verify.ak_key import HASHES
from undercroft.verify.checks import Check
from undercroft.verify.ek import CertifiedEk, EndorsementKey, PinnedEk

M1_SECRET = Check(
    "M1",
    "activation.secret",
    "the TPM gave back the secret, so it holds the endorsement key and the attestation key",
    "TPM 2.0 Part 1, 24; Part 3, 12.5",
)
CHECKS = (M1_SECRET,)

SECRET_SIZE = 32
"""Bytes of the secret: the most that every EK profile's nameAlg can carry."""
IDENTITY, STORAGE, INTEGRITY = b"IDENTITY", b"STORAGE", b"INTEGRITY"

Random: TypeAlias = Callable[[int], bytes]
"""Gives that many unpredictable bytes; the caller's ``os.urandom``."""
GenuineEk: TypeAlias = CertifiedEk | PinnedEk


@dataclass(frozen=True, slots=True)
class ActivationChallenge:
    """A challenge to one machine: send ``blob``, keep ``secret`` until the answer comes."""

    ak: AttestationKey
    ek: GenuineEk
    secret: bytes
    blob: CredentialBlob


@dataclass(frozen=True, slots=True)
class ActivatedAk:
    """An attestation key of the TPM whose endorsement key is ``ek``."""

    ak: AttestationKey
    ek: GenuineEk


def challenge_activation(ak: AttestationKey, ek: GenuineEk, random: Random) -> ActivationChallenge:
    """Return a challenge that only the TPM with both keys can answer."""
    secret = random(SECRET_SIZE)
    return ActivationChallenge(ak, ek, secret, make_credential(ek.ek, ak.name, secret, random))


def verify_activation(challenge: ActivationChallenge, answer: bytes) -> ActivatedAk:
    """Check that ``answer`` is the challenge's secret.  Raises VerificationError (M1)."""
    check_answer(challenge.secret, answer)
    return ActivatedAk(challenge.ak, challenge.ek)


def check_answer(secret: bytes, answer: bytes) -> None:
    """Check that ``answer`` is the ``secret`` of a challenge.  Raises VerificationError (M1)."""
    if not hmac.compare_digest(secret, answer):
        # The secret is not repeated in the error: it is still a secret.
        raise M1_SECRET.failed(
            "the answer is not the secret: the TPM does not hold both keys",
            expected=f"{len(secret)} secret bytes",
            got=f"{len(answer)} other bytes",
        )


def make_credential(
    ek: EndorsementKey, object_name: bytes, credential: bytes, random: Random
) -> CredentialBlob:
    """TPM2_MakeCredential: protect ``credential`` so that only ``ek``'s TPM can open it.

    And only for the loaded object whose Name is ``object_name``.  ``credential`` has at most
    the bytes of a digest of the key's nameAlg (ValueError otherwise).
    """
    if not 0 < len(credential) <= ek.name_alg.size:
        raise ValueError(f"a credential for this key has 1 to {ek.name_alg.size} bytes")
    if isinstance(ek.key, rsa.RSAPublicKey):
        seed, secret = _rsa_seed(ek.key, ek.name_alg, random)
    else:
        seed, secret = _ecc_seed(ek.key, ek.name_alg, random)
    return CredentialBlob(
        seal(ek.name_alg, ek.symmetric_bits, seed, object_name, credential),
        EncryptedSecret(secret),
    )


def seal(
    hash_alg: HashAlgorithm, symmetric_bits: int, seed: bytes, name: bytes, credential: bytes
) -> IdObject:
    """Encrypt ``credential`` and authenticate it with ``name`` (Part 1, 24.4 and 24.5)."""
    key = kdfa(hash_alg, seed, STORAGE, name, b"", symmetric_bits)
    enc_identity = aes_cfb(key, encode_2b(credential))
    integrity_key = kdfa(hash_alg, seed, INTEGRITY, b"", b"", hash_alg.size * 8)
    outer = hmac.digest(integrity_key, enc_identity + name, hash_alg.hashlib_name)
    return IdObject(outer, enc_identity)


def aes_cfb(key: bytes, data: bytes) -> bytes:
    """Encrypt with AES-CFB and a zero IV: each key is used once (Part 1, 24.4).

    Written out over single blocks (SP 800-38A, 6.3), for the library is giving CFB up.
    """
    encryptor = Cipher(AES(key), ECB()).encryptor()  # of one block at a time
    out = feedback = b""
    for start in range(0, len(data), 16):
        stream = encryptor.update(feedback or bytes(16))
        feedback = bytes(a ^ b for a, b in zip(data[start : start + 16], stream, strict=False))
        out += feedback
    return out


def _rsa_seed(
    key: rsa.RSAPublicKey, hash_alg: HashAlgorithm, random: Random
) -> tuple[bytes, bytes]:
    """Return a seed and its OAEP ciphertext (Part 1, B.10.3 and B.4).

    The library salts the padding itself: it is not a thing to be done by hand.
    """
    seed = random(hash_alg.size)
    primitive = HASHES[hash_alg]
    oaep = padding.OAEP(padding.MGF1(primitive), primitive, IDENTITY + b"\0")
    return seed, key.encrypt(seed, oaep)


def _ecc_seed(
    key: ec.EllipticCurvePublicKey, hash_alg: HashAlgorithm, random: Random
) -> tuple[bytes, bytes]:
    """Return a seed and the ephemeral point it is agreed with (Part 1, C.6.3)."""
    ephemeral = _ephemeral_key(key.curve, random)
    size = (key.curve.key_size + 7) // 8
    ours, theirs = ephemeral.public_key().public_numbers(), key.public_numbers()
    x, y = ours.x.to_bytes(size, "big"), ours.y.to_bytes(size, "big")
    z = ephemeral.exchange(ec.ECDH(), key)
    seed = kdfe(hash_alg, z, IDENTITY, x, theirs.x.to_bytes(size, "big"), hash_alg.size * 8)
    return seed, EccPoint(x, y).encode()


def _ephemeral_key(curve: ec.EllipticCurve, random: Random) -> ec.EllipticCurvePrivateKey:
    # 64 more bits than the order has make the bias of the remainder negligible
    # (FIPS 186-5, A.2.1).
    extra = int.from_bytes(random((curve.key_size + 7) // 8 + 8), "big")
    return ec.derive_private_key(extra % (curve.group_order - 1) + 1, curve)


def kdfa(
    hash_alg: HashAlgorithm,
    key: bytes,
    label: bytes,
    context_u: bytes,
    context_v: bytes,
    bits: int,
) -> bytes:
    """KDFa: SP 800-108 in counter mode with HMAC (Part 1, 11.4.10.2); whole bytes only."""
    out = b""
    counter = 1
    fixed = label + b"\0" + context_u + context_v + bits.to_bytes(4, "big")
    while len(out) * 8 < bits:
        out += hmac.digest(key, counter.to_bytes(4, "big") + fixed, hash_alg.hashlib_name)
        counter += 1
    return out[: bits // 8]


def kdfe(
    hash_alg: HashAlgorithm, z: bytes, use: bytes, party_u: bytes, party_v: bytes, bits: int
) -> bytes:
    """KDFe: SP 800-56A with the x-coordinate ``z`` (Part 1, 11.4.10.3); whole bytes only."""
    out = b""
    counter = 1
    while len(out) * 8 < bits:
        out += hash_alg.hash(counter.to_bytes(4, "big"), z, use + b"\0", party_u, party_v)
        counter += 1
    return out[: bits // 8]
