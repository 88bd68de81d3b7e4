"""Both layers, taken apart: the host's TPM vouches for exactly this quote of exactly this guest.

Checks, in order:

``host.key``         the host layer is of the host that is trusted for this guest
``host.guest``       it is about the quote that is in this evidence
``host.log``         it is about the whole log of the launch that is in this evidence
``host.descriptor``  it is about the machine that the launch measured
``host.vtpm``        that machine's TPM is the one whose EK is trusted
``host.counter``     its counter is a monotonic counter of the host's TPM, with that value
``host.rollback``    the counter went on since the last accepted evidence
``host.binding``     the host's quote carries all of it, and this challenge's nonce
``host.modified``    the last epoch with a change is the one that the secure kernel's record names

A host layer that is not there is no error here: ``appraise`` says that it is missing.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from undercroft.base import HashAlgorithm, VerificationError
from undercroft.formats.descriptor import descriptor_digest, parse_descriptor
from undercroft.formats.evidence import Challenge, Evidence, SecureKernelRecord, Trust
from undercroft.formats.evidence.hostlayer import (
    NO_DESCRIPTOR,
    HostLayer,
    HostTpmKind,
    guest_quote_digest,
    last_modified_of,
    log_head,
    parse_host_layer,
)
from undercroft.formats.launch import VM_DESCRIPTOR
from undercroft.formats.tpm import (
    NvCertifyInfo,
    PcrSelectionList,
    parse_nv_public,
    parse_public,
    parse_quote,
    parse_statement,
)
from undercroft.verify.ak import AttestationKey, verify_ak
from undercroft.verify.ak_statement import StatementChecks, check_statement
from undercroft.verify.checks import Check
from undercroft.verify.launch import VerifiedLaunch
from undercroft.verify.quote import VerifiedQuote, verify_quote

H1_KEY = Check(
    "H1", "host.key", "the host layer is signed by the trusted host's key", "RFC 9334, 7.4"
)
H2_GUEST = Check(
    "H2", "host.guest", "the host vouches for the guest's quote in this evidence", "docs/formats.md"
)
H3_LOG = Check(
    "H3", "host.log", "the host vouches for the launch's log in this evidence", "docs/formats.md"
)
H4_DESCRIPTOR = Check(
    "H4", "host.descriptor", "the host vouches for the machine in PCR 18", "docs/formats.md"
)
H5_VTPM = Check(
    "H5",
    "host.vtpm",
    "the machine's descriptor names the EK that is trusted for this guest",
    "TCG EK Credential Profile 2.4, 2",
)
H6_COUNTER = Check(
    "H6",
    "host.counter",
    "the counter is an NV counter of the host's TPM, written, and has this value",
    "TPM 2.0 Part 3, 31.16 (TPM2_NV_Certify); Part 2, 13.4 (TPM_NT_COUNTER)",
)
H7_ROLLBACK = Check(
    "H7",
    "host.rollback",
    "the counter is higher than in the last accepted evidence",
    "TPM 2.0 Part 1, 37.2.5",
)
H8_BINDING = Check(
    "H8",
    "host.binding",
    "the host's quote carries the nonce and everything that the layer says",
    "docs/formats.md",
)
H14_MODIFIED = Check(
    "H14",
    "host.modified",
    "the host vouches for the last change that the secure kernel's record names",
    "docs/formats.md",
)
NV = StatementChecks.numbered("H", "host.nv", (9, 10, 11, 12, 13))
CHECKS = (
    H1_KEY,
    H2_GUEST,
    H3_LOG,
    H4_DESCRIPTOR,
    H5_VTPM,
    H6_COUNTER,
    H7_ROLLBACK,
    H8_BINDING,
    NV.magic,
    NV.scheme,
    NV.signature,
    NV.signer,
    NV.nonce,
    H14_MODIFIED,
)

HOST_SELECTION = {HashAlgorithm.SHA256: (*range(11), 14)}
"""The PCRs that a host layer quotes: the host's firmware, boot, kernel and files."""

_TPMA_NV_WRITTEN = 1 << 29
_TPM_NT = 0xF0
_TPM_NT_COUNTER = 0x10
_COUNTER_SIZE = 8


@dataclass(frozen=True, slots=True)
class VerifiedHost:
    """A host layer that vouches for this evidence.

    ``claimed_tpm`` is the collector's word: what the host's TPM is, only its EK can tell.
    ``last_modified`` is 0 where the secure kernel did not say.  ``eventlog`` and ``ima_list`` are
    the host's own logs, bound by its quote and not replayed yet.
    """

    quote: VerifiedQuote
    claimed_tpm: HostTpmKind
    counter: int
    last_modified: int
    eventlog: bytes | None
    ima_list: bytes | None


