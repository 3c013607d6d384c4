"""Edits in checkpoints: ordinary folders, stacking, and undo to the bit (by hash of the tensors on disk)."""

import json
from pathlib import Path

import pytest
import torch
from deactivate._kit import CONCEPT, POINT, bits, dense_edit, same, small_sae, tiny_host, weights_edit
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from efface.base.errors import ArtefactError, InputError, MatchedNothing, UnknownName
from efface.deactivate.edit import Edit
from efface.deactivate.gate import Gate, GateSource
from efface.deactivate.layer import DeactivationPart
from efface.deactivate.ledger import BASE, EDITS, LEDGER, apply_edits, load_checkpoint, overlay_of, undo_edits
from efface.deactivate.parts import tensor_digest
from efface.llm.host import Host


def hashes(folder: Path) -> dict[str, str]:
    return {n: tensor_digest(n, t) for n, t in load_file(folder / "model.safetensors").items()}


def base_folder(host: Host, folder: Path) -> Path:
    host.model.save_pretrained(folder)
    host.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("dtype", "family"),
    [(torch.float32, "llama"), (torch.bfloat16, "llama"), (torch.bfloat16, "gpt2"), (torch.float32, "qwen2")],
)
def test_apply_and_undo_by_hash(tmp_path: Path, dtype: torch.dtype, family: str) -> None:
    host = tiny_host(family, dtype=dtype)
    base = hashes(base_folder(host, tmp_path / "base"))
    before = bits(host)
    a, b = weights_edit(host, 1), weights_edit(host, 2)
    apply_edits(host, [a, b], tmp_path / "both")
    apply_edits(host, [a], tmp_path / "a")
    assert same(bits(host), before)
    assert not overlay_of(host).entries
    changed = {n for n, h in hashes(tmp_path / "both").items() if h != base[n]}
    assert len(changed) == 2
    assert hashes(tmp_path / "both") != hashes(tmp_path / "a")
    undo_edits(tmp_path / "both", None, tmp_path / "none")
    assert hashes(tmp_path / "none") == base
    assert not any((tmp_path / "none" / f).exists() for f in (LEDGER, BASE, EDITS))
    undo_edits(tmp_path / "both", [b.name], tmp_path / "one")
    assert hashes(tmp_path / "one") == hashes(tmp_path / "a")
    assert (tmp_path / "one" / LEDGER).is_file()
    undo_edits(tmp_path / "one", [a.digest[:8]], tmp_path / "zero")
    assert hashes(tmp_path / "zero") == base


