"""An operator lowers a tenant's max while its model generates: a clean refusal, a whole cache, no wrong token."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel, StoppingCriteria

from tests.daemon import Vattd
from tests.operator import Operator, operator
from tests.vattention.integrations.comparison import assert_same_content, assert_same_run, generate
from tests.vattention.integrations.tiny_models import left_padded_batch, tiny_model
from vatt.errors import LimitExceeded, PoolExhausted
from vattention.integrations.transformers import VattCache
from vattention.layout import Layout
from vattention.session import Session

PAGE = 4096  # so small that a tiny model grows into new ones all the time
TENANT = "squeezed"
LAYOUTS = pytest.mark.parametrize("layout", [Layout.PER_LAYER, Layout.FUSED], ids=lambda layout: layout.value)
FAMILIES = pytest.mark.parametrize("family", ["llama", "gemma3"])


@pytest.fixture(scope="module")
def vattd() -> Iterator[Vattd]:
    with Vattd("--pool-max", "16MiB", "--page-size", str(PAGE)) as vattd:
        yield vattd


@pytest.fixture
def op(vattd: Vattd) -> Iterator[Operator]:
    with operator(vattd.sockets) as op:
        yield op
        op.reserve(TENANT, max_bytes=0)  # no max


@pytest.fixture
def session(vattd: Vattd) -> Iterator[Session]:
    with Session.connect(TENANT, socket_dir=vattd.socket_dir) as session:
        yield session


class At(StoppingCriteria):
    """Does something once, when the sequences are so many tokens long, and stops nothing."""

    def __init__(self, length: int, act: Any) -> None:
        self.length, self.act = length, act

    def __call__(self, input_ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
        if input_ids.shape[1] == self.length:
            self.act()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def continued(model: PreTrainedModel, cache: VattCache, run: Any, mask: torch.Tensor) -> Any:
    """Generate what `run` has after the tokens that the cache holds."""
    begun = run.sequences[:, : cache.get_seq_length() + 1]
    grown = torch.ones(len(begun), begun.shape[1], dtype=mask.dtype)
    grown[:, : mask.shape[1]] = mask
    new_tokens = run.sequences.shape[1] - begun.shape[1]
    return generate(model, {"input_ids": begun, "attention_mask": grown}, cache, max_new_tokens=new_tokens)


@FAMILIES
@LAYOUTS
def test_generation_under_a_lowered_max_is_refused_and_goes_on_when_the_max_is_raised(
    op: Operator, session: Session, family: str, layout: Layout
) -> None:
    model = tiny_model(family)
    inputs = left_padded_batch([100, 37])
    theirs = generate(model, inputs, DynamicCache(config=model.config), max_new_tokens=150)
    with VattCache.for_model(model, session, max_batch_size=2, layout=layout) as cache:

        def lower() -> None:
            # Less than it holds: what was leased ahead is asked back, and nothing more is lent.
            op.reserve(TENANT, max_bytes=op.tenant(TENANT).leased_bytes // 2)

        with pytest.raises((LimitExceeded, PoolExhausted)):
            generate(model, inputs, cache, max_new_tokens=150, stopping_criteria=[At(120, lower)])
        lengths = {cache.get_seq_length(layer) for layer in range(len(cache))}
        assert len(lengths) == 1
        assert 119 <= lengths.pop() < 250
        op.reserve(TENANT, max_bytes=0)
        rest = continued(model, cache, theirs, inputs["attention_mask"])
        assert torch.equal(rest.sequences, theirs.sequences)
        mine = rest.logits
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs.logits[-len(mine) :], strict=True))


@FAMILIES
@LAYOUTS
def test_after_a_refusal_reset_makes_room_within_the_lowered_max(
    op: Operator, session: Session, family: str, layout: Layout
) -> None:
    model = tiny_model(family)
    small = left_padded_batch([20])
    theirs = generate(model, small, DynamicCache(config=model.config))
    with VattCache.for_model(model, session, max_batch_size=2, layout=layout) as cache:
        generate(model, small, cache)
        enough_bytes = cache.kv_cache.stats().mapped_bytes
        cache.reset()
        op.reserve(TENANT, max_bytes=enough_bytes)
        with pytest.raises((LimitExceeded, PoolExhausted)):
            generate(model, left_padded_batch([300, 300]), cache)
        assert cache.batch_size == -1  # it did not begin
        cache.reset()
        op.until(lambda status: op.tenant(TENANT).leased_bytes <= enough_bytes)
        assert_same_run(generate(model, small, cache), theirs)


@LAYOUTS
def test_a_cropped_cache_goes_on_after_a_refusal(op: Operator, session: Session, layout: Layout) -> None:
    model = tiny_model("llama")
    inputs = left_padded_batch([100])
    their_cache = DynamicCache(config=model.config)
    theirs = generate(model, inputs, their_cache, max_new_tokens=150)
    with VattCache.for_model(model, session, max_batch_size=1, layout=layout) as cache:
        low = At(110, lambda: op.reserve(TENANT, max_bytes=PAGE))
        with pytest.raises((LimitExceeded, PoolExhausted)):
            generate(model, inputs, cache, max_new_tokens=150, stopping_criteria=[low])
        their_cache.crop(cache.get_seq_length() - their_cache.get_seq_length())
        assert_same_content(cache, their_cache)
        cache.crop(-9)
        their_cache.crop(-9)
        assert_same_content(cache, their_cache)
        op.reserve(TENANT, max_bytes=0)
        assert torch.equal(continued(model, cache, theirs, inputs["attention_mask"]).sequences, theirs.sequences)


def test_a_max_that_moves_all_the_time_gives_refusals_and_no_wrong_token(op: Operator, session: Session) -> None:
    model = tiny_model("gemma3")
    inputs = left_padded_batch([60, 30])
    theirs = generate(model, inputs, DynamicCache(config=model.config), max_new_tokens=60)
    done, draw = threading.Event(), random.Random(5)

    def move() -> None:
        while not done.is_set():
            op.reserve(TENANT, max_bytes=draw.choice([PAGE, 8 * PAGE, 16 * PAGE, 0]))

    mover = threading.Thread(target=move)
    refused = finished = 0
    with VattCache.for_model(model, session, max_batch_size=2, layout=Layout.FUSED) as cache:
        mover.start()
        try:
            while refused < 3 or finished < 3:
                try:
                    if cache.batch_size == 2 and cache.get_seq_length() >= 60:
                        run = continued(model, cache, theirs, inputs["attention_mask"])
                    else:
                        run = generate(model, inputs, cache, max_new_tokens=60)
                except (LimitExceeded, PoolExhausted):
                    refused += 1
                    continue
                finished += 1
                assert torch.equal(run.sequences, theirs.sequences)
                cache.reset()
        finally:
            done.set()
            mover.join()
