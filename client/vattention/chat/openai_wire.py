"""OpenAI's chat completions as plain values: requests checked, answers and errors written. No server in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from vattention.chat.answer import Ending, FinishReason
from vattention.chat.prompt import ASSISTANT, SYSTEM, USER, Message
from vattention.chat.sampling import InvalidSampling, Sampling

# "developer" is what OpenAI calls a system message nowadays.
ROLES = {"system": SYSTEM, "developer": SYSTEM, "user": USER, "assistant": ASSISTANT}
MOST_STOPS = 4
# What says nothing about the answer.
IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
# What is not supported, and the values that ask for nothing.
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
}
SUPPORTED = {
    "model",
    "messages",
    "temperature",
    "top_p",
    "seed",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "stream",
    "stream_options",
}


class WireError(Exception):
    """What the client is told instead of an answer."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """The body of a POST to /v1/chat/completions."""

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    is_streamed: bool
    includes_usage: bool

    @classmethod
    def parse(cls, body: object) -> ChatRequest:
        """Raises WireError, 400, for what is not understood or not supported: nothing is passed over in silence."""
        if not isinstance(body, dict):
            _refuse("the body must be a JSON object")
        given = {name: value for name, value in body.items() if value is not None}  # null is as good as absent
        for name, value in given.items():
            _check_supported(name, value)
        is_streamed = _of(bool, given, "stream", "true or false", False)
        options = _of(dict, given, "stream_options", "an object", {})
        if options and not is_streamed:
            _refuse("stream_options is for streams: set stream to true", "stream_options")
        return cls(
            model=_of(str, given, "model", "a string"),
            messages=_messages(_of(list, given, "messages", "a list")),
            sampling=_sampling(given),
            is_streamed=is_streamed,
            includes_usage=_of(bool, options, "include_usage", "true or false", False),
        )


@dataclass(frozen=True, slots=True)
class CompletionWriter:
    """Writes one answer, whole or in chunks. `created_s`: Unix time."""

    completion_id: str
    model: str
    created_s: int
    includes_usage: bool = False

    def completion(self, text: str, ending: Ending) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, **_finish(ending)}
        return {**self._head("chat.completion"), "choices": [choice], "usage": _usage(ending)}

    def first_chunk(self) -> dict[str, Any]:
        return self._chunk({"role": "assistant", "content": ""}, {"finish_reason": None})

    def piece_chunk(self, piece: str) -> dict[str, Any]:
        return self._chunk({"content": piece}, {"finish_reason": None})

    def last_chunks(self, ending: Ending) -> list[dict[str, Any]]:
        chunks = [self._chunk({}, _finish(ending))]
        if self.includes_usage:
            chunks.append({**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(ending)})
        return chunks

    def _chunk(self, delta: dict[str, str], finish: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, **finish}
        usage = {"usage": None} if self.includes_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.completion_id, "object": kind, "created": self.created_s, "model": self.model}


def _finish(ending: Ending) -> dict[str, Any]:
    """OpenAI knows `stop` and `length` of what can happen here; ours says in `finish_detail` what was short."""
    finish = ending.finish
    reason = "stop" if finish.reason is FinishReason.STOP else "length"
    return {"finish_reason": reason, **({"finish_detail": finish.detail} if finish.detail else {})}


def _usage(ending: Ending) -> dict[str, Any]:
    counts = ending.counts
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.generated,
        "total_tokens": counts.prompt + counts.generated,
        "prompt_tokens_details": {"cached_tokens": counts.reused},
    }


def _check_supported(name: str, value: object) -> None:
    if name in SUPPORTED or name in IGNORED:
        return
    if name not in UNSUPPORTED:
        _refuse(f"{name} is not a parameter that this server knows: leave it out", name)
    if value not in UNSUPPORTED[name]:
        _refuse(f"{name} is not supported: leave it out, or give {UNSUPPORTED[name][0]!r}", name)


def _messages(given: list[object]) -> tuple[Message, ...]:
    if not given:
        _refuse("messages is empty: give at least one", "messages")
    messages = tuple(_message(one, f"messages[{at}]") for at, one in enumerate(given))
    if messages[-1].role != USER:
        _refuse("the last message is the one to answer: its role must be user", "messages")
    return messages


def _message(given: object, where: str) -> Message:
    if not isinstance(given, dict):
        _refuse(f"{where} must be an object with role and content", where)
    role = given.get("role")
    if not isinstance(role, str) or role not in ROLES:
        _refuse(f"{where}.role is {role!r}: it may be {', '.join(ROLES)}", f"{where}.role")
    content = given.get("content")
    if isinstance(content, list):
        content = "".join(_text_part(part, f"{where}.content") for part in content)
    if not isinstance(content, str):
        _refuse(f"{where}.content must be a string, or a list of text parts", f"{where}.content")
    return Message(ROLES[role], content)


def _text_part(part: object, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        _refuse(f"{where} may have parts of type text only", where)
    text: str = part["text"]
    return text


def _sampling(given: Mapping[str, Any]) -> Sampling:
    stop = given.get("stop", [])
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > MOST_STOPS:
        _refuse(f"stop must be a string, or a list of at most {MOST_STOPS}", "stop")
    max_tokens = _of(int, given, "max_tokens", "a whole number", None)
    try:
        return Sampling(
            temperature=_of((int, float), given, "temperature", "a number", 1.0),
            top_p=_of((int, float), given, "top_p", "a number", 1.0),
            seed=_of(int, given, "seed", "a whole number", None),
            max_tokens=_of(int, given, "max_completion_tokens", "a whole number", max_tokens),
            stop=tuple(stop),
        )
    except InvalidSampling as error:
        _refuse(str(error), error.field)


_REQUIRED: Any = object()


def _of(kind: Any, given: Mapping[str, Any], name: str, wanted: str, default: Any = _REQUIRED) -> Any:
    """The value of a field, of this type. A bool is no number."""
    value = given.get(name, default)
    if value is _REQUIRED:
        _refuse(f"{name} is missing: give {wanted}", name)
    if name in given and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
        _refuse(f"{name} must be {wanted}", name)
    return value


def _refuse(message: str, param: str | None = None) -> NoReturn:
    raise WireError(400, message, param=param)
