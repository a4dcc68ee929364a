"""The beginning of a conversation whose keys and values are kept."""

from __future__ import annotations

from collections.abc import Sequence

from transformers.cache_utils import Cache

from vatt.errors import InvalidRequest
from vattention.chat.memory import Memory


class Prefix:
    """Tokens of one conversation, and the cache that holds their keys and values.

    Its memory may be given up at any time between two steps: what was there is then computed anew by whoever goes on.
    Invariant: the cache holds exactly `token_ids`. `last_used` orders prefixes by their last use.
    """

    def __init__(self, memory: Memory, *, is_owned: bool) -> None:
        """`is_owned`: by a conversation; else whoever begins with the same tokens may go on from it."""
        self._memory = memory
        self.is_owned = is_owned
        self.cache: Cache = memory.new_cache()
        self.token_ids: list[int] = []
        self.last_used = 0

    @property
    def length(self) -> int:
        return len(self.token_ids)

    @property
    def holds_slot(self) -> bool:
        return self._memory.holds_slot(self.cache)

    def common(self, token_ids: Sequence[int]) -> int:
        """How many tokens at the beginning are the same."""
        pairs = zip(self.token_ids, token_ids, strict=False)
        return next((at for at, (mine, theirs) in enumerate(pairs) if mine != theirs), min(self.length, len(token_ids)))

    def keep_common(self, token_ids: Sequence[int]) -> int:
        """Forget what does not begin `token_ids`, and its last token: the logits after it are wanted. What is left."""
        keep = min(self.common(token_ids), len(token_ids) - 1)
        if keep < self.length and not self.cache.is_croppable:
            keep = 0
        if keep == 0:  # also what an error left
            self.give_up()
        elif keep < self.length:
            try:
                self.cache.crop(keep - self.length)
            except (InvalidRequest, RuntimeError):  # a layer with a sliding window, which has passed on
                self.give_up()
            del self.token_ids[keep:]
        return self.length

    def give_up(self) -> None:
        """Let go of the slot and all that it holds."""
        self.token_ids.clear()  # first: after an error below nobody goes on from what may be gone
        if self.holds_slot:
            self.cache = self._memory.emptied(self.cache)
