"""What an SAE is and how it is trained: frozen, torch-free, every option explained at its field."""

import math
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from ..base.errors import InputError, UnknownName

ArchitectureName = Literal["relu", "topk", "batchtopk", "jumprelu", "matryoshka", "gated"]
ARCHITECTURES: tuple[str, ...] = get_args(ArchitectureName)
NORMALIZE = ("unit", "sqrt_d", "whiten", "none")
DTYPES = ("float32", "float64", "bfloat16", "float16")
TOPK_FAMILY = ("topk", "batchtopk", "matryoshka")
CALIBRATED = ("batchtopk", "matryoshka")
"""Architectures whose inference threshold is measured after training (`SAE.calibrate_threshold`)."""
GROUP_FRACTIONS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)
"""Default Matryoshka groups as shares of `d_sae` (dictionary_learning's)."""


@dataclass(frozen=True)
class SAEConfig:
    """Shape and function of a sparse autoencoder or transcoder."""

    architecture: str
    """`relu`, `topk`, `batchtopk`, `jumprelu`, `matryoshka` or `gated`."""
    d_in: int
    """Width of the input."""
    d_sae: int
    """Number of latents."""
    k: int = 32
    """Active latents a vector (topk: at most; batchtopk, matryoshka: on average). Others do not read it."""
    d_out: int | None = None
    """Width of the output of a transcoder, which predicts another hook point than it reads. None: an autoencoder."""
    skip: bool = False
    """Transcoders: add `W_skip x` to the output."""
    groups: tuple[int, ...] = ()
    """matryoshka: prefixes `n_1 < … < d_sae` that must reconstruct by themselves. Empty: 1/32, 3/32, 7/32, 15/32 and 1
    of `d_sae`."""
    apply_b_dec_to_input: bool | None = None
    """Subtract `b_dec` before encoding. None: autoencoders yes, transcoders no (`b_dec` lies in the output's space)."""
    dtype: str = "float32"
    """Of the weights. JumpReLU thresholds stay float32 or wider."""
    k_aux: int | None = None
    """Dead latents that reconstruct the residual in AuxK. None: half the output's width (Gao et al. 2024, App. B.1)."""
    threshold_init: float = 1e-3
    """jumprelu: first thresholds, in units of the normalised input (Rajamanoharan et al. 2024, App. I)."""
    bandwidth: float = 1e-3
    """jumprelu: width of the straight-through estimator's kernel, in the same units."""
    sparsity_loss: str = "step"
    """jumprelu: `step` (L0; Rajamanoharan et al. 2024), `tanh` (Anthropic, January 2025) or `quadratic` (towards
    `target_l0`; Gemma Scope 2)."""
    target_l0: float | None = None
    """jumprelu, `quadratic`: latents a vector to aim at."""
    tanh_scale: float = 4.0
    """jumprelu, `tanh`: `c` in `sum tanh(c f_i |w_i|)`."""
    ste_to_input: bool = False
    """jumprelu: let the estimator also move the pre-activations (Anthropic), not the thresholds alone (DeepMind)."""

    def __post_init__(self) -> None:
        """Checks every field; resolves `apply_b_dec_to_input` and the Matryoshka groups.

        Raises:
            InputError: A value out of range, or fields that contradict each other.
        """
        if self.architecture not in ARCHITECTURES:
            raise UnknownName("architecture", self.architecture, ARCHITECTURES)
        if self.dtype not in DTYPES:
            raise UnknownName("dtype", self.dtype, DTYPES)
        for name in ("d_in", "d_sae", "k", "d_out", "k_aux"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1; found {value}")
        if self.architecture in TOPK_FAMILY and self.k > self.d_sae:
            raise InputError(f"k={self.k} active latents of d_sae={self.d_sae}: lower k or widen d_sae")
        self._check_transcoder()
        self._check_groups()
        self._check_jumprelu()

    def _check_transcoder(self) -> None:
        if self.skip and self.d_out is None:
            raise InputError("skip=True needs a transcoder: give d_out (the target's width), or set skip=False")
        if self.apply_b_dec_to_input and self.d_out is not None:
            raise InputError("apply_b_dec_to_input: a transcoder's b_dec lies in the output's space; set it to False or leave it out")
        if self.apply_b_dec_to_input is None:
            object.__setattr__(self, "apply_b_dec_to_input", self.d_out is None)

    def _check_groups(self) -> None:
        if self.architecture != "matryoshka":
            if self.groups:
                raise InputError(f"groups={self.groups} are Matryoshka's; architecture {self.architecture!r} has none")
            return
        if not self.groups:
            edges = {round(sum(GROUP_FRACTIONS[: i + 1]) * self.d_sae) for i in range(len(GROUP_FRACTIONS))}
            object.__setattr__(self, "groups", tuple(sorted(edges - {0} | {self.d_sae})))
        object.__setattr__(self, "groups", tuple(self.groups))
        if any(a >= b for a, b in zip((0, *self.groups), self.groups, strict=False)) or self.groups[-1] != self.d_sae:
            raise InputError(f"groups must ascend from at least 1 to d_sae={self.d_sae}; found {self.groups}")

    def _check_jumprelu(self) -> None:
        if self.sparsity_loss not in ("step", "tanh", "quadratic"):
            raise UnknownName("sparsity_loss", self.sparsity_loss, ("step", "tanh", "quadratic"))
        if self.architecture == "jumprelu" and self.sparsity_loss == "quadratic" and self.target_l0 is None:
            raise InputError("sparsity_loss='quadratic' needs target_l0: how many latents a vector to aim at")
        if self.target_l0 is not None and not 0 < self.target_l0 <= self.d_sae:
            raise InputError(f"target_l0 must lie in (0, {self.d_sae}] (d_sae); found {self.target_l0}")
        if self.bandwidth <= 0 or self.threshold_init < 0 or self.tanh_scale <= 0:
            raise InputError(
                "bandwidth and tanh_scale must be > 0 and threshold_init >= 0; "
                f"found {self.bandwidth}, {self.tanh_scale}, {self.threshold_init}"
            )

    @property
    def transcoder(self) -> bool:
        """Whether input and target differ."""
        return self.d_out is not None

    @property
    def width_out(self) -> int:
        """Width of the reconstruction: `d_out`, or `d_in` of an autoencoder."""
        return self.d_in if self.d_out is None else self.d_out

    @property
    def aux_latents(self) -> int:
        """`k_aux` with its default resolved."""
        return self.k_aux if self.k_aux is not None else max(1, self.width_out // 2)

    def to_dict(self) -> dict[str, object]:
        """Plain values, as `base.config.from_mapping(SAEConfig, …)` reads them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast and with which losses."""

    steps: int | None = None
    """Optimiser steps; give this or `tokens`."""
    tokens: int | None = None
    """Vectors to train on, rounded up to whole batches; give this or `steps`."""
    batch: int = 2048
    """Vectors a step, over all processes."""
    lr: float = 3e-4
    """Peak learning rate of Adam (dictionary_learning, sae-lens)."""
    warmup: int = 100
    """Steps of linear warm-up of the learning rate."""
    decay_fraction: float = 0.2
    """Share of the run, at its end, over which the learning rate falls linearly to 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates (the papers of JumpReLU and Gated take 0 for the first)."""
    eps: float = 1e-8
    """Adam's epsilon."""
    clip: float | None = 1.0
    """Largest global gradient norm; None: no clipping."""
    unit_decoder: bool = True
    """Keep decoder rows at norm 1 and remove the gradient along them."""
    l1: float = 1e-3
    """Weight of the sparsity term: L1 over `|w_i| f_i` (relu, gated), the L0 surrogate (jumprelu); in units of the
    normalised input."""
    l1_warmup: float = 0.1
    """Share of the run over which `l1` rises linearly from 0."""
    auxk_coef: float = 1 / 32
    """Weight of AuxK (topk, batchtopk, matryoshka; Gao et al. 2024). 0: off."""
    pre_act_coef: float = 3e-6
    """jumprelu: weight of `sum relu(theta_i - a_i) |w_i|` over dead latents (Anthropic, January 2025). 0: off."""
    dead_window: int | None = None
    """Vectors without firing after which a latent is dead. None: min(10 M, 5 % of the run)."""
    normalize: str = "unit"
    """`unit`: scale so that E|x|^2 = 1; `sqrt_d`: so that the mean norm is sqrt(d); `none`. `whiten`: autoencoders, every direction to
    the same variance, then `unit`: where a few directions have nearly all of it, the others are not learnt otherwise. Folded when
    saved; after `whiten` the decoder's rows are not of norm 1."""
    whiten_floor: float = 1e-4
    """whiten: share of the largest variance that is added to all; what is below it is taken for rounding."""
    normalize_vectors: int = 32_768
    """Vectors from which the scale and the geometric median for `b_dec` are measured, at least."""
    init_b_dec: bool = True
    """Start `b_dec` at the geometric median of the targets (else 0)."""
    seed: int = 0
    """Of the weights."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; 0: only when asked to stop and at the end."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    log_every: int = 50
    """Steps between log lines."""
    log: str = "jsonl"
    """`jsonl`, or `wandb` as well."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            InputError: A value out of range.
        """
        if (self.steps is None) == (self.tokens is None):
            raise InputError("give either steps or tokens, not both and not neither")
        for name in ("steps", "tokens", "batch", "dead_window", "normalize_vectors", "log_every", "keep_checkpoints"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1; found {value}")
        for name in ("lr", "warmup", "l1", "auxk_coef", "pre_act_coef", "checkpoint_every", "eps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be a finite number that is not negative; found {getattr(self, name)}")
        for name in ("decay_fraction", "l1_warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a share of the run, 0 to 1; found {getattr(self, name)}")
        if not 0 < self.whiten_floor < 1:
            raise InputError(f"whiten_floor is a share of the largest variance, above 0 and below 1; found {self.whiten_floor}")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip must be > 0, or None for no clipping; found {self.clip}")
        for name, known in (("normalize", NORMALIZE), ("log", ("jsonl", "wandb"))):
            if getattr(self, name) not in known:
                raise UnknownName(name, getattr(self, name), known)

    @property
    def n_steps(self) -> int:
        """Optimiser steps of the run."""
        return self.steps if self.steps is not None else -(-(self.tokens or 0) // self.batch)
