"""The JavaScript models against PyTorch, in a real browser: the same ids, logits, distributions."""

from __future__ import annotations

import base64
import gzip
import json
import random
import sys

import pytest
import torch

from course_lib.atlas.conversations import conversations
from course_lib.atlas.documents import documents
from course_lib.attention import causal_mask
from course_lib.chat import SPECIAL_TOKENS, TEMPLATES, render
from course_lib.data import END_OF_TEXT, token_stream
from course_lib.generate import generate
from course_lib.gpt import GPT, GPTConfig
from course_lib.runs import MODELS
from course_lib.sampling import Sampling, next_token_probs
from course_lib.tokenizer import BPETokenizer
from course_lib.widgets.live import book_files
from course_lib.widgets.weights import dequantised, pack, read_header

pytestmark = pytest.mark.browser
HELD_OUT = 9_100_001  # a seed of documents and conversations that no training saw
SHAPES = {"many heads": {}, "grouped queries": {"n_kv_heads": 2}, "one key head": {"n_kv_heads": 1}}

HARNESS = """
const source = COURSE_LIVE.source;
const url = URL.createObjectURL(new Blob([source], {type: "text/javascript"}));
window.ready = import(url).then((runtime) => {
  Object.assign(window, {runtime, models: runtime.openPage(COURSE_LIVE)});
  const given = {};
  window.give = (name, text, config) => {   // weights that the test brings itself
    given[name] = Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
    models.site.models[name] = {bytes: given[name].byteLength, config};
  };
  const file = models.site.fetch;
  models.site.fetch = async (name, ...rest) => given[name] ?? file(name, ...rest);
});
"""
PAGE = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Live</title>
<link rel="icon" href="data:,"><script src="models/live.js"></script></head>
<body><main><h1>Live</h1></main><script>{}</script></body></html>"""


def write_site(folder, run):
    (folder / "models").mkdir()
    for name, data in book_files(run):
        (folder / "models" / name).write_bytes(data)
    (folder / "index.html").write_text(PAGE.format(HARNESS), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run):
    return write_site(tmp_path_factory.mktemp("live"), run)


@pytest.fixture(scope="module")
def url(folder, serve_folder):
    return serve_folder(folder)


def opened(visit, origin):
    seen = visit(origin)
    page = seen.open("index.html")
    page.evaluate("ready.then(() => null)")
    return seen, page


@pytest.fixture
def page(visit, url):
    seen, page = opened(visit, url)
    yield page
    assert seen.foreign == []
    assert seen.problems == []


def ask(page, code, **values):
    """Run JavaScript with these values; typed arrays come back as lists."""
    names = ", ".join(values)
    text = f"""async (given) => {{
      const {{{names}}} = JSON.parse(given);
      const result = await (async () => {{ {code} }})();
      return JSON.stringify(result, (_, x) => (ArrayBuffer.isView(x) ? Array.from(x) : x));
    }}"""
    return json.loads(page.evaluate(text, json.dumps(values)) or "null")


def give(page, name, model, form="fp32"):
    data = pack(model, form)
    text = base64.b64encode(data).decode()
    ask(page, "give(name, text, config)", name=name, text=text, config=read_header(data)["config"])


def loud_model(seed=0, **changes):
    """An untrained model with opinions: large weights, uneven gains."""
    torch.manual_seed(seed)
    config = {"context_length": 48, "d_model": 32, "n_layers": 3, "n_heads": 4, **changes}
    model = GPT(GPTConfig(90, **config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8) if parameter.dim() > 1 else parameter.add_(
                0.3 * torch.randn(parameter.shape)
            )
    return model


def some_ids(n, vocab_size=90, seed=1):
    return random.Random(seed).choices(range(vocab_size), k=n)


# -- the model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_one_pass(page, shape):
    """Logits, attention, stream and logit lens of every layer."""
    model, ids = loud_model(**SHAPES[shape]), some_ids(40)
    give(page, "test", model)
    options = {"attention": True, "residual": True, "lens": True, "logits": "all", "position": 5}
    out = ask(page, "return models.forward('test', ids, options)", ids=ids, options=options)
    with torch.no_grad():
        trace = model.trace(torch.tensor([ids]))
        lens = [model.logits(model.norm(r))[0, 5].softmax(-1) for r in trace.residuals]
    assert torch.tensor(out["logits"]).view(40, -1) == pytest.approx(trace.logits[0], abs=1e-3)
    for layer, weights in enumerate(trace.attention):
        got = torch.tensor(out["attention"][layer]).view(4, 40, 40)
        torch.testing.assert_close(got, weights[0], atol=1e-4, rtol=0)
    for got, expected in zip(out["residual"], trace.residuals, strict=True):
        torch.testing.assert_close(torch.tensor(got).view(40, -1), expected[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.tensor(out["lens"]), torch.stack(lens), atol=1e-4, rtol=0)


@torch.no_grad()
def test_head_switched_off_and_what_a_head_writes(page):
    """Off: as with its columns of the output matrix at zero. The writes add up to the layer's."""
    model, ids = loud_model(), some_ids(20)
    give(page, "test", model)
    code = "return models.forward('test', ids, options)"
    options = {"writes": [[1, head] for head in range(4)], "residual": True}
    out = ask(page, code, ids=ids, options=options)
    residual = torch.tensor(out["residual"][1]).view(1, 20, -1)
    positions = torch.arange(20)
    _, rotary = model._embed(torch.tensor([ids]), positions)
    block = model.blocks[1]
    added = block.attention(block.norm1(residual), rotary)[0]
    torch.testing.assert_close(
        torch.tensor(out["writes"]).sum(0).view(20, -1), added, atol=1e-4, rtol=1e-4
    )
    off = ask(page, code, ids=ids, options={"off": [[1, 2], [0, 0]]})
    for layer, head in ((1, 2), (0, 0)):
        model.blocks[layer].attention.out.weight[:, 8 * head : 8 * (head + 1)] = 0
    expected = model(torch.tensor([ids]))[0, -1]
    torch.testing.assert_close(torch.tensor(off["logits"]), expected, atol=1e-3, rtol=0)


