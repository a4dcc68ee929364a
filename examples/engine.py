"""One engine process of the demo: a model, a tenant's prompts, and two caches to compare.

Started by examples.demo, which says what to run when (see examples.messages): both engines work at the same time.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

from examples import smollm2
from examples.messages import VATT, Answer, Finish, Finished, Message, Progress, Ready, Result, Run
from examples.messages import decode as decode_message
from examples.messages import encode as encode_message
from vattention.integrations.transformers import VattCache
from vattention.session import Session

MAX_BATCH_SIZE = 4
# Prompts of like length share a batch, as long as the padding keeps it below this.
MAX_BATCH_TOKENS = 1300
REPORT_EVERY_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Prompt:
    text: str
    token_ids: list[int]


class ReportProgress(StoppingCriteria):
    """Stops nothing: generate asks it after every token, and it counts them."""

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        tokens = input_ids.shape[1] - self._prompt_tokens
        if tokens % REPORT_EVERY_TOKENS == 0:
            say(Progress(tokens))
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class Engine:
    """Runs batches of one tenant's prompts, greedily."""

    def __init__(self, model: Any, tokenizer: Any, prompts: list[Prompt], cache: VattCache, new_tokens: int) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._cache = cache
        self._new_tokens = new_tokens
        self.batches = in_batches(prompts)

    def run(self, index: int, cache_name: str) -> Result:
        """Generate for a batch. The time includes taking the cache's memory and giving it back."""
        prompts = self.batches[index]
        inputs = self._tokenizer.pad({"input_ids": [prompt.token_ids for prompt in prompts]}, return_tensors="pt")
        inputs = inputs.to(self._model.device)
        prompt_tokens = inputs["input_ids"].shape[1]
        say(Progress(0))
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        cache = self._cache if cache_name == VATT else DynamicCache(config=self._model.config)
        sequences = self._model.generate(
            **inputs,
            past_key_values=cache,
            max_new_tokens=self._new_tokens,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([ReportProgress(prompt_tokens)]),
        )
        cache.reset()
        duration_s, cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
        rows = sequences[:, prompt_tokens:].tolist()
        answers = [self._answer(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]
        return Result(index, cache_name, duration_s, cpu_s, answers)

    def warm_up(self) -> None:
        """Let torch choose its kernels before anything is timed."""
        tokens = torch.ones((1, 8), dtype=torch.long, device=self._model.device)
        for cache in (self._cache, DynamicCache(config=self._model.config)):
            inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
            self._model.generate(**inputs, past_key_values=cache, max_new_tokens=2, do_sample=False)
            cache.reset()

    def _answer(self, prompt: Prompt, row: list[int]) -> Answer:
        end = self._tokenizer.eos_token_id
        ended = end in row
        if ended:  # what follows is padding
            row = row[: row.index(end) + 1]
        text = self._tokenizer.decode(row, skip_special_tokens=True).strip()
        return Answer(prompt.text, len(prompt.token_ids), text if ended else f"{text} [...]", row)


def in_batches(prompts: list[Prompt]) -> list[list[Prompt]]:
    """Shortest first, prompts of like length together: a batch is as long as its longest."""
    batches: list[list[Prompt]] = []
    for prompt in sorted(prompts, key=lambda prompt: len(prompt.token_ids)):
        full = not batches or len(batches[-1]) == MAX_BATCH_SIZE
        if full or (len(batches[-1]) + 1) * len(prompt.token_ids) > MAX_BATCH_TOKENS:
            batches.append([])
        batches[-1].append(prompt)
    return batches


def read_prompts(path: Path, tokenizer: Any) -> list[Prompt]:
    """Prompts are parted by lines of three dashes."""
    texts = [text.strip() for text in path.read_text(encoding="utf-8").split("\n---\n")]

    def tokens_of(text: str) -> list[int]:
        chat = [{"role": "user", "content": text}]
        ids: list[int] = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        return ids

    return [Prompt(text, tokens_of(text)) for text in texts]


def say(message: Message) -> None:
    sys.stdout.write(encode_message(message))
    sys.stdout.flush()


@click.command()
@click.option("--tenant", required=True)
@click.option("--socket-dir", type=click.Path(path_type=Path), required=True)
@click.option("--prompts", type=click.Path(path_type=Path), required=True)
@click.option("--new-tokens", type=int, required=True)
@click.option("--threads", type=int, required=True)
def main(tenant: str, socket_dir: Path, prompts: Path, new_tokens: int, threads: int) -> None:
    """Serve one tenant, until told to finish or left alone."""
    torch.set_num_threads(threads)
    tokenizer, model = smollm2.load(smollm2.model_dir())
    with (
        Session.connect(tenant, socket_dir=socket_dir, client_name="vattd demo") as session,
        VattCache.for_model(model, session, max_batch_size=MAX_BATCH_SIZE) as cache,
    ):
        engine = Engine(model.to(cache.kv_cache.device), tokenizer, read_prompts(prompts, tokenizer), cache, new_tokens)
        engine.warm_up()
        spec = cache.kv_cache.spec
        say(
            Ready(
                batches=[[len(prompt.token_ids) for prompt in batch] for batch in engine.batches],
                token_bytes=spec.token_bytes,
                max_batch_size=spec.max_batch_size,
                max_context_length=spec.max_context_length,
                dtype=str(spec.dtype).removeprefix("torch."),
                static_reservation_bytes=spec.static_reservation_bytes,
            )
        )
        for line in sys.stdin:
            message = decode_message(line)
            if isinstance(message, Finish):
                break
            if isinstance(message, Run):
                say(engine.run(message.batch, message.cache))
    say(Finished())


if __name__ == "__main__":
    main()
