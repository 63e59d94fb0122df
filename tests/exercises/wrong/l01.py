"""Wrong answers of L01. `<exercise>__<misconception>`: the docstring is in the check's message."""

import re
from collections import Counter
from itertools import combinations, pairwise


def count_pairs__forgets_how_often_a_word_occurs(words):
    """occurs 5 times counts 5 times"""
    return Counter(pair for word in words for pair in pairwise(word))


def count_pairs__last_word_wins(words):
    """add over the words"""
    counts = {}
    for word, n in words.items():
        for pair in pairwise(word):
            counts[pair] = n
    return counts


def count_pairs__no_overlaps(words):
    """pairs may overlap"""
    counts = Counter()
    for word, n in words.items():
        for pair in set(pairwise(word)):
            counts[pair] += n
    return counts


def count_pairs__stops_one_early(words):
    """the loop ends too early"""
    counts = Counter()
    for word, n in words.items():
        for i in range(len(word) - 2):
            counts[word[i], word[i + 1]] += n
    return counts


def count_pairs__not_only_neighbours(words):
    """only neighbours count"""
    counts = Counter()
    for word, n in words.items():
        for pair in combinations(word, 2):
            counts[pair] += n
    return counts


def count_pairs__joined_keys(words):
    """keep the symbols apart"""
    counts = Counter()
    for word, n in words.items():
        for left, right in pairwise(word):
            counts[left + right] += n
    return counts


def count_pairs__most_common_only(words):
    """return a dict"""
    return _counted(words).most_common()


def _counted(words):
    counts = Counter()
    for word, n in words.items():
        for pair in pairwise(word):
            counts[pair] += n
    return counts


def merge_pair__first_only(symbols, pair):
    """merge them all"""
    for i in range(len(symbols) - 1):
        if symbols[i : i + 2] == pair:
            return (*symbols[:i], pair[0] + pair[1], *symbols[i + 2 :])
    return symbols


def merge_pair__does_not_skip_the_right_one(symbols, pair):
    """go on two places"""
    out = []
    for i in range(len(symbols)):
        if symbols[i : i + 2] == pair:
            out.append(pair[0] + pair[1])
        else:
            out.append(symbols[i])
    return tuple(out)


def merge_pair__from_the_right(symbols, pair):
    """from left to right"""
    out, i = [], len(symbols)
    while i > 0:
        if i >= 2 and symbols[i - 2 : i] == pair:
            out.append(pair[0] + pair[1])
            i -= 2
        else:
            out.append(symbols[i - 1])
            i -= 1
    return tuple(reversed(out))


def merge_pair__compares_the_spelling(symbols, pair):
    """compare whole symbols"""
    out, i = [], 0
    while i < len(symbols):
        if b"".join(symbols[i : i + 2]) == b"".join(pair) and i + 1 < len(symbols):
            if {symbols[i], symbols[i + 1]} == set(pair[::-1]) and symbols[i] != pair[0]:
                out.extend(symbols[i : i + 2])
            else:
                out.append(pair[0] + pair[1])
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return tuple(out)


def merge_pair__returns_a_list(symbols, pair):
    """return a tuple"""
    out, i = [], 0
    while i < len(symbols):
        step = 2 if symbols[i : i + 2] == pair else 1
        out.append(b"".join(symbols[i : i + step]))
        i += step
    return out


def merge_pair__drops_the_last_symbol(symbols, pair):
    """bytes were lost"""
    out, i = [], 0
    while i < len(symbols) - 1:
        step = 2 if symbols[i : i + 2] == pair else 1
        out.append(b"".join(symbols[i : i + step]))
        i += step
    return tuple(out)


def encode_word__first_in_the_word(word, ranks):
    """the lowest rank goes first"""
    symbols = [bytes([b]) for b in word]
    i = 0
    while i < len(symbols) - 1:
        if (symbols[i], symbols[i + 1]) in ranks:
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
            i = 0
        else:
            i += 1
    return symbols


def encode_word__highest_rank_first(word, ranks):
    """the lowest rank goes first"""
    symbols = [bytes([b]) for b in word]
    while True:
        known = [p for p in pairwise(symbols) if p in ranks]
        if not known:
            return symbols
        i = list(pairwise(symbols)).index(max(known, key=ranks.get))
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


def encode_word__by_frequency(word, ranks):
    """go by rank, not by frequency"""
    symbols = [bytes([b]) for b in word]
    while True:
        counts = Counter(p for p in pairwise(symbols) if p in ranks)
        if not counts:
            return symbols
        symbols = _merge_all(symbols, min(counts, key=lambda p: (-counts[p], ranks[p])))


def _merge_all(symbols, pair):
    out, i = [], 0
    while i < len(symbols):
        step = 2 if tuple(symbols[i : i + 2]) == pair else 1
        out.append(b"".join(symbols[i : i + step]))
        i += step
    return out


def encode_word__one_round(word, ranks):
    """merges build on merges"""
    symbols = [bytes([b]) for b in word]
    known = [p for p in pairwise(symbols) if p in ranks]
    return _merge_all(symbols, min(known, key=ranks.get)) if known else symbols


def encode_word__numbers_instead_of_bytes(word, ranks):
    """the symbols must be bytes"""
    symbols = list(word)
    while any(p in ranks for p in pairwise(symbols)):
        symbols.pop()
    return symbols


def split_special__no_escape(text, special):
    """escape the special tokens"""
    if not special:
        return [text] if text else []
    ordered = sorted(special, key=len, reverse=True)
    return [p for p in re.split("(" + "|".join(ordered) + ")", text) if p]


def split_special__loses_the_token(text, special):
    """the special token itself is lost"""
    if not special:
        return [text]
    return [p for p in re.split("|".join(map(re.escape, special)), text) if p]


def split_special__empty_pieces(text, special):
    """empty pieces"""
    if not special:
        return [text]
    return re.split("(" + "|".join(map(re.escape, special)) + ")", text)


def split_special__as_given(text, special):
    """try the long ones first"""
    if not special:
        return [text] if text else []
    return [p for p in re.split("(" + "|".join(map(re.escape, special)) + ")", text) if p]


def split_special__breaks_without_tokens(text, special):
    """the text is one piece"""
    ordered = sorted(special, key=len, reverse=True)
    return [p for p in re.split("(" + "|".join(map(re.escape, ordered)) + ")", text) if p]
