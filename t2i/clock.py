"""Which denoising step a call of the denoiser belongs to: the time that it is told, in that very call."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from .host import ImageHost


@contextmanager
def clock(host: "ImageHost") -> Iterator[None]:
    """Block in which `host.timestep` says, during every call of the denoiser, which time the call was told.

    Nothing is counted: a second drawing, another number of steps or a call that failed leave nothing behind.
    """
    denoiser: Any = host.denoiser
    names = list(inspect.signature(type(denoiser).forward).parameters)[1:]  # a forward put on the instance takes what it likes

    def tell(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        told = {**dict(zip(names, args, strict=False)), **kwargs}["timestep"]
        host.model.timestep = torch.as_tensor(told).detach().double().reshape(-1) * host.family.clock

    def forget(module: nn.Module, args: object, output: object) -> None:
        host.model.timestep = None

    before = denoiser.register_forward_pre_hook(tell, with_kwargs=True)
    after = denoiser.register_forward_hook(forget, always_call=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()
        host.model.timestep = None