def verify_host(
    evidence: Evidence,
    launch: VerifiedLaunch | None,
    record: SecureKernelRecord | None,
    trust: Trust,
    challenge: Challenge,
) -> VerifiedHost | None:
    """Verify the host layer of ``evidence``, whose guest layer is verified already.

    None if there is no layer, or nobody to trust it for.  Raises FormatError, or
    VerificationError with one of :data:`CHECKS` or, with ``host.`` before it, of ``quote``.
    """
    if evidence.host_layer is None or not trust.host_ak_public:
        return None
    layer = parse_host_layer(evidence.host_layer)
    if not hmac.compare_digest(layer.quote.claimed_ak_public, trust.host_ak_public):
        raise H1_KEY.failed(
            "the host layer is of another host",
            expected=_short(trust.host_ak_public),
            got=_short(layer.quote.claimed_ak_public),
            remedy="if the guest moved, enrol its new host",
        )
    _check_claims(layer, evidence, launch, trust)
    _check_modified(layer, record)
    bound = layer.bound_to(challenge.nonce)
    ak = verify_ak(parse_public(trust.host_ak_public))
    quote = _verify_quote(layer, ak, bound)
    _check_counter(layer, ak, bound)
    if layer.claims.counter <= trust.host_counter:
        raise H7_ROLLBACK.failed(
            "the host layer is older than one that was accepted",
            expected=f"more than {trust.host_counter}",
            got=layer.claims.counter,
        )
    return VerifiedHost(
        quote,
        layer.claimed_tpm,
        layer.claims.counter,
        layer.claims.last_modified,
        layer.eventlog,
        layer.ima_list,
    )


def _short(public: bytes) -> str:
    return f"TPMT_PUBLIC with SHA-256 {HashAlgorithm.SHA256.hash(public).hex()[:16]}…"


def _check_claims(
    layer: HostLayer, evidence: Evidence, launch: VerifiedLaunch | None, trust: Trust
) -> None:
    """Compare what the layer says it is about with what the evidence holds."""
    claims = layer.claims
    measured = launch.identities.get(VM_DESCRIPTOR) if launch else None
    described = descriptor_digest(measured.data) if measured else NO_DESCRIPTOR
    for check, found, expected, what in (
        (H2_GUEST, claims.guest_quote, guest_quote_digest(evidence.quote), "another quote"),
        (H3_LOG, claims.log_head, log_head(evidence.launch_log), "another log of the launch"),
        (H4_DESCRIPTOR, claims.descriptor, described, "another machine"),
    ):
        if not hmac.compare_digest(found, expected):
            raise check.failed(
                f"the host vouches for {what}", expected=expected.hex(), got=found.hex()
            )
    vtpm = parse_descriptor(measured.data).vtpm if measured else b""
    if vtpm and trust.ek_certificate:
        expected = HashAlgorithm.SHA256.hash(trust.ek_certificate)
        if not hmac.compare_digest(vtpm, expected):
            raise H5_VTPM.failed(
                "the machine was described with another TPM",
                expected=expected.hex(),
                got=vtpm.hex(),
            )


def _check_modified(layer: HostLayer, record: SecureKernelRecord | None) -> None:
    expected, found = last_modified_of(record), layer.claims.last_modified
    if found != expected:
        raise H14_MODIFIED.failed(
            "the host vouches for another last change than the secure kernel tells of",
            expected=expected,
            got=found,
        )


def _verify_quote(layer: HostLayer, ak: AttestationKey, bound: bytes) -> VerifiedQuote:
    item = layer.quote
    quote = parse_quote(item.attest, item.signature, item.claimed_pcrs)
    try:
        return verify_quote(quote, ak, bound, PcrSelectionList.of(HOST_SELECTION))
    except VerificationError as error:
        if error.check == "quote.nonce":
            raise H8_BINDING.failed(
                "the host's quote does not carry this nonce and what the layer says: it answers "
                "another challenge, or the layer was changed",
                expected=error.expected,
                got=error.got,
            ) from error
        raise VerificationError(
            f"host.{error.check}",
            error.what,
            expected=error.expected,
            got=error.got,
            remedy=error.remedy,
        ) from error


def _check_counter(layer: HostLayer, ak: AttestationKey, bound: bytes) -> None:
    statement = parse_statement(layer.nv_attest, layer.nv_signature)
    info = statement.attest.attested
    if not isinstance(info, NvCertifyInfo):
        raise H6_COUNTER.failed("not TPM2_NV_Certify's statement", got=statement.attest.type)
    check_statement(statement.attest, statement.attest_bytes, statement.signature, ak, bound, NV)
    public = parse_nv_public(layer.nv_public)
    if (
        public.name != info.index_name
        or public.attributes & _TPM_NT != _TPM_NT_COUNTER
        or not public.attributes & _TPMA_NV_WRITTEN
    ):
        raise H6_COUNTER.failed("the certified NV index is no counter", got=hex(public.attributes))
    expected = layer.claims.counter.to_bytes(_COUNTER_SIZE, "big")
    if info.offset != 0 or info.nv_contents != expected:
        raise H6_COUNTER.failed(
            "the counter has another value", expected=expected.hex(), got=info.nv_contents.hex()
        )
