"""generate_batch on leased pages: the tokens of transformers' own cache, whatever happens to the pages meanwhile."""

from __future__ import annotations

import gc
import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import RequestState, cache, continuous_api

from tests.daemon import Vattd
from tests.operator import operator
from tests.vattention.integrations.tiny_models import SHAPE, VOCABULARY, tiny_model
from vatt.errors import InvalidRequest, PoolExhausted
from vatt.v1 import vatt_pb2 as pb
from vattention.block_geometry import BlockGeometry, Stripe
from vattention.block_memory import BlockMemory
from vattention.integrations.continuous_batching import paged_batching, sector_manager
from vattention.integrations.continuous_batching.sector_plan import SectorPlan
from vattention.integrations.continuous_batching.sector_scheduler import PatientScheduler
from vattention.session import Session

NEW_TOKENS = 24
PAGE = 64 << 10
Tokens = list[list[int]]
# After a batch was scheduled.
OnBatch = Callable[[PatientScheduler], None]


def prompts_of(*lengths: int, common: int = 0) -> Tokens:
    """Random prompts of these lengths; the first `common` tokens are the same in all."""
    torch.manual_seed(5)
    prefix = torch.randint(2, VOCABULARY, (common,)).tolist()
    return [prefix + torch.randint(2, VOCABULARY, (length - common,)).tolist() for length in lengths]


PROMPTS = prompts_of(70, 5, 33, 48, 100, 12)


def batching(**options: Any) -> ContinuousBatchingConfig:
    return ContinuousBatchingConfig(**{"page_size": 16, "num_blocks": 64, "max_batch_tokens": 64, **options})


def generation(**options: Any) -> GenerationConfig:
    fixed = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    made: Any = GenerationConfig
    return made(**{**fixed, **options})  # type: ignore[no-any-return]


def outputs_of(model: Any, prompts: Tokens, config: ContinuousBatchingConfig, **options: Any) -> list[Any]:
    outputs = model.generate_batch(prompts, generation_config=generation(**options), continuous_batching_config=config)
    return list(outputs.values())


def tokens_of(model: Any, prompts: Tokens = PROMPTS, **options: Any) -> Tokens:
    """Generated with transformers' own cache, or on pages inside of `paged_batching`."""
    outputs = outputs_of(model, prompts, batching(**options))
    assert [output.error for output in outputs] == [None] * len(prompts)
    return [output.generated_tokens for output in outputs]


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, on_batch: OnBatch) -> Iterator[None]:
    """Calls `on_batch` after each batch that was scheduled."""
    schedule = PatientScheduler.schedule_batch

    def schedule_and_tell(scheduler: PatientScheduler, *budgets: int) -> Any:
        batch = schedule(scheduler, *budgets)
        if batch[0] is not None:
            on_batch(scheduler)
        return batch

    with monkeypatch.context() as patch:
        patch.setattr(PatientScheduler, "schedule_batch", schedule_and_tell)
        yield


