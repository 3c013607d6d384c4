"""The gate: threshold and rates from scores; scores of prompts; below threshold the host is the base, to the bit."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from deactivate._kit import POINT, bits, same, small_sae, tiny_host, weights_edit
from jaxtyping import TypeCheckError

from efface.base.errors import ArtefactError, InputError, MatchedNothing, NumericsError, UnknownName
from efface.deactivate.calibration import Calibration, calibrate, fires
from efface.deactivate.edit import Edit
from efface.deactivate.gate import Gate, GateSource
from efface.llm.host import Host

DOGS = ["the dog and the puppy bark", "a big dog", "the puppy is a dog", "my dog will bark at the cat", "two dog puppy"]
REST = [
    "the sun and the moon",
    "a short letter",
    "the king is old",
    "we play the piano at night",
    "two ships in the sea",
    "snow in winter",
]


def dog_gate(host: Host, fpr: float = 0.0) -> Gate:
    """An SAE whose first feature reads the words dog, puppy and bark off the first layer's input."""
    sae = small_sae(point="layers.0.resid_pre")
    table = host.model.get_input_embeddings().weight.detach()  # type: ignore[union-attr]
    ids = [i for w in (" dog", " puppy", " bark") for i in host.tokenizer(w)["input_ids"][-1:]]
    with torch.no_grad():
        sae.b_dec.zero_()
        sae.W_enc.zero_()
        sae.W_enc[:, 0] = table[ids].mean(0) / table[ids].mean(0).norm()
        sae.b_enc.fill_(-0.35)
    return Gate([GateSource(sae, (0,))]).calibrated(host, DOGS, REST, ["the cat and the horse"], fpr=fpr)


def test_threshold_at_a_stated_rate() -> None:
    rng = np.random.default_rng(0)
    pool, target = rng.normal(size=3000), rng.normal(5, size=100)
    c = calibrate(target, pool, rng.normal(1, size=50), fpr=0.01)
    assert c.pool.mean == 0.01
    assert c.pool.low < 0.01 < c.pool.high < 0.015
    assert c.pool.n == 3000
    assert c.target
    assert c.target.mean > 0.95
    assert c.auroc_pool
    assert c.auroc_pool["mean"] > 0.99
    assert c.auroc_neighbours
    assert c.auroc_neighbours["mean"] < c.auroc_pool["mean"]
    assert list(c.roc) == sorted(c.roc)
    assert c.roc[0] == (0, 0)
    assert c.roc[-1] == (1, 1)
    same_pool = calibrate(target + 3, pool, fpr=0.01)
    assert same_pool.threshold == c.threshold  # from the pool alone
    assert Calibration.from_dict(json.loads(json.dumps(c.as_dict()))) == c


def test_dead_band_ties_and_small_pools() -> None:
    c = calibrate([1.0], [0.0] * 99 + [1.0], fpr=0.01)
    assert c.pool.mean == 0.01
    assert "1 target texts" in c.note
    assert calibrate([1.0], [0.0] * 98 + [1.0] * 2, fpr=0.01).pool.mean == 0  # a tie does not fire
    scores = np.array([c.threshold, c.threshold - 0.9 * c.dead_band, c.threshold - 1.1 * c.dead_band])
    assert fires(scores, c.threshold, c.dead_band).tolist() == [True, True, False]
    small = calibrate([], [0.0, 1.0], fpr=0.01)
    assert small.pool.mean == 0
    assert "cannot show" in small.note
    assert small.auroc_pool is None
    assert calibrate([], [0.0, 1e9], fpr=0.0).pool.mean == 0
    for bad, error in (((), MatchedNothing), ([float("nan")], NumericsError)):
        with pytest.raises(error):
            calibrate([1.0], bad)
    with pytest.raises(InputError, match="fpr"):
        calibrate([1.0], [1.0], fpr=2.0)


def test_score_is_of_the_prompt_alone_and_of_the_unedited_host() -> None:
    host = tiny_host()
    gate = dog_gate(host)
    scores = gate.score(host, [*DOGS, *REST])
    opened = gate.fires(scores)
    assert opened[: len(DOGS)].all()
    assert not opened[len(DOGS) :].any()
    assert torch.equal(gate.score(host, [REST[0]])[0], scores[len(DOGS)])
    assert torch.allclose(gate.score(host, [*DOGS, *REST], batch=32), scores, atol=1e-6)
    edit = weights_edit(host)
    deep = Gate([GateSource(small_sae(point="layers.2.resid_post"), (1, 2, 3), (1.0, 2.0, -1.0))], "mean").calibrated(host, DOGS, REST)
    want = deep.score(host, DOGS)
    with edit.applied(host), edit.gated(gate).applied(host):
        assert torch.equal(deep.score(host, DOGS), want)
        assert dict(host.activations(*host.encode_texts(DOGS), ["layers.2.resid_post"]))


