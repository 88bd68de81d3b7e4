"""How other people's software fared on the guest's TPM, and the page that says so.

Results are kept as JSON between the runs that take long; ``docs/vtpm-interop.md`` is written from
all that are kept.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

DOCUMENT = Path(__file__).parents[3] / "docs" / "vtpm-interop.md"
NOT_RUN = {"getekcertificate": "it asks a server of a TPM manufacturer"}
"""Scripts of tpm2-tools that are left out, and why."""
TITLE = """\
# Other people's software on the guest's TPM
Written by `tests/guest/test_vtpm_interop.py` and `test_vtpm_interop_guest.py`, from runs without
the multiplexer and through it while it launches, quotes and records.  The TPM is swtpm with
libtpms in both cases."""

STEPS = {
    "eventlog": "tpm2_eventlog replays the boot log to the PCRs that tpm2_pcrread reads",
    "quote": "tpm2_createek, tpm2_createak, tpm2_quote",
    "checkquote": "tpm2_checkquote accepts it",
    "checkquote-wrong-nonce": "... and refuses another nonce",
    "upper-pcr": "tpm2_pcrextend of PCR 17 is refused",
    "checkquote-of-ours": "tpm2_checkquote in the guest accepts the quote made from outside",
    "eventlog-of-ours": "tpm2_eventlog in the guest reads the log of the launch",
    "luks-format-1": "cryptsetup luksFormat",
    "luks-format-2": "cryptsetup luksFormat, another disk",
    "cryptenroll": "systemd-cryptenroll --tpm2-device=auto --tpm2-pcrs=7",
    "cryptenroll-attach": "systemd-cryptsetup attach, by the TPM alone",
    "cryptenroll-disk": "data is written to the open disk and read back",
    "cryptenroll-detach": "systemd-cryptsetup detach",
    "clevis-bind": "clevis luks bind, tpm2 with PCR 7",
    "clevis-unlock": "clevis luks unlock",
    "clevis-disk": "data is written to the open disk and read back",
    "clevis-lock": "cryptsetup close",
    "extend": "PCR 7 is extended",
    "cryptenroll-refused": "systemd-cryptsetup attach is refused then",
    "clevis-refused": "clevis luks unlock is refused then",
}
"""What the steps of tests/guest/interop.sh do."""


class Outcome(msgspec.Struct, frozen=True):
    """How one script ended: 0, 77 (it left itself out) or a failure, and in which line."""

    status: int
    line: str

    def __str__(self) -> str:
        if self.status == 0:
            return "passed"
        if self.status == 77:
            return "left out by itself"
        return f"failed{f' in line {self.line}' if self.line else ''}"


class ToolResults(msgspec.Struct, frozen=True):
    """The outcome of each script of tpm2-tools, without and with the multiplexer."""

    version: str
    commands: int
    quotes: int
    plain: dict[str, Outcome]
    multiplexed: dict[str, Outcome]


class GuestResults(msgspec.Struct, frozen=True):
    """How each step in a guest ended ("0" is good), without and with the multiplexer."""

    kernel: str
    quotes: int
    plain: dict[str, str]
    multiplexed: dict[str, str]


_FILES: dict[type[ToolResults] | type[GuestResults], str] = {
    GuestResults: "guest.json",
    ToolResults: "tpm2-tools.json",
}


def save(results: ToolResults | GuestResults, folder: Path) -> None:
    """Keep results in ``folder``, and write the page anew from all that are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _FILES[type(results)]).write_bytes(msgspec.json.encode(results))
    write_page(folder)


def write_page(folder: Path) -> None:
    """Write the page from the results in ``folder``."""
    lines = [TITLE]
    for kind, name in _FILES.items():
        if (folder / name).is_file():
            kept = msgspec.json.decode((folder / name).read_bytes(), type=kind)
            lines += _guest(kept) if isinstance(kept, GuestResults) else _tools(kept)
    DOCUMENT.write_text("\n".join(lines) + "\n")


def _tools(results: ToolResults) -> list[str]:
    same = sum(results.plain[name] == got for name, got in results.multiplexed.items())
    passed = sum(outcome.status == 0 for outcome in results.multiplexed.values())
    lines = [
        "",
        f"## Integration tests of tpm2-tools {results.version}",
        f"{len(results.plain)} scripts, {results.commands:,} TPM commands; the secure kernel made "
        f"{results.quotes:,} quotes and as many records meanwhile. {same} of "
        f"{len(results.plain)} end the same with and without it, {passed} of them by passing. "
        "What fails without the multiplexer, too, needs something else than a TPM: the tools' "
        "own source, the headers of tpm2-tss, another version. Scripts that change the platform's "
        "seed or close its hierarchy (changepps, hierarchycontrol, sessionaudit) take the launch's "
        "key away: quotes from outside are refused then, until the machine starts again. A guest "
        "cannot do that once its firmware has closed the platform hierarchy.",
        "",
        "| script | without | through the multiplexer |",
        "|---|---|---|",
    ]
    for name, outcome in sorted(results.plain.items()):
        lines.append(f"| {name} | {outcome} | {results.multiplexed[name]} |")
    return [*lines, *(f"| tests/{name} | not run: {why} | |" for name, why in NOT_RUN.items())]


def _guest(results: GuestResults) -> list[str]:
    lines = [
        "",
        f"## In a guest with Linux {results.kernel}",
        "Ordinary programs of Debian 12 and the kernel's own selftests "
        f"(`tools/testing/selftests/tpm2`), while {results.quotes:,} quotes and as many records "
        "were made from outside.",
        "",
        "| step | without | through the multiplexer |",
        "|---|---|---|",
    ]
    for name, got in results.multiplexed.items():
        what = STEPS.get(name) or name.replace("selftest-", "selftest `") + "`"
        lines.append(f"| {what} | {_said(results.plain.get(name))} | {_said(got)} |")
    return lines


def _said(result: str | None) -> str:
    if result is None:
        return "not possible"
    return "as it should" if result == "0" else f"failed ({result})"
