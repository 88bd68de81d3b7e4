"""A policy from its signed envelope: whose, of which issue, and not older than one seen before.

Three lives, after BEAR's: the keys that are believed are long-lived and set at enrolment; a
policy is medium-lived, signed, and replaced by a new issue with a higher ``serial``; references
and the states of packages are short-lived files.  So an update needs a signature and nobody has
to be enrolled again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from undercroft.base import FormatError
from undercroft.policy import Policy, parse_policy
from undercroft.verify.policy_signature import Y3_ROLLBACK, verify_policy_text


@dataclass(frozen=True, slots=True)
class VerifiedPolicy:
    """A policy that keys which are believed signed; ``signers`` are their ids."""

    policy: Policy
    signers: tuple[str, ...]


def verify_policy(
    envelope: bytes,
    keys: Sequence[Ed25519PublicKey],
    *,
    seen: Mapping[str, int],
    threshold: int = 1,
    others: Callable[[str], str | None] | None = None,
) -> VerifiedPolicy:
    """Return the policy in ``envelope``.

    ``seen`` gives the highest serial seen of each policy id; ``others`` the policies that it may
    extend, which have to be as trusted as the keys.  Raises FormatError, VerificationError.
    Whether it has expired is for the appraisal to say: it is judged at the appraisal's time.
    """
    text, signers = verify_policy_text(envelope, keys, threshold)
    try:
        policy = parse_policy(text.decode(), others)
    except UnicodeDecodeError as error:
        raise FormatError("policy", error.start, "not UTF-8 text") from error
    if not policy.serial:
        raise FormatError("policy", 0, "a signed policy has a serial, from 1 on")
    newest = seen.get(policy.id, 0)
    if policy.serial < newest:
        raise Y3_ROLLBACK.failed(
            f"policy {policy.id} is an older issue than one that was seen",
            expected=f"serial {newest} or above",
            got=f"serial {policy.serial}",
            remedy="take the newest issue; one that went too far needs a higher serial",
        )
    return VerifiedPolicy(policy, signers)
