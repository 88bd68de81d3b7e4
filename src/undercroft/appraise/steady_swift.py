"""The next quote of a guest on which nothing unusual happened, recognised instead of parsed.

Between two polls of a good guest only a few bytes of a quote change: qualifyingData, the clock,
pcrDigest, the IMA PCR's value and the signature.  :class:`Swift` holds what must not change, as
bytes, and compares; it also walks IMA entries whose every byte a reference accounts for.

It only ever says yes, and only where the general path would say the same: anything else (another
layout, an unknown file, a violation, a wrong signature) gives None, and the general path looks
and says what is wrong.  A property test holds the two together.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from undercroft.appraise.ima_carried import ImaCarried, ImaTally
from undercroft.appraise.ima_entry import KNOWN
from undercroft.appraise.ima_rules import ImaJudge
from undercroft.base import HashAlgorithm
from undercroft.formats.evidence import Challenge, Evidence, QuoteItem, Trust, qualifying_data
from undercroft.formats.tpm import Scheme, TpmAlg
from undercroft.reference.files import LabelledHashes
from undercroft.reference.layers import AcceptedRows
from undercroft.verify.ima_state import ExtendRule, ImaState
from undercroft.verify.quote import AcceptedState, VerifiedQuote

_SCHEME: Final = Scheme(TpmAlg.ECDSA, HashAlgorithm.SHA256)
_ECDSA: Final = ec.ECDSA(SHA256())
_SHA256 = hashlib.sha256

# TPMT_SIGNATURE: TPM_ALG_ECDSA, TPM_ALG_SHA256, r and s of 32 bytes each (Part 2, 11.3.4).
_SIGNATURE_HEAD, _S_HEAD, _SIGNATURE_SIZE = b"\x00\x18\x00\x0b\x00\x20", b"\x00\x20", 72
# TPMS_CLOCK_INFO and firmwareVersion, between extraData and the attested part (10.12.12).
_CLOCK: Final = struct.Struct(">QIIBQ")
_NONCE_SIZE = 32

# One entry up to its template data: PCR, template hash (eight bytes of it: a violation's are zero),
# template name, size of the data.
_IMA_NG: Final = struct.Struct("<IQ12x10sI")
_IMA_SIG: Final = struct.Struct("<IQ12x11sI")
_IMA_NG_NAME, _IMA_SIG_NAME = b"\6\0\0\0ima-ng", b"\7\0\0\0ima-sig"
_DIGEST_HEAD: Final = b"\x28\0\0\0sha256:\0"
_DIGEST_SIZE = 32
_NO_SIGNATURE: Final = bytes(4)


class Step(msgspec.Struct, frozen=True):
    """What one recognised quote and its new IMA entries came to."""

    counters: AcceptedState
    state: ImaState
    tally: ImaTally
    new: int


@dataclass(frozen=True, slots=True)
class Swift:
    """What the next quote of this guest is like, byte for byte, if nothing unusual happens.

    ``head`` is the TPMS_ATTEST up to extraData's bytes, ``select`` what stands between
    firmwareVersion and pcrDigest's bytes; ``below`` and ``above`` are the values, end to end, of
    the quoted PCRs before and after the IMA one.  ``known`` has the template hashes of what most
    entries are about; ``accepted`` all that is known.
    """

    trust: Trust
    key: ec.EllipticCurvePublicKey
    selection: Mapping[HashAlgorithm, tuple[int, ...]]
    head: bytes
    select: bytes
    indices: tuple[int, ...]
    below: bytes
    above: bytes
    known: LabelledHashes
    accepted: Mapping[bytes, str] | AcceptedRows

    @classmethod
    def of(
        cls,
        trust: Trust,
        challenge: Challenge,
        attest: bytes,
        quote: VerifiedQuote,
        carried: ImaCarried | None,
        judge: ImaJudge,
    ) -> Swift | None:
        """Return the pattern of the quote that was verified last, or None if there is none.

        There is one for a P-256 key, one quoted bank (SHA-256), and an IMA list that goes to one
        PCR of that bank by the usual rule and has no deviation.
        """
        key, banks = quote.ak.key, quote.pcrs
        if not isinstance(key, ec.EllipticCurvePublicKey) or quote.ak.scheme != _SCHEME:
            return None
        if len(banks) != 1 or banks[0].algorithm is not HashAlgorithm.SHA256:
            return None
        if carried is None or not _is_plain(carried) or judge.rules.exclude:
            return None
        ((pcr, _),) = carried.state.values
        values = banks[0].values
        # magic, type, qualifiedSigner and the size of extraData stand before extraData's bytes.
        at = 4 + 2 + 2 + len(quote.attest.qualified_signer) + 2
        return cls(
            trust,
            key,
            challenge.selection,
            attest[:at],
            attest[at + _NONCE_SIZE + _CLOCK.size : -_DIGEST_SIZE],
            tuple(values),
            b"".join([value for index, value in values.items() if index < pcr]),
            b"".join([value for index, value in values.items() if index > pcr]),
            judge.references.template_hashes(_DIGEST_HEAD, _DIGEST_SIZE, "little"),
            judge.references.accepted(_DIGEST_HEAD, _DIGEST_SIZE, "little"),
        )

    def step(
        self, evidence: Evidence, challenge: Challenge, last: AcceptedState, carried: ImaCarried
    ) -> Step | None:
        """Return what ``evidence`` came to, or None for the general path to look at it."""
        entries = evidence.ima_list
        if entries is None or evidence.eventlog is not None or evidence.launch_log is not None:
            return None
        values = self._values(evidence, challenge)
        if values is None:
            return None
        counters = self._counters(evidence, challenge, values, last)
        if counters is None:
            return None
        at = len(self.below)
        step = self._walk(entries, values[at : at + _DIGEST_SIZE], counters, carried)
        # Last, for it costs most: where the entries are unusual, the general path does it.
        return step if step is not None and self._signed(evidence.quote) else None

    def _values(self, evidence: Evidence, challenge: Challenge) -> bytes | None:
        """Check that all PCRs but IMA's stand; return all, end to end, for pcrDigest to prove."""
        banks = evidence.quote.claimed_pcrs
        if len(banks) != 1 or challenge.selection != self.selection:
            return None
        bank = banks[0]
        if bank.algorithm is not HashAlgorithm.SHA256 or tuple(bank.values) != self.indices:
            return None
        # A PcrBank has its PCRs in ascending order, each of the bank's size.
        values = b"".join(bank.values.values())
        fixed = values.startswith(self.below) and values.endswith(self.above)
        return values if fixed else None

    def _counters(
        self, evidence: Evidence, challenge: Challenge, values: bytes, last: AcceptedState
    ) -> AcceptedState | None:
        """Check what the quote says: layout, nonce, pcrDigest, counters."""
        item = evidence.quote
        attest, at = item.attest, len(self.head)
        clock_at = at + _NONCE_SIZE
        bound = qualifying_data(
            challenge.nonce, record=evidence.record, eventlog=None, ima_list=evidence.ima_list
        )
        if (
            item.claimed_ak_public != self.trust.ak_public
            or not attest.startswith(self.head)
            or attest[at:clock_at] != bound
            or attest[clock_at + _CLOCK.size :] != self.select + _SHA256(values).digest()
        ):
            return None
        clock, resets, restarts, safe, firmware = _CLOCK.unpack_from(attest, clock_at)
        if (
            clock < last.clock
            or resets != last.reset_count
            or restarts != last.restart_count
            or firmware != last.firmware_version
            or safe > 1
        ):
            return None
        return AcceptedState(last.ak_name, clock, resets, restarts, firmware)

    def _signed(self, item: QuoteItem) -> bool:
        signature = item.signature
        if (
            len(signature) != _SIGNATURE_SIZE
            or not signature.startswith(_SIGNATURE_HEAD)
            or signature[38:40] != _S_HEAD
        ):
            return False
        r, s = _der_integer(signature[6:38]), _der_integer(signature[40:])
        try:
            self.key.verify(bytes((0x30, len(r) + len(s))) + r + s, item.attest, _ECDSA)
        except InvalidSignature:
            return False
        return True

    def _walk(
        self, data: bytes, quoted: bytes, counters: AcceptedState, carried: ImaCarried
    ) -> Step | None:
        """Replay entries that references account for whole, exactly up to the quoted value."""
        state, tables = carried.state, self.known
        with_signature = data[24:35] == _IMA_SIG_NAME
        layout, name = (_IMA_SIG, _IMA_SIG_NAME) if with_signature else (_IMA_NG, _IMA_NG_NAME)
        ((pcr, value),) = state.values
        found: list[str] = []
        at, end, head_size, sha256 = 0, len(data), layout.size, _SHA256
        while end - at >= head_size:
            its_pcr, template_hash, its_name, size = layout.unpack_from(data, at)
            start = at + head_size
            at = start + size
            entry = data[start:at]
            # A reference accounts for digest and name; in ima-sig an empty signature follows.
            file = entry[:-4] if with_signature else entry
            label: str | None
            for label, hashes in tables:  # noqa: B007 - it is what is looked for
                hashed = hashes.get(file)
                if hashed is not None:
                    break
            else:
                label, hashed = self.accepted.get(file), sha256(file).digest()
            if not (label and template_hash) or its_pcr != pcr or its_name != name:
                return None
            if with_signature:
                if entry[-4:] != _NO_SIGNATURE:
                    return None
                hashed = sha256(entry).digest()
            found.append(label)
            value = sha256(value + hashed).digest()
        if at != end or value != quoted:
            return None
        return Step(
            counters,
            ImaState(
                state.algorithm,
                state.rule,
                state.reset_count,
                state.boot_aggregate,
                state.count + len(found),
                state.offset + end,
                ((pcr, value),),
            ),
            _counted(carried.tally, found) if found else carried.tally,
            len(found),
        )


def _der_integer(value: bytes) -> bytes:
    """Return a positive number of up to 32 bytes as DER writes an INTEGER (X.690, 8.3)."""
    digits = value.lstrip(b"\0")
    # A first byte of 0x80 and above would mean a negative number; zero has one byte.
    if not digits or digits[0] & 0x80:
        digits = b"\0" + digits
    return bytes((2, len(digits))) + digits


def _counted(tally: ImaTally, found: Sequence[str]) -> ImaTally:
    """Return ``tally`` with one known entry more for each grade in ``found``."""
    grades, kinds = {**tally.grades}, {**tally.kinds}
    for grade in set(found):
        grades[grade] = grades.get(grade, 0) + found.count(grade)
    kinds[KNOWN] = kinds.get(KNOWN, 0) + len(found)
    return ImaTally(kinds, grades)


def _is_plain(carried: ImaCarried) -> bool:
    state, tally = carried.state, carried.tally
    return (
        state.algorithm is HashAlgorithm.SHA256
        and state.rule is ExtendRule.TEMPLATE_HASH
        and len(state.values) == 1
        and not (tally.failed or tally.undetermined or carried.deviations)
        and tally.worst is None
    )
