"""BTF as drgn types, from a section made by hand with a type of each kind."""

from __future__ import annotations

import drgn
import pytest

from undercroft.base import FormatError
from undercroft.shell.btf_types import BtfTypes
from undercroft.testing.btf import every_kind


@pytest.fixture
def prog() -> drgn.Program:
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    types = BtfTypes(program, every_kind().bytes())
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
    types = BtfTypes(drgn.Program(drgn.Platform(drgn.Architecture.X86_64)), every_kind().bytes())
    assert types.enumerators["NEGATIVE"][1] == -2
    assert types.type(types.variables["a_variable"]).tag == "node"


def test_a_name_of_another_kind_or_file_is_not_found(prog: drgn.Program) -> None:
    for name in ("union node", "struct absent", "struct hidden"):
        with pytest.raises(LookupError):
            prog.type(name)
    with pytest.raises(LookupError):
        prog.type("struct node", filename="sched.h")


def test_a_damaged_section_is_refused() -> None:
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    with pytest.raises(FormatError, match="header"):
        BtfTypes(program, every_kind().bytes()[:23])
