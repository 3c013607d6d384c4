"""An exported adapter in peft gives the logits of the edit."""

import json
from pathlib import Path

import pytest
import torch
from deactivate._kit import CONCEPT, dense_edit, low_rank, small_sae, tiny_host, weights_edit
from peft import PeftModel
from safetensors.torch import load_file

from efface.base.errors import InputError, UnknownName
from efface.deactivate.edit import Edit
from efface.deactivate.export import export_edit
from efface.deactivate.layer import DeactivationPart
from efface.deactivate.parts import Dense, WeightsPart

IDS = torch.tensor([[1, 90, 120, 140], [1, 100, 110, 130]])
MASK = torch.ones_like(IDS)
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # 2026-11: peft 0.21 with transformers 5.23


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@torch.no_grad()
def test_peft_gives_the_same_logits(tmp_path: Path, family: str) -> None:
    host = tiny_host(family)
    edit = weights_edit(host, layers=(0, 1, 2))
    base = host.logits(IDS, MASK)
    with edit.applied(host):
        want = host.logits(IDS, MASK)
    export_edit(edit, tmp_path / "lora", format="lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 4
    assert sorted(config["rank_pattern"].values()) == [2, 3]
    got = PeftModel.from_pretrained(host.model, tmp_path / "lora").eval()(input_ids=IDS, attention_mask=MASK).logits
    assert (got - want).abs().max() < 1e-4 < (base - want).abs().max()


@torch.no_grad()
def test_parts_on_one_tensor_and_dense_changes(tmp_path: Path) -> None:
    host = tiny_host()
    name, weight, _ = host.down_proj(0)
    dense = WeightsPart({name: Dense(0.1 * torch.randn(weight.shape))})
    edit = Edit([WeightsPart(low_rank(host, 0, 1)), WeightsPart(low_rank(host, 0, 2)), dense], "x", {}, [CONCEPT]).bound(host)
    low = Edit(edit.parts[:2], "x").bound(host)
    for n, e in enumerate((edit, low)):
        with e.applied(host):
            want = host.logits(IDS, MASK)
        export_edit(e, tmp_path / f"{n}")
        tuned = PeftModel.from_pretrained(host.model, tmp_path / f"{n}").eval()
        assert (tuned(input_ids=IDS, attention_mask=MASK).logits - want).abs().max() < 1e-4
        tuned.unload()
    assert json.loads((tmp_path / "1" / "adapter_config.json").read_text())["r"] == 4


def test_safetensors(tmp_path: Path) -> None:
    host = tiny_host()
    edit = weights_edit(host)
    export_edit(edit, tmp_path / "st", format="safetensors")
    tensors = load_file(tmp_path / "st" / "edit.safetensors")
    for name, delta in edit.weights[0].deltas.items():
        assert torch.equal(tensors[f"{name}.B"].double() @ tensors[f"{name}.A"].double(), delta.delta())
    assert (tmp_path / "st" / "README.md").is_file()


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    host = tiny_host()
    cases = [
        (lambda: export_edit(weights_edit(host), tmp_path / "x", format="lorra"), UnknownName, "nearest: lora"),
        (
            lambda: export_edit(weights_edit(host), tmp_path / "x", format="diffusers"),
            InputError,
            "lora or safetensors",
        ),
        (
            lambda: export_edit(dense_edit(host, "model.norm.weight"), tmp_path / "x"),
            InputError,
            "--format safetensors",
        ),
        (lambda: export_edit(dense_edit(host, "model.embed_tokens.weight"), tmp_path / "x"), InputError, "Embedding"),
        (
            lambda: export_edit(Edit([DeactivationPart(small_sae(), (1,))], "x"), tmp_path / "x"),
            InputError,
            "no permanent form",
        ),
        (lambda: export_edit(Edit([WeightsPart(low_rank(host, 0, 1))], "x"), tmp_path / "x"), InputError, "bound"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
    assert not (tmp_path / "x").exists()
