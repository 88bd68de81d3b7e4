"""A simulated host: a second TPM that vouches for the quote of a simulated guest."""

from __future__ import annotations

from dataclasses import replace

from undercroft.base import HashAlgorithm, Nonce
from undercroft.formats.evidence import Evidence, QuoteItem
from undercroft.formats.evidence.hostlayer import (
    NO_DESCRIPTOR,
    HostClaims,
    HostLayer,
    HostTpmKind,
    deep_qualifying_data,
    guest_quote_digest,
    log_head,
)
from undercroft.formats.tpm import NvCertifyInfo, NvPublic
from undercroft.testing.attester import SimulatedAttester
from undercroft.testing.guest import SimulatedGuest, encode_log
from undercroft.verify.deepquote import HOST_SELECTION

WRITTEN_COUNTER = 0x2206_0016
"""TPMA_NV of a counter that was counted up (part 2, 13.4)."""


class SimulatedHost:
    """A host whose TPM has a key named ``label`` and a monotonic counter."""

    def __init__(self, label: str = "host", machine: SimulatedGuest | None = None) -> None:
        """``machine`` is the host's own boot and files; without it the host shows no logs."""
        self.attester = SimulatedAttester(label=label, banks=[HashAlgorithm.SHA256])
        self.eventlog: bytes | None = None
        self.ima_list: bytes | None = None
        if machine is not None:
            self._boot(machine)
        self.counter = 0
        self.nv = NvPublic(0x0180_5543, HashAlgorithm.SHA256, WRITTEN_COUNTER, b"", 8)

    def _boot(self, machine: SimulatedGuest) -> None:
        for one in machine.boot:
            self.attester.measure(one.pcr, one.measured)
        bank = HashAlgorithm.SHA256
        self.attester.set_pcr(bank, 10, machine.ima.bank(bank).values[10])
        self.eventlog, self.ima_list = encode_log(machine.boot, [bank]), machine.ima.binary

    @property
    def ak_public(self) -> bytes:
        """The host's attestation key."""
        return self.attester.public.encode()

    def claims(
        self, evidence: Evidence, descriptor: bytes = NO_DESCRIPTOR, *, last_modified: int = 0
    ) -> HostClaims:
        """Count one up and return what is true of ``evidence``."""
        self.counter += 1
        return HostClaims(
            guest_quote_digest(evidence.quote),
            descriptor,
            log_head(evidence.launch_log),
            last_modified,
            self.counter,
        )

    def sign(self, claims: HostClaims, nonce: Nonce) -> HostLayer:
        """Sign any claims, as a host that lies could."""
        bound = deep_qualifying_data(nonce, claims, self.eventlog, self.ima_list)
        quote = self.attester.quote(bound, HOST_SELECTION)
        info = NvCertifyInfo(self.nv.name, 0, claims.counter.to_bytes(8, "big"))
        nv = self.attester.signed(self.attester.attest(info, bound), ())
        item = QuoteItem(quote.attest, quote.signature, quote.public, quote.claimed_pcrs)
        return HostLayer(
            HostTpmKind.STAND_IN,
            item,
            claims,
            self.nv.encode(),
            nv.attest,
            nv.signature,
            self.eventlog,
            self.ima_list,
        )

    def with_counter(self, layer: HostLayer, info: NvCertifyInfo, nonce: Nonce) -> HostLayer:
        """Return ``layer`` with another statement about its counter."""
        bound = layer.bound_to(nonce)
        nv = self.attester.signed(self.attester.attest(info, bound), ())
        return replace(layer, nv_attest=nv.attest, nv_signature=nv.signature)
