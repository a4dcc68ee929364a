"""VattCache against DynamicCache: the same tokens and logits, to the last bit, and the pages back at the end."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from tests.vattention.integrations.tiny_models import CONTEXT_LENGTH, left_padded_batch, tiny_model
from vatt.errors import Closed, DriverError, InvalidRequest, PoolExhausted, VattError
from vattention.integrations.transformers import VattCache
from vattention.kvcache import KVCache
from vattention.layout import Layout
from vattention.session import Session


def test_reset_gives_the_pages_back_and_makes_room_for_another_batch(make_cache: MakeCache) -> None:
    model = tiny_model("llama")
    cache = make_cache(model)
    for lengths in ([300, 20, 7], [4], [50, 60, 70, 80]):
        inputs = left_padded_batch(lengths)
        run = generate(model, inputs, cache)
        assert cache.batch_size == len(lengths)
        assert cache.kv_cache.stats().mapped_bytes > 0
        assert_same_run(run, generate(model, inputs, DynamicCache(config=model.config)))
        cache.reset()
        assert cache.batch_size == -1
        assert cache.get_seq_length() == 0
        stats = cache.kv_cache.stats()
        assert stats.mapped_bytes == stats.kept_bytes  # for the next batch


def test_pages_are_asked_for_once_a_forward_pass_and_before_it_writes(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    cache = make_cache(model)
    asked: list[dict[int, int]] = []
    grow_many = cache.kv_cache.grow_many

    def counted(wanted: dict[int, int]) -> None:
        asked.append(dict(wanted))
        grow_many(wanted)

    monkeypatch.setattr(cache.kv_cache, "grow_many", counted)
    generate(model, left_padded_batch([40, 8]), cache, max_new_tokens=5)
    assert [sorted(set(wanted.values())) for wanted in asked] == [[40], [41], [42], [43], [44]]


def test_a_refused_growth_leaves_the_cache_as_it_was(make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    cache = make_cache(model)

    def refuse(wanted: dict[int, int]) -> None:
        raise PoolExhausted(len(wanted), 0)

    with monkeypatch.context() as patch:
        patch.setattr(cache.kv_cache, "grow_many", refuse)
        with pytest.raises(PoolExhausted):
            fill_both(model, cache, batch_size=3, token_count=10)
    assert cache.batch_size == -1
    theirs = fill_both(model, cache, batch_size=4, token_count=10)  # all four slots are free again
    with monkeypatch.context() as patch:
        patch.setattr(cache.kv_cache, "grow_many", refuse)
        with pytest.raises(PoolExhausted):
            cache.update(*random_states(model, 4, 400), 0)
    assert_same_content(cache, theirs)


class FailsOnce:
    """A fence that the device does not answer the first time."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == 1:
            raise RuntimeError("the device does not answer")


@pytest.mark.parametrize("forget", [VattCache.reset, lambda cache: cache.crop(-400)], ids=["reset", "crop"])
def test_what_the_device_still_uses_is_not_forgotten(
    make_cache: MakeCache, forget: Callable[[VattCache], None]
) -> None:
    model = tiny_model("llama")
    cache = make_cache(model)
    theirs = fill_both(model, cache, batch_size=3, token_count=400)
    mapped_bytes = cache.kv_cache.stats().mapped_bytes
    fence = cache.kv_cache.fence = FailsOnce()
    with pytest.raises(RuntimeError, match="does not answer"):
        forget(cache)
    assert (cache.batch_size, cache.kv_cache.stats().mapped_bytes) == (3, mapped_bytes)
    assert_same_content(cache, theirs)
    forget(cache)
    assert fence.calls == 2
    stats = cache.kv_cache.stats()
    assert stats.mapped_bytes - stats.kept_bytes < mapped_bytes
    assert cache.get_seq_length() == 0


