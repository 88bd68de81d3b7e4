"""``undercroft quote``: look into quotes and other statements of a TPM."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from undercroft.base import EnvironmentFault, FormatError, VerificationError
from undercroft.formats.evidence import QuoteItem, parse_evidence
from undercroft.formats.tpm import (
    TPM_GENERATED_VALUE,
    PcrSelectionList,
    QuoteInfo,
    parse_attest,
    parse_public,
    parse_quote,
    parse_quote_info12,
)
from undercroft.formats.tpm.fields import unwrap_2b
from undercroft.formats.tpm.legacy import QUOTE2_FIXED, QUOTE_FIXED
from undercroft.formats.tpm.words import (
    Fields,
    attest_fields,
    bank_fields,
    lines,
    public_fields,
    quote12_fields,
    signature_fields,
)
from undercroft.verify.ak import verify_ak
from undercroft.verify.quote import verify_quote

app = typer.Typer(
    name="quote",
    help="Look into quotes and other statements of a TPM.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
MAX_SIZE = 256 << 20
"""Evidence carries whole logs; anything larger is none."""
_MAGIC = TPM_GENERATED_VALUE.to_bytes(4, "big")


@app.callback()
def _group() -> None:
    """Look into quotes and other statements of a TPM."""


@app.command()
def show(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Saved evidence (*.cmw), a TPMS_ATTEST or TPM2B_ATTEST as tpm2_quote writes it, "
            "or a TPM 1.2 TPM_QUOTE_INFO.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a TPM stated.

    Nothing is judged: a key and values that came with a quote prove only that they fit together.
    `undercroft verify` is what decides.
    """
    fields = described(_read(file))
    if as_json:
        sys.stdout.write(json.dumps(fields, indent=2) + "\n")
    else:
        sys.stdout.write("\n".join([f"{file}:", *lines(fields, "  ")]) + "\n")


def described(data: bytes) -> Fields:
    """Return the fields of whichever structure ``data`` is.  Raises FormatError."""
    if data[:4] == _MAGIC:
        return attest_fields(parse_attest(data))
    if data[2:6] == _MAGIC:
        return attest_fields(parse_attest(unwrap_2b(data, "TPM2B_ATTEST")))
    if data[4:8] == QUOTE_FIXED or data[2:6] == QUOTE2_FIXED:
        return quote12_fields(parse_quote_info12(data))
    if not data or data[0] >> 5 != 5:  # no CBOR map, as evidence is (RFC 8949, 3.1)
        raise FormatError(
            "TPM statement",
            0,
            "none of the structures that are shown",
            expected="TPMS_ATTEST, TPM2B_ATTEST, TPM_QUOTE_INFO, TPM_QUOTE_INFO2 or evidence.cmw",
            got=data[:8].hex() or "an empty file",
        )
    return _evidence_fields(parse_evidence(data).quote)


def _evidence_fields(item: QuoteItem) -> Fields:
    quote = parse_quote(item.attest, item.signature, item.claimed_pcrs)
    public = parse_public(item.claimed_ak_public)
    return {
        **attest_fields(quote.attest),
        "signature": signature_fields(quote.signature),
        "claimed AK": public_fields(public),
        "claimed PCRs": bank_fields(item.claimed_pcrs),
        "fits together": _fits(item),
    }


def _fits(item: QuoteItem) -> str:
    """Say whether key, signature and values belong to one another, and no more than that."""
    quote = parse_quote(item.attest, item.signature, item.claimed_pcrs)
    info = quote.attest.attested
    if not isinstance(info, QuoteInfo) or not quote.attest.extra_data:
        return "no: not a quote with qualifying data"
    claimed = PcrSelectionList.of({bank.algorithm: bank.values for bank in item.claimed_pcrs})
    try:
        ak = verify_ak(parse_public(item.claimed_ak_public))
        verify_quote(quote, ak, quote.attest.extra_data, claimed)
    except VerificationError as error:
        return f"no: {error}"
    except ValueError:
        return "no: no PCR values came along"
    return "yes: the claimed key signed a quote that proves the claimed PCR values"


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_SIZE + 1)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot read the quote: {error.strerror}",
            where=str(file),
            remedy="name a readable file",
        ) from error
    if len(data) > MAX_SIZE:
        raise FormatError("evidence", 0, "too large", expected=f"at most {MAX_SIZE} bytes")
    return data