@torch.no_grad()
def test_any_mask(page):
    """What a query may see is free; a row that sees nothing takes nothing."""
    model, ids = loud_model(fused=False), some_ids(12)
    give(page, "test", model)
    mask = torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[4] = False
    options = {"mask": mask.int().flatten().tolist(), "attention": True, "logits": "all"}
    out = ask(page, "return models.forward('test', ids, options)", ids=ids, options=options)
    expected = model(torch.tensor([ids]), mask=mask[None, None])[0]
    torch.testing.assert_close(
        torch.tensor(out["logits"]).view(12, -1), expected, atol=1e-3, rtol=0
    )
    assert sum(out["attention"][0][0][4 * 12 : 5 * 12]) == 0
    causal = causal_mask(12).int().flatten().tolist()
    same = "return [await models.forward('test', ids), await models.forward('test', ids, {mask})]"
    one, two = ask(page, same, ids=ids, mask=causal)
    assert one["logits"] == two["logits"]


def test_cached_generation(page):
    """Greedy text with the KV cache is PyTorch's, up to the end of the context."""
    model, ids = loud_model(n_kv_heads=2), some_ids(7)
    give(page, "test", model)
    knobs = {"temperature": 0, "max_new_tokens": 60}
    out = ask(page, "return models.generate('test', ids, knobs)", ids=ids, knobs=knobs)
    [expected] = generate(model, [ids], 60)
    assert out == {"ids": expected.ids, "ended": False}
    stop = out["ids"][9]
    knobs["stop"] = [stop]
    out = ask(page, "return models.generate('test', ids, knobs)", ids=ids, knobs=knobs)
    [expected] = generate(model, [ids], 60, {stop})
    assert out == {"ids": expected.ids, "ended": True}


