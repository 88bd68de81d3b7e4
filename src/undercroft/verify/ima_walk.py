"""Walking an IMA list from PCR value to PCR value: what each entry extends, and where that leads.

What is extended (``ima_add_template_entry``, ``ima_calc_field_array_hash``, ``ima_init_digests``)
depends on the kernel and the bank, see :class:`~undercroft.verify.ima_state.ExtendRule`.  Where
the bank is the one of the list's template hash column (SHA-1, nearly always) that column is
compared.  In another bank nothing vouches for it: only whether it is zero matters (a violation),
and a lie about that breaks the replay.  :func:`check_template_hashes` compares it all the same,
for diagnosis.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from undercroft.base import HashAlgorithm, PcrBank, VerificationError
from undercroft.formats.ima import ImaList
from undercroft.verify.checks import Check
from undercroft.verify.ima_state import ExtendRule

I5_PCR_MISSING = Check(
    "I5",
    "ima.pcr-missing",
    "the quote covers every PCR that the list extends",
    "Linux security/integrity/ima/ima_policy.c: pcr=",
)
I6_TEMPLATE_HASH = Check(
    "I6",
    "ima.template-hash",
    "a listed template hash of the replayed bank is the hash of its entry",
    "Linux security/integrity/ima/ima_crypto.c: ima_calc_field_array_hash",
)
I7_PCR = Check(
    "I7",
    "ima.pcr",
    "some prefix of the list replays to the quoted PCRs",
    "Linux security/integrity/ima/ima_queue.c: ima_add_template_entry",
)


class _Hash(Protocol):
    def digest(self) -> bytes: ...


_Hasher = Callable[[bytes], _Hash]


def hasher_of(algorithm: HashAlgorithm) -> _Hasher:
    """Return the constructor of a hash object, the fastest that there is."""
    # The named constructor takes half the time of hashlib.new(), and this is the hot loop.
    name = algorithm.hashlib_name
    named: _Hasher | None = getattr(hashlib, name, None)
    return named or partial(hashlib.new, name)


@dataclass(frozen=True, slots=True)
class Walk:
    """A list, the PCR values to start from and the quoted ones (``targets``) to arrive at."""

    measurements: ImaList
    algorithm: HashAlgorithm
    start: dict[int, bytes]
    targets: dict[int, bytes]
    violations: list[int]

    @classmethod
    def over(cls, measurements: ImaList, quoted: PcrBank, start: dict[int, bytes]) -> Walk:
        """Return the walk over the PCRs of ``start`` and of the list, zero where none is given."""
        pcrs = {*start, *[run.pcr for run in measurements.runs]}
        values = quoted.values
        if not pcrs <= values.keys():
            raise I5_PCR_MISSING.failed(
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
class Reached:
    """How many entries lead to the targets, and by which rule."""

    count: int
    rule: ExtendRule


def longest_prefix(walk: Walk, rules: Sequence[ExtendRule]) -> Reached:
    """Return how many entries lead to the quoted PCRs, and by which rule."""
    refusals = []
    for rule in rules:
        try:
            return Reached(_prefix(walk, rule), rule)
        except VerificationError as error:
            refusals.append(error)
    raise refusals[0]


def _no_prefix(walk: Walk, values: dict[int, bytes]) -> VerificationError:
    return I7_PCR.failed(
        f"no prefix of the {len(walk.measurements)} entries replays to the quoted PCRs: the list "
        "is shorter than the quote, or an entry was changed, added, removed or moved",
        expected=_shown(walk.targets),
        got=_shown(values),
    )


def _shown(values: dict[int, bytes]) -> str:
    return ", ".join(f"PCR {pcr} {value.hex()}" for pcr, value in values.items())


def _prefix(walk: Walk, rule: ExtendRule) -> int:
    """Return how many entries lead to the quoted PCRs.  Raises VerificationError."""
    if walk.start == walk.targets and len(walk.targets) < 2:
        return 0  # a hash chain does not come back to where it was
    if len(walk.targets) == 1:
        return _one_pcr(walk, rule)
    return _many_pcrs(walk, rule)


def _one_pcr(walk: Walk, rule: ExtendRule) -> int:
    """Replay stretch by stretch; a violation ends a stretch."""
    ((pcr, value),) = walk.start.items()
    target = walk.targets[pcr]
    extend = hasher_of(walk.algorithm)
    invalid = _violation_digest(rule, walk.algorithm)
    begin = 0
    for end in (*walk.violations, None):
        steps, value = _stretch(walk, rule, value, target, slice(begin, end))
        if value == target:
            return begin + steps
        if end is not None:
            value = extend(value + invalid).digest()
            begin = end + 1
            if value == target:
                return begin
    raise _no_prefix(walk, {pcr: value})


def _stretch(
    walk: Walk, rule: ExtendRule, value: bytes, target: bytes, part: slice
) -> tuple[int, bytes]:
    """Extend ``value`` by the entries in ``part`` up to ``target``; return steps and value."""
    datas = walk.measurements.template_data[part]
    extend = hasher_of(walk.algorithm)
    steps = 0
    if rule is not ExtendRule.TEMPLATE_HASH:
        sha1, pad = hashlib.sha1, bytes(walk.algorithm.size - 20)
        for steps, data in enumerate(datas, 1):  # noqa: B007 - the last one counts
            value = extend(value + sha1(data).digest() + pad).digest()
            if value == target:
                break
    elif _is_compared(walk, rule):
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


def _is_compared(walk: Walk, rule: ExtendRule) -> bool:
    """Return whether the list's template hashes are those of the bank that is replayed."""
    own = rule is ExtendRule.TEMPLATE_HASH
    return own and walk.measurements.hash_algorithm is walk.algorithm


def _many_pcrs(walk: Walk, rule: ExtendRule) -> int:
    """Replay entry by entry: a policy's ``pcr=`` sends some entries to other PCRs.

    Every PCR that occurs in the list must be at its quoted value at once; the last such place
    counts, so that moving the entries of one PCR to the end does not make them pending.
    """
    values = dict(walk.start)
    found = 0 if values == walk.targets else None
    extend = hasher_of(walk.algorithm)
    invalid = _violation_digest(rule, walk.algorithm)
    violations = frozenset(walk.violations)
    compared = _is_compared(walk, rule)
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
    if found is None:
        raise _no_prefix(walk, values)
    return found


def _template_hash(data: bytes, rule: ExtendRule, algorithm: HashAlgorithm) -> bytes:
    if rule is ExtendRule.TEMPLATE_HASH:
        return hasher_of(algorithm)(data).digest()
    return hashlib.sha1(data).digest().ljust(algorithm.size, b"\0")


def _violation_digest(rule: ExtendRule, algorithm: HashAlgorithm) -> bytes:
    if rule is ExtendRule.PADDED_SHA1:
        return (b"\xff" * 20).ljust(algorithm.size, b"\0")
    return b"\xff" * algorithm.size


def _wrong_hash(index: int, computed: bytes, claimed: bytes) -> VerificationError:
    return I6_TEMPLATE_HASH.failed(
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
    extend = hasher_of(algorithm)
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
    algorithm = measurements.hash_algorithm
    zero = bytes(algorithm.size)
    columns = zip(measurements.template_data, measurements.claimed_template_hashes, strict=True)
    rules = (ExtendRule.TEMPLATE_HASH, ExtendRule.PADDED_SHA1)
    return tuple(
        index
        for index, (data, claimed) in enumerate(columns)
        if claimed != zero
        and not any(claimed == _template_hash(data, rule, algorithm) for rule in rules)
    )
