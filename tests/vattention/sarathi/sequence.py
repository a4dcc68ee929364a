"""A request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)
class Sequence:
    """`prompt_len` grows when it is preempted: then what it had generated is computed again, as prompt."""

    seq_id: int
    prompt_len: int
    max_tokens: int  # to generate
    output_len: int = 0
    prompt_tokens_processed: int = 0
    recomputed_count: int = 0
    generated_before: int = 0  # of its prompt: sarathi forgets these, and would generate max_tokens anew

    def __len__(self) -> int:
        return self.prompt_len + self.output_len

    @property
    def is_prefilled(self) -> bool:
        return self.prompt_tokens_processed == self.prompt_len

    @property
    def resident_tokens(self) -> int:
        """Tokens that it has in the cache between two iterations: not yet the one that it generated last. The last
        chunk of a prompt generates none, so the first decode writes the prompt's last token a second time."""
        if not self.is_prefilled:
            return self.prompt_tokens_processed
        return self.prompt_len + max(0, self.output_len - 1)

    @property
    def is_finished(self) -> bool:
        return self.generated_before + self.output_len == self.max_tokens

    @property
    def marker(self) -> int:
        """Of its tokens' values: another after a recompute, so that what its earlier life left is found out."""
        return self.seq_id * 7 + self.recomputed_count

    def reset_for_recompute(self) -> None:
        self.generated_before += self.output_len
        self.prompt_len, self.output_len = len(self), 0
        self.prompt_tokens_processed = 0
        self.recomputed_count += 1


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A sequence in an iteration: `chunk_len` tokens of its prompt, or with 0 its next token."""

    sequence: Sequence
    chunk_len: int

    @property
    def length(self) -> int:
        """Tokens that it has in the cache after the iteration."""
        sequence = self.sequence
        return sequence.prompt_tokens_processed + self.chunk_len if self.chunk_len else len(sequence)