def test_seed_cancel_and_order(page):
    """Same seed, same text; a cancel ends it; tokens arrive as they are made."""
    give(page, "test", loud_model())
    code = """
      const seen = [];
      const stop = new AbortController();
      const onToken = ({id, probs}) => {
        seen.push([id, probs[id]]);
        if (seen.length === cut) stop.abort();
      };
      const knobs = {temperature: 1, max_new_tokens: 30, seed, onToken, signal: stop.signal};
      return {...await models.generate('test', [1, 2], knobs), seen};
    """
    one, two, other = (ask(page, code, seed=s, cut=0) for s in (5, 5, 6))
    assert one == two
    assert one["ids"] != other["ids"]
    assert [i for i, _ in one["seen"]] == one["ids"]
    assert all(p > 0 for _, p in one["seen"])
    give(page, "test", loud_model(context_length=2048))  # long enough for the word to arrive
    long = code.replace("max_new_tokens: 30", "max_new_tokens: 2000")
    cut = ask(page, long, seed=5, cut=3)["ids"]
    assert len(cut) < 2000 and cut[:3] == one["ids"][:3]


def test_reward(page, run):
    model = run.reward_model()
    give(page, "reward", model)
    ids = render([("user", "Hi"), ("assistant", "Hello there")], run.tokenizer()).ids
    with torch.no_grad():
        expected = model([ids[:-2]], [ids[-2:]]).item()
    assert ask(page, "return models.reward(ids)", ids=ids) == pytest.approx(expected, abs=1e-3)


def test_what_cannot_be_read_is_said(page):
    give(page, "test", loud_model())
    code = "return models.forward('test', ids).then(() => '', (error) => error.message)"
    assert ask(page, code, ids=some_ids(49)).startswith("The text has 49 tokens, but this model")
    assert "type something" in ask(page, code, ids=[])
    code = code.replace("forward", "generate")
    assert ask(page, code, ids=some_ids(48)).startswith("The text has 48 tokens, but this model")
    assert "type something" in ask(page, code, ids=[])


# -- sampling -----------------------------------------------------------------------------------

KNOBS = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.5, "top_k": 5},
    {"top_p": 0.7},
    {"top_k": 12, "top_p": 0.5, "temperature": 1.4},
    {"min_p": 0.1},
    {"repetition_penalty": 1.7},
    {"temperature": 0.0, "repetition_penalty": 3.0},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_distribution(page, knobs):
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(200, generator=generator)
    previous = torch.randint(0, 200, (30,), generator=generator)
    code = "return runtime.nextTokenProbs(logits, knobs, previous)"
    got = ask(page, code, logits=logits.tolist(), knobs=knobs, previous=previous.tolist())
    seen = torch.zeros(200, dtype=torch.bool)
    seen[previous] = True
    expected = next_token_probs(logits, Sampling(**knobs), seen)
    torch.testing.assert_close(torch.tensor(got).float(), expected, atol=1e-5, rtol=1e-4)
    assert sum(got) == pytest.approx(1, abs=1e-5)


def test_draws_follow_the_distribution(page):
    code = """
      const random = runtime.randomNumbers(1);
      const counts = [0, 0, 0, 0];
      for (let i = 0; i < 40000; i++) counts[runtime.draw([0.5, 0, 0.3, 0.2], random)]++;
      return counts;
    """
    shares = [n / 40_000 for n in ask(page, code)]
    assert shares == pytest.approx([0.5, 0, 0.3, 0.2], abs=0.01)


# -- tokenizer and templates --------------------------------------------------------------------

ALPHABET = [
    *("a", "b", "th", "the", "The", " ", "  ", "\n", "\r\n", "\t", "'", "'s", "'ll", "'LL", "’s"),
    *(
        "0",
        "12",
        "٣",
        "½",
        "Ⅷ",
        ".",
        "...",
        "!?",
        "_",
        "é",
        "e\u0301",
        "ß",
        "İ",
        "ǆ",
        "日本",
        "שלום",
    ),
    *(
        "مرحبا",
        "🦊",
        "👩‍👩‍👧",
        "\u200d",
        "\ufe0f",
        "\u00a0",
        "\u2028",
        "\u3000",
        "\x85",
        "\x1c",
        "\x1f",
    ),
    *("\ufeff", "\x00", "\u200b", "\ud800", "\udc00", "\U0010ffff", "\ufffd", "<script>", "&amp;"),
    *SPECIAL_TOKENS,
    *("<|", "|>", "im_end"),
]


