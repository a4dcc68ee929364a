"""How vattctl prints: tables for people, JSON with the proto's names and raw numbers for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, RenderableType

# Where the output is piped, a table is as wide as it needs.
PIPED_WIDTH = 200


def output_option(command: Callable[..., Any]) -> Callable[..., Any]:
    choice = click.Choice(["table", "json"])
    return click.option(
        "-o", "--output", type=choice, default="table", show_default=True, help="For people, or programs."
    )(command)


def show(renderable: RenderableType) -> None:
    """On stdout. rich honours NO_COLOR, and uses no escape codes where nobody watches."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    console.print(renderable)


def as_json(message: Message) -> str:
    return json.dumps(to_plain(message), indent=2)


def to_plain(message: Message) -> Any:
    """The proto's field names, every field, integers as numbers (the standard mapping makes int64 strings)."""
    if isinstance(message, Timestamp):
        return message.ToJsonString()
    plain = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            plain[field.name] = [to_plain(item) if isinstance(item, Message) else item for item in value]
        else:
            plain[field.name] = to_plain(value) if isinstance(value, Message) else value
    return plain
