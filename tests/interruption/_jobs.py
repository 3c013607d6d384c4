"""The jobs of `_faults`: what is written, and what must hold of whatever is left of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from deactivate._kit import bits, dense_edit, same, small_sae, tiny_host, weights_edit

from efface.base.errors import InputError
from efface.base.files import sha256_file
from efface.cli.options import sae_folders
from efface.deactivate.edit import Edit
from efface.deactivate.gate import Gate, GateSource
from efface.deactivate.ledger import LEDGER, apply_edits, undo_edits
from efface.deactivate.training import LoopConfig, fit_loop
from efface.llm.models import load_model
from efface.sae import SAE, ActivationStore, SAEConfig, TrainConfig, finish, train, train_many


class Job(Protocol):
    """Something that writes into a folder, and what a user finds there afterwards."""

    def prepare(self) -> None:
        """Makes the inputs."""

    def act(self, place: Path) -> None:
        """Writes."""

    def after(self, place: Path, whole: Path) -> str:
        """«whole», «nothing», or the error that loading gives; raises where neither holds. `whole` is an unbroken attempt."""
        ...


def digests(folder: Path) -> dict[str, str]:
    """Every file below a folder."""
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def loaded(load: Callable[[], object]) -> str:
    """«whole» where it loads, else the error, which must be one that is meant for a user."""
    try:
        load()
    except InputError as e:
        error = str(e)
    else:
        return "whole"
    assert len(error.splitlines()) <= 2, error
    return f"error: {error}"


class Training:
    """Some steps with checkpoints, of which one is kept."""

    def __init__(self, inputs: Path) -> None:
        self.inputs = inputs

    def prepare(self) -> None:
        finish.SAMPLE = 256
        x = torch.randn(2000, 12, generator=torch.Generator().manual_seed(0)).exp()
        self.items = list(x.split(90))
        self.config = TrainConfig(
            steps=5, batch=64, lr=3e-3, warmup=2, log_every=2, normalize_vectors=128, checkpoint_every=2, keep_checkpoints=1
        )

    def train(self, out: Path, resume: bool = False) -> None:
        """One SAE."""
        train(SAEConfig("topk", 12, 40, k=4), self.items, self.config, out=out, resume=resume)

    def act(self, place: Path) -> None:
        self.train(place / "sae")

    def sae(self, out: Path) -> Path:
        """The SAE folder."""
        return out

    def after(self, place: Path, whole: Path) -> str:
        out = place / "sae"
        folder = self.sae(out)
        found = loaded(lambda: SAE.load(folder))
        if found == "whole":
            weights = "sae_weights.safetensors"
            assert SAE.load(folder).card["training"]
            assert sha256_file(folder / weights) == sha256_file(self.sae(whole / "sae") / weights)
        if loaded(lambda: sae_folders([out])) == "whole":
            assert all(SAE.load(listed) for listed in sae_folders([out]))
        else:
            assert found != "whole" or not (folder / "cfg.json").exists()
        self.train(out, resume=True)
        assert digests(out) == digests(whole / "sae")
        return found


class ManyTraining(Training):
    """Two SAEs in one pass."""

    def train(self, out: Path, resume: bool = False) -> None:
        items = [{"a": p, "b": p.flip(1)} for p in self.items]
        train_many(dict.fromkeys("ab", SAEConfig("topk", 12, 40, k=4)), items, self.config, out=out, resume=resume)

    def sae(self, out: Path) -> Path:
        return out / "b"


class Fitting:
    """An eraser's training loop."""

    def __init__(self, inputs: Path) -> None:
        del inputs

    def prepare(self) -> None:
        self.config = LoopConfig(steps=6, lr=0.1, checkpoint_every=2, keep=1, log_every=1)

    def fit(self, out: Path, resume: bool = False) -> torch.Tensor:
        """Six steps."""
        p = torch.nn.Parameter(torch.ones(4))
        fit_loop(lambda step, micro: ((p - step) ** 2).sum() + torch.rand(()), {"p": p}, self.config, out, resume)
        return p.detach()

    def act(self, place: Path) -> None:
        self.fit(place / "run")

    def after(self, place: Path, whole: Path) -> str:
        again = self.fit(place / "run", resume=True)
        assert torch.equal(again, self.fit(whole / "run", resume=True))
        lines = [[json.loads(s)["step"] for s in (p / "run" / "log.jsonl").read_text().splitlines()] for p in (place, whole)]
        assert lines[0] == lines[1]
        return "whole"


