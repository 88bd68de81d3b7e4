"""Replay of an IMA measurement list against a quote.

Checks, by what ``VerificationError.check`` calls them:

``ima.state-boot``       the carried state belongs to this boot (resetCount).
``ima.state-bank``       the carried state was made over the bank that is replayed now.
``ima.bank``             we can compute the bank's hash.
``ima.boot-aggregate-entry`` the list of a boot starts with its ``boot_aggregate``.
``ima.pcr-missing``      the quote covers every PCR that the list extends.
``ima.template-hash``    a listed template hash of the replayed bank is the hash of its entry.
``ima.pcr``              some prefix of the list replays to the quoted PCRs.
``ima.empty``            the quote vouches for at least one entry.

The list and the quote are not taken at one instant, so the list may hold entries that were
measured after the quote; they are ``pending``: not vouched for yet, and not judged.  A list that
is shorter than the quote fails: entries that the TPM has measured are missing.

What is extended (``ima_add_template_entry``, ``ima_calc_field_array_hash``, ``ima_init_digests``)
depends on the kernel and the bank, see :class:`ExtendRule`.  Where the bank is the one of the
list's template hash column (SHA-1, nearly always) that column is compared.  In another bank
nothing vouches for it: only whether it is zero matters (a violation), and a lie about that
breaks the replay.  :func:`check_template_hashes` compares it all the same, for diagnosis.

A violation extends 0xff bytes, not a hash of its entry: no PCR vouches for the path that a
violation's entry names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from undercroft.base import HashAlgorithm, PcrBank, VerificationError
from undercroft.formats.ima import FileDigest, ImaList
from undercroft.verify.ima_state import ExtendRule, ImaState

BOOT_AGGREGATE = b"boot_aggregate"


@dataclass(frozen=True, slots=True)
class ReplayedIma:
    """A list of which the first ``vouched`` entries are what the quoted TPM has measured.

    ``first`` is the index of ``measurements[0]`` in the boot's whole list: not 0 where the
    entries before it were replayed earlier.  ``violations`` are indices into ``measurements``,
    of vouched entries only.  ``state`` is what the next replay goes on from.
    """

    measurements: ImaList
    vouched: int
    first: int
    algorithm: HashAlgorithm
    rule: ExtendRule
    violations: tuple[int, ...]
    state: ImaState = field(repr=False)

    @property
    def boot_aggregate(self) -> FileDigest:
        """What the first entry of the boot's list says."""
        return self.state.boot_aggregate

    @property
    def pending(self) -> int:
        """How many entries came after the quote: nothing vouches for them yet."""
        return len(self.measurements) - self.vouched

    @property
    def quirks(self) -> tuple[str, ...]:
        """Ids of the rules that fired although a current kernel does not need them."""
        return () if self.rule is ExtendRule.TEMPLATE_HASH else ("ima.padded-sha1",)


def replay_ima(
    measurements: ImaList,
    quoted: PcrBank,
    *,
    reset_count: int,
    state: ImaState | None = None,
) -> ReplayedIma:
    """Replay ``measurements`` over the PCRs in ``quoted``, which a verified quote proves.

    ``reset_count`` is the quote's own.  With ``state``, from the last accepted replay of the
    same boot, ``measurements`` holds only the entries after those (``state.offset`` says where
    they start in the binary list), and there may be none.  Raises VerificationError.
    """
    if quoted.algorithm.hashlib_name not in hashlib.algorithms_available:
        raise VerificationError("ima.bank", f"{quoted.algorithm} cannot be computed here")
    rules: Sequence[ExtendRule]
    if state is None:
        first, offset, start = 0, 0, dict[int, bytes]()
        aggregate, rules = _boot_aggregate(measurements), _rules(quoted.algorithm)
    else:
        _check_state(state, quoted, reset_count)
        first, offset, start = state.count, state.offset, dict(state.values)
        aggregate, rules = state.boot_aggregate, (state.rule,)
    walk = _Walk.over(measurements, quoted, start)
    reached = _longest_prefix(walk, rules)
    if first + reached.count == 0:
        raise VerificationError("ima.empty", "the quote vouches for no entry of the list")
    return ReplayedIma(
        measurements,
        reached.count,
        first,
        quoted.algorithm,
        reached.rule,
        tuple(v for v in walk.violations if v < reached.count),
        ImaState(
            algorithm=quoted.algorithm,
            rule=reached.rule,
            reset_count=reset_count,
            boot_aggregate=aggregate,
            count=first + reached.count,
            offset=offset + measurements.binary_size(reached.count),
            # The prefix was found by its PCR values: they are the quoted ones.
            values=tuple(sorted(walk.targets.items())),
        ),
    )


