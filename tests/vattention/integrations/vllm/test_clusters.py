"""Which blocks to use next, against a model that looks at every block."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vatt.pages import LedgerBug
from vattention.integrations.vllm.clusters import Clusters

# True takes a block; a number drops one of those taken.
ACTIONS = st.lists(st.one_of(st.just(True), st.integers(0, 1000)), max_size=80)


@given(st.integers(1, 40), st.integers(1, 7), ACTIONS)
def test_clusters_are_as_a_look_at_every_block_says(
    block_count: int, cluster_blocks: int, actions: list[bool | int]
) -> None:
    clusters = Clusters(block_count, cluster_blocks)
    taken: set[int] = set()
    for action in actions:
        if action is True and len(taken) < block_count:
            open_before = {block // cluster_blocks for block in taken}
            bare = [block for block in range(block_count) if block not in taken]
            rides = [block for block in bare if block // cluster_blocks in open_before]
            assert clusters.take() == min(rides or bare)  # what costs nothing first, and the lowest
            taken.add(min(rides or bare))
        elif action is not True and taken:
            block = sorted(taken)[action % len(taken)]
            clusters.drop(block)
            taken.remove(block)
        open_now = {block // cluster_blocks for block in taken}
        in_open = [block for block in range(block_count) if block // cluster_blocks in open_now]
        assert clusters.open_count == len(open_now)
        assert clusters.taken_count == len(taken)
        assert clusters.bare_count == block_count - len(taken)
        assert clusters.rides == len(in_open) - len(taken)


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 10), st.integers(0, 40))
def test_room_is_what_so_many_clusters_can_give_and_no_block_less(
    block_count: int, cluster_blocks: int, cluster_count: int, taken: int
) -> None:
    clusters = Clusters(block_count, cluster_blocks)
    for _ in range(min(taken, block_count)):
        clusters.take()
    opened = clusters.open_count
    for _ in range(clusters.room(cluster_count)):
        clusters.take()
    assert clusters.open_count <= opened + cluster_count
    if clusters.bare_count:
        clusters.take()
        assert clusters.open_count > opened + cluster_count


def test_what_is_not_taken_cannot_be_dropped_and_no_more_taken_than_there_is() -> None:
    clusters = Clusters(2, 2)
    with pytest.raises(LedgerBug):
        clusters.drop(0)
    clusters.take()
    clusters.take()
    with pytest.raises(LedgerBug):
        clusters.take()
