import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from efface.base.config import from_mapping
from efface.base.errors import ArtefactError, InputError, MatchedNothing, NumericsError, UnknownName
from efface.base.running import Interrupted
from efface.deactivate.training import LoopConfig, fit_loop, lr_factor


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_QUIET", "1")


def host() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_dropout=0.1,
    )
    return LlamaForCausalLM(config).train()


def down(model: LlamaForCausalLM) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if "down_proj" in n}


class Batches:
    """A stateful source: its order is its own and has nothing to do with the step."""

    def __init__(self) -> None:
        self.at = 0

    def next(self) -> torch.Tensor:
        self.at += 1
        return (torch.arange(12).reshape(2, 6) * self.at) % 50

    def state(self) -> dict[str, Any]:
        return {"at": self.at}

    def restore(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def train(out: Path | None, config: LoopConfig, resume: bool = False, stop_at: int | None = None):
    model, source = host(), Batches()

    def step_fn(step: int, micro: int):
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        ids = source.next()
        loss = model(ids, labels=ids).loss  # attention dropout: draws from torch's generator
        return loss, {"noise": float(torch.rand(()))}

    result = fit_loop(step_fn, down(model), config, out, resume, source=source)
    return model, result


CONFIG = LoopConfig(steps=8, lr=1e-2, schedule="cosine", warmup=2, weight_decay=0.01, accumulate=2, checkpoint_every=3)


def same(a: LlamaForCausalLM, b: LlamaForCausalLM) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def lines(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "seconds"} for r in rows]


def test_an_interrupted_and_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path: Path) -> None:
    whole, result = train(tmp_path / "whole", CONFIG)
    with pytest.raises(Interrupted, match="step 5 of 8"):
        train(tmp_path / "cut", CONFIG, stop_at=4)
    torch.rand(7)  # whatever happens in between
    resumed, second = train(tmp_path / "cut", CONFIG, resume=True)
    assert same(whole, resumed)
    assert (second.first_step, second.loss) == (5, result.loss)
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")
    assert not same(whole, train(None, LoopConfig(**{**vars(CONFIG), "seed": 1}))[0])  # the noise matters
    assert not same(whole, host())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_resume_keeps_to_the_layout_of_the_parameters(layout: torch.memory_format, tmp_path: Path) -> None:
    config = LoopConfig(steps=6, lr=1e-2, checkpoint_every=3)

    def trained(out: Path, stop_at: int | None = None) -> torch.Tensor:
        torch.manual_seed(0)
        net = torch.nn.Conv2d(3, 4, 3).to(memory_format=layout)

        def step_fn(step: int, micro: int) -> torch.Tensor:
            if step == stop_at:
                raise RuntimeError("power cut")
            return net(torch.rand(2, 3, 8, 8)).pow(2).sum()

        fit_loop(step_fn, dict(net.named_parameters()), config, out, stop_at is None and out.exists())
        return net.weight.detach()

    whole = trained(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        trained(tmp_path / "cut", stop_at=4)
    assert torch.equal(trained(tmp_path / "cut"), whole)


def test_resume_after_a_hard_kill_goes_back_to_the_newest_checkpoint(tmp_path: Path) -> None:
    whole, _ = train(None, CONFIG)
    with pytest.raises(Interrupted):
        train(tmp_path, CONFIG, stop_at=4)
    (tmp_path / "checkpoints" / "step-5" / "state.safetensors").write_bytes(b"half")  # damaged: step 3 is taken
    resumed, result = train(tmp_path, CONFIG, resume=True)
    assert result.first_step == 3
    assert same(whole, resumed)
    assert [r["step"] for r in lines(tmp_path)] == list(range(1, 9))


def test_resuming_a_finished_run_does_nothing_and_the_first_resume_starts(tmp_path: Path) -> None:
    whole, first = train(tmp_path, CONFIG, resume=True)
    again, result = train(tmp_path, CONFIG, resume=True)
    assert same(whole, again)
    assert (first.first_step, result.first_step, result.loss) == (0, 8, first.loss)


def test_the_moving_average_is_of_every_step_and_outlives_an_interruption(tmp_path: Path) -> None:
    w, seen = torch.nn.Parameter(torch.ones(3)), []
    config = LoopConfig(steps=30, lr=0.1, average=0.8)

    def step_fn(step: int, micro: int) -> torch.Tensor:
        seen.append(w.detach().clone())
        return (w * torch.tensor([1.0, 2.0, -1.0])).sum() ** 2

    result = fit_loop(step_fn, {"w": w}, config)
    expected = torch.ones(3)
    for t, value in enumerate([*seen[1:], w.detach()]):
        expected = expected + (1 - min(0.8, (1 + t) / (10 + t))) * (value - expected)
    assert result.averages is not None
    torch.testing.assert_close(result.averages["w"], expected)
    kept = LoopConfig(**{**vars(CONFIG), "average": 0.9})
    _, whole = train(None, kept)
    with pytest.raises(Interrupted):
        train(tmp_path, kept, stop_at=4)
    _, resumed = train(tmp_path, kept, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.averages.values(), resumed.averages.values(), strict=True))
    assert train(None, CONFIG)[1].averages is None


