"""Edits on a host: what they add, that they go away to the bit, what they refuse, and their folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from deactivate._kit import CONCEPT, POINT, bits, dense_edit, low_rank, same, small_sae, tiny_host, weights_edit
from jaxtyping import TypeCheckError

from efface.base.errors import ArtefactError, InputError, MatchedNothing, NumericsError, UnknownName
from efface.deactivate.edit import Edit
from efface.deactivate.layer import DeactivationPart, sae_digest
from efface.deactivate.ledger import overlay_of
from efface.deactivate.overlay import round_once
from efface.deactivate.parts import Dense, LowRank, ProjectionPart, WeightsPart
from efface.llm.host import Host

DTYPES = [torch.float32, torch.bfloat16]
IDS = torch.tensor([[1, 90, 120, 140], [1, 100, 110, 130]])


def logits(host: object) -> torch.Tensor:
    with torch.no_grad():
        return host.logits(IDS, torch.ones_like(IDS))  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_applied_adds_once_rounded_and_restores_bits(dtype: torch.dtype, family: str) -> None:
    host = tiny_host(family, dtype=dtype)
    before, out = bits(host), logits(host)
    edit = weights_edit(host)
    with edit.applied(host):
        for name, delta in edit.weights[0].deltas.items():
            exact = before[name].double() + delta.delta()
            now = dict(host.model.named_parameters())[name].detach()
            assert torch.equal(now, round_once(exact, dtype))
            assert not torch.equal(now, before[name])
        touched = set(edit.weights[0].deltas)
        assert all(torch.equal(p, before[n]) for n, p in host.model.named_parameters() if n not in touched)
        assert not torch.equal(logits(host), out)
    assert same(bits(host), before)
    assert torch.equal(logits(host), out)


def test_subtracting_would_not_restore() -> None:
    """The negative control: why the ledger keeps the base."""
    base = torch.randn(1000)
    delta = torch.randn(1000)
    assert not torch.equal(base + delta - delta, base)


def test_round_once_is_exact_where_torch_rounds_twice() -> None:
    x = torch.tensor([1 + 2.0**-8 + 2.0**-40, -(1 + 2.0**-8 + 2.0**-40), 1 + 2.0**-8 - 2.0**-40, 1 + 2.0**-8], dtype=torch.float64)
    up, down = 1 + 2.0**-7, 1.0
    assert round_once(x, torch.bfloat16).tolist() == [up, -up, down, down]
    assert x.to(torch.bfloat16).tolist() != [up, -up, down, down]
    y = torch.randn(10000, dtype=torch.float64) * 10.0 ** torch.randint(-6, 4, (10000,))
    for dtype in (torch.bfloat16, torch.float16):
        got = round_once(y, dtype)
        for other in (torch.nextafter(got, got + 9), torch.nextafter(got, got - 9)) if dtype == torch.float16 else ():
            assert ((got.double() - y).abs() <= (other.double() - y).abs()).all()
        assert torch.equal(round_once(got.double(), dtype), got)


@pytest.mark.parametrize("dtype", DTYPES)
def test_stacked_edits_do_not_depend_on_order(dtype: torch.dtype) -> None:
    host = tiny_host(dtype=dtype)
    before = bits(host)
    a, b, c = (weights_edit(host, s) for s in (1, 2, 3))
    for edit in (a, b, c):
        edit.apply_(host)
    all_three = bits(host)
    b.undo_(host)
    without_b = bits(host)
    assert not same(without_b, all_three)
    for edit in (a, c):
        edit.undo_(host)
    assert same(bits(host), before)
    assert not overlay_of(host).base
    for edit in (c, a):
        edit.apply_(host)
    assert same(bits(host), without_b)
    with b.applied(host):
        assert same(bits(host), all_three)
    assert same(bits(host), without_b)


def test_apply_reports_and_undo_names() -> None:
    host = tiny_host()
    edit, before = weights_edit(host), bits(host)
    report = edit.apply_(host)
    assert set(report) == set(edit.undo_(host))
    assert all(v > 0 for v in report.values())
    assert same(bits(host), before)
    with pytest.raises(InputError, match="does not lie"):
        edit.undo_(host)


def test_exceptions_restore() -> None:
    host = tiny_host()
    before, edit = bits(host), weights_edit(host)
    with pytest.raises(RuntimeError, match="boom"), edit.applied(host), weights_edit(host, 5).applied(host):
        raise RuntimeError("boom")
    assert same(bits(host), before)
    with edit.applied(host), pytest.raises(InputError, match="already"), edit.applied(host):
        pass
    assert same(bits(host), before)
    name = host.down_proj(0)[0]
    huge = Edit([WeightsPart({name: Dense(torch.full((32, 64), 3e38, dtype=torch.float64) * 2)})], "x").bound(host)
    with pytest.raises(NumericsError, match="too large"), huge.applied(host):
        pass
    assert same(bits(host), before)
    assert not overlay_of(host).entries


def test_wrong_base_dtype_shape_and_force() -> None:
    host, other = tiny_host(), tiny_host(seed=1)
    edit, before = weights_edit(host), bits(other)
    with pytest.raises(InputError, match=r"another base.*force"), edit.applied(other):
        pass
    assert same(bits(other), before)
    with edit.applied(other, force=True):
        assert overlay_of(other).entries[edit.digest].forced
    with (
        pytest.raises(InputError, match="in float32, the model holds it in bfloat16"),
        edit.applied(tiny_host(dtype=torch.bfloat16)),
    ):
        pass
    with weights_edit(host, portability="same-shapes").applied(other):
        pass
    with pytest.raises(InputError, match="another model"), edit.applied(tiny_host(intermediate_size=48)):
        pass
    with pytest.raises(UnknownName, match="unknown parameter"), edit.applied(tiny_host("gpt2")):
        pass
    with edit.applied(host), weights_edit(tiny_host(), 4).applied(host):  # the base below another edit is what counts
        pass


def test_training_under_an_edit_is_noticed() -> None:
    host = tiny_host()
    before, edit = bits(host), weights_edit(host)
    with edit.applied(host):
        with torch.no_grad():
            host.down_proj(0)[1].add_(1)
        with pytest.raises(InputError, match="was changed"), weights_edit(host, 3).applied(host):
            pass
    assert same(bits(host), before)


def test_tied_weights_by_either_name() -> None:
    host = tiny_host("qwen2")
    edit = Edit([WeightsPart({"lm_head.weight": Dense(torch.ones(host.unembedding().T.shape))})], "x").bound(host)
    before = bits(host)
    with edit.applied(host):
        embedding = host.model.get_input_embeddings().weight  # type: ignore[union-attr]
        assert torch.equal(embedding, before["model.embed_tokens.weight"] + 1)
        with dense_edit(host, "model.embed_tokens.weight").applied(host):
            pass
        assert torch.equal(embedding, before["model.embed_tokens.weight"] + 1)
    assert same(bits(host), before)


def test_projection_part() -> None:
    host = tiny_host()
    u, _ = torch.linalg.qr(torch.randn(32, 2))
    part = ProjectionPart(POINT, u, u.T.contiguous(), torch.randn(32))
    x = torch.randn(5, 32)
    assert torch.allclose(part.project(part.project(x)), part.project(x), atol=1e-5)
    assert torch.allclose(part.project(x) @ u, (part.bias @ u).expand(5, 2), atol=1e-5)
    edit, plain = Edit([part], "leace").bound(host), logits(host)
    with edit.applied(host) as fired:
        seen = host.activations(IDS, torch.ones_like(IDS), [POINT])[POINT]
        changed = logits(host)
    assert not torch.equal(changed, plain)
    assert torch.equal(logits(host), plain)
    assert fired[POINT] == 2
    assert seen.shape == (2, 4, 32)
    with pytest.raises(InputError, match=r"no permanent form.*applied"):
        edit.apply_(host)
    with (
        pytest.raises(UnknownName, match="hook point"),
        Edit([ProjectionPart("layers.9.mlp_out", u, u.T, x[0])], "x").applied(host),
    ):
        pass


@pytest.mark.parametrize("architecture", ["relu", "topk"])
def test_deactivation_layer(architecture: str) -> None:
    sae, x = small_sae(architecture=architecture), torch.randn(40, 32)
    x[:3] = sae.b_dec.detach() - 100 * sae.W_enc.detach()[:, :4].sum(1)
    acts = sae.encode(x).detach()
    off = DeactivationPart(sae, (1, 3)).deactivate(x)
    want = x - acts[:, [1, 3]] @ sae.W_dec.detach()[[1, 3]]
    quiet = (acts[:, [1, 3]] == 0).all(1)
    assert quiet.any()
    assert not quiet.all()
    assert torch.equal(off[quiet], x[quiet])
    assert torch.allclose(off, want, atol=1e-5)
    assert torch.allclose(DeactivationPart(sae, (1,), 1.0, "scale").deactivate(x), x)
    clamped = DeactivationPart(sae, (1,), 2.0).deactivate(x)
    lit = acts[:, 1] > 0
    assert torch.allclose(clamped[lit], x[lit] + (2 - acts[lit, 1:2]) * sae.W_dec.detach()[1], atol=1e-5)
    for bad, error in (((), MatchedNothing), ((99,), InputError), ((1, 1), InputError)):
        with pytest.raises(error):
            DeactivationPart(sae, bad)


def test_parts_refuse_nonsense() -> None:
    with pytest.raises(MatchedNothing):
        WeightsPart({})
    with pytest.raises(NumericsError):
        WeightsPart({"a": Dense(torch.tensor([float("nan")]))})
    with pytest.raises((InputError, TypeCheckError)):
        LowRank(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(MatchedNothing):
        Edit([], "x")
    with pytest.raises((UnknownName, TypeCheckError)):
        WeightsPart({"a": Dense(torch.ones(1))}, portability="any")  # type: ignore[arg-type]


def full_edit(host: Host) -> Edit:
    sae = small_sae()
    u, _ = torch.linalg.qr(torch.randn(32, 2))
    parts = [
        WeightsPart({**low_rank(host, 0, 1), "model.norm.weight": Dense(torch.ones(32))}),
        ProjectionPart(POINT, u, u.T, torch.zeros(32)),
        DeactivationPart(sae, (2, 5), -1.0, "scale"),
    ]
    return Edit(parts, "test", {"mu": (4, 7), "x": 0.5}, [CONCEPT], [{"feature": 2}], {"fit": 3}, [{"n": 1}]).bound(host)  # type: ignore[arg-type]


def test_folder_round_trip(tmp_path: Path) -> None:
    host = tiny_host()
    edit = full_edit(host)
    edit.save(tmp_path / "e")
    again = Edit.load(tmp_path / "e")
    assert again.digest == edit.digest
    assert again.name == edit.name
    assert again.name.startswith("test-dogs-")
    assert (again.config, again.evidence, again.seeds, again.cards, again.host) == (
        edit.config,
        edit.evidence,
        edit.seeds,
        edit.cards,
        edit.host,
    )
    with edit.applied(host):
        want = logits(host)
    with again.applied(host) as fired:
        assert torch.equal(logits(host), want)
        assert fired[POINT] == 2
    layer, first = again.parts[2], edit.parts[2]
    assert isinstance(layer, DeactivationPart)
    assert isinstance(first, DeactivationPart)
    assert sae_digest(layer.sae) == layer.fingerprint == first.fingerprint
    card = (tmp_path / "e" / "README.md").read_text()
    assert "dogs" in card
    assert "Known failures" in card
    assert "How it was measured" in card
    with pytest.raises(InputError, match="exists already"):
        edit.save(tmp_path / "e")
    with pytest.raises(InputError, match="bound"):
        Edit([WeightsPart(low_rank(host, 0, 1))], "x").save(tmp_path / "unbound")
    assert Edit([WeightsPart(low_rank(host, 0, 2))], "test").digest != Edit([WeightsPart(low_rank(host, 0, 1))], "test").digest


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    host = tiny_host()
    weights_edit(host).save(tmp_path / "good")
    manifest = json.loads((tmp_path / "good" / "edit.json").read_text())
    tensors = (tmp_path / "good" / "part-0" / "tensors.safetensors").read_bytes()

    def refused(message: str, tensors_now: bytes | None = tensors, **changes: object) -> None:
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        file = tmp_path / "bad" / "part-0" / "tensors.safetensors"
        file.unlink() if tensors_now is None else file.write_bytes(tensors_now)
        (tmp_path / "bad" / "edit.json").write_text(json.dumps({**manifest, **changes}))
        with pytest.raises(ArtefactError, match=message):
            Edit.load(tmp_path / "bad")

    assert Edit.load(tmp_path / "good")
    refused("truncated or was altered", tensors[:-4])
    refused("altered", tensors[:-1] + bytes([tensors[-1] ^ 1]))
    refused("missing", None)
    refused("format 1", format=2)
    refused("extra", extra=1)
    refused("manifest was altered", eraser="other")
    refused("outside", files={"../x": {"sha256": "", "bytes": 0}})
    refused("pickled", files={"part-0/w.pt": {"sha256": "", "bytes": 0}})
    part = manifest["parts"][0]
    refused("outside", parts=[{**part, "folder": "/etc"}])
    refused("unknown kind", parts=[{**part, "kind": "magic"}])
    name, first = next(iter(part["settings"]["deltas"].items()))
    refused(
        "the manifest says",
        parts=[{**part, "settings": {"deltas": {**part["settings"]["deltas"], name: {**first, "shape": [1, 1]}}}}],
    )
    refused("incomplete", parts=[{"kind": "weights", "folder": "part-0"}])
    (tmp_path / "bad" / "edit.json").write_text("{")
    with pytest.raises(ArtefactError, match="JSON"):
        Edit.load(tmp_path / "bad")
    with pytest.raises(ArtefactError, match="not an edit folder"):
        Edit.load(tmp_path)
