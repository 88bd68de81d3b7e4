"""How findings, verdicts and code are shown to a person."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from undercroft.appraise.explain import explain
from undercroft.appraise.model import Appraisal, Judgement
from undercroft.base import Finding, JsonValue, Outcome
from undercroft.formats.ear import Tier

MARK = {
    Outcome.PASS: Text("pass", style="green"),
    Outcome.FAIL: Text("FAIL", style="bold red"),
    Outcome.UNKNOWN: Text("????", style="bold yellow"),
}
VERDICT_STYLE = {
    Tier.AFFIRMING: "bold green",
    Tier.WARNING: "bold yellow",
    Tier.NONE: "bold yellow",
    Tier.CONTRAINDICATED: "bold red",
}
VERDICT_WORDS = {
    Tier.AFFIRMING: "AFFIRMING: it runs what it should",
    Tier.WARNING: "WARNING: something is not as it should be",
    Tier.NONE: "NONE: there is not enough to tell",
    Tier.CONTRAINDICATED: "CONTRAINDICATED: it does not run what it should",
}


def console(*, record: bool = False) -> Console:
    """Return a console that neither highlights nor reads markup in what a guest may have said.

    With ``record`` what it prints can be saved as a picture.
    """
    return Console(record=record, highlight=False, markup=False, emoji=False)


def findings_table(findings: Iterable[Finding], *, title: str = "") -> Table:
    """Return a table: outcome, what was checked, what was found, where the reference came from."""
    return _table(((MARK[finding.outcome], finding) for finding in findings), title)


def _table(rows: Iterable[tuple[Text, Finding]], title: str) -> Table:
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, expand=True)
    table.add_column("", width=4)
    table.add_column("checked", no_wrap=True)
    table.add_column("found", ratio=3)
    table.add_column("reference", ratio=2, style="dim")
    for mark, finding in rows:
        table.add_row(mark, finding.id, finding.summary, finding.source)
    return table


SHOWN_ALONE = frozenset(("kernel.reference", "kernel.located", "kernel.text", "kernel.rodata"))
"""Checks that a reader looks for by name: they are never put together with others."""

_FEW = 3
"""So many passing checks of one kind are listed; more are put into one row."""


def _judged(judgements: Iterable[Judgement], *, every: bool) -> Iterator[tuple[Text, Finding]]:
    """Mark each finding that counts; what passes is put together by kind unless ``every``."""
    counting = [judgement.finding for judgement in judgements if judgement.tier is not None]
    for _, run in itertools.groupby(counting, key=_kind):
        findings = list(run)
        alike = not every and len(findings) > _FEW and findings[0].outcome is Outcome.PASS
        for finding in [_together(findings)] if alike else findings:
            yield MARK[finding.outcome], finding


def _kind(finding: Finding) -> tuple[str, Outcome]:
    alone = finding.id in SHOWN_ALONE
    return finding.id if alone else finding.id.rpartition(".")[0], finding.outcome


def _together(findings: Sequence[Finding]) -> Finding:
    """Return one finding that stands for several that pass."""
    kind, outcome = _kind(findings[0])
    names = ", ".join(finding.id.rpartition(".")[2] for finding in findings)
    sources = list(dict.fromkeys(finding.source for finding in findings if finding.source))
    more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
    summary = f"all {len(findings)}: {names}"
    return Finding(f"{kind}.*", outcome, summary, {}, "".join(sources[:1]) + more)


def shown(path: Path) -> str:
    """Return a path as a person here would type it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def verdict_line(appraisal: Appraisal) -> Text:
    """Return the verdict as one line."""
    tier = appraisal.verdict
    return Text(VERDICT_WORDS[tier], style=VERDICT_STYLE[tier])


def appraisal_view(appraisal: Appraisal, *, title: str = "", every: bool = False) -> RenderableType:
    """Return the whole appraisal: what was found, what keeps it from affirming, the verdict.

    With ``every`` each check that passes has a row of its own.
    """
    rows = _judged(appraisal.judgements, every=every)
    parts: list[RenderableType] = [_table(rows, title)]
    if stated := sum(judgement.tier is None for judgement in appraisal.judgements):
        note = f"and {stated} findings that the policy does not ask for; --json has them"
        parts.append(Text(note, style="dim"))
    parts.append(Text())
    unmet = appraisal.unmet()
    if unmet:
        parts += [_reasons(unmet), Text(), _advice(unmet), Text()]
    parts.append(verdict_line(appraisal))
    return Group(*parts)


def _reasons(unmet: Sequence[Judgement]) -> Table:
    table = Table(box=None, pad_edge=False, title="because", title_justify="left")
    table.add_column("", style="bold")
    table.add_column("")
    for judgement in unmet:
        label = judgement.tier.label if judgement.tier else ""
        table.add_row(label, f"{judgement.finding.id}: {judgement.finding.summary}")
    return table


def _advice(unmet: Sequence[Judgement]) -> Table:
    """Return which rules decided, each once, with what a person might do about it."""
    table = Table(box=None, pad_edge=False, title="by the rule", title_justify="left")
    table.add_column("", style="bold")
    table.add_column("")
    for rule, suggestion in dict.fromkeys((w.rule, w.suggestion) for w in map(explain, unmet)):
        table.add_row(rule, suggestion)
    return table


def mismatch_view(mismatch: Mapping[str, JsonValue]) -> RenderableType:
    """Return one place in the kernel's text that no rule explains, code before and after."""
    code = Table(box=None, pad_edge=False, expand=True)
    code.add_column("the package says", ratio=1, style="green")
    code.add_column("the guest has", ratio=1, style="red")
    before, after = _lines(mismatch.get("expected_code")), _lines(mismatch.get("found_code"))
    for index in range(max(len(before), len(after))):
        code.add_row(
            before[index] if index < len(before) else "", after[index] if index < len(after) else ""
        )
    about = f"{mismatch.get('address')}  {mismatch.get('symbol')}  in {mismatch.get('owner')}"
    rule = f"rule: {mismatch.get('reason')}"
    return Panel(
        Group(Text(about, style="bold"), Text(textwrap.shorten(rule, 200)), Text(), code),
        title="unexplained code",
        title_align="left",
        border_style="red",
    )


def _lines(value: JsonValue) -> list[str]:
    return [str(line) for line in value] if isinstance(value, list | tuple) else []


def mismatches(findings: Iterable[Finding]) -> list[Mapping[str, JsonValue]]:
    """Return the mismatches with code that ``findings`` carry."""
    listed = (finding.details.get("mismatches") for finding in findings)
    return [
        one
        for places in listed
        for one in (places if isinstance(places, list | tuple) else ())
        if isinstance(one, Mapping) and "found_code" in one
    ]