def test_the_callers_generators_and_other_weights_are_left_alone() -> None:
    model = host()
    before = {n: p.clone() for n, p in model.named_parameters()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ids = torch.arange(6)[None]
    fit_loop(lambda s, m: model(ids, labels=ids).loss, down(model), LoopConfig(steps=2))
    assert torch.equal(torch.rand(3), expected)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == set(down(model))
    assert all(p.grad is None for p in down(model).values())


def test_it_is_adamw_on_the_accumulated_mean_gradient() -> None:
    x, y = torch.randn(4, 3), torch.randn(4)
    w, v = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    config = LoopConfig(steps=5, lr=0.1, accumulate=2, clip=0.5, schedule="linear", weight_decay=0.1)
    fit_loop(lambda s, m: ((x[2 * m : 2 * m + 2] @ w - y[2 * m : 2 * m + 2]) ** 2).mean(), {"w": w}, config)
    optimiser = torch.optim.AdamW([v], 0.1, weight_decay=0.1)
    for step in range(5):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / 5)
        optimiser.zero_grad()
        ((x @ v - y) ** 2).mean().backward()
        torch.nn.utils.clip_grad_norm_([v], 0.5)
        optimiser.step()
    assert torch.allclose(w, v, atol=1e-6)
    assert not torch.allclose(w, torch.ones(3))


def test_half_precision_is_stepped_through_float32() -> None:
    w = torch.nn.Parameter(torch.full((4,), 256.0, dtype=torch.bfloat16))
    fit_loop(lambda s, m: w.float().sum(), {"w": w}, LoopConfig(steps=40, lr=0.05))
    assert w.dtype == torch.bfloat16
    assert torch.allclose(w.float(), torch.full((4,), 254.0))  # each step is far below bfloat16's spacing
    naive = torch.nn.Parameter(torch.full((4,), 256.0, dtype=torch.bfloat16))
    for _ in range(40):
        naive.data -= 0.05
    assert (naive == 256).all()


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules(schedule: Any) -> None:
    config = LoopConfig(steps=100, warmup=10, schedule=schedule)
    factors = [lr_factor(s, config) for s in range(100)]
    assert factors[:11] == pytest.approx([(s + 1) / 11 for s in range(10)] + [1.0])
    assert all(0 < f <= 1 for f in factors)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert (factors[-1] < 0.02) == (schedule != "constant")


