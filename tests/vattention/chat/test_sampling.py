"""Which token is chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vattention.chat.sampling import InvalidSampling, Sampler, Sampling

CPU = torch.device("cpu")
LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0])


def shares(sampling: Sampling, draws: int = 4000) -> list[float]:
    """How often each token is chosen."""
    sampler = Sampler(sampling, CPU)
    chosen = torch.tensor([sampler.choose(LOGITS) for _ in range(draws)])
    return [float((chosen == token).float().mean()) for token in range(len(LOGITS))]


def test_without_temperature_the_likeliest_token_is_chosen() -> None:
    assert shares(Sampling(), draws=3) == [0, 1, 0, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_tokens_are_chosen_as_often_as_they_are_likely(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(0).tolist()
    assert shares(Sampling(temperature=temperature, seed=5)) == pytest.approx(expected, abs=0.03)


def test_top_p_leaves_the_likeliest_tokens() -> None:
    probabilities = LOGITS.softmax(0)
    expected = (probabilities / probabilities[1:3].sum()).tolist()
    got = shares(Sampling(temperature=1.0, top_p=0.85, seed=5))
    assert got[0] == got[3] == 0
    assert got[1:3] == pytest.approx(expected[1:3], abs=0.03)


def test_without_a_seed_answers_differ() -> None:
    runs = {tuple(shares(Sampling(temperature=1.0), draws=50)) for _ in range(5)}
    assert len(runs) > 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("seed", -1),
        ("max_tokens", 0),
        ("stop", ("",)),
        ("stop", "x"),
    ],
)
def test_values_without_a_meaning_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidSampling, match=f"{field} is .*: give") as refused:
        Sampling(**{field: value})
    assert refused.value.field == field
