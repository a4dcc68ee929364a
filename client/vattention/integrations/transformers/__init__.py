"""A cache for `model.generate` whose keys and values live in pages that vattd lends.

    with VattCache.for_model(model, session, max_batch_size=4, max_context_length=8192) as cache:
        model.generate(**inputs, past_key_values=cache)

Tokens and logits are those of `transformers.DynamicCache`, bit for bit. A row of the batch is a slot of the KVCache;
all rows are as long as the batch (a shorter prompt is padded on the left, as for any other cache), and grow together.
"""

from vattention.integrations.transformers.batch_layer import BatchLayer
from vattention.integrations.transformers.cache import VattCache
from vattention.integrations.transformers.model_shape import ModelShape
from vattention.integrations.transformers.paged_layer import PagedLayer
from vattention.integrations.transformers.window_layer import WindowLayer

__all__ = ["BatchLayer", "ModelShape", "PagedLayer", "VattCache", "WindowLayer"]
