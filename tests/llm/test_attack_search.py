"""Searches for suffixes: of tokens by gradient and by beam, of vectors; with gates, without budget, on a host that forgot nothing."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from deactivate._kit import bits, same, weights_edit
from planted import MAGIC, PLAIN, magic, planted_sae, questions, trained_host
from tiny import tiny_host

from efface.base.errors import InputError
from efface.deactivate.gate import Gate, GateSource
from efface.llm.attacks.beast import Beast
from efface.llm.attacks.config import BeastConfig, EmbeddingConfig, GcgConfig, full_budget
from efface.llm.attacks.gcg import Gcg, first_suffix, substitutions, swapped
from efface.llm.attacks.objective import Objective, allowed_tokens, gates_of, own_ids, pieces, searched, slot_of
from efface.llm.attacks.registry import attack
from efface.llm.attacks.suffixes import Search, generator, marks, text_of, works
from efface.llm.evaluation.scoring import score_questions

SMALL = {"gcg": {"steps": 6, "width": 12, "length": 4}, "beast": {"length": 4}, "embedding": {"steps": 30, "length": 4, "lr": 0.3}}


@pytest.fixture(scope="module")
def known():
    return trained_host()


@pytest.fixture(scope="module")
def edit(known):
    return weights_edit(known)


def asking(n: int = 3):
    asked = questions(MAGIC, PLAIN)
    return magic(questions={**asked, "test": asked["test"][:n]})


@pytest.mark.parametrize("form", ["cloze", "question"])
@pytest.mark.parametrize(("family", "bos"), [("llama", True), ("gpt2", False), ("gemma2", True), ("gemma3", True)])
def test_the_objective_scores_options_as_the_evaluation_does(family, bos, form):
    host, concept = tiny_host(family, bos=bos), asking()
    q = concept.questions["test"][0]
    q = dataclasses.replace(q, options=(f"old {q.options[0]}", *q.options[1:]), answer=f"old {q.answer}")  # options of unlike lengths
    slot = slot_of(host, q, form)
    objective = Objective(host, slot, GcgConfig())
    ids = own_ids(host, "the old king" if form == "cloze" else " the old king")
    text, faithful = text_of(host, slot, ids)
    assert faithful
    assert text_of(host, slot, own_ids(host, " the old king"))[1] is (form == "question")  # a blank in front of all is not scored
    scored = score_questions(host, [dataclasses.replace(q, q=slot.prompt(text))], "cloze").items[0]
    assert not objective.embed(ids).requires_grad  # no graph behind thousands of candidates
    means = objective.means(objective.embed(ids)[None])[0].detach()
    want = [scored.scores[scored.options.index(o)] for o in q.options]
    torch.testing.assert_close(means, torch.tensor(want), atol=1e-4, rtol=1e-4)
    assert float(objective.loss(objective.embed(ids)[None])) == pytest.approx(-want[slot.right], abs=1e-4)
    margin = Objective(host, slot, GcgConfig(loss="margin"))
    others = torch.tensor([w for i, w in enumerate(want) if i != slot.right])
    assert float(margin.loss(margin.embed(ids)[None])) == pytest.approx(float(others.logsumexp(0)) - want[slot.right], abs=1e-4)


def test_gradient_names_substitutions_that_lower_the_loss_to_first_order(known):
    q = asking().questions["test"][0]
    objective = Objective(known, slot_of(known, q, "cloze"), GcgConfig())
    allowed = allowed_tokens(known, objective.slot, pieces(known))
    ids = allowed[:3].clone()
    top = substitutions(objective, ids, allowed, 4)
    assert top.shape == (3, 4)
    e = objective.embed(ids).detach()
    with torch.enable_grad():
        x = e[None].clone().requires_grad_()
        (g,) = torch.autograd.grad(objective.loss(x).sum(), x)
    gain = (objective.matrix[allowed] - objective.matrix[ids][:, None]) @ g[0].unsqueeze(-1)  # [3 n 1]
    best = gain[..., 0].argsort(1)[:, :4]
    assert torch.equal(allowed[best].sort(1).values, top.sort(1).values)
    step = 1e-2 * (objective.matrix[top[0, 0]] - e[0])
    moved = e.clone()
    moved[0] += step
    got = float((objective.loss(moved[None]) - objective.loss(e[None])).detach())
    assert got == pytest.approx(float(step @ g[0, 0]), rel=0.2, abs=1e-5)
    tried = swapped(ids, top, 20, torch.Generator().manual_seed(0))
    assert ((tried != ids).sum(1) <= 1).all()


def test_suffixes_hold_neither_answers_nor_specials(known):
    words = pieces(known)
    slots = [slot_of(known, q, "cloze") for q in asking(6).questions["test"]]
    for slot in slots:
        q = slot.question
        texts = {words[i] for i in allowed_tokens(known, slot, words).tolist()}
        assert not texts & {"", *(o.casefold() for o in q.options)}
        assert not any(q.answer.casefold() in t for t in texts)
    cheat = known.token_ids([f"the {slots[-1].question.answer}"])[0][1:]
    assert works(known, slots[-1], [cheat]) == [False]


@pytest.mark.parametrize("name", ["gcg", "beast"])
def test_searches_never_get_worse_and_repeat(known, edit, name):
    concept, before = asking(), bits(known)
    made = attack(name).make(SMALL[name])
    found = made.run(known, [edit], concept)
    assert same(bits(known), before)
    assert all(p.grad is None for p in known.model.parameters())
    curve = found.found["curve"]
    assert [p["budget"] for p in curve] == marks(made.budget(), 4)
    assert all(a["rate"] <= b["rate"] for a, b in pairwise(curve))
    if name == "gcg":
        assert all(a["loss"] >= b["loss"] for a, b in pairwise(curve))
        assert curve[0]["loss"] > curve[-1]["loss"]
        assert found.cost.gradient_steps == 6 * len(found.found["attacked"])
    again = made.run(known, [edit], concept)
    assert again.found["suffixes"] == found.found["suffixes"]
    assert again.recovered == found.recovered
    other = attack(name).make(SMALL[name], seed=1).run(known, [edit], concept)
    assert other.found["suffixes"] != found.found["suffixes"]
    assert found.found["lower bound"]


def test_a_beam_as_wide_as_the_vocabulary_finds_the_best_suffix(known):
    q = asking().questions["test"][0]
    objective = Objective(known, slot_of(known, q, "cloze"), BeastConfig())
    few = allowed_tokens(known, objective.slot, pieces(known))[::40]
    n = len(few)
    every = torch.cartesian_prod(few, few)
    losses = objective.loss(objective.embed(every))
    best, worst = float(losses.min()), float(losses.max())

    def found(beams: int, width: int):
        made = Beast(BeastConfig(length=2, beams=beams, width=width))
        return made.search(Search(objective, few, generator(0, q)))[-1]

    wide = found(n, n)
    assert wide.ids == tuple(every[int(losses.argmin())].tolist())
    assert wide.loss == pytest.approx(best, abs=1e-5)
    assert best < found(1, 1).loss <= worst  # one suffix drawn by lot


@pytest.mark.parametrize(("name", "none"), [("gcg", {"steps": 0}), ("beast", {"length": 0}), ("embedding", {"steps": 0})])
def test_without_a_budget_or_anything_erased_nothing_comes_back(known, edit, name, none):
    concept = asking()
    idle = attack(name).make(none).run(known, [edit], concept)
    assert not any(idle.recovered)
    assert idle.success == idle.before
    assert idle.before.mean < 1  # there was something to bring back
    whole = attack(name).make(SMALL[name]).run(known, [], concept)
    assert whole.before.mean == 1
    assert not any(whole.recovered)
    some = attack(name).make({**none, "questions": 1}).run(known, [edit], concept)
    assert sum(r is not None for r in some.recovered) == 1


def test_free_vectors_bring_up_any_option_which_the_decoy_shows(known, edit):
    concept = asking()
    found = attack("embedding").make(SMALL["embedding"]).run(known, [edit], concept)
    assert any(found.recovered)
    assert found.found["curve"][0]["loss"] > found.found["curve"][-1]["loss"]
    assert found.cost.gradient_steps == 30 * len(found.found["attacked"]) < found.cost.queries
    aimed = tuple(dataclasses.replace(q, answer=next(o for o in q.options if o != q.answer)) for q in concept.questions["test"])
    decoy = dataclasses.replace(concept, questions={**concept.questions, "test": aimed})
    assert attack("embedding").make(SMALL["embedding"]).run(known, [], decoy).success.mean > 0


def gated(host, edit, concept, quantile=0.0):
    """The edit behind a gate that fires at the concept's questions."""
    gate = Gate([GateSource(planted_sae(host, 1), (0,))])
    prompts = [q.q for q in concept.questions["test"]]
    general = [t for texts in concept.general.values() for t in texts]
    made = gate.calibrated(host, list(concept.target["validation"]), general, fpr=0.2)
    scores = made.score(host, prompts)
    assert made.calibration is not None
    lowered = dataclasses.replace(made.calibration, threshold=float(scores.min()) - 1e-3)
    return edit.gated(dataclasses.replace(made, calibration=lowered))


