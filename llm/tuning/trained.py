"""What of a host is trained: a LoRA on named matrices, or the matrices themselves. The host comes back as it was, to the bit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...base.errors import InputError
from ...deactivate.parts import Dense, LowRank

if TYPE_CHECKING:
    from ..host import Host

Deltas = dict[str, LowRank | Dense]
"""Parameter -> its change, in the layout in which the host stores it."""
ADAPTER = "default"


@dataclass(frozen=True, eq=False)
class Trained:
    """The parameters under training."""

    params: Mapping[str, nn.Parameter]
    """Name -> what the optimiser steps."""
    off: Callable[[], AbstractContextManager[None]] = nullcontext
    """A block in which the host computes as if nothing had been trained; what is trained gets no gradient from it. It may lie
    between a forward pass and its backward pass, but no backward pass may run in it.
    """
    changes: Callable[[], Deltas] = dict
    """The change so far of every matrix, float32 on the CPU."""


def matrices(host: "Host", modules: Sequence[str], layers: Sequence[int]) -> list[str]:
    """Names of the matrices of some layers.

    Args:
        host: Whose.
        modules: Of attention, mlp, down_proj.
        layers: Numbers of layers.

    Raises:
        InputError: A layer that is not there, or none.
    """
    beyond = [x for x in layers if not 0 <= x < host.n_layers]
    if beyond or not layers:
        raise InputError(f"layers: {beyond or 'none'} given; {host.name} has layers 0 to {host.n_layers - 1}")
    gate = () if host.family.gate is None else ("gate_proj",)
    roles = {"attention": ("attention",), "mlp": (*gate, "up_proj", "down_proj"), "down_proj": ("down_proj",)}
    starts = tuple(f"{host.family.layers}.{x}." for x in layers)
    named = (n for m in modules for role in roles[m] for n in host.weights(role))
    return [n for n in dict.fromkeys(named) if n.startswith(starts)]


@contextmanager
def training(host: "Host", names: Sequence[str], rank: int, alpha: int, dropout: float, seed: int) -> Iterator[Trained]:
    """A block in which the named matrices can be trained, by a LoRA, or themselves where `rank` is 0.

    On leaving, weights, modules and `requires_grad` are as they were, whatever happened.
    """
    flags = {p: p.requires_grad for p in host.model.parameters()}
    try:
        for p in flags:
            p.requires_grad_(False)
        with _lora(host, names, rank, alpha, dropout, seed) if rank else _whole(host, names) as trained:
            yield trained
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)
            p.grad = None


@contextmanager
def _lora(host: "Host", names: Sequence[str], rank: int, alpha: int, dropout: float, seed: int) -> Iterator[Trained]:
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    paths = [n.removesuffix(".weight") for n in names]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=paths, fan_in_fan_out=host.family.transposed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tuner = LoraModel(host.model, config, ADAPTER)
    try:
        layers: dict[str, Any] = {p: host.model.get_submodule(p) for p in paths}
        for layer in layers.values():
            layer.lora_dropout.train()
        params = {n: p for n, p in host.model.named_parameters() if p.requires_grad}
        yield Trained(params, lambda: _disabled(layers), lambda: _low_rank(layers, host.family.transposed))
    finally:
        tuner.unload()
        host.model.__dict__.pop("peft_config", None)


@contextmanager
def _disabled(layers: Mapping[str, Any]) -> Iterator[None]:
    for layer in layers.values():
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers.values():
            layer.enable_adapters(True)


def _low_rank(layers: Mapping[str, Any], transposed: bool) -> Deltas:
    found: Deltas = {}
    for path, layer in layers.items():
        scale = layer.scaling[ADAPTER]
        B, A = (getattr(layer, k)[ADAPTER].weight.detach().float().cpu() for k in ("lora_B", "lora_A"))
        B = scale * B
        # Conv1D holds its weight as [in out], the transpose of B A
        found[f"{path}.weight"] = LowRank(A.T.contiguous(), B.T.contiguous()) if transposed else LowRank(B, A.clone())
    return found


@contextmanager
def _whole(host: "Host", names: Sequence[str]) -> Iterator[Trained]:
    """Copies stand in the places of the matrices; those themselves are never written to."""
    owners = {n: host.model.get_submodule(n.rpartition(".")[0]) for n in names}
    before = {n: m._parameters[n.rpartition(".")[2]] for n, m in owners.items()}
    copies = {n: nn.Parameter(_there(n, p).detach().clone()) for n, p in before.items()}

    def put(params: Mapping[str, nn.Parameter | None]) -> None:
        for n, p in params.items():
            owners[n]._parameters[n.rpartition(".")[2]] = p

    @contextmanager
    def off() -> Iterator[None]:
        put(before)
        try:
            yield
        finally:
            put(copies)

    def changes() -> Deltas:
        return {n: Dense(_change(p, _there(n, before[n]))) for n, p in copies.items()}

    try:
        put(copies)
        yield Trained(copies, off, changes)
    finally:
        put(before)


def _there(name: str, p: nn.Parameter | None) -> nn.Parameter:
    if p is None:
        raise InputError(f"{name} is no parameter of its module: unload what wraps it first")
    return p


def _change(now: Tensor, before: Tensor) -> Tensor:
    return (now.detach().double() - before.detach().double()).float().cpu()
