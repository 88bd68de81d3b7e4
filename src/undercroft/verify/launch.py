"""The log of the secure kernel's launch, replayed to the quoted PCR 17, 18 and 19.

Every digest of this log is the hash of its event, so that once the replay equals the quote, the
events' bytes are what was measured.  Checks:

``launch.log``     the log is one that a launch of the secure kernel leaves
``launch.digest``  every digest is the hash of its event
``launch.replay``  the log replays to the quoted PCRs 17 to 19, in every quoted bank
``launch.key``     the attestation key's only authorization is the secure kernel's locality

Who made the launch is not said by the replay.  A D-RTM event sets PCR 17 to H(0..0 || H(event)),
while a PCR that was only extended starts from ff..ff: so it was made at locality 4, which the
multiplexer keeps from the guest.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from undercroft.base import FormatError, HashAlgorithm, PcrBank
from undercroft.formats.eventlog import Event, EventType, LogFormat, parse_eventlog
from undercroft.formats.launch import (
    LAUNCH,
    LAUNCH_PCRS,
    MANIFEST,
    PCR_IDENTITY,
    PCR_MANIFEST,
    PCR_RECORD,
    TAG_IDENTITY,
    TAG_MANIFEST,
    TAG_RECORD,
    LaunchEvent,
    parse_launch_event,
    parse_launch_text,
)
from undercroft.formats.tpm import ObjectAttributes, Public
from undercroft.verify.checks import Check
from undercroft.verify.epochs import RecordedRun, recorded_runs

W1_LOG = Check(
    "W1",
    "launch.log",
    "the log begins with the manifest, then the launch's reason, and has nothing else than "
    "identities and records",
    "docs/formats.md",
)
W2_DIGEST = Check(
    "W2", "launch.digest", "every digest in the log is the hash of its event", "PFP 1.06, 10.2.1"
)
W3_REPLAY = Check(
    "W3",
    "launch.replay",
    "PCR 17, 18 and 19 are quoted, and what the log replays to from all zeros",
    "TPM 2.0 Part 1, 34.2; PC Client Platform TPM Profile 1.05, 4.6.2",
)
W4_KEY = Check(
    "W4",
    "launch.key",
    "the attestation key's only authorization is the secure kernel's locality",
    "TPM 2.0 Part 1, 19.7.3 (userWithAuth); Part 3, 23.8 (TPM2_PolicyLocality)",
)
CHECKS = (W1_LOG, W2_DIGEST, W3_REPLAY, W4_KEY)

SECURE_KERNEL_LOCALITY = 2
AK_POLICY = HashAlgorithm.SHA256.hash(
    bytes(32), (0x0000_016F).to_bytes(4, "big"), bytes([1 << SECURE_KERNEL_LOCALITY])
)
"""The policyDigest of TPM2_PolicyLocality(locality 2), SHA-256 (Part 3, 23.8)."""

_PCR_OF_TAG = {TAG_MANIFEST: PCR_MANIFEST, TAG_IDENTITY: PCR_IDENTITY, TAG_RECORD: PCR_RECORD}


@dataclass(frozen=True, slots=True)
class VerifiedLaunch:
    """A launch that a verified quote vouches for.

    ``events`` are all that was measured, in order: the manifest first, then (PCR 18) the launch's
    own text and its identities, and (PCR 19) the records.  ``runs`` are the runs of the secure
    kernel whose epochs are among the records.
    """

    events: tuple[LaunchEvent, ...]
    reason: str
    number: int
    banks: tuple[HashAlgorithm, ...]
    runs: tuple[RecordedRun, ...] = ()

    @property
    def manifest(self) -> LaunchEvent:
        """What PCR 17 got."""
        return self.events[0]

    @property
    def identities(self) -> Mapping[str, LaunchEvent]:
        """What PCR 18 got after the launch's own text, by name."""
        return {e.name: e for e in self.events[2:] if e.tag == TAG_IDENTITY}

    @property
    def records(self) -> tuple[LaunchEvent, ...]:
        """What PCR 19 got."""
        return tuple(event for event in self.events if event.tag == TAG_RECORD)


