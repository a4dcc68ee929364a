"""What is written is what Prometheus's own client reads."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from vattd.metrics_text import CONTENT_TYPE, Family, TextApp, counter, gauge, histogram, one, text_of
from vattd.site import Unanswered
from vattd.tallies import BOUNDS_S, Histogram

NUMBERS = st.one_of(st.integers(-(1 << 53), 1 << 53), st.floats(allow_nan=False), st.booleans())
# A carriage return the client's parser takes for the end of a line, as str.splitlines does; Prometheus does not.
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]) | st.sampled_from('\\"\n'), max_size=12)


def read(text: str) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(text)}


@given(st.lists(st.tuples(NUMBERS, WORDS, WORDS), max_size=6, unique_by=lambda sample: sample[1:]), WORDS)
def test_figures_and_labels_are_read_back_as_they_were(samples: list[tuple[float, str, str]], words: str) -> None:
    family = gauge("vattd_thing_bytes", words, "one", "other")
    for figure, *labels in samples:
        family.add(figure, *labels)
    back = read(text_of([family]))["vattd_thing_bytes"]
    assert back.type == "gauge"
    assert [(sample.value, sample.labels) for sample in back.samples] == [
        (float(figure), {"one": one, "other": other}) for figure, one, other in samples
    ]


@given(st.lists(st.floats(0, 100), max_size=20), st.booleans())
def test_a_histograms_buckets_add_up(times_s: list[float], labelled: bool) -> None:
    times = Histogram()
    for time_s in times_s:
        times.note(time_s)
    family = histogram("vattd_wait_seconds", "Waits.", *(["tenant"] if labelled else []))
    family.add(times, *(["a"] if labelled else []))
    labels = {"tenant": "a"} if labelled else {}
    samples = {
        (sample.name.removeprefix("vattd_wait_seconds"), sample.labels.pop("le", None)): sample
        for sample in read(text_of([family]))["vattd_wait_seconds"].samples
    }
    assert all(sample.labels == labels for sample in samples.values())
    for bound in BOUNDS_S:
        assert samples["_bucket", str(bound)].value == sum(time_s <= bound for time_s in times_s)
    assert samples["_bucket", "+Inf"].value == samples["_count", None].value == len(times_s)
    assert samples["_sum", None].value == pytest.approx(sum(times_s))


def test_one_figure_without_labels_has_no_braces() -> None:
    assert text_of([one(counter("vattd_things_total", "Things."), True)]).splitlines() == [
        "# HELP vattd_things_total Things.",
        "# TYPE vattd_things_total counter",
        "vattd_things_total 1",
    ]


def test_a_sample_with_too_few_labels_is_a_bug() -> None:
    family = Family("x", gauge("x", "").kind, "", ("tenant",), [((), 1)])
    with pytest.raises(ValueError, match="shorter"):
        text_of([family])


def ask(app: TextApp, **environ: str) -> tuple[str, dict[str, str], bytes]:
    said: list[Any] = []
    body = b"".join(app({"REQUEST_METHOD": "GET", **environ}, lambda *answer: said.extend(answer)))
    return said[0], dict(said[1]), body


def test_the_text_is_packed_for_who_takes_it_so() -> None:
    app = TextApp(lambda: "a_figure 7\n" * 1000)
    assert ask(app) == ("200 OK", {"Content-Type": CONTENT_TYPE}, b"a_figure 7\n" * 1000)
    _, headers, body = ask(app, HTTP_ACCEPT_ENCODING="gzip, deflate")
    assert headers["Content-Encoding"] == "gzip"
    assert len(body) < 1000
    assert gzip.decompress(body) == b"a_figure 7\n" * 1000


def test_why_there_is_no_text_is_said() -> None:
    def unanswered() -> str:
        raise Unanswered("vattd is ending")

    status, _, body = ask(TextApp(unanswered))
    assert (status, body) == ("503 Service Unavailable", b"vattd is ending\n")


def test_who_does_not_get_makes_no_reading() -> None:
    app = TextApp(lambda: pytest.fail("a reading"))
    for method in ("POST", "HEAD", "OPTIONS", "DELETE"):
        status, headers, _ = ask(app, REQUEST_METHOD=method)
        assert (status, headers["Allow"]) == ("405 Method Not Allowed", "GET")
