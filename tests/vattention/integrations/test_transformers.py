"""VattCache against DynamicCache: the same tokens and logits, to the last bit, and the pages back at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import Cache, DynamicCache, MistralConfig, MistralForCausalLM, PreTrainedModel

from tests.vattention.integrations.tiny_models import CONTEXT_LENGTH, SHAPE, left_padded_batch, tiny_model
from vatt.errors import Closed, DriverError, InvalidRequest, PoolExhausted, VattError
from vattention.integrations.transformers import VattCache
from vattention.kvcache import KVCache
from vattention.layout import Layout
from vattention.session import Session

NEW_TOKENS = 24
MakeCache = Callable[..., VattCache]


@pytest.fixture(params=list(Layout), ids=lambda layout: layout.value)
def layout(request: pytest.FixtureRequest) -> Layout:
    chosen: Layout = request.param
    return chosen


@pytest.fixture
def make_cache(session: Session, layout: Layout) -> Iterator[MakeCache]:
    """Makes caches for a model, of four rows unless asked otherwise, and closes them."""
    made: list[VattCache] = []

    def make(model: PreTrainedModel, **options: Any) -> VattCache:
        made.append(VattCache.for_model(model, session, layout=layout, **{"max_batch_size": 4, **options}))
        return made[-1]

    yield make
    for cache in made:
        cache.close()


def generate(model: Any, inputs: dict[str, torch.Tensor], cache: Any, **options: Any) -> Any:
    """Greedy tokens and the logits they were chosen from."""
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, **options}
    return model.generate(**inputs, past_key_values=cache, return_dict_in_generate=True, output_logits=True, **options)


def assert_same_run(mine: Any, theirs: Any) -> None:
    assert torch.equal(mine.sequences, theirs.sequences)
    assert len(mine.logits) == len(theirs.logits)
    assert all(torch.equal(a, b) for a, b in zip(mine.logits, theirs.logits, strict=True))


def random_states(model: PreTrainedModel, batch_size: int, token_count: int) -> tuple[torch.Tensor, torch.Tensor]:
    heads = getattr(model.config, "num_key_value_heads", model.config.num_attention_heads)
    shape = (batch_size, heads, token_count, model.config.hidden_size // model.config.num_attention_heads)
    return torch.randn(shape, dtype=model.dtype), torch.randn(shape, dtype=model.dtype)


def fill_both(model: PreTrainedModel, mine: VattCache, batch_size: int, token_count: int) -> DynamicCache:
    """The same random keys and values in `mine` and in a DynamicCache."""
    theirs = DynamicCache(config=model.config)
    for layer in range(model.config.num_hidden_layers):
        keys, values = random_states(model, batch_size, token_count)
        mine.update(keys, values, layer)
        theirs.update(keys, values, layer)
    return theirs


def content(cache: Cache) -> list[torch.Tensor]:
    """Keys and values of each layer."""
    tensors: list[Any] = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]  # type: ignore[union-attr]
    return tensors


def assert_same_content(mine: Cache, theirs: Cache) -> None:
    assert mine.get_seq_length() == theirs.get_seq_length()
    assert all(torch.equal(a, b) for a, b in zip(content(mine), content(theirs), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "phi"])
@pytest.mark.parametrize("lengths", [[37, 5, 120], [40]], ids=["batch_of_3", "batch_of_1"])
def test_a_left_padded_batch_gives_the_bits_of_dynamic_cache(
    make_cache: MakeCache, lengths: list[int], family: str, attention: str, dtype: torch.dtype
) -> None:
    model = tiny_model(family, dtype=dtype, attention=attention)
    inputs = left_padded_batch(lengths)
    theirs = generate(model, inputs, DynamicCache(config=model.config))
    assert_same_run(generate(model, inputs, make_cache(model)), theirs)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"num_beams": 3}, id="beam_search"),
        pytest.param({"num_beams": 3, "num_return_sequences": 2}, id="several_beams_returned"),
        pytest.param({"prefill_chunk_size": 16}, id="prefill_in_chunks"),
        pytest.param({"prompt_lookup_num_tokens": 4}, id="assisted_decoding_crops"),
    ],
)
def test_other_ways_to_generate_give_the_tokens_of_dynamic_cache(
    make_cache: MakeCache, options: dict[str, int]
) -> None:
    model = tiny_model("llama")
    # A prompt that repeats itself: prompt lookup finds candidates, and some are refused and cropped.
    inputs = {"input_ids": torch.arange(2, 26).repeat(4)[None]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    theirs = generate(model, inputs, DynamicCache(config=model.config), **options)
    mine = generate(model, inputs, make_cache(model), **options)
    assert torch.equal(mine.sequences, theirs.sequences)


def test_a_conversation_goes_on_in_the_same_cache(make_cache: MakeCache) -> None:
    model = tiny_model("llama")
    mine, theirs = make_cache(model), DynamicCache(config=model.config)
    prompt = left_padded_batch([30, 30])["input_ids"]
    for _turn in range(3):
        inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
        run, their_run = generate(model, inputs, mine), generate(model, inputs, theirs)
        assert_same_run(run, their_run)
        prompt = torch.cat([run.sequences, torch.full((2, 3), 9)], dim=1)


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
    for layer in range(model.config.num_hidden_layers):  # and the room that was given up can be had again
        states = random_states(model, batch_size, 100)
        cache.update(*states, layer)
        theirs.update(*states, layer)
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
    for layer in range(model.config.num_hidden_layers):
        states = random_states(model, 3, 60)
        cache.update(*states, layer)
        theirs.update(*states, layer)
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


def test_a_model_with_other_attention_is_refused_by_name(session: Session) -> None:
    sliding = MistralForCausalLM(MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=16))
    with pytest.raises(InvalidRequest, match=r"sliding_attention.*DynamicCache"):
        VattCache.for_model(sliding, session, max_batch_size=1)


def test_the_model_says_the_shape(make_cache: MakeCache) -> None:
    spec = make_cache(tiny_model("phi", dtype=torch.bfloat16)).kv_cache.spec
    assert (spec.num_layers, spec.num_kv_heads, spec.head_size) == (3, 4, 16)
    assert (spec.dtype, spec.max_context_length) == (torch.bfloat16, CONTEXT_LENGTH)


def test_a_closed_cache_says_so_and_holds_nothing(make_cache: MakeCache) -> None:
    model = tiny_model("llama")
    with make_cache(model) as cache:
        fill_both(model, cache, batch_size=2, token_count=100)
    cache.close()
    with pytest.raises(Closed):
        cache.update(*random_states(model, 2, 1), 0)
    with make_cache(model) as another:
        assert_same_content(another, fill_both(model, another, batch_size=2, token_count=5))
