"""Enrolment of a TPM that is somewhere else: two files go there, one comes back.

tpm2-tools on the other machine makes the attestation key and opens the credential; which roots
an endorsement key may lead to is the operator's folder.  Between the two steps the secret waits in
a folder that only its owner reads.
"""

from __future__ import annotations

import datetime as dt
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from undercroft.base import EnvironmentFault, FormatError
from undercroft.formats import strict_json
from undercroft.formats.evidence import HowTrusted, Trust, encode_trust
from undercroft.formats.tpm import Public, parse_public, parse_public_2b
from undercroft.formats.tpm.certificate import parse_certificate
from undercroft.service.authorities import Authorities
from undercroft.verify.ak import verify_ak
from undercroft.verify.credential import challenge_activation, check_answer
from undercroft.verify.ek import verify_ek, verify_ek_certificate

PENDING, CREDENTIAL, TRUST = "pending.json", "credential.blob", "trust.json"
FORMAT = "undercroft.enrolment/1"
MAX_FILE = 1 << 20


class _Pending(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    name: str
    ak_public: str
    ek_certificate: str
    secret: str


@dataclass(frozen=True, slots=True)
class Request:
    """What the other machine sent: its name, both keys' public areas, the EK's certificate.

    A public area may be a TPMT_PUBLIC or a TPM2B_PUBLIC (what tpm2-tools write).
    """

    name: str
    ak_public: bytes
    ek_public: bytes
    ek_certificate: bytes


def begin(request: Request, folder: Path, *, authorities: Authorities, now: dt.datetime) -> Path:
    """Verify both keys, and write the credential that only their TPM can open.

    Returns the credential's path, a file for ``tpm2_activatecredential``.  Raises FormatError or
    VerificationError for a key or certificate that is not what it must be, EnvironmentFault where
    the folder cannot be written or waits for another answer.
    """
    ak = verify_ak(_public(request.ak_public))
    ek = verify_ek_certificate(
        verify_ek(_public(request.ek_public)),
        parse_certificate(request.ek_certificate),
        intermediates=authorities.intermediates,
        roots=authorities.roots,
        crls=authorities.crls,
        now=now,
    )
    challenge = challenge_activation(ak, ek, os.urandom)
    trust = Trust(request.name, ak.public.encode(), HowTrusted.ACTIVATED, request.ek_certificate)
    pending = _Pending(
        FORMAT,
        trust.guest,
        trust.ak_public.hex(),
        trust.ek_certificate.hex(),
        challenge.secret.hex(),
    )
    _write_new(folder / PENDING, strict_json.encode(pending))
    path = folder / CREDENTIAL
    path.write_bytes(challenge.blob.encode_tools_file())
    return path


def finish(folder: Path, answer: bytes) -> Path:
    """Check the answer, and write whom to trust: a file for ``undercroft verify --trust``.

    The secret is used up by a right answer.  Raises VerificationError for a wrong one, FormatError
    for a folder that :func:`begin` did not write.
    """
    pending = strict_json.parse(read(folder / PENDING), _Pending, PENDING, limit=MAX_FILE)
    if pending.format != FORMAT:
        raise FormatError(PENDING, 0, "another format", expected=FORMAT, got=pending.format[:80])
    try:
        secret, ak, certificate = map(
            strict_json.unhex, (pending.secret, pending.ak_public, pending.ek_certificate)
        )
        trust = Trust(pending.name, ak, HowTrusted.ACTIVATED, certificate)
    except ValueError as error:
        raise FormatError(PENDING, 0, str(error)) from error
    check_answer(secret, answer)
    path = folder / TRUST
    path.write_bytes(encode_trust(trust))
    (folder / PENDING).unlink()
    return path


def read(path: Path) -> bytes:
    """Read a small file.  Raises EnvironmentFault, FormatError if it is large."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE + 1)
    except OSError as error:
        raise EnvironmentFault(f"cannot read: {error.strerror}", where=str(path)) from error
    if len(data) > MAX_FILE:
        raise FormatError(path.name, MAX_FILE, "larger than any such file")
    return data


def _public(data: bytes) -> Public:
    # A TPM2B begins with its own size; as the type of a TPMT that would be an unknown algorithm.
    sized = int.from_bytes(data[:2], "big") == len(data) - 2
    return parse_public_2b(data) if sized else parse_public(data)


def _write_new(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise EnvironmentFault(
            "an enrolment waits for its answer here",
            where=str(path),
            remedy="finish it, or choose another folder",
        ) from error
    except OSError as error:
        raise EnvironmentFault(f"cannot write: {error.strerror}", where=str(path)) from error
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
