"""GPT-NeoX (Pythia): attention and MLP side by side on the same residual, no gate."""

from .family import Family

GPT_NEOX = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    base="gpt_neox",
    layers="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    mlp="mlp",
    down="mlp.dense_4h_to_h",
    up="mlp.dense_h_to_4h",
    attention="attention",
)
