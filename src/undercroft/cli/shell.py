"""``undercroft shell``: look inside a guest with drgn."""

from __future__ import annotations

import builtins
from typing import Annotated, Any

import typer

from undercroft import wiring
from undercroft.base import EnvironmentFault
from undercroft.cli.inspect import Kernel, Target
from undercroft.securekernel.linux.locate import locate

BANNER = """\
{name}: Linux {release}, live and read-only.
Types from BTF, symbols from the package; BTF knows no types of variables, so give one:
    Object(prog, "struct list_head", address=prog.symbol("modules").address)
"""


def shell(
    target: Target,
    kernel: Kernel = None,
    command: Annotated[
        str | None, typer.Option("--command", "-c", help="Run this Python code and end.")
    ] = None,
) -> None:
    """Open drgn on a guest, live and read-only, with nothing installed in it.

    Symbols and types come from the kernel's package; ``prog`` is the guest. It shows what is
    there, and says nothing about whether it is good: that is `undercroft inspect`.
    """
    try:
        import drgn.cli

        from undercroft.shell.program import open_program
    except ImportError as error:
        raise EnvironmentFault(
            "drgn is not installed", remedy="pip install 'undercroft[shell]'"
        ) from error
    opened = wiring.open_target(target, kernel)
    location = locate(opened.guest.memory, opened.guest.vcpus(), opened.image)
    if location.kernel is None:
        raise EnvironmentFault(
            f"the kernel was not found: {location.finding.summary}",
            where=target,
            remedy=f"undercroft inspect {target}",
        )
    prog = open_program(opened.guest, opened.image, location.kernel)
    if command is None:
        banner = BANNER.format(name=opened.guest.name, release=opened.image.release)
        drgn.cli.run_interactive(prog, banner_func=lambda _: banner)
        return
    names: dict[str, Any] = {"prog": prog, **drgn.cli.default_globals(prog)}
    builtins.exec(compile(command, "<command>", "exec"), names)  # what the person typed
