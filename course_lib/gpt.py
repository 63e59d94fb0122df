"""The GPT: token embeddings, a stack of blocks, a final norm, and logits.

One class serves every model of the course: base, SFT, policy, and (without its logits) the body
of the reward model. By default the output matrix is the embedding matrix (tied weights).

Sources: Radford et al. 2019 (stack, initialisation); Press and Wolf 2017 (tying);
Touvron et al. 2023 (rotary, RMSNorm, SwiGLU, no biases: the defaults here).
"""

import math
from dataclasses import asdict, dataclass, field, fields

import torch
from torch import Tensor, nn

from course_lib.attention import KVCache
from course_lib.errors import CourseError
from course_lib.layers import ACTIVATIONS, NORM_POSITIONS, NORMS, Block, make_norm
from course_lib.positions import POSITIONS, rotary_angles, sinusoidal_table


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and choices of one model.

    Attributes:
        n_kv_heads: 0 means as many as `n_heads`; fewer is grouped, 1 multi-query attention.
        d_ff: 0 means 8/3 of the width for swiglu and 4 times the width otherwise, both rounded up
            to a multiple of 16.
        rope_theta, rope_scaling, rope_interleaved: see `positions.rotary_angles` and `rotate`.
        bias: biases in all linear maps and in LayerNorm.
        dropout: share of the attention weights, of what each part adds to the stream, and of the
            embeddings that is set to zero in training.
        fused: PyTorch's fused attention, or the plain one with the same numbers.

    Raises:
        CourseError: a size, a choice or a combination that makes no model.
    """

    vocab_size: int
    context_length: int = 128
    d_model: int = 160
    n_layers: int = 4
    n_heads: int = 5
    n_kv_heads: int = 0
    d_ff: int = 0
    positions: str = "rotary"
    rope_theta: float = 10_000.0
    rope_scaling: float = 1.0
    rope_interleaved: bool = False
    norm: str = "rmsnorm"
    norm_position: str = "pre"
    norm_eps: float = 1e-5
    activation: str = "swiglu"
    bias: bool = False
    tie_embeddings: bool = True
    dropout: float = 0.0
    fused: bool = True

    def __post_init__(self):
        if not self.n_kv_heads:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        if not self.d_ff and isinstance(self.d_model, int):
            wide = 8 * self.d_model / 3 if self.activation == "swiglu" else 4 * self.d_model
            object.__setattr__(self, "d_ff", int(-(-wide // 16) * 16))
        self._check()

    def _check(self) -> None:
        sizes = ("vocab_size", "context_length", "d_model", "n_layers", "n_heads", "n_kv_heads")
        for name in (*sizes, "d_ff"):
            value = getattr(self, name)
            if not isinstance(value, int) or value <= 0:
                raise CourseError(f"{name} must be a positive whole number, not {value!r}")
        for name in ("rope_theta", "rope_scaling", "norm_eps"):
            if not getattr(self, name) > 0:
                raise CourseError(f"{name} must be positive, not {getattr(self, name)!r}")
        if not 0 <= self.dropout < 1:
            raise CourseError(f"dropout is a share, 0 <= dropout < 1, not {self.dropout!r}")
        choices = {"positions": POSITIONS, "norm": NORMS, "activation": ACTIVATIONS}
        for name, allowed in (choices | {"norm_position": NORM_POSITIONS}).items():
            if getattr(self, name) not in allowed:
                raise CourseError(f"{name}={getattr(self, name)!r}: choose one of {allowed}")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.d_model % self.n_heads:
            raise CourseError(
                f"n_heads={self.n_heads} does not divide d_model={self.d_model}: every head needs "
                f"the same whole width"
            )
        if self.n_heads % self.n_kv_heads:
            raise CourseError(
                f"n_kv_heads={self.n_kv_heads} does not divide n_heads={self.n_heads}: every key "
                f"head must serve the same number of query heads"
            )
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise CourseError(f"sinusoidal positions need an even d_model, not {self.d_model}")
        rope = [f for f in fields(self) if f.name.startswith("rope_")]
        changed = [f.name for f in rope if getattr(self, f.name) != f.default]
        if changed and self.positions != "rotary":
            raise CourseError(
                f"{', '.join(changed)} without rotary positions has no effect: set "
                f"positions='rotary' or leave it out"
            )
        if self.positions == "rotary" and self.d_head % 2:
            raise CourseError(
                f"rotary positions need an even head width, but d_model/n_heads is {self.d_head}"
            )

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_heads

    def to_dict(self) -> dict:
        """Plain values, for a JSON file."""
        return asdict(self)


@dataclass
class Trace:
    """The inside of one forward pass, kept by `GPT.trace`.

    Attributes:
        residuals: the stream before the first block and after each: `n_layers + 1` tensors
            `(B, T, d_model)`. `model.logits(model.norm(r))` reads any of them (logit lens).
        attention: the weights of each layer: `n_layers` tensors `(B, n_heads, T, S)`.
        logits: `(B, T, vocab_size)`.
    """

    residuals: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    logits: Tensor | None = None


class GPT(nn.Module):
    """A decoder-only transformer.

    `forward` gives logits, `hidden` the states under them, `trace` also what lies between.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = c = config
        self.embedding = nn.Embedding(c.vocab_size, c.d_model)
        if c.positions == "learned":
            self.position_embedding = nn.Embedding(c.context_length, c.d_model)
        if c.positions == "sinusoidal":
            table = sinusoidal_table(c.context_length, c.d_model)
            self.register_buffer("position_table", table, persistent=False)
        self.dropout = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layers))
        self.norm = make_norm(c) if c.norm_position == "pre" else nn.Identity()
        if not c.tie_embeddings:
            self.lm_head = nn.Linear(c.d_model, c.vocab_size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        """Normal weights with std 0.02; what writes into the stream is scaled down by depth."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue  # gains stay 1, biases 0
            writes = name.endswith(("out.weight", "down.weight"))
            std = 0.02 / (2 * self.config.n_layers) ** 0.5 if writes else 0.02
            nn.init.normal_(parameter, std=std)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)

    def forward(
        self,
        idx: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        caches: list[KVCache] | None = None,
    ) -> Tensor:
        """Logits of the next token at every position: `(B, T, vocab_size)`.

        Arguments and errors as in `hidden`.
        """
        return self.logits(self.hidden(idx, positions, mask, caches))

    def trace(
        self, idx: Tensor, positions: Tensor | None = None, mask: Tensor | None = None
    ) -> Trace:
        """Run as `forward` does, with plain attention, and keep every layer's state and weights.

        Nothing is detached, so gradients with respect to any kept tensor can be asked for.
        Arguments and errors as in `hidden`; the shapes of what is kept are those of `Trace`.
        """
        trace = Trace()
        trace.logits = self.logits(self.hidden(idx, positions, mask, trace=trace))
        return trace

    def hidden(
        self,
        idx: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        caches: list[KVCache] | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """Final normalised states: `(B, T, d_model)`.

        Args:
            idx: token ids `(B, T)`.
            positions: position of each token, `(B, T)`; by default counted from the cache's end.
            mask: True where a query may look, broadcastable to `(B, n_heads, T, S)`; by default
                causal. Batches padded on the left must pass both.
            caches: one `KVCache` a layer, extended in place.
            trace: gets the residual stream and the attention weights, see the method `trace`.

        Raises:
            CourseError: more tokens than `context_length`, or (on the CPU; a GPU stops with an
                assertion of its own) an id outside the vocabulary.
        """
        T, start = idx.size(1), caches[0].length if caches else 0
        if start + T > self.config.context_length:
            raise CourseError(
                f"{start + T} tokens do not fit the context of {self.config.context_length}: "
                f"shorten the text or use a model with a longer context"
            )
        if positions is None:
            positions = torch.arange(start, start + T, device=idx.device)
        x, rotary = self._embed(idx, positions)  # (B, T, C)
        if trace:
            trace.residuals.append(x)
        for i, block in enumerate(self.blocks):
            cache = caches[i] if caches else None
            x = block(x, rotary, mask, cache, trace.attention if trace else None)
            if trace:
                trace.residuals.append(x)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """States `(..., d_model)` to scores `(..., vocab_size)`, by the embedding matrix unless
        untied.
        """
        matrix = self.embedding if self.config.tie_embeddings else self.lm_head
        return hidden @ matrix.weight.T

    def _embed(self, idx: Tensor, positions: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Token vectors (with added positions), and the rotary angles if the config has them.

        Beside a sinusoidal table, whose entries are of size 1, token vectors are scaled by
        sqrt(d_model), as in Vaswani et al., section 3.4: they start far smaller than its rows.
        """
        c = self.config
        try:
            x = self.embedding(idx)
        except IndexError:
            raise CourseError(
                f"token ids from {int(idx.min())} to {int(idx.max())}, but the model knows 0 to "
                f"{c.vocab_size - 1}: was the text encoded by another tokenizer?"
            ) from None
        if c.positions == "learned":
            x = x + self.position_embedding(positions)
        if c.positions == "sinusoidal":
            x = math.sqrt(c.d_model) * x + self.position_table[positions]
        x = self.dropout(x)
        if c.positions != "rotary":
            return x, None
        cos, sin = rotary_angles(positions, c.d_head, c.rope_theta, c.rope_scaling)
        if positions.dim() == 2:  # (B, T, d/2) -> (B, 1, T, d/2): the same for every head
            cos, sin = cos[:, None], sin[:, None]
        return x, (cos, sin)

    def new_caches(self, batch: int) -> list[KVCache]:
        """Empty caches for `batch` sequences, one a layer."""
        c, like = self.config, self.embedding.weight
        return [
            KVCache(batch, c.n_kv_heads, c.context_length, c.d_head, like)
            for _ in range(c.n_layers)
        ]

    @property
    def n_parameters(self) -> int:
        """Number of trained values; the tied matrix counts once."""
        return sum(p.numel() for p in self.parameters())
