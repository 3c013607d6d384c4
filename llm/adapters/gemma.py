"""Gemma 2 and the text models of Gemma 3: a norm before and behind each block, gain 1 + weight."""

from .family import Family

GEMMA = Family(
    name="gemma",
    model_types=("gemma2", "gemma3_text"),
    base="model",
    layers="model.layers",
    final_norm="model.norm",
    mlp="mlp",
    down="mlp.down_proj",
    up="mlp.up_proj",
    gate="mlp.gate_proj",
    attention="self_attn",
    post_norm="post_feedforward_layernorm",
    gain_offset=1.0,
)
