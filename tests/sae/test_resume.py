"""An interrupted and resumed run ends with the bits of one that was never interrupted, for every architecture."""

import json
import os
import signal

import pytest
import torch

from efface.base.errors import InputError
from efface.base.running import Interrupted
from efface.sae import SAEConfig, TrainConfig, train
from efface.sae.sources import ActivationStore
from efface.sae.trainer import train_many

torch.set_num_threads(1)
D = 12
ARCHITECTURES = ["relu", "topk", "batchtopk", "jumprelu", "matryoshka", "gated"]


def parts(n=4000, seed=0):
    return list(torch.randn(n, D, generator=torch.Generator().manual_seed(seed)).exp().split(90))


class Stopping:
    """A list whose reader gets a signal when it takes item `at` of a pass; read again it is an ordinary list."""

    def __init__(self, items, at, number=signal.SIGTERM):
        self.items, self.at, self.number = items, at, number

    def __iter__(self):
        for i, item in enumerate(self.items):
            if i == self.at:
                self.at = None
                os.kill(os.getpid(), self.number)
            yield item


def config(**options):
    return TrainConfig(
        **{
            "steps": 24,
            "batch": 64,
            "lr": 3e-3,
            "warmup": 5,
            "log_every": 4,
            "normalize_vectors": 128,
            "dead_window": 400,
            **options,
        }
    )


def sae_config(architecture="topk", **options):
    return SAEConfig(architecture, **{"d_in": D, "d_sae": 40, "k": 4, **options})


def same(a, b):
    return all((a / f).read_bytes() == (b / f).read_bytes() for f in ("sae_weights.safetensors", "cfg.json", "train.jsonl", "efface.json"))


def interrupted_then_resumed(cfg, items, out, at, **options):
    with pytest.raises(Interrupted, match="resume"):
        train(cfg, Stopping(items, at), config(**options), out=out)
    steps = sorted(p.name for p in (out / "checkpoints").iterdir())
    assert len(steps) >= 1
    assert not (out / "efface.json").exists()
    return train(cfg, items, config(**options), out=out, resume=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bit_equal(tmp_path, architecture):
    cfg, items = sae_config(architecture), parts()
    train(cfg, items, config(), out=tmp_path / "whole")
    interrupted_then_resumed(cfg, items, tmp_path / "cut", at=15)
    assert same(tmp_path / "whole", tmp_path / "cut")
    train(cfg, items, config(seed=1), out=tmp_path / "other")
    assert not same(tmp_path / "whole", tmp_path / "other")


@pytest.mark.parametrize("skip", [False, True])
def test_bit_equal_transcoders(tmp_path, skip):
    cfg = sae_config(d_out=5, skip=skip)
    items = [{"in": p, "out": p[:, :5] * 3} for p in parts()]
    train(cfg, items, config(), out=tmp_path / "whole")
    interrupted_then_resumed(cfg, items, tmp_path / "cut", at=15)
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_bit_equal_for_several_hook_points_from_a_store(tmp_path):
    folder = ActivationStore.write(tmp_path / "acts", [{"a": p, "b": p.flip(1)} for p in parts()], 4000, shard=300)
    cfgs = {"a": sae_config(), "b": sae_config("matryoshka")}
    options = {"steps": 60}
    train_many(cfgs, ActivationStore(folder, 50), config(**options), out=tmp_path / "whole")

    class Store(ActivationStore):
        def __iter__(self):
            for i, batch in enumerate(super().__iter__()):
                if i == 30:
                    os.kill(os.getpid(), signal.SIGINT)
                yield batch

    with pytest.raises(Interrupted):
        train_many(cfgs, Store(folder, 50), config(**options), out=tmp_path / "cut")
    train_many(cfgs, ActivationStore(folder, 50), config(**options), out=tmp_path / "cut", resume=True)
    assert all(same_sae(tmp_path / "whole" / p, tmp_path / "cut" / p) for p in "ab")
    assert (tmp_path / "whole" / "train.jsonl").read_bytes() == (tmp_path / "cut" / "train.jsonl").read_bytes()


def same_sae(a, b):
    return all((a / f).read_bytes() == (b / f).read_bytes() for f in ("sae_weights.safetensors", "efface.json"))


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    cfg, items = sae_config("batchtopk"), parts()
    train(cfg, items, config(), out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(cfg, Stopping(items, 10), config(checkpoint_every=7), out=tmp_path / "cut")
    folders = sorted((tmp_path / "cut" / "checkpoints").iterdir(), key=lambda p: int(p.name.split("-")[1]))
    assert len(folders) == 2
    tensors = folders[-1] / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-10])
    train(cfg, items, config(checkpoint_every=7), out=tmp_path / "cut", resume=True)
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_a_failed_end_is_made_up_for(tmp_path):
    cfg, items = sae_config(), parts()
    train(cfg, items, config(), out=tmp_path / "whole", held_out=items[:3])
    with pytest.raises(InputError, match="held-out"):
        train(cfg, items, config(), out=tmp_path / "cut", held_out=[{"a": items[0], "b": items[0]}])
    train(cfg, items, config(), out=tmp_path / "cut", held_out=items[:3], resume=True)
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_resume_leaves_a_folder_alone_that_is_no_run(tmp_path):
    cfg, items = sae_config(), parts()
    for name in ("config.json", "sae_weights.safetensors", "cfg.json"):
        out = tmp_path / name.split(".")[0]
        out.mkdir()
        (out / name).write_text("mine")
        with pytest.raises(InputError, match=f"no checkpoint to resume, but {name}"):
            train(cfg, items, config(), out=out, resume=True)
        assert [p.read_text() for p in out.iterdir()] == ["mine"]
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "train.jsonl").write_text("")  # killed before its first checkpoint
    (tmp_path / "begun" / "checkpoints" / ".step-1.abc").mkdir(parents=True)
    train(cfg, items, config(), out=tmp_path / "begun", resume=True)
    assert (tmp_path / "begun" / "efface.json").is_file()


def test_resume_of_another_run_is_refused_and_of_none_begins(tmp_path):
    cfg, items = sae_config(), parts()
    with pytest.raises(Interrupted):
        train(cfg, Stopping(items, 15), config(), out=tmp_path / "s")
    for other_cfg, other, words in [
        (cfg, config(lr=1.0), "lr was 0.003 .* is 1.0 now"),
        (sae_config(k=5), config(), "k was 4"),
    ]:
        with pytest.raises(InputError, match=words):
            train(other_cfg, items, other, out=tmp_path / "s", resume=True)
    with pytest.raises(InputError, match="exists already"):
        train(cfg, items, config(), out=tmp_path / "s")
    done = train(cfg, items, config(log_every=5), out=tmp_path / "s", resume=True)
    again = train(cfg, iter([]), config(), out=tmp_path / "s", resume=True)
    assert torch.equal(done.W_enc, again.W_enc)
    with pytest.raises(InputError, match="other settings"):
        train(cfg, items, config(seed=5), out=tmp_path / "s", resume=True)
    train(cfg, items, config(), out=tmp_path / "new", resume=True)
    assert json.loads((tmp_path / "new" / "efface.json").read_text())["training"]["steps"] == 24


def test_signal_handlers_come_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(sae_config(), Stopping(parts(), 10, signal.SIGINT), config(), out=tmp_path / "s")
    assert signal.getsignal(signal.SIGTERM) is before
