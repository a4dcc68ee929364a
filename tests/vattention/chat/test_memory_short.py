"""Too few pages: answers wait, or end with the reason; none is wrong, and the engine goes on."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest

from tests.daemon import Vattd
from tests.operator import operator
from tests.vattention.chat.conftest import SMALL_PAGE_BYTES, SMALL_POOL_BYTES, MakeEngine
from tests.vattention.chat.tiny_chat import likeliest
from vatt.errors import InvalidRequest
from vattention.chat import Answer, FinishReason, Message, Sampling
from vattention.page_source import LeasePurpose
from vattention.session import Session

LONG = Sampling(max_tokens=300)


def assert_right_as_far_as_it_goes(folder: Path, answer: Answer) -> None:
    assert answer.ending is not None
    written, prompt_length = answer.ending.written, answer.counts.prompt
    assert written is not None
    prompt, answered = list(written.token_ids[:prompt_length]), list(written.token_ids[prompt_length:])
    assert answered == (likeliest(folder, prompt, answered) if answered else [])


def test_answers_that_do_not_fit_together_are_written_one_after_the_other(
    small_vattd: Vattd, make_engine: MakeEngine, llama: Path
) -> None:
    engine = make_engine(llama, socket_dir=small_vattd.socket_dir)
    answers = [engine.new_conversation().say(f"{number} " + "x" * 60, LONG) for number in range(4)]
    for answer in answers:
        answer.wait()
        assert answer.finish is not None
        assert answer.finish.reason in (FinishReason.LENGTH, FinishReason.STOP)
        assert_right_as_far_as_it_goes(llama, answer)
    assert engine.stats().given_up_total > 0
    assert sum(answer.counts.prompt + answer.counts.generated for answer in answers) > 1024


def test_an_answer_that_cannot_grow_even_alone_ends_and_the_engine_goes_on(
    small_vattd: Vattd, make_engine: MakeEngine, llama: Path
) -> None:
    reserve(small_vattd, max_bytes=32 * SMALL_PAGE_BYTES)  # 256 tokens
    engine = make_engine(llama, socket_dir=small_vattd.socket_dir)
    conversation = engine.new_conversation()
    answer = conversation.say("Hello", LONG)
    assert len(answer.wait()) > 0
    assert answer.finish is not None
    assert answer.finish.reason is FinishReason.MEMORY
    assert "no memory for another token" in answer.finish.detail
    assert_right_as_far_as_it_goes(llama, answer)
    too_long = engine.new_conversation().say("x" * 300, LONG)
    assert too_long.wait() == ""
    assert too_long.finish is not None
    assert too_long.finish.reason is FinishReason.MEMORY
    other = engine.new_conversation().say("Hello", Sampling(max_tokens=20))
    other.wait()
    assert_right_as_far_as_it_goes(llama, other)
    reserve(small_vattd, max_bytes=SMALL_POOL_BYTES)
    again = conversation.say("Go on", Sampling(max_tokens=20))
    again.wait()
    assert again.finish is not None
    assert again.finish.reason in (FinishReason.LENGTH, FinishReason.STOP)
    assert_right_as_far_as_it_goes(llama, again)


def test_a_limit_lowered_under_load_shortens_answers_and_spoils_none(
    small_vattd: Vattd, make_engine: MakeEngine, llama: Path
) -> None:
    engine = make_engine(llama, socket_dir=small_vattd.socket_dir)
    idle = engine.new_conversation()
    idle.say("x" * 150, Sampling(max_tokens=20)).wait()
    answers = [engine.new_conversation().say(f"{number} " + "y" * 40, LONG) for number in range(3)]
    for answer in answers:
        answer.next_piece()
    limit_bytes = 24 * SMALL_PAGE_BYTES  # 192 tokens
    reserve(small_vattd, max_bytes=limit_bytes)
    for answer in answers:
        answer.wait()
        assert answer.finish is not None
        assert answer.finish.reason in (FinishReason.MEMORY, FinishReason.LENGTH, FinishReason.STOP)
        assert_right_as_far_as_it_goes(llama, answer)
    assert idle.cached_tokens == 0
    assert FinishReason.MEMORY in {answer.finish.reason for answer in answers if answer.finish}
    with operator(small_vattd.sockets) as admin:
        admin.until(lambda status: status.sessions[0].leased_bytes <= limit_bytes)
    reserve(small_vattd, max_bytes=SMALL_POOL_BYTES)
    again = idle.say("And now?", Sampling(max_tokens=20))
    again.wait()
    assert_right_as_far_as_it_goes(llama, again)


def test_what_another_tenant_was_promised_comes_from_idle_conversations(
    small_vattd: Vattd, make_engine: MakeEngine, llama: Path
) -> None:
    promised_pages = 100
    reserve(small_vattd, "other", min_bytes=promised_pages * SMALL_PAGE_BYTES)
    engine = make_engine(llama, socket_dir=small_vattd.socket_dir)
    conversations = [engine.new_conversation() for _ in range(2)]
    for conversation in conversations:
        conversation.say("x" * 250, Sampling(max_tokens=10)).wait()
    assert all(conversation.cached_tokens > 250 for conversation in conversations)
    with Session.connect("other", socket_dir=small_vattd.socket_dir) as other:
        other.lease(promised_pages, purpose=LeasePurpose.ADMIT, wait_s=20)
        assert other.leased_pages == promised_pages
        assert conversations[0].cached_tokens == 0
        assert engine.stats().given_up_total > 0
    for conversation in conversations:
        again = conversation.say("And now?", Sampling(max_tokens=10))
        again.wait()
        assert_right_as_far_as_it_goes(llama, again)
        assert again.counts.generated > 0


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_happens_while_memory_is_short_no_answer_is_wrong(
    small_vattd: Vattd, make_engine: MakeEngine, llama: Path, seed: int
) -> None:
    """Conversations that begin, go on, are cancelled and closed at random, under a limit that moves."""
    chance = random.Random(seed)
    engine = make_engine(llama, socket_dir=small_vattd.socket_dir, max_conversations=4, max_waiting=100)
    conversations = [engine.new_conversation() for _ in range(6)]
    answers: list[Answer] = []

    def say() -> None:
        with suppress(InvalidRequest):  # it is being answered, or its context is full
            text = "q" * chance.randrange(1, 120)
            answers.append(chance.choice(conversations).say(text, Sampling(max_tokens=chance.choice([1, 20, 100]))))

    def ask() -> None:
        question = [Message("user", "z" * chance.choice([3, 90, 92]))]
        answers.append(engine.answer(question, Sampling(max_tokens=chance.choice([1, 50]))))

    def cancel() -> None:
        chance.choice(answers or [engine.answer([Message("user", "z")])]).cancel()

    def replace() -> None:
        conversations.pop(chance.randrange(len(conversations))).close()
        conversations.append(engine.new_conversation())

    def limit() -> None:
        reserve(small_vattd, max_bytes=chance.choice([16, 40, 80, 128]) * SMALL_PAGE_BYTES)

    def wait() -> None:
        chance.choice(answers or [engine.answer([Message("user", "z")])]).wait()

    for act in chance.choices([say, ask, cancel, replace, limit, wait], weights=[8, 4, 2, 1, 1, 4], k=40):
        act()
    for answer in answers:
        answer.wait()
        assert_right_as_far_as_it_goes(llama, answer)
    for conversation in conversations:
        conversation.close()
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.given_up_total > 0


def reserve(vattd: Vattd, tenant: str = "chat", **sizes: int) -> None:
    """As `vattctl reserve` does."""
    with operator(vattd.sockets) as admin:
        admin.reserve(tenant, **sizes)
