"""What the demo and its engines say to each other: one JSON object a line, over the engine's stdin and stdout."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import ClassVar

VATT = "vatt"
DYNAMIC = "dynamic"


@dataclass(frozen=True, slots=True)
class Run:
    """To an engine: generate for one of its batches, with one of the two caches. Answered by a Result."""

    batch: int
    cache: str  # VATT or DYNAMIC


@dataclass(frozen=True, slots=True)
class Finish:
    """To an engine: give everything back. Answered by Finished."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The first message of an engine."""

    batches: list[list[int]]  # the prompts' lengths in tokens, batch by batch
    token_bytes: int  # K and V of one token in all layers
    max_batch_size: int
    max_context_length: int
    dtype: str
    static_reservation_bytes: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How many tokens each row of the batch has so far; 0 when the prompts are about to be read."""

    tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to one prompt."""

    prompt: str
    prompt_tokens: int
    text: str
    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class Result:
    """A batch, done."""

    batch: int
    cache: str
    duration_s: float
    cpu_s: float  # of all threads of the engine in that time
    answers: list[Answer] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Finished:
    """The last message of an engine: it holds no page any more."""


Message = Run | Finish | Ready | Progress | Result | Finished

_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in (Run, Finish, Ready, Progress, Result, Finished)}


class NotAMessage(ValueError):
    """A line that is none of the messages above."""

    example: ClassVar[str] = '{"kind": "Run", "batch": 0, "cache": "vatt"}'


def encode(message: Message) -> str:
    return json.dumps({"kind": type(message).__name__, **asdict(message)}) + "\n"


def decode(line: str | bytes) -> Message:
    try:
        facts = json.loads(line)
        kind = _KINDS[facts.pop("kind")]
        if kind is Result:
            facts["answers"] = [Answer(**answer) for answer in facts["answers"]]
        return kind(**facts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotAMessage(f"{line!r} is not a message such as {NotAMessage.example}") from error
