"""What GRUB 2.06 measures while it runs its configuration: the script is run here.

PCR 8 gets each command after expansion, and the kernel command line; PCR 9 gets each file that
GRUB reads.  Sources: grub-core/commands/tpm.c, grub-core/script/execute.c and
grub-core/kern/verifiers.c of GRUB 2.06 as Debian ships it.

Nobody presses a key: the default entry is started.  What is not modelled is refused and not
guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from undercroft.base import FormatError
from undercroft.reference.boot.grub_script import (
    Command,
    Function,
    If,
    Script,
    Statement,
    Word,
    parse_grub_script,
)

_NAME = "GRUB configuration"
_MAX_COMMANDS = 20_000
_MAX_DEPTH = 32
_LISTS = ("command.lst", "fs.lst", "crypto.lst", "terminal.lst")
"""What the normal mode reads for each prefix (grub-core/normal/main.c, read_lists)."""

EMBEDDED_CONFIG = """\
if [ -z "$prefix" -o ! -e "$prefix" ]; then
	if ! search --file --set=root /.disk/info; then
		search --file --set=root /.disk/mini-info
	fi
	set prefix=($root)/boot/grub
fi
if [ -e $prefix/x86_64-efi/grub.cfg ]; then
	source $prefix/x86_64-efi/grub.cfg
elif [ -e $prefix/grub.cfg ]; then
	source $prefix/grub.cfg
else
	source $cmdpath/grub.cfg
fi
"""
"""The configuration inside Debian's signed GRUB (grub2 source, debian/build-efi-images)."""

_QUIET = frozenset(
    {"true", "export", "insmod", "terminal_input", "terminal_output", "echo", "serial", "play",
     "save_env", "gfxmode", "keymap", "clear", "sleep", "videoinfo", "rmmod"}
)  # fmt: skip
"""Commands that succeed, open no file and set nothing that matters later."""

_FEATURES = (
    "feature_menuentry_id", "feature_timeout_style", "feature_all_video_module",
    "feature_platform_search_hint", "feature_default_font_path", "feature_200_final",
    "feature_ntldr", "feature_nativedisk_cmd", "feature_chainloader_bpb",
)  # fmt: skip
"""Set to ``y`` by normal mode (grub-core/normal/main.c, features)."""


@dataclass(frozen=True, slots=True)
class GrubDisk:
    """The file systems that GRUB sees: files by device (``hd0,gpt1``) and absolute path.

    ``uuids`` gives the device of each file system UUID.  Every file that a configuration may ask
    for has to be there: one that is not is taken to be absent.
    """

    files: Mapping[str, Mapping[str, bytes]]
    uuids: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class GrubEvent:
    """``kind`` is ``command``, ``kernel_cmdline`` or ``file``; ``measured`` is what is hashed.

    ``text`` is what the log says: the command or command line, or the file's name.
    """

    kind: str
    text: str
    measured: bytes


@dataclass(frozen=True, slots=True)
class GrubRun:
    """What was measured, the kernel that was loaded and its command line."""

    events: tuple[GrubEvent, ...]
    kernel: bytes
    command_line: str


@dataclass(frozen=True, slots=True)
class _Entry:
    submenu: bool
    titles: tuple[str, ...]
    identifier: str
    source: str


def run_grub(disk: GrubDisk, *, device: str, prefix: str, cmdpath: str) -> GrubRun:
    """Run the signed GRUB started from ``device`` with its built-in ``prefix`` and ``cmdpath``.

    Raises FormatError if the configuration does something that is not modelled, or boots nothing.
    """
    run = _Run(
        disk,
        {
            "root": device, "cmdpath": cmdpath, "grub_platform": "efi", "grub_cpu": "x86_64",
            "menuentry_id_option": "--id", **dict.fromkeys(_FEATURES, "y"),
        },
    )  # fmt: skip
    run.set_variable("prefix", prefix)
    run.script(parse_grub_script(EMBEDDED_CONFIG))
    run.start_default()
    if run.kernel is None:
        raise FormatError(_NAME, 0, "the configuration loads no kernel")
    return GrubRun(tuple(run.events), run.kernel, run.command_line)


