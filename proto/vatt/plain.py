"""Messages as plain values for JSON: the same for `vattctl -o json` and for vattd's /status.json."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

_Read = Callable[[Any], Any]


def to_plain(message: Message) -> Any:
    """The proto's field names, every field: null for one that is unset, where that differs from zero or empty.

    Integers are numbers (the standard mapping makes int64 strings); enums, times and durations are as in the standard
    mapping: "STATE_HELD", "2026-01-02T03:04:05Z", "1.500s".
    """
    if isinstance(message, (Timestamp, Duration)):
        return message.ToJsonString()
    return {name: read(message) for name, read in _readers(message.DESCRIPTOR)}


@cache
def _readers(descriptor: Any) -> tuple[tuple[str, _Read], ...]:
    """Worked out once a type: vattd renders hundreds of messages while engines wait for its interpreter."""
    return tuple((field.name, _reader(field)) for field in descriptor.fields)


def _reader(field: Any) -> _Read:
    get, plain = attrgetter(field.name), _value_reader(field)
    if field.is_repeated:
        return (lambda message: list(get(message))) if plain is None else lambda message: [*map(plain, get(message))]
    if field.has_presence:
        name, value = field.name, plain or (lambda value: value)
        return lambda message: value(get(message)) if message.HasField(name) else None
    return get if plain is None else lambda message: plain(get(message))


def _value_reader(field: Any) -> _Read | None:
    """None: the value is plain already."""
    if field.message_type is not None:
        return to_plain
    if field.enum_type is None:
        return None
    names = {number: value.name for number, value in field.enum_type.values_by_number.items()}
    return lambda number: names.get(number, number)
