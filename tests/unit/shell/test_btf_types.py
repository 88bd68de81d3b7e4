"""BTF as drgn types, from a section made by hand with a type of each kind."""

from __future__ import annotations

import struct

import drgn
import pytest

from undercroft.base import FormatError
from undercroft.shell.btf_types import BtfTypes


class Section:
    """Builds a BTF section type by type."""

    def __init__(self) -> None:
        self.strings, self.types, self.count = b"\0", b"", 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text) - 1

    def add(
        self, kind: int, text: str, value: int, parts: bytes = b"", *, count: int = 0, flag: int = 0
    ) -> int:
        info = flag << 31 | kind << 24 | count
        self.types += struct.pack("<III", self.name(text), info, value) + parts
        self.count += 1
        return self.count

    def bytes(self) -> bytes:
        header = struct.pack(
            "<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings)
        )
        return header + self.types + self.strings


def triples(*rows: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("<III", *row) for row in rows)


def section() -> Section:
    made = Section()
    integer = made.add(1, "int", 4, struct.pack("<I", 1 << 24 | 32))
    made.add(1, "unsigned long", 8, struct.pack("<I", 64))
    made.add(1, "_Bool", 1, struct.pack("<I", 4 << 24 | 8))
    array = made.add(3, "", 0, triples((integer, integer, 5)))
    node = made.count + 2
    pointer = made.add(2, "", node)
    rows = triples((made.name("next"), pointer, 0), (made.name("values"), array, 64))
    assert made.add(4, "node", 32, rows, count=2) == node
    made.add(5, "either", 4, triples((made.name("a"), integer, 0)), count=1)
    bits = triples((made.name("low"), integer, 3 << 24), (made.name("high"), integer, 5 << 24 | 3))
    made.add(4, "flags", 4, bits, count=2, flag=1)
    pair = struct.pack("<Ii", made.name("PIDTYPE_PID"), 0) + struct.pack(
        "<Ii", made.name("NEGATIVE"), -2
    )
    made.add(6, "pid_type", 4, pair, count=2)
    wide = triples((made.name("HUGE"), 1, 2))
    made.add(19, "wide", 8, wide, count=1)
    made.add(7, "hidden", 0)
    alias = made.add(8, "node_t", node)
    volatile = made.add(9, "", alias)
    made.add(8, "const_node", made.add(10, "", volatile))
    made.add(8, "tagged", made.add(18, "user", integer))
    prototype = made.add(
        13, "", integer, struct.pack("<Ii", made.name("x"), integer) + bytes(8), count=2
    )
    made.add(12, "printk", prototype)
    made.add(8, "callback", made.add(2, "", prototype))
    made.add(16, "double", 8)
    made.add(14, "a_variable", node, struct.pack("<I", 1))
    made.add(15, ".data..percpu", 32, triples((made.count, 0, 32)), count=1)
    made.add(17, "tag", node, struct.pack("<I", 0))
    return made


@pytest.fixture
def prog() -> drgn.Program:
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    types = BtfTypes(program, section().bytes())
    program.register_type_finder("btf", types.find, enable_index=0)
    return program


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("int", "int"),
        ("unsigned long", "unsigned long"),
        ("_Bool", "_Bool"),
        ("double", "double"),
        ("struct node", "struct node {\n\tstruct node *next;\n\tint values[5];\n}"),
        ("union either", "union either {\n\tint a;\n}"),
        ("struct flags", "struct flags {\n\tint low : 3;\n\tint high : 5;\n}"),
        ("node_t", "typedef struct node node_t"),
        ("const_node", "typedef const volatile node_t const_node"),
        ("tagged", "typedef int tagged"),
        ("callback", "typedef int (*callback)(int x, ...)"),
    ],
)
def test_each_kind(prog: drgn.Program, name: str, shown: str) -> None:
    assert str(prog.type(name)) == shown


def test_enumerations_keep_their_values(prog: drgn.Program) -> None:
    enumerators = prog.type("enum pid_type").enumerators
    assert enumerators is not None
    assert [(one.name, one.value) for one in enumerators] == [
        ("PIDTYPE_PID", 0),
        ("NEGATIVE", -2),
    ]
    wide = prog.type("enum wide").enumerators
    assert wide is not None
    assert [one.value for one in wide] == [2 << 32 | 1]


def test_enumerators_and_variables_are_found_by_name() -> None:
    types = BtfTypes(drgn.Program(drgn.Platform(drgn.Architecture.X86_64)), section().bytes())
    assert types.enumerators["NEGATIVE"][1] == -2
    assert types.type(types.variables["a_variable"]).tag == "node"


def test_a_name_of_another_kind_or_file_is_not_found(prog: drgn.Program) -> None:
    for name in ("union node", "struct absent", "struct hidden"):
        with pytest.raises(LookupError):
            prog.type(name)
    with pytest.raises(LookupError):
        prog.type("struct node", filename="sched.h")


@pytest.mark.parametrize("size", [0, 23])
def test_a_header_that_is_cut_short_is_refused(size: int) -> None:
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    with pytest.raises(FormatError, match="header"):
        BtfTypes(program, section().bytes()[:size])


def test_a_type_that_is_cut_short_is_refused() -> None:
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    for extra in (b"\0" * 4, struct.pack("<III", 0, 4 << 24 | 9, 8)):
        made = section()
        made.types += extra
        with pytest.raises(FormatError, match="cut short"):
            BtfTypes(program, made.bytes())


def test_a_name_out_of_range_is_refused() -> None:
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    made = section()
    made.types += struct.pack("<III", 1 << 20, 16 << 24, 8)
    with pytest.raises(FormatError, match="name"):
        BtfTypes(program, made.bytes())
