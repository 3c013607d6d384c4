"""Training: schedules, scale, dead counts, what is saved and measured, several hook points in one pass, bad input."""

import itertools
import json
import sys
from types import ModuleType

import pytest
import torch

from efface.base.errors import InputError, MatchedNothing, NumericsError
from efface.base.files import load_tensors
from efface.sae import SAE, SAEConfig, TrainConfig, evaluate, train
from efface.sae.initialise import encoder_scale
from efface.sae.schedules import dead_window, learning_rate, ramp
from efface.sae.sparse import decode_sparse, encode_topk
from efface.sae.trainer import train_many
from efface.sae.training_state import HookPair, Trainee

torch.set_num_threads(1)
D, N = 16, 24


def planted(n=20_000, seed=0, scale=1.0, active=3):
    """Sparse sums of N fixed unit directions, shifted: (vectors, directions)."""
    directions = torch.nn.functional.normalize(torch.randn(N, D, generator=torch.Generator().manual_seed(7)), dim=1)
    g = torch.Generator().manual_seed(seed)
    on = torch.rand(n, N, generator=g) < active / N
    strength = on * (0.5 + torch.rand(n, N, generator=g))
    return (strength @ directions + 0.3) * scale, directions


def stream(x, size=200):
    return list(x.split(size))


def sae_config(architecture="topk", **options):
    return SAEConfig(architecture, **{"d_in": D, "d_sae": 48, "k": 3, **options})


def config(**options):
    return TrainConfig(**{"steps": 200, "batch": 128, "lr": 3e-3, "warmup": 10, "log_every": 20, **options})


def card(folder):
    return json.loads((folder / "efface.json").read_text())


def log(folder):
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def test_learning_rate_rises_stays_and_falls():
    rates = [learning_rate(s, 100, 2.0, 10, 0.2) for s in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9:80] == [2.0] * 71
    assert all(a > b > 0 for a, b in itertools.pairwise(rates[79:]))
    assert rates[-1] == pytest.approx(2.0 / 21)
    assert [ramp(s, 0) for s in range(2)] == [1.0, 1.0]
    with pytest.raises(InputError, match="step"):
        learning_rate(100, 100, 1.0, 0, 0.0)


def test_dead_window_counts_vectors():
    assert dead_window(1000, 2048) == 102_400
    assert dead_window(10**6, 2048) == 10_000_000
    assert dead_window(1000, 2048, 77) == 77


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
def test_200_steps_leave_the_l0_asked_for(tmp_path, architecture):
    x, _ = planted()
    new = stream(planted(4000, seed=1)[0])
    sae = train(sae_config(architecture), stream(x), config(), out=tmp_path / "s", held_out=new)
    metrics = card(tmp_path / "s")["metrics"]
    assert metrics["l0"] == pytest.approx(3, rel=0.05)
    assert metrics["measured_on"] == "held-out source"
    again = evaluate(SAE.load(tmp_path / "s"), new)
    assert again["fvu"] == pytest.approx(metrics["fvu"], rel=1e-6)
    assert metrics["fvu"] < 0.35
    untrained = SAE(sae.cfg)
    if architecture != "topk":
        untrained.calibrate_threshold(new)
    untrained = evaluate(untrained, new)
    assert untrained["fvu"] > 2 * metrics["fvu"]
    assert not (tmp_path / "s" / "checkpoints").exists()
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "cfg.json",
        "efface.json",
        "sae_weights.safetensors",
        "train.jsonl",
    ]


@pytest.mark.parametrize("architecture", ["relu", "gated", "jumprelu"])
def test_the_other_architectures_learn(tmp_path, architecture):
    x, _ = planted()
    options = {"jumprelu": {"threshold_init": 0.05, "bandwidth": 0.1}}.get(architecture, {})
    train(sae_config(architecture, **options), stream(x), config(steps=120, lr=1e-2, l1=3e-3), out=tmp_path / "s")
    lines, metrics = log(tmp_path / "s"), card(tmp_path / "s")["metrics"]
    assert lines[-1]["losses/mse_loss"] < 0.5 * lines[0]["losses/mse_loss"]
    assert metrics["fvu"] < 0.35
    assert metrics["measured_on"] == "training vectors: the source was read more than once"


