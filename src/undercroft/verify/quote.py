"""Is this quote the attestation key's, fresh, and about exactly these PCR values?

The checks are numbered; :data:`CHECKS` is the table.  Deliberately not here: whether the key
belongs to a genuine TPM (``verify.ek``, ``verify.credential``, ``verify.certify``) and whether
the PCR values are good ones (``appraise``).
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from undercroft.base import PcrBank
from undercroft.formats.tpm import (
    Attest,
    ClockInfo,
    PcrSelectionList,
    QuoteInfo,
    TpmRh,
    TpmSt,
    UnverifiedQuote,
)
from undercroft.verify.ak import AttestationKey
from undercroft.verify.ak_statement import StatementChecks, check_statement
from undercroft.verify.checks import Check, QuoteGrade, Weakness, grade_of, weaknesses_of
from undercroft.verify.quote_pcrs import PCR_CHECKS, prove_pcrs

STATEMENT = StatementChecks.numbered("Q", "quote", (1, 3, 4, 5, 6))
Q2_TYPE = Check("Q2", "quote.type", "the structure is a quote", "TPM 2.0 Part 2, 10.12.10")
# Q7 to Q9 are in quote_pcrs.py.
Q10_STATE = Check(
    "Q10",
    "quote.state",
    "the last accepted evidence is of the same attestation key",
    "RFC 9334, 10",
)
Q11_FIRMWARE = Check(
    "Q11",
    "quote.firmware-version",
    "the TPM's firmware is not older than in the last accepted evidence",
    "TPM 2.0 Part 2, 10.12.12",
)
Q12_RESET = Check(
    "Q12",
    "quote.reset-count",
    "resetCount is not lower than in the last accepted evidence",
    "TPM 2.0 Part 1, 36; Part 2, 10.11.1",
)
Q13_RESTART = Check(
    "Q13",
    "quote.restart-count",
    "restartCount is not lower than in the last accepted evidence of the same resetCount",
    "TPM 2.0 Part 1, 36; Part 2, 10.11.1",
)
Q14_CLOCK = Check(
    "Q14",
    "quote.clock",
    "clock is not earlier than in the last accepted evidence",
    "TPM 2.0 Part 1, 36; Part 2, 10.11.1",
)
CHECKS = (
    STATEMENT.magic,
    Q2_TYPE,
    STATEMENT.scheme,
    STATEMENT.signature,
    STATEMENT.signer,
    STATEMENT.nonce,
    *PCR_CHECKS,
    Q10_STATE,
    Q11_FIRMWARE,
    Q12_RESET,
    Q13_RESTART,
    Q14_CLOCK,
)

_PLAIN_COUNTERS = (TpmRh.ENDORSEMENT, TpmRh.PLATFORM)
"""Hierarchies whose keys sign the counters as they are (Part 2, 10.12.12)."""
CLOCK_UPDATE_INTERVAL_MS = 1 << 22
"""The longest that a TPM may go without saving its clock (Part 1, 36): about 70 minutes.

After a reset without an orderly shutdown (``safe`` is NO) the clock may be that far behind."""


class AcceptedState(msgspec.Struct, frozen=True):
    """What is kept of the last accepted evidence, so that older evidence is refused."""

    ak_name: bytes
    clock: int
    reset_count: int
    restart_count: int
    firmware_version: int


@dataclass(frozen=True, slots=True)
class VerifiedQuote:
    """A quote that passed every check of :data:`CHECKS`.

    ``pcrs`` are the quoted PCRs with the values that pcrDigest proves, in the order in which
    the TPM hashed them.  ``resets`` and ``restarts`` count from the last accepted evidence
    (restarts: within the same reset); None if there was none.
    """

    pcrs: tuple[PcrBank, ...]
    attest: Attest
    ak: AttestationKey
    resets: int | None
    restarts: int | None

    @property
    def ak_name(self) -> bytes:
        """The attestation key's Name."""
        return self.ak.name

    @property
    def hierarchy(self) -> TpmRh | None:
        """The hierarchy that the key is a primary key of, or None if it is not one.

        For any but ENDORSEMENT and PLATFORM the TPM adds a key-specific constant to
        ``reset_count``, ``restart_count`` and ``firmware_version`` (Part 2, 10.12.12): there, only
        differences mean something.
        """
        return self.ak.hierarchies.get(self.attest.qualified_signer)

    @property
    def qualifying_data(self) -> bytes:
        """What the quote is bound to."""
        return self.attest.extra_data

    @property
    def clock(self) -> int:
        """Milliseconds that the TPM was powered, since it was last cleared."""
        return self.attest.clock_info.clock

    @property
    def reset_count(self) -> int:
        """TPM Resets (boots) since the TPM was last cleared."""
        return self.attest.clock_info.reset_count

    @property
    def restart_count(self) -> int:
        """TPM Restarts, Resumes and D-RTM events since the last reset."""
        return self.attest.clock_info.restart_count

    @property
    def safe(self) -> bool:
        """False if a later ``clock`` may have been reported before a crash."""
        return self.attest.clock_info.safe

    @property
    def firmware_version(self) -> int:
        """The TPM's firmware version, as its vendor counts it."""
        return self.attest.firmware_version

    @property
    def weaknesses(self) -> tuple[Weakness, ...]:
        """What is weak in the quote."""
        return weaknesses_of(self.ak.scheme, tuple(bank.algorithm for bank in self.pcrs))

    @property
    def grade(self) -> QuoteGrade:
        """How much the quote is worth: weak where SHA-1 carries a part of it."""
        return grade_of(self.weaknesses)

    @property
    def accepted_state(self) -> AcceptedState:
        """What to keep, and to hand to the next verification, once the evidence is accepted."""
        return AcceptedState(
            self.ak_name, self.clock, self.reset_count, self.restart_count, self.firmware_version
        )


