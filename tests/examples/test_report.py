"""What the demo prints fits, however narrow the terminal."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from examples import report
from examples.demo import console_for
from examples.memory import DeviceCounter, Peak
from examples.messages import DYNAMIC, VATT, Answer, Ready, Result

ANSWER = Answer("a question of many words " * 20, 1164, "an answer", [5] * 480)
RESULTS = {
    tenant: [Result(0, VATT, 1234.5, 1203.4, [ANSWER] * 12), Result(0, DYNAMIC, 2345.6, 1302.5, [ANSWER] * 12)]
    for tenant in ("chat", "summaries")
}
READY = {tenant: Ready([[7, 9], [1164]], 46080, 4, 8192, "float32", 4 * 8192 * 46080) for tenant in RESULTS}
STATUS: dict[str, Any] = {
    "pool": {"max_bytes": 384 << 20, "peak_leased_bytes": 142 << 20, "peak_mapped_bytes": 9 << 20}
}


class Counter:
    description = DeviceCounter.description  # the longest

    def read_bytes(self) -> int:
        return 227 << 20


def printed(width: int, part: str) -> str:
    console = Console(width=width, highlight=False, file=StringIO())
    peak = Peak(Counter())
    peak.sample()
    if part == "texts":
        report.print_texts(console, RESULTS)
    elif part == "memory":
        report.print_memory(console, READY, STATUS, peak)
    else:
        report.print_speed(console, RESULTS)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize(
    ("part", "figures"),
    [
        ("memory", ["2.81 GiB", "100.0%", "384 MiB", "142 MiB", "9.00 MiB", "227 MiB", "7.9%"]),
        ("speed", ["5,760", "Tok/s", "4.7", "2.5", "1,234.5", "2,345.6", "1,203.4", "1,302.5", "Written", "CPU s"]),
    ],
)
def test_no_cell_is_cut(part: str, figures: list[str], width: int) -> None:
    text = printed(width, part)
    assert "…" not in text
    assert [figure for figure in figures if figure not in text] == []
    assert max(len(line) for line in text.splitlines()) <= width


def test_there_is_room_for_names_at_80_columns_and_for_all_columns_at_100() -> None:
    for name in ("summaries", "vattd's pages", "DynamicCache"):
        assert name in printed(80, "speed")
    for heading in ("Prompts", "Read", "13,968"):
        assert heading in printed(100, "speed")


@pytest.mark.parametrize("width", [80, 100])
def test_a_prompt_is_one_line(width: int) -> None:
    lines = printed(width, "texts").splitlines()
    at = lines.index(next(line for line in lines if line.startswith("> ")))
    assert len(lines[at]) == width
    assert lines[at + 1] == "  an answer"


def test_what_is_piped_has_all_columns() -> None:
    assert console_for(stream_is_terminal=False).width >= report.WIDE
