"""Layers with a sliding window beside paged ones: DynamicCache's states after everything that may happen to a batch."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import DynamicCache

from tests.vattention.integrations.comparison import (
    append_to_both,
    assert_same_content,
    assert_same_run,
    content,
    fill_both,
    generate,
    random_states,
)
from tests.vattention.integrations.conftest import MakeCache
from tests.vattention.integrations.tiny_models import WINDOW, left_padded_batch, tiny_model
from vatt.errors import Closed, InvalidRequest, PoolExhausted
from vattention.integrations.transformers import VattCache
from vattention.kvcache import KVCache
from vattention.layout import KVCacheSpec, Layout
from vattention.session import Session

FAMILIES = pytest.mark.parametrize("family", ["gemma3", "qwen2_sliding"])  # the first layer slides, or the last ones do
LAYOUTS = pytest.mark.parametrize("layout", [Layout.PER_LAYER, Layout.FUSED], ids=lambda layout: layout.value)
ROWS = 4


def random_batch(draw: random.Random, rows: int) -> torch.Tensor:
    """Which row each row of the next batch was."""
    return torch.tensor([draw.randrange(rows) for _ in range(draw.randint(1, ROWS))])


def records_past(cache: VattCache) -> bool:
    return cache.is_recording_past(cache.is_sliding.index(True))


@FAMILIES
@LAYOUTS
@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_changes_leaves_the_states_of_dynamic_cache(make_cache: MakeCache, family: str, seed: int) -> None:
    model = tiny_model(family)
    draw = random.Random(seed)
    torch.manual_seed(seed)
    mine, theirs = make_cache(model), DynamicCache(config=model.config)
    rows, can_take_back = 0, 0
    for _step in range(40):
        choices = ["append", "append", "reorder", "select", "crop", "record"] if rows else ["append"]
        match draw.choice([*choices, "reset"] if draw.random() < 0.2 else choices):
            case "append":
                rows = rows or draw.randint(1, ROWS)
                count = draw.choice([1, 1, 1, 7, WINDOW, 2 * WINDOW + 1])
                if mine.get_seq_length() + count > 400:
                    continue
                append_to_both(model, mine, theirs, rows, count)
                can_take_back += count
            case "reorder":
                order = torch.tensor([draw.randrange(rows) for _ in range(rows)])
                mine.reorder_cache(order)
                theirs.reorder_cache(order)  # type: ignore[arg-type]
            case "select":
                indices = random_batch(draw, rows)
                mine.batch_select_indices(indices)
                theirs.batch_select_indices(indices)
                rows = len(indices)
                if 2 * rows <= ROWS:
                    mine.batch_repeat_interleave(2)
                    theirs.batch_repeat_interleave(2)
                    rows *= 2
            case "crop":
                if records_past(mine):
                    tokens = draw.randint(0, min(can_take_back, mine.get_seq_length() - 1))
                    mine.crop(-tokens)
                    theirs.crop(-tokens)
                    can_take_back = 0
            case "record":
                if not records_past(mine):
                    mine.activate_past_recording()  # type: ignore[no-untyped-call]
                    theirs.activate_past_recording()  # type: ignore[no-untyped-call]
                    can_take_back = 0
            case "reset":
                mine.reset()
                theirs.reset()  # type: ignore[no-untyped-call]
                rows = can_take_back = 0
                assert all(tensor is None for tensor in content(mine))
        if rows:
            assert_same_content(mine, theirs)
            assert mine.batch_size == rows


@FAMILIES
@LAYOUTS
def test_what_has_left_a_window_cannot_be_cropped_into_and_nothing_changes(make_cache: MakeCache, family: str) -> None:
    model = tiny_model(family)
    cache = make_cache(model)
    theirs = fill_both(model, cache, batch_size=2, token_count=3 * WINDOW)
    with pytest.raises(InvalidRequest, match=r"activate_past_recording\(\)"):
        cache.crop(-1)
    assert_same_content(cache, theirs)
    cache.activate_past_recording()  # type: ignore[no-untyped-call]
    theirs.activate_past_recording()  # type: ignore[no-untyped-call]
    append_to_both(model, cache, theirs, batch_size=2, token_count=4)
    with pytest.raises(InvalidRequest, match="cannot be brought back to token 47"):
        cache.crop(-5)
    cache.crop(-3)
    theirs.crop(-3)
    assert_same_content(cache, theirs)
    cache.crop(-1000)  # everything may go
    assert cache.get_seq_length() == 0


@FAMILIES
@LAYOUTS
def test_a_refused_growth_is_refused_before_any_layer_is_written(
    make_cache: MakeCache, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    cache = make_cache(model)
    theirs = fill_both(model, cache, batch_size=3, token_count=10)

    def refuse(wanted: dict[int, int]) -> None:
        raise PoolExhausted(len(wanted), 0)

    with monkeypatch.context() as patch:
        patch.setattr(cache.kv_cache, "grow_many", refuse)
        with pytest.raises(PoolExhausted):
            cache.update(*random_states(model, 3, 400), 0)
    assert_same_content(cache, theirs)
    append_to_both(model, cache, theirs, batch_size=3, token_count=2)
    assert_same_content(cache, theirs)


@LAYOUTS
def test_a_window_takes_no_pages_and_is_forgotten_by_reset(make_cache: MakeCache) -> None:
    hybrid, paged = tiny_model("gemma3"), tiny_model("gemma3", layer_types=["full_attention"], num_hidden_layers=1)
    cache, paged_cache = make_cache(hybrid), make_cache(paged)
    for lengths in ([300, 20], [4], [50, 60, 70]):
        inputs = left_padded_batch(lengths)
        theirs = generate(hybrid, inputs, DynamicCache(config=hybrid.config))
        assert_same_run(generate(hybrid, inputs, cache), theirs)
        generate(paged, inputs, paged_cache)
        assert cache.kv_cache.usage().token_bytes == paged_cache.kv_cache.usage().token_bytes > 0
        cache.reset()
        paged_cache.reset()
        assert cache.batch_size == -1
        assert all(tensor is None for tensor in content(cache))


@LAYOUTS
def test_a_closed_cache_takes_nothing_in_its_windows(make_cache: MakeCache) -> None:
    model = tiny_model("gemma3")
    cache = make_cache(model)
    fill_both(model, cache, batch_size=2, token_count=3)
    cache.close()
    with pytest.raises(Closed):
        cache.update(*random_states(model, 2, 1), 0)
    assert all(tensor is None for tensor in content(cache))


def test_windows_that_do_not_fit_the_pages_are_refused(session: Session) -> None:
    spec = KVCacheSpec(2, 2, 16, torch.float32, max_batch_size=1, max_context_length=64)
    with KVCache(session, spec) as kv_cache, pytest.raises(InvalidRequest, match="has 2 layers, not one for each None"):
        VattCache(kv_cache, windows=[None, 16])
