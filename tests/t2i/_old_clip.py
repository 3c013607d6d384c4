"""A CLIP text model in the layout of transformers 4: a `text_model` level, and layers that return tuples."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


class OldLayer(nn.Module):
    """A CLIP layer as transformers 4 has it: it returns a tuple."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.mlp, self.self_attn, self.inner = layer.mlp, layer.self_attn, layer.forward

    def forward(self, *args: object, **kwargs: object) -> tuple[object, ...]:
        return (self.inner(*args, **kwargs),)


class OldEncoder(nn.Module):
    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList([OldLayer(x) for x in encoder.layers])

    def forward(self, inputs_embeds: torch.Tensor, attention_mask: object = None, **kwargs: object) -> object:
        for layer in self.layers:
            inputs_embeds = layer(inputs_embeds, attention_mask, **kwargs)[0]
        return SimpleNamespace(last_hidden_state=inputs_embeds)


class OldTextModel(nn.Module):
    """`CLIPTextModel` as transformers 4 has it: a `text_model` level."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text_model = model
        self.config, self.dtype, self.device = model.config, model.dtype, model.device
        model.encoder = OldEncoder(model.encoder)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.embeddings.token_embedding

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.text_model(*args, **kwargs)
