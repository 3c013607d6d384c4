"""What ELM's formulas promise, each with its negative control, and how far published targets collapse; test_elm_fit.py goes on counting."""

import pytest
import torch
from tiny import tiny_host

from efface.llm.generate import Sampling, choose, generate
from efface.llm.host import Host
from efface.llm.methods.elm.consistency import branches, continuation_rows, written
from efface.llm.methods.elm.math import (
    collapse,
    erase_loss,
    eta_ramp,
    fluency_loss,
    guided_logits,
    guided_scores,
    random_target,
    target,
)
from efface.llm.methods.elm.templates import EXPERT, NOVICE, TOPIC_CHANGE
from efface.llm.tuning.losses import to_base
from efface.llm.tuning.texts import Row


def laws(n: int = 6, size: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    base = torch.randn(n, size, dtype=torch.float64)
    return base, base + 0.5 * torch.randn_like(base), base + 0.5 * torch.randn_like(base)


def test_1_without_guidance_the_target_is_the_base():
    base, expert, novice = laws()
    for t in (1.0, 1.2):
        q = target(base, guided_scores(base, expert, novice, eta_ramp(6, 0.0), t), 0)
        assert torch.allclose(q, (base / t).softmax(-1), atol=1e-12)
    logits = base.clone().requires_grad_(True)
    erase_loss(logits, target(base, guided_scores(base, expert, novice, eta_ramp(6, 0.0)), 0)).backward()
    assert logits.grad.abs().max() < 1e-7
    logits.grad = None
    erase_loss(logits, target(base, guided_scores(base, expert, novice, eta_ramp(6, 1.0)), 0)).backward()
    assert logits.grad.abs().max() > 1e-3


def test_2_alike_prompts_guide_nowhere():
    base, expert, novice = laws()
    q = [target(base, guided_scores(base, expert, expert, eta_ramp(6, eta), 1.2), 10) for eta in (0.0, 500.0)]
    assert (q[0] - q[1]).abs().max() < 1e-10
    assert (target(base, guided_scores(base, expert, novice, eta_ramp(6, 500.0), 1.2), 10) - q[0]).abs().max() > 0.1


def test_3_log_odds_and_support():
    base, expert, novice = laws()
    eta = eta_ramp(6, 7.0, 1.0)
    s = guided_scores(base, expert, novice, eta, 1.2)
    plain, up, down = ((z / 1.2).log_softmax(-1) for z in (base, novice, expert))
    wanted = (plain[:, 3] - plain[:, 9]) + eta * ((up - down)[:, 3] - (up - down)[:, 9])
    assert torch.allclose(s[:, 3] - s[:, 9], wanted, atol=1e-12)
    for mode in ("after", "before"):
        q = target(base, s, 5, mode)
        assert ((q > 0).sum(-1) == 5).all()
        assert torch.allclose(q.sum(-1), torch.ones(6, dtype=torch.float64))
        assert (q.argmax(-1) == s.where(q > 0, -torch.inf).argmax(-1)).all()
    assert ((target(base, s, -5) > 0) & (target(base, s, 5) > 0)).sum() == 0  # the lowest, not the best


def test_4_strong_guidance_takes_one_token_and_enhancing_is_swapping():
    base, expert, novice = laws()
    ratio = novice.log_softmax(-1) - expert.log_softmax(-1)
    q = target(base, guided_scores(base, expert, novice, eta_ramp(6, 1e6)), 50)
    assert torch.equal(q.argmax(-1), ratio.argmax(-1))
    assert (q.amax(-1) > 0.999).all()
    enhanced = guided_scores(base, expert, novice, eta_ramp(6, 3.0), 1.2, "enhance")
    assert torch.allclose(enhanced, guided_scores(base, novice, expert, eta_ramp(6, 3.0), 1.2), atol=1e-12)
    assert not torch.allclose(enhanced, guided_scores(base, expert, novice, eta_ramp(6, 3.0), 1.2), atol=1e-3)


def test_5_ramp():
    ramp = eta_ramp(11, 1000.0, 1.0)
    assert ramp[0] == 1.0
    assert ramp[-1] == 1000.0
    assert torch.allclose(ramp.diff(), torch.full((10,), 99.9, dtype=torch.float64))
    assert (eta_ramp(11, 500.0) == 500.0).all()


def test_targets_collapse_to_the_far_tail_unless_the_plausible_set_comes_first():
    """5000 tokens, log-ratios of standard deviation .3."""
    n, size = 32, 5000
    base = 3.0 * torch.randn(n, size, dtype=torch.float64)
    expert = base + 0.3 / 2**0.5 * torch.randn_like(base)
    novice = base + 0.3 / 2**0.5 * torch.randn_like(base)
    seen = {}
    for eta in (0.0, 10.0, 500.0):
        for mode in ("after", "before"):
            q = target(base, guided_scores(base, expert, novice, eta_ramp(n, eta)), 50, mode)
            seen[eta, mode] = collapse(q, base)
    assert seen[0.0, "after"]["base rank"] == 0.0  # no guidance: the base's own best
    assert seen[0.0, "after"]["largest"] < 0.7
    assert seen[500.0, "after"]["largest"] > 0.99
    assert seen[500.0, "after"]["base probability"] < 1e-4
    assert seen[500.0, "after"]["base rank"] > 500
    assert seen[10.0, "after"]["largest"] < seen[500.0, "after"]["largest"]
    assert seen[500.0, "before"]["base rank"] < 50
    assert seen[500.0, "before"]["base probability"] > 100 * seen[500.0, "after"]["base probability"]


def test_8_retain_losses():
    base = torch.randn(7, 30)
    grads, values = {}, {}
    for hard in (False, True):
        z = base.clone().requires_grad_(True)
        loss = to_base(z, base, hard=hard)
        loss.backward()
        grads[hard], values[hard] = z.grad.abs().max(), float(loss.detach())
    assert grads[False] < 1e-7
    assert grads[True] > 1e-3
    assert min(values.values()) >= 0


def test_9_prompt_positions_get_no_gradient_from_fluency():
    logits = torch.randn(9, 20, requires_grad=True)
    fluency_loss(logits, torch.randint(0, 20, (9,)), 4).backward()
    assert torch.equal(logits.grad[:3], torch.zeros(3, 20))  # position 3 predicts token 4, the first that counts
    assert (logits.grad[3:-1].abs().sum(-1) > 0).all()
    assert torch.equal(logits.grad[-1], torch.zeros(20))
    for start in (0, 9):
        with pytest.raises(ValueError, match="start"):
            fluency_loss(logits, torch.zeros(9, dtype=torch.int64), start)


def test_loss_kinds():
    z, q = torch.randn(5, 12, requires_grad=True), random_target(5, 12, torch.Generator().manual_seed(0))
    grads = []
    for kind in ("ce", "kld"):
        (g,) = torch.autograd.grad(erase_loss(z, q, kind), z)
        grads.append(g)
    assert torch.allclose(*grads)
    assert float(erase_loss(q.log(), q, "kld")) == pytest.approx(0.0, abs=1e-9)
    hard = target(z.detach().double(), 1e6 * q, 0)
    z = z.detach()
    assert float(erase_loss(z, q, "hard")) == pytest.approx(float(erase_loss(z, hard)), rel=1e-5)


def test_11_guided_decoding():
    host = tiny_host()
    prompts = ["the wizard has a wand", "she saw the castle by the river"]
    rows = [Row(tuple(ids)) for ids in host.token_ids(prompts)]
    starts = [branches(host, r.ids, "magic", str(n)) for n, r in enumerate(rows)]
    wand = host.token_ids([" wand"])[0][-1]
    for row, s in zip(rows, starts, strict=True):
        assert s.plain[: s.prompt] == row.ids
        assert set(row.ids) - {1} not in (set(s.expert), set(s.novice))
        assert not {wand, *host.token_ids([" castle"])[0][1:]} & {*s.expert, *s.novice}
    assert wand in starts[0].plain
    alone = generate(host, [str(host.tokenizer.decode(s.plain, skip_special_tokens=True)) for s in starts], 5, 6, Sampling(top_k=0))
    found = written(host, starts, 6, 0.0, 5)
    assert [str(host.tokenizer.decode(f, skip_special_tokens=True)) for f in found] == alone
    assert written(host, starts, 6, 30.0, 5) != found
    one = written(host, starts, 1, 2.0, 5)
    for n, s in enumerate(starts):
        plain, expert, novice = (host.logits(*host.pad([b]))[0, -1].log_softmax(-1) for b in (s.plain, s.expert, s.novice))
        wanted, turned = (
            int(choose(plain[None] + g * (novice - expert), [torch.Generator().manual_seed(5 + n)], Sampling(top_k=0))) for g in (2.0, -2.0)
        )
        assert one[n] == [wanted] != [turned]
        assert str(host.tokenizer.decode(s.expert, skip_special_tokens=True)) in shown(host, EXPERT)
        assert str(host.tokenizer.decode(s.novice, skip_special_tokens=True)) in shown(host, NOVICE)
    base, up, down = torch.randn(3, 4, 9)
    assert torch.allclose(guided_logits(base, up, down, 0.0), base.log_softmax(-1))
    assert torch.allclose(guided_logits(base, up, up, 3.0), base.log_softmax(-1), atol=1e-6)
    more = guided_logits(base, up, down, 3.0) - base.log_softmax(-1)
    assert torch.allclose(more, 3 * (down.log_softmax(-1) - up.log_softmax(-1)), atol=1e-5)
    plain, dropped = (continuation_rows(host, rows, "magic", 6, 3.0, 0, drop_first=d) for d in (False, True))
    assert [r.start for r in plain] == [len(r) for r in rows]
    assert [r.start for r in dropped] == [len(r) + 1 for r in rows]
    assert [r.ids for r in plain] == [r.ids for r in dropped]


def shown(host: Host, templates: tuple[str, ...]) -> list[str]:
    """Templates about magic as the tokenizer gives them back."""
    return [
        str(host.tokenizer.decode(ids, skip_special_tokens=True)) for ids in host.token_ids([t.replace("{c}", "magic") for t in templates])
    ]


def test_templates():
    assert (len(set(EXPERT)), len(set(NOVICE)), len(set(TOPIC_CHANGE))) == (10, 10, 20)
    assert all(t.count("{c}") == 1 and t.endswith("\n") for t in EXPERT + NOVICE)
    assert not any("{" in t for t in TOPIC_CHANGE)
