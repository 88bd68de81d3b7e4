"""Templates: which fields an entry has, in which order (``ima_template.c``)."""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass

MAX_FIELDS = 15
"""IMA_TEMPLATE_NUM_FIELDS_MAX."""
MAX_NAME_SIZE = 255
"""No template name is longer: 15 field ids of at most 16 bytes would be, but the kernel itself
takes back only names shorter than MAX_TEMPLATE_NAME_LEN (70 or so) after a kexec."""


class FieldKind(enum.Enum):
    """How a field's bytes are laid out and shown (``enum data_formats``)."""

    DIGEST = "digest"
    DIGEST_WITH_ALGO = "digest with algorithm"
    DIGEST_WITH_TYPE_AND_ALGO = "digest with type and algorithm"
    STRING = "string"
    HEX = "hex"
    UINT16 = "16-bit unsigned"
    UINT32 = "32-bit unsigned"


FIELDS: dict[str, FieldKind] = {
    "d": FieldKind.DIGEST,
    "n": FieldKind.STRING,
    "d-ng": FieldKind.DIGEST_WITH_ALGO,
    "d-ngv2": FieldKind.DIGEST_WITH_TYPE_AND_ALGO,
    "n-ng": FieldKind.STRING,
    "sig": FieldKind.HEX,
    "buf": FieldKind.HEX,
    "d-modsig": FieldKind.DIGEST_WITH_ALGO,
    "modsig": FieldKind.HEX,
    "evmsig": FieldKind.HEX,
    "iuid": FieldKind.UINT32,
    "igid": FieldKind.UINT32,
    "imode": FieldKind.UINT16,
    "xattrnames": FieldKind.STRING,
    "xattrlengths": FieldKind.HEX,
    "xattrvalues": FieldKind.HEX,
}
"""``supported_fields[]``: every field id a template may name."""

NAME_FIELDS = frozenset({"n", "n-ng"})
DIGEST_FIELDS = frozenset({"d", "d-ng", "d-ngv2"})
REQUIRED_FIELDS = NAME_FIELDS | DIGEST_FIELDS
"""The fields that the kernel fills for every event; the others may be empty."""


@dataclass(frozen=True, slots=True)
class Template:
    """A template: the name that an entry gives, and its field ids in order.

    ``fields`` is None for a template that we do not know: its data is kept whole, as it is.
    """

    name: bytes
    fields: tuple[str, ...] | None

    @property
    def is_original(self) -> bool:
        """True for ``ima``, whose fields have no length and whose hash has a rule of its own."""
        return self.name == b"ima"

    def index_of(self, wanted: frozenset[str]) -> int | None:
        """Return the position of the first field whose id is in ``wanted``, or None."""
        return next((i for i, f in enumerate(self.fields or ()) if f in wanted), None)


def _builtin(name: str, fmt: str) -> Template:
    return Template(name.encode(), tuple(fmt.split("|")))


BUILTIN_TEMPLATES: dict[bytes, Template] = {
    template.name: template
    for template in (
        _builtin("ima", "d|n"),
        _builtin("ima-ng", "d-ng|n-ng"),
        _builtin("ima-sig", "d-ng|n-ng|sig"),
        _builtin("ima-ngv2", "d-ngv2|n-ng"),
        _builtin("ima-sigv2", "d-ngv2|n-ng|sig"),
        _builtin("ima-buf", "d-ng|n-ng|buf"),
        _builtin("ima-modsig", "d-ng|n-ng|sig|d-modsig|modsig"),
        _builtin(
            "evm-sig",
            "d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode",
        ),
    )
}
"""``builtin_templates[]``."""


@functools.lru_cache(maxsize=256)
def template_named(name: bytes) -> Template:
    """Return the template that an entry calls ``name``.

    A custom ``ima_template_fmt=`` has no name; its format (``d-ng|n-ng|iuid``) stands in the
    entry instead.  A name that is neither gives a template with ``fields`` None.
    """
    builtin = BUILTIN_TEMPLATES.get(name)
    if builtin is not None:
        return builtin
    fields = tuple(name.decode("ascii", "replace").split("|"))
    if len(fields) <= MAX_FIELDS and all(field in FIELDS for field in fields):
        return Template(name, fields)
    return Template(name, None)