def _rules(algorithm: HashAlgorithm) -> tuple[ExtendRule, ...]:
    # In the SHA-1 bank nothing is padded: the three rules are one.
    return (ExtendRule.TEMPLATE_HASH,) if algorithm is HashAlgorithm.SHA1 else tuple(ExtendRule)


def _check_state(state: ImaState, quoted: PcrBank, reset_count: int) -> None:
    if state.reset_count != reset_count:
        raise VerificationError(
            "ima.state-boot",
            "the machine was reset since the carried state was made",
            expected=f"resetCount {state.reset_count}",
            got=f"resetCount {reset_count}",
            remedy="replay the whole list, without a state",
        )
    if state.algorithm is not quoted.algorithm:
        raise VerificationError(
            "ima.state-bank",
            "the carried state is of another PCR bank",
            expected=state.algorithm,
            got=quoted.algorithm,
        )


def _boot_aggregate(measurements: ImaList) -> FileDigest:
    first = measurements[0] if len(measurements) else None
    digest = first.digest if first and first.name == BOOT_AGGREGATE else None
    if digest is None:
        raise VerificationError(
            "ima.boot-aggregate-entry",
            "the list does not start with a boot_aggregate entry",
            expected="boot_aggregate",
            got=first.path if first else "an empty list",
        )
    return digest


class _Hash(Protocol):
    def digest(self) -> bytes: ...


_Hasher = Callable[[bytes], _Hash]


def _hasher(algorithm: HashAlgorithm) -> _Hasher:
    # The named constructor takes half the time of hashlib.new(), and this is the hot loop.
    name = algorithm.hashlib_name
    named: _Hasher | None = getattr(hashlib, name, None)
    return named or partial(hashlib.new, name)


@dataclass(frozen=True, slots=True)
class _Walk:
    """A list, the PCR values to start from and the quoted ones to arrive at."""

    measurements: ImaList
    algorithm: HashAlgorithm
    start: dict[int, bytes]
    targets: dict[int, bytes]
    violations: list[int]

    @classmethod
    def over(cls, measurements: ImaList, quoted: PcrBank, start: dict[int, bytes]) -> _Walk:
        pcrs = {*start, *[run.pcr for run in measurements.runs]}
        values = quoted.values
        if not pcrs <= values.keys():
            raise VerificationError(
                "ima.pcr-missing",
                "the list extends a PCR that the quote does not cover",
                expected=f"PCR {sorted(pcrs)}",
                got=f"PCR {sorted(values)}",
            )
        zero = bytes(quoted.algorithm.size)
        return cls(
            measurements,
            quoted.algorithm,
            {pcr: start.get(pcr, zero) for pcr in pcrs},
            {pcr: values[pcr] for pcr in pcrs},
            measurements.violations(),
        )


@dataclass(frozen=True, slots=True)
class _Reached:
    count: int
    rule: ExtendRule


def _longest_prefix(walk: _Walk, rules: Sequence[ExtendRule]) -> _Reached:
    """Return how many entries lead to the quoted PCRs, and by which rule."""
    ends = ""
    for rule in rules:
        count, values = _prefix(walk, rule)
        if count is not None:
            return _Reached(count, rule)
        ends = ends or _shown(values)
    raise VerificationError(
        "ima.pcr",
        f"no prefix of the {len(walk.measurements)} entries replays to the quoted PCRs: the list "
        "is shorter than the quote, or an entry was changed, added, removed or moved",
        expected=_shown(walk.targets),
        got=ends,
    )


def _shown(values: dict[int, bytes]) -> str:
    return ", ".join(f"PCR {pcr} {value.hex()}" for pcr, value in values.items())


def _prefix(walk: _Walk, rule: ExtendRule) -> tuple[int | None, dict[int, bytes]]:
    if walk.start == walk.targets and len(walk.targets) < 2:
        return 0, walk.start  # a hash chain does not come back to where it was
    if len(walk.targets) == 1:
        return _one_pcr(walk, rule)
    return _many_pcrs(walk, rule)


