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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from undercroft.appraise.ima_carried import ImaCarried, ImaTally
from undercroft.appraise.ima_entry import KNOWN
from undercroft.appraise.ima_rules import ImaJudge
from undercroft.base import HashAlgorithm
from undercroft.formats.evidence import Challenge, Evidence, Trust, qualifying_data
from undercroft.formats.tpm import Scheme, TpmAlg
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

# One entry up to its template data: PCR, template hash, template name, size of the data.
_IMA_NG: Final = struct.Struct("<4s20s10sI")
_IMA_SIG: Final = struct.Struct("<4s20s11sI")
_IMA_NG_NAME, _IMA_SIG_NAME = b"\6\0\0\0ima-ng", b"\7\0\0\0ima-sig"
_DIGEST_HEAD: Final = b"\x28\0\0\0sha256:\0"
_DIGEST_SIZE = 32
_NO_SIGNATURE: Final = bytes(4)
_ZERO: Final = bytes(20)


class Step(NamedTuple):
    """What one recognised quote and its new IMA entries came to."""

    counters: AcceptedState
    state: ImaState
    tally: ImaTally
    new: int


@dataclass(frozen=True, slots=True)
class Swift:
    """What the next quote of this guest is like, byte for byte, if nothing unusual happens.

    ``head`` is the TPMS_ATTEST up to extraData's bytes, ``select`` what stands between
    firmwareVersion and pcrDigest's bytes; ``pcrs`` are the values of every PCR but the IMA one.
    """

    trust: Trust
    key: ec.EllipticCurvePublicKey
    selection: Mapping[HashAlgorithm, tuple[int, ...]]
    head: bytes
    select: bytes
    indices: tuple[int, ...]
    pcrs: Mapping[int, bytes]
    ima_pcr: int
    accepted: Mapping[bytes, str]

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
        # magic, type, qualifiedSigner and the size of extraData stand before extraData's bytes.
        at = 4 + 2 + 2 + len(quote.attest.qualified_signer) + 2
        return cls(
            trust,
            key,
            challenge.selection,
            attest[:at],
            attest[at + _NONCE_SIZE + _CLOCK.size : -_DIGEST_SIZE],
            tuple(banks[0].values),
            {index: value for index, value in banks[0].values.items() if index != pcr},
            pcr,
            judge.references.accepted(_DIGEST_HEAD, _DIGEST_SIZE, "little"),
        )

    def step(
        self, evidence: Evidence, challenge: Challenge, last: AcceptedState, carried: ImaCarried
    ) -> Step | None:
        """Return what ``evidence`` came to, or None for the general path to look at it."""
        entries = evidence.ima_list
        if evidence.eventlog is not None or entries is None:
            return None
        value = self._pcr(evidence, challenge)
        if value is None:
            return None
        counters = self._counters(evidence, challenge, last)
        if counters is None:
            return None
        return self._walk(entries, value, counters, carried)

    def _pcr(self, evidence: Evidence, challenge: Challenge) -> bytes | None:
        """Check that all PCRs but IMA's stand; return IMA's.  ``_counters`` proves the values."""
        item = evidence.quote
        if challenge.selection != self.selection or len(item.claimed_pcrs) != 1:
            return None
        bank = item.claimed_pcrs[0]
        values = bank.values
        if bank.algorithm is not HashAlgorithm.SHA256 or tuple(values) != self.indices:
            return None
        return values[self.ima_pcr] if self.pcrs.items() <= values.items() else None

    def _counters(
        self, evidence: Evidence, challenge: Challenge, last: AcceptedState
    ) -> AcceptedState | None:
        """Check the quote itself: layout, nonce, pcrDigest, counters, signature."""
        item = evidence.quote
        attest, at = item.attest, len(self.head)
        clock_at = at + _NONCE_SIZE
        select_at = clock_at + _CLOCK.size
        bound = qualifying_data(
            challenge.nonce, record=evidence.record, eventlog=None, ima_list=evidence.ima_list
        )
        digest = _SHA256(b"".join(item.claimed_pcrs[0].values.values())).digest()
        if (
            item.claimed_ak_public != self.trust.ak_public
            or not attest.startswith(self.head)
            or attest[at:clock_at] != bound
            or attest[select_at:] != self.select + digest
        ):
            return None
        clock, resets, restarts, safe, firmware = _CLOCK.unpack_from(attest, clock_at)
        same = (resets, restarts, firmware) == (
            last.reset_count,
            last.restart_count,
            last.firmware_version,
        )
        if not same or clock < last.clock or safe > 1 or not self._signed(item.signature, attest):
            return None
        return AcceptedState(last.ak_name, clock, resets, restarts, firmware)

    def _signed(self, signature: bytes, attest: bytes) -> bool:
        if (
            len(signature) != _SIGNATURE_SIZE
            or not signature.startswith(_SIGNATURE_HEAD)
            or signature[38:40] != _S_HEAD
        ):
            return False
        r, s = int.from_bytes(signature[6:38], "big"), int.from_bytes(signature[40:], "big")
        try:
            self.key.verify(encode_dss_signature(r, s), attest, _ECDSA)
        except InvalidSignature:
            return False
        return True

    def _walk(
        self, data: bytes, quoted: bytes, counters: AcceptedState, carried: ImaCarried
    ) -> Step | None:
        """Replay entries that references account for whole, exactly up to the quoted value."""
        state, accepted = carried.state, self.accepted
        with_signature = data[24:35] == _IMA_SIG_NAME
        layout, name = (_IMA_SIG, _IMA_SIG_NAME) if with_signature else (_IMA_NG, _IMA_NG_NAME)
        pcr = self.ima_pcr.to_bytes(4, "little")
        ((_, value),) = state.values
        found: list[str] = []
        at, end, head_size = 0, len(data), layout.size
        while end - at >= head_size:
            its_pcr, template_hash, its_name, size = layout.unpack_from(data, at)
            start = at + head_size
            at = start + size
            entry = data[start:at]
            # A reference accounts for digest and name; in ima-sig an empty signature follows.
            grade = accepted.get(entry[:-4] if with_signature else entry)
            if grade is None or its_pcr != pcr or its_name != name or template_hash == _ZERO:
                return None
            if with_signature and entry[-4:] != _NO_SIGNATURE:
                return None
            found.append(grade)
            value = _SHA256(value + _SHA256(entry).digest()).digest()
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
                ((self.ima_pcr, value),),
            ),
            _counted(carried.tally, found),
            len(found),
        )


def _counted(tally: ImaTally, found: list[str]) -> ImaTally:
    """Return ``tally`` with one known entry more for each grade in ``found``."""
    if not found:
        return tally
    grades = dict(tally.grades)
    for grade in set(found):
        grades[grade] = grades.get(grade, 0) + found.count(grade)
    return ImaTally({**tally.kinds, KNOWN: tally.kinds.get(KNOWN, 0) + len(found)}, grades)


def _is_plain(carried: ImaCarried) -> bool:
    state, tally = carried.state, carried.tally
    return (
        state.algorithm is HashAlgorithm.SHA256
        and state.rule is ExtendRule.TEMPLATE_HASH
        and len(state.values) == 1
        and not (tally.failed or tally.undetermined or carried.deviations)
        and tally.worst is None
    )
