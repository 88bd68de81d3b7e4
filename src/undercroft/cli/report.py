"""The report of `undercroft inspect`: for somebody who was woken up by it.

First whether anything is wrong, then what and where, how sure that is, and how to look closer;
after that what was examined and found well, by family.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from undercroft.base import Finding, JsonValue, Outcome
from undercroft.cli import render

SHOWN = 6
"""Places that are listed of one finding; --json has more."""
_WIDTH = 160
_WHERE = ("address", "pointer_address", "hook", "place")
_SURE = {
    Outcome.FAIL: "certain: every look saw it, the later ones with the guest held still",
    Outcome.UNKNOWN: "not certain: it may be lawful, and this cannot be told from outside",
}
_FAMILIES = (
    ("kernel.text", "code of the kernel"),
    ("kernel.rodata", "code of the kernel"),
    ("kernel.located", "code of the kernel"),
    ("kernel.generated", "code of the kernel"),
    ("kernel.notable", "code of the kernel"),
    ("kernel.realmode", "code of the kernel"),
    ("kernel.modules", "modules"),
    ("kernel.closure", "what could be executed"),
    ("kernel.hooks", "hooks and calls to come"),
    ("kernel.pointers", "hooks and calls to come"),
    ("kernel.ops", "hooks and calls to come"),
    ("kernel.bpf", "BPF"),
    ("kernel.creds", "processes and their rights"),
    ("kernel.tasks", "processes and their rights"),
    ("kernel.sockets", "processes and their rights"),
    ("kernel.mounts", "processes and their rights"),
    ("kernel.security", "defences"),
    ("user", "programs"),
    ("kernel.vdso", "programs"),
    ("cpu", "processors"),
    ("kernel.features", "processors"),
    ("kernel.cpu", "processors"),
)
"""Which family a fact belongs to, by the longest start of its id."""
_OTHER = "the rest"


def report_view(facts: Sequence[Finding], *, title: str, target: str) -> RenderableType:
    """Return the whole report on one guest; ``target`` is how it is named on the command line."""
    wrong = [fact for fact in facts if fact.outcome is Outcome.FAIL]
    untold = [fact for fact in facts if fact.outcome is Outcome.UNKNOWN]
    parts: list[RenderableType] = [Text(title, style="bold"), headline(facts), Text()]
    for fact in (*wrong, *untold):
        parts += [_problem(fact, target), Text()]
    parts.append(_examined(facts))
    return Group(*parts)


def headline(facts: Sequence[Finding]) -> Text:
    """Return the first thing to know."""
    counts = {
        outcome: sum(fact.outcome is outcome for fact in facts)
        for outcome in (Outcome.FAIL, Outcome.UNKNOWN, Outcome.PASS)
    }
    told = f"{counts[Outcome.PASS]} of {len(facts)} facts are well"
    if counts[Outcome.FAIL]:
        text = f"SOMETHING IS WRONG: {_facts(counts[Outcome.FAIL])} failed"
        if counts[Outcome.UNKNOWN]:
            text += f", {_facts(counts[Outcome.UNKNOWN])} could not be told"
        return Text(f"{text}; {told}", style="bold red")
    if counts[Outcome.UNKNOWN]:
        text = f"nothing wrong was found, but {_facts(counts[Outcome.UNKNOWN])} could not be told"
        return Text(f"{text}; {told}", style="bold yellow")
    return Text(f"nothing wrong was found: all {len(facts)} facts are well", style="bold green")


def _facts(count: int) -> str:
    return "one fact" if count == 1 else f"{count} facts"


def _problem(fact: Finding, target: str) -> RenderableType:
    """Return what is wrong with one fact, how sure that is, and how to look closer."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    places = _places(fact)
    for number, place in enumerate(places[:SHOWN]):
        table.add_row("found" if not number else "", _line(place))
    count = fact.details.get("count")
    total = count if isinstance(count, int) else len(places)
    if total > min(len(places), SHOWN):
        table.add_row("", f"and {total - min(len(places), SHOWN)} more; --json lists them")
    table.add_row("how sure", _SURE[fact.outcome])
    limits = fact.details.get("limits")
    if isinstance(limits, list | tuple) and limits:
        table.add_row("bear in mind", "; ".join(map(str, limits)))
    for number, command in enumerate(closer(fact, target)):
        table.add_row("look closer" if not number else "", Text(command, style="bold"))
    mark = render.MARK[fact.outcome]
    style = "red" if fact.outcome is Outcome.FAIL else "yellow"
    return Panel(
        Group(Text(fact.summary, style="bold"), table),
        title=Text.assemble(mark, " ", fact.id),
        title_align="left",
        border_style=style,
    )


