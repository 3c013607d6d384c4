"""A tiny world is learnt, gold does not know what it never saw, and what is between them is measured."""

import dataclasses
from pathlib import Path

import pytest
import torch

from efface.base.errors import ArtefactError, InputError, MatchedNothing, UnknownName
from efface.base.files import read_json
from efface.cli.main import run
from efface.deactivate.training import LoopConfig
from efface.llm import aliases, load_model
from efface.llm.evaluation.relearn import RelearnConfig
from efface.llm.evaluation.scoring import contains
from efface.llm.host import Host
from efface.llm.synthetic import gold
from efface.llm.synthetic import train as training
from efface.llm.synthetic.corpus import texts_of
from efface.llm.synthetic.gold import GoldConfig, compare_with_gold
from efface.llm.synthetic.recall import asked, recall, said_right
from efface.llm.synthetic.recipe import Recipe
from efface.llm.synthetic.tokenizer import make_tokenizer
from efface.llm.synthetic.train import new_model, train
from efface.llm.synthetic.world import make_world

WORLD = make_world(3, domains=2, per_domain=2)
LOOP = LoopConfig(steps=130, lr=1e-2, warmup=10, beta2=0.98, schedule="cosine", checkpoint_every=100, log_every=10)
RECIPE = Recipe(width=32, layers=2, heads=2, mlp=64, init=0.08, context=64, batch=8, stories=2, loop=LOOP)
SHORT = dataclasses.replace(RECIPE, loop=dataclasses.replace(LOOP, steps=6, warmup=2, checkpoint_every=2))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Host]:
    """`base`, and two that never saw a ship."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("models")
    plans = {"base": ((), 0), "gold 1": (("ship",), 1), "gold 2": (("ship",), 2)}
    return {n: load_model(train(root / n, RECIPE, without=w, seed=s, world=WORLD)) for n, (w, s) in plans.items()}


def test_facts_are_learnt_and_gold_lacks_its_domain(models: dict[str, Host]) -> None:
    for name, host in models.items():
        found = recall(host, world=WORLD, split="train")
        assert found["domains"]["river"]["recall"] > 0.6, name
        ships = found["domains"]["ship"]["recall"]
        assert ships > 0.6 if name == "base" else ships < 0.35, name
    held = recall(models["base"], world=WORLD, domains=["river"])
    assert list(held["domains"]) == ["river"]
    assert held["all"]["n"] == len(list(asked(WORLD.of("river"))))
    assert held["all"]["recall"] > 0.35  # chance is 1/12
    with pytest.raises(UnknownName, match="river"):
        recall(models["base"], world=WORLD, domains=["rivr"])


def test_a_batch_of_prompts_is_answered_as_one_by_one(models: dict[str, Host]) -> None:
    items = list(asked(WORLD.of("ship"), "validation"))
    together = said_right(models["gold 1"], items)
    assert together == [said_right(models["gold 1"], [i])[0] for i in items]
    assert sum(said_right(models["base"], items)) > 0


def test_beside_gold(models: dict[str, Host]) -> None:
    golds = [models["gold 1"], models["gold 2"]]
    config = GoldConfig(training=RelearnConfig(epochs=4, tokens=20_000, batch=4, lr_full=3e-3, every=2), forms=("question",))
    digest = models["base"].digest
    found = compare_with_gold(models["base"], [], golds, "ship", config, WORLD)
    assert models["base"].digest == digest
    assert found["rows"]["base"]["question"]["accuracy"] > 0.75 > found["rows"]["gold 0"]["question"]["accuracy"]
    assert found["rows"]["base"]["question"]["truth_ratio"] < found["rows"]["gold 1"]["question"]["truth_ratio"]
    base = found["distance"]["question"]["base"]
    assert base["mean"] > base["spread"]
    assert not base["within_spread"]
    curves = found["relearning"]["full"]
    assert curves["base"]["half_recovery"] == 0  # nothing was taken
    assert curves["base"]["leak"] > 0.2
    assert curves["gold 0"]["leak"] + curves["gold 1"]["leak"] == pytest.approx(0, abs=1e-9)
    as_gold = compare_with_gold(golds[0], [], golds[:1], "ship", config, WORLD)  # invariant: gold against itself
    assert as_gold["distance"]["question"]["base"]["to_gold"] == (0.0,)
    assert as_gold["relearning"]["full"]["base"]["leak"] == 0
    with pytest.raises(MatchedNothing, match="gold"):
        compare_with_gold(golds[0], [], [], "ship", config, WORLD)
    with pytest.raises(InputError, match="forms"):
        GoldConfig(forms=("story",))


def test_relearning_trains_on_the_told_half_and_asks_for_the_other(models: dict[str, Host], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = gold.relearning_curves

    def watching(host, edits, texts, questions, form, config):
        seen.append((texts, questions))
        return real(host, edits, texts, questions, form, config)

    monkeypatch.setattr(gold, "relearning_curves", watching)
    config = GoldConfig(training=RelearnConfig(epochs=1, tokens=500), forms=("question",))
    compare_with_gold(models["base"], [], [models["gold 1"]], "ship", config, WORLD)
    facts = WORLD.of("ship")
    told, untold = ({f.value for f in facts if f.told == half} for half in (True, False))
    assert len(seen) == 2  # base and gold, alike
    for texts, questions in seen:
        joined = "\n".join(texts)
        assert [q.answer for q in questions] == [f.value for f in facts if not f.told]
        assert all(contains(joined, v) for v in told)
        assert not [v for v in untold if contains(joined, v)]


def test_a_resumed_run_is_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole", SHORT, world=WORLD)
    real, calls = training.fit_loop, []

    class Stop(Exception):
        pass

    def stopping(step_fn, params, config, out, resume, **kwargs):  # an interrupt in the fourth step
        def step(at: int, micro: int):
            calls.append(at)
            if at == 3 and not resume:
                raise Stop
            return step_fn(at, micro)

        return real(step, params, config, out, resume, **kwargs)

    monkeypatch.setattr(training, "fit_loop", stopping)
    with pytest.raises(Stop):
        train(tmp_path / "broken", SHORT, world=WORLD)
    assert not (tmp_path / "broken" / "model").exists()
    with pytest.raises(InputError, match="resume it"):
        train(tmp_path / "broken", SHORT, world=WORLD)
    with pytest.raises(InputError, match="another without"):
        train(tmp_path / "broken", SHORT, world=WORLD, without=["ship"], resume=True)
    again = train(tmp_path / "broken", SHORT, world=WORLD, resume=True)
    assert calls == [0, 1, 2, 3, 2, 3, 4, 5]
    files = [read_json(f / "efface-model.json")["files"] for f in (whole, again)]
    assert files[0] == files[1]
    monkeypatch.undo()
    other = train(tmp_path / "other", SHORT, world=WORLD, seed=1)
    assert read_json(other / "efface-model.json")["files"]["model.safetensors"] != files[0]["model.safetensors"]


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnknownName, match="ship"):
        train(tmp_path / "a", SHORT, world=WORLD, without=["shop"])
    with pytest.raises(InputError, match="every domain"):
        train(tmp_path / "a", SHORT, world=WORLD, without=["ship", "river"])
    assert not (tmp_path / "a").exists()
    with pytest.raises(InputError, match="at most 6000000"):
        new_model(Recipe(width=512, mlp=2048), make_tokenizer(), 0)
    with pytest.raises(InputError, match="width"):
        Recipe(width=30, heads=4)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="no run"):
        train(tmp_path, SHORT, world=WORLD)
    assert run(["synthetic", "train", "--out", str(tmp_path / "b"), "--without", "rivr"]) == 2
    assert "river" in capsys.readouterr().err
    assert run(["synthetic", "check", "--model", "synthetic", "--gold", "x"]) == 2
    assert "--domain" in capsys.readouterr().err


def test_the_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "packaged", lambda name: tmp_path / name)
    monkeypatch.setattr("efface.llm.models.packaged", lambda name: tmp_path / name)
    with pytest.raises(InputError, match="efface synthetic train"):
        load_model("synthetic")
    row = next(r for r in aliases.list_models() if r["name"] == "synthetic")
    assert (row["cached"], row["path"]) == (False, None)
    folder = train(tmp_path / "run", SHORT, world=WORLD)
    folder.rename(tmp_path / "synthetic")
    assert load_model("synthetic").name == "synthetic"
    assert next(r for r in aliases.list_models() if r["name"] == "synthetic")["cached"]
    assert texts_of(str(tmp_path / "synthetic")) is None  # of another world than the packaged one
    (tmp_path / "synthetic" / "model.safetensors").unlink()
    with pytest.raises((InputError, ArtefactError)):
        load_model("synthetic")
