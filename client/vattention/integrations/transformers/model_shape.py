"""What a model's configuration says about the cache it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from transformers import PreTrainedConfig
from transformers.cache_utils import get_layer_types_and_kwargs

from vatt.errors import InvalidRequest

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """KV heads and head size of the layers that look back at every token, and which layers those are."""

    windows: tuple[int | None, ...]  # of each layer, in tokens; None: it looks back at every token
    num_kv_heads: int
    head_size: int
    max_context_length: int | None  # tokens; None: the model does not say
    needs_contiguous_keys: bool

    @classmethod
    def of(cls, config: PreTrainedConfig) -> ModelShape:
        """Raises InvalidRequest for a model that a VattCache is not for."""
        if config.is_encoder_decoder:
            _refuse(config, "is an encoder with a decoder, and VattCache is for decoders alone", "EncoderDecoderCache")
        config = config.get_text_config(decoder=True)
        if getattr(config, "kv_lora_rank", None) is not None:
            _refuse(config, "keeps latent vectors (kv_lora_rank), and VattCache holds keys and values of one size")
        if hasattr(config, "multi_query") or hasattr(config, "num_kv_heads"):  # falcon, gpt_bigcode
            _refuse(config, "says in words of its own how many KV heads it has")
        if config.model_type == "mpt":
            _refuse(config, "gives the cache its whole input again with each token")
        windows = _windows(config)
        num_kv_heads, head_size = _one_kv_shape(config, windows)
        # Without heads that share, eager attention gives keys to torch.matmul as they are. It would copy a view with
        # gaps itself, but into another order, in which sums round otherwise than DynamicCache's.
        eager = config._attn_implementation == "eager"
        return cls(
            windows,
            num_kv_heads,
            head_size,
            getattr(config, "max_position_embeddings", None),
            needs_contiguous_keys=eager and num_kv_heads == config.num_attention_heads,
        )


def _windows(config: PreTrainedConfig) -> tuple[int | None, ...]:
    layer_types, options = get_layer_types_and_kwargs(config)
    others = sorted(set(layer_types) - {FULL, SLIDING})
    if others:
        _refuse(config, f"has layers of type {', '.join(others)}, and VattCache holds {FULL} and {SLIDING} only")
    if FULL not in layer_types:
        window = max(option["sliding_window"] for option in options)
        _refuse(
            config,
            f"looks back {window} tokens at most in every layer, so none would be in vattd's pages and no layer grows",
        )
    return tuple(option.get("sliding_window") for option in options)


def _one_kv_shape(config: PreTrainedConfig, windows: Sequence[int | None]) -> tuple[int, int]:
    """KV heads and head size of the layers without a window."""
    shapes = {
        number: kv_shape(layer)
        for number, (layer, window) in enumerate(zip(config.per_layer_config, windows, strict=True))
        if window is None
    }
    first, shape = next(iter(shapes.items()))
    for number, other in shapes.items():
        if other != shape:
            _refuse(
                config,
                f"has KV heads x size {shape} in layer {first} and {other} in layer {number}, and VattCache holds one",
            )
    return shape


def kv_shape(config: PreTrainedConfig) -> tuple[int, int]:
    heads = config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return num_kv_heads, head_size


def _refuse(config: PreTrainedConfig, why: str, instead: str = "DynamicCache") -> NoReturn:
    raise InvalidRequest(f"{config.model_type} {why}: use transformers.{instead} for this model")
