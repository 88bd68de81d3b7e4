"""GRUB's script, run beforehand: what it measures, and what is refused rather than guessed."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import FormatError
from undercroft.reference.boot.grub import GrubDisk, GrubRun, run_grub
from undercroft.reference.boot.grub_script import MAX_SCRIPT, parse_grub_script

ESP, ROOT, UUID = "hd0,gpt1", "hd0,gpt2", "0d15c004-0000-4000-8000-000000000000"
BOOT = "linux /vmlinuz ro\ninitrd /initrd\n"
ENTRY = "menuentry 'Debian' {\n" + BOOT + "}\n"


def run(config: str, more: dict[str, bytes] | None = None) -> GrubRun:
    """Run ``config`` as the configuration on the root file system."""
    redirect = f"search.fs_uuid {UUID} root\nset prefix=($root)/grub\nconfigfile $prefix/grub.cfg\n"
    files = {"/vmlinuz": b"kernel", "/initrd": b"initrd", "/grub/grub.cfg": config.encode()}
    disk = GrubDisk(
        {ESP: {"/EFI/debian/grub.cfg": redirect.encode()}, ROOT: {**files, **(more or {})}},
        {UUID.upper(): ROOT},
    )
    return run_grub(disk, device=ESP, prefix=f"({ESP})/EFI/debian", cmdpath=f"({ESP})/EFI/BOOT")


def commands(config: str, more: dict[str, bytes] | None = None) -> list[str]:
    """Return the commands that ``config`` runs, without those that lead to it."""
    texts = [event.text for event in run(config, more).events if event.kind == "command"]
    return texts[texts.index(f"configfile ({ROOT})/grub/grub.cfg") + 1 :]


def test_the_whole_of_a_small_boot() -> None:
    found = run(ENTRY)
    assert [(event.kind, event.text) for event in found.events] == [
        ("command", f"[ -z ({ESP})/EFI/debian -o ! -e ({ESP})/EFI/debian ]"),
        ("command", f"[ -e ({ESP})/EFI/debian/x86_64-efi/grub.cfg ]"),
        ("command", f"[ -e ({ESP})/EFI/debian/grub.cfg ]"),
        ("command", f"source ({ESP})/EFI/debian/grub.cfg"),
        ("file", f"({ESP})/EFI/debian/grub.cfg"),
        ("command", f"search.fs_uuid {UUID} root"),
        ("command", f"set prefix=({ROOT})/grub"),
        ("command", f"configfile ({ROOT})/grub/grub.cfg"),
        ("file", f"({ROOT})/grub/grub.cfg"),
        ("command", "menuentry Debian {\n" + BOOT + "}"),
        ("command", "setparams Debian"),
        ("command", "linux /vmlinuz ro"),
        ("file", "/vmlinuz"),
        ("kernel_cmdline", "/vmlinuz ro"),
        ("command", "initrd /initrd"),
        ("file", "/initrd"),
    ]
    assert found.kernel == b"kernel"
    assert found.command_line == "/vmlinuz ro"


@pytest.mark.parametrize(
    ("script", "ran"),
    [
        ("set a=b\nset c=\"$a x\"\necho $c '$c' \"\\$c\" \\$c", ["set a=b", "set c=b x",
         "echo b x $c $c $c"]),
        ("set a='x  y'\necho $a\"$a\"z", ["set a=x  y", "echo x yx  yz"]),
        ("echo a\\\nb \"q\\\nr\"", ["echo ab qr"]),
        ("echo $nothing \"$nothing\" ${nothing}x", ["echo  x"]),
        ("set a; set", ["set a", "set"]),
        ("a=b; echo $a", ["a=b", "echo b"]),
        ("set a=b; unset a; echo x$a", ["set a=b", "unset a", "echo x"]),
        ("echo \\\n a", ["echo a"]),
        ("# only a comment", []),
        ("echo \"$\" $", ["echo $ $"]),
        ("$nothing", []),
        ("false\necho $?", ["false", "echo 1"]),
        ("! true\necho $?; ! false; echo $?", ["! true", "echo 1", "! false", "echo 0"]),
        ("!\necho $?", ["!", "echo 1"]),
        ("function f { echo $# $1 \"$@\" $* $9; }\nf a 'b c'",
         ["f a b c", "echo 2 a a b c a b c"]),
        ("function f\n{\necho \"x$@y\"\n}\nf 1 2; f", ["f 1 2", "echo x1 2y", "f", "echo xy"]),
        ("function f { echo $@; }\nf", ["f", "echo"]),
    ],
)  # fmt: skip
def test_expansion(script: str, ran: list[str]) -> None:
    found = commands(script + "\n" + ENTRY)
    assert found[: len(ran)] == ran
    assert found[len(ran)].startswith("menuentry")


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("[ a = a ]", True), ("[ a == b ]", False), ("[ a != b ]", True), ("[ -n x ]", True),
        ("[ -z x ]", False), ("[ x ]", True), ("[ '' ]", False), ("[ ]", False),
        ("[ ! a = a ]", False), ("[ a = b -o c = c ]", True), ("[ a = b -a c = c ]", False),
        ("[ 2 -gt 1 ]", True), ("[ 1 -ge 2 ]", False), ("[ '' -eq 0 ]", True),
        ("[ -e /grub/grub.cfg ]", True), ("[ -d /grub ]", True), ("[ -f /nothing ]", False),
        ("[ -s (cd)/x ]", False), ("test -e /grub", True), ("true", True), ("false", False),
        ("search --file /nothing", False), (f"search --file --set=d ({ROOT})", False),
        ("search --file --set=d /vmlinuz", True), ("search.file /vmlinuz", True),
        ("search.file /vmlinuz d", True), ("search -u 0000", False),
        (f"search --fs-uuid {UUID}", True), (f"search.fs_uuid {UUID}", True),
        ("source /nothing", False), ("linux /nothing", False), ("initrd /nothing", False),
        ("loadfont /nothing", False), ("fwsetup --is-supported", True),
    ],
)  # fmt: skip
def test_conditions(condition: str, holds: bool) -> None:
    script = f"if {condition}; then echo yes; elif true; then echo no; fi\n"
    assert ("echo yes" in commands(script + ENTRY)) is holds
    assert ("echo no" in commands(script + ENTRY)) is not holds


def test_else_and_nothing() -> None:
    script = "if false; then echo 1; elif false; then echo 2; else echo 3; fi\n"
    script += "if false; then echo 4; fi\n"
    assert [c for c in commands(script + ENTRY) if c.startswith("echo")] == ["echo 3"]


def test_what_is_read_is_measured() -> None:
    config = (
        "load_env\nload_env -f /other\nloadfont unicode\nloadfont small\nloadfont /f.pf2\n"
        "background_image -m stretch /b.png\n. /more.cfg\n" + ENTRY
    )
    more = {
        "/grub/grubenv": b"# GRUB Environment Block\nsaved=1\nrubbish\n", "/other": b"",
        "/grub/fonts/small.pf2": b"f", "/f.pf2": b"f", "/more.cfg": b"echo $saved\n",
        "/grub/x86_64-efi/command.lst": b"list", "/b.png": b"", "stretch": b"",
    }  # fmt: skip
    del more["stretch"]
    found = run(config.replace("-m stretch ", ""), more)
    files = [event.text for event in found.events if event.kind == "file"]
    assert files == [
        f"({ESP})/EFI/debian/grub.cfg", f"({ROOT})/grub/x86_64-efi/command.lst",
        f"({ROOT})/grub/grub.cfg", f"({ROOT})/grub/grubenv", "/other",
        f"({ROOT})/grub/fonts/small.pf2", "/f.pf2", "/b.png", "/more.cfg", "/vmlinuz", "/initrd",
    ]  # fmt: skip
    assert "echo 1" in [event.text for event in found.events]


SUBMENU = (
    "menuentry 'First' --class x --id one { false\n linux /vmlinuz first }\n"
    "submenu \"It's more\" --unrestricted --id more { menuentry 'A' { linux /vmlinuz a }\n"
    "menuentry 'B' --id b { linux /vmlinuz b } }\n"
)


@pytest.mark.parametrize(
    ("default", "line"),
    [
        ("", "first"), ("0", "first"), ("one", "first"), ("First", "first"), ("none", "first"),
        ("9", "first"), ("more>b", "b"), ("1>1", "b"), ("more>A", "a"), ("more", "a"),
    ],
)  # fmt: skip
def test_the_default_entry_is_started(default: str, line: str) -> None:
    assert run(f"set default='{default}'\n{SUBMENU}").command_line == f"/vmlinuz {line}"
    if line != "first":
        assert "setparams It's more" in commands(f"set default='{default}'\n{SUBMENU}")


def test_a_word_of_the_command_line_keeps_its_space() -> None:
    found = run("menuentry x { linux /vmlinuz 'a b' c\"'\"d }\n")
    assert found.command_line == '/vmlinuz "a b" c\\\'d'


def test_the_installers_medium_has_its_configuration_elsewhere() -> None:
    config = b"linux /vmlinuz\nmenuentry x { true }\n"
    disk = GrubDisk(
        {ESP: {"/.disk/info": b"", "/boot/grub/grub.cfg": config, "/vmlinuz": b"k"}}, {}
    )
    assert run_grub(disk, device=ESP, prefix="", cmdpath="").kernel == b"k"
    mini = GrubDisk(
        {
            ESP: {
                "/.disk/mini-info": b"",
                "/boot/grub/x86_64-efi/grub.cfg": config,
                "/vmlinuz": b"k",
            }
        },
        {},
    )
    assert run_grub(mini, device=ESP, prefix=f"({ESP})/nowhere", cmdpath="").kernel == b"k"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("for x in a; do echo; done", "a loop"), ("while true; do echo; done", "a loop"),
        ("hello world", "not modelled"), ("hello=1 world", "not modelled"),
        ("[ a -pt b ]", "condition that is not modelled"), ("search --label x", "by label"),
        ("if true; echo", "breaks off"), ("if true; then echo", "breaks off"),
        ("echo 'x", "without its end"), ('echo "x', "without its end"),
        ("function f echo", "without name or body"), ("function $x { true }", "without name"),
        ("menuentry x { echo", "block without its end"), ("}", "closes nothing"),
        ("{ echo; }", "belongs to no command"), ("echo a | b", "an operator"),
        ("menuentry --id x { true }", "without title or block"), ("menuentry x", "without title"),
        ("function f { f; }\nf", "too deeply"), ("set next_entry=1", "next boot only"),
        ("fwsetup", "no boot"), ("source", "without what it works on"),
        ("[ x -eq 1 ]", "not a number"), ("source /grub/binary", "not UTF-8"),
        ("if " * 100, "nested too deeply"), ("set x=1", "no menu"),
        ("menuentry x { true }", "loads no kernel"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(script: str, reason: str) -> None:
    last = "" if reason in ("no menu", "loads no kernel") else ENTRY
    with pytest.raises(FormatError, match=reason):
        run(f"{script}\n{last}", {"/grub/binary": b"\xff"})


@given(
    st.lists(
        st.sampled_from(
            ["if", "then", "else", "elif", "fi", "function", "f", "{", "}", ";", "\n", "set", "a=b",
             "$a", "'x'", '"$@"', "[", "]", "-e", "-o", "-a", "!", "-eq", "1", "menuentry", "--id",
             "submenu", "linux", "/vmlinuz", "initrd", "search", "--set=root", "-u", "source",
             "configfile", "load_env", "-f", "loadfont", "setparams", "unset", "search.fs_uuid",
             "search.file", "background_image", "default=1", "$1", "test"]
        ),
        max_size=40,
    )
)  # fmt: skip
def test_only_a_format_error_escapes(words: list[str]) -> None:
    with contextlib.suppress(FormatError):
        run(" ".join(words) + "\n" + ENTRY)


@given(st.text("{}'\"\\$ \n;#a=[]if", max_size=60))
def test_only_a_format_error_escapes_any_text(text: str) -> None:
    with contextlib.suppress(FormatError):
        run(text)


def test_a_script_that_runs_very_long_is_refused() -> None:
    twice = "".join(f"function f{n} {{ f{n - 1}; f{n - 1}; }}\n" for n in range(1, 20))
    with pytest.raises(FormatError, match="too many commands"):
        run("function f0 { true; }\n" + twice + "f19\n" + ENTRY)


def test_submenus_without_end_are_refused() -> None:
    endless = "submenu x { configfile ($root)/grub/grub.cfg }\n"
    with pytest.raises(FormatError, match="menus without end"):
        run(endless)


def test_a_script_of_a_megabyte_is_refused() -> None:
    with pytest.raises(FormatError, match="too long"):
        parse_grub_script(" " * (MAX_SCRIPT + 1))
