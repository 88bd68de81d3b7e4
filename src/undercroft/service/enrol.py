"""Enrolment: why we believe that an attestation key lives in this guest's TPM.

The endorsement key's certificate is read from the TPM and verified up to the roots that the
operator gives; then the TPM proves that it holds both keys by credential activation. From then
on the attestation key's public area is pinned.
"""

from __future__ import annotations

import datetime as dt
import os

from undercroft.base import EnvironmentFault
from undercroft.formats.evidence import HowTrusted, Trust
from undercroft.formats.tpm import parse_public
from undercroft.formats.tpm.certificate import parse_certificate
from undercroft.securekernel.vtpm.client import VtpmClient
from undercroft.service.authorities import Authorities
from undercroft.verify.ak import verify_ak
from undercroft.verify.credential import challenge_activation, verify_activation
from undercroft.verify.ek import verify_ek, verify_ek_certificate
from undercroft.verify.launch import verify_launch_key

_SIZE = 2
"""Bytes of the size in front of a TPM2B."""


def enrol(client: VtpmClient, guest: str, *, authorities: Authorities, now: dt.datetime) -> Trust:
    """Return whom to trust for ``guest``: its attestation key, activated against its EK.

    ``authorities`` are the TPM manufacturers that the operator accepts. The attestation key must
    be one that only the secure kernel can use. Raises VerificationError if a key or certificate
    is not what it must be, EnvironmentFault if the TPM has no EK certificate.
    """
    ak = verify_ak(parse_public(client.create_ak().public))
    verify_launch_key(ak.public)
    certificate = client.ek_certificate()
    if certificate is None:
        raise EnvironmentFault(
            "the TPM has no EK certificate",
            where=guest,
            remedy="start the guest with a vTPM that swtpm_setup gave one (--create-ek-cert)",
        )
    ek = verify_ek_certificate(
        verify_ek(parse_public(client.ek_public())),
        parse_certificate(certificate),
        intermediates=authorities.intermediates,
        roots=authorities.roots,
        crls=authorities.crls,
        now=now,
    )
    challenge = challenge_activation(ak, ek, os.urandom)
    blob = challenge.blob
    answer = client.activate_credential(
        blob.id_object.encode()[_SIZE:], blob.encrypted_secret.encode()[_SIZE:]
    )
    activated = verify_activation(challenge, answer)
    return Trust(guest, activated.ak.public.encode(), HowTrusted.ACTIVATED, certificate)
