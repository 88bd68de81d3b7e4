"""Kernel text against its package, on a real guest.

``profile_s``
    from the largest kernel package here (6.12 for all machines, 4,200 modules) to its profile,
    every module's signature verified;
``first_proof_s``
    from a profile in memory to the first complete comparison of a running guest;
``sweep_ratio``
    a repeated comparison of all kernel text, page tables included, over a plain comparison of
    as many bytes; the two are timed in turns, so that the machine's load falls on both;
``pause_ms``
    how long the guest stands still to settle a mismatch that stays one. Nothing else pauses it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks._guest import BenchGuest, bench_guest
from benchmarks.figures import Against, Figure, from_samples, timed
from undercroft import wiring
from undercroft.formats.kernel.profile import parse_profile
from undercroft.guests.attacks import PATCHED_FUNCTION, inline_patch
from undercroft.packages import Archive
from undercroft.packages.kernel_profile import build_profile, package_identity
from undercroft.securekernel.guest import Guest
from undercroft.securekernel.linux.text import KernelTextProof
from undercroft.testing.kernelmatrix import FLAVOURS, kernel_package

LARGEST = next(flavour for flavour in FLAVOURS if flavour.name == "6.12 generic")
PROFILES = 3
PROOFS = 10
SWEEPS = 200
MISMATCHES = 20


def run() -> list[Figure]:
    """Return the figures."""
    with bench_guest("bench-text") as bench:
        deb = _package(bench)
        identity = package_identity(deb)
        largest = kernel_package(wiring.home(), LARGEST).path.read_bytes()
        whole = partial(build_profile, largest, package_identity(largest), [])
        profiles = timed(whole, n=PROFILES, warm_up=0)
        guest = wiring.open_target(f"qemu:{bench.guest.info.name}").guest
        profile = build_profile(deb, identity, [])
        proofs = timed(partial(first_proof, guest, profile), n=PROOFS)
        proof = first_proof(guest, profile)
        ratios = sweep_ratios(proof, SWEEPS)
        pauses = _pauses(bench, guest, profile)
    return [
        from_samples("profile_s", "s", profiles, against=Against("limit", 20)),
        from_samples("first_proof_s", "s", proofs, against=Against("limit", 2)),
        from_samples("sweep_ratio", "", ratios, against=Against("limit", 1.5)),
        from_samples("pause_ms", "ms", [1000 * s for s in pauses], against=Against("limit", 2)),
    ]


def _package(bench: BenchGuest) -> bytes:
    """Return the package that the guest's kernel came from."""
    name = f"linux-image-{bench.build.kernel_release}"
    archive = Archive(wiring.home() / "apt", now=_now())
    return archive.fetch(name).path.read_bytes()


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def first_proof(
    guest: Guest,
    profile: bytes,
    paused: Callable[[], contextlib.AbstractContextManager[None]] | None = None,
) -> KernelTextProof:
    """Attach to a guest with a profile at hand and compare everything once."""
    parsed = parse_profile(profile)
    proof = KernelTextProof.attach(
        guest.memory,
        guest.vcpus(),
        parsed.kernel,
        paused=paused or guest.paused,
        library=parsed.module,
    )
    if not proof.text_equal():
        raise RuntimeError("the honest guest's text differs")
    return proof


def sweep_ratios(proof: KernelTextProof, count: int) -> list[float]:
    """Time sweeps and plain comparisons in turns; return the ratio of each pair."""
    size = proof.image.text_size
    one, two = bytearray(size), bytes(size)
    ratios = []
    for _ in range(count):
        start = time.perf_counter()
        equal = one == two
        middle = time.perf_counter()
        equal &= proof.text_equal()
        end = time.perf_counter()
        if not equal:
            raise RuntimeError("the honest guest's text differs")
        ratios.append((end - middle) / (middle - start))
    return ratios


def text_sweep_ms(proof: KernelTextProof, count: int = SWEEPS) -> list[float]:
    """Return how long each of ``count`` sweeps of all kernel text took, in milliseconds."""
    return [1000 * seconds for seconds in timed(proof.text_equal, n=count, warm_up=3)]


def _pauses(bench: BenchGuest, guest: Guest, profile: bytes) -> list[float]:
    """Patch a function and settle the mismatch again and again, timing how long the guest stood."""
    pauses: list[float] = []

    @contextlib.contextmanager
    def paused() -> Iterator[None]:
        with guest.paused():
            start = time.perf_counter()
            yield
            pauses.append(time.perf_counter() - start)

    proof = first_proof(guest, profile, paused)
    assert proof.kernel is not None
    target = proof.image.symbols.address(PATCHED_FUNCTION) + proof.kernel.slide
    with inline_patch(bench.guest, target) as adversary:
        adversary.switch(True)
        for _ in range(MISMATCHES):
            proof.sweep()
        adversary.switch(False)
    return pauses
