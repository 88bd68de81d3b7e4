"""Build the negative suite: evidence with one defect each, and the check that must say no.

    python tests/vectors/tpm/build.py

writes ``negative/<defect>.json`` beside this file; a test builds the suite again and compares.
Another verifier can run it: byte strings are in hexadecimal, ``check`` is the id of the check
that refuses the case, or null where the evidence is good.  Every structure is well formed and,
unless the defect is the signature, properly signed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace

from undercroft.base import HashAlgorithm, PcrBank
from undercroft.formats.tpm import (
    Attest,
    CertifyInfo,
    EccSignature,
    ObjectAttributes,
    PcrSelection,
    PcrSelectionList,
    QuoteInfo,
    RsaPublic,
    RsaSignature,
    Signature,
    TpmAlg,
    TpmRh,
    parse_signature,
)
from undercroft.testing.attester import AK_ATTRIBUTES, AkKind, SimulatedAttester, SimulatedQuote
from undercroft.verify.quote import CLOCK_UPDATE_INTERVAL_MS, AcceptedState

SHA1, SHA256, SM3 = HashAlgorithm.SHA1, HashAlgorithm.SHA256, HashAlgorithm.SM3_256
NONCE = bytes(range(32))
PCRS = (0, 4, 7, 10)
Banks = Mapping[HashAlgorithm, Iterable[int]]


@dataclass(frozen=True, slots=True)
class Case:
    """One case: evidence, what the verifier expects, and who must say no (None: nobody)."""

    check: str | None
    quote: SimulatedQuote
    qualifying_data: bytes = NONCE
    selection: Banks = field(default_factory=lambda: {SHA256: PCRS})
    last: AcceptedState | None = None
    parent: bytes | None = None

    def as_json(self) -> dict[str, object]:
        """Return the case as it is written."""
        last = self.last
        return {
            "check": self.check,
            "attest": self.quote.attest.hex(),
            "signature": self.quote.signature.hex(),
            "ak_public": self.quote.public.hex(),
            "claimed_pcrs": [
                [bank.algorithm.label, {str(i): value.hex() for i, value in bank.values.items()}]
                for bank in self.quote.claimed_pcrs
            ],
            "expected_qualifying_data": self.qualifying_data.hex(),
            "expected_selection": {bank.label: list(i) for bank, i in self.selection.items()},
            "expected_parent": None if self.parent is None else self.parent.hex(),
            "last_accepted": None
            if last is None
            else {
                "ak_name": last.ak_name.hex(),
                "clock": last.clock,
                "reset_count": last.reset_count,
                "restart_count": last.restart_count,
                "firmware_version": last.firmware_version,
            },
        }


def attester(
    kind: AkKind = AkKind.ECDSA_P256,
    *,
    label: str = "ak",
    hierarchy: TpmRh = TpmRh.ENDORSEMENT,
    attributes: ObjectAttributes = AK_ATTRIBUTES,
    clock_ms: int = 60_000,
) -> SimulatedAttester:
    """Return a simulated TPM that has booted."""
    tpm = SimulatedAttester(
        kind,
        label=label,
        hierarchy=hierarchy,
        banks=(SHA1, SHA256, SM3),
        attributes=attributes,
        clock_ms=clock_ms,
    )
    for index in PCRS:
        tpm.measure(index, b"measured into PCR %d" % index)
    return tpm


def good(tpm: SimulatedAttester | None = None) -> SimulatedQuote:
    """Return a good quote."""
    return (tpm or attester()).quote(NONCE, {SHA256: PCRS})


def restated(change: Callable[[Attest], Attest]) -> SimulatedQuote:
    """Return a good quote whose statement was changed before it was signed."""
    tpm = attester()
    quote = good(tpm)
    return tpm.signed(change(quote.unverified.attest), quote.claimed_pcrs)


def resigned(
    change: Callable[[Signature], Signature], kind: AkKind = AkKind.ECDSA_P256
) -> SimulatedQuote:
    """Return a good quote whose signature was changed."""
    quote = good(attester(kind))
    signature = change(parse_signature(quote.signature)).encode()
    return SimulatedQuote(quote.attest, signature, quote.public, quote.claimed_pcrs)


def quoted(selection: PcrSelectionList, claimed: Banks | None = None) -> SimulatedQuote:
    """Return a quote that the TPM made over exactly ``selection``, with values of ``claimed``."""
    tpm = attester()
    values = [
        value
        for chosen in selection.selections
        for bank in tpm.read(PcrSelectionList((chosen,)))
        for value in bank.values.values()
    ]
    info = QuoteInfo(selection, SHA256.hash(*values))
    banks = tpm.read(PcrSelectionList.of(claimed or {SHA256: PCRS}))
    return tpm.signed(tpm.attest(info, NONCE), banks)


def claiming(banks: Iterable[PcrBank]) -> SimulatedQuote:
    """Return a good quote with other values beside it."""
    quote = good()
    return SimulatedQuote(quote.attest, quote.signature, quote.public, tuple(banks))


def sequence(
    change: Callable[[SimulatedAttester], None], tpm: SimulatedAttester | None = None
) -> Case:
    """Return a good quote and the state of an accepted one, with ``change`` in between."""
    tpm = tpm or attester()
    first = good(tpm).unverified.attest
    state = AcceptedState(
        tpm.public.name,
        first.clock_info.clock,
        first.clock_info.reset_count,
        first.clock_info.restart_count,
        first.firmware_version,
    )
    change(tpm)
    return Case(None, good(tpm), last=state)


def refused(check: str, case: Case) -> Case:
    """Return ``case`` as one that ``check`` must refuse."""
    return Case(check, case.quote, case.qualifying_data, case.selection, case.last, case.parent)


def _clock(tpm: SimulatedAttester, **changes: int | bool) -> None:
    tpm.clock_info = replace(tpm.clock_info, **changes)


def _nothing(_: SimulatedAttester) -> None:
    """Change nothing."""


def _selection(*banks: PcrSelection) -> PcrSelectionList:
    return PcrSelectionList(banks)


def _bank(banks: Banks) -> PcrSelection:
    (selection,) = PcrSelectionList.of(banks).selections
    return selection


def statement_cases() -> dict[str, Case]:
    """Defects of the statement and its signature."""
    order = ec.SECP256R1().group_order
    longer = (order.bit_length() + 7) // 8 + 1

    def ecc(**changes: Callable[[EccSignature], bytes]) -> SimulatedQuote:
        def change(signature: Signature) -> Signature:
            assert isinstance(signature, EccSignature)
            return replace(signature, **{name: new(signature) for name, new in changes.items()})

        return resigned(change)

    def rsa(new: Callable[[bytes], bytes]) -> SimulatedQuote:
        def change(signature: Signature) -> Signature:
            assert isinstance(signature, RsaSignature)
            return replace(signature, sig=new(signature.sig))

        return resigned(change, AkKind.RSASSA)

    def plus_order(signature: EccSignature) -> bytes:
        return (int.from_bytes(signature.s, "big") + order).to_bytes(longer, "big")

    stranger = good(attester(label="stranger"))
    bad = "quote.signature"
    return {
        "wrong-magic": Case("quote.magic", restated(lambda a: replace(a, magic=0xFF544348))),
        "wrong-type": Case(
            "quote.type", restated(lambda a: replace(a, attested=CertifyInfo(b"", b"")))
        ),
        "wrong-scheme-hash": Case(
            "quote.scheme", resigned(lambda s: replace(s, hash_alg=HashAlgorithm.SHA1))
        ),
        "wrong-scheme": Case(
            "quote.scheme", resigned(lambda s: replace(s, scheme=TpmAlg.RSAPSS), AkKind.RSASSA)
        ),
        "wrong-key": Case(
            bad,
            SimulatedQuote(
                stranger.attest, stranger.signature, good().public, stranger.claimed_pcrs
            ),
        ),
        "flipped-bit": Case(
            bad,
            SimulatedQuote(
                good().attest[:-1] + bytes((good().attest[-1] ^ 1,)),
                good().signature,
                good().public,
                good().claimed_pcrs,
            ),
        ),
        "ecdsa-zero-r": Case(bad, ecc(r=lambda _: bytes(32))),
        "ecdsa-zero-s": Case(bad, ecc(s=lambda _: bytes(32))),
        "ecdsa-empty-r": Case(bad, ecc(r=lambda _: b"")),
        "ecdsa-r-is-order": Case(bad, ecc(r=lambda _: order.to_bytes(32, "big"))),
        "ecdsa-s-plus-order": Case(bad, ecc(s=plus_order)),
        "ecdsa-swapped": Case(bad, ecc(r=lambda s: s.s, s=lambda s: s.r)),
        "rsa-truncated": Case(bad, rsa(lambda sig: sig[:-1])),
        "rsa-padded": Case(bad, rsa(lambda sig: b"\0" + sig)),
        "rsa-zero": Case(bad, rsa(lambda sig: bytes(len(sig)))),
        "other-parent": Case(
            "quote.signer",
            good(attester(hierarchy=TpmRh.OWNER)),
            parent=TpmRh.ENDORSEMENT.handle_name,
        ),
        "wrong-nonce": Case("quote.nonce", good(), bytes(32)),
        "padded-nonce": Case("quote.nonce", good(), NONCE + b"\0"),
        "truncated-nonce": Case("quote.nonce", good(), NONCE[:-1]),
        "nonce-padded-by-the-attester": Case(
            "quote.nonce", restated(lambda a: replace(a, extra_data=NONCE + b"\0"))
        ),
        "no-nonce": Case("quote.nonce", restated(lambda a: replace(a, extra_data=b""))),
    }


def selection_cases() -> dict[str, Case]:
    """Defects of the PCR selection and of the values that came along."""
    (bank,) = good().claimed_pcrs
    values = dict(bank.values)
    sha1 = tuple(attester().read(PcrSelectionList.of({SHA1: PCRS})))
    no, unlike = "quote.selection", "quote.claimed-pcrs"
    wide = PcrSelection(SHA256.alg_id, _bank({SHA256: PCRS}).bitmap + b"\1")
    return {
        "relabelled-selection": Case(no, quoted(_selection(_bank({SM3: PCRS})))),
        "bank-swap": Case(no, quoted(_selection(_bank({SHA1: PCRS})), {SHA1: PCRS})),
        "duplicate-selection": Case(
            no, quoted(_selection(_bank({SHA256: PCRS}), _bank({SHA256: PCRS})))
        ),
        "split-selection": Case(
            no, quoted(_selection(_bank({SHA256: PCRS[:2]}), _bank({SHA256: PCRS[2:]})))
        ),
        "missing-pcr": Case(
            no, quoted(_selection(_bank({SHA256: PCRS[:-1]})), {SHA256: PCRS[:-1]})
        ),
        "extra-pcr": Case(
            no, quoted(_selection(_bank({SHA256: (*PCRS, 11)})), {SHA256: (*PCRS, 11)})
        ),
        "extra-bank": Case(
            no,
            quoted(
                _selection(_bank({SHA256: PCRS}), _bank({SHA1: [0]})), {SHA256: PCRS, SHA1: [0]}
            ),
        ),
        "extra-empty-bank": Case(no, quoted(_selection(_bank({SHA256: PCRS}), _bank({SHA1: []})))),
        "unknown-bank": Case(no, quoted(_selection(_bank({SHA256: PCRS}), PcrSelection(7, b"\1")))),
        "pcr-beyond-24": Case(no, quoted(_selection(wide))),
        "empty-selection": Case(no, quoted(_selection())),
        "claimed-relabelled": Case(unlike, claiming([PcrBank(SM3, values)])),
        "claimed-other-bank": Case(unlike, claiming(sha1)),
        "claimed-extra-bank": Case(unlike, claiming([bank, *sha1])),
        "claimed-twice": Case(unlike, claiming([bank, bank])),
        "claimed-nothing": Case(unlike, claiming([])),
        "claimed-missing-pcr": Case(
            unlike, claiming([PcrBank(SHA256, {i: values[i] for i in PCRS[:-1]})])
        ),
        "claimed-extra-pcr": Case(unlike, claiming([PcrBank(SHA256, {**values, 1: bytes(32)})])),
        "changed-value": Case(
            "quote.pcr-digest", claiming([PcrBank(SHA256, {**values, 10: bytes(32)})])
        ),
        "swapped-values": Case(
            "quote.pcr-digest",
            claiming([PcrBank(SHA256, {**values, 0: values[4], 4: values[0]})]),
        ),
        "digest-over-another-order": Case(
            "quote.pcr-digest", _other_order(), selection={SHA1: PCRS, SHA256: PCRS}
        ),
    }


def _other_order() -> SimulatedQuote:
    """Return a quote of two banks whose digest was made with the banks the other way round."""
    tpm = attester()
    banks = tpm.read(PcrSelectionList.of({SHA1: PCRS, SHA256: PCRS}))
    values = [value for bank in reversed(banks) for value in bank.values.values()]
    info = QuoteInfo(PcrSelectionList.of({SHA1: PCRS, SHA256: PCRS}), SHA256.hash(*values))
    return tpm.signed(tpm.attest(info, NONCE), banks)


def progress_cases() -> dict[str, Case]:
    """Evidence that is older than what was already accepted."""
    slack = CLOCK_UPDATE_INTERVAL_MS

    def crashed(lost: int, *, safe: bool) -> Callable[[SimulatedAttester], None]:
        def change(tpm: SimulatedAttester) -> None:
            tpm.reset()
            _clock(tpm, clock=tpm.clock_info.clock - lost, safe=safe)

        return change

    def older_firmware(tpm: SimulatedAttester) -> None:
        tpm.firmware_version -= 1

    def late() -> SimulatedAttester:
        return attester(clock_ms=2 * slack)

    restarted = attester()
    restarted.restart()
    owners, wrapped = (attester(hierarchy=TpmRh.OWNER) for _ in range(2))
    _clock(wrapped, reset_count=2**32 - 1)
    stranger = sequence(_nothing, attester(label="stranger"))
    return {
        "state-of-another-key": refused("quote.state", Case(None, good(), last=stranger.last)),
        "firmware-rollback": refused("quote.firmware-version", sequence(older_firmware)),
        "reset-rollback": refused(
            "quote.reset-count", sequence(lambda tpm: _clock(tpm, reset_count=0))
        ),
        "restart-rollback": refused(
            "quote.restart-count", sequence(lambda tpm: _clock(tpm, restart_count=0), restarted)
        ),
        "clock-rollback": refused("quote.clock", sequence(lambda tpm: tpm.advance(-1))),
        "clock-rollback-over-a-safe-reset": refused(
            "quote.clock", sequence(crashed(1, safe=True), late())
        ),
        "clock-rollback-beyond-a-crash": refused(
            "quote.clock", sequence(crashed(slack + 1, safe=False), late())
        ),
        "offset-reset-rollback": refused(
            "quote.reset-count", sequence(lambda tpm: _clock(tpm, reset_count=2**32 - 1), owners)
        ),
        "good-same-moment": sequence(_nothing),
        "good-later": sequence(lambda tpm: tpm.advance(1)),
        "good-after-restart": sequence(lambda tpm: tpm.restart()),
        "good-after-reset": sequence(lambda tpm: tpm.reset()),
        "good-clock-behind-after-a-crash": sequence(crashed(slack, safe=False), late()),
        "good-offset-counter-wraps": sequence(lambda tpm: _clock(tpm, reset_count=0), wrapped),
    }


def key_cases() -> dict[str, Case]:
    """Keys that are no attestation keys, with otherwise good quotes."""

    def with_attributes(attributes: ObjectAttributes) -> Case:
        return Case("ak.attributes", good(attester(attributes=attributes)))

    def without_scheme() -> Case:
        tpm = attester(AkKind.RSASSA)
        assert isinstance(tpm.public.key, RsaPublic)
        public = replace(tpm.public, key=replace(tpm.public.key, scheme=None))
        quote = good(tpm)
        return Case(
            "ak.scheme",
            SimulatedQuote(quote.attest, quote.signature, public.encode(), quote.claimed_pcrs),
        )

    a = ObjectAttributes
    return {
        "unrestricted-ak": with_attributes(AK_ATTRIBUTES & ~a.RESTRICTED),
        "duplicable-ak": with_attributes(AK_ATTRIBUTES & ~a.FIXED_TPM),
        "movable-ak": with_attributes(AK_ATTRIBUTES & ~a.FIXED_PARENT),
        "imported-ak": with_attributes(AK_ATTRIBUTES & ~a.SENSITIVE_DATA_ORIGIN),
        "decrypting-ak": with_attributes(AK_ATTRIBUTES | a.DECRYPT),
        "not-signing-ak": with_attributes(AK_ATTRIBUTES & ~a.SIGN),
        "ak-without-scheme": without_scheme(),
    }


def good_cases() -> dict[str, Case]:
    """Evidence with nothing wrong, so that refusing everything does not pass the suite."""
    both = {SHA1: PCRS, SHA256: PCRS}
    reordered = {SHA256: PCRS, SHA1: PCRS}
    longer = PcrSelection(SHA256.alg_id, _bank({SHA256: PCRS}).bitmap + b"\0")
    return {
        "good-ecdsa-p256": Case(None, good()),
        "good-ecdsa-p384": Case(None, good(attester(AkKind.ECDSA_P384))),
        "good-rsassa": Case(None, good(attester(AkKind.RSASSA))),
        "good-rsassa-sha1": Case(None, good(attester(AkKind.RSASSA_SHA1))),
        "good-known-parent": Case(None, good(), parent=TpmRh.ENDORSEMENT.handle_name),
        "good-two-banks": Case(None, attester().quote(NONCE, both), selection=both),
        "good-banks-in-another-order": Case(
            None, attester().quote(NONCE, reordered), selection=both
        ),
        "good-longer-bitmap": Case(None, quoted(_selection(longer))),
        "good-leading-zeros": Case(
            None,
            resigned(lambda s: replace(s, r=bytes(2) + s.r) if isinstance(s, EccSignature) else s),
        ),
    }


def cases() -> dict[str, Case]:
    """Return every case, by name."""
    return {
        **good_cases(),
        **key_cases(),
        **statement_cases(),
        **selection_cases(),
        **progress_cases(),
    }


def texts() -> dict[str, str]:
    """Return the files of the suite: name and content."""
    return {
        f"{name}.json": json.dumps(case.as_json(), indent=1) + "\n"
        for name, case in cases().items()
    }


def main() -> None:
    """Write the suite."""
    out = Path(__file__).parent / "negative"
    out.mkdir(exist_ok=True)
    for name, text in texts().items():
        (out / name).write_text(text)


if __name__ == "__main__":
    main()