def test_planted_features_come_back_and_few_are_dead(tmp_path):
    x, directions = planted(40_000, active=2)
    sae = train(sae_config("batchtopk", d_sae=N, k=2), stream(x), config(lr=2e-2), out=tmp_path / "s")
    cosine = torch.nn.functional.normalize(sae.W_dec, dim=1) @ directions.T
    assert cosine.max(0).values.mean().item() > 0.95
    assert card(tmp_path / "s")["metrics"]["dead_share"] < 0.05  # one of 24
    first = torch.nn.functional.normalize(SAE(sae.cfg).W_dec, dim=1) @ directions.T
    assert first.max(0).values.mean().item() < 0.8


def test_the_input_scale_is_folded_into_the_saved_weights(tmp_path):
    made = []
    for scale in (1.0, 64.0):
        x, _ = planted(scale=scale)
        sae = train(sae_config(), stream(x), config(steps=60), out=tmp_path / str(scale))
        made.append(sae)
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(48), atol=1e-4, rtol=0)
    x, _ = planted(500, seed=3)
    torch.testing.assert_close(made[0](x) * 64, made[1](x * 64), atol=1e-2, rtol=1e-3)
    assert card(tmp_path / "64.0")["training"]["scale_in"] == pytest.approx(card(tmp_path / "1.0")["training"]["scale_in"] / 64)


def uneven(x):
    """A few directions with nearly all of the variance."""
    return x * torch.logspace(1, -2, D) + 3.0


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "gated", "relu"])
def test_whitening_is_folded_into_the_saved_weights(architecture):
    x, new = uneven(planted(4000)[0]), uneven(planted(500, seed=1)[0])
    made = Trainee(sae_config(architecture), config(normalize="whiten", whiten_floor=1e-8), HookPair("x", "x"), torch.device("cpu"))
    made.start({"x": x})
    assert made.white is not None
    (white, inverse), scale = made.white, made.scale_in
    variance = torch.cov((x @ white).T).diagonal()
    assert float(variance.max() / variance.min()) < 1.1 < float(x.var(0).max() / x.var(0).min())
    tensors, values = made.state()
    again = Trainee(sae_config(architecture), config(normalize="whiten", whiten_floor=1e-8), HookPair("x", "x"), torch.device("cpu"))
    again.optimizer.state.update({p: {"step": 0} for p in again.sae.parameters()})
    again.restore(tensors, values)
    assert again.white is not None
    assert torch.equal(again.white[1], inverse)
    before = made.sae(new @ white * scale)
    after = made.trained({"x": new})(new)
    torch.testing.assert_close(after @ white * scale, before, atol=2e-3, rtol=1e-3)
    assert not torch.allclose(after, before, atol=0.1)


