"""Conversations are answered as transformers' generate() answers them alone, whoever else is answered meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from tests.daemon import Vattd
from tests.vattention.chat.conftest import MakeEngine, SlowDown
from tests.vattention.chat.tiny_chat import CONTEXT_LENGTH, assert_answered_as_alone, save_model
from vatt.errors import Closed, DaemonUnreachable, InvalidRequest, TooBusy
from vattention.chat import Answer, ChatEngine, ContextFull, FinishReason, Message, Sampling
from vattention.chat.draft import Draft
from vattention.session import SessionState

SHORT = Sampling(max_tokens=24)


@pytest.mark.parametrize("vattention_enabled", [True, False], ids=["vattention", "dynamic_cache"])
def test_a_turn_computes_only_what_is_new_and_answers_as_a_fresh_run(
    make_engine: MakeEngine, family: Path, vattention_enabled: bool
) -> None:
    engine = make_engine(family, vattention_enabled=vattention_enabled)
    conversation = engine.new_conversation("Be brief.")
    before = 0
    for turn, text in enumerate(["Hello there", "And what then?", "Bye"]):
        answer = conversation.say(text, SHORT)
        assert_answered_as_alone(family, answer)
        counts = answer.counts
        assert counts.reused + counts.prefilled == counts.prompt
        assert counts.reused == before
        assert counts.prefilled < 60
        before = counts.prompt + counts.generated - 1  # the last token was chosen, and not computed with
        assert conversation.cached_tokens == before
        assert len(conversation.messages) == 1 + 2 * (turn + 1)


def test_conversations_that_are_answered_at_the_same_time_are_answered_as_alone(
    make_engine: MakeEngine, family: Path
) -> None:
    engine = make_engine(family)
    conversations = [engine.new_conversation() for _ in range(4)]
    for turn in range(2):
        texts = [f"turn {turn} of {number}: " + "x" * 70 * number for number in range(4)]
        answers = [one.say(text, SHORT) for one, text in zip(conversations, texts, strict=True)]
        for answer in reversed(answers):
            assert_answered_as_alone(family, answer)
    assert engine.stats().given_up_total == 0


def test_nobody_waits_for_another_whole_answer(
    make_engine: MakeEngine, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(llama)
    steps: list[Answer] = []
    step = Draft.step

    def noted_step(draft: Draft) -> object:
        steps.append(draft.answer)
        return step(draft)

    monkeypatch.setattr(Draft, "step", noted_step)
    long = engine.new_conversation().say("a" * 300, Sampling(max_tokens=40))
    short = engine.new_conversation().say("b", Sampling(max_tokens=5))
    for answer in (long, short):
        answer.wait()
    turns = [answer is short for answer in steps]
    first = turns.index(True)
    assert turns[first : first + 9] == [True, False] * 4 + [True]  # a step each, in turn


def test_conversations_without_a_slot_begin_anew_and_are_answered_the_same(
    make_engine: MakeEngine, llama: Path
) -> None:
    engine = make_engine(llama, max_conversations=2)
    conversations = [engine.new_conversation() for _ in range(3)]
    for _turn in range(2):
        for conversation in conversations:
            answer = conversation.say("Hello", SHORT)
            assert_answered_as_alone(llama, answer)
            assert answer.counts.reused == 0
    assert [one.cached_tokens > 0 for one in conversations] == [False, True, True]  # least recently used first
    stats = engine.stats()
    assert (stats.slots_held, stats.given_up_total) == (2, 4)


def test_a_cancelled_answer_stays_as_far_as_it_is_and_the_conversation_goes_on(
    make_engine: MakeEngine, llama: Path, slow_down: SlowDown
) -> None:
    engine = make_engine(llama)
    full_speed = slow_down(engine)
    conversation, other = engine.new_conversation(), engine.new_conversation()
    meanwhile = other.say("Hello", SHORT)
    answer = conversation.say("Hello", Sampling(max_tokens=400))
    answer.next_piece()
    with pytest.raises(InvalidRequest, match="an answer is being written"):
        conversation.say("too early")
    answer.cancel()
    text = answer.wait()
    full_speed.set()
    assert answer.finish is not None
    assert answer.finish.reason is FinishReason.CANCELLED
    assert conversation.messages[-1] == Message("assistant", text)
    assert_answered_as_alone(llama, meanwhile)
    cached = conversation.cached_tokens
    assert cached > 0
    after = conversation.say("Go on", SHORT)
    assert_answered_as_alone(llama, after)
    assert after.counts.reused == cached


def test_a_seed_gives_the_same_answer_again_and_another_seed_another(make_engine: MakeEngine, llama: Path) -> None:
    engine = make_engine(llama)
    texts = [
        engine.new_conversation().say("Hi", Sampling(temperature=0.9, top_p=0.9, seed=seed, max_tokens=30)).wait()
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_an_answer_ends_before_a_stop_string_and_the_next_turn_goes_on_from_there(
    make_engine: MakeEngine, llama: Path
) -> None:
    engine = make_engine(llama)
    whole = engine.new_conversation().say("Hello", SHORT).wait()
    stop = whole[10:12]
    conversation = engine.new_conversation()
    answer = conversation.say("Hello", Sampling(max_tokens=24, stop=(stop,)))
    assert answer.wait() == whole[: whole.index(stop)]
    assert answer.finish is not None
    assert answer.finish.reason is FinishReason.STOP
    assert_answered_as_alone(llama, conversation.say("Go on", SHORT))


def test_a_full_context_ends_the_answer_and_the_next_turn_is_refused(make_engine: MakeEngine, llama: Path) -> None:
    conversation = make_engine(llama, max_context_length=100).new_conversation()
    answer = conversation.say("Hello")
    answer.wait()
    assert answer.finish is not None
    assert answer.finish.reason is FinishReason.LENGTH
    assert "context is full: 100 tokens" in answer.finish.detail
    with pytest.raises(ContextFull, match="the context holds 100"):
        conversation.say("More")
    assert len(conversation.messages) == 2


def test_a_prompt_goes_on_from_what_an_idle_answer_holds_of_it(make_engine: MakeEngine, llama: Path) -> None:
    engine = make_engine(llama)
    question = [Message("system", "You know a lot of things. " * 4), Message("user", "What is it?")]
    first = engine.answer(question, SHORT)
    assert_answered_as_alone(llama, first)
    again = engine.answer(question, SHORT)
    assert_answered_as_alone(llama, again)
    assert again.counts.prefilled == 1  # the last token: its logits are wanted
    other = engine.answer([Message("user", "Something else")], SHORT)
    assert_answered_as_alone(llama, other)
    assert other.counts.reused < 10  # what the template begins with: not worth the other's prefix
    assert engine.stats().slots_held == 2


def test_a_window_that_has_passed_on_is_computed_anew(make_engine: MakeEngine, tmp_path: Path) -> None:
    folder = save_model(tmp_path, "mistral")
    engine = make_engine(folder, vattention_enabled=False)
    conversation = engine.new_conversation()
    for turn in range(2):
        answer = conversation.say("What is it?", SHORT)
        assert_answered_as_alone(folder, answer)
        assert (answer.counts.reused > 0) == (turn > 0)  # it goes on: nothing has to be brought back
    for _time in range(2):
        again = engine.answer([Message("user", "What is it?")], SHORT)
        assert_answered_as_alone(folder, again)
        assert again.counts.reused == 0


def test_an_error_of_the_model_ends_that_answer_only(
    make_engine: MakeEngine, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(llama)
    conversation, other = engine.new_conversation(), engine.new_conversation()
    meanwhile = other.say("Hello", SHORT)
    logits_after = engine._model.logits_after

    def fail_on_long_prompts(token_ids: list[int], cache: object) -> torch.Tensor:
        logits = logits_after(token_ids, cache)  # type: ignore[arg-type]
        if len(token_ids) > 100:
            raise RuntimeError("the kernel failed")
        return logits

    monkeypatch.setattr(engine._model, "logits_after", fail_on_long_prompts)
    answer = conversation.say("x" * 100, SHORT)
    with pytest.raises(RuntimeError, match="the kernel failed"):
        answer.wait()
    assert conversation.messages == ()
    assert_answered_as_alone(llama, meanwhile)
    assert_answered_as_alone(llama, conversation.say("y" * 20, SHORT))


def test_an_answer_ends_although_its_tokens_cannot_be_read(
    make_engine: MakeEngine, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(llama)
    with monkeypatch.context() as patch:
        patch.setattr(engine._model.tokenizer, "decode", fail)
        answer = engine.new_conversation().say("Hello", SHORT)
        with pytest.raises(RuntimeError, match="no such thing"):
            answer.wait()
    assert_answered_as_alone(llama, engine.new_conversation().say("Hello", SHORT))


def test_an_answer_that_finds_no_cache_ends_with_the_error(
    make_engine: MakeEngine, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(llama)
    with monkeypatch.context() as patch:
        patch.setattr(engine._memory, "new_cache", fail)
        answer = engine.answer([Message("user", "Hello")], SHORT)
        with pytest.raises(RuntimeError, match="no such thing"):
            answer.wait()
    assert_answered_as_alone(llama, engine.answer([Message("user", "Hello")], SHORT))


def fail(*arguments: object, **options: object) -> NoReturn:
    raise RuntimeError("no such thing")


def test_too_many_waiting_answers_are_refused(make_engine: MakeEngine, llama: Path, slow_down: SlowDown) -> None:
    engine = make_engine(llama, max_conversations=1, max_waiting=1)
    full_speed = slow_down(engine)
    answers = [engine.new_conversation().say("a", Sampling(max_tokens=400))]
    next(iter(answers[0]))  # it runs
    answers.append(engine.new_conversation().say("b", SHORT))
    refused = engine.new_conversation()
    with pytest.raises(TooBusy):
        refused.say("c", SHORT)
    for answer in answers:
        answer.cancel()
        answer.wait()
    full_speed.set()
    assert_answered_as_alone(llama, refused.say("c", SHORT))


def test_stats_name_their_baseline_and_add_up(make_engine: MakeEngine, llama: Path) -> None:
    for enabled, cache in ((True, "vattention"), (False, "DynamicCache")):
        engine = make_engine(llama, max_conversations=4, vattention_enabled=enabled)
        assert engine.stats().optimized_memory_mb == 0
        engine.new_conversation().say("Hello", SHORT).wait()
        stats = engine.stats()
        token_bytes = 2 * 2 * 2 * 16 * 4  # K and V, layers, KV heads, head size, float32
        assert stats.baseline == f"static reservation of 4 slots x {CONTEXT_LENGTH} tokens"
        assert stats.baseline_memory_mb == 4 * CONTEXT_LENGTH * token_bytes / 2**20
        assert stats.memory_saved_mb == stats.baseline_memory_mb - stats.optimized_memory_mb
        assert stats.utilization == pytest.approx(stats.cached_tokens * token_bytes / 2**20 / stats.optimized_memory_mb)
        assert 0 < stats.utilization <= 1
        assert (stats.cache, stats.slots_held, stats.answers_total) == (cache, 1, 1)


def test_closing_ends_answers_and_gives_every_page_back(
    own_vattd: Vattd, make_engine: MakeEngine, llama: Path, slow_down: SlowDown
) -> None:
    engine = make_engine(llama, socket_dir=own_vattd.socket_dir)
    slow_down(engine)
    conversation = engine.new_conversation()
    answer = conversation.say("Hello", Sampling(max_tokens=400))
    answer.next_piece()
    assert own_vattd.pages().get("leased", 0) > 0
    engine.close()
    answer.wait()
    assert answer.finish is not None
    assert answer.finish.reason is FinishReason.CANCELLED
    with pytest.raises(Closed):
        conversation.say("Hello?")
    conversation.close()
    assert own_vattd.pages().get("leased", 0) == 0
    assert not own_vattd.status().sessions


def test_a_closed_conversation_gives_its_slot_back(make_engine: MakeEngine, llama: Path) -> None:
    engine = make_engine(llama)
    conversation = engine.new_conversation()
    conversation.say("Hello", SHORT).wait()
    running = engine.new_conversation()
    answer = running.say("Hello", Sampling(max_tokens=400))
    for one in (conversation, running):
        one.close()
    answer.wait()
    assert engine.stats().slots_held == 0
    assert conversation.messages[0] == Message("user", "Hello")
    with pytest.raises(Closed, match="begin a new one"):
        conversation.say("Still there?", SHORT)


class HeldStep:
    """The next step of an engine's is under way until `end()`, and then fails."""

    def __init__(self, engine: ChatEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self._begun, self._ended = threading.Event(), threading.Event()
        monkeypatch.setattr(engine._model, "logits_after", self._compute)
        self.answer = engine.new_conversation().say("Hello", SHORT)
        self._begun.wait()

    def _compute(self, *arguments: object) -> NoReturn:
        self._begun.set()
        self._ended.wait()
        raise RuntimeError("the step was ended")

    def end(self) -> None:
        self._ended.set()


def test_no_close_returns_while_a_step_is_under_way(
    make_engine: MakeEngine, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(llama)
    step = HeldStep(engine, monkeypatch)
    with ThreadPoolExecutor() as threads:
        closing = [threads.submit(engine.close) for _ in range(2)]
        returned = wait(closing, timeout=0.2, return_when=FIRST_COMPLETED).done
        step.end()
    assert not returned
    with pytest.raises(RuntimeError, match="the step was ended"):
        step.answer.wait()


def test_an_interrupted_close_waits_for_the_step_that_is_under_way(
    make_engine: MakeEngine, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(llama)
    step = HeldStep(engine, monkeypatch)
    thread = engine._worker._thread
    join = thread.join

    def join_the_second_time() -> None:
        step.end()
        join()

    joins = iter([interrupt, join_the_second_time])
    monkeypatch.setattr(thread, "join", lambda: next(joins)())
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.close()
        assert not thread.is_alive()
    finally:
        step.end()
    assert engine.session_state is SessionState.CLOSED


def interrupt() -> NoReturn:
    raise KeyboardInterrupt


def test_what_makes_no_sense_is_refused(make_engine: MakeEngine, llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="give a folder with"):
        make_engine(tmp_path)
    with pytest.raises(InvalidRequest, match="give cpu, cuda"):
        make_engine(llama, device="meta")
    with pytest.raises(InvalidRequest, match="made for 2 to 512"):
        make_engine(llama, max_context_length=513)
    with pytest.raises(InvalidRequest, match="max_conversations"):
        make_engine(llama, max_conversations=0)
    with pytest.raises(DaemonUnreachable, match="vattd start"):
        make_engine(llama, socket_dir=tmp_path)
