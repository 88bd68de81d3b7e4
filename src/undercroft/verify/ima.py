"""Does an IMA measurement list lead to what the quoted TPM holds?

The checks are numbered; :data:`CHECKS` is the table.

The list and the quote are not taken at one instant, so the list may hold entries that were
measured after the quote; they are ``pending``: not vouched for yet, and not judged.  A list that
is shorter than the quote fails: entries that the TPM has measured are missing.

A violation extends 0xff bytes, not a hash of its entry: no PCR vouches for the path that a
violation's entry names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from undercroft.base import HashAlgorithm, PcrBank
from undercroft.formats.ima import FileDigest, ImaList
from undercroft.verify.checks import Check
from undercroft.verify.ima_boot import I9_BOOT_AGGREGATE, I10_BOOT_AGGREGATE_BANK
from undercroft.verify.ima_quirks import PADDED_SHA1
from undercroft.verify.ima_state import ExtendRule, ImaState
from undercroft.verify.ima_walk import (
    I5_PCR_MISSING,
    I6_TEMPLATE_HASH,
    I7_PCR,
    Walk,
    longest_prefix,
)

I1_STATE_BOOT = Check(
    "I1",
    "ima.state-boot",
    "the carried state belongs to this boot",
    "TPM 2.0 Part 2, 10.11.1: resetCount",
)
I2_STATE_BANK = Check(
    "I2",
    "ima.state-bank",
    "the carried state was made over the bank that is replayed now",
    "Linux security/integrity/ima/ima_queue.c: each bank is extended with its own digest",
)
I3_BANK = Check(
    "I3", "ima.bank", "the bank's hash can be computed here", "TCG Algorithm Registry 1.34, table 3"
)
I4_FIRST = Check(
    "I4",
    "ima.boot-aggregate-entry",
    "the list of a boot starts with its boot_aggregate",
    "Linux security/integrity/ima/ima_init.c: ima_add_boot_aggregate",
)
I8_EMPTY = Check(
    "I8",
    "ima.empty",
    "the quote vouches for at least one entry",
    "Linux security/integrity/ima/ima_init.c: a list starts with its boot_aggregate",
)
CHECKS = (
    I1_STATE_BOOT,
    I2_STATE_BANK,
    I3_BANK,
    I4_FIRST,
    I5_PCR_MISSING,
    I6_TEMPLATE_HASH,
    I7_PCR,
    I8_EMPTY,
    I9_BOOT_AGGREGATE,
    I10_BOOT_AGGREGATE_BANK,
)

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
        return () if self.rule is ExtendRule.TEMPLATE_HASH else (PADDED_SHA1.id,)


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
        raise I3_BANK.failed(f"{quoted.algorithm} cannot be computed here")
    rules: Sequence[ExtendRule]
    if state is None:
        first, offset, start = 0, 0, dict[int, bytes]()
        aggregate, rules = _boot_aggregate(measurements), _rules(quoted.algorithm)
    else:
        _check_state(state, quoted, reset_count)
        first, offset, start = state.count, state.offset, dict(state.values)
        aggregate, rules = state.boot_aggregate, (state.rule,)
    walk = Walk.over(measurements, quoted, start)
    reached = longest_prefix(walk, rules)
    if first + reached.count == 0:
        raise I8_EMPTY.failed("the quote vouches for no entry of the list")
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
        raise I1_STATE_BOOT.failed(
            "the machine was reset since the carried state was made",
            expected=f"resetCount {state.reset_count}",
            got=f"resetCount {reset_count}",
            remedy="replay the whole list, without a state",
        )
    if state.algorithm is not quoted.algorithm:
        raise I2_STATE_BANK.failed(
            "the carried state is of another PCR bank",
            expected=state.algorithm,
            got=quoted.algorithm,
        )


def _boot_aggregate(measurements: ImaList) -> FileDigest:
    first = measurements[0] if len(measurements) else None
    digest = first.digest if first and first.name == BOOT_AGGREGATE else None
    if digest is None:
        raise I4_FIRST.failed(
            "the list does not start with a boot_aggregate entry",
            expected="boot_aggregate",
            got=first.path if first else "an empty list",
        )
    return digest
