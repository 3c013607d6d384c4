"""PISCES on a host: reading value vectors, building a layer's problem, trying an edit, re-running.

Re-running touches only what it can change.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ....base.errors import InputError
from ....base.running import progress
from ...scanning import hook_point_of, layer_of
from .config import FeatureRef, PiscesConfig
from .math import LayerProblem, SignCount, divide_gain

if TYPE_CHECKING:
    from ....sae import SAE
    from ...host import Host

Factors = tuple[Tensor, Tensor]
"""(Q [m r], D [r d]): Delta W_out = Q D."""
PLACES = ("mlp_out", "mlp_post")


def saes_by_layer(saes: Sequence["SAE"]) -> dict[int, "SAE"]:
    """Layer -> SAE over that layer's MLP output.

    Raises:
        InputError: Two SAEs for a layer, a transcoder, or an SAE elsewhere than at the MLP's output.
    """
    found: dict[int, SAE] = {}
    for sae in saes:
        point, out = hook_point_of(sae), sae.card.get("hook_point_out")
        if point.rsplit(".", 1)[-1] not in PLACES or (out and out != point):
            raise InputError(
                "pisces edits value vectors in an SAE over the MLP's output (layers.N.mlp_out or .mlp_post); "
                f"found one at {point}" + (f" -> {out}" if out and out != point else "")
            )
        if layer_of(sae) in found:
            raise InputError(f"two SAEs for layer {layer_of(sae)}: give one a layer")
        found[layer_of(sae)] = sae
    return found


def check_refs(refs: Sequence[FeatureRef], by_layer: Mapping[int, "SAE"]) -> None:
    """That every feature named is there.

    Raises:
        InputError: Its layer has no SAE, or that SAE has no such feature.
    """
    for ref in refs:
        if ref.layer not in by_layer:
            raise InputError(f"features: {ref} is of layer {ref.layer}, but the SAEs given are of layers {sorted(by_layer)}")
        if ref.id >= by_layer[ref.layer].cfg.d_sae:
            raise InputError(f"features: {ref} is beyond the SAE's {by_layer[ref.layer].cfg.d_sae} features")


def value_vectors(host: "Host", layer: int) -> Float[Tensor, "m d"]:
    """W_out of a layer: row i is the value vector of neuron i, whatever layout the host stores."""
    _, weight, transposed = host.down_proj(layer)
    return weight.detach() if transposed else weight.detach().T


def row_gain(host: "Host", sae: "SAE", space: str) -> Tensor | None:
    """The post-norm's gain, where rows are to be compared after it; None where they are compared as they are."""
    gain = host.post_norm_gain(layer_of(sae))
    if gain is None or space == "raw" or (space == "auto" and hook_point_of(sae).endswith("mlp_out")):
        return None
    return gain.detach()


@torch.no_grad()
def layer_problem(
    host: "Host", sae: "SAE", refs: Sequence[FeatureRef], g: Float[Tensor, " m"], config: PiscesConfig, rows: int = 512
) -> LayerProblem:
    """Everything the edit of `refs`, all of one layer, needs; the encoder sees `rows` value vectors at a time.

    Raises:
        InputError: A feature that the SAE does not have.
    """
    check_refs(refs, {r.layer: sae for r in refs})
    ids = torch.tensor([r.id for r in refs], dtype=torch.int64)
    V, gain = value_vectors(host, layer_of(sae)).to(sae.W_enc), row_gain(host, sae, config.space_or_default)
    V = V if gain is None else V * gain.to(V)
    a = torch.cat([_encoded(sae, part, ids) for part in V.split(rows)])
    ids = ids.to(sae.W_enc.device)
    sigma = torch.tensor([r.sigma for r in refs], dtype=V.dtype, device=V.device)
    skip = config.signed and config.preset == "efface"
    D = written(host, sae, ids, config)
    return LayerProblem(V @ sae.W_enc.detach()[:, ids], a, D, sigma, g.to(V), config.per_feature_scale, skip)


def written(host: "Host", sae: "SAE", ids: Int[Tensor, " r"], config: PiscesConfig) -> Float[Tensor, "r d"]:
    """What one unit of a feature's coefficient adds to a value vector: its decoder row.

    Over the post-norm's gain where rows are compared after it.
    """
    D, gain = sae.W_dec.detach()[ids.to(sae.W_dec.device)], row_gain(host, sae, config.space_or_default)
    return divide_gain(D, None if gain is None else gain.to(D))


