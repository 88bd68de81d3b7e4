"""BTF sections made by hand, type by type (Documentation/bpf/btf.rst)."""

from __future__ import annotations

import struct

from undercroft.formats.kernel import btf


class Section:
    """Builds a BTF section; ids count from 1."""

    def __init__(self) -> None:
        self.strings, self.types, self.count = b"\0", b"", 0

    def name(self, text: str) -> int:
        """Put a name into the strings and return where it is."""
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text) - 1

    def add(
        self, kind: int, text: str, value: int, parts: bytes = b"", *, count: int = 0, flag: int = 0
    ) -> int:
        """Add a type and return its id."""
        info = flag << 31 | kind << 24 | count
        self.types += struct.pack("<III", self.name(text), info, value) + parts
        self.count += 1
        return self.count

    def integer(self, name: str, size: int, *, signed: bool = False, truth: bool = False) -> int:
        """Add an INT."""
        encoding = signed | truth << 2
        return self.add(btf.INT, name, size, struct.pack("<I", encoding << 24 | 8 * size))

    def bytes(self) -> bytes:
        """Return the section."""
        header = struct.pack(
            "<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings)
        )
        return header + self.types + self.strings


def triples(*rows: tuple[int, int, int]) -> bytes:
    """Return the words of members, of an array, or of wide enumerators."""
    return b"".join(struct.pack("<III", *row) for row in rows)


def every_kind() -> Section:
    """Return a section with a type of each kind."""
    made = Section()
    integer = made.integer("int", 4, signed=True)
    made.integer("unsigned long", 8)
    made.integer("_Bool", 1, truth=True)
    array = made.add(btf.ARRAY, "", 0, triples((integer, integer, 5)))
    node = made.count + 2
    pointer = made.add(btf.PTR, "", node)
    rows = triples((made.name("next"), pointer, 0), (made.name("values"), array, 64))
    assert made.add(btf.STRUCT, "node", 32, rows, count=2) == node
    made.add(btf.UNION, "either", 4, triples((made.name("a"), integer, 0)), count=1)
    bits = triples((made.name("low"), integer, 3 << 24), (made.name("high"), integer, 5 << 24 | 3))
    made.add(btf.STRUCT, "flags", 4, bits, count=2, flag=1)
    pair = struct.pack("<Ii", made.name("PIDTYPE_PID"), 0)
    pair += struct.pack("<Ii", made.name("NEGATIVE"), -2)
    made.add(btf.ENUM, "pid_type", 4, pair, count=2)
    made.add(btf.ENUM64, "wide", 8, triples((made.name("HUGE"), 1, 2)), count=1)
    made.add(btf.FWD, "hidden", 0)
    alias = made.add(btf.TYPEDEF, "node_t", node)
    volatile = made.add(btf.VOLATILE, "", alias)
    made.add(btf.TYPEDEF, "const_node", made.add(btf.CONST, "", volatile))
    made.add(btf.TYPEDEF, "tagged", made.add(btf.TYPE_TAG, "user", integer))
    words = struct.pack("<Ii", made.name("x"), integer) + bytes(8)
    prototype = made.add(btf.FUNC_PROTO, "", integer, words, count=2)
    made.add(btf.FUNC, "printk", prototype)
    made.add(btf.TYPEDEF, "callback", made.add(btf.PTR, "", prototype))
    made.add(btf.FLOAT, "double", 8)
    made.add(btf.VAR, "a_variable", node, struct.pack("<I", 1))
    made.add(btf.DATASEC, ".data..percpu", 32, triples((made.count, 0, 32)), count=1)
    made.add(btf.DECL_TAG, "tag", node, struct.pack("<I", 0))
    made.add(btf.RESTRICT, "", pointer)
    return made
