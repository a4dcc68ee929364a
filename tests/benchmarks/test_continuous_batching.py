"""The measurement runs, and refuses to compare what is not the same."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from benchmarks import continuous_batching


@pytest.fixture(autouse=True)
def as_before_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    gc.unfreeze()


def test_both_ways_say_the_same_and_pages_are_fewer(capsys: pytest.CaptureFixture[str]) -> None:
    continuous_batching.main(["--pairs", "1", "--requests", "4", "--layers", "1", "--longest-tokens", "128"])
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "MiB" in line]
    (_, _, own, paged, _, _), _ = rows
    assert float(paged.split()[0]) < float(own.split()[0]) == round((4 * 4 + 2) * 32 * 2 * 4 * 32 * 4 / (1 << 20), 1)


def test_other_tokens_end_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    run = continuous_batching.run

    def forgetful(*arguments: object) -> continuous_batching.Run:
        done = run(*arguments)  # type: ignore[arg-type]
        if arguments[-1] is not None:
            done.tokens[0][-1] += 1
        return done

    monkeypatch.setattr(continuous_batching, "run", forgetful)
    with pytest.raises(RuntimeError, match="other tokens"):
        continuous_batching.main(["--pairs", "1", "--requests", "2", "--layers", "1", "--longest-tokens", "64"])
