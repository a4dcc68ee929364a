"""microsoft/vattention's module, as its callers count on it: its promises, its quirks and what it gets wrong."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import vattention
from tests.daemon import Vattd
from tests.operator import operator
from tests.vattention.serving import BlockManager, Request, ServingLoop, tokens_are, write_tokens
from tests.vattention.upstream_machine import eventually
from vatt.errors import DaemonUnreachable, InvalidRequest, PoolExhausted
from vattention import upstream
from vattention.config import LAYOUTS, UpstreamConfig, read_upstream_config
from vattention.kv_blocks import KVBlocks
from vattention.layout import Layout
from vattention.vmm import default_device

PAGE = 64 << 10
# A token takes 320 bytes a column: a page holds 204.8 of them, and a row's 1000 tokens take 4.9 pages.
LAYERS, HEADS, SIZE, ROWS, CONTEXT = 2, 2, 80, 4, 1000
TOKEN = HEADS * SIZE * 2
PAGES_PER_BLOCK = 2 * LAYERS
SHAPE = (LAYERS, HEADS, SIZE, ROWS, CONTEXT, 0, torch.float16)

NO_GPU = pytest.mark.skipif(default_device() != "host", reason="device 0 is a GPU here")


@pytest.fixture(autouse=True)
def found_vattd(vattd_socket_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("VATTD_SOCKET_DIR", str(vattd_socket_dir))
    for name in ("VATTENTION_DAEMON", "VATTENTION_TENANT", "VATTENTION_LAYOUT"):
        monkeypatch.delenv(name, raising=False)
    # A test is about the machine's memory, whether it has a GPU or not.
    monkeypatch.setattr(upstream, "default_device", lambda: "host")
    yield
    vattention.cleanup()


def blocks(token_count: int, token_bytes: int = TOKEN) -> int:
    """That so many tokens fill."""
    return -(-token_count * token_bytes // PAGE)


def counted(token_count: int, token_bytes: int = TOKEN) -> int:
    """Blocks that upstream counts for them: a block holds whole tokens."""
    return -(-token_count // (PAGE // token_bytes))


def init(total_blocks: int | None = None) -> list[torch.Tensor]:
    tensors = vattention.init_kvcache(*SHAPE, PAGE, False)
    if total_blocks is not None:
        assert (
            vattention.reserve_physical_pages(total_blocks * PAGES_PER_BLOCK * PAGE) == total_blocks * PAGES_PER_BLOCK
        )
    return tensors


def opened() -> KVBlocks:
    assert upstream._process.open is not None
    return upstream._process.open.blocks


def mapped() -> list[int]:
    """Blocks of every row, when the background has nothing left to do."""
    assert opened().cache.settle()
    return opened().mapped_blocks()


StepCall = Callable[[Sequence[int]], None]
STEPS: dict[str, StepCall] = {
    "sync": lambda lengths: vattention.step(lengths, True),
    "kept": lambda lengths: vattention.step(lengths, False),
    "async": lambda lengths: vattention.step_async(lengths),
}
in_each_mode = pytest.mark.parametrize("take_step", STEPS.values(), ids=STEPS.keys())


# init_kvcache


def test_importing_the_package_loads_nothing_heavy_until_a_function_is_used() -> None:
    script = (
        "import sys, vattention; assert not {'torch', 'grpc', 'numpy'} & set(sys.modules);"
        "assert vattention.step.__module__ == 'vattention.upstream'; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_keys_come_first_then_all_values_whatever_the_layout(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VATTENTION_LAYOUT", layout)
    tensors = init()
    assert opened().cache.layout.value == layout
    assert len(tensors) == 2 * LAYERS
    cache = opened().cache
    views = [cache.layer(layer)[kind] for kind in (0, 1) for layer in range(LAYERS)]
    assert [tensor.data_ptr() for tensor in tensors] == [view.data_ptr() for view in views]
    for tensor in tensors:
        assert (tensor.shape, tensor.dtype) == ((ROWS, CONTEXT, HEADS, SIZE), torch.float16)
        assert str(tensor.device) == "cpu"
        assert tensor.stride()[2:] == (SIZE, 1)
    vattention.step([300, 0, 500, 1000], True)
    for row, length in ((0, 300), (2, 500), (3, 1000)):
        write_tokens(tensors, row, row, 0, length)
    assert all(tokens_are(tensors, row, row, length) for row, length in ((0, 300), (2, 500), (3, 1000)))


def test_a_row_of_a_layer_is_contiguous_without_megacache() -> None:
    for tensor in init():
        assert tensor[1].is_contiguous()
        assert tensor[1, :700].reshape(1, -1, HEADS, SIZE).data_ptr() == tensor[1].data_ptr()


def test_a_megacache_is_one_tensor_of_keys_and_one_of_values() -> None:
    tensors = vattention.init_kvcache(*SHAPE, PAGE, True)
    assert [tensor.shape for tensor in tensors] == [(ROWS, CONTEXT, LAYERS, HEADS, SIZE)] * 2
    layers = [tensor[:, :, layer] for tensor in tensors for layer in range(LAYERS)]
    vattention.step([0, 400, 0, 1000], True)
    for row, length in ((1, 400), (3, 1000)):
        write_tokens(layers, row, row, 0, length)
    assert tokens_are(layers, 1, 1, 400)
    assert tokens_are(layers, 3, 3, 1000)


def test_init_maps_nothing_and_takes_no_memory() -> None:
    init(total_blocks=40)
    assert mapped() == [0] * ROWS
    assert opened().cache.stats().leased_bytes == 0


@pytest.mark.parametrize("context", [1000, 390, 100], ids=["4.9 pages", "1.9 pages", "half a page"])
def test_rows_that_are_no_whole_number_of_pages_do_not_overlap(context: int) -> None:
    """Upstream refuses the first and maps rows of the others where their tensors are not."""
    tensors = vattention.init_kvcache(LAYERS, HEADS, SIZE, ROWS, context, 0, torch.float16, PAGE)
    assert all(tensor.stride(0) * 2 % PAGE == 0 for tensor in tensors)
    vattention.step([context] * ROWS, True)
    for row in range(ROWS):
        write_tokens(tensors, row, row, 0, context)
    assert all(tokens_are(tensors, row, row, context) for row in range(ROWS))


def test_arguments_go_by_position_and_megacache_may_be_left_out() -> None:
    assert len(vattention.init_kvcache(*SHAPE, PAGE)) == 2 * LAYERS
    with pytest.raises(TypeError):
        vattention.step(seq_lens=[0] * ROWS, eager_reclaim=True)  # type: ignore[call-arg]


@pytest.mark.parametrize("use_uvm", [False, True])
def test_the_old_call_with_use_uvm_in_the_page_sizes_place_takes_vattds_pages(use_uvm: bool) -> None:
    assert len(vattention.init_kvcache(*SHAPE, use_uvm)) == 2 * LAYERS
    assert opened().page_size_bytes == PAGE


def test_a_page_may_be_a_multiple_of_vattds_and_nothing_else() -> None:
    with pytest.raises(InvalidRequest, match="100000"):
        vattention.init_kvcache(*SHAPE, 100_000)
    vattention.init_kvcache(*SHAPE, 4 * PAGE)
    assert vattention.reserve_physical_pages(7 * PAGES_PER_BLOCK * 4 * PAGE) == 7 * PAGES_PER_BLOCK
    vattention.step([900, 0, 0, 0], True)
    assert vattention.num_free_kvblocks() == 7 - 2  # 900 tokens are 1.1 pages of 256 KiB
    assert mapped()[0] == 2
    assert opened().cache.stats().mapped_bytes == 2 * PAGES_PER_BLOCK * 4 * PAGE


@NO_GPU
def test_without_a_gpu_there_is_device_0_and_no_other() -> None:
    for device in (1, -1):
        with pytest.raises(InvalidRequest, match=f"device {device}"):
            vattention.init_kvcache(LAYERS, HEADS, SIZE, ROWS, CONTEXT, device, torch.float16, PAGE)


def test_with_a_gpu_the_device_is_the_gpu_of_that_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "default_device", lambda: "0")
    monkeypatch.setattr(upstream, "device_uuid", lambda number: f"GPU-{number}")
    with pytest.raises(DaemonUnreachable, match="GPU-3"):
        vattention.init_kvcache(LAYERS, HEADS, SIZE, ROWS, CONTEXT, 3, torch.float16, PAGE)


def test_the_environment_names_the_tenant_and_the_layout(monkeypatch: pytest.MonkeyPatch, own_vattd: Vattd) -> None:
    assert read_upstream_config({}) == UpstreamConfig("vattention", "per_layer")
    assert set(LAYOUTS) == {layout.value for layout in Layout} - {"per_head"}
    with pytest.raises(InvalidRequest, match="VATTENTION_LAYOUT"):
        read_upstream_config({"VATTENTION_LAYOUT": "paged"})
    monkeypatch.setenv("VATTD_SOCKET_DIR", str(own_vattd.socket_dir))
    for tenant in ("vattention", "my-model"):
        if tenant != "vattention":
            monkeypatch.setenv("VATTENTION_TENANT", tenant)
        init()
        assert [session.tenant for session in own_vattd.status().sessions] == [tenant]
        vattention.cleanup()


def test_a_second_init_without_cleanup_is_refused() -> None:
    init()
    with pytest.raises(RuntimeError, match="cleanup"):
        init()
    vattention.step([10, 0, 0, 0], True)


@pytest.mark.parametrize(
    "call",
    [
        lambda: vattention.reserve_physical_pages(PAGE),
        lambda: vattention.alloc_new_batch_idx(1),
        lambda: vattention.free_batch_idx(0),
        lambda: vattention.step([0] * ROWS, True),
        lambda: vattention.step_async([0] * ROWS),
        lambda: vattention.num_free_kvblocks(),
        lambda: vattention.map_common_pages(1),
        lambda: vattention.show_kvcache_config(),
        lambda: vattention.show_allocator_state(),
        lambda: vattention.release_kvcache_physical(),
    ],
)
def test_before_init_calls_say_what_is_missing(call: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match="init_kvcache"):
        call()


def test_an_init_that_fails_leaves_nothing_behind(own_vattd: Vattd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VATTD_SOCKET_DIR", str(own_vattd.socket_dir))
    with pytest.raises(InvalidRequest):
        vattention.init_kvcache(*SHAPE, 100_000)
    with pytest.raises(InvalidRequest):
        vattention.init_kvcache(0, *SHAPE[1:], PAGE)
    assert not own_vattd.status().sessions
    init()


# reserve_physical_pages and num_free_kvblocks


def test_a_reservation_is_rounded_down_to_whole_blocks_and_counted_in_pages() -> None:
    init()
    assert vattention.reserve_physical_pages(11 * PAGES_PER_BLOCK * PAGE - 1) == 10 * PAGES_PER_BLOCK
    assert vattention.num_free_kvblocks() == 10


@pytest.mark.parametrize(
    ("layout", "megacache", "pages"),
    [("per_layer", False, 2 * LAYERS), ("per_layer", True, 2), ("megacache", False, 2 * LAYERS), ("fused", False, 4)],
)
def test_a_block_is_what_the_caller_takes_for_one_whatever_the_layout_in_memory(
    layout: str, megacache: bool, pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts with the tokens a page that its own arguments give."""
    monkeypatch.setenv("VATTENTION_LAYOUT", layout)
    vattention.init_kvcache(*SHAPE, PAGE, megacache)
    assert vattention.reserve_physical_pages(41 * PAGE) == 41 // pages * pages
    assert vattention.num_free_kvblocks() == 41 // pages
    vattention.alloc_new_batch_idx(900)
    assert vattention.num_free_kvblocks() == 41 // pages - counted(900, TOKEN * 2 * LAYERS // pages)


