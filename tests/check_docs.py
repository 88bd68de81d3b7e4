"""Hold the documentation against the program: run by ``./dev check``, mended by ``./dev fmt``.

Generated and compared are docs/cli.md (every verb's ``--help``), docs/checks.md (every numbered
check and every quirk, from the tables in the code) and the size of the trusted computing base in
docs/threat-model.md; compared is the list of verbs in README.md, which a person writes but which
must name every verb that exists and none that does not.
"""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import grimp
from typer.main import get_command

import undercroft.appraise
import undercroft.verify
from undercroft.cli.main import app
from undercroft.formats.tpm import certificate
from undercroft.verify import checks_key_certificate, ima_quirks, quirks
from undercroft.verify.checks import Check
from undercroft.verify.quirks import Quirk

ROOT = Path(__file__).resolve().parent.parent
CLI = ROOT / "docs" / "cli.md"
CHECKS = ROOT / "docs" / "checks.md"
THREAT_MODEL = ROOT / "docs" / "threat-model.md"
TCB_MARKS = ("<!-- tcb: generated -->", "<!-- tcb: end -->")
SECURE_KERNEL = "undercroft.securekernel"


def _help_pages(command: Any, path: str) -> list[tuple[str, str]]:
    """Return every command below ``command`` with its help text."""
    context = command.context_class(command, info_name=path, terminal_width=96)
    pages = [(path, command.get_help(context))]
    for name in sorted(getattr(command, "commands", {})):
        pages += _help_pages(command.commands[name], f"{path} {name}")
    return pages


def cli_page() -> str:
    """Return docs/cli.md as it must be."""
    lines = [
        "# The command line",
        "",
        "Made from the program's own `--help` by `./dev fmt`; `./dev check` compares them.",
        "",
        "Exit status: 0 affirmed, 1 our own failure, 2 usage, 3 contraindicated, 4 not enough to",
        "tell, 5 evidence not authentic.",
    ]
    for path, text in _help_pages(get_command(app), "undercroft"):
        body = "\n".join(line.rstrip() for line in text.splitlines()).strip()
        lines += ["", f"## {path}", "```", body, "```"]
    return "\n".join(lines) + "\n"


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        yield importlib.import_module(f"{package.__name__}.{info.name}")


def _check_tables() -> Iterator[tuple[ModuleType, tuple[Check, ...]]]:
    """Yield each module's table of checks, none twice."""
    for package in (undercroft.verify, undercroft.appraise):
        for module in _modules(package):
            found = getattr(module, "CHECKS", None)
            if isinstance(found, tuple) and all(isinstance(check, Check) for check in found):
                yield module, found


def _quirk_rows() -> Iterator[tuple[str, str, list[tuple[str, str, str]]]]:
    """Yield each quirk table: a title, the module, and its rows as id, text, source."""
    tables: tuple[tuple[str, ModuleType, tuple[Quirk, ...] | Mapping[str, str]], ...] = (
        ("Event logs, seen in the log", quirks, quirks.LOG_QUIRKS),
        ("Event logs, tried where a PCR differs", quirks, quirks.REPLAY_QUIRKS),
        ("IMA lists", ima_quirks, ima_quirks.QUIRKS),
        ("Bytes around a certificate", certificate, certificate.QUIRKS),
        ("TPM key certificates", checks_key_certificate, checks_key_certificate.QUIRKS),
    )
    for title, module, table in tables:
        if isinstance(table, tuple):
            rows = [(row.id, row.summary, row.source) for row in table]
        else:
            rows = [(name, text, "") for name, text in table.items()]
        yield title, module.__name__, rows


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def checks_page() -> str:
    """Return docs/checks.md as it must be."""
    lines = [
        "# The checks and the quirks",
        "",
        "Made from the tables in the code by `./dev fmt`; `./dev check` compares them.",
        "",
        "A check has a number, by which the code is labelled, and an id, which errors and findings",
        "carry. Numbers and ids are never given twice.",
    ]
    for module, table in _check_tables():
        title = (module.__doc__ or "").strip().split("\n")[0].rstrip(".")
        lines += ["", f"## {title}", f"`{module.__name__}`", ""]
        lines += ["| number | id | what must hold | clause |", "|---|---|---|---|"]
        lines += [_row(c.number, f"`{c.id}`", c.says, c.source or "our own rule") for c in table]
    lines += ["", "# Quirks", "", "Departures that are believed. A result says which fired."]
    for title, name, rows in _quirk_rows():
        lines += ["", f"## {title}", f"`{name}`", ""]
        lines += ["| id | what happens | known from |", "|---|---|---|"]
        lines += [_row(f"`{row[0]}`", *row[1:]) for row in rows]
    return "\n".join(lines) + "\n"


