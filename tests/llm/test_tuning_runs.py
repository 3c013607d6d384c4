"""What fine-tuning erasers keep while they train: stopped runs, the states of the base, gradients."""

import json
import os
import signal
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from planted import MAGIC, MUSIC, magic, planted_sae, same_changes, sentences
from tiny import tiny_host
from tuning_kit import SETTINGS, made, music, same

from efface.base.config import from_mapping
from efface.base.errors import InputError
from efface.base.running import Interrupted
from efface.llm.host import Host
from efface.llm.methods.crisp import CrispConfig
from efface.llm.methods.crisp.fit import CrispTask
from efface.llm.methods.elm import ElmConfig
from efface.llm.methods.elm.fit import ElmTask
from efface.llm.methods.graddiff import GradDiffConfig
from efface.llm.methods.graddiff.fit import GradDiffTask
from efface.llm.methods.npo import NpoConfig
from efface.llm.methods.npo.fit import NpoTask
from efface.llm.methods.rmu import RmuConfig
from efface.llm.methods.rmu.fit import RmuTask
from efface.llm.tuning import frozen
from efface.llm.tuning.texts import Row
from efface.llm.tuning.trained import Trained, matrices, training


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    whole = made("elm", tiny_host(), magic(), steps=4)
    call = ElmTask.__call__

    def stopping(self: ElmTask, i: int) -> Any:
        if i == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return call(self, i)

    monkeypatch.setattr(ElmTask, "__call__", stopping)
    with pytest.raises(Interrupted, match="after step 2 of 4"):
        made("elm", tiny_host(), magic(), steps=4, run=str(tmp_path / "run"))
    monkeypatch.setattr(ElmTask, "__call__", call)
    for concept, more in ((music(), {}), (magic(), {"preserve": ["the old house"]}), (magic(), {"lr": 1e-3})):
        with pytest.raises(InputError, match="another run"):
            made("elm", tiny_host(), concept, steps=4, run=str(tmp_path / "run"), **more)
    resumed = made("elm", tiny_host(), magic(), steps=4, run=str(tmp_path / "run"))
    assert resumed.digest == whole.digest
    assert resumed.evidence["training"] == whole.evidence["training"]
    assert made("elm", tiny_host(), magic(), steps=4, run=str(tmp_path / "run")).evidence["training"] == whole.evidence["training"]
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(x)["step"] for x in lines] == [1, 2, 3, 4]
    assert {"erase", "retain", "fluency"} <= set(json.loads(lines[0]))
    with pytest.raises(InputError, match="no neighbours"):
        made("elm", tiny_host(), magic(neighbours=None), run=str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").write_text("")
    with pytest.raises(InputError, match="no folder of a run"):
        made("elm", tiny_host(), magic(), run=str(tmp_path / "else"))


def test_a_run_that_was_stopped_in_its_second_pass_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    """Rows of unlike length: what was kept of the base in the first pass is gone, and is made anew in other company."""
    concept = magic(target=unlike(MAGIC), neighbours=unlike(MUSIC))
    settings = {"steps": 8, "batch": 3, "retain_loss": "kl"}
    whole, call = made("npo", tiny_host(), concept, **settings), NpoTask.__call__

    def stopping(self: NpoTask, i: int) -> Any:
        if i == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return call(self, i)

    monkeypatch.setattr(NpoTask, "__call__", stopping)
    with pytest.raises(Interrupted, match="after step 6 of 8"):
        made("npo", tiny_host(), concept, run=str(tmp_path / "run"), **settings)
    monkeypatch.setattr(NpoTask, "__call__", call)
    assert made("npo", tiny_host(), concept, run=str(tmp_path / "run"), **settings).digest == whole.digest
    monkeypatch.setattr(frozen, "KEPT", 0)  # nothing is kept
    assert made("npo", tiny_host(), concept, **settings).digest == whole.digest
    assert not same_changes(made("npo", tiny_host(), concept, **settings | {"steps": 7}), whole)


def unlike(words: Any) -> dict[str, list[str]]:
    """Texts of one to four sentences."""
    return {k: [" . ".join((v + v)[n : n + 1 + n % 4]) for n in range(len(v))] for k, v in sentences(words).items()}


def test_kept_states_are_those_of_the_base():
    host = tiny_host()
    rows = host.token_ids(["the wizard has a wand", "a river"])
    read = frozen.final_hidden(host)
    wanted = [h.detach() for h in frozen.states(host, read, rows)]
    with training(host, matrices(host, ("mlp",), [0]), 2, 2, 0.0, 0) as trained:
        with torch.no_grad():
            for p in trained.params.values():
                p.add_(0.2)
        base = frozen.Frozen(host, read, trained.off)
        first, again = base(rows), base([rows[1]])
        moved = frozen.states(host, read, rows)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(first, wanted, strict=True))
    assert torch.equal(again[0], first[1])
    assert not torch.allclose(moved[0], wanted[0], atol=1e-2)
    assert not first[0].requires_grad