def _places(fact: Finding) -> list[Mapping[str, JsonValue]]:
    """Return what a finding lists, whatever its kind calls it."""
    for name in ("anomalies", "mismatches"):
        listed = fact.details.get(name)
        if isinstance(listed, list | tuple):
            return [one for one in listed if isinstance(one, Mapping)]
    problems = fact.details.get("problems")
    if isinstance(problems, Mapping):
        return [{str(name): text} for name, text in problems.items()]
    return []


def _line(place: Mapping[str, JsonValue]) -> str:
    """Return one place as words: short values only, code is shown elsewhere."""
    words = (
        f"{name.replace('_', ' ')} {_value(value)}"
        for name, value in place.items()
        if not name.endswith("_code") and value not in ("", None)
    )
    text = ", ".join(words)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _value(value: JsonValue) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " and ".join(map(str, value)) if value else "none"
    return str(value)


def closer(fact: Finding, target: str) -> Iterator[str]:
    """Yield commands that show more of the first places that a fact names."""
    if fact.outcome is Outcome.PASS:
        return
    shell = f"undercroft shell {shlex.quote(target)} -c"
    code = [
        text
        for place in _places(fact)[:2]
        for text in (_task(place), _memory(place))
        if text is not None
    ]
    for text in dict.fromkeys(code):
        yield f"{shell} {shlex.quote(text)}"
    yield f"undercroft inspect {shlex.quote(target)} --json   # every detail"


def _task(place: Mapping[str, JsonValue]) -> str | None:
    pid = place.get("pid")
    return f"print(find_task(prog, {pid}))" if isinstance(pid, int) else None


def _memory(place: Mapping[str, JsonValue]) -> str | None:
    """Return code that shows the bytes at a kernel address; None if the place names none."""
    for name in ("target", *_WHERE):
        text = place.get(name)
        if isinstance(text, str) and text.startswith("0xffff"):
            return f"print(prog.read({text}, 64).hex(' '))"
    return None


def _examined(facts: Sequence[Finding]) -> RenderableType:
    """Return what passed, one row for each family."""
    table = Table(box=None, pad_edge=False, title="examined, and well", title_justify="left")
    table.add_column("", width=4)
    table.add_column("", no_wrap=True)
    table.add_column("")
    passed = [fact for fact in facts if fact.outcome is Outcome.PASS]
    order = {name: number for number, name in enumerate(dict.fromkeys(n for _, n in _FAMILIES))}
    ranked = sorted(passed, key=lambda fact: order.get(_family(fact.id), len(order)))
    for family, members in itertools.groupby(ranked, key=lambda fact: _family(fact.id)):
        listed = list(members)
        alone = listed[0].summary if len(listed) == 1 else None
        names = alone or ", ".join(_short(fact) for fact in listed)
        table.add_row(render.MARK[Outcome.PASS], family, names)
    return table


def _family(name: str) -> str:
    fitting = [(len(start), family) for start, family in _FAMILIES if name.startswith(start)]
    return max(fitting)[1] if fitting else _OTHER


def _short(fact: Finding) -> str:
    """Return a fact's name without what its family says already."""
    first, _, rest = fact.id.partition(".")
    name = rest if first in ("kernel", "user", "cpu") else fact.id
    size = fact.details.get("bytes")
    return f"{name} ({size:,} bytes)" if isinstance(size, int) and size > 0 else name