def test_before_a_reservation_all_that_the_pool_can_lend_counts_and_none_is_larger() -> None:
    init()
    most = opened().cache._home.pool_pages // PAGES_PER_BLOCK
    assert vattention.num_free_kvblocks() == most
    assert vattention.reserve_physical_pages(1 << 50) == most * PAGES_PER_BLOCK
    assert vattention.num_free_kvblocks() == most


def test_a_second_reservation_raises_the_limit_and_never_lowers_it() -> None:
    init(total_blocks=10)
    vattention.step([1000, 0, 0, 0], True)
    assert vattention.reserve_physical_pages(3 * PAGES_PER_BLOCK * PAGE) == 10 * PAGES_PER_BLOCK
    assert vattention.num_free_kvblocks() == 5
    vattention.step([1000, 1000, 0, 0], True)
    assert vattention.reserve_physical_pages(15 * PAGES_PER_BLOCK * PAGE) == 15 * PAGES_PER_BLOCK
    vattention.step([1000, 1000, 1000, 0], True)
    assert vattention.num_free_kvblocks() == 0


def test_a_reservation_of_nothing_lets_nothing_be_mapped_and_a_negative_one_is_refused() -> None:
    init(total_blocks=0)
    with pytest.raises(RuntimeError, match="OOM"):
        vattention.step([1, 0, 0, 0], True)
    with pytest.raises(InvalidRequest, match="-1"):
        vattention.reserve_physical_pages(-1)