def test_kept_states_depend_on_no_batch():
    """A reading that tells what a row is read with: rounding does so, too, in the last bits."""
    host = tiny_host()
    rows = host.token_ids(["the wizard has a wand", "a river"])

    def telling(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (ids + 1000 * mask.sum())[..., None].float()

    together = frozen.states(host, telling, rows)
    base = frozen.Frozen(host, telling, nullcontext)
    for row, read, said in zip(rows, base(rows), together, strict=True):
        assert torch.equal(read[:, 0], torch.tensor(row).float() + 1000 * len(row))
        assert not torch.equal(read, said)


@pytest.mark.parametrize("rank", [2, 0])
def test_gradients_are_those_of_the_loss_wherever_the_base_is_asked(rank):
    """The base is asked between a forward pass and its backward pass, and between micro-batches whose gradients add up."""
    host = tiny_host()
    rows = [Row(tuple(ids)) for ids in host.token_ids(["the wizard has a wand", "a river"])]
    ids, mask = host.pad([r.ids for r in rows])
    found = []
    for asked in (False, True):
        with training(host, matrices(host, ("attention", "mlp"), [0, 1]), rank, 4, 0.0, 0) as trained:
            with torch.no_grad():
                for p in trained.params.values():
                    p.add_(0.05)
            for micro in range(2):
                loss = host.logits(ids, mask)[micro].float().logsumexp(-1).mean()
                if asked:
                    with torch.no_grad(), trained.off():
                        host.logits(ids, mask)
                loss.backward()
            found.append({n: p.grad.clone() for n, p in trained.params.items()})
    assert same(*found)
    assert all(g.abs().max() > 0 for g in found[0].values())


def task(method: str, host: Host, trained: Trained, changes: dict[str, Any]) -> Any:
    """A method's task on texts of unlike length."""
    concept = magic(target=unlike(MAGIC), neighbours=unlike(MUSIC))
    kind = {"elm": ElmConfig, "rmu": RmuConfig, "crisp": CrispConfig, "npo": NpoConfig, "graddiff": GradDiffConfig}[method]
    config: Any = from_mapping(kind, SETTINGS[method] | changes)
    if method == "rmu":
        return RmuTask(host, trained, concept, config, 1)
    if method == "crisp":
        return CrispTask(host, trained, concept, config, {"layers.1.mlp_out": (planted_sae(tiny_host()), [0, 1, 2])})
    return {"elm": ElmTask, "npo": NpoTask, "graddiff": GradDiffTask}[method](host, trained, concept, config)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("elm", {}), ("elm", {"positions": "counted", "forget": ["target", "questions"]}), ("rmu", {}), ("crisp", {}), ("npo", {"retain_loss": "kl"}),
        ("graddiff", {"retain_loss": "nll"}),
    ],
)  # fmt: skip
def test_padding_counts_nowhere(method, changes, monkeypatch):
    """Figures of a micro-batch, and with five columns of padding more; RMU's `compat=official` is the negative control."""
    host, pad = tiny_host(), Host.pad

    def wide(rows: Any, *, left: bool = False) -> Any:
        return pad(host, rows, left=True) if left else wider(*pad(host, rows))

    with training(host, matrices(host, ("attention", "mlp"), [0, 1]), 2, 4, 0.0, 0) as trained:
        made = [task(method, host, trained, c) for c in (changes, *([{"compat": "official"}] if method == "rmu" else []))]
        with torch.no_grad():
            for p in trained.params.values():
                p.add_(0.1)
        narrow = [t(0)[1] for t in made]
        monkeypatch.setattr(host, "pad", wide)
        widened = [t(0)[1] for t in made]
    assert len(narrow[0]) >= 2
    assert min(map(abs, narrow[0].values())) > 1e-4
    assert widened[0] == pytest.approx(narrow[0], rel=1e-4)
    if method == "rmu":
        moved = {k: abs(widened[1][k] / narrow[1][k] - 1) for k in ("forget", "retain")}
        assert min(moved.values()) > 1e-3


def wider(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same rows with five columns of padding more."""
    return torch.nn.functional.pad(ids, (0, 5), value=3), torch.nn.functional.pad(mask, (0, 5))
