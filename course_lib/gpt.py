"""The GPT: token embeddings, a stack of blocks, a final norm, and logits.

One class serves every model of the course: base, SFT, policy, and (without its logits) the body
of the reward model. The output matrix is the embedding matrix (tied weights).

Sources: Radford et al. 2019 (stack, initialisation); Press and Wolf 2017 (tying);
Touvron et al. 2023 (rotary, RMSNorm, SwiGLU, no biases: the defaults here).
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from course_lib.attention import KVCache
from course_lib.errors import CourseError
from course_lib.layers import ACTIVATIONS, NORMS, Block, make_norm
from course_lib.positions import POSITIONS, rotary_angles, sinusoidal_table


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and choices of one model. Zero for `n_kv_heads` and `d_ff` means the usual value.

    The usual values: as many key heads as query heads; `d_ff` of 8/3 of the width for swiglu
    (rounded up to a multiple of 16), 4 times the width otherwise.
    """

    vocab_size: int
    context_length: int = 128
    d_model: int = 160
    n_layers: int = 4
    n_heads: int = 5
    n_kv_heads: int = 0
    d_ff: int = 0
    positions: str = "rotary"
    norm: str = "rmsnorm"
    activation: str = "swiglu"
    bias: bool = False

    def __post_init__(self):
        if not self.n_kv_heads:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        if not self.d_ff:
            wide = 8 * self.d_model / 3 if self.activation == "swiglu" else 4 * self.d_model
            object.__setattr__(self, "d_ff", int(-(-wide // 16) * 16))
        self._check()

    def _check(self) -> None:
        sizes = ("vocab_size", "context_length", "d_model", "n_layers", "n_heads", "n_kv_heads")
        for name in (*sizes, "d_ff"):
            value = getattr(self, name)
            if not isinstance(value, int) or value <= 0:
                raise CourseError(f"{name} must be a positive whole number, not {value!r}")
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
        choices = {"positions": POSITIONS, "norm": NORMS, "activation": ACTIVATIONS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise CourseError(f"{name}={getattr(self, name)!r}: choose one of {allowed}")
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


class GPT(nn.Module):
    """A decoder-only transformer. `forward` gives logits, `hidden` the states under them."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = c = config
        self.embedding = nn.Embedding(c.vocab_size, c.d_model)
        if c.positions == "learned":
            self.position_embedding = nn.Embedding(c.context_length, c.d_model)
        if c.positions == "sinusoidal":
            table = sinusoidal_table(c.context_length, c.d_model)
            self.register_buffer("position_table", table, persistent=False)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layers))
        self.norm = make_norm(c)
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

        Arguments as in `hidden`.
        """
        return self.logits(self.hidden(idx, positions, mask, caches))

    def hidden(
        self,
        idx: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        caches: list[KVCache] | None = None,
    ) -> Tensor:
        """Final normalised states: `(B, T, d_model)`.

        Args:
            idx: token ids `(B, T)`.
            positions: position of each token, `(B, T)`; by default counted from the cache's end.
            mask: True where a query may look, broadcastable to `(B, n_heads, T, S)`; by default
                causal. Batches padded on the left must pass both.
            caches: one `KVCache` a layer, extended in place.

        Raises:
            CourseError: more tokens than `context_length`.
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
        for i, block in enumerate(self.blocks):
            x = block(x, rotary, mask, caches[i] if caches else None)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """States to scores over the vocabulary, by the tied embedding matrix."""
        return hidden @ self.embedding.weight.T

    def _embed(self, idx: Tensor, positions: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Token vectors (with added positions), and the rotary angles if the config has them."""
        x = self.embedding(idx)
        if self.config.positions == "learned":
            x = x + self.position_embedding(positions)
        if self.config.positions == "sinusoidal":
            x = x + self.position_table[positions]
        if self.config.positions != "rotary":
            return x, None
        cos, sin = rotary_angles(positions, self.config.d_head)
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
