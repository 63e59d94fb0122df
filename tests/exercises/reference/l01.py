"""Reference answers of L01, the solutions of its page."""

import re
from itertools import pairwise


def count_pairs(words):
    counts = {}
    for word, n in words.items():
        for pair in pairwise(word):
            counts[pair] = counts.get(pair, 0) + n
    return counts


def merge_pair(symbols, pair):
    out, i = [], 0
    while i < len(symbols):
        if symbols[i : i + 2] == pair:
            out.append(pair[0] + pair[1])
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return tuple(out)


def encode_word(word, ranks):
    symbols = tuple(bytes([b]) for b in word)
    while True:
        known = [pair for pair in pairwise(symbols) if pair in ranks]
        if not known:
            return list(symbols)
        symbols = merge_pair(symbols, min(known, key=ranks.get))


def split_special(text, special):
    longest_first = sorted(special, key=len, reverse=True)
    pattern = "|".join(re.escape(token) for token in longest_first)
    pieces = re.split(f"({pattern})", text) if special else [text]
    return [piece for piece in pieces if piece]
