"""Llama and the families of the same layout: SmolLM2, Mistral, Qwen2, Qwen3."""

from .family import Family

LLAMA = Family(
    name="llama",
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    base="model",
    layers="model.layers",
    final_norm="model.norm",
    mlp="mlp",
    down="mlp.down_proj",
    up="mlp.up_proj",
    gate="mlp.gate_proj",
    attention="self_attn",
)
