"""What a reader of L01 to L06 types, in order, in one file: a causal block, the same as ours.

Typed is what stands in the visible cells of the lesson proper: the functions and classes that need
nothing but Python, PyTorch and what was typed before. Cells that only use what was built, and
wrong versions of library parts, are left out; exercises too, since they repeat the same parts.
"""

import ast
import builtins
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from course_lib import positions
from course_lib.gpt import GPTConfig
from course_lib.layers import Block

BOOK = Path(__file__).parents[1] / "book"
PAGES = sorted(BOOK.glob("L0[1-6]_*.md"))
CELL = re.compile(r"^(`{3,})\{code-cell\}[^\n]*\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
HIDDEN = ("remove-input", "hide-input", "remove-cell", "hide-cell")
MODULES = {
    "torch": "import torch",
    "nn": "from torch import nn",
    "F": "import torch.nn.functional as F",
    "Counter": "from collections import Counter",
}
DEFINITIONS = ast.FunctionDef | ast.ClassDef


def cells(page):
    """Visible code cells of a page, up to its exercises."""
    text = page.read_text(encoding="utf-8").split("\n## Exercises\n")[0]
    for _, content in CELL.findall(text):
        if not any(tag in content for tag in HIDDEN):
            yield ast.parse(re.sub(r"\A(---\n.*?\n---\n|(:.*\n)*)", "", content, flags=re.DOTALL))


def needs(definition):
    """Global names that a definition reads, from anywhere inside it."""
    names = [n for n in ast.walk(definition) if isinstance(n, ast.Name)]
    stored = {n.id for n in names if not isinstance(n.ctx, ast.Load)}
    stored |= {n.arg for n in ast.walk(definition) if isinstance(n, ast.arg)}
    inner = {n.name for n in ast.walk(definition) if isinstance(n, DEFINITIONS)}
    return {n.id for n in names} - stored - inner - set(dir(builtins))


def type_in(pages):
    """The typed file as a list of its statements, each with the page it comes from."""
    known = set(MODULES)
    typed = []
    for page in pages:
        for cell in cells(page):
            for node in cell.body:
                if isinstance(node, DEFINITIONS) and needs(node) <= known:
                    known.add(node.name)
                    typed.append((page.stem, node))
    return typed


@pytest.fixture(scope="module")
def typed():
    return type_in(PAGES)


@pytest.fixture(scope="module")
def reader(typed):
    """The names of the typed file after running it."""
    code = "\n\n".join([*MODULES.values(), *(ast.unparse(node) for _, node in typed)])
    assert "course_lib" not in code
    names = {}
    exec(compile(code, "typed.py", "exec"), names)
    return names


@pytest.fixture(scope="module")
def pair(reader):
    """The reader's block and the library's, with the same weights."""
    torch.manual_seed(0)
    config = GPTConfig(40, d_model=32, n_heads=4, positions="none", activation="gelu")
    library = Block(config)
    with torch.no_grad():
        for norm in (library.norm1, library.norm2):
            norm.weight.uniform_(0.5, 1.5)
    mlp = nn.Sequential(nn.Linear(32, 128, bias=False), nn.GELU(), nn.Linear(128, 32, bias=False))
    block = reader["PreNormBlock"](32, reader["MultiHead"](32, 4), mlp)
    weights = library.state_dict()
    for name, layer in (("up", "0"), ("down", "2")):
        weights[f"mlp.{layer}.weight"] = weights.pop(f"mlp.{name}.weight")
    block.load_state_dict(weights)  # strict: the parts have the library's names and shapes
    return block, library


def test_all_six_lessons_add_something(typed):
    assert len(PAGES) == 6
    assert {page for page, _ in typed} == {page.stem for page in PAGES}


def test_each_part_is_built_in_its_lesson(typed):
    places = {node.name: page[:3] for page, node in typed}
    expected = {"encode_word": "L01", "rotate": "L02", "scaled_dot_product_attention": "L03"}
    expected |= {"MultiHead": "L04", "PreNormBlock": "L05", "lower_triangle": "L06"}
    assert expected.items() <= places.items()


def test_the_block_is_the_librarys(reader, pair):
    block, library = pair
    x = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(1))
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, want = block(mine, reader["lower_triangle"](12)), library(theirs)
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    (out * weight).sum().backward()
    (want * weight).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_the_block_is_causal(reader, pair):
    block, _ = pair
    x = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(3))
    before = block(x, reader["lower_triangle"](9))
    for t in range(1, 9):
        changed = x.clone()
        changed[0, t] += 1
        after = block(changed, reader["lower_triangle"](9))
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t:], before[:, t:])
    everything = torch.ones(9, 9, dtype=torch.bool)
    assert not torch.allclose(block(x, everything)[:, 0], before[:, 0])  # the mask does it


def test_positions_are_the_librarys(reader):
    q = torch.randn(1, 2, 7, 8, generator=torch.Generator().manual_seed(4))
    mine = reader["rotate"](q, *reader["rotary_angles"](torch.arange(7), 8))
    theirs = positions.rotate(q, *positions.rotary_angles(torch.arange(7), 8))
    torch.testing.assert_close(mine, theirs)
    table = reader["sinusoidal_table"](7, 8)
    torch.testing.assert_close(table.float(), positions.sinusoidal_table(7, 8))


def test_from_text_to_the_block(reader, pair):
    """Text, the reader's own tokens, vectors with positions, the block; and no look ahead."""
    block, _ = pair
    texts = ("low", "lower", "newest", "widest")
    words = {reader["as_bytes"](word): n for n, word in enumerate(texts, start=3)}
    ranks = {merge: i for i, (merge, _) in enumerate(reader["learn_merges"](words, 8))}
    vocabulary = [bytes([b]) for b in range(256)] + [a + b for a, b in ranks]

    def hidden(text):
        ids = [vocabulary.index(token) for token in reader["encode_word"](text, ranks)]
        x = table[torch.tensor([ids])] + reader["sinusoidal_table"](len(ids), 32)
        return ids, block(x, reader["lower_triangle"](len(ids)))

    table = torch.randn(len(vocabulary), 32, generator=torch.Generator().manual_seed(5))
    ids, out = hidden("lowest widest")
    assert max(ids) >= 256 and b"".join(vocabulary[i] for i in ids) == b"lowest widest"
    more, longer = hidden("lowest widest!")
    assert more[: len(ids)] == ids
    torch.testing.assert_close(longer[:, : len(ids)], out)


def test_the_check_would_notice_a_broken_part(reader, pair):
    """Mutants of the reader's parts: a split without transpose, a norm that forgets the root."""
    block, library = pair
    x = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(6))
    wanted, mask = library(x), reader["lower_triangle"](12)
    mutants = {
        "split_heads": lambda x, n: x.reshape(x.size(0), n, x.size(1), -1),
        "rms_norm": lambda x, w: x / (x.square().mean(-1, keepdim=True) + 1e-5) * w,
        "lower_triangle": lambda n: torch.ones(n, n, dtype=torch.bool).triu(),
    }
    for name, mutant in mutants.items():
        kept, reader[name] = reader[name], mutant
        try:
            got = block(x, reader["lower_triangle"](12))
        finally:
            reader[name] = kept
        assert not torch.allclose(got, wanted, atol=1e-3), name
    torch.testing.assert_close(block(x, mask), wanted, rtol=1e-5, atol=1e-5)