def verify_launch(data: bytes, quoted: Sequence[PcrBank]) -> VerifiedLaunch:
    """Compare a launch's log with PCR values that a verified quote vouches for.

    Raises FormatError, or VerificationError with one of :data:`CHECKS` or ``launch.epochs``.
    """
    log = parse_eventlog(data)
    if log.format is not LogFormat.CRYPTO_AGILE or log.padding:
        raise W1_LOG.failed("not a whole crypto-agile log", got=log.format.value)
    events = [(event, _checked(event)) for event in log.events[1:]]
    launch = _launch([event for _, event in events], tuple(bank.algorithm for bank in quoted))
    for bank in quoted:
        _replay([event for event, _ in events], bank)
    if not quoted:
        raise W3_REPLAY.failed("no PCR was quoted")
    return launch


def verify_launch_key(public: Public) -> Public:
    """Check that nobody at the guest's locality can sign with this attestation key.

    Returns it; raises VerificationError (W4).
    """
    by_auth = ObjectAttributes.USER_WITH_AUTH & public.attributes
    if by_auth or public.name_alg is not HashAlgorithm.SHA256 or public.auth_policy != AK_POLICY:
        raise W4_KEY.failed(
            "the attestation key can be used by more than the secure kernel",
            expected=f"policy {AK_POLICY.hex()} and no USER_WITH_AUTH",
            got=f"policy {public.auth_policy.hex()}, {' '.join(public.attributes.labels)}",
            remedy="enrol a guest that was started with its TPM multiplexer",
        )
    return public


def _checked(event: Event) -> LaunchEvent:
    """Return an event of the log, of which every digest proves its bytes."""
    if event.type != EventType.EV_EVENT_TAG or event.other_digests:
        raise W1_LOG.failed(
            f"event {event.index} is not one of a launch", expected="EV_EVENT_TAG", got=event.type
        )
    for algorithm, digest in event.digests.items():
        if not hmac.compare_digest(algorithm.hash(event.data), digest):
            raise W2_DIGEST.failed(
                f"the {algorithm} digest of event {event.index} is not of its data",
                expected=algorithm.hash(event.data).hex(),
                got=digest.hex(),
            )
    tagged = parse_launch_event(event.data)
    if _PCR_OF_TAG.get(tagged.tag) != event.pcr:
        raise W1_LOG.failed(
            f"event {event.index} does not belong in PCR {event.pcr}", got=f"{tagged.tag:#x}"
        )
    return tagged


def _launch(events: Sequence[LaunchEvent], banks: tuple[HashAlgorithm, ...]) -> VerifiedLaunch:
    """Check the order: manifest, reason, then identities, then records; no identity twice."""
    heads = [(event.tag, event.name) for event in events[:2]]
    if heads != [(TAG_MANIFEST, MANIFEST), (TAG_IDENTITY, LAUNCH)]:
        raise W1_LOG.failed(
            "the log does not begin as a launch does", expected=f"{MANIFEST}, {LAUNCH}", got=heads
        )
    rest = events[2:]
    if any(event.tag == TAG_MANIFEST for event in rest):
        raise W1_LOG.failed("a second manifest")
    tags = [event.tag for event in rest]
    if tags != sorted(tags):
        raise W1_LOG.failed("an identity that was measured after a record")
    names = [event.name for event in events[1:] if event.tag == TAG_IDENTITY]
    if len(set(names)) != len(names):
        raise W1_LOG.failed("an identity that was measured twice", got=sorted(names))
    try:
        reason, number = parse_launch_text(events[1].data)
    except FormatError as error:
        raise W1_LOG.failed("the launch's reason cannot be read", got=error) from error
    runs = recorded_runs(event for event in events if event.tag == TAG_RECORD)
    return VerifiedLaunch(tuple(events), reason, number, banks, runs)


def _replay(events: Sequence[Event], bank: PcrBank) -> None:
    values = dict.fromkeys(LAUNCH_PCRS, bytes(bank.algorithm.size))
    for event in events:
        digest = event.digests.get(bank.algorithm)
        if digest is None:
            raise W3_REPLAY.failed(f"event {event.index} has no {bank.algorithm} digest")
        values[event.pcr] = bank.algorithm.hash(values[event.pcr], digest)
    for pcr, value in values.items():
        found = bank.values.get(pcr)
        if found is None or not hmac.compare_digest(found, value):
            raise W3_REPLAY.failed(
                f"PCR {pcr} of the {bank.algorithm} bank is not what the launch's log replays to",
                expected=value.hex(),
                got="not quoted" if found is None else found.hex(),
                remedy="take the log and the quote again; if they still differ, the log was "
                "changed, or the launch was not the secure kernel's",
            )