def _one_pcr(walk: _Walk, rule: ExtendRule) -> tuple[int | None, dict[int, bytes]]:
    """Replay stretch by stretch; a violation ends a stretch."""
    ((pcr, value),) = walk.start.items()
    target = walk.targets[pcr]
    extend = _hasher(walk.algorithm)
    invalid = _violation_digest(rule, walk.algorithm)
    begin = 0
    for end in (*walk.violations, None):
        steps, value = _stretch(walk, rule, value, target, slice(begin, end))
        if value == target:
            return begin + steps, {pcr: value}
        if end is not None:
            value = extend(value + invalid).digest()
            begin = end + 1
            if value == target:
                return begin, {pcr: value}
    return None, {pcr: value}


def _stretch(
    walk: _Walk, rule: ExtendRule, value: bytes, target: bytes, part: slice
) -> tuple[int, bytes]:
    """Extend ``value`` by the entries in ``part`` up to ``target``; return steps and value."""
    datas = walk.measurements.template_data[part]
    extend = _hasher(walk.algorithm)
    steps = 0
    if rule is not ExtendRule.TEMPLATE_HASH:
        sha1, pad = hashlib.sha1, bytes(walk.algorithm.size - 20)
        for steps, data in enumerate(datas, 1):  # noqa: B007 - the last one counts
            value = extend(value + sha1(data).digest() + pad).digest()
            if value == target:
                break
    elif walk.measurements.hash_algorithm is walk.algorithm:
        claimed = walk.measurements.claimed_template_hashes[part]
        for steps, data in enumerate(datas, 1):
            digest = extend(data).digest()
            if digest != claimed[steps - 1]:
                raise _wrong_hash(part.start + steps - 1, digest, claimed[steps - 1])
            value = extend(value + digest).digest()
            if value == target:
                break
    else:
        for steps, data in enumerate(datas, 1):  # noqa: B007 - the last one counts
            value = extend(value + extend(data).digest()).digest()
            if value == target:
                break
    return steps, value


def _many_pcrs(walk: _Walk, rule: ExtendRule) -> tuple[int | None, dict[int, bytes]]:
    """Replay entry by entry: a policy's ``pcr=`` sends some entries to other PCRs.

    Every PCR that occurs in the list must be at its quoted value at once; the last such place
    counts, so that moving the entries of one PCR to the end does not make them pending.
    """
    values, found = dict(walk.start), None
    if values == walk.targets:
        found = 0
    extend = _hasher(walk.algorithm)
    invalid = _violation_digest(rule, walk.algorithm)
    violations = frozenset(walk.violations)
    compared = walk.measurements.hash_algorithm is walk.algorithm
    for run in walk.measurements.runs:
        for index in range(run.start, run.stop):
            digest = invalid
            if index not in violations:
                data = walk.measurements.template_data[index]
                digest = _template_hash(data, rule, walk.algorithm)
                claimed = walk.measurements.claimed_template_hashes[index]
                if compared and digest != claimed:
                    raise _wrong_hash(index, digest, claimed)
            values[run.pcr] = extend(values[run.pcr] + digest).digest()
            if values == walk.targets:
                found = index + 1
    return found, values


def _template_hash(data: bytes, rule: ExtendRule, algorithm: HashAlgorithm) -> bytes:
    if rule is ExtendRule.TEMPLATE_HASH:
        return _hasher(algorithm)(data).digest()
    return hashlib.sha1(data).digest().ljust(algorithm.size, b"\0")


def _violation_digest(rule: ExtendRule, algorithm: HashAlgorithm) -> bytes:
    if rule is ExtendRule.PADDED_SHA1:
        return (b"\xff" * 20).ljust(algorithm.size, b"\0")
    return b"\xff" * algorithm.size


def _wrong_hash(index: int, computed: bytes, claimed: bytes) -> VerificationError:
    return VerificationError(
        "ima.template-hash",
        f"the template hash of entry {index} is not the hash of its template data",
        expected=computed.hex(),
        got=claimed.hex(),
    )


