"""What the tests of the commands share: folders of a tiny model, SAEs on it, an edit of it, a concept file."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from deactivate._kit import weights_edit
from planted import magic_values, planted_sae
from tiny import tiny_host

from efface.cli.main import run
from efface.llm.host import Host


@dataclass(frozen=True)
class Places:
    """Inputs in `root`, an empty `out` beside them."""

    root: Path
    out: Path

    def __str__(self) -> str:
        return str(self.root)


def save_model(host: Host, folder: Path) -> Path:
    """An ordinary checkpoint of a host."""
    host.model.save_pretrained(folder)
    host.tokenizer.save_pretrained(folder)
    return folder


def make_places(root: Path) -> Places:
    """`model`, `other` (other weights), `wide` (another width), `sae`, `edit`, `magic.json`, `out`."""
    host = tiny_host()
    save_model(host, root / "model")
    save_model(tiny_host(seed=1), root / "other")
    save_model(tiny_host(hidden_size=64), root / "wide")
    planted_sae(host).save(root / "sae")
    weights_edit(host).save(root / "edit")
    (root / "magic.json").write_text(json.dumps(magic_values()))
    (root / "out").mkdir()
    return Places(root, root / "out")


def overflowing(folder: Path) -> Path:
    """A checkpoint whose weights are finite and whose activations are not."""
    host = tiny_host()
    with torch.no_grad():
        for name, p in host.model.named_parameters():
            if "mlp" in name:
                p.mul_(1e20)
    return save_model(host, folder)


def status(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of one command, given as words between spaces (`␣` is a space within a word)."""
    capsys.readouterr()
    code = run([word.replace("␣", " ") for word in line.split()])
    out, err = capsys.readouterr()
    return code, out, err
