"""The main job on a real guest: how long until a verdict, a sweep, a detection.

``boot_to_verdict_s``
    from the start of the guest's first process to the first verdict, references at hand;
``text_sweep_ms``
    one repeated comparison of all kernel text with the expected image;
``detect_poll_ms``
    from an inline patch in guest memory to the finding, polling every 100 ms at random phase. A
    second thread that watches the patched bytes themselves says when the change was.
"""

from __future__ import annotations

import datetime as dt
import random
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from benchmarks._guest import BenchGuest, bench_guest
from benchmarks.figures import Against, Figure, from_samples, timed
from undercroft import wiring
from undercroft.formats.ear import Tier
from undercroft.guests.attacks import PATCHED_FUNCTION, inline_patch
from undercroft.securekernel.inspect import SecureKernel
from undercroft.service.casefile import Case
from undercroft.service.collect import collect
from undercroft.service.detect import ByteWatch, poll_until_failed
from undercroft.service.ownguest import connect_vtpm, enrol_guest
from undercroft.service.verifier import appraise_case, new_challenge

BOOTS = 3
SWEEPS = 200
DETECTIONS = 20
POLL_S = 0.1


def run() -> list[Figure]:
    """Return the figures."""
    boots: list[float] = []
    for number in range(BOOTS):
        with bench_guest("bench-main") as bench:
            kernel, seconds = _first_verdict(bench)
            boots.append(seconds)
            if number == BOOTS - 1:
                sweeps = timed(partial(_sweep, kernel), n=SWEEPS, warm_up=3)
                detections = _detections(bench, kernel)
    return [
        from_samples("boot_to_verdict_s", "s", boots, against=Against("limit", 25)),
        from_samples(
            "text_sweep_ms", "ms", [1000 * s for s in sweeps], against=Against("limit", 15)
        ),
        from_samples("detect_poll_ms", "ms", [1000 * s for s in detections]),
    ]


def _first_verdict(bench: BenchGuest) -> tuple[SecureKernel, float]:
    info, policy = bench.guest.info, wiring.shipped_policy("direct-boot")
    target = wiring.open_target(f"qemu:{info.name}")
    kernel = SecureKernel(target.guest, target.image, target.kernel.library)
    with connect_vtpm(info) as client:
        trust = enrol_guest(client, info, wiring.home(), dt.datetime.now(dt.UTC))
        challenge = new_challenge(policy, int(time.time()))
        evidence = collect(kernel, client, challenge)
    case = Case(evidence, challenge, trust, bench.references, policy)
    appraisal = appraise_case(case, int(time.time()))
    seconds = time.monotonic() - bench.started
    if appraisal.verdict is not Tier.AFFIRMING:
        raise RuntimeError(f"the honest guest was not affirmed: {appraisal.unmet()}")
    return kernel, seconds


def _sweep(kernel: SecureKernel) -> None:
    if not kernel.proof.text_equal():
        raise RuntimeError("the honest guest's text differs")


def _detections(bench: BenchGuest, kernel: SecureKernel) -> list[float]:
    located = kernel.proof.kernel
    if located is None:
        raise RuntimeError("the kernel was lost")
    address = located.base + kernel.image.offset(PATCHED_FUNCTION)
    found_after: list[float] = []
    with inline_patch(bench.guest, address) as adversary, ThreadPoolExecutor(1) as poller:
        for _ in range(DETECTIONS):
            with ByteWatch(kernel, address, 16) as watch:
                finding = poller.submit(
                    poll_until_failed, kernel.proof.sweep, "kernel.text", interval=POLL_S
                )
                time.sleep(random.uniform(POLL_S, 2 * POLL_S))
                adversary.switch(True)
                _, found = finding.result()
            if watch.changed is None:
                raise RuntimeError("the patch was found before it was made")
            found_after.append(max(0.0, found - watch.changed))
            adversary.switch(False)
    return found_after