def verify_quote(
    quote: UnverifiedQuote,
    ak: AttestationKey,
    expected_qualifying_data: bytes,
    expected_selection: PcrSelectionList,
    last: AcceptedState | None = None,
) -> VerifiedQuote:
    """Check everything that :data:`CHECKS` lists and return what is then proven.

    ``expected_selection`` is what the TPM was asked to quote; ``last`` is the
    ``accepted_state`` of the last accepted evidence of this key, if there is one.  Raises
    VerificationError, whose ``check`` is the id of the check that said no; ValueError if the
    caller expects no qualifying data or no PCR, for such a quote would prove nothing.
    """
    attest = quote.attest
    info = attest.attested
    if not isinstance(info, QuoteInfo):
        raise Q2_TYPE.failed("not a quote", expected=TpmSt.ATTEST_QUOTE, got=attest.type)
    check_statement(
        attest, quote.attest_bytes, quote.signature, ak, expected_qualifying_data, STATEMENT
    )
    pcrs = prove_pcrs(info, quote.claimed_pcrs, expected_selection, quote.signature.hash_alg)
    resets, restarts = (None, None) if last is None else _check_progress(attest, ak, last)
    return VerifiedQuote(pcrs, attest, ak, resets, restarts)


def _check_progress(attest: Attest, ak: AttestationKey, last: AcceptedState) -> tuple[int, int]:
    """Check the quote against the last accepted one; return resets and restarts since then."""
    if last.ak_name != ak.name:
        raise Q10_STATE.failed(
            "the accepted state is another key's", expected=ak.name.hex(), got=last.ak_name.hex()
        )
    plain = ak.hierarchies.get(attest.qualified_signer) in _PLAIN_COUNTERS
    if _advance(last.firmware_version, attest.firmware_version, 64, plain=plain) < 0:
        raise Q11_FIRMWARE.failed(
            "the TPM's firmware went back",
            expected=f"at least {last.firmware_version:#x}",
            got=f"{attest.firmware_version:#x}",
        )
    now = attest.clock_info
    resets = _advance(last.reset_count, now.reset_count, 32, plain=plain)
    if resets < 0:
        raise Q12_RESET.failed(
            "the quote is from before a reset of the TPM that was already seen",
            expected=f"at least {last.reset_count}",
            got=now.reset_count,
            remedy="if the TPM was cleared (TPM2_Clear), enroll the machine again",
        )
    restarts = _advance(last.restart_count, now.restart_count, 32, plain=plain) if not resets else 0
    if restarts < 0:
        raise Q13_RESTART.failed(
            "the quote is from before a restart of the TPM that was already seen",
            expected=f"at least {last.restart_count}",
            got=now.restart_count,
        )
    _check_clock(now, last, same_boot=resets == 0)
    return resets, restarts


def _advance(before: int, after: int, bits: int, *, plain: bool) -> int:
    """Return how far a counter went from ``before`` to ``after``; negative if it went back.

    A counter that the TPM offsets wraps at ``2**bits``, so the shorter way round is taken.
    """
    if plain:
        return after - before
    half = 1 << (bits - 1)
    return (after - before + half) % (1 << bits) - half


def _check_clock(now: ClockInfo, last: AcceptedState, *, same_boot: bool) -> None:
    # A clock that came back from NV after a crash may be behind by one update interval, and the
    # TPM says so; within one boot it never goes back.
    slack = 0 if same_boot or now.safe else CLOCK_UPDATE_INTERVAL_MS
    if now.clock + slack < last.clock:
        raise Q14_CLOCK.failed(
            "the TPM's clock went back",
            expected=f"at least {last.clock - slack} ms",
            got=f"{now.clock} ms",
        )