def test_below_threshold_the_bits_are_the_base() -> None:
    host = tiny_host()
    gated, edit = weights_edit(host).gated(dog_gate(host)), weights_edit(host)
    before, prompts = bits(host), [REST[0], DOGS[0], REST[1], DOGS[1], REST[3]]
    ids, mask = host.encode_texts(prompts)
    on = torch.tensor([False, True, False, True, False])

    @torch.no_grad()
    def outputs() -> tuple[torch.Tensor, list[str], list[torch.Tensor], torch.Tensor]:
        scores = host.token_logprobs(prompts, [" dog"] * 5)
        return (
            host.logits(ids, mask),
            host.generate(prompts, seed=3, max_new_tokens=8),
            scores,
            host.activations(ids, mask, [POINT])[POINT],
        )

    base = outputs()
    with edit.applied(host):
        edited = outputs()
    with gated.applied(host):
        got, rest_loss = outputs(), host.loss(REST)
        dogs_loss, mixed = host.loss(DOGS), host.loss(prompts)
    assert torch.equal(got[0][~on], base[0][~on])
    assert torch.equal(got[0][on], edited[0][on])
    assert torch.equal(got[3][~on], base[3][~on])
    assert torch.equal(got[3][on], edited[3][on])
    for i, fired in enumerate(on.tolist()):
        want = edited if fired else base
        assert got[1][i] == want[1][i]
        assert torch.equal(got[2][i], want[2][i])
    assert not torch.equal(base[0][on], edited[0][on])
    assert base[1] != edited[1]
    assert same(bits(host), before)
    assert torch.equal(rest_loss, host.loss(REST))
    assert not torch.equal(mixed, host.loss(prompts))
    with edit.applied(host):
        assert torch.equal(dogs_loss, host.loss(DOGS))


def test_edited_weights_are_not_used_below_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    host = tiny_host()
    seen: list[torch.Tensor] = []
    name, weight, _ = host.down_proj(0)
    handle = host.model.get_submodule(name.removesuffix(".weight")).register_forward_hook(lambda *_: seen.append(weight.detach().clone()))
    base = weight.detach().clone()
    with weights_edit(host).gated(dog_gate(host)).applied(host):
        seen.clear()
        host.generate(REST[:2], max_new_tokens=3)
        assert seen
        assert all(torch.equal(w, base) for w in seen)
        host.generate(DOGS[:1], max_new_tokens=3)
        assert not all(torch.equal(w, base) for w in seen)
    handle.remove()


def test_nesting_and_the_bare_model() -> None:
    host = tiny_host()
    a, b, plain = (
        weights_edit(host, 1).gated(dog_gate(host)),
        weights_edit(host, 2).gated(dog_gate(host)),
        weights_edit(host, 3),
    )
    ids, mask = host.encode_texts([REST[0], DOGS[0]])
    before, own = bits(host), dict(host.__dict__)
    with torch.no_grad():
        with plain.applied(host):
            rest = host.logits(ids, mask)
            with weights_edit(host, 1).applied(host), weights_edit(host, 2).applied(host):
                dogs = host.logits(ids, mask)
        with a.applied(host), plain.applied(host), b.applied(host):
            got = host.logits(ids, mask)
            with pytest.raises(InputError, match="gated edit lies on this host"):
                host.model(input_ids=ids)
        assert torch.equal(got[0], rest[0])
        assert torch.equal(got[1], dogs[1])
        host.model(input_ids=ids)
    assert same(bits(host), before)
    assert host.__dict__.keys() == own.keys()
    with pytest.raises(RuntimeError), a.applied(host):
        raise RuntimeError
    assert host.__dict__.keys() == own.keys()
    assert same(bits(host), before)


def test_save_and_load(tmp_path: Path) -> None:
    host = tiny_host()
    gate = dog_gate(host)
    gate.save(tmp_path / "g")
    lying = {p.relative_to(tmp_path / "g").as_posix() for p in (tmp_path / "g").rglob("*") if p.is_file()}
    assert json.loads((tmp_path / "g" / "gate.json").read_text())["files"].keys() == lying - {"gate.json"} != set()
    again = Gate.load(tmp_path / "g")
    assert again.digest == gate.digest
    assert again.calibration == gate.calibration
    assert "general pool" in again.summary()
    assert torch.equal(again.score(host, DOGS), gate.score(host, DOGS))
    gated = weights_edit(host).gated(gate)
    gated.save(tmp_path / "e")
    loaded = Edit.load(tmp_path / "e")
    assert loaded.digest == gated.digest != weights_edit(host).digest
    assert loaded.gate
    assert "## Gate" in (tmp_path / "e" / "README.md").read_text()
    values = json.loads((tmp_path / "g" / "gate.json").read_text())
    for changes, message in (
        ({"format": 9}, "format 1"),
        ({"reduce": "mean"}, "altered"),
        ({"files": {"../x": ""}}, "outside"),
        ({"files": {"sae-0/cfg.json": ""}}, "altered"),
        ({"sources": [{}]}, "incomplete"),
    ):
        (tmp_path / "g" / "gate.json").write_text(json.dumps({**values, **changes}))
        with pytest.raises(ArtefactError, match=message):
            Gate.load(tmp_path / "g")


