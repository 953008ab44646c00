"""Attention as plain matrix products, which a CPU trains faster than the fused kernel, and which can show its
weights."""

import torch
from transformers import AttentionInterface

PLAIN = "plain"


def attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
    """A module that has `keep_weights` set finds its weights, [batch, heads, queries, keys], in
    `module.weights`."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    keep = getattr(module, "keep_weights", False)
    if query.device.type == "cuda" and not keep:
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attention_mask, scale=scaling
        )
        return out.transpose(1, 2), None
    scores = (query * scaling) @ key.mT
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, -1)
    if keep:
        module.weights = weights
    return (weights @ value).transpose(1, 2), None


AttentionInterface.register(PLAIN, attend)
