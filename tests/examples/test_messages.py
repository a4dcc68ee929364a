"""The lines between the demo and its engines."""

from __future__ import annotations

import pytest

from examples.messages import (
    VATT,
    Answer,
    Finish,
    Finished,
    Message,
    NotAMessage,
    Progress,
    Ready,
    Result,
    Run,
    decode,
    encode,
)

MESSAGES: list[Message] = [
    Run(2, VATT),
    Finish(),
    Ready([[7, 9], [1164]], 46080, 4, 8192, "float32", 4 * 8192 * 46080),
    Progress(8),
    Result(0, VATT, 1.5, 1.25, [Answer("a\nquestion", 3, "“an answer”", [5, 2])]),
    Finished(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_is_one_line_and_comes_back_as_it_was(message: Message) -> None:
    line = encode(message)
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert decode(line) == message


@pytest.mark.parametrize(
    "line", ["", "{}", "[]", "3", '{"kind": "Run"}', '{"kind": "Sit"}', '{"kind": "Finish", "now": 1}']
)
def test_any_other_line_is_refused(line: str) -> None:
    with pytest.raises(NotAMessage):
        decode(line)
