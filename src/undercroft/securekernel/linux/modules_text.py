"""Prove the code of every loaded module equal to its package's file.

The guest's list of modules says which file, and where its allocations are; everything else is
computed from the file.  A module that no package has is not wrong, but nothing can be said of
its code: UNKNOWN.  Executable memory that no module on the list owns is found elsewhere, by
walking the page tables.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from undercroft.base import Finding, FormatError, JsonValue, MemoryFault, Outcome
from undercroft.formats.kernel import KernelModule
from undercroft.reference.kernel import module_rodata, modules
from undercroft.reference.kernel.canvas import Canvas
from undercroft.reference.kernel.explain import Mismatch, Owner, find_mismatches
from undercroft.reference.kernel.guest import GuestStructs, GuestValues
from undercroft.reference.kernel.module_replay import ModuleReplay, replay_module
from undercroft.reference.kernel.modules import PlacedModule
from undercroft.reference.kernel.replay import Replay
from undercroft.securekernel.linux.region import Region
from undercroft.securekernel.linux.settle import Settler

FINDING = "kernel.modules.text"
ModuleLibrary = Callable[[str], KernelModule | None]
"""Returns the package's module of a name (as the kernel spells it), or None."""

MAX_MODULES = 4096
_MAX_BYTES = 64 << 20
_STATE_LIVE = 0
_NAME_SIZE = 56
_GROUPS = ("text", "data", "rodata", "ro_after_init")
"""enum mod_mem_type: MOD_TEXT, MOD_DATA, MOD_RODATA, MOD_RO_AFTER_INIT."""
_THIS_MODULE = ".gnu.linkonce.this_module"
_MASK64 = (1 << 64) - 1
_LISTED = 16
_TRIES, _WAIT_S = 3, 0.002


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """What the guest says of a module: where its ``struct module`` and its allocations are."""

    name: str
    address: int
    live: bool
    bases: tuple[tuple[str, int], ...]
    percpu: int
    hides_sections: bool


@dataclass(slots=True)
class _Proved:
    loaded: LoadedModule
    replay: ModuleReplay
    region: Region
    owner: Owner
    constants: list[tuple[Region, Canvas]]
    """Where the module's constants are, and what must stand there."""
    at_rest: bool = False
    """Whether no patch was in progress at the last look."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look at all modules saw: those that are live, and what is wrong."""

    live: list[LoadedModule]
    size: int
    constant_size: int
    unknown: list[str]
    problems: dict[LoadedModule, str]
    mismatches: list[Mismatch]
    constants: list[Mismatch]