def _check_complaints() -> list[str]:
    """Every check has a number and an id of its own."""
    complaints = []
    seen: dict[str, Check] = {}
    for module, table in _check_tables():
        for check in table:
            complaints += [
                f"{module.__name__}: {name} is another check's already"
                for name in (check.number, check.id)
                if seen.setdefault(name, check) != check
            ]
    return complaints


def _code_lines(path: Path) -> int:
    """Return the lines of a module that hold code: no blanks, comments or docstrings."""
    source = path.read_text()
    skip: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        for child in body if isinstance(body, list) else ():
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                skip.update(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    rows = enumerate(source.splitlines(), 1)
    return sum(1 for n, row in rows if n not in skip and row.strip() and row.strip()[0] != "#")


def tcb_table() -> str:
    """Return the generated table of the trusted computing base.

    What runs in the secure kernel's process: its own modules and all that they import.
    """
    graph = grimp.build_graph("undercroft", include_external_packages=True)
    own = graph.find_descendants(SECURE_KERNEL)
    used = own | {SECURE_KERNEL} | set().union(*map(graph.find_upstream_modules, own))
    lines: dict[str, list[int]] = {}
    for module in used:
        if module.startswith("undercroft"):
            path = ROOT / "src" / module.replace(".", "/")
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            folder = "/".join(path.relative_to(ROOT / "src" / "undercroft").parts[:-1][:2]) or "."
            lines.setdefault(folder, []).append(_code_lines(path))
    rows = ["| package | files | lines of code |", "|---|---:|---:|"]
    rows += [f"| {name} | {len(n)} | {sum(n)} |" for name, n in sorted(lines.items())]
    every = [count for counts in lines.values() for count in counts]
    rows.append(f"| together | {len(every)} | {sum(every)} |")
    libraries = {name for name in used if not name.startswith("undercroft")}
    libraries -= set(sys.stdlib_module_names)
    return "\n".join(
        [*rows, "", f"Libraries besides Python's own: {', '.join(sorted(libraries))}."]
    )


def threat_model_page() -> str:
    """Return docs/threat-model.md with its generated part as it must be."""
    start, end = TCB_MARKS
    text = THREAT_MODEL.read_text()
    before, rest = text.split(start, 1)
    after = rest.split(end, 1)[1]
    return f"{before}{start}\n{tcb_table()}\n{end}{after}"


def _readme_complaints() -> list[str]:
    verbs = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"`undercroft ([a-z][a-z-]+)", (ROOT / "README.md").read_text()))
    return [f"README.md does not name the verb {v}" for v in sorted(verbs - named)] + [
        f"README.md names the verb {v}, which does not exist" for v in sorted(named - verbs)
    ]


def main() -> int:
    """Compare, or with ``--update`` write, the generated documentation."""
    os.environ["COLUMNS"] = "96"
    pages = {CLI: cli_page(), CHECKS: checks_page(), THREAT_MODEL: threat_model_page()}
    if "--update" in sys.argv:
        for path, text in pages.items():
            path.write_text(text)
        return 0
    complaints = [
        f"{path.relative_to(ROOT)} is out of date: run ./dev fmt"
        for path, text in pages.items()
        if not path.exists() or path.read_text() != text
    ]
    complaints += _readme_complaints() + _check_complaints()
    sys.stderr.write("".join(complaint + "\n" for complaint in complaints))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
