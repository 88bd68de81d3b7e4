"""``undercroft guest``: build, run, list and stop guests."""

from __future__ import annotations

import datetime as dt
import enum
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table

from undercroft import wiring
from undercroft.base import EnvironmentFault, JsonValue
from undercroft.guests.accel import Accel
from undercroft.guests.build import build_micro
from undercroft.guests.chain import Chain
from undercroft.guests.debian.build import build_debian
from undercroft.guests.manifest import GuestBuild
from undercroft.guests.run import Guest, RunOptions, guests, start
from undercroft.packages import Archive, Refresh
from undercroft.packages.apt import PrivateApt
from undercroft.reference.boot import UNMEASURED

app = typer.Typer(
    help="Build, run, list and stop guests.", no_args_is_help=True, rich_markup_mode=None
)

MIN_MEMORY_MB = 256

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


class Kind(enum.StrEnum):
    """The guests that we build."""

    MICRO = "micro"
    DEBIAN = "debian"


class ChainOption(enum.StrEnum):
    """How a Debian guest boots."""

    GRUB = "grub"
    UKI = "uki"
    LEGACY = "legacy"


_KindArgument = Annotated[
    Kind,
    typer.Argument(
        metavar="[micro|debian]",
        help="micro: kernel and busybox, up in seconds. debian: a disk with a boot loader.",
    ),
]
_ChainOption = Annotated[
    ChainOption,
    typer.Option(
        help="How a Debian guest boots: shim and GRUB or a unified kernel image, both under "
        "Secure Boot, or SeaBIOS and GRUB."
    ),
]


class AccelOption(enum.StrEnum):
    """What a person may ask for."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"

    def choice(self) -> Accel | None:
        """Return the accelerator, or None where we choose."""
        return None if self is AccelOption.AUTO else Accel(self.value)


class _Progress:
    """Says on standard error what takes long: a spinner on a terminal, lines elsewhere."""

    def __init__(self, console: Console, status: Status | None) -> None:
        self._console = console
        self._status = status

    def say(self, text: str) -> None:
        if self._status is None:
            self._console.print(text, highlight=False, markup=False)
        else:
            self._status.update(text)


@contextmanager
def progress(start_text: str) -> Iterator[_Progress]:
    """Show progress for the length of a ``with`` block."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(start_text) as status:
            yield _Progress(console, status)
    else:
        yield _Progress(console, None)


def adversary_sources() -> Path | None:
    """Return the folder with the test adversaries' sources; None outside of a checkout."""
    folder = Path(__file__).parents[3] / "tests" / "adversaries"
    return folder if (folder / "Kbuild").is_file() else None


def build(*, refresh: Refresh, with_adversaries: bool, show: _Progress) -> GuestBuild:
    """Build the micro guest, or return the one that is there if nothing changed."""
    home = wiring.home()
    archive = Archive(home / "apt", now=dt.datetime.now(dt.UTC), refresh=refresh, say=show.say)
    sources = adversary_sources() if with_adversaries else None
    return build_micro(archive, home, adversaries=sources, say=show.say)


def build_kind(
    kind: Kind, chain: ChainOption, *, refresh: Refresh, with_adversaries: bool, show: _Progress
) -> GuestBuild:
    """Build a guest, or return the one that is there if nothing changed."""
    if kind is Kind.MICRO:
        return build(refresh=refresh, with_adversaries=with_adversaries, show=show)
    home = wiring.home()
    apt = PrivateApt(home / "apt")
    now = dt.datetime.now(dt.UTC)
    archive = Archive(home / "apt", now=now, refresh=refresh, apt=apt, say=show.say)
    _ = archive.indexes  # writes apt's sources, which the guest gets as well
    return build_debian(
        archive, home, codename=apt.codename, sources=apt.sources(), chain=Chain(chain.value),
        say=show.say,
    )  # fmt: skip


def _print_json(value: JsonValue) -> None:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def _build_json(built: GuestBuild) -> JsonValue:
    return {
        "name": built.name,
        "folder": str(built.kernel.path.parent),
        "kernel_release": built.kernel_release,
        "kernel_sha256": built.kernel.sha256,
        "initrd_sha256": built.initrd.sha256,
        "firmware_sha256": built.firmware_code.sha256,
        "chain": built.chain.value,
        "disk_sha256": built.disk.sha256 if built.disk else None,
        "command_line": built.command_line,
        "packages": [
            {
                "name": p.name,
                "version": p.version,
                "sha256": p.sha256,
                "origin": p.provenance.origin,
                "release_sha256": p.provenance.release_sha256,
                "signer": p.provenance.signer,
                "note": p.provenance.note,
            }
            for p in built.packages
        ],
    }


@app.command("build")
def build_command(
    kind: _KindArgument = Kind.MICRO,
    chain: _ChainOption = ChainOption.GRUB,
    refresh: Annotated[
        Refresh, typer.Option(help="When to ask the package mirror for new lists.")
    ] = Refresh.AUTO,
    adversaries: Annotated[
        bool, typer.Option(help="Compile the test adversaries into the guest (not loaded).")
    ] = True,
    as_json: Json = False,
) -> None:
    """Build a guest from packages whose signature chain is verified.

    A Debian guest needs mmdebstrap, mtools, dosfstools and e2fsprogs, and about a minute; as root,
    or with user namespaces and fakeroot.
    """
    with progress(f"building the {kind.value} guest") as show:
        built = build_kind(kind, chain, refresh=refresh, with_adversaries=adversaries, show=show)
    if as_json:
        _print_json(_build_json(built))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("package", no_wrap=True)
    for heading in ("version", "from", "signed by"):
        table.add_column(heading)
    for package in built.packages:
        source = package.provenance
        origin = source.origin.partition(":")[0] + (f" ({source.note})" if source.note else "")
        table.add_row(package.name, package.version, origin, source.signer[-16:])
    console = Console()
    console.print(table)
    console.print(f"kernel  sha256:{built.kernel.sha256}", highlight=False)
    console.print(f"initrd  sha256:{built.initrd.sha256}", highlight=False)
    if built.disk:
        console.print(f"disk    sha256:{built.disk.sha256}", highlight=False)
    if built.chain is Chain.LEGACY:
        console.print("This boot chain leaves unmeasured:", *UNMEASURED, sep="\n  ")
    console.print(f"in {built.kernel.path.parent}", highlight=False, soft_wrap=True)


