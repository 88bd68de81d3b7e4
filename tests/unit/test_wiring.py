"""Targets, homes and kernels: what is given is taken, what is wrong is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from undercroft import wiring
from undercroft.base import EnvironmentFault, FormatError


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERCROFT_HOME", "/somewhere")
    assert wiring.home() == Path("/somewhere")
    monkeypatch.delenv("UNDERCROFT_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert wiring.home() == Path("/state/undercroft")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert wiring.home() == Path.home() / ".local/state/undercroft"


@pytest.mark.parametrize("target", ["", "demo", "qemu:", "xen:demo"])
def test_what_is_no_target_is_refused(target: str) -> None:
    with pytest.raises(EnvironmentFault, match="not a target") as caught:
        wiring.open_target(target)
    assert caught.value.expected.startswith("qemu:")


def test_a_foreign_guest_needs_its_kernel_named() -> None:
    with pytest.raises(EnvironmentFault, match="which kernel") as caught:
        wiring.open_target("qemu:12345")
    assert "--kernel" in caught.value.remedy


def test_a_guest_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERCROFT_HOME", str(tmp_path))
    with pytest.raises(EnvironmentFault, match="there is no guest nobody"):
        wiring.open_target("qemu:nobody")


def test_a_kernel_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(b"MZ kernel")
    assert wiring.read_kernel(path) == b"MZ kernel"
    with pytest.raises(EnvironmentFault, match="cannot read"):
        wiring.read_kernel(tmp_path / "none")


def test_a_package_that_is_damaged_is_a_format_error(tmp_path: Path) -> None:
    path = tmp_path / "kernel.deb"
    path.write_bytes(b"!<arch>\nnonsense")
    with pytest.raises(FormatError):
        wiring.read_kernel(path)


@pytest.mark.parametrize("name", ["default", "direct-boot"])
def test_shipped_policies_are_whole(name: str) -> None:
    policy = wiring.shipped_policy(name)
    assert policy.id == name
    assert not policy.demands_nothing
    assert {"kernel.text", "kernel.rodata"} <= set(policy.secure_kernel.facts)
