"""Is this quote the attestation key's, fresh, and about exactly these PCR values?

The checks are numbered; :data:`CHECKS` is the table.  Deliberately not here: whether the key
belongs to a genuine TPM (``verify.ek``, ``verify.credential``, ``verify.certify``) and whether
the PCR values are good ones (``appraise``).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from undercroft.base import PcrBank
from undercroft.formats.tpm import (
    TPM_GENERATED_VALUE,
    Attest,
    ClockInfo,
    PcrSelectionList,
    QuoteInfo,
    TpmRh,
    TpmSt,
    UnverifiedQuote,
)
from undercroft.verify.ak import AttestationKey
from undercroft.verify.ak_key import verify_signature
from undercroft.verify.checks import Check, Grade, Weakness, grade_of, weaknesses_of
from undercroft.verify.quote_pcrs import PCR_CHECKS, prove_pcrs

Q1_MAGIC = Check(
    "Q1",
    "quote.magic",
    "the structure starts with TPM_GENERATED_VALUE, which a restricted key signs for nobody else",
    "TPM 2.0 Part 2, 6.2 and 10.12.12; Part 1, 31.3",
)
Q2_TYPE = Check("Q2", "quote.type", "the structure is a quote", "TPM 2.0 Part 2, 10.12.10")
Q3_SCHEME = Check(
    "Q3",
    "quote.scheme",
    "the signature has the scheme and hash of the attestation key",
    "TPM 2.0 Part 2, 12.2.3.5 and 12.2.3.6; Part 3, 18.1",
)
Q4_SIGNATURE = Check(
    "Q4", "quote.signature", "the attestation key signed these bytes", "TPM 2.0 Part 1, B.6, C.4"
)
Q5_SIGNER = Check(
    "Q5",
    "quote.signer",
    "qualifiedSigner is the key's Qualified Name, where its parent is known",
    "TPM 2.0 Part 1, 16; Part 2, 10.12.12",
)
Q6_NONCE = Check(
    "Q6",
    "quote.nonce",
    "extraData is the expected qualifying data, byte for byte",
    "TPM 2.0 Part 3, 18.4 (qualifyingData); RFC 9334, 10.2",
)
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
    "TPM 2.0 Part 1, 36.4; Part 2, 10.11.1",
)
Q13_RESTART = Check(
    "Q13",
    "quote.restart-count",
    "restartCount is not lower than in the last accepted evidence of the same resetCount",
    "TPM 2.0 Part 1, 36.5; Part 2, 10.11.1",
)
Q14_CLOCK = Check(
    "Q14",
    "quote.clock",
    "clock is not earlier than in the last accepted evidence",
    "TPM 2.0 Part 1, 36.3; Part 2, 10.11.1",
)
CHECKS = (
    Q1_MAGIC,
    Q2_TYPE,
    Q3_SCHEME,
    Q4_SIGNATURE,
    Q5_SIGNER,
    Q6_NONCE,
    *PCR_CHECKS,
    Q10_STATE,
    Q11_FIRMWARE,
    Q12_RESET,
    Q13_RESTART,
    Q14_CLOCK,
)

_PLAIN_COUNTERS = (TpmRh.ENDORSEMENT, TpmRh.PLATFORM)
"""Hierarchies whose keys sign the counters as they are (Part 1, 36.7)."""
CLOCK_UPDATE_INTERVAL_MS = 1 << 22
"""The longest that a TPM may go without saving its clock (Part 1, 36.3.2): about 70 minutes.

After a reset without an orderly shutdown (``safe`` is NO) the clock may be that far behind."""


@dataclass(frozen=True, slots=True)
class AcceptedState:
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
        ``reset_count``, ``restart_count`` and ``firmware_version`` (Part 1, 36.7): there, only
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
    def grade(self) -> Grade:
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
    if not expected_qualifying_data:
        raise ValueError("a quote without qualifying data is not fresh")
    attest = quote.attest
    if attest.magic != TPM_GENERATED_VALUE:
        raise Q1_MAGIC.failed(
            "a TPM did not make this structure",
            expected=f"{TPM_GENERATED_VALUE:#x}",
            got=f"{attest.magic:#x}",
        )
    info = attest.attested
    if not isinstance(info, QuoteInfo):
        raise Q2_TYPE.failed("not a quote", expected=TpmSt.ATTEST_QUOTE, got=attest.type)
    _check_signature(quote, ak)
    _check_binding(attest, ak, expected_qualifying_data)
    pcrs = prove_pcrs(info, quote.claimed_pcrs, expected_selection, quote.signature.hash_alg)
    resets, restarts = (None, None) if last is None else _check_progress(attest, ak, last)
    return VerifiedQuote(pcrs, attest, ak, resets, restarts)


def _check_signature(quote: UnverifiedQuote, ak: AttestationKey) -> None:
    signature = quote.signature
    scheme = ak.scheme
    if signature.scheme is not scheme.algorithm or signature.hash_alg is not scheme.hash_alg:
        raise Q3_SCHEME.failed(
            "the signature is not of the key's scheme",
            expected=scheme,
            got=f"{signature.scheme}-{signature.hash_alg}",
        )
    verify_signature(ak.key, signature, quote.attest_bytes, Q4_SIGNATURE)


def _check_binding(attest: Attest, ak: AttestationKey, expected: bytes) -> None:
    if ak.qualified_name is not None and attest.qualified_signer != ak.qualified_name:
        raise Q5_SIGNER.failed(
            "the key stands elsewhere in its TPM than expected",
            expected=ak.qualified_name.hex(),
            got=attest.qualified_signer.hex(),
        )
    # compare_digest is False for different lengths: nothing is padded or cut.
    if not hmac.compare_digest(attest.extra_data, expected):
        raise Q6_NONCE.failed(
            "the quote answers another challenge",
            expected=expected.hex(),
            got=attest.extra_data.hex(),
            remedy="collect evidence again, for this nonce",
        )


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