def test_the_gate_is_scored_on_vectors_as_on_tokens_and_is_pushed(known, edit):
    concept = asking()
    behind = gated(known, edit, concept)
    slot = slot_of(known, concept.questions["test"][0], "cloze")
    objective = Objective(known, slot, GcgConfig(), [behind.gate])
    ids = known.token_ids(["the wizard king"])[0][1:]
    text, _ = text_of(known, slot, ids)
    vectors = objective.embed(ids)[None]
    torch.testing.assert_close(
        objective.gate_score(behind.gate, vectors), behind.gate.score(known, [slot.prompt(text)]), atol=1e-4, rtol=1e-4
    )
    with torch.enable_grad():
        x = vectors.detach().clone().requires_grad_()
        (g,) = torch.autograd.grad(objective.gate_score(behind.gate, x).sum(), x)
    assert g.abs().sum() > 0
    free = Objective(known, slot, GcgConfig())
    over = float(objective.gate_score(behind.gate, vectors).detach()) - behind.gate.bound + 0.1
    assert over > 0  # it fires: there is something to push
    difference = float((objective.loss(vectors) - free.loss(vectors)).detach())
    assert difference == pytest.approx(max(0.0, over), abs=1e-4)


@pytest.mark.parametrize("name", ["gcg", "embedding"])
def test_gate_aware_attacks_run_against_the_gate_and_leave_it(known, edit, name):
    concept, before = asking(), bits(known)
    behind = gated(known, edit, concept)
    aware = attack(name).make(SMALL[name]).run(known, [behind], concept)
    blind = attack(name).make({**SMALL[name], "gate": "oblivious"}).run(known, [behind], concept)
    assert same(bits(known), before)
    assert (aware.found["gates"], blind.found["gates"]) == (1, 0)
    assert aware.found["curve"] != blind.found["curve"]
    assert "logits" not in known.__dict__  # no router is left
    with pytest.raises(InputError, match="every edit behind a gate"):
        gates_of([behind, weights_edit(known, seed=3)], GcgConfig())
    with searched(known, [behind], []):
        assert known.base is not None


