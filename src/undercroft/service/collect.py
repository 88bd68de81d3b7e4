"""Collecting evidence: the secure kernel's record, both logs, and a quote that binds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from undercroft.base import EnvironmentFault, Finding
from undercroft.formats.evidence import (
    Challenge,
    Evidence,
    QuoteItem,
    encode_record,
    qualifying_data,
)
from undercroft.formats.evidence.interval import encode_chain
from undercroft.securekernel.inspect import SecureKernel
from undercroft.securekernel.trapped import TrappedKernel
from undercroft.securekernel.vtpm.client import VtpmClient
from undercroft.securekernel.vtpm.records import RecordKeeper

TRIES = 8
"""How often the guest may measure a file in the few milliseconds between log and quote."""


def collect(
    kernel: SecureKernel,
    client: VtpmClient,
    challenge: Challenge,
    machine: Callable[[], Sequence[Finding]] = tuple,
) -> Evidence:
    """Answer ``challenge``: look at the guest, read its logs, and quote over it all.

    ``machine`` gives the facts about the machine under the guest (``machine.machine_facts``),
    which go into the record too.  What is found to be wrong also goes to PCR 19, where it stays
    until the machine starts again, as does the newest epoch of write traps.  The quote binds the
    logs as they were read. If the guest measured something before the quote, the quoted PCR is
    ahead of the list; then everything is done again.
    Raises GuestGone if the guest ended meanwhile, VtpmUnavailable or TpmError if it cannot quote,
    EnvironmentFault if the guest does not stop measuring.
    """
    records = RecordKeeper(client)
    for _ in range(TRIES):
        seen = kernel.record()
        facts = (*seen.facts, *machine())
        records.keep_findings(facts)
        chain = kernel.chain_of(seen) if isinstance(kernel, TrappedKernel) else ()
        records.keep_epochs(chain)
        record = encode_record(replace(seen, facts=facts))
        eventlog, ima_list = kernel.event_log(), kernel.ima_list()
        launch_log = client.current_launch_log() or None
        bound = qualifying_data(
            challenge.nonce,
            record=record,
            eventlog=eventlog,
            ima_list=ima_list,
            launch_log=launch_log,
        )
        quote = client.quote(bound, challenge.selection)
        if kernel.ima_list() == ima_list and (client.launch_log(quote) or None) == launch_log:
            item = QuoteItem(quote.attest, quote.signature, quote.ak_public, quote.pcrs)
            epochs = encode_chain(chain) if chain else None
            return Evidence(item, eventlog, ima_list, record, launch_log, epochs=epochs)
    raise EnvironmentFault(
        "the guest measures new files all the time",
        where=kernel.guest.name,
        expected=f"a quiet moment in {TRIES} tries",
        remedy="try again",
    )
