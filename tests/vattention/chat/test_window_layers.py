"""Models whose layers look back through a window: some of them, beside pages, or all, which are not for pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vattention.chat.conftest import MakeEngine
from tests.vattention.chat.tiny_chat import CONTEXT_LENGTH, WINDOW, assert_answered_as_alone, save_model
from vatt.errors import InvalidRequest
from vattention.chat import Message, Sampling

SHORT = Sampling(max_tokens=20)
LAYER_BYTES = 2 * 2 * 16 * 4  # K and V of a token in one layer: KV heads, head size, float32


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("gemma3"), "gemma3")


def test_conversations_that_go_on_or_begin_anew_are_answered_as_alone(make_engine: MakeEngine, gemma3: Path) -> None:
    engine = make_engine(gemma3, max_conversations=2)
    conversations = [engine.new_conversation() for _ in range(2)]
    for turn in range(2):
        answers = [one.say("x" * 3 * WINDOW * number, SHORT) for number, one in enumerate(conversations, 1)]
        for answer in answers:
            assert_answered_as_alone(gemma3, answer)
            assert (answer.counts.reused > 0) == (turn > 0)
    assert_answered_as_alone(gemma3, engine.new_conversation().say("Hello", SHORT))  # in the slot of the first
    anew = conversations[0].say("Go on", SHORT)
    assert_answered_as_alone(gemma3, anew)
    assert anew.counts.reused == 0
    for _time in range(2):  # a window cannot be brought back to where the prompt ended
        again = engine.answer([Message("user", "Why?")], SHORT)
        assert_answered_as_alone(gemma3, again)
        assert again.counts.reused == 0


def test_stats_count_windows_as_held_and_in_the_baseline(make_engine: MakeEngine, gemma3: Path) -> None:
    for enabled in (True, False):
        engine = make_engine(gemma3, max_conversations=2, vattention_enabled=enabled)
        engine.new_conversation().say("x" * 3 * WINDOW, SHORT).wait()
        stats = engine.stats()
        rows = CONTEXT_LENGTH + 2 * WINDOW  # of one layer without a window, and of two with one
        assert stats.baseline_memory_mb == 2 * rows * LAYER_BYTES / 2**20
        held = stats.cached_tokens + 2 * (WINDOW - 1)
        assert stats.utilization == pytest.approx(held * LAYER_BYTES / 2**20 / stats.optimized_memory_mb)


def test_a_model_without_a_layer_for_pages_is_refused_with_what_to_use(make_engine: MakeEngine, tmp_path: Path) -> None:
    folder = save_model(tmp_path, "mistral")
    with pytest.raises(InvalidRequest, match=r"looks back 16 tokens at most in every layer.*--no-vattention"):
        make_engine(folder)
