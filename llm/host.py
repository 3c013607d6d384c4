"""A causal language model behind the host protocol: hook points, activations, scores, generation, weights, roles."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..base.errors import HookPointNotFound, InputError, MatchedNothing
from . import generate as _generate
from . import logprobs as _logprobs
from . import parameters as _parameters
from .adapters import family_of
from .hooks import Fired, HookSite, Rewrite, captured, rewritten
from .parameters import ROLES, weight_of
from .tokens import TokenRoles, begins_special, bos_id, pad_id, special_table, token_roles

__all__ = ["ROLES", "Host", "TokenRoles"]

POINTS = ("resid_pre", "mlp_in", "mlp_hidden", "mlp_out", "mlp_post", "resid_post")
"""Hook points of a layer, in the order in which they are reached."""


class Host:
    """A causal LM and its tokenizer.

    The model is put into eval mode. Module paths come from `llm.adapters`. Methods that compute follow the caller's
    gradient mode, except `generate` and `token_logprobs`, which never build a graph, and `activations`, which does
    only with `grad=True`.

    Args:
        model: A transformers causal LM of a family that has an adapter.
        tokenizer: Its fast tokenizer.
        name: What it is called in artefacts: an alias, a folder's name or a hub id.

    Raises:
        UnknownName: No adapter serves this family.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.family = family_of(model.config)
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.prompts: tuple[str, ...] | None = None
        """Prompt of each row of the forward pass under way in `generate` and `token_logprobs`; None elsewhere."""
        self.layers = list(_module(model, self.family.layers).children())
        self.n_layers = len(self.layers)
        self.post_norm = self.family.post_norm is not None
        weight = self.down_proj(0)[1]
        self.d_mlp, self.d_model = weight.shape if self.family.transposed else tuple(reversed(weight.shape))
        self._special = special_table(tokenizer, self.unembedding().shape[1])
        self.sink_is_text = not begins_special(tokenizer)
        """Whether the first token of a text is one of its own: no BOS goes before it."""
        self._digest: tuple[object, str] | None = None

    def __repr__(self) -> str:
        sizes = f"{self.n_layers} layers, d_model {self.d_model}, d_mlp {self.d_mlp}"
        return f"Host({self.name!r}, {self.family.name}, {sizes})"

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model's parameters, and of the activations."""
        return self.model.dtype

    @property
    def base(self) -> nn.Module:
        """The backbone, without the unembedding."""
        return _module(self.model, self.family.base)

    @property
    def digest(self) -> str:
        """sha256 over the sorted parameters: name, dtype, shape, little-endian bytes. Tied parameters count once.

        Kept until a parameter is replaced or written to in place; writes through `.data` go unseen, so edits use
        `copy_` under `no_grad`.
        """
        state = tuple((n, p.data_ptr(), p._version) for n, p in self.model.named_parameters())
        if self._digest is None or self._digest[0] != state:
            self._digest = state, _parameters.parameter_digest(self.model)
        return self._digest[1]

    def hook_points(self) -> list[str]:
        """Names of all hook points in the order of the forward pass; `mlp_post` only where there is a post-norm."""
        points = [p for p in POINTS if p != "mlp_post" or self.post_norm]
        return [f"layers.{i}.{p}" for i in range(self.n_layers) for p in points]

    def resolve(self, hook_point: str) -> HookSite:
        """Where `hook_point` lies.

        Raises:
            HookPointNotFound: Names the nearest ones.
        """
        known = self.hook_points()
        if hook_point not in known:
            kinds = ", ".join(dict.fromkeys(p.split(".")[2] for p in known))
            raise HookPointNotFound("hook point", hook_point, known, f"layers.N.P with N from 0 to {self.n_layers - 1} and P of {kinds}")
        _, number, point = hook_point.split(".")
        family = self.family
        relative = {
            "mlp_in": family.mlp,
            "mlp_hidden": family.down,
            "mlp_out": family.down,
            "mlp_post": family.post_norm,
        }.get(point)
        layer = self.layers[int(number)]
        path = f"{family.layers}.{number}" + (f".{relative}" if relative else "")
        side = "input" if point in ("resid_pre", "mlp_in", "mlp_hidden") else "output"
        width = self.d_mlp if point == "mlp_hidden" else self.d_model
        return HookSite(hook_point, _module(layer, relative) if relative else layer, side, width, path)

    def activations(
        self,
        input_ids: Int[Tensor, "b t"],
        attention_mask: Int[Tensor, "b t"],
        hook_points: Sequence[str],
        *,
        grad: bool = False,
    ) -> dict[str, Tensor]:
        """What passes the hook points, each `[b t d]` in the model's dtype; the forward pass ends at the deepest.

        Rewrites and edits that are active are seen. Rows at padding are whatever the model computes there: drop them
        with `keep_mask`.

        Raises:
            HookPointNotFound: Before anything runs.
            MatchedNothing: No hook points asked for.
        """
        if isinstance(hook_points, str) or not hook_points:
            raise MatchedNothing(f"hook_points must be a list of at least one hook point; found {hook_points!r}")
        sites = [self.resolve(p) for p in dict.fromkeys(hook_points)]
        with torch.set_grad_enabled(grad), captured(sites, stop=True) as seen:
            self.base(input_ids=input_ids.to(self.device), attention_mask=attention_mask.to(self.device), use_cache=False)
        return {p: seen[p] for p in hook_points}

    def replaced(self, hook_point: str, fn: Rewrite) -> AbstractContextManager[Fired]:
        """Block in which `fn(x)` replaces what passes `hook_point`; yields the firings (`hooks.rewritten`)."""
        return rewritten([(self.resolve(hook_point), fn)])

    def encode_texts(self, texts: Sequence[str], max_length: int | None = None) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Token ids and attention mask, right-padded, with the specials the tokenizer adds, cut at `max_length`.

        A text without tokens is encoded as the BOS token, or the EOS token where there is no BOS.

        Raises:
            InputError: No texts, or a single string in the place of a list.
        """
        if isinstance(texts, str) or not texts:
            raise InputError(f"texts must be a list of at least one string; found {texts!r}")
        return self.pad([row[:max_length] for row in self.token_ids(texts)])

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, unpadded; see `encode_texts`."""
        rows = self.tokenizer(list(texts), verbose=False)["input_ids"]
        return [list(row) or [bos_id(self.tokenizer)] for row in rows]

    def pad(self, rows: Sequence[Sequence[int]], *, left: bool = False) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Rows of ids as one tensor on the host's device, and its attention mask."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), pad_id(self.tokenizer), dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            place = slice(width - len(row), width) if left else slice(len(row))
            ids[i, place] = torch.tensor(row, dtype=torch.long)
            mask[i, place] = 1
        return ids.to(self.device), mask.to(self.device)

    def keep_mask(self, input_ids: Int[Tensor, "b t"], attention_mask: Int[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
        """True at tokens that count: no padding, no special tokens (BOS, EOS, chat markers, …).

        Where the tokenizer puts no BOS before a text, its first token does not count either: the model makes it the
        attention sink, with activations up to a thousand times those of any other (27,713 against 29 at
        `layers.11.mlp_out` of SmolLM2), and nothing of the token in them. A text of one token has none that counts.
        """
        attended = attention_mask.bool()
        keep = attended & ~self._special.to(input_ids.device)[input_ids]
        return keep & (attended.cumsum(1) > 1) if self.sink_is_text else keep

    def logits(self, input_ids: Int[Tensor, "b t"], attention_mask: Int[Tensor, "b t"]) -> Float[Tensor, "b t V"]:
        """Next-token logits at every position."""
        ids, mask = input_ids.to(self.device), attention_mask.to(self.device)
        return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits

    def loss(self, texts: Sequence[str], max_length: int | None = None) -> Float[Tensor, ""]:
        """Mean negative log-likelihood (nats a token, float32) of all tokens but each text's first; one forward pass.

        Raises:
            MatchedNothing: No text has a second token.
        """
        ids, mask = self.encode_texts(texts, max_length)
        wanted = mask[:, 1:].bool()
        if not wanted.any():
            raise MatchedNothing("loss: every text has a single token, nothing is predicted")
        logits = self.logits(ids, mask)[:, :-1][wanted]
        return nn.functional.cross_entropy(logits.float(), ids[:, 1:][wanted])

    def head(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n V"]:
        """Logits of the backbone's output (after the final norm), soft cap included."""
        unembed: Callable[[Tensor], Tensor] = self.unembed()
        logits = unembed(hidden)
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def token_logprobs(self, prompts: Sequence[str], continuations: Sequence[str], *, batch_tokens: int = 4096) -> list[Tensor]:
        """Log-probability (float32) of each token of the i-th continuation after its prompt; see `llm.logprobs`."""
        return _logprobs.token_logprobs(self, prompts, continuations, batch_tokens=batch_tokens)

    def generate(
        self,
        prompts: Sequence[str],
        seed: int = 0,
        max_new_tokens: int = 64,
        *,
        greedy: bool = False,
        temperature: float = 1.0,
        top_k: int = 50,
        top_p: float = 1.0,
        batch_size: int = 32,
    ) -> list[str]:
        """Continuations; the i-th prompt draws from seed `seed + i`. See `llm.generate`."""
        sampling = _generate.Sampling(greedy=greedy, temperature=temperature, top_k=top_k, top_p=top_p)
        return _generate.generate(self, prompts, seed, max_new_tokens, sampling, batch_size)

    @contextmanager
    def rows(self, prompts: Sequence[str]) -> Iterator[None]:
        """Names the prompts of the rows that the forward passes inside the block compute (`Host.prompts`)."""
        before, self.prompts = self.prompts, tuple(prompts)
        try:
            yield
        finally:
            self.prompts = before

    def weights(self, role: str) -> dict[str, nn.Parameter]:
        """Matrices of a role by full parameter name; `all` is every parameter.

        Raises:
            UnknownName: No such role.
            MatchedNothing: The family has none (GPT-2 has no gate projection).
        """
        return _parameters.weights(self, role)

    def down_proj(self, layer: int) -> tuple[str, nn.Parameter, bool]:
        """Name and weight of a layer's down-projection, and whether stored `[m d]` (GPT-2's Conv1D), not `[d m]`."""
        if not 0 <= layer < self.n_layers:
            raise InputError(f"layer {layer} does not exist; {self.name} has layers 0 to {self.n_layers - 1}")
        weight = weight_of(_module(self.layers[layer], self.family.down))
        return f"{self.family.layers}.{layer}.{self.family.down}.weight", weight, self.family.transposed

    def post_norm_gain(self, layer: int) -> Float[Tensor, " d"] | None:
        """Gain of the norm behind the MLP (1 + weight in Gemma), float32; None where there is no such norm."""
        if self.family.post_norm is None:
            return None
        return weight_of(_module(self.layers[layer], self.family.post_norm)).detach().float() + self.family.gain_offset

    def final_norm(self) -> nn.Module:
        """The norm in front of the unembedding."""
        return _module(self.model, self.family.final_norm)

    def final_norm_gain(self) -> Float[Tensor, " d"]:
        """Its gain (1 + weight in Gemma), float32: what the logit lens multiplies a direction with."""
        return weight_of(self.final_norm()).detach().float() + self.family.gain_offset

    def unembedding(self) -> Float[Tensor, "d V"]:
        """From the final norm's output to logits: a view of the parameter, which may be tied to the embedding."""
        return weight_of(self.unembed()).detach().T

    def token_roles(self, prompt: str, subject: str | None = None) -> TokenRoles:
        """Which tokens of `prompt` are the subject, its last token, EOS, padding, specials; see `llm.tokens`."""
        return token_roles(self.tokenizer, prompt, subject)

    def unembed(self) -> nn.Module:
        """The module that maps the final norm's output to logits."""
        head = self.model.get_output_embeddings()
        if head is None:
            raise InputError(f"{self.name} ({type(self.model).__name__}) has no unembedding: load it as a causal LM")
        return head


def _module(root: nn.Module, path: str) -> nn.Module:
    return root.get_submodule(path)
