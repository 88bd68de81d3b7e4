"""A case: one folder with everything that a verdict rests on, so that anyone can reproduce it.

==================  ==========================================================================
file                what
==================  ==========================================================================
evidence.cmw        the evidence as it was collected
challenge.json      the nonce and what was asked for
trust.json          the attestation key that may sign for this guest
references.json     the reference values
policy.toml         the policy
tables/             the tables of packaged files that the references name, by their digests
host-…              ``host-references.json``, ``host-policy.toml``: what the host was judged by
accepted.json       what had been accepted of that key before; absent if nothing was
result.jwt          the attestation result (EAR), signed by the verifier
verifier.pem        the verifier's public key
==================  ==========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from undercroft.appraise.host import HostRules
from undercroft.base import EnvironmentFault, FormatError
from undercroft.formats.evidence import (
    Challenge,
    Evidence,
    Trust,
    encode_challenge,
    encode_evidence,
    encode_trust,
    parse_challenge,
    parse_evidence,
    parse_trust,
)
from undercroft.packages.filestore import open_table
from undercroft.policy import Policy, encode_policy
from undercroft.reference.archive import FileArchive
from undercroft.reference.model import ReferenceSet
from undercroft.reference.serialise import encode_reference_set, parse_reference_set
from undercroft.service.accepted import encode_accepted, parse_accepted
from undercroft.service.policies import read_plain_policy
from undercroft.verify.quote import AcceptedState

EVIDENCE = "evidence.cmw"
CHALLENGE = "challenge.json"
TRUST = "trust.json"
REFERENCES = "references.json"
POLICY = "policy.toml"
ACCEPTED = "accepted.json"
TABLES = "tables"
HOST_REFERENCES, HOST_POLICY = "host-references.json", "host-policy.toml"
RESULT = "result.jwt"
VERIFIER = "verifier.pem"


@dataclass(frozen=True, slots=True)
class Case:
    """What a verdict rests on: evidence, what was asked, whom we trust, and what is good.

    ``last`` is the state of the evidence that was accepted before it, None if there was none;
    ``host`` is what the host under the guest is judged by, None if nothing is known of it.
    ``tables`` are the tables of packaged files that ``references`` names.
    """

    evidence: Evidence
    challenge: Challenge
    trust: Trust
    references: ReferenceSet
    policy: Policy
    last: AcceptedState | None = None
    host: HostRules | None = None
    tables: tuple[FileArchive, ...] = ()


def save_case(folder: Path, case: Case) -> None:
    """Write ``case`` into ``folder``, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EVIDENCE).write_bytes(encode_evidence(case.evidence))
    (folder / CHALLENGE).write_bytes(encode_challenge(case.challenge))
    (folder / TRUST).write_bytes(encode_trust(case.trust))
    (folder / REFERENCES).write_bytes(encode_reference_set(case.references))
    (folder / POLICY).write_text(encode_policy(case.policy))
    for table in case.tables:
        (folder / TABLES).mkdir(exist_ok=True)
        (folder / TABLES / f"{table.id.hex()}.files").write_bytes(table.data)
    for name, text in _host_files(case.host).items():
        if text is None:
            (folder / name).unlink(missing_ok=True)
        else:
            (folder / name).write_bytes(text)
    if case.last is None:
        (folder / ACCEPTED).unlink(missing_ok=True)
    else:
        (folder / ACCEPTED).write_bytes(encode_accepted(case.trust.guest, case.last))


def load_case(
    folder: Path,
    *,
    trust: Path | None = None,
    references: Path | None = None,
    policy: Path | None = None,
    tables: Path | None = None,
) -> Case:
    """Read a case; a part given by its own path is taken from there and not from the folder.

    Tables of packaged files that are not in the folder are looked for in ``tables``.

    Raises FormatError for a part that is not well formed, EnvironmentFault for one that is not
    there.
    """
    evidence = parse_evidence(read_part(folder / EVIDENCE))
    known = read_references(references or folder / REFERENCES)
    return Case(
        evidence=evidence,
        challenge=parse_challenge(read_part(folder / CHALLENGE)),
        trust=parse_trust(read_part(trust or folder / TRUST)),
        references=known,
        policy=read_policy(policy or folder / POLICY),
        last=_last(folder / ACCEPTED),
        host=_host(folder),
        tables=read_tables(known, folder / TABLES, *([tables] if tables else [])),
    )


def read_tables(references: ReferenceSet, *folders: Path) -> tuple[FileArchive, ...]:
    """Map the tables that ``references`` names, each from the first of ``folders`` that has it.

    Raises EnvironmentFault for one that none has, FormatError for one that is damaged.
    """
    found = []
    for name in references.archives:
        paths = [folder / f"{name}.files" for folder in folders]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise EnvironmentFault(
                "a table of packaged files is not here",
                where=f"{name}.files",
                expected=f"in {' or '.join(map(str, folders))}",
                remedy="undercroft reference packages build makes it again, or copy it there",
            )
        found.append(open_table(path, name))
    return tuple(found)


def _host_files(rules: HostRules | None) -> dict[str, bytes | None]:
    if rules is None:
        return {HOST_REFERENCES: None, HOST_POLICY: None}
    return {
        HOST_REFERENCES: encode_reference_set(rules.references),
        HOST_POLICY: encode_policy(rules.policy).encode(),
    }


def _host(folder: Path) -> HostRules | None:
    if not (folder / HOST_REFERENCES).exists():
        return None
    return HostRules(read_references(folder / HOST_REFERENCES), read_policy(folder / HOST_POLICY))


def read_references(path: Path) -> ReferenceSet:
    """Read a file of reference values.  Raises FormatError, EnvironmentFault."""
    return parse_reference_set(read_part(path))


def _last(path: Path) -> AcceptedState | None:
    return parse_accepted(read_part(path)) if path.exists() else None


def read_policy(path: Path) -> Policy:
    """Read a policy file.  Raises FormatError, EnvironmentFault."""
    return read_plain_policy(path, read_part(path))


def read_part(path: Path) -> bytes:
    """Read one file of a case.  Raises EnvironmentFault, naming the file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise EnvironmentFault(
            f"cannot read: {error.strerror}",
            where=str(path),
            remedy="a case is a folder as `undercroft evidence collect` writes it",
        ) from error


def save_result(folder: Path, result: str, verifier: ec.EllipticCurvePublicKey) -> None:
    """Write the signed attestation result and the key that verifies it."""
    (folder / RESULT).write_text(result + "\n")
    (folder / VERIFIER).write_bytes(
        verifier.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


def load_result(folder: Path) -> tuple[str, ec.EllipticCurvePublicKey] | None:
    """Return the saved result and the verifier's key; None if the case has no result yet.

    Raises FormatError if the key is not a P-256 public key in PEM.
    """
    if not (folder / RESULT).is_file():
        return None
    try:
        key = serialization.load_pem_public_key(read_part(folder / VERIFIER))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FormatError(VERIFIER, 0, f"not a public key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise FormatError(VERIFIER, 0, "not an elliptic-curve key", got=type(key).__name__)
    return read_part(folder / RESULT).decode(errors="replace").strip(), key
