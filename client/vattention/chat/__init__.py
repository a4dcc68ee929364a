"""Conversations with a language model whose KV cache lies in pages that vattd lends.

    from vattention.chat import ChatEngine

    with ChatEngine("path/to/model") as engine:
        conversation = engine.new_conversation()
        for piece in conversation.say("Why is the sky blue?"):
            print(piece, end="", flush=True)

A terminal (`vattention chat`) and a server that speaks OpenAI's protocol (`vattention serve`) stand on the same engine.
An optional part of the package: pip install '.[chat]' in its source folder. Names are loaded when first used, since
torch takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vattention.chat.answer import Answer, Finish, FinishReason, TokenCounts
    from vattention.chat.conversation import Conversation
    from vattention.chat.engine import ChatEngine, ContextFull
    from vattention.chat.prompt import Message
    from vattention.chat.sampling import Sampling
    from vattention.chat.stats import ChatStats

_MODULE_OF = {
    "Answer": "vattention.chat.answer",
    "ChatEngine": "vattention.chat.engine",
    "ChatStats": "vattention.chat.stats",
    "ContextFull": "vattention.chat.engine",
    "Conversation": "vattention.chat.conversation",
    "Finish": "vattention.chat.answer",
    "FinishReason": "vattention.chat.answer",
    "Message": "vattention.chat.prompt",
    "Sampling": "vattention.chat.sampling",
    "TokenCounts": "vattention.chat.answer",
}

__all__ = [
    "Answer",
    "ChatEngine",
    "ChatStats",
    "ContextFull",
    "Conversation",
    "Finish",
    "FinishReason",
    "Message",
    "Sampling",
    "TokenCounts",
]


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
