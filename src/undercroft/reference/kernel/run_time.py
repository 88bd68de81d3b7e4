"""What keeps changing while the kernel runs, and the passes that follow it.

The tables are decoded once; :func:`paint` reads the guest's variables and paints the sites.  A
:class:`RunTime` may be narrowed to the sites on a few pages, so that a look at a guest that is
held still for it takes no longer than it must.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from undercroft.formats.kernel import KernelImage
from undercroft.formats.kernel.sites import JumpTable
from undercroft.reference.kernel import (
    call_thunks,
    ftrace,
    jump_labels,
    kprobes,
    simple_sites,
    static_calls,
    text_poke,
)
from undercroft.reference.kernel.canvas import Canvas, Mask, Positions
from undercroft.reference.kernel.guest import GuestStructs, GuestValues
from undercroft.reference.kernel.returns import ReturnChoice
from undercroft.reference.kernel.rules import Rule

RULES = frozenset((Rule.FTRACE, Rule.JUMP_LABEL, Rule.STATIC_CALL, Rule.SMP_LOCK))
OVERLAYS = frozenset((Rule.KPROBE, Rule.TEXT_POKE))
"""Rules whose sites are anywhere: they are painted over the others and taken away again."""
PAGE_SHIFT = 12
_SITE = 6
"""No site that is patched while the kernel runs is longer."""


@dataclass(frozen=True, slots=True)
class RunTime:
    """The sites of a canvas whose bytes follow the guest's variables."""

    labels: jump_labels.JumpLabels
    calls: static_calls.StaticCalls
    call_constants: static_calls.StaticCallConstants
    traced: Positions
    locks: Positions
    returns: ReturnChoice
    thunks: call_thunks.CallThunks | None
    functions: Positions
    """Where functions start on the canvas: what may have a call-depth pad."""
    pads: tuple[Canvas, ...] = ()
    """The canvases with the pads of what is called here; none: the canvas itself."""

    def within(self, pages: Positions) -> RunTime:
        """Return only the sites that touch ``pages`` (position >> 12)."""

        def on(sites: Positions) -> Mask:
            touched: Mask = np.isin(sites >> PAGE_SHIFT, pages) | np.isin(
                (sites + 5) >> PAGE_SHIFT, pages
            )
            return touched

        return self._where(on)

    def near(self, places: Positions) -> RunTime:
        """Return only the sites that have a byte among ``places`` (ascending positions)."""

        def on(sites: Positions) -> Mask:
            first, last = (np.searchsorted(places, sites + step) for step in (0, _SITE))
            touched: Mask = last > first
            return touched

        return self._where(on)

    def sites(self) -> frozenset[int]:
        """Return every site that may be patched while the kernel runs, but for LOCK prefixes."""
        tables = (self.labels.table.code, self.calls.site, self.traced)
        return frozenset(site for table in tables for site in table.tolist())

    def below(self, stop: int) -> RunTime:
        """Return only the sites before position ``stop``: not those of freed code."""

        def on(sites: Positions) -> Mask:
            before: Mask = sites < stop
            return before

        return self._where(on)

    def _where(self, on: Callable[[Positions], Mask]) -> RunTime:
        table, calls = self.labels.table, self.calls
        mine = on(table.code)
        labels = jump_labels.JumpLabels(
            JumpTable(table.code[mine], table.target[mine], table.key[mine], table.branch[mine]),
            self.labels.size[mine],
        )
        mine = on(calls.site)
        return replace(
            self,
            labels=labels,
            calls=static_calls.StaticCalls(
                calls.site[mine], calls.key[mine], calls.tail[mine], calls.jcc[mine]
            ),
            traced=self.traced[on(self.traced)],
            locks=self.locks[on(self.locks)],
        )


@dataclass(frozen=True, slots=True)
class RunTimeState:
    """What the guest's variables said at one moment."""

    early_returns: int
    late_pads: int
    uniprocessor: bool
    tracing: ftrace.Tracing
    probes: tuple[kprobes.Probe, ...]
    moving: Positions
    """Sites that the kernel was in the middle of changing (``text_poke``), ascending."""
    under_way: text_poke.UnderWay
    """What the kernel said that it was changing."""
    call_targets: Positions
    """Where static calls lead, each once (positions)."""


def paint(
    image: KernelImage,
    run_time: RunTime,
    canvas: Canvas,
    values: GuestValues,
    live: Canvas,
    records: ftrace.Records,
    *,
    some: bool = False,
    uniprocessor: bool | None = None,
) -> RunTimeState:
    """Paint every run-time site as the guest's variables say it is now.

    Whether LOCK prefixes are patched out is inferred from all of them unless ``uniprocessor``
    says so: a few sites must not decide for themselves.  ``some`` tells that ``run_time`` is
    narrowed, and that ``records`` has seen all of it before.
    """
    thunks = run_time.thunks
    now = text_poke.under_way(image, values)
    functions = static_calls.functions(run_time.calls, values)
    late = 0
    if thunks is not None:
        late = call_thunks.late_pads(run_time.functions, canvas, live, thunks, functions)
    tracing = ftrace.apply(image, run_time.traced, canvas, values, live, records, some=some)
    ftrace.apply_calls(image, canvas, values, live, thunks)
    keys = jump_labels.read_keys(run_time.labels, values)
    jump_labels.apply(run_time.labels, canvas, keys.jumps)
    early = static_calls.apply(
        run_time.calls,
        canvas,
        functions,
        run_time.returns,
        run_time.call_constants,
        live,
        thunks,
        run_time.pads or (canvas,),
    )
    if uniprocessor is None:
        uniprocessor = simple_sites.infer_uniprocessor(run_time.locks, live)
    simple_sites.smp_locks(run_time.locks, canvas, uniprocessor=uniprocessor)
    probes = kprobes.read_probes(image, GuestStructs(values, image.btf))
    armed, half_way = kprobes.apply(probes, canvas, live)
    hook_calls = ftrace.call_sites(image, canvas)
    movable = text_poke.Movable(
        labels=run_time.labels,
        changing=keys.changing,
        calls=run_time.calls,
        traced=tracing.sites,
        locks=run_time.locks,
        hooks=tracing.hooks,
        hook_calls=hook_calls,
        pad=thunks.size if thunks is not None else 0,
    )
    moving = text_poke.moving(image, now, movable, canvas, live)
    if Rule.KPROBE in now.locked:
        moving += half_way
    announced = now.announced
    if some:  # the others are not asked about, and the guest may be held still for this
        announced &= run_time.sites() | {*hook_calls.tolist(), *(each.site for each in probes)}
    moving += text_poke.apply(image, announced, movable, canvas, live)
    return RunTimeState(
        early_returns=early,
        late_pads=late,
        uniprocessor=uniprocessor,
        tracing=tracing,
        probes=armed,
        moving=np.unique(np.array(moving, dtype=np.int64)),
        under_way=now,
        call_targets=np.unique(functions),
    )