def test_free_blocks_follow_alloc_and_free_at_once_and_nothing_else() -> None:
    init(total_blocks=20)
    first = vattention.alloc_new_batch_idx(300)
    assert vattention.num_free_kvblocks() == 18
    assert mapped()[first] >= 2  # the background did it
    assert vattention.num_free_kvblocks() == 18
    lengths = [0] * ROWS
    for length in range(300, 1000):
        lengths[first] = length
        vattention.step_async(lengths)
        assert vattention.num_free_kvblocks() == 20 - counted(length)
    vattention.free_batch_idx(first)
    assert vattention.num_free_kvblocks() == 20
    assert sum(mapped()) > 0  # kept, and free all the same


def test_where_more_was_promised_than_there_is_so_many_blocks_are_missing() -> None:
    """Upstream says a huge number. Whoever goes on above 0 only gives up what it must."""
    init(total_blocks=6)
    vattention.alloc_new_batch_idx(1000)
    second = vattention.alloc_new_batch_idx(1000)
    assert vattention.num_free_kvblocks() == 6 - 5 - 5
    vattention.free_batch_idx(second)
    assert vattention.num_free_kvblocks() == 1


def test_blocks_hold_whole_tokens_as_upstreams_do_and_pages_are_filled_to_the_end() -> None:
    """A scheduler counts so too: what it promised and we did not count, it would promise again."""
    init(total_blocks=2)
    assert (counted(409), blocks(409)) == (3, 2)
    vattention.step([409, 0, 0, 0], True)
    assert vattention.num_free_kvblocks() == -1
    assert mapped() == [2, 0, 0, 0]


