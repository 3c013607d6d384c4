"""Every command of the language half on both small models, at small size, as a user would type them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("model", ["smollm2", "gemma3-270m"])
def test_the_commands_work_on(model: str, tmp_path: Path) -> None:
    def efface(*words: object) -> str:
        command = [str(Path(sys.executable).with_name("efface")), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-2000:]}"
        return done.stdout

    def settings(*pairs: str) -> list[str]:
        return [word for pair in pairs for word in ("--set", pair)]

    assert model in efface("models")
    assert "pisces" in efface("methods")
    points = "layers.4.mlp_out,layers.6.mlp_out"
    train = (
        "train",
        "--model",
        model,
        "--at",
        points,
        "--out",
        "saes",
        "--tokens",
        8192,
        "--d-sae",
        1024,
        *settings("batch=512", "lr=0.001"),
    )
    efface(*train)
    efface(*train, "--resume")
    found = json.loads(efface("features", "--sae", "saes", "--concept", "baseball", "--json"))
    assert found["features"]
    efface("gate", "--sae", "saes", "--concept", "baseball", "--out", "gate")
    few = settings("preset=efface", "texts=20", "n_effect=20", "n_effect_texts=10", "effect_rounds=1", "n_features=40")
    efface("erase", "pisces", "--model", model, "--concept", "baseball", "--sae", "saes", "--out", "edit", *few)
    result = "result", "--concept", "baseball", "--edit", "edit", "--sae", "saes", *settings("texts=4", "draws=1", "continuations=0")
    efface("eval", "--model", model, "--out", *result)
    assert (tmp_path / "result" / "report.html").is_file()
    efface("eval", "--model", model, "--out", "base", "--concept", "baseball", *settings("texts=4", "draws=1", "continuations=0"))
    assert "pisces" in efface("compare", "result", "base")
    efface("apply", "edit", "--model", model, "--out", "edited")
    efface("undo", "--model", "edited", "--out", "undone")
    words = [efface("generate", "--model", m, "--prompt", "The game of baseball", "--greedy", "--max-new-tokens", 12, "--out", f"{i}.txt")
             for i, m in enumerate((model, "edited", "undone"))]  # fmt: skip
    assert len(words) == 3
    texts = [(tmp_path / f"{i}.txt").read_text() for i in range(3)]
    assert texts[0] == texts[2]
    efface("export", "edit", "--out", "lora", "--format", "lora")
    assert (tmp_path / "lora" / "adapter_model.safetensors").is_file()
    efface("doctor")
    assert model in efface("cache", "ls")