def nasty_strings(n=600):
    """Empty and long ones, each odd piece alone, all in a row, and mixtures."""
    rng = random.Random(0)
    strings = ["", "a" * 5000, " " * 300, "".join(ALPHABET), *ALPHABET]
    while len(strings) < n:
        strings.append("".join(rng.choices(ALPHABET, k=rng.randint(1, 12))))
    # Every kind of character, but none that one of the two Unicode versions does not know yet.
    known = [chr(c) for c in range(0x3000) if not 0xD800 <= c < 0xE000]
    strings += ["a".join(rng.choices(known, k=40)) for _ in range(200)]
    return [json.loads(json.dumps(text)) for text in strings]  # joins two halves of a pair


def test_tokenizer(page, run):
    tokenizer = run.tokenizer()
    strings = nasty_strings()
    code = """
      const t = models.tokenizer;
      return strings.map((s) => [t.encode(s), t.encode(s, true), t.decode(t.encode(s))]);
    """
    rows = ask(page, code, strings=strings)
    for text, (ids, allowed, back) in zip(strings, rows, strict=True):
        assert ids == tokenizer.encode(text), repr(text)
        assert allowed == tokenizer.encode(text, "all"), repr(text)
        assert back == tokenizer.decode(ids)
    rng = random.Random(1)
    broken = [rng.choices(range(tokenizer.vocab_size), k=8) for _ in range(300)]
    rows = ask(page, "return rows.map((ids) => models.tokenizer.decode(ids))", rows=broken)
    assert rows == [tokenizer.decode(ids) for ids in broken]


def test_tokenizer_with_fewer_merges(page, run):
    """The first n merges give what a tokenizer of n merges gives; the tree spells the token."""
    whole = run.tokenizer()
    text = nasty_strings(0)[3] + "What is the capital of France? The capital of France is Paris."
    code = """
      const spell = (n) => (n.left ? spell(n.left) + spell(n.right) : n.bytes);
      const words = models.tokenizer.words(text, n);
      return {ids: words.flat().map((node) => models.tokenizer.ids.get(node.bytes)),
              spelled: words.flat().every((node) => spell(node) === node.bytes),
              late: words.flat().filter((node) => node.rank >= n).length};
    """
    for n in (0, 1, 2, 17, len(whole.merges)):
        part = BPETokenizer(whole.merges[:n])
        out = ask(page, code, text=text, n=n)
        assert [whole.vocab[i] for i in out["ids"]] == [part.vocab[i] for i in part.encode(text)]
        assert out["spelled"] and out["late"] == 0


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("reply", [False, True])
def test_templates(page, run, template, reply):
    tokenizer = run.tokenizer()
    hostile = nasty_strings(0)[3]
    talks = [
        [("user", "Hi")],
        [("system", "Be kind."), ("user", hostile), ("assistant", hostile)],
        [("user", "Hi"), ("assistant", ""), ("user", ""), ("assistant", "x <|im_end|>")],
    ]
    code = "return talks.map((t) => runtime.renderChat(t, models.tokenizer, template, reply))"
    rows = ask(page, code, talks=talks, template=template, reply=reply)
    for talk, out in zip(talks, rows, strict=True):
        expected = render(talk, tokenizer, template, reply)
        assert out["ids"] == expected.ids
        assert out["mask"] == expected.mask
        assert len(out["roles"]) == len(out["control"]) == len(out["ids"])
        assert all(
            control
            for i, control in zip(out["ids"], out["control"], strict=True)
            if i in tokenizer.special_ids.values()
        )


# -- the worker and the files -------------------------------------------------------------------