class SavingEdit:
    """An edit behind a gate: files in folders in a folder."""

    def __init__(self, inputs: Path) -> None:
        del inputs

    def prepare(self) -> None:
        host = tiny_host()
        sae = small_sae()
        with torch.no_grad():
            sae.b_enc.add_(0.5)
        gate = Gate([GateSource(sae, (1, 2))]).calibrated(
            host, ["the dog", "a dog"], ["the sea"] * 30 + ["a car by the road"] * 30, fpr=0.1
        )
        self.edit = weights_edit(host).gated(gate)

    def act(self, place: Path) -> None:
        self.edit.save(place / "edit")

    def after(self, place: Path, whole: Path) -> str:
        path = place / "edit"
        found = loaded(lambda: Edit.load(path))
        assert (found == "whole") == path.exists()
        if found == "whole":
            assert Edit.load(path).digest == self.edit.digest
            assert digests(path) == digests(whole / "edit")
        return found


class Applying:
    """An edit folded into a checkpoint."""

    def __init__(self, inputs: Path) -> None:
        self.inputs = inputs

    def prepare(self) -> None:
        host = tiny_host()
        host.model.save_pretrained(self.inputs / "model")
        host.tokenizer.save_pretrained(self.inputs / "model")
        self.edits = [weights_edit(host), dense_edit(host, "model.norm.weight")]
        self.base = bits(host)
        apply_edits(self.inputs / "model", self.edits, self.inputs / "applied")

    def act(self, place: Path) -> None:
        apply_edits(self.inputs / "model", self.edits, place / "out")

    def after(self, place: Path, whole: Path) -> str:
        path = place / "out"
        found = loaded(lambda: load_model(f"{path}/"))
        assert (found == "whole") == path.exists()
        if found == "whole":
            assert digests(path) == digests(whole / "out")
            self.look(path)
        return found

    def look(self, path: Path) -> None:
        """A whole result can be undone."""
        assert (path / LEDGER).is_file()
        undo_edits(path, None, path.parent / "base")
        assert same(bits(load_model(path.parent / "base")), self.base)


class Undoing(Applying):
    """And taken out again, one of two."""

    def act(self, place: Path) -> None:
        undo_edits(self.inputs / "applied", [self.edits[1].digest[:12]], place / "out")

    def look(self, path: Path) -> None:
        now = bits(load_model(path))
        assert torch.equal(now["model.norm.weight"], self.base["model.norm.weight"])
        assert not same(now, self.base)


class Storing:
    """Activations on disk."""

    def __init__(self, inputs: Path) -> None:
        del inputs

    def prepare(self) -> None:
        self.items = [torch.full((50, 3), float(i)) for i in range(6)]

    def act(self, place: Path) -> None:
        ActivationStore.write(place / "store", self.items, 300, shard=100)

    def after(self, place: Path, whole: Path) -> str:
        path = place / "store"
        found = loaded(lambda: list(ActivationStore(path, 50)))
        assert (found == "whole") == path.exists()
        return found


JOBS: dict[str, Callable[[Path], Job]] = {
    "train": Training,
    "train_many": ManyTraining,
    "fit_loop": Fitting,
    "save an edit": SavingEdit,
    "apply": Applying,
    "undo": Undoing,
    "store": Storing,
}