def test_whitening_lets_small_directions_be_learnt(tmp_path):
    x, new = uneven(planted()[0]), uneven(planted(2000, seed=1)[0])
    errors = []
    for normalize in ("unit", "whiten"):
        sae = train(sae_config("batchtopk"), stream(x), config(normalize=normalize, whiten_floor=1e-8), out=tmp_path / normalize)
        errors.append(float(((sae(new).detach() - new).pow(2).mean(0) / new.var(0))[D // 2 :].mean()))
    assert errors[1] < 0.6 * errors[0]


def test_whitening_of_what_cannot_be_whitened(tmp_path):
    with pytest.raises(InputError, match="constant"):
        train(sae_config(), stream(torch.ones(2000, D)), config(normalize="whiten"), out=tmp_path / "s")
    with pytest.raises(InputError, match=r"normalize=whiten.*unit"):
        Trainee(sae_config(d_out=D), config(normalize="whiten"), HookPair("x", "y"), torch.device("cpu"))
    with pytest.raises(InputError, match="whiten_floor"):
        config(whiten_floor=0.0)


def test_the_log_has_saelens_names(tmp_path):
    train(sae_config(), stream(planted()[0]), config(steps=40, dead_window=256), out=tmp_path / "s")
    lines = log(tmp_path / "s")
    assert [line["step"] for line in lines] == [20, 40]
    losses = {f"losses/{n}" for n in ("mse_loss", "overall_loss", "auxiliary_reconstruction_loss")}
    assert losses | {"metrics/explained_variance", "metrics/l0", "sparsity/dead_features"} < lines[0].keys()
    assert lines[1]["details/n_training_samples"] == 40 * 128
    assert lines[1]["details/current_learning_rate"] < 3e-3
    assert lines[1]["metrics/l0"] == 3


def trainee(architecture="topk", **options):
    made = Trainee(sae_config(architecture), config(**options), HookPair("x", "x"), torch.device("cpu"))
    x, _ = planted(2000)
    made.start({"x": x})
    return made, x


def test_start_puts_the_bias_at_the_median_of_the_scaled_vectors():
    made, x = trainee(batch=2000)
    scaled = x * made.scale_in
    distance = (scaled - made.sae.b_dec).norm(dim=1).mean()
    assert distance < (scaled - scaled.mean(0)).norm(dim=1).mean() + 1e-5
    assert distance < scaled.norm(dim=1).mean() * 0.99
    none, _ = trainee(init_b_dec=False)
    assert torch.equal(none.sae.b_dec, torch.zeros(D))


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
def test_start_scales_the_encoder_to_what_reconstructs_best(architecture):
    made, x = trainee(architecture, batch=2000)
    target = x * made.scale_in - made.sae.b_dec
    size = made.sae.W_enc.detach().norm(dim=0)
    torch.testing.assert_close(size, size[:1].expand_as(size))

    def error(factor: float) -> float:
        acts = encode_topk(target, made.sae.W_enc * factor, made.sae.b_enc, made.cfg.k)
        return float((decode_sparse(acts, made.sae.W_dec) - target).pow(2).sum().detach())

    assert size[0] < 0.95
    assert error(1.0) < min(error(0.9), error(1.1), error(float(1 / size[0])))


def test_start_leaves_encoders_alone_that_do_not_reconstruct_their_input():
    assert torch.allclose(trainee("relu")[0].sae.W_enc.norm(dim=0), torch.ones(()))
    apart = Trainee(sae_config("topk"), config(), HookPair("x", "y"), torch.device("cpu"))
    x, _ = planted(2000)
    apart.start({"x": x, "y": x})
    assert torch.allclose(apart.sae.W_enc.norm(dim=0), torch.ones(()))
    assert encoder_scale(torch.zeros(3, D), apart.sae.W_enc, apart.sae.b_enc, apart.sae.W_dec, 2) == 1


def test_dead_counts_are_in_vectors():
    made, x = trainee(dead_window=300)
    with torch.no_grad():
        made.sae.b_enc[:5] = -100.0
    for step in range(3):
        assert not made.dead.any()
        made.step({"x": x[:128]}, step, 1e-4, log=False)
    assert made.since_fired[:5].tolist() == [384] * 5
    assert made.dead[:5].all()
    assert int(made.since_fired.min()) == 0


def test_decoder_rows_keep_their_norm_only_where_asked():
    for unit in (True, False):
        made, x = trainee(unit_decoder=unit)
        for step in range(5):
            made.step({"x": x[:128]}, step, 3e-2, log=False)
        off = (made.sae.W_dec.norm(dim=1) - 1).abs().max().item()
        assert (off < 1e-5) == unit


def test_clipping_bounds_the_step():
    made, x = trainee(clip=1e-9)
    made.step({"x": x[:128]}, 0, 1e-3, log=False)
    assert made.optimizer.grad_norm is not None
    assert made.optimizer.grad_norm.item() > 1e-3
    assert max(float(s["exp_avg"].norm()) for s in made.optimizer.state.values()) < 1e-9


def test_what_was_trained_holds_no_moments():
    made, x = trainee()
    made.step({"x": x[:128]}, 0, 1e-3, log=False)
    assert made.optimizer.state
    made.trained({"x": x[128:512]})
    assert not made.optimizer.state


def test_several_hook_points_train_in_one_pass(tmp_path):
    x, _ = planted(40_000)
    passes = []

    class Both:
        def __iter__(self):
            passes.append(1)
            return iter([{"a": p, "b": p.flip(1), "unused": p} for p in x.split(200)])

    cfgs = {"a": sae_config(), "b": sae_config("batchtopk")}
    both = train_many(cfgs, Both(), config(steps=20), out=tmp_path / "both")
    assert sorted(p.name for p in (tmp_path / "both").iterdir()) == ["a", "b", "train.jsonl"]
    assert len(passes) == 1
    assert {line["hook_point"] for line in log(tmp_path / "both")} == {"a", "b"}
    assert card(tmp_path / "both" / "b")["hook_point"] == "b"
    alone = train(cfgs["a"], [{"a": p} for p in x.split(200)], config(steps=20), out=tmp_path / "alone")
    assert torch.equal(alone.W_dec, both["a"].W_dec)
    assert not torch.equal(alone.W_dec, both["b"].W_dec)
    with pytest.raises(InputError, match="at least one hook point"):
        train_many({}, Both(), config(), out=tmp_path / "none")


@pytest.mark.parametrize("skip", [False, True])
def test_two_hook_points_give_a_transcoder(tmp_path, skip):
    x, _ = planted(4000)
    y = torch.tanh(x[:, :6] * 2) * 30
    batches = [{"mlp_in": a, "mlp_out": b} for a, b in zip(x.split(200), y.split(200), strict=True)]
    train(sae_config(d_out=6, skip=skip, k=8), batches, config(steps=150), out=tmp_path / "t")
    told = card(tmp_path / "t")
    assert (told["hook_point"], told["hook_point_out"]) == ("mlp_in", "mlp_out")
    assert told["metrics"]["fvu"] < 0.3
    with pytest.raises(InputError, match="two hook points and d_out"):
        train(sae_config(), batches, config(), out=tmp_path / "u")


def test_nan_stops_the_run_and_leaves_the_batch(tmp_path):
    x, _ = planted(5000)
    x[3000, 5] = torch.nan
    with pytest.raises(NumericsError, match=r"'x', vector \d+ of step 23") as stopped:
        train(sae_config(), stream(x), config(normalize_vectors=256), out=tmp_path / "s")
    saved = next((tmp_path / "s").glob("bad-batch-*.safetensors"))
    assert str(saved) in str(stopped.value)
    assert torch.isnan(load_tensors(saved, finite=False)["x"]).sum() == 1
    assert not (tmp_path / "s" / "efface.json").exists()


@pytest.mark.parametrize("architecture", ["topk", "relu"])
def test_a_run_that_diverges_stops_and_leaves_the_batch(tmp_path, architecture):
    """NaN that training itself makes: in the pre-activations of a sparse encoder, in the loss of a dense one."""
    x = stream(planted(5000)[0])
    train(sae_config(architecture=architecture), x, config(steps=10), out=tmp_path / "calm")
    with pytest.raises(NumericsError, match=r"step \d+: .*the batch was saved as") as stopped:
        train(sae_config(architecture=architecture), x, config(steps=10, lr=1e30, unit_decoder=False, clip=None), out=tmp_path / "s")
    assert str(next((tmp_path / "s").glob("bad-batch-*.safetensors"))) in str(stopped.value)


@pytest.mark.parametrize("name", ["lr", "l1", "auxk_coef", "eps"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_numbers_that_are_none_are_refused(name, value):
    config(**{name: 0.5})
    with pytest.raises(InputError, match=f"{name} must be a finite number"):
        config(**{name: value})


def test_bad_input_is_refused_before_anything_is_written(tmp_path):
    x = stream(planted(2000)[0])
    for kind, words, call in [
        (InputError, "d_in is 8, but", lambda out: train(sae_config(d_in=8), x, config(), out=out)),
        (MatchedNothing, "no more", lambda out: train(sae_config(), [], config(), out=out)),
        (InputError, "train_many", lambda out: train(sae_config(), [dict.fromkeys("abc", x[0])], config(), out=out)),
        (
            InputError,
            "hook point 'q' is not among",
            lambda out: train_many({"q": sae_config()}, [{"a": x[0]}], config(), out=out),
        ),
    ]:
        with pytest.raises(kind, match=words):
            call(tmp_path / "new")
        assert not (tmp_path / "new").exists()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        train(sae_config(), x, config(), out=tmp_path / "used")
    assert (tmp_path / "used" / "notes.txt").read_text() == "mine"


def test_wandb_only_on_request(tmp_path, monkeypatch):
    x = stream(planted(2000)[0])
    sent = []

    class Fake:
        def log(self, values, step):
            sent.append((step, values["metrics/l0"]))

        def finish(self):
            sent.append("finished")

    monkeypatch.setitem(sys.modules, "wandb", None)
    train(sae_config(), x, config(steps=20), out=tmp_path / "plain")
    with pytest.raises(InputError, match="pip install"):
        train(sae_config(), x, config(steps=20, log="wandb"), out=tmp_path / "asked")
    module = ModuleType("wandb")
    monkeypatch.setattr(module, "init", lambda **told: sent.append(told["project"]) or Fake(), raising=False)
    monkeypatch.setitem(sys.modules, "wandb", module)
    train(sae_config(), x, config(steps=20, log="wandb"), out=tmp_path / "asked")
    assert sent == ["efface", (20, 3.0), "finished"]