def test_a_token_larger_than_a_page_is_counted_by_the_bytes() -> None:
    """Upstream divides by zero."""
    vattention.init_kvcache(LAYERS, 1, 48 << 10, ROWS, 10, 0, torch.float16, PAGE)
    vattention.reserve_physical_pages(20 * PAGES_PER_BLOCK * PAGE)
    vattention.step([3, 0, 0, 0], True)
    assert vattention.num_free_kvblocks() == 20 - 5


def test_free_blocks_follow_the_tenants_max_down_and_up(own_vattd: Vattd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VATTD_SOCKET_DIR", str(own_vattd.socket_dir))
    init(total_blocks=20)
    vattention.step([1000, 600, 0, 0], True)
    with operator(own_vattd.sockets) as admin:
        for most_blocks in (15, 7, 30):
            admin.reserve("vattention", max_bytes=most_blocks * PAGES_PER_BLOCK * PAGE)
            free = min(20, most_blocks) - 5 - 3
            eventually(lambda free=free: vattention.num_free_kvblocks() == free)  # type: ignore[misc]


# alloc_new_batch_idx and free_batch_idx


def test_a_request_of_no_tokens_leaves_its_row_to_the_next() -> None:
    init()
    row = vattention.alloc_new_batch_idx(0)
    assert vattention.alloc_new_batch_idx(0) == row
    assert vattention.alloc_new_batch_idx(10) == row
    assert vattention.alloc_new_batch_idx(10) != row


def test_there_is_no_row_when_all_are_active() -> None:
    init()
    assert sorted(vattention.alloc_new_batch_idx(10) for _ in range(ROWS)) == list(range(ROWS))
    assert vattention.alloc_new_batch_idx(10) == -1
    assert vattention.alloc_new_batch_idx(0) == -1
    vattention.free_batch_idx(2)
    assert vattention.alloc_new_batch_idx(10) == 2


@pytest.mark.parametrize(
    ("length", "row"),
    [(1000, 0), (600, 2), (500, 2), (200, 1), (409, 1)],
    ids=["largest", "not the first that fits", "exact", "smallest", "a page's last byte"],
)
def test_a_request_gets_the_row_whose_pages_fit_best(length: int, row: int) -> None:
    init(total_blocks=200)
    vattention.step([1000, 400, 600, 100], False)
    assert mapped() == [5, 2, 3, 1]
    vattention.step_async([0, 0, 0, 0])
    vattention.step_async([0, 0, 0, 100])
    assert vattention.alloc_new_batch_idx(length) == row


def test_a_row_that_fits_is_found_behind_one_that_does_not() -> None:
    """Upstream looks only for smaller ones than the first."""
    init(total_blocks=200)
    vattention.step([100, 1000, 0, 0], False)
    assert mapped()[:2] == [1, 5]
    vattention.step_async([0] * ROWS)
    assert vattention.alloc_new_batch_idx(900) == 1


def test_alloc_has_the_missing_pages_mapped_in_the_background() -> None:
    init(total_blocks=20)
    row = vattention.alloc_new_batch_idx(700)
    assert mapped()[row] >= blocks(700)
    pages = opened().cache.stats().mapped_pages_total
    vattention.step_async([700 if number == row else 0 for number in range(ROWS)])
    assert opened().cache.stats().mapped_pages_total == pages


def test_a_freed_rows_pages_stay_with_it_and_count_as_free() -> None:
    init(total_blocks=100)
    vattention.step([600, 0, 0, 0], False)
    before = mapped()[0]
    vattention.free_batch_idx(0)
    assert vattention.num_free_kvblocks() == 100
    assert mapped()[0] == before


def test_freeing_twice_is_harmless() -> None:
    init(total_blocks=20)
    row = vattention.alloc_new_batch_idx(300)
    for _ in range(3):
        vattention.free_batch_idx(row)
    vattention.free_batch_idx(3)
    assert vattention.num_free_kvblocks() == 20
    assert vattention.alloc_new_batch_idx(300) == row


@pytest.mark.parametrize("row", [-1, ROWS, 1000])
def test_a_row_that_there_is_not_cannot_be_freed(row: int) -> None:
    init()
    with pytest.raises(InvalidRequest, match=str(row)):
        vattention.free_batch_idx(row)


# step and step_async


@in_each_mode
def test_lengths_alone_make_rows_active(take_step: StepCall) -> None:
    tensors = init(total_blocks=20)
    take_step([0, 1000, 0, 300])
    assert vattention.num_free_kvblocks() == 20 - 5 - 2
    assert vattention.alloc_new_batch_idx(1) in (0, 2)
    write_tokens(tensors, 1, 1, 0, 1000)
    write_tokens(tensors, 3, 3, 0, 300)
    take_step([0] * ROWS)
    assert vattention.num_free_kvblocks() == 20


@in_each_mode
def test_after_a_step_every_token_has_memory(take_step: StepCall) -> None:
    tensors = init(total_blocks=20)
    lengths = [0] * ROWS
    draw = random.Random(1)
    for _ in range(50):
        lengths = [min(CONTEXT, length + draw.randint(0, 60)) for length in lengths]
        take_step(lengths)
        assert all(has >= needs for has, needs in zip(opened().mapped_blocks(), map(blocks, lengths), strict=True))
        for row, length in enumerate(lengths):
            write_tokens(tensors, row, row, 0, length)
    assert all(tokens_are(tensors, row, row, length) for row, length in enumerate(lengths))


def test_a_shorter_request_keeps_its_pages() -> None:
    init(total_blocks=200)
    vattention.step([1000, 0, 0, 0], True)
    vattention.step([100, 0, 0, 0], True)
    assert opened().mapped_blocks()[0] == 5
    assert vattention.num_free_kvblocks() == 199


def test_an_eager_step_leaves_no_page_with_an_inactive_row() -> None:
    init(total_blocks=200)
    vattention.step([300, 1000, 600, 0], False)
    vattention.free_batch_idx(2)
    vattention.step([300, 0, 0, 0], True)
    assert opened().mapped_blocks()[1:] == [0, 0, 0]
    assert opened().mapped_blocks()[0] >= 2


@pytest.mark.parametrize("mode", ["kept", "async"])
def test_other_steps_leave_them(mode: str) -> None:
    init(total_blocks=200)
    STEPS[mode]([300, 1000, 600, 0])
    before = mapped()
    STEPS[mode]([300, 0, 0, 0])
    assert mapped() == before


@in_each_mode
@pytest.mark.parametrize("lengths", [[10] * (ROWS - 1), [10] * (ROWS + 1), [], [10, 10, 10, CONTEXT + 1], [-1] * ROWS])
def test_a_list_that_does_not_fit_the_cache_is_refused(take_step: StepCall, lengths: list[int]) -> None:
    """Upstream reads past a short list, and maps nothing for a request that is too long."""
    init(total_blocks=20)
    take_step([300, 0, 0, 0])
    with pytest.raises(InvalidRequest):
        take_step(lengths)
    assert vattention.num_free_kvblocks() == 18
    assert opened().lengths.tolist() == [300, 0, 0, 0]


def test_a_request_that_is_too_long_gets_no_row() -> None:
    init()
    with pytest.raises(InvalidRequest, match=str(CONTEXT + 1)):
        vattention.alloc_new_batch_idx(CONTEXT + 1)
    assert [vattention.alloc_new_batch_idx(1) for _ in range(ROWS)] == list(range(ROWS))


@in_each_mode
def test_a_step_without_memory_says_so_and_changes_nothing(take_step: StepCall) -> None:
    tensors = init(total_blocks=10)
    before = [1000, 600, 0, 0]
    take_step(before)
    for row in (0, 1):
        write_tokens(tensors, row, row, 0, before[row])
    needed = [blocks(length) for length in before]
    with pytest.raises(RuntimeError) as raised:
        take_step([0, 700, 1000, 600])
    assert "***** OOM on demand: not enough free pages to continue *****" in str(raised.value)
    assert isinstance(raised.value.__cause__, PoolExhausted)
    assert opened().lengths.tolist() == before
    assert vattention.num_free_kvblocks() == 10 - sum(needed)
    assert all(has >= needs for has, needs in zip(mapped(), needed, strict=True))
    assert all(tokens_are(tensors, row, row, before[row]) for row in (0, 1))
    vattention.free_batch_idx(0)
    take_step([0, 700, 1000, 0])
    assert tokens_are(tensors, 1, 1, 600)


@in_each_mode
def test_a_step_has_the_pages_of_the_requests_that_it_ends_and_shortens(take_step: StepCall) -> None:
    tensors = init(total_blocks=10)
    take_step([0, 600, 0, 1000])
    write_tokens(tensors, 1, 1, 0, 600)
    take_step([1000, 600, 0, 0])
    write_tokens(tensors, 0, 7, 0, 1000)
    assert tokens_are(tensors, 1, 1, 600)
    take_step([400, 600, 800, 0])  # 2 + 3 + 4 blocks
    assert tokens_are(tensors, 0, 7, 400)
    assert tokens_are(tensors, 1, 1, 600)
    assert vattention.num_free_kvblocks() == 1


@in_each_mode
def test_no_page_that_a_request_may_need_later_stands_in_the_way_of_one_now(take_step: StepCall) -> None:
    init(total_blocks=12)
    take_step([204, 204, 204, 204])
    assert sum(mapped()) > 4
    take_step([1000, 819, 204, 409])
    assert vattention.num_free_kvblocks() == -2  # of two rows the last tokens fit in what is left of a page
    assert opened().mapped_blocks() == [5, 4, 1, 2]
    assert opened().cache.stats().mapped_bytes == 12 * PAGES_PER_BLOCK * PAGE


def test_step_async_has_the_coming_tokens_mapped_before_they_come() -> None:
    init(total_blocks=20)
    vattention.step_async([200, 0, 0, 0])
    mapped()
    lengths, pages = [200, 0, 0, 0], opened().cache.stats().mapped_pages_total
    vattention.step_async([204, 0, 0, 0])
    assert mapped()[0] == 2
    pages = opened().cache.stats().mapped_pages_total
    for length in range(204, 210):
        lengths[0] = length
        vattention.step_async(lengths)
        assert opened().cache.stats().mapped_pages_total == pages


def test_a_pool_that_others_emptied_is_an_oom_too_and_the_step_can_be_repeated(
    own_vattd: Vattd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VATTD_SOCKET_DIR", str(own_vattd.socket_dir))
    init(total_blocks=100)
    vattention.step([1000, 0, 0, 0], True)
    with vattention.Session.connect("other", socket_dir=own_vattd.socket_dir) as other:
        held = other.lease(other.pool_pages, min_page_count=1)
        with pytest.raises(RuntimeError, match="OOM"):
            vattention.step([1000, 1000, 1000, 1000], True)
        assert opened().lengths.tolist() == [1000, 0, 0, 0]
        vattention.step([0, 1000, 0, 0], True)
        other.give_back(held)
    vattention.step([1000, 1000, 1000, 1000], True)


def test_lengths_may_be_numpys() -> None:
    init(total_blocks=20)
    lengths = np.array([300, 0, 0, 0], dtype=np.int32)
    vattention.step(lengths, True)  # type: ignore[arg-type]
    lengths[0] = 0  # the caller's, not ours
    assert vattention.num_free_kvblocks() == 18


# set_deferred_reclamation, map_common_pages, release_kvcache_physical


def test_without_deferred_reclamation_finished_requests_give_their_pages_back_in_the_background() -> None:
    init(total_blocks=100)
    vattention.step_async([1000, 300, 0, 0])
    vattention.step_async([0, 300, 0, 0])
    assert mapped()[0] == 5
    vattention.set_deferred_reclamation(False)
    assert mapped()[0] == 0
    vattention.step_async([0, 0, 0, 0])
    assert mapped() == [0] * ROWS
    vattention.set_deferred_reclamation(True)
    vattention.step_async([300, 0, 0, 0])
    vattention.step_async([0, 0, 0, 0])
    assert mapped()[0] > 0


def test_what_was_set_before_init_holds_until_cleanup() -> None:
    vattention.set_deferred_reclamation(False)
    for kept in (0, 5):
        init(total_blocks=100)
        vattention.step_async([1000, 0, 0, 0])
        vattention.step_async([0] * ROWS)
        assert mapped()[0] == kept
        vattention.cleanup()


def test_common_pages_are_the_same_in_every_row_and_stay() -> None:
    tensors = init(total_blocks=20)
    vattention.map_common_pages(400)
    assert mapped() == [2] * ROWS
    write_tokens(tensors, 0, 5, 0, 400)
    assert all(tokens_are(tensors, row, 5, 400) for row in range(ROWS))
    vattention.step_async([400] * ROWS)
    assert vattention.num_free_kvblocks() == 18
    write_tokens(tensors, 3, 6, 0, 400)
    vattention.step_async([300] * ROWS)
    assert all(tokens_are(tensors, row, 6, 400) for row in range(ROWS))


def test_common_pages_come_back_once_and_not_once_a_row() -> None:
    """Upstream has them in its pool several times then, and maps them behind several requests."""
    tensors = init(total_blocks=20)
    vattention.map_common_pages(1000)
    vattention.step([1000] * ROWS, True)
    assert vattention.num_free_kvblocks() == 15
    vattention.step([0] * ROWS, True)
    assert mapped() == [0] * ROWS
    assert opened().cache.stats().mapped_bytes == 0
    vattention.step([1000] * ROWS, True)
    assert vattention.num_free_kvblocks() == 0
    for row in range(ROWS):
        write_tokens(tensors, row, row, 0, 1000)
    assert all(tokens_are(tensors, row, row, 1000) for row in range(ROWS))


def test_common_pages_without_memory_are_an_oom_and_change_nothing() -> None:
    init(total_blocks=3)
    with pytest.raises(RuntimeError, match="OOM"):
        vattention.map_common_pages(1000)
    assert mapped() == [0] * ROWS
    vattention.map_common_pages(600)


def test_release_gives_all_pages_back_and_keeps_the_tensors(own_vattd: Vattd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VATTD_SOCKET_DIR", str(own_vattd.socket_dir))
    tensors = init(total_blocks=20)
    vattention.step([1000, 300, 0, 0], True)
    vattention.release_kvcache_physical()
    assert mapped() == [0] * ROWS
    assert vattention.num_free_kvblocks() == 20
    assert opened().cache.stats().mapped_bytes == 0
    vattention.step([0, 700, 0, 0], True)
    write_tokens(tensors, 1, 1, 0, 700)
    assert tokens_are(tensors, 1, 1, 700)


# set_verbose and show_...


def test_nothing_is_printed_unless_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    init(total_blocks=19)
    vattention.step([1000, 0, 0, 0], True)
    vattention.show_allocator_state()
    vattention.show_kvcache_config()
    with pytest.raises(RuntimeError, match="OOM"):
        vattention.step([1000] * ROWS, True)
    vattention.show_allocator_state()  # upstream is verbose from then on
    assert capfd.readouterr().out == ""


def test_the_allocators_state_is_a_line_a_row(capfd: pytest.CaptureFixture[str]) -> None:
    init(total_blocks=20)
    vattention.set_verbose(True)
    vattention.step([1000, 0, 600, 0], True)
    vattention.step([1000, 0, 300, 0], True)
    has = opened().mapped_blocks()
    vattention.show_allocator_state()
    assert capfd.readouterr().out.splitlines() == [
        f"Free pool: {20 - sum(has)} KV blocks",
        "id : seqlen : mapped : required",
        "0 : 1000 : 5 : 5",
        "1 : 0 : 0 : 0",
        f"2 : 300 : {has[2]} : 2",
        "3 : 0 : 0 : 0",
    ]
    vattention.show_kvcache_config()
    assert f"page_size: {PAGE} bytes" in capfd.readouterr().out
    vattention.set_verbose(False)
    vattention.show_kvcache_config()
    assert capfd.readouterr().out == ""


# cleanup, exit, fork, threads


def test_cleanup_gives_all_back_and_init_may_follow(own_vattd: Vattd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VATTD_SOCKET_DIR", str(own_vattd.socket_dir))
    vattention.cleanup()
    init(total_blocks=20)
    vattention.set_verbose(True)
    vattention.alloc_new_batch_idx(1000)
    vattention.step([1000, 0, 300, 0], False)
    vattention.cleanup()
    vattention.cleanup()
    assert own_vattd.pages().get("leased", 0) == 0
    assert not own_vattd.status().sessions
    init()
    assert vattention.num_free_kvblocks() > 20
    assert opened().lengths.tolist() == [0] * ROWS
    assert not upstream._process.is_verbose


EXIT = """
import threading, vattention, torch
vattention.init_kvcache(2, 2, 80, 4, 1000, 0, torch.float16, 65536)
vattention.reserve_physical_pages(80 * 65536)
for length in range(1, 1000, 7):
    vattention.step_async([length] * 2 + [1000 - length, 0])
{end}
"""


@NO_GPU
@pytest.mark.parametrize(
    ("daemon", "end", "status"),
    [
        ("", "", 0),
        ("embedded", "", 0),
        ("", "raise SystemExit(3)", 3),
        ("", "threading.Thread(target=vattention.step_async, args=([9] * 4,)).start()", 0),
    ],
    ids=["falls off the end", "with a vattd of its own", "exits", "a step under way"],
)
def test_a_process_may_end_without_cleanup(daemon: str, end: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VATTENTION_DAEMON", daemon)
    done = subprocess.run(
        [sys.executable, "-c", EXIT.format(end=end)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


FORK = """
import os, signal, threading, warnings
warnings.simplefilter("ignore")  # newer Pythons warn of fork() beside threads, which is what is tested
import torch, vattention
from vattention import upstream
vattention.init_kvcache(2, 2, 80, 4, 1000, 0, torch.float16, 65536)
vattention.step([300, 0, 0, 0], True)
held, over = threading.Event(), threading.Event()
def hold():
    with upstream._process.lock:
        held.set(); over.wait()
threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)
    for call in (
        lambda: vattention.step([1, 0, 0, 0], True), lambda: vattention.step_async([1, 0, 0, 0]),
        vattention.num_free_kvblocks, lambda: vattention.alloc_new_batch_idx(1), lambda: vattention.free_batch_idx(0),
        lambda: vattention.reserve_physical_pages(1), lambda: vattention.map_common_pages(1),
        lambda: vattention.set_verbose(True), lambda: vattention.set_deferred_reclamation(True),
        vattention.show_allocator_state, vattention.release_kvcache_physical,
        lambda: vattention.init_kvcache(2, 2, 80, 4, 1000, 0, torch.float16, 65536),
    ):
        try: call()
        except vattention.ForkedSession: pass
        else: os._exit(1)
    vattention.cleanup()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
over.set()
vattention.step([400, 0, 0, 0], True)
vattention.cleanup()
print("parent done")
"""


@NO_GPU
def test_a_forked_child_is_told_so_even_if_another_thread_was_at_it() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "parent done\n"), done.stderr


def test_several_threads_may_call_at_a_time() -> None:
    init(total_blocks=200)
    failures: list[BaseException] = []

    def serve(seed: int) -> None:
        draw = random.Random(seed)
        try:
            for _ in range(100):
                row = vattention.alloc_new_batch_idx(draw.randint(1, CONTEXT))
                if row != -1:
                    assert vattention.num_free_kvblocks() < 200
                    vattention.free_batch_idx(row)
        except BaseException as error:  # noqa: BLE001  shown below
            failures.append(error)

    threads = [threading.Thread(target=serve, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert vattention.num_free_kvblocks() == 200


# Whole serving loops


@in_each_mode
def test_upstreams_demo_runs(take_step: StepCall) -> None:
    """A row is filled and another begun, every row written each step: vattn_demo_sync.py and vattn_demo_async.py."""
    tensors = init(total_blocks=20)
    lengths = [0] * ROWS
    for row in range(ROWS):
        lengths[row] = 500 + 100 * row
        for _ in range(15):
            take_step(lengths)
            for number, length in enumerate(lengths):
                for tensor in tensors:
                    tensor[number, :length].fill_(1.0)
            lengths = [min(CONTEXT, length + 1) if length else 0 for length in lengths]
    take_step([0] * ROWS)
    assert vattention.num_free_kvblocks() == 20


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_serving_system_with_sarathis_accounting_runs_out_of_memory_only_beyond_its_blocks(
    layout: str, is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VATTENTION_LAYOUT", layout)
    rows = 8
    tensors = vattention.init_kvcache(LAYERS, HEADS, SIZE, rows, CONTEXT, 0, torch.float16, PAGE, layout == "megacache")
    total = vattention.reserve_physical_pages(52 * PAGE) // opened().pages_per_block
    token_bytes = TOKEN * PAGES_PER_BLOCK // opened().pages_per_block
    views = tensors if layout != "megacache" else [part[:, :, layer] for part in tensors for layer in range(LAYERS)]
    loop = ServingLoop(BlockManager(PAGE // token_bytes, total), views, is_async=is_async)
    draw = random.Random(7)
    requests = []
    for seed in range(25):
        prompt = draw.randint(1, 600)
        requests.append(Request(seed, prompt, prompt + draw.randint(1, 120)))
    loop.serve(requests)
    assert len(loop.finished) == 25
    assert loop.preempted_count > 0  # there was less memory than requests
    for lengths in loop.short_lengths:
        assert sum(blocks(length, token_bytes) for length in lengths) > total
    assert vattention.num_free_kvblocks() == total
