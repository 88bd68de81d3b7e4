"""The layer under the guest: is a host vouching for it, and what vouches for the host?

A host layer is demanded where the host is known (``Trust.host_ak_public``).  Elsewhere its
absence is stated: a result always shows whether a host layer was appraised.
"""

from __future__ import annotations

from collections.abc import Iterator

from undercroft.appraise.model import Judgement, failed, passed, stated
from undercroft.base import Finding, JsonValue, Outcome
from undercroft.formats.ear import TrustClaim
from undercroft.formats.evidence import Trust
from undercroft.formats.evidence.hostlayer import HostTpmKind
from undercroft.policy import Action
from undercroft.verify.deepquote import VerifiedHost

CLAIM = TrustClaim.INSTANCE_IDENTITY
SOURCE = "RFC 9334, 3.2 (layered attestation)"


def appraise_host(host: VerifiedHost | None, trust: Trust) -> Iterator[Judgement]:
    """Judge the host layer, and state what it does not cover."""
    if host is None:
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
    if host.claimed_tpm is HostTpmKind.HARDWARE:
        what = "the collector says that the host's TPM is a device of the host"
    else:
        what = "the host's TPM is a program that stands in for one: it binds, but proves no host"
    kind: dict[str, JsonValue] = {"tpm": host.claimed_tpm.value}
    yield stated(Finding("host.tpm", Outcome.UNKNOWN, what, kind, SOURCE))
    what = "the host's PCRs are quoted, but its boot log and its files are not in the evidence"
    yield stated(Finding("host.boot", Outcome.UNKNOWN, what, {}, SOURCE))
