"""The layer under the guest: is a host vouching for it, and what vouches for the host?

A host layer is demanded where the host is known (``Trust.host_ak_public``).  Elsewhere its
absence is stated: a result always shows whether a host layer was appraised.

The host's boot log and IMA list are judged by the code that judges a guest's, against reference
values and a policy of the host's own; what is found has ``host.`` before its id.  Without
reference values it is only stated that they replay to what the host's TPM quoted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from msgspec.structs import replace as changed

from undercroft.appraise.boot import appraise_boot
from undercroft.appraise.files import appraise_files, judge_of
from undercroft.appraise.model import Judgement, failed, passed, stated
from undercroft.appraise.secureboot import appraise_secure_boot
from undercroft.appraise.verified import VerifiedEvidence
from undercroft.base import Finding, FormatError, JsonValue, Outcome
from undercroft.formats.ear import TrustClaim
from undercroft.formats.evidence import Trust
from undercroft.formats.evidence.hostlayer import HostTpmKind
from undercroft.formats.tpm.certificate import parse_certificate
from undercroft.policy import Action, Policy
from undercroft.reference.model import ReferenceSet
from undercroft.verify.deepquote import VerifiedHost

CLAIM = TrustClaim.INSTANCE_IDENTITY
SOURCE = "RFC 9334, 3.2 (layered attestation)"


class HostRules(NamedTuple):
    """What a host's boot and files are judged by."""

    references: ReferenceSet
    policy: Policy


def appraise_host(verified: VerifiedEvidence, rules: HostRules | None) -> Iterator[Judgement]:
    """Judge the host layer, and what is known of the host itself."""
    host, logs, trust = verified.host, verified.host_evidence, verified.trust
    if host is None or logs is None:
        known = bool(trust.host_ak_public)
        what = "no host layer: nothing is known of the machine that carries this guest"
        finding = Finding("host.layer", Outcome.UNKNOWN, what, {"host-known": known}, SOURCE)
        yield failed(finding, CLAIM, Action.INSUFFICIENT) if known else stated(finding)
        return
    details: dict[str, JsonValue] = {
        "counter": host.counter,
        "last-modified": host.last_modified,
        "reset-count": host.quote.reset_count,
    }
    what = f"the host's TPM vouches for this quote, log and machine, as number {host.counter}"
    yield passed(Finding("host.layer", Outcome.PASS, what, details, SOURCE), CLAIM)
    yield _tpm(host, trust)
    yield from _boot(logs, rules)


def _tpm(host: VerifiedHost, trust: Trust) -> Judgement:
    """Say what stands behind the host's key: whose TPM, by whose word."""
    stand_in = host.claimed_tpm is HostTpmKind.STAND_IN
    details: dict[str, JsonValue] = {"tpm": host.claimed_tpm.value}
    issuer = _issuer(trust.host_ek_certificate)
    if issuer:
        details["ek-issuer"] = issuer
        by = f"its key is tied to an EK that {issuer} certified"
    else:
        by = "nobody checked its EK"
    if stand_in:
        what = "the host's TPM is a program that stands in for one: it binds, but proves no host; "
        what += by
    else:
        what = f"the collector says that the host's TPM is a device of the host; {by}"
    outcome = Outcome.PASS if issuer and not stand_in else Outcome.UNKNOWN
    return stated(Finding("host.tpm", outcome, what, details, SOURCE))


def _issuer(certificate: bytes) -> str:
    """Return who certified the host's EK; empty if nobody did, as far as can be read."""
    try:
        return parse_certificate(certificate).issuer if certificate else ""
    except FormatError:
        return ""


def _boot(host: VerifiedEvidence, rules: HostRules | None) -> Iterator[Judgement]:
    yield _replayed(host, judged=rules is not None)
    if rules is None:
        return
    references, policy = rules
    for judgement in (
        *appraise_boot(host, references, policy),
        *appraise_secure_boot(host.log, policy),
        *appraise_files(host, judge_of(references, policy), policy),
    ):
        finding = changed(judgement.finding, id=f"host.{judgement.finding.id}")
        yield changed(judgement, finding=finding)


def _replayed(host: VerifiedEvidence, *, judged: bool) -> Judgement:
    """State which of the host's logs there are: those that are replay to its quote."""
    there = {"boot log": host.log is not None, "IMA list": host.ima is not None}
    have = " and ".join(name for name, is_there in there.items() if is_there)
    lack = " or ".join(name for name, is_there in there.items() if not is_there)
    if not have:
        what = "the host's PCRs are quoted, but neither its boot log nor its IMA list is there"
    else:
        what = f"the host's {have} replay to what its TPM quoted" + (f"; no {lack}" if lack else "")
        what += "" if judged else "; there are no reference values to compare with"
    outcome = Outcome.PASS if judged and not lack else Outcome.UNKNOWN
    unexplained = sorted(host.log.unexplained) if host.log else []
    details: dict[str, JsonValue] = {"judged": judged, "unexplained-pcrs": [*unexplained]}
    return stated(Finding("host.boot", outcome, what, details, SOURCE))
