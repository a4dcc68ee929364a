"""Request traces: when each request came, how long its prompt was, and how many tokens it made."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeVar

from vatt.errors import InvalidRequest

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
CARRIED = ("azure_conv", "azure_code")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """One request. Its KV grows to `length_tokens`: the last token it makes is never read."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        if not math.isfinite(self.arrival_s) or self.arrival_s < 0:
            raise ValueError(f"arrival_s is {self.arrival_s}: seconds since the trace's begin")
        for name in ("prompt_tokens", "output_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: at least 1")

    @property
    def length_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens - 1

    def cut_to(self, context_length: int) -> Request:
        """The same request in a context that may be shorter: first its output is cut, then its prompt."""
        prompt_tokens = min(self.prompt_tokens, context_length)
        room = context_length - prompt_tokens + 1
        return Request(self.arrival_s, prompt_tokens, min(self.output_tokens, room))


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order of their arrival; at least one."""

    name: str
    requests: tuple[Request, ...]

    def first(self, request_count: int) -> Trace:
        return Trace(self.name, self.requests[:request_count])

    def cut_to(self, context_length: int) -> Trace:
        return Trace(self.name, tuple(request.cut_to(context_length) for request in self.requests))

    def longer_than(self, context_length: int) -> int:
        """Requests that do not fit in the context."""
        return sum(request.length_tokens > context_length for request in self.requests)


def read_trace(name_or_path: str) -> Trace:
    """A carried trace by its name, or a csv file with the columns `COLUMNS`, others being passed over.

    Raises InvalidRequest with the line and what is wrong there.
    """
    if name_or_path in CARRIED:
        text = (resources.files("vattctl.replay") / "traces" / f"{name_or_path}.csv").read_text()
        return parse_trace(name_or_path, text.splitlines(), name_or_path)
    path = Path(name_or_path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a text file"
        raise InvalidRequest(f"no trace at {path} ({why}): give a csv file, or one of {', '.join(CARRIED)}") from error
    return parse_trace(path.stem, lines, str(path))


def parse_trace(name: str, lines: Iterable[str], origin: str) -> Trace:
    """`origin` is what errors name."""
    reader = csv.DictReader(lines)
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise InvalidRequest(f"{origin}: no column {missing[0]}; the first line must name {', '.join(COLUMNS)}")
    requests = sorted(_requests(reader, origin), key=lambda request: request.arrival_s)
    if not requests:
        raise InvalidRequest(f"{origin}: there are no requests in it")
    return Trace(name, tuple(requests))


def _requests(reader: csv.DictReader[str], origin: str) -> Iterator[Request]:
    while True:
        try:
            row = next(reader, None)
            if row is None:
                return
            yield _request(row)
        except (ValueError, csv.Error) as error:
            raise InvalidRequest(f"{origin}, line {reader.line_num}: {error}") from error


def _request(row: Mapping[str, str | None]) -> Request:
    arrival_s = _number(row, "arrival_s", float, "a number")
    return Request(
        arrival_s, *(_number(row, column, int, "a whole number") for column in ("prompt_tokens", "output_tokens"))
    )


def _number(row: Mapping[str, str | None], column: str, kind: Callable[[str], T], what: str) -> T:
    text = row[column]
    if text is None:
        raise ValueError(f"{column} is missing")
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"{column} is {text!r}, not {what}") from error