def test_the_folder_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    host = tiny_host()
    edit, ids = weights_edit(host), torch.tensor([[1, 90, 120]])
    apply_edits(host, [edit], tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    with edit.applied(host), torch.no_grad():
        assert torch.equal(model(ids).logits, host.logits(ids, torch.ones_like(ids)))
    assert tokenizer("the dog")["input_ids"] == host.tokenizer("the dog")["input_ids"]
    undo_edits(tmp_path / "out", None, tmp_path / "undone")
    assert AutoTokenizer.from_pretrained(tmp_path / "undone")("the dog")["input_ids"] == tokenizer("the dog")["input_ids"]


def test_stacking_on_disk(tmp_path: Path) -> None:
    host = tiny_host()
    base = hashes(base_folder(host, tmp_path / "base"))
    a, b = weights_edit(host, 1), weights_edit(host, 2)
    a.save(tmp_path / "edit-a")
    apply_edits(tmp_path / "base", [tmp_path / "edit-a"], tmp_path / "a")
    apply_edits(tmp_path / "a", [b], tmp_path / "ab")
    apply_edits(host, [b, a], tmp_path / "ba")
    assert hashes(tmp_path / "ab") == hashes(tmp_path / "ba")
    with pytest.raises(InputError, match="already"):
        apply_edits(tmp_path / "ab", [a], tmp_path / "twice")
    undo_edits(tmp_path / "ab", [tmp_path / "edit-a"], tmp_path / "b")
    assert hashes(tmp_path / "b") != base
    undo_edits(tmp_path / "b", [b.name], tmp_path / "none")
    assert hashes(tmp_path / "none") == base
    loaded = load_checkpoint(tmp_path / "a")
    assert set(overlay_of(loaded).entries) == {a.digest}


def test_force_is_recorded(tmp_path: Path) -> None:
    edit, other = weights_edit(tiny_host()), tiny_host(seed=1)
    with pytest.raises(InputError, match="another base"):
        apply_edits(other, [edit], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    apply_edits(other, [edit], tmp_path / "out", force=True)
    ledger = json.loads((tmp_path / "out" / LEDGER).read_text())
    assert [row["forced"] for row in ledger["edits"]] == [True]
    base = hashes(base_folder(other, tmp_path / "base"))
    assert hashes(undo_edits(tmp_path / "out", None, tmp_path / "back")) == base


def test_no_permanent_form(tmp_path: Path) -> None:
    host, sae = tiny_host(), small_sae()
    hook = Edit([DeactivationPart(sae, (1,))], "layer", {}, [CONCEPT]).bound(host)
    gate = Gate([GateSource(sae, (1, 2))]).calibrated(host, ["the dog"], ["the sun", "the sea"])
    for edit, word in ((hook, "hook"), (weights_edit(host).gated(gate), "gate")):
        with pytest.raises(InputError, match=f"{word}.*no permanent form.*--edit"):
            apply_edits(host, [edit], tmp_path / "out")
        with pytest.raises(InputError, match="no permanent form"):
            edit.apply_(host)
    with hook.applied(host), pytest.raises(InputError, match="no permanent form"):
        apply_edits(host, [weights_edit(host)], tmp_path / "out")
    with pytest.raises(MatchedNothing):
        apply_edits(host, [], tmp_path / "out")
    assert not list(tmp_path.iterdir())
    assert POINT


def test_damaged_ledgers_are_refused(tmp_path: Path) -> None:
    host = tiny_host()
    edit = weights_edit(host)
    folder = apply_edits(host, [edit, dense_edit(host, "model.norm.weight")], tmp_path / "out")
    with pytest.raises(UnknownName, match=edit.name):
        undo_edits(folder, ["no-such-edit"], tmp_path / "x")
    with pytest.raises(ArtefactError, match="nothing was applied"):
        undo_edits(base_folder(host, tmp_path / "base"), None, tmp_path / "x")

    def refused(message: str) -> None:
        with pytest.raises(ArtefactError, match=message):
            undo_edits(folder, None, tmp_path / "x")
        assert not (tmp_path / "x").exists()

    ledger = (folder / LEDGER).read_text()
    (folder / LEDGER).write_text(ledger.replace('"folder": "', '"folder": "../'))
    refused("outside")
    (folder / LEDGER).write_text(ledger.replace('"format": 1', '"format": 7'))
    refused("format 1")
    (folder / LEDGER).write_text(ledger[:-20])
    refused("JSON")
    (folder / LEDGER).write_text(ledger)
    weights = load_file(folder / "model.safetensors")
    name = host.down_proj(0)[0]
    save_file({**weights, name: weights[name] + 1}, folder / "model.safetensors", {"format": "pt"})
    refused("not what its ledger says")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    raw = (folder / BASE).read_bytes()
    (folder / BASE).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    refused("was altered")
    (folder / BASE).write_bytes(raw)
    undo_edits(folder, None, tmp_path / "x")


def test_a_checkpoint_loaded_in_another_dtype(tmp_path: Path) -> None:
    host = tiny_host(dtype=torch.bfloat16)
    folder = apply_edits(host, [weights_edit(host)], tmp_path / "out")
    wide = Host(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), host.tokenizer, "wide")
    with pytest.raises(InputError, match="--dtype bfloat16"), weights_edit(host, 3).applied(wide):
        pass