@pytest.mark.parametrize("from_disk", [False, True])
def test_weights_are_loaded_when_asked_for(visit, folder, url, from_disk):
    """Nothing at first; then each file once, with progress, into a real worker."""
    seen, page = opened(visit, folder.as_uri() + "/" if from_disk else url)
    assert not [u for u in seen.requests if "models/" in u and not u.endswith("live.js")]
    code = """
      const shares = [];
      const before = models.bytes(["base", "sft"]);
      const both = models.load(["base", "sft"], (x) => shares.push(x));
      await Promise.all([both, models.load(["sft"])]);
      const port = await models.port;
      return {before, after: models.bytes(["base", "sft"]), last: shares.at(-1),
              rising: shares.every((x, i) => !i || x >= shares[i - 1]),
              worker: port instanceof Worker,
              text: (await models.generate("sft", models.chatIds([["user", "Hi"]]))).ids.length};
    """
    out = ask(page, code)
    assert out["before"] > 10_000 and out["after"] == 0
    assert out["last"] == 1 and out["rising"] and out["worker"] and out["text"] > 0
    ending = ".js" if from_disk else ".bin"
    files = [u.rsplit("/", 1)[1] for u in seen.requests if "models/" in u]
    assert sorted(files) == ["base" + ending, "live.js", "sft" + ending]
    assert seen.foreign == []
    assert seen.problems == []


@pytest.mark.parametrize("damage", ["short", "long", "empty", "other", "gone"])
@pytest.mark.parametrize("from_disk", [False, True])
def test_damaged_weights_are_refused(visit, run, tmp_path, serve_folder, damage, from_disk):
    """Missing, cut short or foreign files: the message says so, and a second try may succeed."""
    folder = write_site(tmp_path, run)
    path = folder / "models" / ("base.js" if from_disk else "base.bin")
    whole = path.read_bytes()
    text = base64.b64encode(b"no weights" * 9000).decode()
    bad = {
        "short": whole[:-4001] + (b"';" if from_disk else b""),
        "long": whole + (b"';" if from_disk else b"more"),
        "empty": b"",
        "other": f"COURSE_LIVE.parts['base'] = '{text}';".encode() if from_disk else text.encode(),
    }
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(bad[damage])
    _, page = opened(visit, folder.as_uri() + "/" if from_disk else serve_folder(folder))
    code = "return models.forward('base', [1]).then(() => '', (error) => error.message)"
    if not (from_disk and damage == "long"):  # that is a syntax error after a complete statement
        message = ask(page, code)
        assert "weights of" in message and "base" in message, message
    path.write_bytes(whole)
    assert ask(page, code) == ""


def test_weights_from_a_kernel(page, run):
    """With a kernel the weights come as a message; the rest of the page is the same."""
    code = """
      const file = await (await fetch("models/sft.bin")).arrayBuffer();
      const shifted = new Uint8Array(file.byteLength + 20);   // as a part of a larger buffer
      shifted.set(new Uint8Array(file), 12);
      const heard = new Set();
      const model = {
        get: () => COURSE_LIVE,
        on: (name, callback) => heard.add(callback),
        off: (name, callback) => heard.delete(callback),
        send: ({want}) => setTimeout(() => heard.forEach((callback) => {
          callback({weights: "other"}, []);
          callback({weights: want}, [new DataView(shifted.buffer, 12, file.byteLength)]);
        })),
      };
      const live = runtime.openKernel(model);
      const out = [await live.forward("sft", ids), await models.forward("sft", ids), heard.size];
      return [out[0].logits, out[1].logits, out[2]];
    """
    kernel, fetched, listening = ask(page, code, ids=some_ids(9))
    assert kernel == fetched
    assert listening == 0


# -- the models of the book ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def book_site(tmp_path_factory, laptop, serve_folder):
    return serve_folder(write_site(tmp_path_factory.mktemp("laptop"), laptop))


