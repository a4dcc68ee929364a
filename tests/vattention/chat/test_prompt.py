"""Conversations as text and tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vattention.chat.tiny_chat import TEMPLATE, save_tokenizer
from vatt.errors import InvalidRequest
from vattention.chat.prompt import ChatFormat, Message, Written

TALK = [
    Message("system", "Be brief."),
    Message("user", "Hello"),
    Message("assistant", "Hi"),
    Message("user", "Bye"),
]


def chat_format(folder: Path, template: str | None) -> ChatFormat:
    return ChatFormat(save_tokenizer(folder, template=template))


def test_a_tokenizer_with_a_template_writes_by_it(tmp_path: Path) -> None:
    written = chat_format(tmp_path, TEMPLATE).write(TALK)
    turns = ("system: Be brief.", "user: Hello", "assistant: Hi", "user: Bye")
    assert written.text == "".join(f"<|turn|>{turn}<|end|>" for turn in turns) + "<|turn|>assistant: "


def test_without_a_template_the_format_is_phi_2s(tmp_path: Path) -> None:
    plain = chat_format(tmp_path, None)
    assert plain.write(TALK).text == "Be brief.\n\nInstruct: Hello\nOutput: Hi\nInstruct: Bye\nOutput:"
    assert "\nInstruct:" in plain.stop


@pytest.mark.parametrize("template", [TEMPLATE, None], ids=["template", "plain"])
def test_what_is_known_keeps_its_tokens(tmp_path: Path, template: str | None) -> None:
    made = chat_format(tmp_path, template)
    before = made.write(TALK[:2])
    answer = "Hi" if template else " Hi"
    own_tokens = (*before.token_ids, 7, 8)  # the model may have spelled it in a way of its own
    after = made.write(TALK, Written(before.text + answer, own_tokens))
    assert after.text == made.write(TALK).text
    assert after.token_ids[: len(own_tokens)] == own_tokens
    rest = made.write(TALK).token_ids[-(after.length - len(own_tokens)) :]
    assert after.token_ids[len(own_tokens) :] == rest


def test_what_a_template_writes_otherwise_by_now_is_tokenized_anew(tmp_path: Path) -> None:
    made = chat_format(tmp_path, TEMPLATE)
    assert made.write(TALK, Written("something else", (1, 2, 3))) == made.write(TALK)


def test_messages_that_a_template_refuses_are_an_invalid_request(tmp_path: Path) -> None:
    made = chat_format(tmp_path, "{{ raise_exception('no system messages') }}")
    with pytest.raises(InvalidRequest, match="refuses these messages: no system messages"):
        made.write(TALK)


def test_a_message_has_a_role_that_is_known() -> None:
    with pytest.raises(InvalidRequest, match="it may be system, user, assistant"):
        Message("tool", "x")


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(InvalidRequest, match="half a character at 2"):
        Message("user", "ab\ud800")
