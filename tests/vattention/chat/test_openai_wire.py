"""What a request may say, and how it is told what it may not."""

from __future__ import annotations

from typing import Any

import pytest

from vattention.chat.openai_wire import ChatRequest, WireError
from vattention.chat.prompt import Message
from vattention.chat.sampling import Sampling

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


def test_a_request_without_more_has_openais_defaults() -> None:
    request = ChatRequest.parse({**BODY, "n": 1, "tools": [], "stop": None, "user": "me"})
    assert request == ChatRequest("m", (Message("user", "Hello"),), Sampling(temperature=1.0), False, False)


def test_all_that_is_supported_is_understood() -> None:
    said = [{"role": "developer", "content": "Be brief."}, {"role": "assistant", "content": "Hi"}]
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    body = {
        "model": "m",
        "messages": [*said, {"role": "user", "content": parts}],
        "temperature": 0,
        "top_p": 0.5,
        "seed": 4,
        "max_completion_tokens": 9,
        "stop": "x",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    messages = (Message("system", "Be brief."), Message("assistant", "Hi"), Message("user", "Hello"))
    sampling = Sampling(temperature=0, top_p=0.5, seed=4, max_tokens=9, stop=("x",))
    assert ChatRequest.parse(body) == ChatRequest("m", messages, sampling, True, True)
    assert ChatRequest.parse({**BODY, "max_tokens": 9}).sampling.max_tokens == 9


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"model": 3}, "model"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"frequency_penalty": 1.0}, "frequency_penalty"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"seed": "x"}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": ["Hello"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"top_k": 3}, "top_k"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_by_name(wrong: dict[str, Any], param: str) -> None:
    with pytest.raises(WireError) as refused:
        ChatRequest.parse({**BODY, **wrong})
    assert (refused.value.status, refused.value.param) == (400, param)
    assert refused.value.body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [[], "x", None, {"messages": BODY["messages"]}, {"model": "m"}], ids=str)
def test_a_body_without_a_request_is_refused(body: object) -> None:
    with pytest.raises(WireError, match=r"must be a JSON object|is missing"):
        ChatRequest.parse(body)