def test_refuses() -> None:
    host, sae = tiny_host(), small_sae()
    for build, error in (
        (lambda: GateSource(sae, ()), MatchedNothing),
        (lambda: GateSource(sae, (1, 2), (1.0,)), InputError),
        (lambda: GateSource(sae, (99,)), InputError),
        (lambda: Gate([]), MatchedNothing),
        (lambda: Gate([GateSource(sae, (1,))], "median"), (UnknownName, TypeCheckError)),  # type: ignore[arg-type]
        (lambda: Gate([GateSource(sae, (1,)), GateSource(sae, (2,))]), InputError),
        (lambda: Gate([GateSource(sae, (1,))]).calibrated(host, DOGS, []), MatchedNothing),
        (lambda: weights_edit(host).gated(Gate([GateSource(sae, (1,))])), InputError),
        (lambda: weights_edit(host).gated(dog_gate(host)).gated(dog_gate(host)), InputError),
    ):
        with pytest.raises(error):
            build()
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    with pytest.raises(MatchedNothing, match="none of the features fires"):
        Gate([GateSource(sae, (1,))]).calibrated(host, DOGS, REST)


def test_per_token_the_base_writes_until_the_gate_fires_and_then_the_edit() -> None:
    host, prompts = tiny_host(), REST[:3]
    before = bits(host)
    gate = replace(Gate([GateSource(small_sae(), (0, 1, 2))]).calibrated(host, DOGS, REST), per="token")

    def written(gate: Gate | None, i: int) -> str:
        with weights_edit(host).gated(gate).applied(host) if gate else nullcontext():
            return host.generate([prompts[i]], seed=i, max_new_tokens=24)[0]

    alone = [written(None, i) for i in range(3)]
    start = [float(gate.score(host, [p])) for p in prompts]
    peak = [float(gate.score(host, [p + t])) for p, t in zip(prompts, alone, strict=True)]
    i = next(i for i in range(3) if peak[i] > start[i] + 0.01)
    at = {"never": peak[i] + 1.0, "later": (peak[i] + start[i]) / 2, "at once": start[i] - 0.01}
    gates = {n: replace(gate, calibration=replace(gate.require_threshold(), threshold=t)) for n, t in at.items()}
    texts = {n: written(g, i) for n, g in gates.items()}
    with weights_edit(host).applied(host):
        edited = written(None, i)
    assert texts["never"] == alone[i]
    assert texts["at once"] == edited
    assert texts["later"] not in (alone[i], edited)
    assert texts["later"][:4] == alone[i][:4]  # earlier tokens are the base's
    assert written(replace(gates["later"], per="prompt"), i) == alone[i]  # the prompt alone does not fire
    with weights_edit(host).gated(gates["later"]).applied(host):
        assert host.generate(prompts, seed=0, max_new_tokens=24)[i] == texts["later"]  # whatever it is asked with
    assert same(bits(host), before)


def test_a_gate_per_token_is_saved_and_differs_from_one_per_prompt(tmp_path: Path) -> None:
    gate = dog_gate(tiny_host())
    running = replace(gate, per="token")
    assert running.digest != gate.digest
    running.save(tmp_path / "g")
    assert Gate.load(tmp_path / "g").per == "token"
    assert "per token" in running.summary()
    with pytest.raises(InputError, match="reduce='max'"):
        replace(running, reduce="mean")
    with pytest.raises((UnknownName, TypeCheckError)):
        replace(running, per="word")  # type: ignore[arg-type]


def test_targets_raise_the_threshold_above_their_neighbours_and_never_lower_it():
    pool, target, near = [0.0] * 99 + [1.0], [2.0, 6.0, 7.0, 8.0], [2.0, 3.0, 4.0]
    plain = calibrate(target, pool, near, fpr=0.01, dead_band=0.0)
    apart = calibrate(target, pool, near, fpr=0.01, dead_band=0.0, apart=True)
    assert plain.threshold < 0.01
    assert apart.threshold == 5.0  # three of four targets, no neighbour
    assert (apart.target.mean, apart.neighbours.mean) == (0.75, 0.0)
    same = calibrate([8.0], [5.0] * 100, [1.0], fpr=0.0, dead_band=0.0, apart=True)
    assert same.threshold == pytest.approx(5.0)
    assert same.threshold > 5.0
    fixed = calibrate(target, pool, near, fpr=0.01, dead_band=0.1, at=6.5)
    assert (fixed.threshold, fixed.dead_band, fixed.target.mean) == (6.5, 0.0, 0.5)
