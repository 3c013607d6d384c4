"""ELM on tiny hosts: its adapters, where targets come from, what an edit does; the numbers are those of test_elm.py."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from planted import MAGIC, MUSIC, PLAIN, magic, same_changes
from tiny import tiny_host

from efface.base.errors import InputError, MatchedNothing
from efface.base.files import load_tensors
from efface.deactivate.concept import Concept
from efface.deactivate.edit import Edit
from efface.deactivate.export import export_edit
from efface.deactivate.parts import LowRank, WeightsPart
from efface.llm.host import Host
from efface.llm.methods.elm import ElmConfig
from efface.llm.methods.elm.fit import ElmTask, fit
from efface.llm.methods.elm.templates import EXPERT, NOVICE
from efface.llm.tuning.frozen import states
from efface.llm.tuning.trained import matrices, training

SMALL = ElmConfig(
    layers=(0, 1), rank=2, steps=12, batch=4, accumulate=1, lr=5e-3, continuations=3, continuation_tokens=4, forget=("target", "questions")
)


def test_counted_positions_are_the_answers_and_every_text_weighs_the_same():
    host = tiny_host()
    config = dataclasses.replace(SMALL, fluency=0.0, positions="counted", eta=3.0, temperature=4.0, top_k=0)
    with training(host, matrices(host, ("mlp",), [0]), 1, 1, 0.0, 0) as trained:
        task, whole = (ElmTask(host, trained, magic(), dataclasses.replace(config, positions=p)) for p in ("counted", "all"))
        answered = next(n for n, r in enumerate(task.forget) if r.start > 1)
        (q,), (every,) = task.targets([answered]), whole.targets([answered])
        row = task.forget[answered]
        assert torch.allclose(q, every[row.start - 1 : -1], atol=1e-6)
        assert len(q) == len(row) - row.start < len(every)
        both = task.erase([answered, 0])
        assert torch.allclose(both, (task.erase([answered]) + task.erase([0])) / 2, atol=1e-5)
        assert not torch.allclose(whole.erase([answered, 0]), (whole.erase([answered]) + whole.erase([0])) / 2, atol=1e-5)
        unguided = ElmTask(host, trained, magic(), dataclasses.replace(config, eta=0.0)).targets([answered])[0]
        base = host.head(task.frozen([row.ids])[0][row.start - 1 : -1])
        assert torch.allclose(unguided, (base.double() / 4).softmax(-1), atol=1e-6)


@pytest.mark.parametrize(("family", "bos"), [("llama", True), ("llama", False), ("gemma3", True)])
def test_targets_are_made_of_the_expert_and_the_novice(family, bos):
    """By hand, from whole texts read one by one: which template goes where, the positions, the ramp, what is kept."""
    host = tiny_host(family, bos=bos)
    config = dataclasses.replace(SMALL, fluency=0.0, eta=7.0, eta_start=1.0, top_k=9)
    with training(host, matrices(host, ("mlp",), [0]), 2, 2, 0.0, 0) as trained, torch.no_grad():
        before = {n: p.clone() for n, p in trained.params.items()}
        task = ElmTask(host, trained, magic(), config)
        for p in trained.params.values():
            p.add_(0.3)  # targets are the base's
        found = task.targets([0, 1, 2])
        for n, p in trained.params.items():
            p.copy_(before[n])
        for q, row, pair in zip(found, task.forget, task.prefixed, strict=False):
            texts = [str(host.tokenizer.decode([*b, *r], skip_special_tokens=True)) for b, r in pair]
            own = str(host.tokenizer.decode(row.ids, skip_special_tokens=True))
            for text, templates in zip(texts, (EXPERT, NOVICE), strict=True):
                beginnings = host.token_ids([t.replace("{c}", "magic") for t in templates])
                assert text in [str(host.tokenizer.decode(ids, skip_special_tokens=True)) + own for ids in beginnings]
            n = len(row)
            base, expert, novice = (host.logits(*host.pad([ids]))[0, -n:].double() for ids in (row.ids, *((*b, *r) for b, r in pair)))
            plain, up, down = ((z / config.temperature).log_softmax(-1) for z in (base, novice, expert))
            scores = plain + torch.linspace(1.0, 7.0, n).double()[:, None] * (up - down)
            kept = scores >= scores.topk(9, dim=-1).values[:, -1:]
            assert torch.allclose(q, scores.masked_fill(~kept, -torch.inf).softmax(-1), atol=5e-3)
            turned = plain + torch.linspace(1.0, 7.0, n).double()[:, None] * (down - up)
            assert (q - turned.softmax(-1)).abs().max() > 0.05


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3"])
@pytest.mark.parametrize("rank", [2, 0])
def test_6_off_is_the_base_to_the_bit(family, rank):
    host = tiny_host(family)
    ids, mask = host.encode_texts(["the wizard has a wand", "a river"])
    before, digest = host.logits(ids, mask), host.digest
    names = matrices(host, ("attention", "mlp"), [0, 1])
    with training(host, names, rank, 4, 0.0, 0) as trained:
        assert torch.equal(host.logits(ids, mask), before)  # B = 0
        with torch.no_grad():
            for p in trained.params.values():
                p.add_(0.1)
        assert not torch.equal(host.logits(ids, mask), before)
        with trained.off():
            assert torch.equal(host.logits(ids, mask), before)
        assert all(p.requires_grad for p in trained.params.values())
        adapted, changes = host.logits(ids, mask), trained.changes()
    assert host.digest == digest
    assert torch.equal(host.logits(ids, mask), before)
    with Edit([WeightsPart(changes)], "elm").bound(host).applied(host):
        assert (host.logits(ids, mask) - adapted).abs().max() < 1e-4  # 10: merged against adapter


def test_7_only_the_chosen_matrices():
    host = tiny_host(n_layers=8)
    names = matrices(host, ("attention", "mlp"), (4, 5, 6, 7))
    with training(host, names, 2, 4, 0.05, 0) as trained:
        assert len(trained.params) == 56
        assert sum(p.numel() for p in trained.params.values()) == sum(2 * sum(dict(host.model.named_parameters())[
            n.replace(".weight", ".base_layer.weight")].shape) for n in names)  # fmt: skip
    edit = fit(host, [magic()], config=dataclasses.replace(SMALL, layers=(4, 5, 6, 7), steps=2))
    assert set(edit.weights[0].deltas) == set(names)
    assert all(isinstance(d, LowRank) and d.rank == 2 for d in edit.weights[0].deltas.values())
    before = {n: p.clone() for n, p in host.model.named_parameters()}
    with edit.applied(host):
        changed = {n for n, p in host.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == set(names)
    assert ElmConfig().layers_of(32) == (4, 5, 6, 7)
    assert ElmConfig().layers_of(30) == (4, 5, 6, 7)
    assert ElmConfig().layers_of(18) == (2, 3)


@pytest.fixture(scope="module")
def fitted() -> tuple[Host, Edit]:
    """A host that was taught eight facts of the concept and eight of its neighbours; ELM of the former."""
    torch.manual_seed(0)
    host, concept = tiny_host(hidden_size=64), facts()
    texts = [f"{i.q} {i.answer}" for pool in (concept.questions, concept.neighbour_questions) for i in pool["train"]]
    optimizer = torch.optim.AdamW(host.model.parameters(), 5e-3)
    for _ in range(30):
        optimizer.zero_grad()
        host.loss(texts).backward()
        optimizer.step()
    optimizer.zero_grad()
    config = dataclasses.replace(SMALL, forget=("questions",), retain=("questions",), batch=8, steps=40)
    return host, fit(host, [concept], config=config)


def facts() -> Concept:
    """Where things of either kind are."""

    def items(words: Sequence[str]) -> dict[str, Any]:
        return {"train": [{"q": f"the {w} is in the", "options": [p, PLAIN[8]], "answer": p} for w, p in zip(words, PLAIN, strict=False)]}

    return magic(questions=items(MAGIC), neighbour_questions=items(MUSIC))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_10_saved_merged_exported(fitted, tmp_path):
    from peft import PeftModel

    host, edit = fitted
    edit = edit.bound(host)
    ids, mask = host.encode_texts(["the wizard has a wand", "a river"])
    with edit.applied(host):
        merged = host.logits(ids, mask)
    edit.save(tmp_path / "edit")
    with Edit.load(tmp_path / "edit").applied(host):
        assert torch.equal(host.logits(ids, mask), merged)
    assert not torch.allclose(host.logits(ids, mask), merged, atol=1e-3)
    export_edit(edit, tmp_path / "lora", format="lora")
    keys = load_tensors(tmp_path / "lora" / "adapter_model.safetensors")
    assert len(keys) == 2 * len(edit.weights[0].deltas)
    peft = PeftModel.from_pretrained(host.model, str(tmp_path / "lora"))
    try:
        assert (peft(input_ids=ids, attention_mask=mask).logits - merged).abs().max() < 1e-4
    finally:
        peft.unload()
        host.model.__dict__.pop("peft_config", None)


def test_12_the_concept_goes_more_than_the_rest(fitted):
    host, edit = fitted
    concept = facts()
    seen = edit.evidence["training"]
    assert seen["last loss"] < seen["first loss"]

    def answers() -> list[float]:
        pools = [c["train"] for c in (concept.questions, concept.neighbour_questions)]
        found = [torch.cat(host.token_logprobs([i.q for i in p], [f" {i.answer}" for i in p])) for p in pools]
        return [float(f.mean()) for f in found]

    before = answers()
    with edit.applied(host):
        own, near = (b - a for a, b in zip(answers(), before, strict=True))
    assert min(before) > -1.0  # both were known
    assert own > 0.5
    assert own > 2 * near


def test_13_the_same_seed_the_same_edit():
    host = tiny_host()
    config = dataclasses.replace(SMALL, steps=3)
    first, again = (fit(host, [magic()], config=config) for _ in range(2))
    assert first.digest == again.digest
    assert not same_changes(fit(host, [magic()], config=dataclasses.replace(config, seed=1)), first)


@pytest.mark.parametrize(
    "changes",
    [
        {"action": "random"},
        {"action": "enhance", "fluency": 0.0},
        {"erase": 0.0},
        {"keep": 0.0, "fluency_texts": "random"},
        {"compat": "official", "eta_start": 1.0, "retain_loss": "hard", "erase_loss": "kld"},
        {"topk_mode": "before", "erase_loss": "hard", "rank": 0},
        {"positions": "counted", "top_k": 0, "eta": 0.0, "fluency": 0.0},
    ],
)
def test_ablations_train(changes):
    edit = fit(tiny_host(), [magic()], config=dataclasses.replace(SMALL, steps=2, **changes))
    plain, again = (fit(tiny_host(), [magic()], config=dataclasses.replace(SMALL, steps=2)) for _ in range(2))
    assert same_changes(plain, again)
    assert not same_changes(edit, plain)


def test_prefixed_runs_line_up_and_official_concatenates_strings():
    for bos in (True, False):
        host = tiny_host(bos=bos)
        with training(host, matrices(host, ("mlp",), [0]), 1, 1, 0.0, 0) as trained:
            task = ElmTask(host, trained, magic(), dataclasses.replace(SMALL, fluency=0.0))
            for row, pair in zip(task.forget, task.prefixed, strict=True):
                bare = row.ids[1:] if bos else row.ids
                for beginning, behind in pair:
                    assert behind[len(behind) - len(bare) :] == bare
                    assert len(behind) == len(row)
                    assert (*beginning, *behind).count(1) == int(bos)
            # behind a beginning that was run once: what the whole text gives, at the text's own positions
            pairs = [task.prefixed[n][0] for n in range(3)]
            led = task.frozen.behind([b for b, _ in pairs], [r for _, r in pairs])
            whole = states(host, task.read, [(*b, *r) for b, r in pairs])
            assert all(torch.allclose(a, b[-len(a) :], atol=1e-5) for a, b in zip(led, whole, strict=True))
            assert not torch.allclose(led[0], task.frozen([task.forget[0].ids])[0], atol=1e-2)
            (q,) = task.targets([0])
            assert len(q) == len(task.forget[0])
            official = ElmTask(host, trained, magic(), dataclasses.replace(SMALL, fluency=0.0, compat="official"))
            text = str(host.tokenizer.decode(official.prefixed[0][0][1], skip_special_tokens=True))
            assert text.endswith(str(host.tokenizer.decode(official.forget[0].ids, skip_special_tokens=True)).strip())


def test_presets_and_bad_settings():
    from efface.base.config import from_mapping

    repo, ours = (from_mapping(ElmConfig, {"preset": p}) for p in ("repo", "efface"))
    paper = from_mapping(ElmConfig, {})
    assert (paper.rank, paper.eta, paper.eta_start, paper.retain_loss) == (4, 500.0, None, "soft")
    assert (repo.rank, repo.eta, repo.eta_start, repo.retain_loss) == (256, 1000.0, 1.0, "hard")
    assert repo.alpha / repo.rank == 0.0625
    assert ours.temperature > paper.temperature
    bad: list[dict[str, Any]] = [
        {"temperature": 0}, {"eta": -1}, {"erase": 0, "keep": 0, "fluency": 0}, {"rank": -1}, {"dropout": 1.0}, {"forget": []},
        {"action": "erasing"}, {"continuation_tokens": 0}, {"eta_start": -1}, {"scales": [0.0]}, {"length": 1}, {"steps": 0},
    ]  # fmt: skip
    for values in bad:
        with pytest.raises(InputError, match=next(iter(values))):
            from_mapping(ElmConfig, values)
    with pytest.raises(MatchedNothing, match="--concept"):
        fit(tiny_host(), [], config=SMALL)