class ModuleProofs:
    """The proofs of all loaded modules; each is built once and followed from then on."""

    def __init__(
        self,
        replay: Replay,
        library: ModuleLibrary,
        region: Callable[[int, int], Region],
        values: Callable[[], GuestValues],
        settler: Settler,
    ) -> None:
        self._replay = replay
        self._library = library
        self._region = region
        self._values = values
        self._settler = settler
        self._proved: dict[LoadedModule, _Proved] = {}
        self._files: dict[str, KernelModule | None] = {}

    def apart(self, replay: Replay) -> ModuleProofs:
        """Return proofs of the same modules for another thread, over its own ``replay``."""
        settler = replace(self._settler, paused=contextlib.nullcontext)
        return ModuleProofs(replay, self._library, self._region, self._values, settler)

    def replay_of(self, address: int, name: str) -> ModuleReplay | None:
        """Return the replay of a loaded module, made now if need be; None if there is none.

        Raises MemoryFault if the guest's list of modules cannot be followed.
        """
        if self._file(name) is None:
            return None
        live = [module for module in self._list() if module.live]
        self._build([module for module in live if self._file(module.name) is not None])
        found = (each for each in self._proved.values() if each.loaded.address == address)
        return next((each.replay for each in found if each.loaded.name == name), None)

    def ranges(self) -> list[tuple[int, int, str]]:
        """Return (start, stop, name) of the code of every module proved so far."""
        return [
            (each.region.mapped.vaddr, each.region.mapped.vaddr + each.region.mapped.size, name)
            for each in self._proved.values()
            for name in (each.loaded.name,)
        ]

    def constant_ranges(self) -> list[tuple[int, int, str]]:
        """Return (start, stop, name) of the constants of every module proved so far."""
        return [
            (region.mapped.vaddr, region.mapped.vaddr + region.mapped.size, each.loaded.name)
            for each in self._proved.values()
            for region, _ in each.constants
        ]

    def check(self) -> Finding:
        """Compare every module on the guest's list with its file.

        Modules come and go: what is wrong with one counts if the same is seen, of the same
        module, at every one of a few looks.
        """
        looks: list[_Look] = []
        for attempt in range(_TRIES):
            try:
                looks.append(self._look())
            except MemoryFault as fault:
                if attempt == _TRIES - 1:
                    return Finding(
                        FINDING,
                        Outcome.FAIL,
                        f"the list of modules cannot be followed: {fault}",
                        {"address": f"{fault.address:#x}"},
                    )
            else:
                if not looks[-1].problems:  # what differs is settled already
                    break
            self._settler.sleep(_WAIT_S)
        last = looks[-1]
        lasting = {
            module: what
            for module, what in last.problems.items()
            if all(module in look.problems for look in looks)
        }
        return _finding(last, {module.name: what for module, what in lasting.items()})

    def _look(self) -> _Look:
        found = list(self._list())
        live = [module for module in found if module.live]
        unknown = [module.name for module in live if self._file(module.name) is None]
        known = [module for module in live if self._file(module.name) is not None]
        problems = self._build(known)
        mismatches: list[Mismatch] = []
        constants: list[Mismatch] = []
        total = fixed = 0
        for module in known:
            proved = self._proved.get(module)
            if proved is not None:
                total += proved.region.mapped.size
                fixed += sum(region.mapped.size for region, _ in proved.constants)
                try:
                    code, fixed_data = self._compare_anew(proved, known)
                    mismatches += code
                    constants += fixed_data
                except MemoryFault as fault:
                    problems[module] = f"its code cannot be read: {fault}"
        hidden = [module for module in live if module.hides_sections]
        problems |= dict.fromkeys(hidden, "it has no section attributes")
        return _Look(live, total, fixed, unknown, problems, mismatches, constants)

    def _file(self, name: str) -> KernelModule | None:
        if name not in self._files:
            self._files[name] = self._library(name)
        return self._files[name]

    def _list(self) -> Iterator[LoadedModule]:
        image = self._replay.image
        values = self._values()
        guest = GuestStructs(values, image.btf)
        head = image.find("modules")
        if head is None:
            return
        for count, at in enumerate(guest.list(values.address(head), "module", "list")):
            if count >= MAX_MODULES:
                raise MemoryFault(at, kind="virtual", why="absurdly many modules")
            yield _read(guest, at)

    def _build(self, known: list[LoadedModule]) -> dict[LoadedModule, str]:
        """Place, relocate and patch the modules that are new; forget those that are gone."""
        for gone in set(self._proved) - set(known):
            del self._proved[gone]
        if all(module in self._proved for module in known):
            return {}
        problems: dict[LoadedModule, str] = {}
        values = self._values()
        placed: dict[LoadedModule, PlacedModule] = {}
        for module in known:
            try:
                placed[module] = self._place(module, values)
            except FormatError as error:
                problems[module] = str(error)
        exported = self._exports(placed, values)
        for module in known:
            if module in placed and module not in self._proved:
                try:
                    problem = self._prove(module, placed[module], exported, values)
                except (FormatError, MemoryFault) as error:
                    problem = str(error)
                if problem:
                    problems[module] = problem
        return problems

    def _place(self, loaded: LoadedModule, values: GuestValues) -> PlacedModule:
        file = self._file(loaded.name)
        assert file is not None
        shared = len(loaded.bases) == 1
        bases = dict(loaded.bases)
        if shared:
            bases = dict.fromkeys(_GROUPS, bases["core"])
        placed = modules.place(file, bases, loaded.percpu, values.base, shared=shared)
        if sum(len(group.data) for group in placed.memory.values()) > _MAX_BYTES:
            raise FormatError("kernel module", 0, "the module is absurdly large")
        this = file.elf.by_name.get(_THIS_MODULE)
        if this is not None and placed.address(this.index) != loaded.address:
            raise FormatError(
                "kernel module",
                0,
                "struct module is not where the file's layout puts it",
                expected=f"{placed.address(this.index):#x}",
                got=f"{loaded.address:#x}",
            )
        return placed

    def _exports(
        self, placed: Mapping[LoadedModule, PlacedModule], values: GuestValues
    ) -> dict[str, int]:
        """Return what the kernel and every module with a file export: name to address."""
        image = self._replay.image
        slide = values.base - image.link_base
        exported = {
            name: (value + slide) & _MASK64 if value >= image.link_base else value
            for name, value in image.exports.items()
        }
        for module in placed.values():
            # ksymtab entries are relative: the exports need only the module's own symbols
            modules.relocate(module, exported)
        for module in placed.values():
            exported |= module.exports()
        return exported

    def _prove(
        self,
        loaded: LoadedModule,
        placed: PlacedModule,
        exported: Mapping[str, int],
        values: GuestValues,
    ) -> str:
        region = self._region(placed.text.start, placed.text.stop)
        live = region.copy()
        rodata = self._group(placed, "rodata")
        constants = rodata.copy() if rodata is not None else None
        groups = {"text": live} | ({"rodata": constants} if constants is not None else {})
        modules.find_freed(placed, groups)
        modules.relocate(placed, exported)
        if placed.unresolved:
            names = ", ".join(placed.unresolved[:4])
            return f"nobody that is verified exports {names}"
        replayed = replay_module(placed, self._replay, live, values)
        replayed.follow(values, live)
        symbols = replayed.symbols
        owner = Owner(loaded.name, lambda at: symbols.locate(at & _MASK64), placed.text.stop)
        proved = _Proved(loaded, replayed, region, owner, [])
        if rodata is not None and constants is not None:
            wide = self._replay.image.sites.alternatives.wide
            expected = module_rodata.expected_rodata(placed, constants, wide=wide)
            proved.constants.append((rodata, expected))
        self._add_jump_table(proved)
        for where, expected in proved.constants:
            where.refresh(expected)
        self._take(proved)
        self._proved[loaded] = proved
        return ""

    def _group(self, placed: PlacedModule, name: str) -> Region | None:
        group = placed.memory.get(name)
        return self._region(group.start, group.stop) if group is not None and group.data else None

    def _add_jump_table(self, proved: _Proved) -> None:
        placed = proved.replay.placed
        group = self._group(placed, "ro_after_init")
        if group is None:
            return
        table = module_rodata.expected_jump_table(placed, group.copy())
        if table is not None:
            proved.constants.append((self._region(table.start, table.stop), table))

    def _compare_constants(self, proved: _Proved) -> list[Mismatch]:
        """Compare what never changes; what differs is looked at again in a guest held still."""
        different = [part for part in proved.constants if not _equal(*part)]
        if not different:
            return []
        mismatches: list[Mismatch] = []
        with self._settler.paused():
            if not self._is_there(proved.loaded):
                return []
            for region, expected in different:
                region.remap()
                region.refresh(expected)
                live, base = region.copy(), self._values().base
                mismatches += find_mismatches(expected, live, base, proved.owner)
        return mismatches

    def _compare_anew(
        self, proved: _Proved, known: list[LoadedModule]
    ) -> tuple[list[Mismatch], list[Mismatch]]:
        """Compare code and constants; what differs is proved again from the start.

        A module that was taken out and loaded again between two looks has the same addresses,
        but for its init sections, which leave traces in both (find_freed).
        """
        code, constants = self._compare(proved), self._compare_constants(proved)
        if not code and not constants:
            return [], []
        del self._proved[proved.loaded]
        self._build(known)
        again = self._proved.get(proved.loaded)
        if again is None:
            return code, constants
        return self._compare(again), self._compare_constants(again)

    def _compare(self, proved: _Proved) -> list[Mismatch]:
        region = proved.region
        if proved.at_rest and region.unchanged() and region.equal():
            return []
        result = self._settler.settle(
            proved.replay, region, valid=lambda: self._is_there(proved.loaded)
        )
        if result is None:
            return []
        self._take(proved)
        return result.mismatches(proved.replay.canvas, self._values().base, proved.owner)

    def _take(self, proved: _Proved) -> None:
        """Expect from now on what the replay says; a patch in progress is asked about again."""
        state = proved.replay.state
        proved.region.refresh(proved.replay.canvas)
        proved.at_rest = state is not None and not len(state.moving)

    def _is_there(self, loaded: LoadedModule) -> bool:
        """Tell whether a module is still what it was, and not on its way out."""
        try:
            return _read(GuestStructs(self._values(), self._replay.image.btf), loaded.address) == (
                loaded
            )
        except MemoryFault:
            return False

    def its_pages(self) -> frozenset[int]:
        """Return the pages (position >> 12) of all modules' ITS thunks."""
        return frozenset(
            page for proved in self._proved.values() for page in proved.replay.its_pages
        )

    def as_json(self) -> list[JsonValue]:
        """Return what every proved module is and had to be, as JSON objects by name."""
        proved = sorted(self._proved.values(), key=lambda each: each.loaded.name)
        return [
            {
                "name": each.loaded.name,
                "sha256": hashlib.sha256(each.replay.placed.module.content).hexdigest(),
                "address": f"{each.region.mapped.vaddr:#x}",
                "bytes": each.region.mapped.size,
                "code_sha256": hashlib.sha256(each.replay.canvas.data).hexdigest(),
            }
            for each in proved
        ]

    def code_at(self, position: int) -> Canvas | None:
        """Return the expected code of the module that a position falls in, or None."""
        for proved in self._proved.values():
            canvas = proved.replay.canvas
            if canvas.start <= position < canvas.stop:
                return canvas
        return None

    def live_copy(self, name: str) -> Canvas | None:
        """Return a module's code as it is now, for a person who wants to look."""
        for proved in self._proved.values():
            if proved.loaded.name == name:
                return proved.region.copy()
        return None