class _Run:
    def __init__(self, disk: GrubDisk, variables: dict[str, str]) -> None:
        self.events: list[GrubEvent] = []
        self.kernel: bytes | None = None
        self.command_line = ""
        self._disk = disk
        self._variables = variables
        self._functions: dict[str, Script] = {}
        self._menu: list[_Entry] = []
        self._arguments: list[str] = []
        self._depth = 0

    # -- files --------------------------------------------------------------------------------

    def _place(self, name: str) -> tuple[str, str]:
        """Return device and path of a file's name."""
        if name.startswith("("):
            device, _, path = name[1:].partition(")")
        else:
            device, path = self._variables.get("root", ""), name
        return device, "/" + path.strip("/")

    def _content(self, name: str) -> bytes | None:
        device, path = self._place(name)
        return self._disk.files.get(device, {}).get(path)

    def _exists(self, name: str) -> bool:
        device, path = self._place(name)
        files = self._disk.files.get(device)
        if files is None:
            return False
        above = path.rstrip("/") + "/"
        return path in files or any(file.startswith(above) for file in files)

    def _open(self, name: str) -> bytes | None:
        """Read a file as GRUB does: what it reads, it measures."""
        data = self._content(name)
        if data is not None:
            self.events.append(GrubEvent("file", name, data))
        return data

    # -- running ------------------------------------------------------------------------------

    def set_variable(self, name: str, value: str) -> None:
        """Set a variable; a new prefix makes normal mode read its lists."""
        self._variables[name] = value
        if name == "prefix":
            for each in _LISTS:
                self._open(f"{value}/x86_64-efi/{each}")

    def script(self, script: Script) -> bool:
        """Run statements; return whether the last one succeeded."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise FormatError(_NAME, 0, "calls itself too deeply", expected=_MAX_DEPTH)
        fine = True
        for statement in script:
            fine = self._statement(statement)
        self._depth -= 1
        return fine

    def _statement(self, statement: Statement) -> bool:
        if isinstance(statement, If):
            for condition, body in statement.arms:
                if self.script(condition):
                    return self.script(body)
            return self.script(statement.otherwise)
        if isinstance(statement, Function):
            self._functions[statement.name] = statement.body
            return True
        return self._command(statement)

    def _command(self, command: Command) -> bool:
        words = self._expand(command.words)
        if command.block is not None:
            words.append(command.block)
        if not words:
            return True
        if len(self.events) >= _MAX_COMMANDS:
            raise FormatError(_NAME, 0, "too many commands", expected=_MAX_COMMANDS)
        text = " ".join(words)
        self.events.append(GrubEvent("command", text, text.encode()))
        fine = self._execute(words)
        self._variables["?"] = "0" if fine else "1"
        return fine

    def _expand(self, words: tuple[Word, ...]) -> list[str]:
        """Return the arguments that ``words`` become (grub_script_arglist_to_argv)."""
        expanded: list[str] = []
        for word in words:
            current, is_word = "", False
            for part in word:
                if not part.variable:
                    current, is_word = current + part.text, True
                    continue
                if part.text == "@" and part.quoted:
                    pieces = self._arguments
                else:
                    value = self._value(part.text)
                    pieces = [value] if part.quoted else value.split()
                is_word = is_word or bool(pieces) or part.quoted
                for number, piece in enumerate(pieces):
                    if number:
                        expanded.append(current)
                        current = ""
                    current += piece
            if is_word:
                expanded.append(current)
        return expanded

    def _value(self, name: str) -> str:
        if name in "@*":
            return " ".join(self._arguments)
        if name == "#":
            return str(len(self._arguments))
        if name.isdigit():
            number = int(name)
            return self._arguments[number - 1] if 0 < number <= len(self._arguments) else ""
        return self._variables.get(name, "")

    # -- commands -----------------------------------------------------------------------------

    def _execute(self, words: list[str]) -> bool:
        name, arguments = words[0], words[1:]
        if name in self._functions:
            before, self._arguments = self._arguments, arguments
            fine = self.script(self._functions[name])
            self._arguments = before
            return fine
        if name == "!":
            return not self._execute(arguments) if arguments else False
        if name in _QUIET:
            return True
        if command := _COMMANDS.get(name):
            if name in _NEEDS_ARGUMENT and not arguments:
                raise FormatError(_NAME, 0, "a command without what it works on", got=name)
            return command(self, arguments)
        variable, equals, value = name.partition("=")
        if equals and not arguments:
            self.set_variable(variable, value)
            return True
        raise FormatError(_NAME, 0, "a command that is not modelled", got=" ".join(words)[:200])

    def _test(self, arguments: list[str]) -> bool:
        return _test(arguments[:-1] if arguments[-1:] == ["]"] else arguments, self._exists)

    def _set(self, arguments: list[str]) -> bool:
        for argument in arguments[:1]:
            name, equals, value = argument.partition("=")
            if equals:
                self.set_variable(name, value)
        return True

    def _unset(self, arguments: list[str]) -> bool:
        for argument in arguments:
            self._variables.pop(argument, None)
        return True

    def _search(self, arguments: list[str]) -> bool:
        variable, by, wanted = "root", "file", ""
        for argument in arguments:
            if argument.startswith("--set="):
                variable = argument.removeprefix("--set=")
            elif argument in ("-u", "--fs-uuid"):
                by = "uuid"
            elif argument in ("-l", "--label"):
                raise FormatError(_NAME, 0, "search by label is not modelled", got=argument)
            elif not argument.startswith("-"):
                wanted = wanted or argument
        return self._found(by, wanted, variable)

    def _search_uuid(self, arguments: list[str]) -> bool:
        return self._found("uuid", arguments[0], arguments[1] if len(arguments) > 1 else "root")

    def _search_file(self, arguments: list[str]) -> bool:
        return self._found("file", arguments[0], arguments[1] if len(arguments) > 1 else "root")

    def _found(self, by: str, wanted: str, variable: str) -> bool:
        if by == "uuid":
            uuids = {uuid.lower(): device for uuid, device in self._disk.uuids.items()}
            device = uuids.get(wanted.lower())
        else:
            places = (d for d in self._disk.files if self._exists(f"({d}){wanted}"))
            device = next(places, None)
        if device is None:
            return False
        self.set_variable(variable, device)
        return True

    def _source(self, arguments: list[str]) -> bool:
        data = self._open(arguments[0])
        return data is not None and self.script(parse_grub_script(_decoded(data, arguments[0])))

    def _configfile(self, arguments: list[str]) -> bool:
        # A context of its own: what it defines as menu is what is booted.
        self._menu = []
        self._variables["config_file"] = arguments[0]
        self._variables["config_directory"] = arguments[0].rpartition("/")[0]
        return self._source(arguments)

    def _menuentry(self, arguments: list[str]) -> bool:
        return self._entry(arguments, submenu=False)

    def _submenu(self, arguments: list[str]) -> bool:
        return self._entry(arguments, submenu=True)

    def _entry(self, arguments: list[str], *, submenu: bool) -> bool:
        titles, identifier = [], ""
        *options, block = arguments
        at = 0
        while at < len(options):
            option = options[at]
            if option in ("--class", "--users", "--hotkey", "--source", "--id"):
                value = "".join(options[at + 1 : at + 2])
                identifier = value if option == "--id" else identifier
                at += 2
            elif option == "--unrestricted":
                at += 1
            else:
                titles.append(option)
                at += 1
        if not block.startswith("{") or not titles:
            raise FormatError(_NAME, 0, "a menu entry without title or block")
        self._menu.append(_Entry(submenu, tuple(titles), identifier, block[1:-1]))
        return True

    def _setparams(self, arguments: list[str]) -> bool:
        self._arguments = arguments
        return True

    def _load_env(self, arguments: list[str]) -> bool:
        name = f"{self._variables['prefix']}/grubenv"
        for number, argument in enumerate(arguments):
            if argument in ("-f", "--file"):
                name = "".join(arguments[number + 1 : number + 2])
        data = self._open(name)
        for line in (data or b"").decode("utf-8", "replace").splitlines():
            variable, equals, value = line.partition("=")
            if equals and not line.startswith("#"):
                self.set_variable(variable, value)
        return data is not None

    def _loadfont(self, arguments: list[str]) -> bool:
        for font in arguments:
            if font == "unicode":
                continue  # from the memory disk inside the signed GRUB, which is not measured
            named = "/" in font or "(" in font
            if (
                self._open(font if named else f"{self._variables['prefix']}/fonts/{font}.pf2")
                is None
            ):
                return False
        return True

    def _linux(self, arguments: list[str]) -> bool:
        data = self._open(arguments[0])
        if data is None:
            return False
        self.kernel = data
        self.command_line = " ".join(_quoted(word) for word in arguments)
        line = self.command_line
        self.events.append(GrubEvent("kernel_cmdline", line, line.encode()))
        return True

    def _initrd(self, arguments: list[str]) -> bool:
        return all(self._open(name) is not None for name in arguments)

    def _background(self, arguments: list[str]) -> bool:
        names = [argument for argument in arguments if not argument.startswith("-")]
        return all(self._open(name) is not None for name in names)

    def _fwsetup(self, arguments: list[str]) -> bool:
        if arguments != ["--is-supported"]:
            raise FormatError(_NAME, 0, "the set-up of the firmware is no boot", got=arguments)
        return True  # OVMF supports it

    # -- the menu -----------------------------------------------------------------------------

    def start_default(self) -> None:
        """Start the entry that ``default`` names, through submenus."""
        wanted = self._variables.get("default", "0")
        if self._variables.get("next_entry"):
            raise FormatError(_NAME, 0, "an entry is set for the next boot only")
        for _ in range(_MAX_DEPTH):
            part, _, wanted = wanted.partition(">")
            entry = _chosen(self._menu, part)
            self._menu = []
            titles = " ".join("'" + title.replace("'", "'\\''") + "'" for title in entry.titles)
            self.script(parse_grub_script(f"setparams {titles}\n{entry.source}"))
            if not entry.submenu:
                return
            wanted = wanted or "0"
        raise FormatError(_NAME, 0, "menus without end", expected=f"at most {_MAX_DEPTH}")


def _chosen(menu: list[_Entry], wanted: str) -> _Entry:
    if not menu:
        raise FormatError(_NAME, 0, "the configuration has no menu: GRUB would ask for commands")
    if wanted.isdigit() and int(wanted) < len(menu):
        return menu[int(wanted)]
    named = (e for e in menu if wanted and wanted in (e.identifier, e.titles[0]))
    return next(named, menu[0])


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FormatError(_NAME, error.start, "not UTF-8", got=name) from None


def _quoted(word: str) -> str:
    """Write a word of the kernel command line (grub-core/lib/cmdline.c)."""
    escaped = "".join(f"\\{char}" if char in "\\'\"" else char for char in word)
    return f'"{escaped}"' if " " in word else escaped


_NUMBERS: Mapping[str, Callable[[int, int], bool]] = {
    "-eq": int.__eq__, "-ne": int.__ne__, "-lt": int.__lt__, "-le": int.__le__,
    "-gt": int.__gt__, "-ge": int.__ge__,
}  # fmt: skip


def _number(text: str) -> int:
    if text and not (text.isascii() and text.isdigit() and len(text) < 20):
        raise FormatError(_NAME, 0, "not a number that is modelled", got=text[:40])
    return int(text or "0")


def _test(words: list[str], exists: Callable[[str], bool]) -> bool:
    """Evaluate a condition (grub-core/commands/test.c); ``-o`` binds less than ``-a``."""
    for operator, join in (("-o", any), ("-a", all)):
        if operator in words:
            at = words.index(operator)
            return join([_test(words[:at], exists), _test(words[at + 1 :], exists)])
    match words:
        case ["!", *rest]:
            return not _test(rest, exists)
        case ["-z", text]:
            return text == ""
        case ["-n", text] | [text]:
            return text != ""
        case ["-e" | "-f" | "-s" | "-d", name]:
            return exists(name)
        case [left, "=" | "==", right]:
            return left == right
        case [left, "!=", right]:
            return left != right
        case [left, operator, right] if operator in _NUMBERS:
            return _NUMBERS[operator](_number(left), _number(right))
        case []:
            return False
    raise FormatError(_NAME, 0, "a condition that is not modelled", got=" ".join(words)[:200])


_NEEDS_ARGUMENT = frozenset(
    {"search.fs_uuid", "search.file", "source", ".", "configfile", "menuentry", "submenu", "linux",
     "linuxefi"}
)  # fmt: skip

_COMMANDS: Mapping[str, Callable[[_Run, list[str]], bool]] = {
    "[": _Run._test,
    "test": _Run._test,
    "false": lambda _run, _arguments: False,
    "set": _Run._set,
    "unset": _Run._unset,
    "search": _Run._search,
    "search.fs_uuid": _Run._search_uuid,
    "search.file": _Run._search_file,
    "source": _Run._source,
    ".": _Run._source,
    "configfile": _Run._configfile,
    "menuentry": _Run._menuentry,
    "submenu": _Run._submenu,
    "setparams": _Run._setparams,
    "load_env": _Run._load_env,
    "loadfont": _Run._loadfont,
    "linux": _Run._linux,
    "linuxefi": _Run._linux,
    "initrd": _Run._initrd,
    "initrdefi": _Run._initrd,
    "background_image": _Run._background,
    "fwsetup": _Run._fwsetup,
}
