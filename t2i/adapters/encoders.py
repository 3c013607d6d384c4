"""Text encoders: CLIP in the layouts of transformers 4 and 5, and T5.

In transformers 5 `CLIPTextModel` has no `text_model` level and its layers return bare tensors; `CLIPTextModelWithProjection`
has kept the level. In transformers 4 the level is always there, and layers return tuples.
"""

from .family import Encoder

CLIP = Encoder(
    name="clip",
    model_types=("clip_text_model",),
    layers=("text_model.encoder.layers", "encoder.layers"),
    mlp="mlp",
    down="mlp.fc2",
    attention="self_attn",
    causal=True,
)
T5 = Encoder(
    name="t5",
    model_types=("t5",),
    layers=("encoder.block",),
    mlp="layer.1.DenseReluDense",
    down="layer.1.DenseReluDense.wo",
    attention="layer.0.SelfAttention",
)
ENCODERS = (CLIP, T5)
