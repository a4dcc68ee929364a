"""The functions of microsoft/vattention's module, over pages that vattd lends.

A serving system that was written for that module finds here what it calls, by position, with the effects it counts on:
`import vattention` and go on. There is one KV cache a process, as there. Where upstream ends the process, reads past a
list or maps nothing, these raise. They may be called from any thread, one at a time gets in.

VATTENTION_TENANT names the tenant ("vattention" by default), and VATTENTION_LAYOUT the layout in memory where the
caller asks for no megacache; vattd is found as by Session.connect.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from vatt.errors import InvalidRequest
from vattention import fork_guard
from vattention.config import read_upstream_config
from vattention.integers import as_integer
from vattention.kv_blocks import KVBlocks
from vattention.layout import KVCacheSpec, Layout
from vattention.rows import SHORT
from vattention.session import Session
from vattention.vmm import default_device, device_uuid

OUT_OF_PAGES = "***** OOM on demand: not enough free pages to continue *****"


@dataclass(frozen=True, slots=True)
class _Open:
    """What init_kvcache made."""

    birth: fork_guard.Birth
    session: Session
    blocks: KVBlocks


class _Process:
    """What a process has one of."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        self.open: _Open | None = None
        self.is_verbose = False
        self.keeps_finished = True

    def check_birth(self) -> None:
        """Comes before the lock: in a forked child another thread may have it for ever."""
        opened = self.open
        if opened is not None:
            opened.birth.check()


_process = _Process()


@contextmanager
def _blocks() -> Iterator[KVBlocks]:
    """The process's cache, for one caller at a time. Want of memory is a RuntimeError, as upstream's callers expect."""
    _process.check_birth()
    with _process.lock:
        if _process.open is None:
            raise RuntimeError("there is no KV cache: call init_kvcache first")
        try:
            yield _process.open.blocks
        except SHORT as error:
            raise RuntimeError(f"{OUT_OF_PAGES} ({error})") from error


# Making and ending


def init_kvcache(
    num_layers: int,
    num_kv_heads: int,
    head_size: int,
    max_batch_size: int,
    max_context_length: int,
    device: int,
    dtype: torch.dtype,
    page_size: int,
    megacache: bool = False,
    /,
) -> list[torch.Tensor]:
    """Reserve addresses for a model's K and V, and return tensors over them. Nothing is mapped: step() does that.

    K of every layer, then V of every layer, each [max_batch_size, max_context_length, num_kv_heads, head_size]; with
    `megacache` K and V, each [max_batch_size, max_context_length, num_layers, num_kv_heads, head_size]. Rows start on
    pages, so a row's stride may be more than its tokens take.

    `device` is a GPU's number; on a machine without a GPU, 0 is its memory. `page_size` counts bytes: vattd's page size
    or a multiple of it. A bool in its place is the `use_uvm` of old callers: then it is vattd's.
    Raises InvalidRequest, RuntimeError if there is a KV cache already, and what Session.connect raises.
    """
    _process.check_birth()
    with _process.lock, ExitStack() as undo:
        if _process.open is not None:
            raise RuntimeError("there is a KV cache already: call cleanup before another init_kvcache")
        config = read_upstream_config()
        believed = Layout.MEGACACHE if megacache else Layout.PER_LAYER
        spec = KVCacheSpec(
            num_layers,
            num_kv_heads,
            head_size,
            dtype,
            max_batch_size,
            max_context_length,
            layout=believed if megacache else Layout(config.layout),
            page_size_bytes=None if isinstance(page_size, bool) else page_size,
        )
        session = Session.connect(config.tenant, device=_device_name(device), page_size_bytes=spec.page_size_bytes)
        undo.callback(session.close)
        blocks = KVBlocks(session, spec, counted_as=believed)
        blocks.keep_finished(keep=_process.keeps_finished)
        cache = blocks.cache
        pairs = [cache.layer(layer) for layer in range(num_layers)]
        tensors = cache.tensors() if megacache else [pair[kind] for kind in (0, 1) for pair in pairs]
        _process.open = _Open(fork_guard.Birth(), session, blocks)
        undo.pop_all()
    return tensors


def _device_name(ordinal: int) -> str:
    ordinal = as_integer(ordinal, "device")
    if ordinal < 0:
        raise InvalidRequest(f"device {ordinal}: devices are numbered from 0")
    if default_device() != "host":
        return device_uuid(str(ordinal))
    if ordinal > 0:
        raise InvalidRequest(f"device {ordinal}: this machine has no GPU that works; device 0 is its memory")
    return "host"


def cleanup() -> None:
    """Give every page and address back and forget the KV cache and all settings. No tensor may be used any more.

    Without a KV cache it does nothing, and nothing in a forked child. A process may end without it.
    """
    opened = _process.open
    if opened is not None and not opened.birth.is_here:
        return
    with _process.lock:
        opened = _process.open
        _process.reset()
        if opened is not None:
            opened.session.close()


def release_kvcache_physical() -> None:
    """End every request and give all pages back; the tensors and their addresses stay, for new requests."""
    with _blocks() as blocks:
        blocks.release()