@pytest.fixture(scope="module", autouse=True)
def short_collections() -> Iterator[None]:
    """transformers collects garbage at the end of each run, and all modules would be looked through each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def expected(llama: PreTrainedModel) -> Tokens:
    """What `llama` says to PROMPTS."""
    return tokens_of(llama)


@pytest.fixture
def small_pool() -> Iterator[Vattd]:
    """Three pages: the longest of PROMPTS with its answer needs two, and all of them at once six."""
    with Vattd("--pool-max", str(3 * PAGE)) as vattd:
        yield vattd


def sliding_model() -> PreTrainedModel:
    """Layers of two kinds: a sector is several blocks of the one, and one of the other."""
    torch.manual_seed(7)
    shape = {**SHAPE, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 32}
    config = Gemma2Config(**shape, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
    model: PreTrainedModel = Gemma2ForCausalLM(config)
    return model


@pytest.mark.parametrize(
    ("family", "attention", "options"),
    [
        ("llama", "sdpa", {}),
        ("llama", "eager", {"scheduler_type": "prefill_first"}),
        ("llama", "sdpa", {"allow_block_sharing": False, "scheduler_type": "no such scheduler"}),
        ("phi", "sdpa", {}),
        ("sliding", "sdpa", {}),
    ],
)
def test_the_tokens_are_those_of_transformers_own_cache(
    session: Session, family: str, attention: str, options: dict[str, Any]
) -> None:
    model = sliding_model() if family == "sliding" else tiny_model(family, attention=attention)
    expected = tokens_of(model, **options)
    with paged_batching(session):
        assert tokens_of(model, **options) == expected
        assert session.mapper.mapped_pages == 0
    assert len(set(map(tuple, expected))) == len(PROMPTS)


def test_requests_with_a_common_prefix_share_its_pages(
    session: Session, llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(*range(100, 108), common=96)
    expected = tokens_of(llama, prompts)
    shared: list[int] = []

    def count(scheduler: PatientScheduler) -> None:
        (allocator,) = scheduler.cache.cache_allocators.values()
        shared.append(len(allocator.ledger.shared_ref_counts))

    with paged_batching(session), watched(monkeypatch, count):
        assert tokens_of(llama, prompts) == expected
    assert max(shared) == 6  # blocks of 16 tokens


def test_several_answers_to_one_prompt_fork_its_blocks(session: Session, llama: PreTrainedModel) -> None:
    def answers() -> Tokens:
        # The only sampling that forks say the same with: of one token.
        outputs = outputs_of(llama, PROMPTS[:2], batching(), num_return_sequences=3, do_sample=True, top_k=1)
        return [output.generated_tokens for output in outputs]

    expected = answers()
    assert len(expected) == 6
    with paged_batching(session):
        assert answers() == expected


def test_pages_follow_the_blocks_in_use(
    session: Session, llama: PreTrainedModel, expected: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each step the pages mapped are those of the blocks of some request, of trash, and of prefixes to be shared."""
    mapped: list[int] = []

    def count(scheduler: PatientScheduler) -> None:
        cache = scheduler.cache
        (allocator,) = cache.cache_allocators.values()
        blocks = {block for table in allocator.block_table.values() for block in table} | {0, 1}
        blocks |= set(allocator.ledger.cached_blocks)
        pages = {
            page
            for block in blocks
            for page in range(
                block * cache.bytes_per_sector // PAGE, ((block + 1) * cache.bytes_per_sector - 1) // PAGE + 1
            )
        }
        assert session.mapper.mapped_pages == cache.memory.mapped_pages == len(pages)
        assert cache.usage().token_bytes == (len(blocks) - 2) * cache.bytes_per_sector
        mapped.append(len(pages))

    with paged_batching(session), watched(monkeypatch, count):
        assert tokens_of(llama) == expected
    assert max(mapped) >= 5
    assert session.mapper.mapped_pages == 0


def test_an_idle_manager_holds_only_trash(session: Session, llama: Any) -> None:
    with paged_batching(session):
        options = {"generation_config": generation(), "continuous_batching_config": batching()}
        with llama.continuous_batching_context_manager(**options) as manager:
            for _again in range(2):
                manager.add_requests(PROMPTS, max_new_tokens=4)
                done = [next(iter(manager)) for _ in PROMPTS]
                assert all(output.is_finished() and output.error is None for output in done)
                with manager.pause():  # between two rounds of the loop
                    assert session.mapper.mapped_pages == 1


