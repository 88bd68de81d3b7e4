"""Events as JSON values: every field of every decoded value by its name, bytes as hex.

GUIDs (fields named ``*guid`` or ``owner``) are text; device paths carry their text beside their
nodes; certificates stay hex.
"""

from __future__ import annotations

from typing import cast

from undercroft.base import JsonValue
from undercroft.formats.eventlog.devicepath import DevicePath
from undercroft.formats.eventlog.devicepath_text import device_path_text
from undercroft.formats.eventlog.guid import guid_text
from undercroft.formats.eventlog.log import Event
from undercroft.formats.eventlog.value import EventValue
from undercroft.formats.eventlog.words import describe


def event_json(event: Event) -> dict[str, JsonValue]:
    """Return an event as a JSON object."""
    digests = {str(algorithm): digest.hex() for algorithm, digest in event.digests.items()}
    others = {f"{alg_id:#06x}": digest.hex() for alg_id, digest in event.other_digests.items()}
    return {
        "index": event.index,
        "offset": event.offset,
        "pcr": event.pcr,
        "type": event.type,
        "type_name": event.type_name,
        "digests": {**digests, **others},
        "digest_check": event.check.value,
        "data": event.data.hex(),
        "decoded": value_json(event.decoded),
        "words": "\n".join(describe(event)),
    }


def value_json(value: EventValue) -> dict[str, JsonValue]:
    """Return a decoded value as a JSON object; ``kind`` is its class."""
    out: dict[str, JsonValue] = {"kind": type(value).__name__}
    if isinstance(value, DevicePath):
        out["text"] = device_path_text(value)
    for name in value.__struct_fields__:
        out[name] = _field(name, getattr(value, name))
    return out


def _field(name: str, field: object) -> JsonValue:
    if isinstance(field, EventValue):
        return value_json(field)
    if isinstance(field, bytes):
        is_guid = len(field) == 16 and (name.endswith("guid") or name == "owner")
        return guid_text(field) if is_guid else field.hex()
    if isinstance(field, tuple):
        return [_field("", item) for item in field]
    return cast("JsonValue", field)