def _equal(region: Region, expected: Canvas) -> bool:
    if not region.unchanged():
        region.remap()
        region.refresh(expected)
    return region.equal()


def _read(guest: GuestStructs, at: int) -> LoadedModule:
    types = guest.types
    raw = guest.raw(at, "module", "name", _NAME_SIZE)
    name = raw.split(b"\0", 1)[0].decode("ascii", errors="backslashreplace")
    bases: tuple[tuple[str, int], ...]
    if types.has_member("module", "core_layout"):  # struct module_layout, until 6.3
        bases = (("core", guest.u64(at, "module", "core_layout.base")),)
    else:
        first = at + types.offset_of("module", "mem")
        size = types.size_of("module_memory")
        bases = tuple(
            (group, guest.u64(first + index * size, "module_memory", "base"))
            for index, group in enumerate(_GROUPS)
        )
    attributes = types.has_member("module", "sect_attrs")
    return LoadedModule(
        name=name,
        address=at,
        live=guest.u32(at, "module", "state") == _STATE_LIVE,
        bases=bases,
        percpu=guest.u64(at, "module", "percpu") if types.has_member("module", "percpu") else 0,
        hides_sections=attributes and not guest.u64(at, "module", "sect_attrs"),
    )


def _finding(look: _Look, problems: Mapping[str, str]) -> Finding:
    live, size, unknown = look.live, look.size, look.unknown
    mismatches = [*look.mismatches, *look.constants]
    unexplained = sum(len(each.offsets) for each in mismatches)
    details: dict[str, JsonValue] = {
        "modules": [module.name for module in live],
        "bytes": size,
        "constant_bytes": look.constant_size,
        "unexplained": unexplained,
        "without_reference": list(unknown),
        "problems": dict(problems),
    }
    if mismatches:
        shown = [
            *(each.as_json() for each in look.mismatches[:_LISTED]),
            *(each.as_json(code=False) for each in look.constants[:_LISTED]),
        ]
        details["mismatches"] = list(shown)
    if mismatches or problems:
        outcome = Outcome.FAIL
        names = list(dict.fromkeys([*(each.owner for each in mismatches), *problems]))
        what = "code" if look.mismatches or problems else "constant data"
        summary = f"the {what} of {', '.join(names[:6])} is not what its package has"
    elif unknown:
        outcome = Outcome.UNKNOWN
        summary = f"no package has {', '.join(unknown[:6])}: nothing can be said of its code"
    elif not live:
        outcome = Outcome.PASS
        summary = "no module is loaded"
    else:
        outcome = Outcome.PASS
        summary = (
            f"all {size:,} bytes of code and {look.constant_size:,} of constants of {len(live)} "
            "modules are explained"
        )
    return Finding(FINDING, outcome, summary, details)
