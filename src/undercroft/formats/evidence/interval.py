"""Epochs: what was covered from t0 to t1, by which channels, and everything that changed.

An epoch is deterministic CBOR, a map with text keys; ``previous`` is the SHA-256 of the epoch
before it (32 zero bytes in the first), so that the last one's digest stands for all of them::

    {"version": 1, "session": bstr .size 16, "sequence": uint, "previous": bstr .size 32,
     "t0": uint, "t1": uint, "mode": tstr, "cause": tstr,
     "ranges": [* {"name": tstr, "extents": [* [vaddr: uint, paddr: uint, size: uint]],
                   "digest": bstr .size 32, "last-modified": uint}],
     "channels": [* tstr],
     "uncovered": [* {"kind": tstr, "pid": uint, "detail": tstr}],
     "blind": [* {"t0": uint, "t1": uint, "range": tstr, "reason": tstr}],
     "changes": [* {"time": uint, "range": tstr, "paddr": uint, "vaddr": uint, "symbol": tstr,
                    "rule": tstr, "before": bstr, "after": bstr, "thread": tstr, "writes": uint,
                    "open": uint, "lawful": bool, "landed": bool, "reason": tstr}],
     "unsettled": uint, "writes": uint,
     "sampling": {"commitment": bstr .size 32, "revealed": bstr, "mean": uint, "times": [* uint]}}

Times are ns since the Unix epoch by the secure kernel's clock, which within a session only goes
forward.  A session is one run of the secure kernel: a restart begins another, and the time
between is a hole.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from undercroft.base import FormatError
from undercroft.formats import cbor
from undercroft.formats.evidence.record import MAX_NS
from undercroft.formats.reader import BoundedReader

FORMAT = "Epoch"
CHAIN_FORMAT = "EpochChain"
VERSION = 1
LIMITS = cbor.Limits(depth=6, items=1 << 18, size=8 << 20)
FIRST = bytes(32)
"""What the first epoch of a session has in the place of a predecessor's digest."""
MAX_CHAIN = 1 << 20
MAX_BYTES = 64
"""Bytes that a change shows of each side at most."""


@dataclass(frozen=True, slots=True)
class CoveredRange:
    """A set of guest memory that was covered during the whole epoch, blind windows aside.

    ``extents`` are (virtual address or 0, guest-physical address, size).  ``digest`` is what
    stood there at the end: SHA-256 over the SHA-256 of each page's covered bytes, by ascending
    page.  ``last_modified`` is the number of the epoch in which a byte last changed; 0 means not
    since the session's first epoch began.
    """

    name: str
    extents: tuple[tuple[int, int, int], ...]
    digest: bytes
    last_modified: int


@dataclass(frozen=True, slots=True)
class Uncovered:
    """A way to write the guest's memory that no trap sees."""

    kind: str
    pid: int
    detail: str


@dataclass(frozen=True, slots=True)
class BlindWindow:
    """A time in which a range, or part of it, was not covered, and why."""

    t0: int
    t1: int
    range: str
    reason: str


@dataclass(frozen=True, slots=True)
class Change:
    """One change of covered memory, or one refused attempt.

    ``writes`` stores made it, each trapped; ``open_ns`` is how long its page was writable for
    them in all.  ``landed`` is False if the write was refused.  ``rule`` names the mechanism
    whose place it is, empty if there is none.
    """

    time: int
    range: str
    paddr: int
    vaddr: int
    symbol: str
    rule: str
    before: bytes
    after: bytes
    thread: str
    writes: int
    open_ns: int
    lawful: bool
    landed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """When what has no frame (registers) was looked at.

    The times follow from a secret seed.  ``commitment`` is the SHA-256 of this epoch's seed;
    ``revealed`` is the seed of the epoch before (empty in the first).  ``mean_ns`` is the mean
    distance of two samples.
    """

    commitment: bytes
    revealed: bytes
    mean_ns: int
    times: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Epoch:
    """One link of the chain.

    ``unsettled`` places were in the middle of being patched when it ended: their changes stand in
    the epoch after it.
    """

    session: bytes
    sequence: int
    previous: bytes
    t0: int
    t1: int
    mode: str
    cause: str
    ranges: tuple[CoveredRange, ...]
    channels: tuple[str, ...]
    uncovered: tuple[Uncovered, ...]
    blind: tuple[BlindWindow, ...]
    changes: tuple[Change, ...]
    unsettled: int
    writes: int
    sampling: Sampling

    def __post_init__(self) -> None:
        if not 0 <= self.t0 <= self.t1 < MAX_NS:
            raise ValueError("t0 <= t1 < 2^63 ns does not hold")
        if (self.sequence == 1) != (self.previous == FIRST):
            raise ValueError("the first epoch, and no other, has no predecessor")