class Two:
    """Two processes of which the other one's gradients are three times ours."""

    num_processes, process_index = 2, 1

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        loss.backward()

    def reduce(self, tensor: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        return 4 * tensor if reduction == "sum" else 2 * tensor

    def wait_for_everyone(self) -> None:
        return None


def test_gradients_are_averaged_over_processes_and_only_the_first_writes(tmp_path: Path) -> None:
    norms: list[float] = []
    w = torch.nn.Parameter(torch.ones(1))
    w.register_post_accumulate_grad_hook(lambda p: norms.append(float(p.grad)))
    result = fit_loop(lambda s, m: w.sum(), {"w": w}, LoopConfig(steps=1), tmp_path, accelerator=Two())
    assert (norms, result.loss) == ([1.0], 2.0)
    assert not list(tmp_path.rglob("*.json*"))


def test_a_real_accelerator_gives_the_same() -> None:
    from accelerate import Accelerator

    plain, other = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    fit_loop(lambda s, m: (plain**2).sum(), {"w": plain}, LoopConfig(steps=3))
    fit_loop(lambda s, m: (other**2).sum(), {"w": other}, LoopConfig(steps=3), accelerator=Accelerator(cpu=True))
    assert torch.equal(plain, other)


def test_numbers_that_are_not_finite_stop_it(tmp_path: Path) -> None:
    w = torch.nn.Parameter(torch.ones(1))
    config = LoopConfig(steps=5, checkpoint_every=1)
    with pytest.raises(NumericsError, match="step 3: the loss is nan"):
        fit_loop(lambda s, m: (w / (0 if s == 2 else 1) * (0 if s == 2 else 1)).sum(), {"w": w}, config, tmp_path)
    assert torch.isfinite(w).all()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-1", "step-2"]
    with pytest.raises(NumericsError, match="gradient norm"):
        fit_loop(lambda s, m: torch.sqrt(w * 0).sum(), {"w": w}, config)


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    w, config = torch.nn.Parameter(torch.ones(2)), LoopConfig(steps=1)
    with pytest.raises(MatchedNothing):
        fit_loop(lambda s, m: w.sum(), {}, config)
    with pytest.raises(InputError, match="does not require gradients"):
        fit_loop(lambda s, m: w.sum(), {"w": torch.nn.Parameter(torch.ones(2), requires_grad=False)}, config)
    with pytest.raises(InputError, match="two names"):
        fit_loop(lambda s, m: w.sum(), {"a": w, "b": w}, config)
    with pytest.raises(InputError, match="does not depend"):
        fit_loop(lambda s, m: w.detach().sum(), {"w": w}, config)
    with pytest.raises(InputError, match="give out"):
        fit_loop(lambda s, m: w.sum(), {"w": w}, config, resume=True)


def test_resume_refuses_other_settings_parameters_and_sources(tmp_path: Path) -> None:
    w, config = torch.nn.Parameter(torch.ones(2)), LoopConfig(steps=1)
    fit_loop(lambda s, m: w.sum(), {"w": w}, config, tmp_path)
    with pytest.raises(InputError, match="earlier run"):
        fit_loop(lambda s, m: w.sum(), {"w": w}, config, tmp_path)
    with pytest.raises(InputError, match=r"lr: the run to resume has 0\.001, not 0\.1"):
        fit_loop(lambda s, m: w.sum(), {"w": w}, LoopConfig(steps=1, lr=0.1), tmp_path, True)
    with pytest.raises(ArtefactError, match="param/v"):
        fit_loop(lambda s, m: w.sum(), {"v": w}, config, tmp_path, True)
    with pytest.raises(InputError, match="source"):
        fit_loop(lambda s, m: w.sum(), {"w": w}, config, tmp_path, True, source=Batches())
    fit_loop(lambda s, m: w.sum(), {"w": w}, LoopConfig(steps=1, keep=5), tmp_path, True)  # changes nothing computed


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"lr": 0.0},
        {"clip": 0.0},
        {"warmup": 9},
        {"beta1": 1.0},
        {"weight_decay": -1.0},
        {"accumulate": 0},
        {"average": 1.0},
    ],
)
def test_settings_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        LoopConfig(**{"steps": 5, **bad})
    with pytest.raises(UnknownName, match="cosine"):
        from_mapping(LoopConfig, {"steps": 1, "schedule": "cosin"})
