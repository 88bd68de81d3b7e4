"""IMA lists: how fast a long one is appraised at first, and a few new entries after that.

Part of ``./dev bench evidence``.  Timed are our own functions, from the list's bytes to the
judgements: parse, replay over the quoted bank with every template hash computed, comparison with
100,000 reference paths.  The references are compiled before, once for all machines of a kind.

Timed in CPU time of the one thread that does it.  Turn and turn about with it, the raw limit is
timed: a loop that does nothing but extend one PCR, for as many entries.
"""

from __future__ import annotations

import hashlib
import time

from benchmarks.figures import Against, Figure, from_samples, timed
from undercroft.appraise.ima import ImaAppraisal, appraise_ima
from undercroft.appraise.ima_carried import parse_carried
from undercroft.appraise.ima_rules import ImaJudge, ImaRules
from undercroft.base import Digest, Grade, HashAlgorithm, Outcome, PcrBank
from undercroft.formats.ima import parse_binary
from undercroft.policy import ReferenceRules
from undercroft.reference.files import compile_files
from undercroft.reference.model import Provenance, ReferenceValue
from undercroft.testing.ima import SimulatedIma, boot_pcrs
from undercroft.verify.ima import replay_ima

ENTRIES = 100_000
NEW = 10
_BANKS = (HashAlgorithm.SHA1, HashAlgorithm.SHA256)
_RESET_COUNT = 7


def _path(index: int) -> str:
    return f"/usr/lib/x86_64-linux-gnu/package{index % 977}/module_{index:06d}.so"


def references(count: int) -> ImaJudge:
    """Compile references for ``count`` paths of as many packages as a large installation has."""
    sources = [Provenance(Grade.PACKAGE, f"package{i}", "1.0-1") for i in range(977)]
    files = {}
    for index in range(count):
        path = _path(index)
        digest = Digest(HashAlgorithm.SHA256, hashlib.sha256(path.encode()).digest())
        files[path] = (ReferenceValue((digest,), path, sources[index % 977]),)
    rules = ImaRules(ReferenceRules((Grade.PACKAGE,)))
    return ImaJudge(rules, compile_files(files, "benchmark"))


def booted(count: int) -> SimulatedIma:
    """Return a kernel whose list has ``count`` entries, boot_aggregate among them."""
    kernel = SimulatedIma(boot_pcrs(*_BANKS))
    kernel.boot_aggregate()
    for index in range(count - 1):
        _measure(kernel, index)
    return kernel


def _measure(kernel: SimulatedIma, index: int) -> None:
    path = _path(index)
    kernel.measure(path, path.encode())


def appraise(
    data: bytes,
    quoted: PcrBank,
    judge: ImaJudge,
    boot: list[PcrBank],
    carried_bytes: bytes = b"",
) -> ImaAppraisal:
    """Parse, replay and judge the list ``data``."""
    carried = parse_carried(carried_bytes) if carried_bytes else None
    state = carried.state if carried else None
    measurements = parse_binary(data)
    replayed = replay_ima(measurements, quoted, reset_count=_RESET_COUNT, state=state)
    return appraise_ima(replayed, judge, boot, carried=carried)


def passed(appraisal: ImaAppraisal) -> ImaAppraisal:
    """Check that the timed work ended in a pass: a refusal would be much faster."""
    outcomes = {judgement.finding.outcome for judgement in appraisal.judgements}
    if outcomes != {Outcome.PASS}:
        raise RuntimeError(f"the benchmark's own list does not pass: {outcomes}")
    return appraisal


def figures() -> list[Figure]:
    """Measure, on one core, in this process."""
    judge = references(ENTRIES + NEW)
    kernel = booted(ENTRIES)
    raw: list[float] = []
    rates = [
        _rate(kernel, judge, HashAlgorithm.SHA256, "ima_entries_per_s", raw),
        _rate(kernel, judge, HashAlgorithm.SHA1, "ima_entries_per_s_sha1_bank", raw),
    ]
    limit = from_samples("ima_raw_sha256_extends_per_s", "1/s", raw)
    return [*rates, limit, _steady(kernel, judge)]


def _extend() -> None:
    """Extend one SHA-256 PCR as often as a list has entries, and do nothing else."""
    value, digest, sha256 = bytes(32), bytes(range(32)), hashlib.sha256
    for _ in range(ENTRIES):
        value = sha256(value + digest).digest()


def _rate(
    kernel: SimulatedIma, judge: ImaJudge, bank: HashAlgorithm, name: str, raw: list[float]
) -> Figure:
    data, quoted, boot = kernel.binary, kernel.bank(bank), list(kernel.boot.values())
    passed(appraise(data, quoted, judge, boot))
    rates: list[float] = []
    for _ in range(15):
        for action, taken in ((_extend, raw), (lambda: appraise(data, quoted, judge, boot), rates)):
            (seconds,) = timed(action, n=1, warm_up=0, clock=time.thread_time)
            taken.append(ENTRIES / seconds)
    return from_samples(name, "1/s", rates, against=Against("required", 600_000))


def _steady(kernel: SimulatedIma, judge: ImaJudge) -> Figure:
    """Time the IMA part of a steady appraisal: carried state in, new entries, state out."""
    quoted = kernel.bank(HashAlgorithm.SHA256)
    boot = list(kernel.boot.values())
    first = passed(appraise(kernel.binary, quoted, judge, boot))
    carried = first.carried.encode()
    before = len(kernel.binary)
    for index in range(ENTRIES, ENTRIES + NEW):
        _measure(kernel, index)
    new, later = kernel.binary[before:], kernel.bank(HashAlgorithm.SHA256)
    passed(appraise(new, later, judge, boot, carried))
    samples = timed(
        lambda: [appraise(new, later, judge, boot, carried).carried.encode() for _ in range(100)],
        n=30,
        clock=time.thread_time,
    )
    micro = [seconds * 1e4 for seconds in samples]
    return from_samples("ima_steady_us", "us", micro, against=Against("aim", 40))