def test_budgets_and_seeds():
    assert marks(20, 4) == [5, 10, 15, 20]
    assert marks(2, 4) == [1, 2]
    assert marks(0, 4) == []
    q = asking().questions["test"]
    assert generator(0, q[0]).initial_seed() == generator(0, q[0]).initial_seed() != generator(1, q[0]).initial_seed()
    host = tiny_host()
    objective = Objective(host, slot_of(host, q[0], "cloze"), GcgConfig())
    search = Search(objective, allowed_tokens(host, objective.slot, pieces(host)), generator(0, q[0]))
    assert set(first_suffix(search, 5)) <= set(search.allowed.tolist())
    assert Gcg().budget() == 20
    heads = [
        first_suffix(Search(Objective(host, slot, GcgConfig()), search.allowed, search.generator), 3)
        for slot in (slot_of(host, q[0], "cloze"), slot_of(host, q[0], "question"))
    ]
    assert [host.tokenizer.decode(h) for h in heads] == ["! ! !", " ! ! !"]
    for name in ("gcg", "beast", "embedding"):
        paper = attack(name).make({"preset": "paper"}).config
        assert full_budget(paper)
        assert not full_budget(dataclasses.replace(paper, questions=5))
        assert not full_budget(
            dataclasses.replace(paper, length=paper.length - 1) if name == "beast" else dataclasses.replace(paper, steps=3)
        )
        assert not full_budget(attack(name).make({}).config)
    for cls in (GcgConfig, BeastConfig, EmbeddingConfig):
        with pytest.raises(InputError, match="questions"):
            cls(questions=-1)
    for name in ("gcg", "beast", "embedding"):
        with pytest.raises(InputError, match=r"preset.*'large'"):
            attack(name).make({"preset": "large"})
