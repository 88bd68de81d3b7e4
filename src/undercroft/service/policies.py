"""Policies on disk: plain or signed, what they extend, whose are believed, which issue was last.

==============================  ==================================================================
``policies/trust.json``         the keys that are believed, and how many of them have to sign
``policies/seen.json``          the highest serial seen of each policy
==============================  ==================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec

import undercroft.policy
from undercroft.appraise.signed_policy import VerifiedPolicy, verify_policy
from undercroft.base import EnvironmentFault, FormatError
from undercroft.formats import strict_json
from undercroft.policy import Policy, parse_policy
from undercroft.verify.profile_signature import load_public_key

SHIPPED = Path(undercroft.policy.__file__).parent / "policies"
_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_LIMIT = 1 << 20
_TRUST = "undercroft.policy-trust/1"


class PolicyTrust(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose policies are believed: Ed25519 keys (PEM), ``threshold`` of which have to sign."""

    format: str
    keys: list[str]
    threshold: int = 1


def policies_beside(folder: Path | None) -> Callable[[str], str | None]:
    """Return what ``extends`` looks policies up with: those in ``folder``, and the shipped ones."""

    def text(name: str) -> str | None:
        if not _NAME.fullmatch(name):
            return None
        for place in filter(None, (folder, SHIPPED)):
            path = place / f"{name}.toml"
            if path.is_file():
                return path.read_text(errors="surrogateescape")
        return None

    return text


def read_plain_policy(path: Path, data: bytes) -> Policy:
    """Parse the policy file ``path``, which holds ``data``.  Raises FormatError."""
    try:
        return parse_policy(data.decode(), policies_beside(path.parent))
    except UnicodeDecodeError as error:
        raise FormatError("policy", error.start, "not UTF-8 text") from error


def is_signed(data: bytes) -> bool:
    """Return whether a policy file is an envelope; no policy in TOML begins so."""
    return data.lstrip()[:1] == b"{"


class PolicyFolder:
    """The trust in policies and their last issues, under ``root`` (``<home>/policies``)."""

    def __init__(self, root: Path) -> None:
        self._trust = root / "trust.json"
        self._seen = root / "seen.json"

    def believe(self, keys: list[bytes], threshold: int = 1) -> PolicyTrust:
        """Believe these keys (PEM) and no others from now on.  Raises FormatError."""
        for key in keys:
            load_public_key(key)
        if not 1 <= threshold <= len(set(keys)):
            raise FormatError("policy trust", 0, "more signatures than keys", got=threshold)
        trust = PolicyTrust(_TRUST, [key.decode() for key in dict.fromkeys(keys)], threshold)
        _write(self._trust, strict_json.encode(trust))
        return trust

    def trust(self) -> PolicyTrust:
        """Return whose policies are believed.  Raises EnvironmentFault if nobody's are."""
        if not self._trust.is_file():
            raise EnvironmentFault(
                "no key is believed for policies",
                where=str(self._trust),
                remedy="undercroft policy trust KEY.pem",
            )
        data = self._trust.read_bytes()
        trust = strict_json.parse(data, PolicyTrust, "policy trust", limit=_LIMIT)
        if trust.format != _TRUST:
            raise FormatError("policy trust", 0, "another format", got=trust.format[:80])
        return trust

    def seen(self) -> dict[str, int]:
        """Return the highest serial seen of each policy."""
        if not self._seen.is_file():
            return {}
        return strict_json.parse(
            self._seen.read_bytes(), dict[str, int], "policy serials", limit=_LIMIT
        )

    def accept(self, envelope: bytes) -> VerifiedPolicy:
        """Return the signed policy in ``envelope``, and remember its serial.

        It may extend shipped policies only, which are as trusted as this program.  Raises
        FormatError, VerificationError, EnvironmentFault.
        """
        trust, seen = self.trust(), self.seen()
        verified = verify_policy(
            envelope,
            [load_public_key(key.encode()) for key in trust.keys],
            seen=seen,
            threshold=trust.threshold,
            others=policies_beside(None),
        )
        policy = verified.policy
        if policy.serial > seen.get(policy.id, 0):
            _write(self._seen, msgspec.json.encode({**seen, policy.id: policy.serial}) + b"\n")
        return verified

    def read(self, path: Path) -> Policy:
        """Read a policy file; one that is signed has to be acceptable."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise EnvironmentFault(f"cannot read: {error.strerror}", where=str(path)) from error
        return self.accept(data).policy if is_signed(data) else read_plain_policy(path, data)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_bytes(data)
    temporary.replace(path)
