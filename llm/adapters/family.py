"""What an adapter answers: where a family of language models keeps its layers, MLP matrices, norms and embeddings."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Module paths of one family. Paths of `model` start at the causal LM, all others at one of its layers."""

    name: str
    """Name of the family."""
    model_types: tuple[str, ...]
    """`config.model_type` of the models it serves."""
    base: str
    """The backbone: embeddings, layers and final norm, without the unembedding."""
    layers: str
    """The list of layers."""
    final_norm: str
    """The norm in front of the unembedding."""
    mlp: str
    """The MLP block; its input is `mlp_in`."""
    down: str
    """The down-projection; its input is `mlp_hidden`, its output `mlp_out`."""
    up: str
    """The up-projection."""
    attention: str
    """The attention block."""
    gate: str | None = None
    """The gate projection of a gated MLP."""
    post_norm: str | None = None
    """The norm behind the MLP, where there is one; its output is `mlp_post`."""
    gain_offset: float = 0.0
    """What the norms add to their weight: the gain of Gemma's RMSNorm is 1 + weight."""
    transposed: bool = False
    """Projections are `Conv1D` with weight [in out] instead of `Linear` with weight [out in]."""
