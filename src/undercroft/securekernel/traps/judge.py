"""Who judges a write to code, and what of the guest's memory comes and goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from undercroft.reference.kernel.rules import Rule
from undercroft.securekernel.traps.explain import Explainer
from undercroft.securekernel.traps.regions import Region
from undercroft.securekernel.traps.sites import Site, TextSites, probe_site


@dataclass(slots=True)
class TextJudge:
    """What is needed to judge writes to the kernel's text, or to a module's.

    ``base`` is the virtual address of _text, from which positions count for both.
    """

    base: int
    sites: TextSites
    explainer: Explainer

    def site_at(self, vaddr: int) -> Site | None:
        """Return the place at a virtual address; the guest's kprobes are read only if need be."""
        position = vaddr - self.base
        return self.sites.at(position) or probe_site(position, self.explainer.word.probes())

    def objection(self, vaddr: int) -> str:
        """Return why code must not be written at this address now; empty if it may be.

        The kernel announces what it is about to patch, and with which bytes.  SMP locks and
        kprobes are written without that (text_poke); probes are in a table of their own.
        """
        site = self.site_at(vaddr)
        if site is None:
            return "nothing patches the code here"
        if site.rule in (Rule.SMP_LOCK, Rule.KPROBE):
            return ""
        announced = self.explainer.word.announced()
        if announced is None:
            return ""
        new = announced.get(site.position)
        if new is None:
            probed = probe_site(vaddr - self.base, self.explainer.word.probes())
            return "" if probed else "the kernel has not announced a patch here"
        if site.states and not site.is_complete(new):
            return "the patch that was announced is none that this mechanism makes"
        return ""

    def take(self, vaddr: int, data: bytes) -> None:
        """Keep the copy of the live text up to date."""
        at = vaddr - self.base - self.explainer.live.start
        self.explainer.live.data[at : at + len(data)] = data


@dataclass(frozen=True, slots=True)
class Cover:
    """Regions that are covered, and given up, together: a module's, a process's.

    ``is_free`` tells of a place in them (region, virtual address, page) whether the guest has
    given it up; it is asked only about a write that would be a violation otherwise.
    """

    name: str
    regions: tuple[Region, ...]
    text: TextJudge | None
    is_free: Callable[[Region, int, int], bool]
