"""Metrics as the text that Prometheus reads, and the WSGI application that answers with it.

prometheus_client's own writer needs 15 to 30 ms for the lines of 64 tenants, and its gzip 10 more, in which the event
loop hardly gets the interpreter; this one needs two or three.
"""

from __future__ import annotations

import enum
import gzip
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from vattd.site import Unanswered, say
from vattd.tallies import BOUNDS_S, Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LE = tuple(f'le="{bound}"' for bound in (*BOUNDS_S, "+Inf"))


class Kind(enum.Enum):
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(slots=True, eq=False)
class Family:
    """One metric: `name` is what queries say, `text` says for people what it is.

    A sample is the values of `labels`, in their order, and a figure; of a histogram, a Histogram.
    """

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    samples: list[tuple[tuple[str, ...], Any]] = field(default_factory=list)

    def add(self, figure: float | Histogram, *label_values: str) -> None:
        self.samples.append((label_values, figure))


def gauge(name: str, text: str, *labels: str) -> Family:
    return Family(name, Kind.GAUGE, text, labels)


def counter(name: str, text: str, *labels: str) -> Family:
    return Family(name, Kind.COUNTER, text, labels)


def histogram(name: str, text: str, *labels: str) -> Family:
    return Family(name, Kind.HISTOGRAM, text, labels)


def one(family: Family, figure: float) -> Family:
    """The family with its only figure."""
    family.add(figure)
    return family


def text_of(families: Iterable[Family]) -> str:
    return "".join(line for family in families for line in _lines(family))


def _lines(family: Family) -> Iterator[str]:
    name, keys = family.name, family.labels
    text = family.text.replace("\\", r"\\").replace("\n", r"\n")
    yield f"# HELP {name} {text}\n# TYPE {name} {family.kind.value}\n"
    for values, figure in family.samples:
        labels = ",".join([f'{key}="{_escaped(value)}"' for key, value in zip(keys, values, strict=True)])
        if family.kind is Kind.HISTOGRAM:
            yield from _histogram_lines(name, labels, figure)
        else:
            yield f"{name}{{{labels}}} {_number(figure)}\n" if labels else f"{name} {_number(figure)}\n"


def _histogram_lines(name: str, labels: str, figure: Histogram) -> Iterator[str]:
    comma, braced = ("," if labels else ""), (f"{{{labels}}}" if labels else "")
    count = 0
    for le, count in zip(_LE, accumulate(figure.counts), strict=True):
        yield f"{name}_bucket{{{labels}{comma}{le}}} {count}\n"
    yield f"{name}_sum{braced} {figure.total_s}\n{name}_count{braced} {count}\n"


def _number(figure: float) -> float:
    """True and False are numbers too, and written as such."""
    return +figure


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class TextApp:
    """A WSGI application: `text()` to GET, whatever the path; 503 with the words of the Unanswered that it raises."""

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "GET":
            start_response("405 Method Not Allowed", [("Allow", "GET"), ("Content-Type", "text/plain")])
            return [b"only GET\n"]
        try:
            body, headers = self._text().encode(), [("Content-Type", CONTENT_TYPE)]
        except Unanswered as error:
            return say("503 Service Unavailable", str(error), start_response)
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            body = gzip.compress(body, compresslevel=1)  # a tenth of the size; more would take longer than all the rest
            headers.append(("Content-Encoding", "gzip"))
        start_response("200 OK", headers)
        return [body]
