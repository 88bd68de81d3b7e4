"""Runs volatility3's plugins on one dump, in one process; prints JSON.

usage: _volatility_worker.py SYMBOL_FOLDER DUMP PLUGIN...

The framework, the symbols and the layers are set up once, with the first plugin; the others get
the kernel that was found then, as volatility3's own shell (volshell) does.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

START = time.perf_counter()

import volatility3.plugins  # noqa: E402 - the time of importing it counts
import volatility3.symbols  # noqa: E402
from volatility3 import framework  # noqa: E402
from volatility3.framework import (  # noqa: E402
    automagic,
    constants,
    contexts,
    exceptions,
    interfaces,
    plugins,
)

FAILURES = (
    exceptions.VolatilityException,
    AttributeError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What plugins raise on a kernel that they do not know."""
Rows = list[dict[str, str]]


class Session:
    """One dump."""

    def __init__(self, symbols: str, dump: str) -> None:
        framework.require_interface_version(2, 0, 0)
        constants.OFFLINE = True
        constants.PARALLELISM = constants.Parallelism.Off
        volatility3.symbols.__path__ = [symbols, *constants.SYMBOL_BASEPATHS]
        framework.import_files(volatility3.plugins, True)
        self.known = framework.list_plugins()
        self.context = contexts.Context()
        self._automagics = automagic.available(self.context)
        self.context.config["automagic.LayerStacker.single_location"] = f"file://{dump}"
        self._kernel: Any = None

    def run(self, name: str) -> Rows:
        """Run one plugin and return its rows as text."""
        grid = self._plugin(name).run()
        columns = [column.name for column in grid.columns]
        rows: Rows = []

        def visit(node: Any, depth: int) -> int:
            rows.append({key: str(value) for key, value in zip(columns, node.values, strict=True)})
            return depth

        grid.populate(visit, 0)
        return rows

    def _plugin(self, name: str) -> Any:
        chosen = self.known[name]
        path = interfaces.configuration.path_join("plugins", chosen.__name__)
        key = interfaces.configuration.path_join(path, "kernel")
        if self._kernel is not None:
            self.context.config[key] = self._kernel
            unsatisfied = chosen.unsatisfied(self.context, path)
            if unsatisfied:
                raise RuntimeError(f"{name} wants {', '.join(unsatisfied)}")
            return chosen(self.context, path)
        magic = automagic.choose_automagic(self._automagics, chosen)
        made = plugins.construct_plugin(self.context, magic, chosen, "plugins", None, None)
        self._kernel = self.context.config[key]
        return made


def main(symbols: str, dump: str, names: list[str]) -> None:
    """Run the plugins and print what each said."""
    session = Session(symbols, dump)
    ready = time.perf_counter()
    said: dict[str, Any] = {}
    for name in names:
        begun = time.perf_counter()
        try:
            rows, error = session.run(name), ""
        except FAILURES as failure:
            rows, error = [], f"{type(failure).__name__}: {failure}"[:200]
        said[name] = {"rows": rows, "error": error, "seconds": time.perf_counter() - begun}
    json.dump({"start_seconds": ready - START, "plugins": said}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