def replay_pcrs(
    measurements: ImaList,
    algorithm: HashAlgorithm,
    rule: ExtendRule = ExtendRule.TEMPLATE_HASH,
) -> dict[int, bytes]:
    """Return the PCRs that the whole list leads to, from zero, by ascending index.

    For looking at a list: nothing is compared, not even the listed template hashes.
    """
    invalid = _violation_digest(rule, algorithm)
    violations = frozenset(measurements.violations())
    extend = _hasher(algorithm)
    values = dict.fromkeys(measurements.pcrs, bytes(algorithm.size))
    for run in measurements.runs:
        for index in range(run.start, run.stop):
            data = measurements.template_data[index]
            digest = invalid if index in violations else _template_hash(data, rule, algorithm)
            values[run.pcr] = extend(values[run.pcr] + digest).digest()
    return values


def check_template_hashes(measurements: ImaList) -> tuple[int, ...]:
    """Return the indices of the entries whose listed template hash is wrong.

    Violations, whose hash is zero by rule, are not among them.  An index here says that the list
    was damaged or written by something else than a kernel, even where the replay of another bank
    succeeds: nothing depends on the listed hash there.
    """
    hasher = _hasher(measurements.hash_algorithm)
    zero = bytes(measurements.hash_algorithm.size)
    columns = zip(measurements.template_data, measurements.claimed_template_hashes, strict=True)
    return tuple(
        index
        for index, (data, claimed) in enumerate(columns)
        if hasher(data).digest() != claimed and claimed != zero
    )


@dataclass(frozen=True, slots=True)
class VerifiedBootAggregate:
    """A ``boot_aggregate`` that is the hash of the boot PCRs given.

    ``pcrs`` are the PCRs it covers; ``quirks`` names the rule that fired if not the usual one.
    """

    digest: FileDigest
    pcrs: range
    quirks: tuple[str, ...] = ()


def verify_boot_aggregate(digest: FileDigest, banks: Sequence[PcrBank]) -> VerifiedBootAggregate:
    """Compare ``digest``, of a ``boot_aggregate`` entry, with the boot PCRs in ``banks``.

    The banks are quoted, or replayed from the event log and compared with a quote there.
    ``ima_calc_boot_aggregate_tfm``: the hash, in the entry's own algorithm, over that bank's
    PCRs 0 to 7, and since Linux 5.8 (commit 20c59ce010f8) 0 to 9 in every bank but SHA-1.

    Raises VerificationError: check ``ima.boot-aggregate`` if it is another value,
    ``ima.boot-aggregate-bank`` if the PCRs that would tell are not among ``banks``.
    """
    algorithm = digest.algorithm.algorithm if digest.algorithm else None
    for bank in banks:
        if bank.algorithm is algorithm:
            break
    else:
        raise _cannot_tell(digest, "PCRs 0 to 9")
    quoted = bank.values
    missing, computed = range(0), b""
    for pcrs, quirks in _COVERED_BY_SHA1 if algorithm is HashAlgorithm.SHA1 else _COVERED:
        try:
            values = b"".join([quoted[pcr] for pcr in pcrs])
        except KeyError:
            missing = missing or pcrs
            continue
        value = _hasher(bank.algorithm)(values).digest()
        if value == digest.value:
            return VerifiedBootAggregate(digest, pcrs, quirks)
        computed = computed or value
    if missing:
        raise _cannot_tell(digest, f"PCRs 0 to {missing[-1]}")
    raise _other_boot(digest, computed)


_COVERED: tuple[tuple[range, tuple[str, ...]], ...] = (
    (range(10), ()),
    (range(8), ("ima.boot-aggregate-pcrs-0-7",)),
)
_COVERED_BY_SHA1: tuple[tuple[range, tuple[str, ...]], ...] = ((range(8), ()),)


def _cannot_tell(digest: FileDigest, needed: str) -> VerificationError:
    return VerificationError(
        "ima.boot-aggregate-bank",
        "the boot PCRs that boot_aggregate covers are not in the evidence",
        expected=f"{needed} of the {digest.name or 'sha1'} bank",
        remedy="quote them, or send the event log of that bank",
    )


def _other_boot(digest: FileDigest, computed: bytes) -> VerificationError:
    what = "boot_aggregate is not the hash of the boot PCRs: the list is of another boot"
    if not any(digest.value):
        what = "boot_aggregate is zero: the kernel saw no TPM when IMA started"
    return VerificationError(
        "ima.boot-aggregate", what, expected=computed.hex(), got=digest.value.hex()
    )
