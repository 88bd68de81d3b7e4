"""The ``undercroft`` command: joins the verbs and maps errors to exit statuses."""

from __future__ import annotations

import typer

from undercroft.base import UndercroftError
from undercroft.cli import (
    demo,
    doctor,
    enroll,
    eventlog,
    evidence,
    exit_status,
    guest,
    ima,
    inspect,
    packages,
    policy,
    quote,
    reference,
    refset,
    shell,
    verify,
    watch,
)

app = typer.Typer(
    name="undercroft",
    help="Is that machine running what it should, right now?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.add_typer(guest.app, name="guest")
app.command("attach")(inspect.attach)
app.command("inspect")(inspect.inspect)
app.command("shell")(shell.shell)
app.add_typer(enroll.app, name="enroll")
app.add_typer(evidence.app, name="evidence")
app.command("verify")(verify.verify)
app.command("watch")(watch.watch)
app.add_typer(eventlog.app, name="eventlog")
app.add_typer(ima.app, name="ima")
app.add_typer(quote.app, name="quote")
app.add_typer(policy.app, name="policy")
refset.register(reference.app)
reference.app.add_typer(packages.app, name="packages")
app.add_typer(reference.app, name="reference")


@app.callback()
def _root() -> None:
    """Is that machine running what it should, right now?"""


def main() -> None:
    """Run the command line; an error of ours is printed without a traceback."""
    try:
        app()
    except UndercroftError as error:
        exit_status.report(error)
        raise SystemExit(exit_status.of(error)) from None
