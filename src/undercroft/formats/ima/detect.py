"""Which of its forms a measurement list is in: strictly, from its first entry alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

from undercroft.base import PCR_COUNT, FormatError, HashAlgorithm
from undercroft.formats.ima.ascii_list import parse_ascii
from undercroft.formats.ima.binary_list import parse_binary
from undercroft.formats.ima.fields import Order
from undercroft.formats.ima.measurements import ImaList
from undercroft.formats.ima.template import template_named

FORMAT = "IMA measurement list"

_BANKS = {
    algorithm.size: algorithm
    for algorithm in (
        HashAlgorithm.SHA1,
        HashAlgorithm.SHA256,
        HashAlgorithm.SHA384,
        HashAlgorithm.SHA512,
    )
}
_ASCII = re.compile(rb"(?: [0-9]|[1-9][0-9]) ((?:[0-9a-f]{2})+) ([!-~]+) ")


@dataclass(frozen=True, slots=True)
class ListForm:
    """The form of a list.  Other banks of the same digest size look the same as these."""

    is_ascii: bool
    hash_algorithm: HashAlgorithm
    order: Order = "little"


def detect(data: bytes) -> ListForm:
    """Return the form that the first entry shows.  Raises FormatError if it shows none."""
    line = _ASCII.match(data[:4096])
    if line and len(line[1]) // 2 in _BANKS and template_named(line[2]).fields is not None:
        return ListForm(True, _BANKS[len(line[1]) // 2])
    for algorithm in _BANKS.values():
        if _is_binary(data, algorithm.size, "little"):
            return ListForm(False, algorithm, "little")
        if _is_binary(data, algorithm.size, "big"):
            return ListForm(False, algorithm, "big")
    raise FormatError(
        FORMAT,
        0,
        "neither a binary nor an ASCII list with a template that we know first",
        got=f"{len(data)} bytes",
    )


def _is_binary(data: bytes, hash_size: int, order: Order) -> bool:
    at = 4 + hash_size
    name_size = int.from_bytes(data[at : at + 4], order)
    name = data[at + 4 : at + 4 + name_size]
    return (
        int.from_bytes(data[:4], order) < PCR_COUNT
        and 0 < name_size == len(name) <= 255
        and template_named(name).fields is not None
    )


def parse_list(data: bytes) -> ImaList:
    """Parse a list in whichever form it has.  Raises FormatError, also if there is no entry."""
    form = detect(data)
    parse = parse_ascii if form.is_ascii else parse_binary
    return parse(data, hash_algorithm=form.hash_algorithm, order=form.order)
