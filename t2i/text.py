"""One text encoder of a pipeline, read prompt by prompt at its fixed length: what SAEs are trained on and gates listen to."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ..base.errors import HookPointNotFound, InputError, MatchedNothing, UnknownName
from ..llm.hooks import HookSite, captured
from ..llm.parameters import parameter_digest, weight_of
from ..llm.tokens import pad_id
from .adapters import encoder_of

if TYPE_CHECKING:
    from .host import ImageHost

Positions = Literal["own", "padded", "all"]
POINTS = ("resid_pre", "mlp_in", "mlp_hidden", "mlp_out", "resid_post")
"""Hook points of a layer, in the order in which they are reached."""


class TextReader:
    """A text encoder and its tokenizer, as the pipeline uses them.

    Every prompt is padded to the encoder's fixed length, as the pipeline does it, so that what is read is what the
    denoiser gets. Of a prompt's tokens those count that are its own, and EOS: padding repeats EOS or means nothing, and
    BOS, which comes first and so has seen nothing, is the same vector for every prompt; but EOS is the only token of a
    causal encoder that has read the whole prompt, and its state is the pooled vector. The denoiser reads padding too,
    which in a causal encoder has seen the prompt: SAEs are trained on it (`covering`), gates and evidence leave it out.

    Args:
        host: The host it belongs to.
        part: The component's name, `text_encoder` and so on.
        positions: What counts: `own` tokens and EOS, `padded` also the padding, `all` also BOS.
    """

    def __init__(self, host: "ImageHost", part: str, positions: str = "own") -> None:
        if positions not in get_args(Positions):
            raise UnknownName("positions", positions, get_args(Positions))
        self.host, self.part, self.positions = host, part, positions
        self.module: Any = host.model[part]
        self.tokenizer: Any = getattr(host.pipeline, part.replace("text_encoder", "tokenizer"))
        self.family = encoder_of(self.module)
        own = getattr(host.pipeline, "tokenizer_max_length", None) or self.tokenizer.model_max_length
        self.fixed_length = int(host.family.lengths.get(part, own))
        """Tokens a prompt is padded to, and may have at most, BOS and EOS included."""
        self.path = next((p for p in self.family.layers if _has(self.module, p)), "")
        if not self.path:
            raise InputError(
                f"{host.name}: {part} ({type(self.module).__name__}) keeps its layers at none of {', '.join(self.family.layers)}"
            )
        self.layers = list(self.module.get_submodule(self.path).children())
        down = weight_of(self.layers[0].get_submodule(self.family.down))
        self.d_model, self.d_mlp = down.shape
        self._digest: tuple[object, str] | None = None

    @property
    def name(self) -> str:
        """The host's name: what the SAE's card calls its model."""
        return self.host.name

    @property
    def digest(self) -> str:
        """sha256 over the encoder's own parameters: the same encoder in another pipeline has the same."""
        state = tuple((n, p.data_ptr(), p._version) for n, p in self.module.named_parameters())
        if self._digest is None or self._digest[0] != state:
            self._digest = state, parameter_digest(self.module)
        return self._digest[1]

    @property
    def token_policy(self) -> dict[str, object]:
        """How prompts become vectors: written into the SAE."""
        has_bos = self.tokenizer.bos_token_id is not None
        return {
            "context": self.fixed_length,
            "unit": "prompt",
            "padded_to": self.fixed_length,
            "bos": has_bos,
            "padding": "dropped" if self.positions == "own" else "kept",
            "first_token": "dropped" if has_bos and self.positions != "all" else "kept",
            "eos": "kept",
        }

    def hook_points(self) -> list[str]:
        """Its hook points in the order of the forward pass; without those behind the last state that the pipeline reads."""
        n = len(self.layers) - (self.part in self.host.family.unread)
        return [f"{self.part}.layers.{i}.{p}" for i in range(n) for p in POINTS]

    def resolve(self, hook_point: str) -> HookSite:
        """Where `hook_point` lies.

        What enters a layer is what left the one before it, and is taken there: encoders whose states are read between
        layers (`hidden_states[-2]`) then hand on the rewritten one.

        Raises:
            HookPointNotFound: Names the nearest ones.
        """
        known = self.hook_points()
        if hook_point not in known:
            unread = f"; the pipeline reads nothing behind layer {len(self.layers) - 2}" if self.part in self.host.family.unread else ""
            raise HookPointNotFound("hook point", hook_point, known, f"{self.part}.layers.N.P with P of {', '.join(POINTS)}{unread}")
        number, point = int(hook_point.split(".")[2]), hook_point.split(".")[3]
        if point == "resid_pre" and number > 0:
            number, point = number - 1, "resid_post"
        relative = {"mlp_in": self.family.mlp, "mlp_hidden": self.family.down, "mlp_out": self.family.down}.get(point)
        layer = self.layers[number]
        path = f"{self.part}.{self.path}.{number}" + (f".{relative}" if relative else "")
        side = "input" if point in ("resid_pre", "mlp_in", "mlp_hidden") else "output"
        module = layer.get_submodule(relative) if relative else layer
        return HookSite(hook_point, module, side, self.d_mlp if point == "mlp_hidden" else self.d_model, path)

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Ids of each prompt with the tokens that the tokenizer adds, unpadded.

        Raises:
            InputError: No prompts, or one that is longer than the encoder takes; nothing is cut off.
        """
        if isinstance(prompts, str) or not prompts:
            raise InputError(f"prompts must be a list of at least one string; found {prompts!r}")
        rows = [list(row) for row in self.tokenizer(list(prompts), verbose=False)["input_ids"]]
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > self.fixed_length:
                raise InputError(
                    f"prompt {_short(prompt)!r} has {len(row)} tokens, {self.part} of {self.host.name} takes {self.fixed_length} at most "
                    "(the first and the last token included); shorten it"
                )
        return rows

    def pad(self, rows: Sequence[Sequence[int]], *, trim: bool = False) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Rows of ids at the fixed length, and their attention mask.

        Args:
            rows: Ids of each prompt.
            trim: Pad to the longest row alone where the encoder is causal: no token of a prompt sees what comes behind it, so their
                states are the same to rounding. Elsewhere the fixed length stays.
        """
        length = max(map(len, rows)) if trim and self.family.causal else self.fixed_length
        ids = torch.full((len(rows), length), pad_id(self.tokenizer), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[i, : len(row)] = 1
        return ids, mask

    def encode_texts(self, texts: Sequence[str], max_length: int | None = None) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Ids and attention mask of prompts, as language hosts give them; `max_length` has no say, the length is fixed."""
        return self.pad(self.token_ids(texts))

    def keep_mask(self, input_ids: Int[Tensor, "b t"], attention_mask: Int[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
        """True at the positions that count: the prompt's own tokens and EOS, unless the reader covers more; see the class."""
        if self.positions == "all":
            return torch.ones_like(attention_mask, dtype=torch.bool)
        bos = self.tokenizer.bos_token_id
        kept = attention_mask.bool() if self.positions == "own" else torch.ones_like(attention_mask, dtype=torch.bool)
        return kept if bos is None else kept & (input_ids != bos)

    def covering(self, positions: str) -> "TextReader":
        """The same encoder, read at other positions."""
        return TextReader(self.host, self.part, positions)

    def activations(
        self,
        input_ids: Int[Tensor, "b t"],
        attention_mask: Int[Tensor, "b t"],
        hook_points: Sequence[str],
        *,
        grad: bool = False,
    ) -> dict[str, Tensor]:
        """What passes the hook points, each `[b t d]`; the forward pass ends at the deepest.

        The mask reaches the encoder only where the pipeline would pass it, which CLIP and T5 pipelines do not.

        Raises:
            HookPointNotFound: Before anything runs.
            MatchedNothing: No hook points asked for.
        """
        if isinstance(hook_points, str) or not hook_points:
            raise MatchedNothing(f"hook_points must be a list of at least one hook point; found {hook_points!r}")
        sites = [self.resolve(p) for p in dict.fromkeys(hook_points)]
        place = self.host.device
        masked = getattr(self.module.config, "use_attention_mask", None)
        with torch.set_grad_enabled(grad), captured(sites, stop=True) as seen:
            self.module(input_ids.to(place), attention_mask=attention_mask.to(place) if masked else None)
        return {p: seen[p] for p in hook_points}


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
