"""Writing text with a GPT: batches, streams and beams, over one KV cache.

Prompts of different lengths run in one batch: they are padded on the left, the padding is masked,
and positions are counted from each prompt's own first token.

The end of the context: a text ends where the context is full. With `slide=True` it goes on: its
oldest tokens are dropped until half a context is left, which is read anew as if it were the whole
text. So each text is cut at its own length, whoever shares its batch, and the model never sees a
position that training has not.

Sources: Graves 2012, algorithm 1 (beam search); Wu et al. 2016, section 7 (length penalty).
"""

import codecs
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.errors import CourseError
from course_lib.gpt import GPT
from course_lib.sampling import GREEDY, Generators, Sampling, draw, next_token_probs, uniforms
from course_lib.tokenizer import BPETokenizer


@dataclass(frozen=True)
class Completion:
    """New token ids (a stop token included) and whether a stop token or string ended them."""

    ids: list[int]
    ended: bool


class Decoder:
    """Texts that grow token by token, and the cache of what the model has read of them.

    Args:
        prompts: token ids, one list a text, of any lengths; none may be empty.
        slide: drop the oldest tokens of a text that fills the context, see the top of the file.

    Attributes:
        texts: the token ids that the model sees, one list a text.
        prompts: for each text, the number of the prompt that it came from.

    Raises:
        CourseError: no prompt, an empty one, or one that leaves no room in the context.
    """

    def __init__(self, model: GPT, prompts: Sequence[Sequence[int]], slide: bool = False):
        self.model, self.slide = model, slide
        self.limit = model.config.context_length
        self.device = model.embedding.weight.device
        self.texts = [list(prompt) for prompt in prompts]
        self.prompts, self.n_prompts = list(range(len(prompts))), len(prompts)
        longest = max(map(len, self.texts), default=0)
        if min(map(len, self.texts), default=0) == 0:
            raise CourseError("a prompt is empty: give at least one token (such as <|endoftext|>)")
        if longest >= self.limit:
            raise CourseError(
                f"the prompt has {longest} tokens, the context holds {self.limit}: shorten the "
                f"prompt"
            )
        self._read()

    def _read(self) -> None:
        """Read all texts into an empty cache."""
        width, B = max(map(len, self.texts)), len(self.texts)
        idx = [[0] * (width - len(text)) + text for text in self.texts]
        idx = torch.tensor(idx, device=self.device)  # (B, T)
        self.starts = torch.tensor([width - len(t) for t in self.texts], device=self.device)
        self.columns = torch.arange(self.limit, device=self.device)
        self.padded = any(len(text) < width for text in self.texts)
        self.caches = self.model.new_caches(B)
        positions = mask = None
        if self.padded:
            seen = self.columns[:width] >= self.starts[:, None]  # (B, T)
            positions = (self.columns[:width] - self.starts[:, None]).clamp(min=0)
            square = torch.ones(width, width, dtype=torch.bool, device=self.device)
            mask = square.tril() & seen[:, None, None, :] | square.tril() & square.triu()
        self.hidden = self.model.hidden(idx, positions, mask, self.caches)[:, -1]  # (B, d_model)

    def logits(self) -> Tensor:
        """Scores of each text's next token: `(B, vocab_size)`."""
        return self.model.logits(self.hidden).float()

    def choose(self, sampling: Sampling, generator: Generators = None) -> Tensor:
        """The next token of each text, `(B,)`; nothing is appended."""
        logits, seen = self.logits(), None
        if sampling.repetition_penalty != 1:
            seen = torch.zeros_like(logits, dtype=torch.bool)
            for row, text in zip(seen, self.texts, strict=True):
                row[text] = True
        if sampling.temperature == 0 and seen is None:
            return logits.argmax(-1)
        probs = next_token_probs(logits, sampling, seen)
        if sampling.temperature == 0:
            return probs.argmax(-1)
        # Texts that were dropped draw too: when they ended must not change what others draw.
        return draw(probs, uniforms(self.n_prompts, generator)[self.prompts])

    def append(self, tokens: Tensor) -> None:
        """Add one token `(B,)` to each text, and read it.

        Raises:
            CourseError: a text would be longer than the context, and does not slide.
        """
        for text, token in zip(self.texts, tokens.tolist(), strict=True):
            text.append(token)
            if len(text) > self.limit and self.slide:
                del text[: len(text) - max(1, self.limit // 2)]
        end = self.caches[0].length
        if end == self.limit:
            return self._read()
        positions = mask = None
        if self.padded:
            positions = end - self.starts[:, None]  # (B, 1)
            mask = (self.columns[: end + 1] >= self.starts[:, None])[:, None, None]  # (B, 1, 1, S)
        step = tokens[:, None].to(self.device)
        self.hidden = self.model.hidden(step, positions, mask, self.caches)[:, -1]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these texts, in this order; one that is named twice is copied."""
        rows = list(rows)
        self.texts = [list(self.texts[i]) for i in rows]
        self.prompts = [self.prompts[i] for i in rows]
        self.starts, self.hidden = self.starts[rows], self.hidden[rows]
        for cache in self.caches:
            cache.k, cache.v = cache.k[rows], cache.v[rows]

    def room(self, row: int) -> int:
        """How many more tokens a text may get before it fills the context and ends."""
        return 1 << 62 if self.slide else self.limit - len(self.texts[row])

    @property
    def full(self) -> bool:
        """True when the cache holds a whole context: the next token has everything read anew."""
        return self.caches[0].length == self.limit


@torch.inference_mode()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    sampling: Sampling = GREEDY,
    generator: Generators = None,
    *,
    stop_strings: Collection[str] = (),
    tokenizer: BPETokenizer | None = None,
    slide: bool = False,
) -> list[Completion]:
    """Continue every prompt.

    Args:
        prompts: token ids, one list a prompt, of any lengths; none may be empty.
        stop_ids: a row ends with the first of these it draws.
        generator: on the CPU. One for all: the same state gives the same texts. One a prompt:
            a row's draws do not depend on who shares its batch.
        stop_strings: a row also ends with the token that completes one of these; needs the
            `tokenizer`.
        slide: go on past the context, see the top of the file. By default a row ends, with
            `ended` False, where its text fills the context.

    Raises:
        CourseError: an empty prompt, one that leaves no room in the context, stop strings without
            a tokenizer, or not one generator a prompt.
    """
    decoder = Decoder(model, prompts, slide)
    if isinstance(generator, Sequence) and len(generator) != len(prompts):
        raise CourseError(f"{len(generator)} generators for {len(prompts)} prompts: give one each")
    writers = [TextWriter(tokenizer, stop_strings) for _ in prompts]
    rows: list[list[int]] = [[] for _ in prompts]
    ended, alive = [False] * len(prompts), set(range(len(prompts)))
    for _ in range(max_new_tokens):
        drawn = decoder.choose(sampling, generator)
        for j, (i, token) in enumerate(zip(decoder.prompts, drawn.tolist(), strict=True)):
            if i not in alive:
                continue
            rows[i].append(token)
            if stop_strings:
                writers[i].write(token)
            ended[i] = token in stop_ids or writers[i].stopped
            if ended[i] or decoder.room(j) == 1:
                alive.remove(i)
        if not alive:
            break
        if len(alive) <= len(decoder.texts) // 2 or decoder.full:  # the ended leave the batch
            keep = [j for j, i in enumerate(decoder.prompts) if i in alive]
            decoder.select(keep)
            drawn = drawn[keep]
        decoder.append(drawn)
    return [Completion(row, end) for row, end in zip(rows, ended, strict=True)]


class TextWriter:
    """Turns token ids into text: whole characters only, and nothing of a stop string.

    Args:
        stop_strings: the first of these to appear ends the text; it is not written itself.

    Attributes:
        stopped: True once a stop string has appeared.

    Raises:
        CourseError: stop strings without a tokenizer, or an empty one.
    """

    def __init__(self, tokenizer: BPETokenizer | None, stop_strings: Collection[str] = ()):
        if stop_strings and tokenizer is None:
            raise CourseError("stop_strings need the tokenizer: pass tokenizer=...")
        if "" in stop_strings:
            raise CourseError("a stop string is empty: it would end every text at once")
        self.tokenizer, self.stop_strings = tokenizer, tuple(stop_strings)
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.held, self.stopped = "", False

    def write(self, token: int) -> str:
        """Take one token; give the text that can be shown now.

        Raises:
            CourseError: an id outside the vocabulary.
        """
        return self._show(self.decoder.decode(self.tokenizer.decode_bytes([token])))

    def close(self) -> str:
        """The text is over: give what was held back."""
        shown = self._show(self.decoder.decode(b"", final=True))
        return shown if self.stopped else shown + self.held

    def _show(self, new: str) -> str:
        """Add text; give back all that can no longer become a part of a stop string."""
        text = self.held + new
        found = [text.find(stop) for stop in self.stop_strings if stop in text]
        if found:
            text, self.stopped = text[: min(found)], True
        starts = (stop[:n] for stop in self.stop_strings for n in range(1, len(stop)))
        hold = max((len(s) for s in starts if text.endswith(s)), default=0)
        hold = 0 if self.stopped else hold
        self.held = text[len(text) - hold :]
        return text[: len(text) - hold]


@torch.inference_mode()
def stream(
    model: GPT,
    tokenizer: BPETokenizer,
    prompt: Sequence[int],
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    sampling: Sampling = GREEDY,
    generator: torch.Generator | None = None,
    *,
    stop_strings: Collection[str] = (),
    slide: bool = False,
) -> Iterator[str]:
    """Continue one prompt and yield its text as it comes.

    Each piece holds whole characters, and nothing of a stop string or stop token. Joined, they are
    the text of `generate` with the same arguments. Errors are those of `generate`, raised when the
    first piece is asked for.
    """
    decoder, writer = Decoder(model, [prompt], slide), TextWriter(tokenizer, stop_strings)
    for _ in range(max_new_tokens):
        drawn = decoder.choose(sampling, generator)
        if int(drawn) in stop_ids:
            break
        if piece := writer.write(int(drawn)):
            yield piece
        if writer.stopped or decoder.room(0) == 1:
            break
        decoder.append(drawn)
    if not writer.stopped and (piece := writer.close()):
        yield piece


@torch.inference_mode()
def beam_search(
    model: GPT,
    prompt: Sequence[int],
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    n_beams: int = 4,
    length_penalty: float = 1.0,
) -> list[tuple[float, Completion]]:
    """The likeliest continuations that a search over `n_beams` texts at a time finds.

    A text's score is its log-probability (the prompt not counted) divided by its length to the
    power of `length_penalty`: 0 favours short texts, 1 is the mean per token. The search ends when
    `n_beams` texts have ended and the best open one scores no higher than the worst of them.

    Returns:
        `(score, completion)` pairs, at most `n_beams`, best first.

    Raises:
        CourseError: fewer than one beam or token.
    """
    if n_beams < 1 or max_new_tokens < 1:
        raise CourseError(f"n_beams={n_beams}, max_new_tokens={max_new_tokens}: both must be >= 1")
    decoder, rows, scores = Decoder(model, [prompt]), [[]], [0.0]
    max_new_tokens = min(max_new_tokens, decoder.room(0))
    finished: list[tuple[float, Completion]] = []
    for length in range(1, max_new_tokens + 1):
        logprobs = decoder.logits().log_softmax(-1)  # (beams, vocab_size)
        totals = logprobs + torch.tensor(scores, device=logprobs.device)[:, None]
        n_candidates = n_beams * (1 + max(1, len(stop_ids)))  # enough, should n_beams of them end
        best, index = totals.flatten().topk(min(n_candidates, totals.numel()))
        beams = []
        for rank, (score, i) in enumerate(zip(best.tolist(), index.tolist(), strict=True)):
            parent, token = divmod(i, totals.size(1))
            row, ends = [*rows[parent], token], token in stop_ids
            if not ends and length < max_new_tokens:
                beams.append((score, parent, row))
            elif rank < n_beams:
                finished.append((score / length**length_penalty, Completion(row, ends)))
        finished = sorted(finished, key=lambda pair: -pair[0])[:n_beams]
        beams = beams[:n_beams]
        bar = finished[-1][0] if len(finished) == n_beams else -torch.inf
        if not beams or beams[0][0] / length**length_penalty <= bar:
            break
        scores, parents, rows = zip(*beams, strict=True)
        decoder.select(parents)
        decoder.append(torch.tensor([row[-1] for row in rows]))
    return finished
