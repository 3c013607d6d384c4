"""The SAE: weights, encode, decode, training forward, threshold calibration, folding, loading and saving."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..base.errors import InputError, NumericsError
from .architectures import architecture
from .architectures.base import stored
from .calibration import threshold_for
from .config import CALIBRATED, SAEConfig
from .initialise import geometric_median, unit_rows
from .losses import Coefficients, Loss
from .sparse import SparseActs, decode_sparse


class SAE(nn.Module):
    """A sparse autoencoder, transcoder (`cfg.d_out`) or skip transcoder (`cfg.skip`) of any architecture.

    Weights: `W_enc` [d_in d_sae] (stored transposed: the sparse path reads rows of latents), `W_dec` [d_sae d_out],
    `b_dec` [d_out], and by architecture `b_enc` [d_sae], `threshold` ([d_sae], or one number for batchtopk and
    matryoshka; -1: not calibrated), `b_gate`, `b_mag`, `r_mag` [d_sae]; `W_skip` [d_out d_in]. Decoder rows start at
    norm 1, the encoder as their transpose (as random unit rows where widths differ), biases and `W_skip` at 0.

    `card` is what `efface.json` holds beside the weights: `model`, `model_digest`, `hook_point`, `hook_point_out`,
    `token_policy`, `training`, `metrics`.
    """

    b_enc: nn.Parameter
    threshold: Tensor
    b_gate: nn.Parameter
    b_mag: nn.Parameter
    r_mag: nn.Parameter
    W_skip: nn.Parameter | None

    def __init__(self, cfg: SAEConfig, card: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.cfg = cfg
        self.card: dict[str, Any] = dict(card or {})
        self.arch = architecture(cfg.architecture)
        dtype = getattr(torch, cfg.dtype)
        rows = unit_rows(cfg.d_sae, cfg.width_out, dtype)
        self.W_dec = nn.Parameter(rows)
        encoder = rows.clone() if cfg.width_out == cfg.d_in else unit_rows(cfg.d_sae, cfg.d_in, dtype)
        self.W_enc = nn.Parameter(encoder.T)
        self.b_dec = nn.Parameter(torch.zeros(cfg.width_out, dtype=dtype))
        self.arch.extra_weights(self)
        self.W_skip = nn.Parameter(torch.zeros(cfg.width_out, cfg.d_in, dtype=dtype)) if cfg.skip else None

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.W_dec.dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.W_dec.device

    @property
    def subtracts(self) -> bool:
        """Whether `b_dec` is subtracted from the input."""
        return bool(self.cfg.apply_b_dec_to_input)

    def _apply(self, fn: Any, recurse: bool = True) -> "SAE":
        """Moves and casts; thresholds keep at least float32."""
        super()._apply(fn, recurse)
        threshold = getattr(self, "threshold", None)
        if isinstance(threshold, Tensor) and threshold.dtype in (torch.float16, torch.bfloat16):
            threshold.data = threshold.data.float()
        return self

    def center(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        """The encoder's input: `x` or `x - b_dec`, in the weights' dtype."""
        x = x.to(self.dtype)
        return x - self.b_dec if self.subtracts else x

    def add_skip(self, out: Float[Tensor, "*m d_out"], x: Float[Tensor, "n d_in"], *, frozen: bool = False) -> Float[Tensor, "*m d_out"]:
        """`out + W_skip x` of a skip transcoder, else `out`; `frozen`: without gradient for `W_skip`."""
        if self.W_skip is None:
            return out
        weight = self.W_skip.detach() if frozen else self.W_skip
        return out + x.to(self.dtype) @ weight.T

    def encode_sparse(self, x: Float[Tensor, "*batch d_in"]) -> SparseActs:
        """Active latents of every vector (leading dimensions flattened to rows).

        No dense `[n d_sae]` matrix, no gradient.

        Raises:
            InputError: Another width than `d_in`, or a threshold that was never calibrated.
            NumericsError: NaN or infinity in the pre-activations.
        """
        with torch.no_grad():
            return stored(*self.arch.sparse(self, self.center(self._rows(x))))

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents as a dense differentiable tensor in the weights' dtype; `encode_sparse` for many of either."""
        acts, values = self.arch.sparse(self, self.center(self._rows(x)))
        return acts.with_values(values).to_dense().to(self.dtype).reshape(*x.shape[:-1], self.cfg.d_sae)

    def encode_features(self, x: Float[Tensor, "*batch d_in"], features: Sequence[int]) -> Float[Tensor, "*batch m"]:
        """`encode(x)[..., features]` without the others: differentiable, in the weights' dtype.

        Costs `m` encoder rows where latents do not compete (relu, jumprelu, gated, batchtopk and matryoshka with their
        threshold), the whole encoder product for topk; no dense `[n d_sae]` matrix either way.

        Raises:
            InputError: A feature outside `[0, d_sae)`; else as `encode_sparse`.
        """
        ids = torch.as_tensor(features, dtype=torch.int64, device=self.device)
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < self.cfg.d_sae):
            raise InputError(f"features must lie in [0, {self.cfg.d_sae}); found {int(ids.min())} to {int(ids.max())}")
        acts = self.arch.columns(self, self.center(self._rows(x)), ids)
        return acts.to(self.dtype).reshape(*x.shape[:-1], len(ids))

    def decode(
        self, acts: SparseActs | Float[Tensor, "*batch d_sae"], x: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch_out d_out"]:
        """`f W_dec + b_dec`, plus `W_skip x` for a skip transcoder, in the weights' dtype; `[n d_out]` of sparse ones.

        Args:
            acts: Latents.
            x: The input; a skip transcoder needs it.

        Raises:
            InputError: A skip transcoder without `x`, or latents of another width.
        """
        if self.W_skip is not None and x is None:
            raise InputError("decode of a skip transcoder needs its input: decode(acts, x)")
        width = acts.d_sae if isinstance(acts, SparseActs) else acts.shape[-1]
        if width != self.cfg.d_sae:
            raise InputError(f"latents of width {width}; this SAE's d_sae is {self.cfg.d_sae}")
        if isinstance(acts, SparseActs):
            out = decode_sparse(acts, self.W_dec, self.b_dec).to(self.dtype)
        else:
            out = acts.to(self.dtype) @ self.W_dec + self.b_dec
        if self.W_skip is None or x is None:
            return out
        return out + (x.to(self.dtype) @ self.W_skip.T).reshape(out.shape)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Reconstruction (transcoders: prediction) in the dtype of `x`, through the sparse path, differentiable."""
        rows = self._rows(x)
        acts, values = self.arch.sparse(self, self.center(rows))
        out = self.arch.reconstruct(self, acts, values, rows)
        return out.to(x.dtype).reshape(*x.shape[:-1], self.cfg.width_out)

    def training_forward(
        self,
        x: Float[Tensor, "n d_in"],
        target: Float[Tensor, "n d_out"] | None = None,
        dead_mask: Bool[Tensor, " d_sae"] | None = None,
        coefficients: Coefficients | None = None,
    ) -> Loss:
        """Losses of one batch.

        Args:
            x: Input vectors.
            target: What is to be reconstructed; None: `x` itself (autoencoders only).
            dead_mask: Latents to revive (AuxK, JumpReLU's pre-activation term).
            coefficients: Weights of the terms.

        Raises:
            InputError: No target for a transcoder, or shapes that do not fit.
            NumericsError: The pre-activations or the loss are not finite.
        """
        x = self._rows(x).to(self.dtype)
        if target is None and self.cfg.transcoder:
            raise InputError("a transcoder's training_forward needs target: the activations of the output hook point")
        target = x if target is None else target.to(self.dtype)
        if target.shape != (len(x), self.cfg.width_out):
            raise InputError(f"target must be of shape {(len(x), self.cfg.width_out)}; found {tuple(target.shape)}")
        loss = self.arch.training(self, x, target, dead_mask, coefficients or Coefficients())
        if not torch.isfinite(loss.total):
            raise NumericsError(
                f"the training loss is {float(loss.total.detach())}: look for NaN or infinity in the activations, or lower lr"
            )
        return loss

    @torch.no_grad()
    def calibrate_threshold(self, batches: Iterable[Float[Tensor, "n d_in"]]) -> float:
        """Sets the inference threshold so that the mean L0 over `batches` is the target.

        batchtopk, matryoshka: the quantile of the pre-activations at which `k` a vector pass; returned. jumprelu with
        `target_l0`: all thresholds are multiplied by the factor at which `target_l0` a vector pass; the factor is
        returned.

        Args:
            batches: Held-out vectors, as they come (`fold_scale` first).

        Raises:
            InputError: An architecture without a threshold to set.
            MatchedNothing: No vectors.
        """
        inputs = (self.center(self._rows(b.to(self.device))) for b in batches)
        if self.cfg.architecture in CALIBRATED:
            value = threshold_for(inputs, self.W_enc, self.b_enc, float(self.cfg.k))
            self.threshold.fill_(value)
            return value
        if self.cfg.architecture != "jumprelu" or self.cfg.target_l0 is None:
            raise InputError(
                f"{self.cfg.architecture} has no threshold to calibrate (batchtopk, matryoshka, and jumprelu with target_l0 have)"
            )
        self.threshold.clamp_(min=1e-6)
        unit = self.threshold.to(self.dtype)
        factor = threshold_for(inputs, (self.W_enc.T / unit[:, None]).T, self.b_enc / unit, self.cfg.target_l0)
        self.threshold.mul_(factor)
        return factor

    @torch.no_grad()
    def fold_scale(self, scale: float, scale_out: float | None = None) -> None:
        """Takes an SAE that was trained on `scale * x` (and targets `scale_out * y`) back to raw activations.

        Biases and thresholds are divided, the encoder absorbs the ratio of the scales; decoder rows keep their norm,
        and latents are in units of the raw output. The reconstruction of `x` is then the old one of `scale * x`, over
        `scale_out`.

        Raises:
            InputError: Scales that are not positive, or two different ones for an autoencoder.
        """
        out = scale if scale_out is None else scale_out
        if not (0 < scale < float("inf") and 0 < out < float("inf")):
            raise InputError(f"scales must be positive numbers; found {scale}, {out}")
        if out != scale and not self.cfg.transcoder:
            raise InputError(f"an autoencoder has one scale; found {scale} for its input and {out} for its output")
        ratio = scale / out
        self.W_enc.mul_(ratio)
        self.b_dec.div_(out)
        for name in self.arch.scaled:
            getattr(self, name).div_(out)
        if self.cfg.architecture in CALIBRATED and float(self.threshold) >= 0:
            self.threshold.div_(out)
        if self.W_skip is not None:
            self.W_skip.mul_(ratio)

    @torch.no_grad()
    def fold_matrix(self, matrix: Float[Tensor, "d d"], inverse: Float[Tensor, "d d"]) -> None:
        """Takes an autoencoder that was trained on `x @ matrix` back to raw activations: latents stay, decoder rows change their norm.

        Raises:
            InputError: A transcoder.
        """
        if self.cfg.transcoder:
            raise InputError("a transcoder's input and output lie in two spaces; one matrix folds into an autoencoder alone")
        self.W_enc.copy_(matrix @ self.W_enc)
        self.W_dec.copy_(self.W_dec @ inverse)
        self.b_dec.copy_(self.b_dec @ inverse)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Writes `cfg.json`, `sae_weights.safetensors` (sae-lens 6 loads them), `efface.json`; whole or not at all."""
        from .formats.native import save

        return save(self, Path(folder), overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | Path) -> "SAE":
        """Reads a folder of ours, of sae-lens 6, of Gemma Scope (`params.npz`) or of sparsify; never a pickle.

        Raises:
            ArtefactError: What is there is missing, damaged, of another format, or not what its manifest says.
        """
        from .formats import load

        return load(Path(folder))

    @classmethod
    def from_pretrained(cls, release: str, sae_id: str) -> "SAE":
        """A published SAE by sae-lens' release name and id; needs `pip install efface[saelens]` and a network."""
        from .formats.saelens import from_pretrained

        return from_pretrained(release, sae_id)

    def _rows(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.cfg.d_in:
            raise InputError(
                f"activations of width {x.shape[-1]}; this SAE's d_in is {self.cfg.d_in}: is it the hook point it was trained on?"
            )
        return x.reshape(-1, self.cfg.d_in)


__all__ = ["SAE", "geometric_median"]
