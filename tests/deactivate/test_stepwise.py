"""Stepwise parts on hand-made dictionaries: what changes, what passes to the bit, which step is meant, what the released code does."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from deactivate._kit import tiny_host
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.base.errors import ArtefactError, InputError, MatchedNothing, NumericsError, UnknownName
from efface.deactivate import Edit, StepFeatures, StepwisePart
from efface.deactivate.edit_folder import load_part
from efface.sae import SAE, SAEConfig

POINT = "unet.mid_block.attentions.0.out"
EARLY, LATE = torch.tensor([900.0]), torch.tensor([100.0])


def basis_sae(d: int = 4) -> SAE:
    """Feature i is the positive part of coordinate i, feature d + i that of its negative: it reconstructs everything but 10 % of each."""
    sae = SAE(SAEConfig("relu", d, 2 * d), {"hook_point": POINT})
    rows = torch.cat([torch.eye(d), -torch.eye(d)])
    with torch.no_grad():
        sae.W_enc.copy_(rows.T)
        sae.W_dec.copy_(0.9 * rows)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae


def step(time: float, *rows: tuple[int, float, float]) -> StepFeatures:
    return StepFeatures(float(time), *(tuple(r[i] for r in rows) for i in range(3)))


def part(*steps: StepFeatures, **options) -> StepwisePart:
    return StepwisePart(basis_sae(), steps, **options)


X = torch.tensor([[[3.0, 1.0, 0.0, 0.0], [0.5, 1.0, 0.0, 0.0]], [[3.0, -1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]]])


def test_features_above_their_thresholds_are_scaled_and_the_rest_passes_to_the_bit():
    p = part(step(900, (0, -1.0, 1.0)), step(100, (3, 0.0, 0.0)))
    early, late = p.rewrite(X, EARLY), p.rewrite(X, LATE)
    want = X.clone()
    want[:, 0, 0] = 3.0 - 2 * 0.9 * 3.0  # f -> -f, 90 % of which the decoder writes; the error stays
    assert torch.allclose(early, want)
    assert torch.equal(early[:, 1], X[:, 1])  # 0.5 is below the threshold
    assert not torch.equal(early[:, 0], X[:, 0])
    want = X.clone()
    want[1, 0, 3] = 2.0 - 0.9 * 2.0
    assert torch.allclose(late, want)
    assert torch.equal(late[0], X[0])
    half = X.half()
    assert p.rewrite(half, EARLY).dtype == torch.float16
    assert torch.equal(p.rewrite(half, EARLY)[:, 1], half[:, 1])


def test_a_factor_of_one_is_the_identity_to_the_bit():
    x = torch.randn(3, 16, 4)
    ones = part(step(500, *((i, 1.0, 0.0) for i in range(8))))
    assert torch.equal(ones.rewrite(x, EARLY), x)
    assert not torch.equal(part(step(500, *((i, 0.9, 0.0) for i in range(8)))).rewrite(x, EARLY), x)


def test_the_nearest_step_is_meant_and_rows_may_differ():
    p = part(step(900, (0, 0.0, 0.0)), step(500, (1, 0.0, 0.0)), step(100))
    assert p.places([1000.0, 901.0, 700.0, 699.0, 500.0, 300.0, 299.0, 0.0]) == [0, 0, 0, 1, 1, 1, 2, 2]
    rows = p.rewrite(X, torch.tensor([880.0, 480.0]))
    assert torch.equal(rows[0], p.rewrite(X, EARLY)[0])
    assert torch.equal(rows[1], p.rewrite(X, torch.tensor([500.0]))[1])
    assert not torch.equal(rows[0], p.rewrite(X, torch.tensor([500.0]))[0])
    assert torch.equal(p.rewrite(X, LATE), X)  # a step without features
    ranged = replace(p, between=(400.0, 890.0))
    assert ranged.places([900.0, 890.0, 400.0, 399.0]) == [-1, 0, 1, -1]
    assert torch.equal(ranged.rewrite(X, EARLY), X)
    assert torch.equal(ranged.rewrite(X, torch.tensor([890.0])), p.rewrite(X, EARLY))
    for times in (None, torch.tensor([1.0, 2.0, 3.0])):
        with pytest.raises(InputError, match=r"no step|3 times"):
            p.rewrite(X, times)


ENTRIES = st.lists(st.tuples(st.integers(0, 7), st.sampled_from([-2.0, -1.0, 0.0, 0.5]), st.sampled_from([0.0, 0.4, 1.5])), max_size=6)


@settings(max_examples=40, deadline=None)
@given(ENTRIES, ENTRIES, st.randoms(use_true_random=False))
def test_concepts_are_concatenated_in_any_order(a, b, random):
    one, two, guard = step(900, *a), step(900, *b), (7, 1.0, 9.0)
    mixed = [*a, *b, *a, guard]
    random.shuffle(mixed)
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(random.randrange(99)))
    both = part(one.joined([two, step(900, guard)]))
    assert both.steps == (step(900, *mixed),) == (two.joined([one, step(900, guard)]),)
    acts, want = both.sae.encode(x).detach(), x
    for f in range(8):  # of the entries whose thresholds it is above, the smallest factor
        met = [torch.where(acts[..., f] > t, c, torch.inf) for g, c, t in mixed if g == f]
        least = torch.stack(met).amin(0) if met else torch.full(acts.shape[:-1], torch.inf)
        want = want + torch.where(least.isinf(), 0, (least - 1) * acts[..., f])[..., None] * both.sae.W_dec[f].detach()
    assert torch.allclose(both.rewrite(x, EARLY), want, atol=1e-6)


def test_the_released_code_flips_the_error_and_never_begins_anew():
    steps = (step(900, (0, -1.0, 1.0)), step(100))
    ours, theirs = part(*steps), part(*steps, compat="official")
    made = basis_sae()(X)
    assert not torch.allclose(made, X)  # there is an error whose sign shows
    first, second = theirs.rewrite(X, LATE), theirs.rewrite(X, LATE)  # the n-th call is the n-th step, whatever it is told
    edited = made.clone()
    edited[:, 0, 0] -= 2 * 0.9 * 3.0
    assert torch.allclose(first, edited + (made - X))
    assert torch.allclose(second, 2 * made - X)
    assert torch.allclose(ours.rewrite(X, EARLY), edited + (X - made))
    with pytest.raises(InputError, match="never begins anew"):
        theirs.rewrite(X, EARLY)
    for _ in range(5):
        assert torch.equal(ours.rewrite(X, LATE), X)


def test_gradients_pass():
    x = X.clone().requires_grad_()
    part(step(900, (0, -1.0, 1.0))).rewrite(x, EARLY).sum().backward()
    assert x.grad is not None
    assert float(x.grad[0, 0, 0]) == pytest.approx(1 - 2 * 0.9)
    assert float(x.grad[0, 1, 0]) == 1


def test_saved_and_loaded_it_does_the_same(tmp_path: Path):
    p = part(step(900, (0, -1.0, 1.0), (1, 0.0, 0.1)), step(100), step(1, (0, 0.5, 0.0)), between=(0.0, 950.0), everywhere=True)
    Edit([p], "saeuron").save(tmp_path / "e")
    again = Edit.load(tmp_path / "e")
    (loaded,) = again.parts
    assert isinstance(loaded, StepwisePart)
    assert (loaded.steps, loaded.between, loaded.everywhere, loaded.compat) == (p.steps, p.between, True, "none")
    assert again.everywhere
    assert again.digest == Edit([p], "saeuron").digest != Edit([replace(p, everywhere=False)], "saeuron").digest
    assert torch.equal(loaded.rewrite(X, EARLY), p.rewrite(X, EARLY))
    assert "stepwise" in (tmp_path / "e" / "README.md").read_text()
    tensors = {n: t.clone() for n, t in p.tensors().items()}
    tensors["step"][0] = 7
    with pytest.raises(ArtefactError, match="do not fit together"):
        StepwisePart.build(p.settings(), tensors, tmp_path)
    settings = {**p.settings(), "form": "stepwize"}
    with pytest.raises(ArtefactError, match="hook stepwize"):
        load_part({"kind": "hook", "settings": settings, "tensors": {}}, tmp_path / "e" / "part-0")


def test_refuses():
    good = step(900, (0, -1.0, 1.0))
    for call, error, message in (
        (lambda: part(step(900)), MatchedNothing, "no features"),
        (lambda: part(), MatchedNothing, "no features"),
        (lambda: part(good, good), InputError, "must fall"),
        (lambda: part(step(900, (8, 0.0, 0.0))), InputError, r"\[0, 8\)"),
        (lambda: part(step(900, (0, float("nan"), 0.0))), NumericsError, "factor"),
        (lambda: part(good, between=(5.0, 1.0)), InputError, "between"),
        (lambda: part(good, compat="offical"), (UnknownName, TypeError), "official"),
        (lambda: StepFeatures(1.0, (0, 1), (1.0,), (0.0,)), InputError, "one each"),
        (lambda: part(good).bound(tiny_host()), InputError, "no denoising steps"),
    ):
        with pytest.raises(error, match=message):
            call()
    host = SimpleNamespace(timestep=None, name="x", resolve=lambda point: SimpleNamespace(d=5))
    with pytest.raises(InputError, match="width is 4, the host's 5"):
        part(good).bound(host)
    assert part(good).rewrites()[0][0] == POINT
    with pytest.raises(InputError, match="no step is under way"):
        part(good).rewrites()[0][1](X)