def held_out(run):
    """Text that no training saw: documents whole, and what assistants say in conversations.

    Returns rows of `(ids, where)`: the places whose next token is asked for.
    """
    tokenizer, length = run.tokenizer(), run.model("base").config.context_length
    stream = token_stream(documents(60, HELD_OUT), tokenizer).tolist()
    pages = [stream[i : i + length] for i in range(0, 12 * length, length)]
    rows = [(ids, list(range(length))) for ids in pages]
    for talk in conversations(60, HELD_OUT):
        out = render(talk, tokenizer)
        if len(out.ids) <= length:
            rows.append((out.ids, [t - 1 for t, learned in enumerate(out.mask) if learned]))
    return rows


TOP = """
  const out = [];
  for (const [ids, where] of rows) {
    const { logits } = await models.forward(name, ids, {logits: "all"});
    const V = logits.length / ids.length;
    where.forEach((t) => {
      const row = logits.subarray(t * V, (t + 1) * V);
      out.push([row.indexOf(Math.max(...row)), row[0], row[V - 1]]);
    });
  }
  return out;
"""


@pytest.mark.parametrize("name", MODELS)
def test_shipped_weights_agree_with_pytorch(visit, book_site, laptop, name):
    """The most likely next token of the model in the page is that of the trained model."""
    _, page = opened(visit, book_site)
    rows = held_out(laptop)[:12] if name == "base" else held_out(laptop)
    got = ask(page, TOP, rows=rows, name=name)
    model = laptop.model(name).cpu()
    with torch.no_grad():
        logits = torch.cat([model(torch.tensor([ids]))[0, where] for ids, where in rows])
        for parameter in model.parameters():
            small = dequantised(parameter) if parameter.dim() > 1 else parameter.half().float()
            parameter.copy_(small)
        same = torch.cat([model(torch.tensor([ids]))[0, where] for ids, where in rows])
    torch.testing.assert_close(
        torch.tensor(got)[:, 1:].float(), same[:, [0, -1]], atol=1e-3, rtol=0
    )
    best = torch.tensor(got)[:, 0].long()
    agreement = (best == logits.argmax(-1)).float().mean().item()
    print(f"{name}: top-1 agreement {agreement:.4f} on {len(got)} tokens", file=sys.stderr)
    assert len(got) > 1000
    assert agreement >= 0.99


def test_full_precision_is_pytorch(visit, book_site, laptop):
    _, page = opened(visit, book_site)
    ids, _ = held_out(laptop)[0]
    model = laptop.model("base").cpu()
    give(page, "exact", model)
    got = ask(page, "return models.forward('exact', ids, {logits: 'all'})", ids=ids)
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0]
    torch.testing.assert_close(
        torch.tensor(got["logits"]).view(len(ids), -1), expected, atol=1e-3, rtol=0
    )


def test_greedy_answers_of_the_book(visit, book_site, laptop):
    """In full precision a question gets in the page the answer that PyTorch gives."""
    _, page = opened(visit, book_site)
    tokenizer = laptop.tokenizer()
    ids = render([("user", "What is the capital of France?")], tokenizer, reply=True).ids
    stop = [tokenizer.special_ids[t] for t in SPECIAL_TOKENS]
    knobs = {"temperature": 0, "stop": stop}
    for name in ("sft", "rlhf"):
        model = laptop.model(name).cpu()
        give(page, f"exact {name}", model)
        code = "return models.generate(name, ids, knobs)"
        got = ask(page, code, name=f"exact {name}", ids=ids, knobs=knobs)
        [expected] = generate(model, [ids], 56, set(stop))
        assert got == {"ids": expected.ids, "ended": expected.ended}
    bare = [tokenizer.special_ids[END_OF_TEXT], *tokenizer.encode("x")]
    assert ask(page, "return models.documentIds('x')") == bare


def test_the_four_models_weigh_little(laptop):
    """8 MB together, which half precision would not keep; and a light first load."""
    files = dict(book_files(laptop))
    served = [data for name, data in files.items() if name.endswith(".bin")]
    assert len(served) == 4
    assert sum(map(len, served)) <= 8_000_000
    assert sum(len(pack(laptop.model(name), "fp16")) for name in MODELS) > 8_000_000
    assert len(gzip.compress(files["live.js"])) < 30_000
