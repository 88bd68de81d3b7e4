"""TCG event logs: bytes to events and back, every event decoded.

Nothing here replays a log or believes it: ``verify.eventlog`` does the first, and only a quote
over the replayed PCRs allows the second.  Even then a digest proves of an event's data only what
``DigestCheck`` and the ``claimed_`` fields say.
"""

from undercroft.formats.eventlog.log import (
    CC_REGISTER_OF_PCR,
    CC_REGISTERS,
    MAX_EVENTS,
    MAX_LOG_SIZE,
    Event,
    EventLog,
    LogFormat,
    parse_eventlog,
)
from undercroft.formats.eventlog.types import EventType, type_name
from undercroft.formats.eventlog.value import Claimed, DigestCheck, EventValue, Malformed, Opaque

__all__ = [
    "CC_REGISTERS",
    "CC_REGISTER_OF_PCR",
    "MAX_EVENTS",
    "MAX_LOG_SIZE",
    "Claimed",
    "DigestCheck",
    "Event",
    "EventLog",
    "EventType",
    "EventValue",
    "LogFormat",
    "Malformed",
    "Opaque",
    "parse_eventlog",
    "type_name",
]
