"""GPT-2: `Conv1D` projections with weight [in out], no gate."""

from .family import Family

GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    base="transformer",
    layers="transformer.h",
    final_norm="transformer.ln_f",
    mlp="mlp",
    down="mlp.c_proj",
    up="mlp.c_fc",
    attention="attn",
    transposed=True,
)
