"""Enrolment: why we believe that an attestation key lives in this guest's TPM.

The endorsement key's certificate is read from the TPM and verified up to the roots that the
operator gives; then the TPM proves that it holds both keys by credential activation. From then
on the attestation key's public area is pinned.
"""

from __future__ import annotations

import datetime as dt
import os
from typing import Protocol

from undercroft.base import EnvironmentFault
from undercroft.formats.evidence import HowTrusted, Trust
from undercroft.formats.tpm import parse_public
from undercroft.formats.tpm.certificate import parse_certificate
from undercroft.securekernel.vtpm.client import VtpmClient
from undercroft.service.authorities import Authorities
from undercroft.verify.ak import AttestationKey, verify_ak
from undercroft.verify.credential import challenge_activation, verify_activation
from undercroft.verify.ek import verify_ek, verify_ek_certificate
from undercroft.verify.launch import verify_launch_key

_SIZE = 2
"""Bytes of the size in front of a TPM2B."""


class Endorsed(Protocol):
    """A TPM with an endorsement key and its certificate: a guest's, or the host's."""

    def ek_certificate(self) -> bytes | None:
        """Return the EK certificate (DER), None if the TPM has none."""

    def ek_public(self) -> bytes:
        """Return the endorsement key's TPMT_PUBLIC."""

    def activate_credential(self, blob: bytes, secret: bytes) -> bytes:
        """Open a credential made for the attestation key: TPMS_ID_OBJECT and encrypted seed."""


def enrol(client: VtpmClient, guest: str, *, authorities: Authorities, now: dt.datetime) -> Trust:
    """Return whom to trust for ``guest``: its attestation key, activated against its EK.

    ``authorities`` are the TPM manufacturers that the operator accepts. The attestation key must
    be one that only the secure kernel can use. Raises VerificationError if a key or certificate
    is not what it must be, EnvironmentFault if the TPM has no EK certificate.
    """
    ak = verify_ak(parse_public(client.create_ak().public))
    verify_launch_key(ak.public)
    certificate = activate(client, ak, guest, authorities=authorities, now=now)
    return Trust(guest, ak.public.encode(), HowTrusted.ACTIVATED, certificate)


def activate(
    tpm: Endorsed,
    ak: AttestationKey,
    where: str,
    *,
    authorities: Authorities,
    now: dt.datetime,
) -> bytes:
    """Verify the EK of ``tpm`` and that ``ak`` is in the same TPM; return the EK's certificate.

    Raises as :func:`enrol` does.
    """
    certificate = tpm.ek_certificate()
    if certificate is None:
        raise EnvironmentFault(
            "the TPM has no EK certificate",
            where=where,
            remedy="start the guest with a vTPM that swtpm_setup gave one (--create-ek-cert)",
        )
    ek = verify_ek_certificate(
        verify_ek(parse_public(tpm.ek_public())),
        parse_certificate(certificate),
        intermediates=authorities.intermediates,
        roots=authorities.roots,
        crls=authorities.crls,
        now=now,
    )
    challenge = challenge_activation(ak, ek, os.urandom)
    blob = challenge.blob
    answer = tpm.activate_credential(
        blob.id_object.encode()[_SIZE:], blob.encrypted_secret.encode()[_SIZE:]
    )
    verify_activation(challenge, answer)
    return certificate
