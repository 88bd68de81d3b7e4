"""The checks of the Secure Boot judgement: a table, in the order of its findings."""

from __future__ import annotations

from undercroft.base import Finding, JsonValue, Outcome
from undercroft.verify.checks import Check

_PFP = "PC Client Platform Firmware Profile 1.06"
_UEFI = "UEFI 2.10"
_SHIM = "shim 15.8"

_ROWS = (
    (
        "measured",
        "PCR 7 is vouched for and has the shape that firmware gives it",
        f"{_PFP}, 3.3.4.8",
    ),
    ("enabled", "the variable SecureBoot is 1", f"{_PFP}, 3.3.4.8; {_UEFI}, 3.3"),
    ("mode", "user or deployed mode; not setup mode, not audit mode", f"{_UEFI}, 32.3"),
    ("keys", "PK, KEK, db and dbx are measured and readable", f"{_PFP}, 3.3.4.8; {_UEFI}, 32.4"),
    ("debug", "no debugger, no disabled DMA protection", f"{_PFP}, 3.3.4.8"),
    (
        "authorities",
        "every entry that verified an image stands in db, or is shim's own",
        f"{_PFP}, 3.3.4.8 (EV_EFI_VARIABLE_AUTHORITY)",
    ),
    (
        "images",
        "every application is explained by a db entry or an authority",
        f"{_UEFI}, 32.5; {_PFP}, 3.3.4.5",
    ),
    (
        "drivers",
        "every driver is explained by a db entry or an authority",
        f"{_UEFI}, 32.5; {_PFP}, 3.3.4.3",
    ),
    ("revoked", "no loaded image and no authority is in dbx", f"{_UEFI}, 32.5"),
    ("sbat", "the SBAT level is told, where shim is in the chain", f"{_SHIM}, SBAT.md"),
    ("shim", "shim verifies what it loads", f"{_SHIM}, MokVars.txt (MokSBState)"),
)
CHECKS = tuple(
    Check(f"B{number}", f"secureboot.{name}", says, source)
    for number, (name, says, source) in enumerate(_ROWS, 1)
)
_BY_NAME = {name: check for (name, _, _), check in zip(_ROWS, CHECKS, strict=True)}


def finding(name: str, outcome: Outcome, summary: str, **details: JsonValue) -> Finding:
    """Return what the check ``secureboot.<name>`` found."""
    return _BY_NAME[name].finding(outcome, summary, details)
