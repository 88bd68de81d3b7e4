"""Checks Q7 to Q9: the quote is about exactly the expected PCRs and proves the claimed values."""

from __future__ import annotations

import hmac

from undercroft.base import HashAlgorithm, PcrBank
from undercroft.formats.tpm import PcrSelectionList, QuoteInfo
from undercroft.verify.checks import Check

Q7_SELECTION = Check(
    "Q7",
    "quote.selection",
    "the signed pcrSelect names each expected bank once, with exactly the expected PCRs",
    "TPM 2.0 Part 2, 10.6.2 and 10.12.4; Part 3, 18.4",
)
Q8_CLAIMED = Check(
    "Q8",
    "quote.claimed-pcrs",
    "the values sent with the quote are those of the signed PCRs and banks, no more, no fewer",
    "TPM 2.0 Part 2, 10.12.4",
)
Q9_PCR_DIGEST = Check(
    "Q9",
    "quote.pcr-digest",
    "pcrDigest is the digest over the values, in the TPM's order, with the signature's hash",
    "TPM 2.0 Part 1, 17.5; Part 3, 18.4",
)
PCR_CHECKS = (Q7_SELECTION, Q8_CLAIMED, Q9_PCR_DIGEST)


def prove_pcrs(
    info: QuoteInfo,
    claimed: tuple[PcrBank, ...],
    expected: PcrSelectionList,
    hash_alg: HashAlgorithm,
) -> tuple[PcrBank, ...]:
    """Return the claimed banks in the TPM's order, proven by ``info``'s pcrDigest.

    Raises VerificationError (Q7, Q8, Q9), or ValueError if ``expected`` selects nothing or a
    bank twice.
    """
    wanted = _by_bank(expected)
    if not any(wanted.values()) or len(wanted) != len(expected.selections):
        raise ValueError(f"{expected} is no selection to expect")
    signed = _check_selection(info.pcr_select, expected, wanted)
    banks = {bank.algorithm.alg_id: bank for bank in claimed}
    if len(banks) != len(claimed) or banks.keys() != signed.keys():
        raise Q8_CLAIMED.failed(
            "the values are of other banks than were signed",
            expected=info.pcr_select,
            got=_described(claimed),
        )
    proven = tuple([banks[alg_id] for alg_id in signed])
    values: list[bytes] = []
    for bank in proven:
        if tuple(bank.values) != signed[bank.algorithm.alg_id]:
            raise Q8_CLAIMED.failed(
                "the values are of other PCRs than were signed",
                expected=info.pcr_select,
                got=_described(claimed),
            )
        values += bank.values.values()
    digest = hash_alg.hash(b"".join(values))
    if not hmac.compare_digest(digest, info.pcr_digest):
        raise Q9_PCR_DIGEST.failed(
            "the PCR values are not those that the TPM signed",
            expected=info.pcr_digest.hex(),
            got=digest.hex(),
        )
    return proven


def _by_bank(selection: PcrSelectionList) -> dict[int, tuple[int, ...]]:
    """Return the selected PCRs by TPM_ALG_ID, in the selection's order; the last of duplicates."""
    return {bank.alg_id: bank.indices for bank in selection.selections}


def _check_selection(
    signed: PcrSelectionList, expected: PcrSelectionList, wanted: dict[int, tuple[int, ...]]
) -> dict[int, tuple[int, ...]]:
    """Return the signed PCRs by bank, in the TPM's order, if they are the wanted ones."""
    if signed == expected:
        return wanted
    # Another order of the banks or a longer bitmap changes nothing: the digest is computed in
    # the signed order.  A bank named twice could hide a PCR that is hashed twice.
    banks = _by_bank(signed)
    if len(banks) != len(signed.selections) or banks != wanted:
        raise Q7_SELECTION.failed(
            "the TPM quoted other PCRs than were asked for", expected=expected, got=signed
        )
    return banks


def _described(banks: tuple[PcrBank, ...]) -> str:
    return "+".join(f"{b.algorithm}:{','.join(map(str, b.values))}" for b in banks) or "nothing"
