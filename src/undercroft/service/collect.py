"""Collecting evidence: the secure kernel's record, a quote bound to it, and both logs."""

from __future__ import annotations

from undercroft.formats.evidence import (
    Challenge,
    Evidence,
    QuoteItem,
    encode_record,
    qualifying_data,
)
from undercroft.securekernel.inspect import SecureKernel
from undercroft.securekernel.vtpm.client import VtpmClient


def collect(kernel: SecureKernel, client: VtpmClient, challenge: Challenge) -> Evidence:
    """Answer ``challenge``: look at the guest, quote, then read the logs.

    The logs are read after the quote, so that they are at least as long as what it vouches for.
    Raises GuestGone if the guest ended meanwhile, VtpmUnavailable or TpmError if it cannot quote.
    """
    record = encode_record(kernel.record())
    quote = client.quote(qualifying_data(challenge.nonce, record), challenge.selection)
    return Evidence(
        quote=QuoteItem(quote.attest, quote.signature, quote.ak_public, quote.pcrs),
        eventlog=kernel.event_log(),
        ima_list=kernel.ima_list(),
        record=record,
    )
