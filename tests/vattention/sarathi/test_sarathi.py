"""Sarathi-Serve on vattd, as its double: what it writes is there after every step, whatever memory it has."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import vattention
from tests.daemon import Vattd
from tests.one_thread import one_thread as one_thread
from tests.operator import Operator, operator
from tests.vattention.sarathi.block_space_manager import Accounting, BlockSpaceManager
from tests.vattention.sarathi.cache_engine import CacheEngine
from tests.vattention.sarathi.config import CacheConfig, ModelConfig
from tests.vattention.sarathi.engine import Engine
from tests.vattention.sarathi.scheduler import SarathiScheduler, Scheduler, VLLMScheduler
from tests.vattention.sarathi.sequence import Sequence
from tests.vattention.upstream_machine import eventually
from vatt.v1 import vatt_pb2 as pb
from vattention import upstream

PAGE = 4096
MODEL = ModelConfig()
ROWS = 8
POOL_BYTES = 1600 * PAGE
TENANT = "sarathi"
# What one request may need at its longest, and a little more than three such: eight do not fit.
MEMORY = 170 * PAGE

# How a server is started: its backend and VATTENTION_LAYOUT.
BACKENDS = {
    "fa_vattn": (False, "per_layer"),
    "fa_vattn_megacache": (True, "per_layer"),
    "fa_vattn, fused": (False, "fused"),
}
in_each_backend = pytest.mark.parametrize(("megacache", "layout"), BACKENDS.values(), ids=BACKENDS.keys())
in_each_mode = pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
under_each_scheduler = pytest.mark.parametrize("scheduler", [SarathiScheduler, VLLMScheduler])


@pytest.fixture(scope="module")
def vattd() -> Iterator[Vattd]:
    with Vattd("--page-size", str(PAGE), "--pool-max", str(POOL_BYTES)) as vattd:
        yield vattd


@pytest.fixture(autouse=True)
def found_vattd(vattd: Vattd, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("VATTD_SOCKET_DIR", str(vattd.socket_dir))
    monkeypatch.setenv("VATTENTION_TENANT", TENANT)
    monkeypatch.delenv("VATTENTION_DAEMON", raising=False)
    monkeypatch.setattr(upstream, "default_device", lambda: "host")
    yield
    vattention.cleanup()


@pytest.fixture
def admin(vattd: Vattd) -> Iterator[Operator]:
    with operator(vattd.sockets) as admin:
        yield admin
        admin.unreserve(TENANT)


@dataclass(frozen=True, slots=True)
class Server:
    """An engine with what it was started with."""

    config: CacheConfig
    layout: str
    engine: Engine
    cache_engine: CacheEngine
    manager: BlockSpaceManager
    short: list[list[int]]  # the lengths of each step that found no memory

    @classmethod
    def start(
        cls,
        config: CacheConfig,
        layout: str,
        scheduler: type[Scheduler],
        accounting: Accounting,
        monkeypatch: pytest.MonkeyPatch,
    ) -> Server:
        monkeypatch.setenv("VATTENTION_LAYOUT", layout)
        manager = BlockSpaceManager(config.block_size, config.num_gpu_blocks, accounting)
        cache_engine = CacheEngine(config)
        short: list[list[int]] = []
        most_tokens = 64 if scheduler is SarathiScheduler else 4 * MODEL.max_model_len
        engine = Engine(scheduler(manager, ROWS, most_tokens), cache_engine, short.append)
        return cls(config, layout, engine, cache_engine, manager, short)

    def pages(self, lengths: list[int]) -> int:
        """That rows of such lengths take."""
        columns = 1 if self.layout == "fused" else self.config.pages_per_block
        token_bytes = self.config.token_bytes * self.config.pages_per_block // columns
        return sum(-(-length * token_bytes // PAGE) for length in lengths) * columns

    def free_blocks(self, total_pages: int) -> int:
        total = total_pages // self.config.pages_per_block
        return total - sum(map(self.manager.blocks, self.cache_engine.curr_seq_lens))


def config_of(megacache: bool, is_async: bool, memory: int = MEMORY) -> CacheConfig:
    return CacheConfig(MODEL, PAGE, memory, ROWS, megacache, is_async)


def requests(count: int, seed: int) -> list[Sequence]:
    draw = random.Random(seed)
    made = []
    for seq_id in range(count):
        made.append(Sequence(seq_id, draw.randint(1, 130), draw.randint(20, 100)))
    return made


def test_sarathi_counts_blocks_as_upstream_does() -> None:
    assert config_of(megacache=False, is_async=True).block_size == 20  # of 20.48 tokens a page
    assert config_of(megacache=True, is_async=True).block_size == 10
    assert MODEL.max_model_len * config_of(megacache=False, is_async=True).token_bytes % PAGE != 0


@in_each_backend
@in_each_mode
@under_each_scheduler
def test_every_token_reads_back_and_no_step_lacks_memory(
    megacache: bool, layout: str, is_async: bool, scheduler: type[Scheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server.start(config_of(megacache, is_async), layout, scheduler, Accounting.CORRECTED, monkeypatch)
    for request in requests(12, seed=3):
        server.engine.add(request)
    while server.engine.is_busy:
        server.engine.step()
        assert vattention.num_free_kvblocks() == server.free_blocks(MEMORY // PAGE)
    assert len(server.engine.finished) == 12
    assert server.engine.preempted_count > 0  # there was less memory than requests
    assert not server.short


@in_each_backend
@under_each_scheduler
def test_with_upstreams_promises_a_step_lacks_memory_exactly_where_its_rows_need_more_than_there_is(
    megacache: bool, layout: str, scheduler: type[Scheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server.start(config_of(megacache, is_async=True), layout, scheduler, Accounting.UPSTREAM, monkeypatch)
    most_pages = MEMORY // PAGE // server.config.pages_per_block * server.config.pages_per_block
    for request in requests(12, seed=3):
        server.engine.add(request)
    while server.engine.is_busy:
        server.engine.step()
        assert server.pages(server.cache_engine.curr_seq_lens) <= most_pages
    assert len(server.engine.finished) == 12
    assert all(server.pages(lengths) > most_pages for lengths in server.short)
    # The prompts in chunks are what more is promised for than there is; fused rows take less than was promised.
    assert bool(server.short) == (scheduler is SarathiScheduler and layout != "fused")


@in_each_backend
@under_each_scheduler
def test_a_max_that_is_lowered_under_load_costs_preemptions_and_nothing_else(
    megacache: bool, layout: str, scheduler: type[Scheduler], admin: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server.start(config_of(megacache, is_async=True), layout, scheduler, Accounting.CORRECTED, monkeypatch)
    for request in requests(10, seed=5):
        server.engine.add(request)
    low_pages = 60  # the longest request needs 52
    while server.free_blocks(low_pages) >= -5:
        server.engine.step()
    preempted = server.engine.preempted_count
    admin.reserve(TENANT, max_bytes=low_pages * PAGE)
    eventually(lambda: vattention.num_free_kvblocks() == server.free_blocks(low_pages))
    while server.engine.is_busy:
        server.engine.step()
        assert vattention.num_free_kvblocks() == server.free_blocks(low_pages)
    assert len(server.engine.finished) == 10
    assert server.engine.preempted_count > preempted
    assert not server.short
    admin.until(lambda status: admin.tenant(TENANT).leased_bytes <= low_pages * PAGE)
    admin.reserve(TENANT, max_bytes=POOL_BYTES)
    eventually(lambda: vattention.num_free_kvblocks() == server.free_blocks(MEMORY // PAGE))


@in_each_backend
@in_each_mode
def test_a_step_beyond_a_lowered_max_is_an_error_that_leaves_all_as_it_was(
    megacache: bool, layout: str, is_async: bool, admin: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a step ends sarathi's worker: only a scheduler that heard of the max in time preempts instead."""
    server = Server.start(config_of(megacache, is_async), layout, SarathiScheduler, Accounting.CORRECTED, monkeypatch)
    for request in requests(4, seed=5):
        server.engine.add(request)
    while len(server.engine.running) < 3:
        server.engine.step()
    before = list(server.cache_engine.curr_seq_lens)
    admin.reserve(TENANT, max_bytes=PAGE)
    eventually(lambda: vattention.num_free_kvblocks() < 0)
    longer = [MODEL.max_model_len if length else 0 for length in before]
    with pytest.raises(RuntimeError, match="OOM"):
        vattention.step_async(longer) if is_async else vattention.step(longer, True)
    server.engine.check()
    admin.reserve(TENANT, max_bytes=POOL_BYTES)
    eventually(lambda: vattention.num_free_kvblocks() == server.free_blocks(MEMORY // PAGE))
    while server.engine.is_busy:
        server.engine.step()
    assert len(server.engine.finished) == 4


def test_what_is_kept_for_a_server_is_there_however_much_a_neighbour_takes(
    vattd: Vattd, admin: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin.reserve(TENANT, min_bytes=MEMORY, min_mode=pb.MIN_MODE_HARD)
    server = Server.start(
        config_of(megacache=False, is_async=True), "per_layer", SarathiScheduler, Accounting.CORRECTED, monkeypatch
    )
    with vattention.Session.connect("neighbour", socket_dir=Path(vattd.socket_dir)) as neighbour:
        held = neighbour.lease(neighbour.pool_pages, min_page_count=1)
        assert held
        for request in requests(10, seed=7):
            server.engine.add(request)
        while server.engine.is_busy:
            server.engine.step()
    assert len(server.engine.finished) == 10
    assert not server.short
