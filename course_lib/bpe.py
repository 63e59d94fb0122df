"""Byte-pair encoding itself: learn merges from counted words, and replay them on a word.

Departures from the textbook loops, with the same results. Learning keeps a count for every pair
and, for each pair, the words that hold it, so that a merge touches only those words, and a heap
finds the next pair. Replaying keeps the rank of every pair, and looks up only the two new ones.

Sources: Sennrich et al. 2016, section 3.2.
"""

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

Pair = tuple[bytes, bytes]


def count_pairs(words: Mapping[Sequence, int]) -> Counter[tuple]:
    """Count neighbouring symbols over words with multiplicities.

    >>> count_pairs({(b"a", b"b", b"b"): 2})
    Counter({(b'a', b'b'): 2, (b'b', b'b'): 2})
    """
    counts: Counter[tuple] = Counter()
    for word, n in words.items():
        for pair in itertools.pairwise(word):
            counts[pair] += n
    return counts


def learn_merges(counted: Mapping[bytes, int], n_merges: int) -> list[Pair]:
    """The most frequent pair, `n_merges` times, over words with multiplicities.

    A symbol is one character here, so that `str.replace` merges a whole word. `counts` and `where`
    are kept up to date; the heap may hold a count that has fallen since, which its pop repairs.
    """
    symbols = [bytes([b]) for b in range(256)]
    order = [_greatest_first(symbol) for symbol in symbols]
    known = {symbol: chr(i) for i, symbol in enumerate(symbols)}
    words, freqs = [word.decode("latin-1") for word in counted], list(counted.values())
    counts = count_pairs(dict(zip(words, freqs, strict=True)))
    where: dict[tuple[str, str], set[int]] = defaultdict(set)
    for i, word in enumerate(words):
        for pair in itertools.pairwise(word):
            where[pair].add(i)

    def entry(pair: tuple[str, str]) -> tuple:
        return -counts[pair], order[ord(pair[0])], order[ord(pair[1])], pair

    heap = [entry(pair) for pair in counts]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while len(merges) < n_merges and heap:
        count, _, _, best = heapq.heappop(heap)
        if counts[best] != -count:
            if counts[best]:
                heapq.heappush(heap, entry(best))
            continue
        merges.append((symbols[ord(best[0])], symbols[ord(best[1])]))
        merged = merges[-1][0] + merges[-1][1]
        new = known.setdefault(merged, chr(len(symbols)))
        symbols.append(merged)
        order.append(_greatest_first(merged))
        changed = set()
        for i in where.pop(best):
            old, word = words[i], words[i].replace(best[0] + best[1], new)
            words[i] = word
            for pair in itertools.pairwise(old):
                counts[pair] -= freqs[i]
            for pair in itertools.pairwise(word):
                counts[pair] += freqs[i]
                if new in pair:
                    where[pair].add(i)
                    changed.add(pair)
        for pair in changed:
            heapq.heappush(heap, entry(pair))
    return merges


def _greatest_first(symbol: bytes) -> str:
    """A key by which the lexicographically greatest bytes come first."""
    return "".join([chr(255 - b) for b in symbol]) + "\u0100"


def apply_merges(ids: list[int], ranks: Mapping[tuple, int], products: Sequence[int]) -> list[int]:
    """Replay merges on the ids of one word: lowest rank first, then leftmost.

    Args:
        ids: one id a byte; changed in place.
        ranks: pair of ids to rank; products: rank to the id that the pair becomes.
    """
    if len(ids) > 100:
        return _apply_to_long_word(ids, ranks, products)
    none = len(products)
    near = [ranks.get(pair, none) for pair in itertools.pairwise(ids)]
    while near and (rank := min(near)) < none:
        i = near.index(rank)
        ids[i] = products[rank]
        del ids[i + 1], near[i]
        if i > 0:
            near[i - 1] = ranks.get((ids[i - 1], ids[i]), none)
        if i < len(near):
            near[i] = ranks.get((ids[i], ids[i + 1]), none)
    return ids


def _apply_to_long_word(
    ids: list[int], ranks: Mapping[tuple, int], products: Sequence[int]
) -> list[int]:
    """The same by a heap of possible merges over a linked list: n log n steps instead of n^2."""
    heap = [(ranks[pair], i) for i, pair in enumerate(itertools.pairwise(ids)) if pair in ranks]
    heapq.heapify(heap)
    n = len(ids)
    before, after = list(range(-1, n - 1)), list(range(1, n + 1))
    while heap:
        rank, i = heapq.heappop(heap)
        j = after[i]
        if j == n or ranks.get((ids[i], ids[j])) != rank:
            continue  # one of the two has been merged with another neighbour since
        ids[i], ids[j] = products[rank], -1
        k = after[i] = after[j]
        if k < n:
            before[k] = i
        for left, right in ((before[i], i), (i, k)):
            if left >= 0 and right < n and (ids[left], ids[right]) in ranks:
                heapq.heappush(heap, (ranks[ids[left], ids[right]], left))
    return [i for i in ids if i >= 0]
