"""Every numbered check about TPM keys has a case here in which exactly that check says no.

The checks of quotes are covered by ``test_quote_negative``.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace

from undercroft.base import HashAlgorithm, VerificationError
from undercroft.formats.tpm import (
    Attest,
    CertifyInfo,
    CreationData,
    CreationInfo,
    EccPublic,
    KeyedHashPublic,
    ObjectAttributes,
    PcrSelectionList,
    Public,
    RsaPublic,
    TpmAlg,
    TpmRh,
    UnverifiedQuote12,
    UnverifiedStatement,
)
from undercroft.formats.tpm.certificate import TpmCertificate
from undercroft.testing import AkKind, SimulatedAttester
from undercroft.testing.attester import AK_ATTRIBUTES
from undercroft.testing.attester12 import SimulatedAttester12
from undercroft.testing.endorsement import SimulatedEk
from undercroft.testing.keys import ecc_key
from undercroft.testing.tpm_vendor import (
    END,
    NOW,
    START,
    Authority,
    SimulatedTpmVendor,
    authority,
    key_usage,
)
from undercroft.verify import (
    ak,
    certify,
    certify_identity,
    credential,
    ek,
    quote,
    quote_legacy,
)
from undercroft.verify.ak import verify_ak
from undercroft.verify.certify import verify_certify, verify_creation
from undercroft.verify.certify_identity import (
    AK_CERTIFICATE,
    IAK_CERTIFICATE,
    verify_ak_certificate,
    verify_idevid,
)
from undercroft.verify.checks_key_certificate import (
    CAP_VERIFIED_TPM_FIXED,
    CAP_VERIFIED_TPM_RESTRICTED,
    KP_AIK_CERTIFICATE,
    KP_EK_CERTIFICATE,
    CertificateProfile,
)
from undercroft.verify.credential import challenge_activation, verify_activation
from undercroft.verify.ek import PinnedEk, verify_ek, verify_ek_certificate, verify_pinned_ek
from undercroft.verify.quote_legacy import load_identity_key, verify_quote12

Case = Callable[[], object]
SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256
NONCE = bytes(range(32))
VENDOR = SimulatedTpmVendor()
EK = SimulatedEk("L-2")
AK = SimulatedAttester()
LATER = END + datetime.timedelta(days=1)

Extensions = list[tuple[x509.ExtensionType, bool]]
Change = Callable[[Extensions], Extensions]


# --- attestation keys -------------------------------------------------------------------------


def ak_cases() -> dict[str, Case]:
    public = AK.public
    key = public.key
    assert isinstance(key, EccPublic)
    off_curve = replace(key, y=bytes(32))
    return {
        "ak.name": lambda: verify_ak(replace(public, name_alg=None)),
        "ak.attributes": lambda: verify_ak(
            replace(public, attributes=AK_ATTRIBUTES & ~ObjectAttributes.RESTRICTED)
        ),
        "ak.scheme": lambda: verify_ak(replace(public, key=KeyedHashPublic(None, bytes(32)))),
        "ak.key": lambda: verify_ak(replace(public, key=off_curve)),
    }


# --- endorsement keys and certificate paths ----------------------------------------------------


def without(kind: type[x509.ExtensionType]) -> Change:
    return lambda extensions: [e for e in extensions if not isinstance(e[0], kind)]


def instead(value: x509.ExtensionType, *, critical: bool = True) -> Change:
    return lambda extensions: [
        (value, critical) if isinstance(e[0], type(value)) else e for e in extensions
    ]


def and_also(value: x509.ExtensionType, *, critical: bool) -> Change:
    return lambda extensions: [*extensions, (value, critical)]


def verify_ek_with(
    leaf: TpmCertificate | None = None,
    *,
    intermediates: tuple[TpmCertificate, ...] = (VENDOR.intermediate.certificate,),
    crls: tuple[x509.CertificateRevocationList, ...] = (),
    now: datetime.datetime = NOW,
) -> object:
    return verify_ek_certificate(
        EK.ek,
        leaf or VENDOR.ek_certificate(EK.private.public_key()),
        intermediates=intermediates,
        roots=[VENDOR.root.certificate],
        crls=crls,
        now=now,
    )


def ek_leaf(change: Change, issuer: Authority | None = None) -> TpmCertificate:
    return VENDOR.ek_certificate(EK.private.public_key(), change=change, issuer=issuer)


def ek_below(extensions: Extensions) -> object:
    """Verify an EK certificate whose intermediate authority has other extensions."""
    child = VENDOR.subordinate("bent intermediate", extensions)
    return verify_ek_with(ek_leaf(list, child), intermediates=(child.certificate,))


def ek_cases() -> dict[str, Case]:
    public = EK.public
    key = public.key
    assert isinstance(key, EccPublic)
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    return {
        "ek.attributes": lambda: verify_ek(
            replace(public, attributes=public.attributes | ObjectAttributes.SIGN)
        ),
        "ek.policy": lambda: verify_ek(replace(public, auth_policy=bytes(32))),
        "ek.protection": lambda: verify_ek(replace(public, key=replace(key, symmetric=None))),
        "ek.key": lambda: verify_ek(replace(public, key=replace(key, y=bytes(32)))),
        "ek.certified-key": lambda: verify_ek_with(
            VENDOR.ek_certificate(SimulatedEk("L-2", label="stranger").private.public_key())
        ),
        "ek.not-ca": lambda: verify_ek_with(
            ek_leaf(instead(x509.BasicConstraints(ca=True, path_length=None)))
        ),
        "ek.key-usage": lambda: verify_ek_with(ek_leaf(instead(key_usage("digital_signature")))),
        "ek.extended-key-usage": lambda: verify_ek_with(
            ek_leaf(instead(x509.ExtendedKeyUsage([KP_AIK_CERTIFICATE])))
        ),
        "ek.chain": lambda: verify_ek_with(intermediates=()),
        "ek.validity": lambda: verify_ek_with(now=LATER),
        "ek.critical-extension": lambda: verify_ek_with(ek_leaf(and_also(unknown, critical=True))),
        "ek.authority": lambda: ek_below(
            [(x509.BasicConstraints(ca=False, path_length=None), True)]
        ),
        "ek.revoked": lambda: verify_ek_with(crls=(VENDOR.intermediate.crl([77]),)),
        "ek.pinned": lambda: verify_pinned_ek(EK.ek, [b"another"]),
    }


# --- certificates of attestation and identity keys -----------------------------------------------


def ak_extensions(policy: x509.ObjectIdentifier | None) -> Extensions:
    policies = [x509.PolicyInformation(policy, None)] if policy else []
    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (key_usage("digital_signature"), True),
        (x509.ExtendedKeyUsage([KP_AIK_CERTIFICATE]), False),
        *([(x509.CertificatePolicies(policies), False)] if policies else []),
    ]


def ak_leaf(extensions: Extensions, label: str = "ak", **bend: datetime.datetime) -> TpmCertificate:
    key = ecc_key(label, ec.SECP256R1()).public_key()
    return VENDOR.intermediate.issue(
        "an attestation key",
        key,
        extensions,
        serial=77,
        start=bend.get("start", START),
        end=bend.get("end", END),
    )


def certificate_cases(
    kind: str,
    policy: x509.ObjectIdentifier | None,
    verify: Callable[..., object],
    *,
    purpose: bool = True,
) -> dict[str, Case]:
    """Return the cases that all profiles of certificates for signing keys share."""

    def bent(change: Change) -> Case:
        return lambda: verify(ak_leaf(change(ak_extensions(policy))))

    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    powerless = VENDOR.subordinate(
        "powerless", [(x509.BasicConstraints(ca=False, path_length=None), True)]
    )
    below = powerless.issue(
        "an attestation key",
        ecc_key("ak", ec.SECP256R1()).public_key(),
        ak_extensions(policy),
        serial=77,
    )
    cases: dict[str, Case] = {
        "certified-key": lambda: verify(ak_leaf(ak_extensions(policy), label="stranger")),
        "not-ca": bent(instead(x509.BasicConstraints(ca=True, path_length=None))),
        "key-usage": bent(instead(key_usage("key_agreement"))),
        "chain": lambda: verify(ak_leaf(ak_extensions(policy)), intermediates=()),
        "validity": lambda: verify(ak_leaf(ak_extensions(policy), end=NOW.replace(year=2021))),
        "critical-extension": bent(and_also(unknown, critical=True)),
        "authority": lambda: verify(below, intermediates=(powerless.certificate,)),
        "revoked": lambda: verify(
            ak_leaf(ak_extensions(policy)), crls=(VENDOR.intermediate.crl([77]),)
        ),
    }
    if purpose:
        cases["extended-key-usage"] = bent(instead(x509.ExtendedKeyUsage([KP_EK_CERTIFICATE])))
    if policy:
        cases["policy"] = bent(without(x509.CertificatePolicies))
    return {f"{kind}.{name}": case for name, case in cases.items()}


def verify_ak_leaf(wanted: CertificateProfile) -> Callable[..., object]:
    def verify(
        leaf: TpmCertificate,
        *,
        intermediates: tuple[TpmCertificate, ...] = (VENDOR.intermediate.certificate,),
        crls: tuple[x509.CertificateRevocationList, ...] = (),
    ) -> object:
        return verify_ak_certificate(
            AK.ak,
            leaf,
            intermediates=intermediates,
            roots=[VENDOR.root.certificate],
            crls=crls,
            now=NOW,
            wanted=wanted,
        )

    return verify


IDEVID = replace(AK.public, attributes=AK_ATTRIBUTES & ~ObjectAttributes.RESTRICTED)


def verify_idevid_leaf(
    leaf: TpmCertificate,
    *,
    public: Public = IDEVID,
    intermediates: tuple[TpmCertificate, ...] = (VENDOR.intermediate.certificate,),
    crls: tuple[x509.CertificateRevocationList, ...] = (),
) -> object:
    return verify_idevid(
        public,
        leaf,
        intermediates=intermediates,
        roots=[VENDOR.root.certificate],
        crls=crls,
        now=NOW,
    )


def identity_cases() -> dict[str, Case]:
    fixed = ak_leaf(ak_extensions(CAP_VERIFIED_TPM_FIXED))
    key = IDEVID.key
    assert isinstance(key, EccPublic)
    unusable = replace(IDEVID, key=replace(key, y=bytes(32)))
    return {
        **certificate_cases("iak", CAP_VERIFIED_TPM_RESTRICTED, verify_ak_leaf(IAK_CERTIFICATE)),
        **certificate_cases("ak-certificate", None, verify_ak_leaf(AK_CERTIFICATE)),
        **certificate_cases("idevid", CAP_VERIFIED_TPM_FIXED, verify_idevid_leaf, purpose=False),
        "idevid.attributes": lambda: verify_idevid_leaf(fixed, public=AK.public),
        "idevid.key": lambda: verify_idevid_leaf(fixed, public=unusable),
    }


# --- activation and certification ---------------------------------------------------------------


def activation_cases() -> dict[str, Case]:
    challenge = challenge_activation(AK.ak, PinnedEk(EK.ek), bytes)
    return {"activation.secret": lambda: verify_activation(challenge, b"\1" * 32)}


SUBJECT = SimulatedAttester(label="subject").public
CREATION = CreationData(PcrSelectionList(()), b"", 1, None, b"@\0\0\1", b"@\0\0\1", b"")


def statement_cases(
    kind: str,
    make: Callable[[], Attest],
    verify: Callable[[UnverifiedStatement], object],
    verify_with_parent: Callable[[UnverifiedStatement], object],
) -> dict[str, Case]:
    """Return the cases that all statements share: ``make`` gives a good one."""

    def signed(attest: Attest, signer: SimulatedAttester = AK) -> UnverifiedStatement:
        return signer.signed(attest, ()).statement

    good = signed(make())
    other_type = CreationInfo(b"", b"") if kind == "certify" else CertifyInfo(b"", b"")
    stranger = SimulatedAttester(label="stranger")
    return {
        f"{kind}.magic": lambda: verify(signed(replace(make(), magic=0))),
        f"{kind}.type": lambda: verify(signed(replace(make(), attested=other_type))),
        f"{kind}.scheme": lambda: verify(
            replace(good, signature=replace(good.signature, hash_alg=SHA1))
        ),
        f"{kind}.signature": lambda: verify(signed(make(), stranger)),
        f"{kind}.signer": lambda: verify_with_parent(good),
        f"{kind}.nonce": lambda: verify(signed(replace(make(), extra_data=NONCE[:-1]))),
    }


def certify_cases() -> dict[str, Case]:
    owner = TpmRh.OWNER.handle_name
    elsewhere = verify_ak(AK.public, parent=owner)
    info = CertifyInfo(SUBJECT.name, SUBJECT.qualified_name(owner))
    created = CreationInfo(SUBJECT.name, SHA256.hash(CREATION.encode()))
    good = AK.signed(AK.attest(info, NONCE), ()).statement
    good_creation = AK.certify_creation(SUBJECT, CREATION, NONCE).statement
    nameless = replace(SUBJECT, name_alg=None)
    of_nameless = AK.signed(AK.attest(CertifyInfo(b"", b""), NONCE), ()).statement

    def creation(statement: UnverifiedStatement) -> object:
        return verify_creation(statement, AK.ak, SUBJECT, CREATION.encode(), NONCE)

    return {
        **statement_cases(
            "certify",
            lambda: AK.attest(info, NONCE),
            lambda s: verify_certify(s, AK.ak, SUBJECT, NONCE),
            lambda s: verify_certify(s, elsewhere, SUBJECT, NONCE),
        ),
        "certify.name": lambda: verify_certify(of_nameless, AK.ak, nameless, NONCE),
        "certify.qualified-name": lambda: verify_certify(
            good, AK.ak, SUBJECT, NONCE, parent=TpmRh.PLATFORM.handle_name
        ),
        **statement_cases(
            "creation",
            lambda: AK.attest(created, NONCE),
            creation,
            lambda s: verify_creation(s, elsewhere, SUBJECT, CREATION.encode(), NONCE),
        ),
        "creation.name": lambda: verify_creation(
            good_creation, AK.ak, AK.public, CREATION.encode(), NONCE
        ),
        "creation.hash": lambda: verify_creation(
            good_creation, AK.ak, SUBJECT, CREATION.encode() + b"\0", NONCE
        ),
    }


# --- TPM 1.2 -----------------------------------------------------------------------------------


def legacy_cases() -> dict[str, Case]:
    tpm = SimulatedAttester12()
    data = bytes(range(20))

    def verify(quote12: UnverifiedQuote12, pcrs: range = range(8)) -> object:
        return verify_quote12(quote12, load_identity_key(tpm.public), data, pcrs)

    good = tpm.quote(data, range(8))
    changed = replace(
        good.claimed_composite, values=(b"\1" * 20, *good.claimed_composite.values[1:])
    )
    return {
        "quote12.key": lambda: load_identity_key(replace(tpm.public, sig_scheme=1)),
        "quote12.signature": lambda: verify(SimulatedAttester12("stranger").quote(data, range(8))),
        "quote12.nonce": lambda: verify(tpm.quote(bytes(20), range(8))),
        "quote12.selection": lambda: verify(good, range(7)),
        "quote12.composite": lambda: verify(replace(good, claimed_composite=changed)),
    }


CASES = {
    **ak_cases(),
    **ek_cases(),
    **identity_cases(),
    **activation_cases(),
    **certify_cases(),
    **legacy_cases(),
}
MODULES = (ak, ek, certify, certify_identity, credential, quote_legacy)


@pytest.mark.parametrize("check", CASES)
def test_exactly_this_check_refuses(check: str) -> None:
    with pytest.raises(VerificationError) as caught:
        CASES[check]()
    assert caught.value.check == check
    assert caught.value.what


def test_every_check_has_a_case() -> None:
    assert set(CASES) == {check.id for module in MODULES for check in module.CHECKS}


def test_ids_and_numbers_are_unique_and_every_check_cites_its_source() -> None:
    checks = [check for module in (*MODULES, quote) for check in module.CHECKS]
    assert len({check.id for check in checks}) == len(checks)
    assert len({check.number for check in checks}) == len(checks)
    assert all(check.says and check.source for check in checks)


def test_the_unbent_evidence_is_accepted() -> None:
    verify_ek_with()
    verify_ak_leaf(IAK_CERTIFICATE)(ak_leaf(ak_extensions(CAP_VERIFIED_TPM_RESTRICTED)))
    verify_ak_leaf(AK_CERTIFICATE)(ak_leaf(ak_extensions(None)))
    verify_idevid_leaf(ak_leaf(ak_extensions(CAP_VERIFIED_TPM_FIXED)))
    ek_below(authority())
    rsa = SimulatedAttester(AkKind.RSAPSS)
    assert isinstance(rsa.public.key, RsaPublic)
    assert verify_ak(rsa.public).scheme.algorithm is TpmAlg.RSAPSS
