"""Run a benchmark by name.  A benchmark is a module here with ``run() -> list[Figure]``."""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys

import benchmarks
from benchmarks.figures import Figure

_NOT_BENCHMARKS = {"__main__", "figures"}


def _names() -> list[str]:
    found = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(n.replace("_", "-") for n in found if n not in _NOT_BENCHMARKS and n[0] != "_")


def _table(figures: list[Figure]) -> str:
    rows = [("figure", "value", "unit", "n", "median", "p99", "against")]
    for f in figures:
        against = f"{f.against.name}: {f.against.value:g}" if f.against else ""
        rows.append(
            (f.name, f"{f.value:.4g}", f.unit, str(f.n), f"{f.median:.4g}", f"{f.p99:.4g}", against)
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def main(arguments: list[str]) -> int:
    """Run the benchmark named in ``arguments``; print a table, or JSON with ``--json``."""
    as_json = "--json" in arguments
    names = [a for a in arguments if a != "--json"]
    if len(names) != 1 or names[0] not in _names():
        print("usage: ./dev bench NAME [--json]; names: " + ", ".join(_names()), file=sys.stderr)
        return 2
    figures: list[Figure] = importlib.import_module(
        f"benchmarks.{names[0].replace('-', '_')}"
    ).run()
    if as_json:
        print(json.dumps({"bench": names[0], "figures": [f.as_json() for f in figures]}))
    else:
        print(_table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