def _guest_json(guest: Guest) -> dict[str, JsonValue]:
    info = guest.info
    return {
        "name": info.name,
        "state": guest.state(),
        "pid": info.qemu.pid,
        "accel": info.accel,
        "cpu": info.cpu,
        "cpus": info.cpus,
        "memory_mb": info.memory_mb,
        "kernel_release": info.kernel_release,
        "started": info.started,
        "folder": str(info.folder),
    }


def _wait_ready(guest: Guest, timeout: float) -> float:
    try:
        return guest.wait_ready(timeout)
    except EnvironmentFault:
        guest.stop()  # the logs stay
        raise


@app.command("run")
def run_command(
    kind: _KindArgument = Kind.MICRO,
    chain: _ChainOption = ChainOption.GRUB,
    name: Annotated[str, typer.Option("--name", help="The guest's name; empty: its kind.")] = "",
    accel: Annotated[
        AccelOption, typer.Option(help="auto takes KVM if a Linux guest really runs under it.")
    ] = AccelOption.AUTO,
    cpu: Annotated[str, typer.Option(help="QEMU CPU model and flags; empty: the best.")] = "",
    cpus: Annotated[int, typer.Option(min=1, max=64, help="Virtual CPUs.")] = 2,
    memory: Annotated[
        int, typer.Option(max=1 << 20, help="Memory in MiB; 0: 512, for Debian 1024.")
    ] = 0,
    append: Annotated[str, typer.Option(help="More kernel command line.")] = "",
    wait: Annotated[bool, typer.Option(help="Wait until the guest is up.")] = True,
    timeout: Annotated[
        float, typer.Option(min=0, help="How long to wait, in seconds; 0: 90, for Debian 600.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Start a guest (built first if need be) with a vTPM and IMA; it keeps running."""
    debian = kind is Kind.DEBIAN
    name = name or kind.value
    memory = memory or (1024 if debian else 512)
    if memory < MIN_MEMORY_MB:
        raise typer.BadParameter(f"a guest needs at least {MIN_MEMORY_MB} MiB of memory")
    if append and debian:
        raise typer.BadParameter("a Debian guest's command line is in its own boot loader")
    timeout = timeout or (600 if debian else 90)
    options = RunOptions(
        accel=accel.choice(), cpu=cpu or None, cpus=cpus, memory_mb=memory,
        extra_command_line=append,
    )  # fmt: skip
    with progress(f"starting {name}") as show:
        built = build_kind(kind, chain, refresh=Refresh.AUTO, with_adversaries=True, show=show)
        now = dt.datetime.now(dt.UTC)
        guest = start(built, wiring.home(), name, options, now=now, say=show.say)
        seconds = _wait_ready(guest, timeout) if wait else None
    if as_json:
        _print_json({**_guest_json(guest), "ready_s": seconds})
        return
    ready = f", ready after {seconds:.1f} s" if seconds is not None else ""
    typer.echo(f"{name} runs under {guest.info.accel}, process {guest.info.qemu.pid}{ready}")
    typer.echo(f"serial log: {guest.info.serial_log}")


@app.command("list")
def list_command(as_json: Json = False) -> None:
    """List guests, running or not."""
    known: list[Guest] = []
    for guest in guests(wiring.home()):
        if isinstance(guest, EnvironmentFault):
            typer.echo(f"undercroft: {guest}", err=True)
        else:
            known.append(guest)
    if as_json:
        _print_json([_guest_json(guest) for guest in known])
        return
    if not known:
        typer.echo("no guests; `undercroft guest run` starts one")
        return
    table = Table("name", "state", "pid", "accel", "kernel", "started", box=None, pad_edge=False)
    for guest in known:
        info = guest.info
        table.add_row(
            info.name, guest.state(), str(info.qemu.pid), info.accel, info.kernel_release,
            info.started,
        )  # fmt: skip
    Console().print(table)
    if any(guest.state() == "died" for guest in known):
        typer.echo("died: it ended by itself; `undercroft guest stop NAME` clears what it left")


@app.command("stop")
def stop_command(
    names: Annotated[list[str] | None, typer.Argument(help="Guests to stop.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Stop every guest.")] = False,
    as_json: Json = False,
) -> None:
    """Stop guests; their vTPM state and logs stay."""
    if bool(names) == every:
        raise typer.BadParameter("name the guests to stop, or say --all")
    home = wiring.home()
    if every:
        chosen = [guest for guest in guests(home) if isinstance(guest, Guest)]
    else:
        chosen = [Guest.load(home, name) for name in names or ()]
    stopped: list[JsonValue] = []
    for guest in chosen:
        if guest.is_alive():
            stopped.append(guest.info.name)
        guest.stop()
    if as_json:
        _print_json({"stopped": stopped})
    else:
        typer.echo(f"stopped: {', '.join(map(str, stopped))}" if stopped else "none was running")
