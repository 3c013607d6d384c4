"""Hooks are taken away again whatever happens, and count."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import FAMILIES, tiny_host
from torch import Tensor, nn

from efface.base.errors import InputError, MatchedNothing
from efface.llm import hooks
from efface.llm.host import Host


def n_hooks(host: Host) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in host.model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_identity_rewrites_change_nothing_and_others_do(family: str) -> None:
    host = tiny_host(family)
    ids, mask = host.encode_texts(["Harry Potter is a boy"])
    with torch.no_grad():
        base = host.logits(ids, mask)
        for point in host.hook_points():
            with host.replaced(point, lambda x: x.clone()) as fired:
                assert torch.equal(host.logits(ids, mask), base)
            assert fired == {point: 1}
            with host.replaced(point, lambda x: x + 1 + x.flip(-1)):
                assert not torch.allclose(host.logits(ids, mask), base, atol=1e-3), point
        assert torch.equal(host.logits(ids, mask), base)
    assert n_hooks(host) == 0


def test_activations_see_rewrites_and_rewrites_nest() -> None:
    host = tiny_host()
    ids, mask = host.encode_texts(["the dog"])
    point = "layers.1.mlp_out"
    base = host.activations(ids, mask, [point])[point]
    with host.replaced(point, lambda x: x + 1), host.replaced(point, lambda x: x * 2):
        assert torch.equal(host.activations(ids, mask, [point])[point], (base + 1) * 2)
    assert torch.equal(host.activations(ids, mask, [point])[point], base)


def test_firings_are_counted_and_silence_is_an_error() -> None:
    host = tiny_host()
    with host.replaced("layers.2.mlp_in", lambda x: x) as fired:
        with pytest.raises(MatchedNothing, match=r"layers\.2\.mlp_in"):
            fired.check()
        host.generate(["the dog"], 0, 3, greedy=True)
    assert fired["layers.2.mlp_in"] >= 1
    fired.check()
    with pytest.raises(MatchedNothing):
        hooks.Fired().check()


def test_errors_inside_leave_no_hook() -> None:
    host = tiny_host()
    ids, mask = host.encode_texts(["the dog"])
    with (
        pytest.raises(InputError, match=r"layers\.0\.mlp_out.*went in"),
        host.replaced("layers.0.mlp_out", lambda x: x[..., :3]),
    ):
        host.logits(ids, mask)

    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"), host.replaced("layers.1.mlp_out", fail):
        host.activations(ids, mask, ["layers.2.resid_post"])
    assert n_hooks(host) == 0


def test_errors_while_entering_leave_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    host = tiny_host()
    sites = [host.resolve("layers.0.mlp_out"), host.resolve("layers.1.mlp_out")]
    real: Callable[..., Any] = nn.Module.register_forward_hook

    def second_fails(module: nn.Module, *args: object, **kwargs: object) -> object:
        if module is sites[1].module:
            raise RuntimeError("no room")
        return real(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "register_forward_hook", second_fails)
    with pytest.raises(RuntimeError, match="no room"), hooks.rewritten([(s, lambda x: x) for s in sites]):
        pass
    assert n_hooks(host) == 0
    with pytest.raises(RuntimeError, match="no room"), hooks.captured(sites):
        pass
    assert n_hooks(host) == 0


def test_a_site_that_is_not_reached_is_an_error() -> None:
    host = tiny_host()
    with pytest.raises(MatchedNothing, match=r"layers\.0\.mlp_out"), hooks.captured([host.resolve("layers.0.mlp_out")]):
        pass


def test_tuples_and_keywords_stay_whole() -> None:
    class Layer(nn.Module):
        def forward(self, hidden_states: Tensor, other: int = 0) -> tuple[Tensor, int]:
            return hidden_states * 2, other

    layer, x = Layer(), torch.ones(1, 1, 2)
    before = hooks.HookSite("in", layer, "input", 2, "layer")
    after = hooks.HookSite("out", layer, "output", 2, "layer")
    with hooks.rewritten([(before, lambda x: x + 1), (after, lambda x: x + 10)]) as fired:
        out, other = layer(hidden_states=x, other=7)
    assert out.tolist() == [[[14.0, 14.0]]]
    assert other == 7
    assert fired == {"in": 1, "out": 1}
    with hooks.captured([before, after]) as seen:
        layer(x)
    assert torch.equal(seen["out"], 2 * seen["in"])
    with pytest.raises(InputError, match="str where a tensor was expected"), hooks.captured([before]):
        layer("text")


def test_rewrites_keep_the_dtype() -> None:
    host = tiny_host(dtype=torch.bfloat16)
    ids, mask = host.encode_texts(["the dog"])
    with host.replaced("layers.1.mlp_out", lambda x: x.double() * 0.5):
        assert host.logits(ids, mask).dtype == torch.bfloat16
