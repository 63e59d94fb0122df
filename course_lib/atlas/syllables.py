"""Count the syllables of English text by a few spelling rules.

A syllable is heard, not written, so rules over letters can only approximate it. These count
groups of vowels and then correct for silent endings ("lake", "stopped") and for neighbouring
vowels that are spoken apart ("radio"). They are right for about nine in ten common words;
they miss most silent letters inside compounds ("notebook") and cannot know words with two
accepted counts ("fire"). `EXCEPTIONS` holds the words that the rules get wrong and that the
course needs.

Example:
    >>> count_syllables("The old cat stretches")
    5
"""

import re

EXCEPTIONS = {
    "notebook": 2,
    "poem": 2,
    "quiet": 2,
    "science": 2,
    "something": 2,
    "sometimes": 2,
    "someone": 2,
    "somewhere": 2,
}


def count_syllables(text: str) -> int:
    """The number of syllables of all words of `text`; 0 if it has no letters."""
    words = re.findall(r"[a-z]+", text.lower().replace("'", ""))
    return sum(_count_word(word) for word in words)


def _count_word(word: str) -> int:
    if word in EXCEPTIONS:
        return EXCEPTIONS[word]
    word = word.replace("qu", "q")
    word = re.sub(r"^y|y(?=[aeiou])", "j", word)  # "yes", "beyond": y is a consonant here
    count = len(re.findall(r"[aeiouy]+", word))
    if _has_silent_ending(word):
        count -= 1
    count += len(re.findall(r"(?<![tscg])i[aou]", word))  # "lion", "radio", but not "nation"
    count += len(re.findall(r"[aeiouy]ing$", word))  # "going", "playing"
    return max(count, 1)


def _has_silent_ending(word: str) -> bool:
    """Whether the word ends in an e, es or ed that is written but not spoken."""
    if re.search(r"[^aeiouy]les?$", word):  # "table", "ripples": spoken
        return re.search(r"[^aeiouyl]les?$", word) is None
    if re.search(r"[^aeiouy]e$", word):  # "lake"
        return True
    if re.search(r"[^aeiouy]es$", word):  # "lakes", but "roses", "stretches" are spoken
        return re.search(r"([sxzcg]|[cs]h)es$", word) is None
    if re.search(r"[^aeiouy]ed$", word):  # "stopped", but "painted" is spoken
        return re.search(r"[td]ed$", word) is None
    return False