def test_a_row_that_could_not_be_freed_is_freed_by_the_next_reset(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    cache = make_cache(model)
    theirs = fill_both(model, cache, batch_size=3, token_count=20)
    free_slot = cache.kv_cache.free_slot

    def refuse_the_middle_row(number: int, *, fence: Callable[[], None]) -> None:
        if number == 1:
            raise DriverError("no", call="unmap")
        free_slot(number, fence=fence)

    with monkeypatch.context() as patch:
        patch.setattr(cache.kv_cache, "free_slot", refuse_the_middle_row)
        with pytest.raises(DriverError):
            cache.reset()
    theirs.batch_select_indices(torch.tensor([0, 1]))
    assert_same_content(cache, theirs)
    cache.reset()
    stats = cache.kv_cache.stats()
    assert stats.mapped_bytes == stats.kept_bytes
    fill_both(model, cache, batch_size=4, token_count=10)


def test_a_model_elsewhere_than_the_pages_is_refused_and_leaves_no_cache_open(session: Session) -> None:
    model: Any = tiny_model("llama")
    model.to("meta")
    with pytest.raises(InvalidRequest, match=r"on meta and vattd's pages are on cpu: model\.to\('cpu'\)") as refused:
        VattCache.for_model(model, session, max_batch_size=2)
    (kv_cache,) = session._dependents  # kept by the traceback
    assert isinstance(kv_cache, KVCache)
    with pytest.raises(Closed):
        kv_cache.stats()
    del refused


@pytest.mark.parametrize("batch_size", [1, 4])
def test_crop_forgets_the_last_tokens(make_cache: MakeCache, batch_size: int) -> None:
    model = tiny_model("llama")
    cache = make_cache(model)
    theirs = fill_both(model, cache, batch_size, token_count=200)
    full_bytes = cache.kv_cache.stats().mapped_bytes
    for tokens in (-1, 0, -170):
        cache.crop(tokens)
        theirs.crop(tokens)
        assert_same_content(cache, theirs)
    assert cache.kv_cache.stats().mapped_bytes <= full_bytes
    append_to_both(model, cache, theirs, batch_size, 100)  # the room that was given up can be had again
    assert_same_content(cache, theirs)


def test_rows_are_reordered_repeated_and_selected_in_place(make_cache: MakeCache) -> None:
    model = tiny_model("llama")
    cache = make_cache(model)
    theirs = fill_both(model, cache, batch_size=3, token_count=90)
    addresses = [tensor.data_ptr() for tensor in content(cache)]
    steps: list[tuple[str, Any]] = [
        ("reorder_cache", torch.tensor([2, 2, 0])),
        ("batch_select_indices", torch.tensor([2, 0])),
        ("batch_repeat_interleave", 2),
        ("batch_select_indices", torch.tensor([True, False, True, True])),
        ("reorder_cache", torch.tensor([1, 0, 2])),
    ]
    for method, argument in steps:
        getattr(cache, method)(argument)
        getattr(theirs, method)(argument)
        assert_same_content(cache, theirs)
        assert cache.batch_size == content(theirs)[0].shape[0]
        assert [tensor.data_ptr() for tensor in content(cache)] == addresses
    append_to_both(model, cache, theirs, batch_size=3, token_count=60)
    assert_same_content(cache, theirs)


def test_what_would_leave_the_pages_is_refused(make_cache: MakeCache) -> None:
    model = tiny_model("llama")
    cache = make_cache(model)
    fill_both(model, cache, batch_size=2, token_count=3)
    layer: Any = cache.layers[0]
    attempts: list[Callable[[], object]] = [
        layer.offload,
        layer.prefetch,
        layer.reset,
        lambda: layer.crop(-1),
        lambda: layer.reorder_cache(torch.tensor([1, 0])),
        lambda: layer.batch_repeat_interleave(2),
        lambda: layer.batch_select_indices(torch.tensor([0])),
        lambda: cache.offload(0),
        lambda: cache.prefetch(0),
        lambda: cache.crop(2),
        lambda: cache.batch_repeat_interleave(3),  # six rows, and there are four slots
        lambda: cache.batch_select_indices(torch.tensor([], dtype=torch.long)),
        lambda: cache.update(*random_states(model, 3, 1), 0),  # a batch of another size
        lambda: cache.update(*random_states(model, 2, CONTEXT_LENGTH), 0),
    ]
    for attempt in attempts:
        with pytest.raises(VattError):
            attempt()
    assert cache.batch_size == 2
    assert cache.get_seq_length() == 3


@pytest.mark.parametrize("copying", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_copy_that_would_look_at_the_same_pages_is_refused(
    make_cache: MakeCache, copying: Callable[[VattCache], object]
) -> None:
    cache = make_cache(tiny_model("llama"))
    with pytest.raises(InvalidRequest, match="VattCache has no copy"):
        copying(cache)


def test_states_of_another_shape_or_dtype_are_refused_not_cast(make_cache: MakeCache) -> None:
    model = tiny_model("llama")
    cache = make_cache(model)
    keys, values = random_states(model, 2, 4)
    for wrong in (keys.double(), keys[:, :1], keys[..., :8]):
        with pytest.raises(InvalidRequest, match=r"VattCache\.for_model"):
            cache.update(wrong, values, 0)
    with pytest.raises(InvalidRequest, match="max_batch_size is 4"):
        cache.update(*random_states(model, 5, 1), 0)
    assert cache.batch_size == -1


def test_a_closed_cache_says_so_and_holds_nothing(make_cache: MakeCache) -> None:
    model = tiny_model("llama")
    with make_cache(model) as cache:
        fill_both(model, cache, batch_size=2, token_count=100)
    cache.close()
    with pytest.raises(Closed):
        cache.update(*random_states(model, 2, 1), 0)
    with make_cache(model) as another:
        assert_same_content(another, fill_both(model, another, batch_size=2, token_count=5))


def test_nothing_is_written_after_the_session_has_closed_the_pages(vattd_socket_dir: Path, layout: Layout) -> None:
    model = tiny_model("llama")
    session = Session.connect("integrations", socket_dir=vattd_socket_dir)
    cache = VattCache.for_model(model, session, max_batch_size=2, layout=layout)
    fill_both(model, cache, batch_size=2, token_count=5)
    session.close()
    attempts: list[Callable[[], object]] = [
        lambda: cache.update(*random_states(model, 2, 1), 0),
        lambda: cache.reorder_cache(torch.tensor([1, 0])),
        lambda: cache.crop(-1),
        cache.reset,
    ]
    for attempt in attempts:
        with pytest.raises(Closed):
            attempt()
    cache.close()


def test_a_close_that_failed_is_done_again(make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    cache = make_cache(model)
    fill_both(model, cache, batch_size=2, token_count=5)

    def refuse() -> None:
        raise DriverError("no", call="unmap")

    with monkeypatch.context() as patch:
        patch.setattr(cache.kv_cache, "close", refuse)
        with pytest.raises(DriverError):
            cache.close()
    cache.close()
    with pytest.raises(Closed):
        cache.kv_cache.stats()
