"""A symbol file for volatility3, from a section and symbols made by hand."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from undercroft.base import FormatError
from undercroft.formats.kernel import KernelImage, btf
from undercroft.formats.kernel.btf_types import TypeSection
from undercroft.reference.isf import symbol_file, write_isf
from undercroft.testing.btf import Section, every_kind, triples

BASE = 0xFFFFFFFF81000000
BANNER = b"Linux version 6.1.0 (someone)\n\0"
SYMBOLS = {
    "a_variable": 0x20880,
    "_text": BASE,
    "linux_banner": BASE + 0x100,
    "init_task": BASE + 0x200,
    "modules": BASE + 0x300,
    "file_systems": BASE + 0x400,
    "idt_table": BASE + 0x500,
    "page_offset_base": BASE + 0x600,
}


def section() -> Section:
    made = every_kind()
    for name in ("task_struct", "file_system_type", "gate_struct"):
        made.add(btf.STRUCT, name, 16)
    inner = made.add(btf.STRUCT, "", 4, triples((made.name("deep"), 1, 0)), count=1)
    bits = made.name("late")
    rows = triples((0, inner, 0), (bits, 1, 5 << 24 | 37))
    made.add(btf.UNION, "outer", 8, rows, count=2, flag=1)
    made.add(btf.STRUCT, "node", 99)  # a second of the name: the first counts
    made.add(btf.FWD, "either_later", 0, flag=1)
    enum = made.add(btf.ENUM, "", 4)
    made.add(btf.TYPEDEF, "unnamed_enum", enum)
    kinds = [one.kind for one in TypeSection(made.bytes()).types]
    targets = {
        "to_forward": made.add(btf.PTR, "", kinds.index(btf.FWD)),
        "to_function": made.add(btf.PTR, "", kinds.index(btf.FUNC_PROTO)),
        "to_void": made.add(btf.PTR, "", 0),
        "chosen": enum,
        "one_of": kinds.index(btf.UNION),
    }
    rows = triples(
        *((made.name(name), target, 64 * n) for n, (name, target) in enumerate(targets.items()))
    )
    made.add(btf.STRUCT, "holder", 40, rows, count=5)
    made.add(btf.VAR, "not_in_kallsyms", 1, bytes(4))
    return made


def image(banner: bytes = BANNER) -> KernelImage:
    data = section().bytes()
    memory = bytearray(0x2000) + data
    memory[0x100 : 0x100 + len(banner)] = banner
    names = list(SYMBOLS)
    fake = SimpleNamespace(
        link_base=BASE,
        sha256="ab" * 32,
        memory=bytes(memory),
        sections={".BTF": SimpleNamespace(address=BASE + 0x2000, size=len(data))},
        symbols=SimpleNamespace(
            names=[*names, "_text"],
            addresses=np.array([*SYMBOLS.values(), BASE + 0x999], dtype=np.uint64),
        ),
        offset=lambda name: SYMBOLS[name] - BASE,
        read=lambda offset, size: bytes(memory[offset : offset + size]),
    )
    return cast(KernelImage, fake)


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return symbol_file(image())


def test_it_is_json_and_says_where_it_comes_from(made: dict[str, Any]) -> None:
    assert msgspec.json.decode(write_isf(image())) == made
    metadata = made["metadata"]
    assert metadata["format"] == "6.2.0"
    assert "undercroft" in metadata["linux"]["symbols"][0]["name"]
    assert metadata["linux"]["symbols"][0]["hash_value"] == "ab" * 32


def test_symbols_have_addresses_and_types(made: dict[str, Any]) -> None:
    symbols = made["symbols"]
    assert symbols["_text"] == {"address": BASE, "type": {"kind": "base", "name": "void"}}
    assert symbols["init_task"]["type"] == {"kind": "struct", "name": "task_struct"}
    assert symbols["file_systems"]["type"] == {
        "kind": "pointer",
        "subtype": {"kind": "struct", "name": "file_system_type"},
    }
    assert symbols["idt_table"]["type"]["count"] == 256
    assert symbols["page_offset_base"]["type"]["name"] == "long unsigned int"
    assert symbols["a_variable"]["type"] == {"kind": "struct", "name": "node"}
    assert symbols["modules"]["type"]["name"] == "void"  # this BTF has no struct list_head


def test_the_banner_is_there_byte_by_byte(made: dict[str, Any]) -> None:
    banner = made["symbols"]["linux_banner"]
    assert base64.b64decode(banner["constant_data"]) == BANNER
    assert banner["type"]["count"] == len(BANNER)


def test_a_banner_that_does_not_end_is_refused() -> None:
    with pytest.raises(FormatError, match="banner"):
        symbol_file(image(b"x" * 0x1100))


def test_structs_and_unions(made: dict[str, Any]) -> None:
    types = made["user_types"]
    assert types["node"]["size"] == 32
    assert types["node"]["fields"]["values"] == {
        "type": {"kind": "array", "count": 5, "subtype": {"kind": "base", "name": "int"}},
        "offset": 8,
    }
    assert types["node_t"] == types["node"] == types["const_node"]
    assert types["hidden"] == {"kind": "struct", "size": 0, "fields": {}}
    assert types["either_later"]["kind"] == "union"
    assert types["either"]["kind"] == "union"


def test_bit_fields_and_anonymous_members(made: dict[str, Any]) -> None:
    types = made["user_types"]
    assert types["flags"]["fields"]["high"]["type"] == {
        "kind": "bitfield",
        "bit_position": 3,
        "bit_length": 5,
        "type": {"kind": "base", "name": "int"},
    }
    fields = types["outer"]["fields"]
    anonymous = fields["unnamed_field_0"]
    assert anonymous["anonymous"] is True
    assert types[anonymous["type"]["name"]]["fields"]["deep"]["offset"] == 0
    assert (fields["late"]["offset"], fields["late"]["type"]["bit_position"]) == (4, 5)


def test_what_members_lead_to(made: dict[str, Any]) -> None:
    fields = made["user_types"]["holder"]["fields"]
    assert fields["to_forward"]["type"]["subtype"] == {"kind": "struct", "name": "hidden"}
    assert fields["to_function"]["type"]["subtype"] == {"kind": "function"}
    assert fields["to_void"]["type"]["subtype"] == {"kind": "base", "name": "void"}
    assert fields["chosen"]["type"]["kind"] == "enum"
    assert fields["one_of"]["type"] == {"kind": "union", "name": "either"}


def test_base_types_and_enumerations(made: dict[str, Any]) -> None:
    base = made["base_types"]
    assert base["pointer"]["size"] == 8
    assert base["void"]["kind"] == "void"
    assert base["_Bool"]["kind"] == "bool"
    assert base["double"]["kind"] == "float"
    assert base["tagged"] == base["int"]
    assert base["unsigned char"]["kind"] == "char"
    enums = made["enums"]
    assert enums["pid_type"] == {
        "size": 4,
        "base": "int",
        "constants": {"PIDTYPE_PID": 0, "NEGATIVE": -2},
    }
    assert enums["wide"]["base"] == "long unsigned int"
    assert enums["unnamed_enum"]["constants"] == {}


def test_every_type_that_is_named_is_there(made: dict[str, Any]) -> None:
    """A descriptor leads to a definition, whatever it stands in."""

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            kind, name = value.get("kind"), value.get("name")
            if isinstance(name, str) and isinstance(kind, str):
                where = {"base": "base_types", "enum": "enums"}.get(kind, "user_types")
                assert name in made[where]
            for one in value.values():
                walk(one)

    walk(made["user_types"])
    walk(made["symbols"])
