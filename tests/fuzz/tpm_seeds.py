"""Write the seeds of the TPM targets' corpus, from the recorded vectors and simulated TPMs.

    python tests/fuzz/tpm_seeds.py

Inputs that fuzzing found stay beside the seeds; this script only adds and renews its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from undercroft.base import HashAlgorithm
from undercroft.formats.tpm import (
    CredentialBlob,
    DigestList,
    EccPoint,
    EncryptedSecret,
    IdObject,
    KeyedHashPublic,
    NvPublic,
    PcrRead,
    PcrSelectionList,
    Scheme,
    SymCipherPublic,
    SymmetricDefinition,
    TpmAlg,
)
from undercroft.formats.tpm.certificate import encode_crl
from undercroft.testing import AkKind, SimulatedAttester
from undercroft.testing.attester12 import VERSION_INFO, SimulatedAttester12
from undercroft.testing.endorsement import TEMPLATES, SimulatedEk
from undercroft.testing.tpm_vendor import SimulatedTpmVendor

HERE = Path(__file__).parent
RECORDED = HERE.parent / "vectors" / "tpm" / "recorded"
SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256


def recorded_seeds() -> Iterator[tuple[str, str, bytes]]:
    """What a real TPM made: target, name, bytes."""
    for path in sorted(RECORDED.glob("*.json")):
        case = json.loads(path.read_text())
        if "attest" in case:
            yield "attest", path.stem, bytes.fromhex(case["attest"])
            yield "signature", path.stem, bytes.fromhex(case["signature"])
            yield "public", path.stem, bytes.fromhex(case["ak_public"])[2:]
    identity = json.loads((RECORDED / "identity.json").read_text())
    for kind in ("rsa", "ecc"):
        yield "public", f"ek-{kind}", bytes.fromhex(identity[f"ek_{kind}_public"])[2:]
        certificate = bytes.fromhex(identity[f"ek_{kind}_certificate"])
        yield "x509-certificate", f"ek-{kind}", certificate
    yield "x509-certificate", "root-pem", identity["root"].encode()
    creation = json.loads((RECORDED / "creation.json").read_text())["creation_data"]
    yield "creation", "creation", bytes.fromhex(creation)[2:]
    blob = json.loads((RECORDED / "credential.json").read_text())["blob"]
    yield "credential", "tools", bytes.fromhex(blob)


def simulated_seeds() -> Iterator[tuple[str, str, bytes]]:
    """What no recording has: target, name, bytes."""
    tpm = SimulatedAttester(AkKind.ECDSA_P256)
    sealed = KeyedHashPublic(Scheme(TpmAlg.XOR, SHA256, kdf=TpmAlg.MGF1), bytes(32))
    cipher = SymCipherPublic(SymmetricDefinition(TpmAlg.AES, 128, TpmAlg.CFB), bytes(32))
    for name, key in (("keyedhash", sealed), ("symcipher", cipher)):
        yield "public", name, replace(tpm.public, key=key).encode()
    for template in TEMPLATES:
        yield "public", f"ek-{template.lower()}", SimulatedEk(template).public.encode()
    selection = PcrSelectionList.of({SHA1: [0], SHA256: [1, 2]})
    values = DigestList((bytes(20), bytes(32), bytes(32)))
    yield "pcr-read", "two-banks", PcrRead(7, selection, values).encode()
    yield "parts", "selection", selection.encode()
    yield "parts", "digests", values.encode()
    yield "parts", "public-2b", tpm.public.encode_2b()
    yield "parts", "point", EccPoint(bytes(range(32)), bytes(range(32))).encode()
    credential = CredentialBlob(IdObject(bytes(32), bytes(34)), EncryptedSecret(bytes(68)))
    yield "parts", "credential", credential.encode()
    yield "parts", "id-object", credential.id_object.encode()
    yield "parts", "secret", credential.encrypted_secret.encode()
    yield "nv-public", "index", NvPublic(0x01500016, SHA256, 0x20072, b"", 8).encode()
    old = SimulatedAttester12()
    yield "tpm12-quote", "quote", old.quote(bytes(20), [0]).info_bytes
    yield "tpm12-quote", "quote2", old.quote2(bytes(20), [0]).info_bytes
    yield "tpm12-quote", "quote2-version", old.quote2(bytes(20), [0], VERSION_INFO).info_bytes
    yield "tpm12-composite", "two", old.composite([0, 7]).encode()
    yield "tpm12-pubkey", "aik", old.public.encode()
    vendor = SimulatedTpmVendor()
    leaf = vendor.ek_certificate(SimulatedEk("L-2").private.public_key()).der
    yield "x509-certificate", "padded", leaf + bytes(16)
    wrapped = b"\x10\x01\x00" + (len(leaf) + 2).to_bytes(2, "big") + b"\x10\x02" + leaf
    yield "x509-certificate", "stored", wrapped
    yield "x509-crl", "one", encode_crl(vendor.intermediate.crl([5]))


def main() -> None:
    """Write every seed."""
    for target, name, data in (*recorded_seeds(), *simulated_seeds()):
        folder = HERE / "corpus" / "tpm" / target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"seed-{name}.bin").write_bytes(data)


if __name__ == "__main__":
    main()