def _encoded(sae: "SAE", x: Tensor, ids: Tensor) -> Tensor:
    return sae.encode(x)[:, ids.to(x.device)]


@torch.no_grad()
def activation_signs(
    host: "Host",
    texts: Sequence[str],
    layers: Sequence[int],
    token_ids: Sequence[int],
    batch: int = 16,
    max_length: int = 128,
) -> dict[int, SignCount]:
    """Signs of each neuron's activation h_i (what enters the down-projection) at the concept's tokens in `texts`.

    Where none of `token_ids` occurs, all text positions count, so that a concept without tokens has signs too.
    """
    points = {layer: f"layers.{layer}.mlp_hidden" for layer in layers}
    at_tokens = {layer: SignCount(len(value_vectors(host, layer))) for layer in layers}
    anywhere = {layer: SignCount(len(value_vectors(host, layer))) for layer in layers}
    wanted = torch.tensor(sorted(token_ids), dtype=torch.int64)
    for first in progress(range(0, len(texts), batch), desc="signs of neurons", unit="batch", inner=True):
        ids, mask = host.encode_texts(list(texts[first : first + batch]), max_length=max_length)
        keep = host.keep_mask(ids, mask)
        here = keep & torch.isin(ids, wanted.to(ids.device))
        acts = host.activations(ids, mask, list(points.values()))
        for layer, point in points.items():
            at_tokens[layer].update(acts[point][here].cpu())
            anywhere[layer].update(acts[point][keep].cpu())
    return {layer: c if c.n else anywhere[layer] for layer, c in at_tokens.items()}


@contextmanager
def trial(host: "Host", factors: Mapping[int, Factors]) -> Iterator[None]:
    """The host with Delta W_out = Q D added in the given layers (float64, rounded once).

    The weights are put back on leaving.
    """
    with ExitStack() as undo, torch.no_grad():
        for layer, (Q, D) in factors.items():
            _, weight, transposed = host.down_proj(layer)
            delta = Q.double() @ D.double()
            undo.callback(_restore, weight, weight.detach().clone())
            weight.copy_(weight.double() + (delta if transposed else delta.T).to(weight.device))
        yield


def _restore(weight: Tensor, original: Tensor) -> None:
    with torch.no_grad():
        weight.copy_(original)


class PrefixCache:
    """Inside the block, a batch seen before runs from `layer` on only: what lies below cannot have changed.

    The output of block `layer` - 1 is kept for every batch (its ids and mask are the key) and blocks below hand it on
    instead of
    computing. Results are those of the whole forward, to the bit. Calls with past keys and values (generation) run
    whole.
    Activations below `layer` are not to be read inside.
    """

    def __init__(self, host: "Host", layer: int) -> None:
        self.model: nn.Module = host.base
        self.blocks = [host.resolve(f"layers.{i}.resid_post").module for i in range(layer)]
        self.store: dict[tuple[bytes, bytes], Any] = {}
        self.key: tuple[bytes, bytes] | None = None
        self.hits = self.misses = 0

    def __enter__(self) -> "PrefixCache":
        self.undo = ExitStack()
        if self.blocks:
            self.undo.callback(self.model.register_forward_pre_hook(self._before, with_kwargs=True).remove)
            self.undo.callback(self.model.register_forward_hook(self._after, always_call=True).remove)
            for i, block in enumerate(self.blocks):
                # an attribute of the instance, over the class's method or over what accelerate may have put there
                self.undo.callback(_put_back, block, block.__dict__.get("forward"))
                block.__dict__["forward"] = self._wrapped(i, block.forward)
        return self

    def __exit__(self, *error: object) -> None:
        self.undo.close()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        mask = kwargs.get("attention_mask")
        self.key = None
        if isinstance(ids, Tensor) and kwargs.get("past_key_values") is None:
            self.key = _bytes(ids), b"" if mask is None else _bytes(mask)
        if self.key is not None:
            self.hits += self.key in self.store
            self.misses += self.key not in self.store

    def _after(self, *_: object) -> None:
        self.key = None

    def _wrapped(self, i: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self.key in self.store:
                return self.store[self.key]
            out = forward(*args, **kwargs)
            if i == len(self.blocks) - 1 and self.key is not None:
                self.store[self.key] = out
            return out

        return run


def _put_back(block: nn.Module, forward: Callable[..., Any] | None) -> None:
    block.__dict__.pop("forward")
    if forward is not None:
        block.__dict__["forward"] = forward


def _bytes(t: Tensor) -> bytes:
    return sha256(str(tuple(t.shape)).encode() + t.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).digest()
