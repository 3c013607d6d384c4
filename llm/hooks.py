"""Reading and rewriting what passes a hook point: context managers that take their hooks away, whatever happens."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from einops import rearrange
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..base.errors import InputError, MatchedNothing

Rewrite = Callable[[Tensor], Tensor]
"""`[b t d]` in, the same shape out."""
_Seen = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True, eq=False)
class HookSite:
    """Where a hook point lies in a model."""

    hook_point: str
    """Its name, `layers.N.mlp_out` and so on."""
    module: nn.Module
    """The module whose input or output it is."""
    side: Literal["input", "output"]
    """Which of the two."""
    d: int
    """Width of the vectors."""
    path: str
    """Module path in the model."""
    index: int = 0
    """Which element of an output that is a tuple."""
    spatial: bool = False
    """The tensor is a picture `[b d h w]`; it is shown and taken back as `[b h*w d]`."""


class Fired(dict[str, int]):
    """Calls counted a hook point; `check` refuses zero."""

    def check(self) -> None:
        """Raises unless every hook point fired.

        Raises:
            MatchedNothing: Some hook point never did.
        """
        silent = [point for point, n in self.items() if n == 0]
        if silent or not self:
            raise MatchedNothing(f"hooks at {', '.join(silent) or 'no hook point'} never fired: no forward pass ran inside the block")


class _AllSeen(Exception):
    """Ends a forward pass whose rest nobody needs."""


def attach(site: HookSite, see: _Seen) -> RemovableHandle:
    """Calls `see` with the tensor at `site` in every forward pass; a tensor it returns takes the old one's place.

    Tuples and keyword arguments that some layers pass along stay as they are. The caller removes the handle. At an output
    it is called before hooks of other makers, after those attached here earlier: transformers keeps hidden states with a
    hook of its own, which must find what was put in the old tensor's place.
    """
    if site.side == "output":

        def after(module: nn.Module, args: tuple[object, ...], output: object) -> object:
            if not isinstance(output, tuple):
                return _seen_by(see, output, site)
            new = _seen_by(see, output[site.index], site)
            return None if new is None else (*output[: site.index], new, *output[site.index + 1 :])

        after.efface = True  # type: ignore[attr-defined]  # a mark by which `_ours_first` knows it
        handle = site.module.register_forward_hook(after)
        _ours_first(site.module)
        return handle

    def before(
        module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        new = _seen_by(see, args[0] if args else kwargs.get("hidden_states"), site)
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    return site.module.register_forward_pre_hook(before, with_kwargs=True)


def _ours_first(module: nn.Module) -> None:
    """Puts the hooks of other makers behind those attached here."""
    hooks = module._forward_hooks
    for key in [k for k, hook in hooks.items() if not getattr(hook, "efface", False)]:
        hooks[key] = hooks.pop(key)


def _seen_by(see: _Seen, x: object, site: HookSite) -> Tensor | None:
    """What `see` makes of the tensor, in its own layout."""
    tensor = _tensor(x, site)
    if not site.spatial:
        return see(tensor)
    new = see(rearrange(tensor, "b d h w -> b (h w) d"))
    return None if new is None else rearrange(new, "b (h w) d -> b d h w", h=tensor.shape[2])


def _tensor(x: object, site: HookSite) -> Tensor:
    if not isinstance(x, Tensor):
        raise InputError(f"hook point {site.hook_point}: {site.path} passes {type(x).__name__} where a tensor was expected")
    return x


@contextmanager
def captured(sites: Sequence[HookSite], *, stop: bool = False) -> Iterator[dict[str, Tensor]]:
    """Collects the tensors at `sites` of one forward pass, run inside the block.

    Args:
        sites: What to read; every one must fire.
        stop: End the forward pass (and the block) as soon as all of them were seen; the modules behind the deepest
            site never run.

    Yields:
        Hook point -> tensor `[b t d]`, filled while the model runs, not detached.

    Raises:
        MatchedNothing: The block ended and some site was not seen.
    """
    seen: dict[str, Tensor] = {}

    def keep(site: HookSite, x: Tensor) -> None:
        seen[site.hook_point] = x
        if stop and len(seen) == len(wanted):
            raise _AllSeen

    wanted = {site.hook_point for site in sites}
    with ExitStack() as undo:
        for site in sites:
            undo.callback(attach(site, lambda x, site=site: keep(site, x)).remove)
        with suppress(_AllSeen):
            yield seen
    if missing := sorted(wanted - set(seen)):
        raise MatchedNothing(f"hook points never reached: {', '.join(missing)}")


@contextmanager
def rewritten(rewrites: Sequence[tuple[HookSite, Rewrite]]) -> Iterator[Fired]:
    """Puts `fn(x)` in the place of `x` at each site while the block runs; nests, later ones see earlier ones' work.

    The result must have the shape of `x` and is cast to its dtype.

    Yields:
        Firings a hook point.

    Raises:
        InputError: Inside the forward pass, if `fn` returns another shape.
    """
    fired = Fired({site.hook_point: 0 for site, _ in rewrites})
    with ExitStack() as undo:
        for site, fn in rewrites:
            undo.callback(attach(site, lambda x, site=site, fn=fn: _rewrite(site, fn, fired, x)).remove)
        yield fired


def _rewrite(site: HookSite, fn: Rewrite, fired: Fired, x: Tensor) -> Tensor:
    new = fn(x)
    if new.shape != x.shape:
        raise InputError(f"rewrite at {site.hook_point}: shape {tuple(x.shape)} went in, {tuple(new.shape)} came out")
    fired[site.hook_point] += 1
    return new.to(x.dtype)