# Memory


def reserve_physical_pages(free_memory: int, /) -> int:
    """Let the KV cache have so many bytes, rounded down to whole KV blocks: how many pages that is.

    This is a limit that num_free_kvblocks counts with; no memory is taken yet, since other tenants share the pool. What
    vattd's pool, or the tenant's max, could not lend is not counted for as long as that is so. A step may find the pool
    short within the limit: keep memory for a tenant with `vattctl reserve NAME --min SIZE --hard`. A second call may
    raise the limit and never lowers it.
    """
    with _blocks() as blocks:
        return blocks.reserve(free_memory)


def num_free_kvblocks() -> int:
    """KV blocks that the lengths of the active requests leave: it falls with alloc_new_batch_idx and rises with
    free_batch_idx, whatever is mapped at the moment, and follows the tenant's max. Negative where more was promised
    than there is: a scheduler that goes on only above 0 so preempts as many requests as it must.

    A KV block is what upstream counts, whatever VATTENTION_LAYOUT: 2 * num_layers pages, 2 in a megacache, for as many
    whole tokens as fit in a page. So a scheduler that counts by itself promises no block twice. What is mapped may be
    less: pages are filled to the last byte, and in the fused layout by all layers.
    Before reserve_physical_pages the total is what the pool could ever lend.
    """
    with _blocks() as blocks:
        return blocks.free_blocks


def set_deferred_reclamation(deferred: bool, /) -> None:
    """Whether finished requests' pages stay with their rows, up to a limit, for the next ones (the default); else they
    go back in the background."""
    _process.check_birth()
    with _process.lock:
        _process.keeps_finished = bool(deferred)
        if _process.open is not None:
            _process.open.blocks.keep_finished(keep=_process.keeps_finished)


def map_common_pages(num_tokens: int, /) -> None:
    """Map pages for so many tokens at the end of every row, the same ones in all of them: for measurements."""
    with _blocks() as blocks:
        blocks.cache.map_common(num_tokens)


# Requests


def alloc_new_batch_idx(seqlen: int, /) -> int:
    """A row for a new request of so many tokens, or -1 if all are active: the one whose kept pages fit it best.

    It is active from now on, and what it lacks is mapped in the background; step() makes sure of it. With seqlen 0 it
    stays inactive, and is the answer of the next call as well.
    """
    with _blocks() as blocks:
        return -1 if blocks.is_full else blocks.allocate(seqlen)


def free_batch_idx(idx: int, /) -> None:
    """End a row's request. Its pages count as free at once; they stay until somebody needs them, or go back as the
    settings say. Of an inactive row it changes nothing. Raises InvalidRequest if there is no such row."""
    with _blocks() as blocks:
        blocks.free(idx)


def step(seq_lens: Sequence[int], eager_reclaim: bool, /) -> None:
    """Have so many tokens of every row mapped on return: one number for each of max_batch_size rows, 0 if inactive.

    A shorter length than before unmaps nothing. With `eager_reclaim`, inactive rows have no pages on return; else they
    keep theirs. Raises RuntimeError if the memory does not suffice: all is as before then, so that some requests may be
    ended and the step repeated. Raises InvalidRequest for a list of another length and past max_context_length.
    """
    with _blocks() as blocks:
        blocks.step(seq_lens)
        if eager_reclaim:
            blocks.cache.release_idle()


def step_async(seq_lens: Sequence[int], /) -> None:
    """As step(), without unmapping; the coming tokens' pages are mapped in the background while the model computes."""
    with _blocks() as blocks:
        blocks.step(seq_lens)


# Looking


def set_verbose(verbose: bool, /) -> None:
    """Whether the show_... functions print."""
    _process.check_birth()
    with _process.lock:
        _process.is_verbose = bool(verbose)


def show_kvcache_config() -> None:
    with _blocks() as blocks:
        spec, geometry = blocks.cache.spec, blocks.cache.geometry
        _say(
            f"num_layers: {spec.num_layers}",
            f"num_kv_heads: {spec.num_kv_heads}",
            f"head_size: {spec.head_size}",
            f"dtype: {spec.dtype}",
            f"max_batch_size: {spec.max_batch_size}",
            f"max_context_length: {spec.max_context_length}",
            f"device: {blocks.cache.device}",
            f"layout: {geometry.layout.value}",
            f"page_size: {geometry.page_size_bytes} bytes",
            f"pages per KV block: {blocks.pages_per_block}",
            f"KV blocks: {blocks.total_blocks}",
            f"virtual memory: {geometry.virtual_bytes} bytes",
        )


def show_allocator_state() -> None:
    with _blocks() as blocks:
        rows = zip(blocks.lengths.tolist(), blocks.mapped_blocks(), blocks.needed_blocks(), strict=True)
        _say(
            f"Free pool: {blocks.unmapped_blocks} KV blocks",
            "id : seqlen : mapped : required",
            *(f"{row} : {length} : {mapped} : {needed}" for row, (length, mapped, needed) in enumerate(rows)),
        )


def _say(*lines: str) -> None:
    if _process.is_verbose:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