def test_the_cache_may_be_larger_than_the_memory_of_the_machine(session: Session) -> None:
    shape = {**SHAPE, "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 256}
    model = LlamaForCausalLM(LlamaConfig(**shape))
    block_bytes = 4 * 3 * 2 * 32 * 256 * 4
    larger = {"page_size": 4, "num_blocks": 2 * psutil.virtual_memory().total // block_bytes, "max_batch_tokens": 8}
    prompts = prompts_of(5, 12)
    expected = tokens_of(model, prompts, **{**larger, "num_blocks": 64})
    with pytest.raises(MemoryError):
        tokens_of(model, prompts, **larger)
    with paged_batching(session):
        assert tokens_of(model, prompts, **larger) == expected


def test_masks_that_are_too_large_are_refused_with_what_to_change(session: Session, llama: PreTrainedModel) -> None:
    """They are as long as the cache, and real memory."""
    tokens = psutil.virtual_memory().total // (8192 * 4)
    options = {"num_blocks": tokens // 16, "max_batch_tokens": 8192}
    advice = r"choose a smaller max_batch_tokens \(now 8192\) or num_blocks"
    with paged_batching(session), pytest.raises(InvalidRequest, match=advice):
        tokens_of(llama, **options)
    assert session.mapper.mapped_pages == 0


def test_without_a_size_the_cache_has_that_of_the_pool(
    session: Session, llama: PreTrainedModel, expected: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = set()
    with paged_batching(session), watched(monkeypatch, lambda scheduler: blocks.add(scheduler.cache.num_blocks)):
        assert tokens_of(llama, num_blocks=None) == expected
    assert blocks == {session.pool_pages * PAGE // (16 * 768) - 2}  # two are trash


def test_without_a_size_the_masks_take_a_part_of_the_memory_only(
    session: Session, llama: PreTrainedModel, expected: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def note(scheduler: PatientScheduler) -> None:
        sizes.append(scheduler.cache.num_blocks * 16 * 64 * 4)  # bytes of the masks of 64 tokens

    monkeypatch.setattr(SectorPlan, "get_available_memory", lambda plan: 8 << 20)
    with paged_batching(session), watched(monkeypatch, note):
        assert tokens_of(llama, num_blocks=None) == expected
    assert max(sizes) <= 1 << 20


def test_requests_wait_and_are_preempted_in_a_pool_that_is_too_small_for_all(
    small_pool: Vattd, llama: PreTrainedModel, expected: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    preempted: list[str] = []
    create = RequestState.create_equivalent_initial_request

    def note(state: RequestState) -> RequestState:
        preempted.append(state.request_id)
        return create(state)

    monkeypatch.setattr(RequestState, "create_equivalent_initial_request", note)
    with Session.connect("small", socket_dir=small_pool.socket_dir) as session, paged_batching(session):
        for scheduler_type in ("fifo", "prefill_first"):
            assert tokens_of(llama, scheduler_type=scheduler_type) == expected
        assert preempted
    assert small_pool.pages()["leased"] == 0


def test_the_last_request_that_runs_gives_way_too_and_begins_anew(
    small_pool: Vattd, llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It grows past its page while another engine has the rest: none waits while it holds what the other waits for."""
    prompts = prompts_of(40)
    expected = tokens_of(llama, prompts)
    running: list[int] = []
    with (
        operator(small_pool.sockets) as admin,
        Session.connect("grows", socket_dir=small_pool.socket_dir) as session,
        Session.connect("holds", socket_dir=small_pool.socket_dir) as other,
        paged_batching(session),
    ):

        def hold_until_it_gives_way(scheduler: PatientScheduler) -> None:
            running.append(len(scheduler.active_requests))
            if len(running) == 1:
                admin.until(lambda status: _leases(other, 2))
            elif running[-1] == 0:
                assert session.mapper.mapped_pages == 1  # trash
                other.close()

        with watched(monkeypatch, hold_until_it_gives_way):
            assert tokens_of(llama, prompts) == expected
    assert running.count(0) >= 1


def test_padding_reads_zeros_whatever_the_pages_held(
    small_pool: Vattd, llama: PreTrainedModel, expected: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(scheduler: PatientScheduler) -> None:
        assert not scheduler.cache.cache_tensor[: 2 * scheduler.cache.bytes_per_sector].any()

    with Session.connect("padded", socket_dir=small_pool.socket_dir) as session:
        memory = BlockMemory(session.mapper, session.pages, BlockGeometry(3, (Stripe(0, PAGE, PAGE),), PAGE))
        memory.back(range(3))  # the whole pool
        memory.tensor.fill_(255)
        memory.close()
        with paged_batching(session), watched(monkeypatch, look):
            assert tokens_of(llama, PROMPTS[:2]) == expected[:2]


def test_a_cache_waits_for_its_first_pages(
    small_pool: Vattd, llama: PreTrainedModel, expected: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        operator(small_pool.sockets) as admin,
        Session.connect("first", socket_dir=small_pool.socket_dir) as first,
        Session.connect("late", socket_dir=small_pool.socket_dir) as late,
        ThreadPoolExecutor(1) as engine,
        paged_batching(late),
    ):
        everything = first.lease(3)
        tokens = engine.submit(tokens_of, llama)
        admin.until(lambda status: any(tenant.waiting_leases for tenant in status.tenants))
        first.give_back(everything)
        assert tokens.result() == expected


def test_what_could_not_run_even_alone_fails_by_itself_and_says_why(
    small_pool: Vattd, llama: PreTrainedModel, expected: Tokens
) -> None:
    """One for its prompt, one for what it would say; the others run."""
    prompts = [*PROMPTS[:2], prompts_of(300)[0], prompts_of(210)[0], *PROMPTS[2:]]
    with Session.connect("small", socket_dir=small_pool.socket_dir) as session, paged_batching(session):
        outputs = outputs_of(llama, prompts, batching())
    refused, grown = outputs.pop(2), outputs.pop(2)
    assert [output.generated_tokens for output in outputs] == expected
    assert "300 tokens need 4 pages, and 3 may ever be lent" in refused.error
    assert "tokens need 4 pages, and 3 may ever be lent" in grown.error


def test_all_the_answers_of_a_request_that_never_fits_fail(small_pool: Vattd, llama: PreTrainedModel) -> None:
    with Session.connect("small", socket_dir=small_pool.socket_dir) as session, paged_batching(session):
        outputs = outputs_of(llama, prompts_of(300), batching(), num_return_sequences=2, do_sample=True)
    assert len(outputs) == 2
    assert all("300 tokens need 4 pages" in output.error for output in outputs)


def test_a_cache_that_is_too_small_by_its_own_configuration_says_so(session: Session, llama: PreTrainedModel) -> None:
    with paged_batching(session):
        short, long = outputs_of(llama, prompts_of(20, 50), batching(num_blocks=3))
    assert short.error is None
    assert "num_blocks=3" in long.error


def test_a_max_that_is_lowered_under_load_is_kept_from_the_next_batch_on(
    own_vattd: Vattd, llama: PreTrainedModel, expected: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped: list[int] = []
    with (
        operator(own_vattd.sockets) as admin,
        Session.connect("lowered", socket_dir=own_vattd.socket_dir) as session,
        paged_batching(session),
    ):

        def lower_then_watch(scheduler: PatientScheduler) -> None:
            mapped.append(session.mapper.mapped_pages)
            if len(mapped) == 12:
                admin.reserve("lowered", max_bytes=3 * PAGE)
                admin.until(lambda status: session.pool_pages == 3)

        with watched(monkeypatch, lower_then_watch):
            assert tokens_of(llama) == expected
    assert mapped[11] > 3 >= max(mapped[12:])


def test_requests_give_way_to_what_another_tenant_was_promised(
    small_pool: Vattd, llama: PreTrainedModel, expected: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    with (
        operator(small_pool.sockets) as admin,
        Session.connect("batch", socket_dir=small_pool.socket_dir) as session,
        Session.connect("chat", socket_dir=small_pool.socket_dir) as chat,
        paged_batching(session),
    ):
        admin.reserve("chat", min_bytes=PAGE)

        def take_what_was_promised(scheduler: PatientScheduler) -> None:
            if session.mapper.mapped_pages == 3 and not given:
                with pytest.raises(PoolExhausted):  # which vattd has heard, and asks
                    chat.lease(1)
                admin.until(lambda status: scheduler.cache.is_asked)
                given.append(1)
            elif given and not chat.leased_pages:
                assert session.mapper.mapped_pages <= 2
                admin.until(lambda status: _leases(chat, 1))

        with watched(monkeypatch, take_what_was_promised):
            assert tokens_of(llama) == expected
        assert chat.leased_pages == 1


def _leases(session: Session, page_count: int) -> bool:
    with suppress(PoolExhausted):
        session.lease(page_count)
    return session.leased_pages > 0


def test_new_requests_wait_while_vattd_is_drained(
    own_vattd: Vattd, llama: PreTrainedModel, expected: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[int] = []
    with (
        operator(own_vattd.sockets) as admin,
        Session.connect("drained", socket_dir=own_vattd.socket_dir) as session,
        paged_batching(session),
    ):
        admin.admin.Drain(pb.DrainRequest())
        admin.until(lambda status: session.draining)

        def resume_after_a_while(scheduler: PatientScheduler) -> None:
            rounds.append(len(scheduler.active_requests))
            if len(rounds) == 3:
                admin.admin.Drain(pb.DrainRequest(resume=True))
                admin.until(lambda status: not session.draining)

        with watched(monkeypatch, resume_after_a_while):
            assert tokens_of(llama) == expected
    assert rounds[:3] == [0, 0, 0]


def test_requests_wait_for_a_vattd_that_is_started_anew(
    own_vattd: Vattd, llama: Any, expected: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = threading.Event()

    def note_if_none_runs(scheduler: PatientScheduler) -> None:
        if not scheduler.active_requests:
            waited.set()

    options = {"generation_config": generation(), "continuous_batching_config": batching()}
    with (
        Session.connect("patient", socket_dir=own_vattd.socket_dir, patience_s=0) as session,
        paged_batching(session),
        watched(monkeypatch, note_if_none_runs),
        llama.continuous_batching_context_manager(**options) as manager,
    ):
        own_vattd.stop(signal.SIGKILL)
        session.give_back(session.pages.give_up(session.pool_pages))
        ids = manager.add_requests(PROMPTS, max_new_tokens=NEW_TOKENS)
        assert waited.wait(10)
        own_vattd.start()
        outputs = {output.request_id: output for output in itertools.islice(manager, len(PROMPTS))}
    assert [outputs[request_id].generated_tokens for request_id in ids] == expected


@pytest.mark.parametrize("where", ["the model", "the pages", "the scheduler"])
def test_an_error_in_the_middle_of_a_run_leaves_nothing_mapped(
    session: Session, llama: Any, expected: Tokens, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    calls = itertools.count()

    def fail_at_the_tenth(*args: Any, **options: Any) -> Any:
        if next(calls) == 10:
            raise RuntimeError("the device burns")
        return original(*args, **options)

    owner, name = {
        "the model": (llama, "forward"),
        "the pages": (BlockMemory, "back"),
        "the scheduler": (PatientScheduler, "_give_way"),
    }[where]
    original = getattr(owner, name)
    with paged_batching(session):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail_at_the_tenth)
            outputs = outputs_of(llama, PROMPTS, batching())
        assert {output.error for output in outputs} >= {"the device burns"}
        assert session.mapper.mapped_pages == 0
        assert tokens_of(llama) == expected
    assert session.mapper.mapped_pages == 0


@pytest.mark.parametrize("end", ["of the block", "of the session"])
def test_what_still_runs_at_the_end_is_stopped_and_its_pages_are_back(session: Session, llama: Any, end: str) -> None:
    with paged_batching(session):
        manager = llama.init_continuous_batching(generation(), batching())
        manager.start()
        manager.add_requests(PROMPTS, max_new_tokens=400, streaming=True)
        assert next(iter(manager)).generated_tokens
        assert session.mapper.mapped_pages > 1
        if end == "of the session":
            session.close()
            assert not manager.is_running()
    assert not manager.is_running()
    assert session.mapper.mapped_pages == 0


def test_a_manager_that_transformers_keeps_is_not_used_beyond_its_pages(
    session: Session, llama: Any, expected: Tokens
) -> None:
    def kept() -> Tokens:
        options = {"generation_config": generation(), "continuous_batching_config": batching()}
        outputs = llama.generate_batch(PROMPTS, persistent_manager=True, **options)
        return [output.generated_tokens for output in outputs.values()]

    assert kept() == expected
    with paged_batching(session):
        for _again in range(2):
            assert kept() == expected
            assert session.mapper.mapped_pages == 1  # trash
    assert session.mapper.mapped_pages == 0
    assert kept() == expected
    llama.destroy_cached_continuous_batching_manager()


def test_an_on_pressure_of_the_callers_own_outlives_the_block(session: Session) -> None:
    asked: list[int] = []
    with paged_batching(session):
        assert session.on_pressure is not None
        session.on_pressure = asked.append
    assert session.on_pressure == asked.append
    session.on_pressure = None
    with paged_batching(session):
        pass
    assert session.on_pressure is None


def test_a_session_serves_one_block_after_the_other_but_not_two_at_once(
    session: Session, llama: PreTrainedModel, expected: Tokens
) -> None:
    stock = continuous_api.ContinuousBatchingManager
    with paged_batching(session):
        with pytest.raises(InvalidRequest, match="leave that one first"), paged_batching(session):
            raise AssertionError
        assert continuous_api.ContinuousBatchingManager is not stock
    assert continuous_api.ContinuousBatchingManager is stock
    assert tokens_of(llama) == expected


@pytest.mark.parametrize("version", ["5.22.1", "5.24.0", "6.0.0.dev0"])
def test_another_transformers_is_refused_by_name(
    session: Session, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(f"{sector_manager.__name__}.transformers.__version__", version)
    with pytest.raises(InvalidRequest, match=rf"not {version}: pip install 'transformers==5\.23\.\*'"):
        with paged_batching(session):
            raise AssertionError


@pytest.mark.parametrize(
    ("module", "name"), [(continuous_api, "SCHEDULER_MAPPING"), (cache, "PagedAttentionMemoryHandler")]
)
def test_a_transformers_without_the_names_is_refused(
    session: Session, llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str
) -> None:
    monkeypatch.delattr(module, name)
    with paged_batching(session), pytest.raises(InvalidRequest, match=f"has no `{name}` in {module.__name__}"):
        tokens_of(llama)
    assert session.mapper.mapped_pages == 0


def test_a_model_elsewhere_than_the_pages_is_refused(session: Session) -> None:
    model: Any = tiny_model("llama")
    model.to("meta")
    with (
        paged_batching(session),
        pytest.raises(InvalidRequest, match=r"on meta and vattd's pages are on cpu: model\.to"),
    ):
        tokens_of(model)
    assert session.mapper.mapped_pages == 0
