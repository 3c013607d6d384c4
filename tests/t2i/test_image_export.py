"""Export of a pipeline's edit: an adapter that diffusers loads; what would not load is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from t2i._kit import draw, edit_of, layer_part, tiny_image_host, weights_part

from efface.base.errors import InputError, UnknownName
from efface.deactivate.export import export_edit


def test_an_adapter_that_diffusers_loads(tmp_path: Path) -> None:
    host, prompts = tiny_image_host("sd"), ["a big dog", "a red apple"]
    edit = edit_of(host, weights_part(host, "cross_attention", size=2.0))
    export_edit(edit, tmp_path / "adapter", format="diffusers")
    base = draw(host, prompts)
    with edit.applied(host):
        edited = draw(host, prompts)
    host.pipeline.load_lora_weights(str(tmp_path / "adapter"), weight_name="pytorch_lora_weights.safetensors")
    adapted = draw(host, prompts)
    apart, moved = (adapted.int() - edited.int()).abs().float(), (base.int() - edited.int()).abs().float()
    assert apart.max() <= 1  # products in another order
    assert moved.mean() > 20 * apart.mean()


def test_what_would_not_load_is_refused(tmp_path: Path) -> None:
    host = tiny_image_host("sd")
    weights, hook, text = (
        edit_of(host, p) for p in (weights_part(host, "cross_attention"), layer_part(host), weights_part(host, "text_mlp"))
    )
    for edit, format, error, says in (
        (weights, "lora", InputError, "this edit is of a pipeline: use diffusers"),
        (hook, "diffusers", InputError, "no permanent form"),
        (hook, "lora", InputError, "no permanent form"),
        (weights, "diffuser", UnknownName, "nearest: diffusers"),
        (text, "diffusers", InputError, "changes text_encoder, and such an adapter would hold the denoiser alone"),
        (text, "lora", InputError, "this edit is of a pipeline"),
    ):
        with pytest.raises(error, match=says):
            export_edit(edit, tmp_path / "x", format=format)
        assert not (tmp_path / "x").exists()
    export_edit(text, tmp_path / "plain", format="safetensors")
    tensors = load_file(tmp_path / "plain" / "edit.safetensors")
    name, delta = next(iter(text.weights[0].deltas.items()))
    assert torch.equal(tensors[f"{name}.B"].double() @ tensors[f"{name}.A"].double(), delta.delta())
