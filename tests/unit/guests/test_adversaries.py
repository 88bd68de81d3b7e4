"""What the test adversaries are made of, and how they are switched."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from undercroft.guests.adversaries import source_files, source_of
from undercroft.guests.attacks import hide_module, load, running
from undercroft.guests.run import Guest

SOURCES = Path(__file__).parents[2] / "adversaries"


class FakeConsole:
    """A guest that notes what it is told to run."""

    def __init__(self, *, alive: bool = True) -> None:
        self.commands: list[str] = []
        self.alive = alive

    def console(self, command: str, *, timeout_s: float = 20.0) -> str:
        self.commands.append(command)
        return "123\n"

    def is_alive(self) -> bool:
        return self.alive

    def guest(self) -> Guest:
        return cast(Guest, self)


def test_every_source_counts_those_of_programs_too() -> None:
    names = {str(path.relative_to(SOURCES)) for path in source_files(SOURCES)}
    assert {"Kbuild", "adversary.h", "inline_patch.c", "programs/raw.h"} <= names


def test_every_module_is_built_and_told_of() -> None:
    kbuild = (SOURCES / "Kbuild").read_text().split()
    readme = (SOURCES / "README.md").read_text()
    for path in SOURCES.glob("*.c"):
        assert f"{path.stem}.o" in kbuild
        assert f"| `{path.stem}` |" in readme
    for path in (SOURCES / "programs").glob("*.c"):
        assert f"| `programs/{path.stem}` |" in readme


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.[ch]")), ids=lambda path: path.name)
def test_every_source_has_its_licence(path: Path) -> None:
    assert "SPDX-License-Identifier: GPL-2.0" in path.read_text().splitlines()[0]


def test_a_built_file_names_its_source() -> None:
    assert source_of("inline_patch.ko") == "inline_patch.c"
    assert source_of("bpf_tracer") == "programs/bpf_tracer.c"
    for name in ("inline_patch.ko", "bpf_tracer"):
        assert (SOURCES / source_of(name)).is_file()


def test_a_module_is_loaded_switched_and_removed() -> None:
    fake = FakeConsole()
    with load(fake.guest(), "text_alias", {"target": 0x1000}) as adversary:
        adversary.switch(True)
        adversary.switch(False)
    active = "/sys/module/text_alias/parameters/active"
    assert fake.commands == [
        "insmod /adversaries/text_alias.ko target=0x1000",
        f"echo 1 > {active}",
        f"echo 0 > {active}",
        "rmmod text_alias",
    ]


def test_a_module_is_removed_when_the_test_fails() -> None:
    fake = FakeConsole()
    with pytest.raises(RuntimeError), load(fake.guest(), "lstar"):
        raise RuntimeError
    assert fake.commands[-1] == "rmmod lstar"


def test_the_hidden_module_has_a_switch_elsewhere() -> None:
    fake = FakeConsole()
    with hide_module(fake.guest(), 0x2000) as adversary:
        adversary.switch(True)
    assert fake.commands[:2] == [
        "insmod /adversaries/hide_module.ko tree=0x2000",
        "echo 1 > /sys/kernel/debug/hide_module",
    ]


def test_a_program_runs_as_long_as_the_block() -> None:
    fake = FakeConsole()
    with running(fake.guest(), "sleep 5") as pid:
        assert pid == 123
    assert fake.commands == ["sleep 5 >/dev/null 2>&1 & echo $!", "kill 123; wait 123; true"]


def test_a_guest_that_died_is_left_alone() -> None:
    fake = FakeConsole(alive=False)
    with running(fake.guest(), "sleep 5"), load(fake.guest(), "lstar"):
        pass
    assert len(fake.commands) == 2