_Size16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
_Size32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Shown = Annotated[bytes, msgspec.Meta(max_length=MAX_BYTES)]
_Seed = Annotated[bytes, msgspec.Meta(max_length=32)]
_Count = Annotated[int, msgspec.Meta(ge=0)]
_Number = Annotated[int, msgspec.Meta(ge=1)]


class _Wire(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    pass


class _Range(_Wire, frozen=True):
    name: str
    extents: list[tuple[_Count, _Count, _Count]]
    digest: _Size32
    last_modified: _Count


class _Uncovered(_Wire, frozen=True):
    kind: str
    pid: _Count
    detail: str


class _Blind(_Wire, frozen=True):
    t0: _Count
    t1: _Count
    range: str
    reason: str


class _Change(_Wire, frozen=True):
    time: _Count
    range: str
    paddr: _Count
    vaddr: _Count
    symbol: str
    rule: str
    before: _Shown
    after: _Shown
    thread: str
    writes: _Count
    open: _Count
    lawful: bool
    landed: bool
    reason: str


class _Sampling(_Wire, frozen=True):
    commitment: _Size32
    revealed: _Seed
    mean: _Count
    times: list[_Count]


class _Epoch(_Wire, frozen=True):
    version: int
    session: _Size16
    sequence: _Number
    previous: _Size32
    t0: _Count
    t1: _Count
    mode: str
    cause: str
    ranges: list[_Range]
    channels: list[str]
    uncovered: list[_Uncovered]
    blind: list[_Blind]
    changes: list[_Change]
    unsettled: _Count
    writes: _Count
    sampling: _Sampling


def parse_epoch(data: bytes) -> Epoch:
    """Parse an epoch.  Raises FormatError; ``encode_epoch`` of the result gives back ``data``."""
    wire = cbor.convert(cbor.decode(data, FORMAT, limits=LIMITS), _Epoch, FORMAT)
    if wire.version != VERSION:
        raise FormatError(FORMAT, 0, "unknown version", expected=VERSION, got=wire.version)
    sampling = wire.sampling
    try:
        return Epoch(
            session=wire.session,
            sequence=wire.sequence,
            previous=wire.previous,
            t0=wire.t0,
            t1=wire.t1,
            mode=wire.mode,
            cause=wire.cause,
            ranges=tuple(
                CoveredRange(r.name, tuple(r.extents), r.digest, r.last_modified)
                for r in wire.ranges
            ),
            channels=tuple(wire.channels),
            uncovered=tuple(Uncovered(u.kind, u.pid, u.detail) for u in wire.uncovered),
            blind=tuple(BlindWindow(b.t0, b.t1, b.range, b.reason) for b in wire.blind),
            changes=tuple(map(_change, wire.changes)),
            unsettled=wire.unsettled,
            writes=wire.writes,
            sampling=Sampling(
                sampling.commitment, sampling.revealed, sampling.mean, tuple(sampling.times)
            ),
        )
    except ValueError as error:
        raise FormatError(FORMAT, 0, str(error)) from error


def _change(wire: _Change) -> Change:
    return Change(
        time=wire.time,
        range=wire.range,
        paddr=wire.paddr,
        vaddr=wire.vaddr,
        symbol=wire.symbol,
        rule=wire.rule,
        before=wire.before,
        after=wire.after,
        thread=wire.thread,
        writes=wire.writes,
        open_ns=wire.open,
        lawful=wire.lawful,
        landed=wire.landed,
        reason=wire.reason,
    )


def encode_epoch(epoch: Epoch) -> bytes:
    """Encode ``epoch``.  Raises ValueError for a value that has no encoding (our mistake)."""
    sampling = epoch.sampling
    return cbor.encode(
        {
            "version": VERSION,
            "session": epoch.session,
            "sequence": epoch.sequence,
            "previous": epoch.previous,
            "t0": epoch.t0,
            "t1": epoch.t1,
            "mode": epoch.mode,
            "cause": epoch.cause,
            "ranges": [
                {
                    "name": r.name,
                    "extents": r.extents,
                    "digest": r.digest,
                    "last-modified": r.last_modified,
                }
                for r in epoch.ranges
            ],
            "channels": epoch.channels,
            "uncovered": [
                {"kind": u.kind, "pid": u.pid, "detail": u.detail} for u in epoch.uncovered
            ],
            "blind": [
                {"t0": b.t0, "t1": b.t1, "range": b.range, "reason": b.reason} for b in epoch.blind
            ],
            "changes": [_encode_change(change) for change in epoch.changes],
            "unsettled": epoch.unsettled,
            "writes": epoch.writes,
            "sampling": {
                "commitment": sampling.commitment,
                "revealed": sampling.revealed,
                "mean": sampling.mean_ns,
                "times": sampling.times,
            },
        }
    )


def _encode_change(change: Change) -> dict[str, object]:
    return {
        "time": change.time,
        "range": change.range,
        "paddr": change.paddr,
        "vaddr": change.vaddr,
        "symbol": change.symbol,
        "rule": change.rule,
        "before": change.before,
        "after": change.after,
        "thread": change.thread,
        "writes": change.writes,
        "open": change.open_ns,
        "lawful": change.lawful,
        "landed": change.landed,
        "reason": change.reason,
    }


def sample_times(seed: bytes, t0: int, mean_ns: int) -> Iterator[int]:
    """Yield when to sample in an epoch that began at ``t0``, without end, ascending.

    Distances are uniform in [0, 2 * ``mean_ns``): the first 8 bytes, big-endian, of HMAC-SHA-256
    of the sample's number (4 bytes, big-endian) under the seed, times 2 * ``mean_ns``, by 2^64.
    """
    at = t0
    for number in itertools.count():  # pragma: no branch - it has no end
        drawn = hmac.digest(seed, number.to_bytes(4, "big"), "sha256")
        at += int.from_bytes(drawn[:8], "big") * 2 * mean_ns >> 64
        yield at


def epoch_digest(data: bytes) -> bytes:
    """Return what the next epoch, and the record, name an encoded epoch by: its SHA-256."""
    return hashlib.sha256(data).digest()


def page_tree_digest(pages: Iterable[bytes]) -> bytes:
    """Return a range's digest from the SHA-256 of each of its pages, in ascending order."""
    return hashlib.sha256(b"".join(pages)).digest()


def encode_chain(epochs: Sequence[bytes]) -> bytes:
    """Join encoded epochs: each after its length in 4 bytes, big-endian.  Files may be appended.

    The bytes of a chain that is cut after a whole epoch are a shorter chain: only the head's
    digest says that nothing is missing.
    """
    return b"".join(len(each).to_bytes(4, "big") + each for each in epochs)


def parse_chain(data: bytes) -> tuple[bytes, ...]:
    """Split a chain into its encoded epochs.  Raises FormatError; does not parse the epochs."""
    reader = BoundedReader(data, CHAIN_FORMAT, order="big")
    epochs: list[bytes] = []
    while reader.remaining:
        if len(epochs) == MAX_CHAIN:
            raise reader.fail("too many epochs", expected=f"at most {MAX_CHAIN}")
        epochs.append(reader.sized(4, "an epoch", limit=LIMITS.size))
    return tuple(epochs)
