"""Widgets show what the models say, write the same bytes twice, and never write HTML unescaped."""

import base64
import copy
import json
import math
import re

import pytest
import torch

from course_lib.atlas.prompts import Prompt
from course_lib.chat import IM_END, SPECIAL_TOKENS
from course_lib.errors import CourseError
from course_lib.evaluate import (
    REPLY_TOKENS,
    Reply,
    chat_ids,
    document_ids,
    next_token_bars,
    replies,
)
from course_lib.gpt import GPT, GPTConfig
from course_lib.tokenizer import BPETokenizer
from course_lib.widgets import probability_shift as module
from course_lib.widgets.base import BOOK_BUILD_VARIABLE, WIDGET_DIR, module_source, style_sheet
from course_lib.widgets.live import book_files
from course_lib.widgets.mask_debugger import MaskDebugger
from course_lib.widgets.probability_shift import ProbabilityShift, prompt_record, shift_record
from course_lib.widgets.sampling_playground import SamplingPlayground, distribution
from course_lib.widgets.three_way_chat import ThreeWayChat, first_exchange
from course_lib.widgets.tokenizer_playground import TokenizerPlayground
from course_lib.widgets.weights import pack

MODELS = ("base", "sft", "rlhf")
HOSTILE = "</script><script>alert(1)</script> <|im_end|> 🦊 שלום & \"'"
PROMPT = Prompt("fact", "What is a <b>cat</b>?", "cat")
FOLLOWUP = Prompt("followup", HOSTILE, "x", (("user", "Hi <i>"), ("assistant", "Hello & more")))


@pytest.fixture(scope="module")
def tokenizer():
    text = "What is a cat? A cat is a small animal. What is a dog? A dog is an animal.\n"
    return BPETokenizer.train(text, 290, SPECIAL_TOKENS)


def make_models(tokenizer, context_length=128):
    """Three untrained models with sharp, different bets."""
    models = {}
    for seed, name in enumerate(MODELS):
        torch.manual_seed(seed)
        config = GPTConfig(tokenizer.vocab_size, context_length, d_model=16, n_layers=1, n_heads=2)
        models[name] = GPT(config).eval()
        with torch.no_grad():
            models[name].embedding.weight.mul_(30)
    return models


@pytest.fixture(scope="module")
def models(tokenizer):
    return make_models(tokenizer)


@pytest.fixture(scope="module")
def records(models, tokenizer):
    return [prompt_record(models, tokenizer, p, n_bars=4) for p in (PROMPT, FOLLOWUP)]


def contexts_of(prompt, tokenizer):
    chat = chat_ids(prompt, tokenizer)
    return {"base": document_ids(prompt, tokenizer), "sft": chat, "rlhf": chat}


@torch.no_grad()
def direct(model, ids):
    """The next-token distribution after `ids`, straight from the model."""
    return model(torch.tensor([ids]))[0, -1].double().softmax(-1)


# -- the record ---------------------------------------------------------------------------------


@pytest.mark.parametrize("who", MODELS)
@pytest.mark.parametrize("prompt", [PROMPT, FOLLOWUP], ids=["fact", "followup"])
def test_record_is_what_the_models_say(models, tokenizer, prompt, who):
    """Greedy tokens, bars, moved probability and KL against a loop without cache or batches."""
    path = shift_record(models, tokenizer, prompt, who, n_bars=5, n_tokens=8)
    so_far = contexts_of(prompt, tokenizer)
    assert 1 <= len(path["steps"]) <= 8
    for step in path["steps"]:
        probs = {name: direct(models[name], so_far[name]) for name in MODELS}
        best = int(probs[who].argmax())
        assert step["token"] == module.show(tokenizer.decode([best]))
        written = step["bars"][step["chosen"]]
        assert written == [step["token"], *written[1:]]
        assert written[1:] == pytest.approx([probs[m][best].item() for m in MODELS], abs=6e-5)
        rows = next_token_bars(models, tokenizer, so_far, 5)
        for row, expected in zip(step["bars"], rows, strict=True):
            if row is not written:
                values = [expected["probs"][m] for m in MODELS]
                assert row == [module.show(expected["token"]), *(round(v, 4) for v in values)]
        for i, (new, old) in enumerate((("sft", "base"), ("rlhf", "sft"))):
            p, q = probs[new].tolist(), probs[old].tolist()
            half = sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2
            kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
            assert step["moved"][i] == pytest.approx(half, abs=1e-4)
            assert step["kl"][i] == pytest.approx(kl, rel=1e-3, abs=1e-3)
        so_far = {name: [*ids, best] for name, ids in so_far.items()}


@pytest.mark.parametrize("who", MODELS)
def test_written_token_is_always_among_the_bars(models, tokenizer, who):
    for step in shift_record(models, tokenizer, PROMPT, who, n_bars=1)["steps"]:
        assert len(step["bars"]) == 1
        assert step["bars"][step["chosen"]][0] == step["token"]


def test_end_of_turn_is_a_label_and_the_answer_ends(models, tokenizer, monkeypatch):
    ids = [*tokenizer.encode("A cat"), tokenizer.special_ids[IM_END]]
    reply = Reply(PROMPT, ids, "A cat", True)
    monkeypatch.setattr(module, "replies", lambda *args, **options: [reply])
    path = shift_record(models, tokenizer, PROMPT, "sft")
    assert path["ended"]
    assert path["steps"][-1]["token"] == "⟨end of turn⟩"
    assert "".join(step["token"] for step in path["steps"][:-1]) == "A cat"
    assert not shift_record(models, tokenizer, PROMPT, "sft", n_tokens=1)["ended"]


def test_answer_is_cut_where_the_longest_rendering_fills_the_context(tokenizer):
    length = len(chat_ids(PROMPT, tokenizer)) + 4
    path = shift_record(make_models(tokenizer, length), tokenizer, PROMPT, "base")
    assert len(path["steps"]) <= 5
    assert not path["ended"]


def test_record_refuses_what_it_cannot_measure(models, tokenizer):
    with pytest.raises(CourseError, match="answer by 'gpt'"):
        shift_record(models, tokenizer, PROMPT, "gpt")
    with pytest.raises(CourseError, match="need exactly"):
        shift_record({"base": models["base"]}, tokenizer, PROMPT, "base")
    with pytest.raises(CourseError, match="at least 1"):
        shift_record(models, tokenizer, PROMPT, n_bars=0)
    with pytest.raises(CourseError, match="shorten the prompt"):
        shift_record(models, tokenizer, Prompt("fact", "cat " * 2500, "x"))


def test_percent():
    values = {0: "<0.1", 0.0005: "0.1", 0.0321: "3.2", 0.0995: "10", 0.814: "81", 1: "100"}
    assert {p: module.percent(p) for p in values} == {p: f"{t}\u00a0%" for p, t in values.items()}


# -- the widget ---------------------------------------------------------------------------------


class FakeRun:
    """Stands for a trained run."""

    def __init__(self, models, tokenizer):
        self.models, self.made = models, tokenizer

    def model(self, name):
        return self.models[name]

    def tokenizer(self):
        return self.made


def test_from_run_starts_at_the_largest_shift(models, tokenizer, records, monkeypatch):
    monkeypatch.setenv(BOOK_BUILD_VARIABLE, "1")  # the page brings the models
    widget = ProbabilityShift.from_run(FakeRun(models, tokenizer), [PROMPT, FOLLOWUP])
    moved = [sum(step["moved"]) for step in widget.steps]
    assert moved[widget.position] == max(moved)
    assert [p["text"] for p in widget.prompts] == [PROMPT.text, HOSTILE]
    assert widget.prompts[1]["history"] == [["user", "Hi <i>"], ["assistant", "Hello & more"]]
    assert widget.answer_by == "rlhf"


def step_of(records):
    return records[1]["answers"]["sft"]["steps"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.clear(), "no prompts"),
        (lambda r: r.__setitem__(0, "text"), "prompt 0 is malformed"),
        (lambda r: r[1].pop("text"), "prompt 1 is malformed"),
        (lambda r: r[1].update(text=5), "prompt 1: kind, text or history"),
        (lambda r: r[0]["answers"].pop("base"), "prompt 0: the answers"),
        (lambda r: r[0]["answers"]["rlhf"]["steps"].clear(), "by 'rlhf': it has no token"),
        (lambda r: step_of(r)["bars"].clear(), "by 'sft', token 0: no token or no bars"),
        (lambda r: step_of(r)["bars"][0].pop(), "bad row"),
        (lambda r: step_of(r)["bars"][0].__setitem__(1, 1.5), "outside 0 to 1"),
        (lambda r: step_of(r)["bars"][0].__setitem__(1, math.nan), "outside 0 to 1"),
        (lambda r: step_of(r).update(chosen=99), "`chosen`"),
        (lambda r: step_of(r).update(moved=[0.1]), "`moved`"),
        (lambda r: step_of(r).update(kl=[0.1, math.inf]), "`kl`"),
        (lambda r: step_of(r).pop("kl"), "prompt 1 is malformed .*kl"),
    ],
)
def test_malformed_state_is_refused(records, change, message):
    records = copy.deepcopy(records)
    change(records)
    with pytest.raises(CourseError, match=message):
        ProbabilityShift(records)


def test_choice_out_of_range_is_refused(records):
    with pytest.raises(CourseError, match="prompt_index is 2"):
        ProbabilityShift(records, prompt_index=2)
    with pytest.raises(CourseError, match="answer_by is 'gpt'"):
        ProbabilityShift(records, answer_by="gpt")
    widget = ProbabilityShift(records)
    with pytest.raises(CourseError, match="prompt_index is -1"):
        widget.prompt_index = -1
    assert widget.prompt_index == 0
    widget.position = 10_000  # left behind by a longer answer: shown as its last token
    assert f"token {len(widget.steps)} of" in widget.fallback_html()


def test_fallback_is_escaped_and_shows_the_state(records):
    widget = ProbabilityShift(records, prompt_index=1)
    text = widget.fallback_html()
    tags = set(re.findall(r"</?(\w+)", text))
    assert tags <= {"p", "strong", "table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text
    assert "&lt;|im_end|&gt;" in text
    step = widget.steps[widget.position]
    shown = re.findall(r'<td class="cw-number">([^<]+)</td>', text)
    values = [module.percent(p).replace("<", "&lt;") for row in step["bars"] for p in row[1:]]
    assert shown == values


def test_book_bundle(records, models, tokenizer, monkeypatch):
    """Static book: the state as JSON that cannot end its element, and the same bytes again."""
    monkeypatch.setenv(BOOK_BUILD_VARIABLE, "1")
    bundle = ProbabilityShift(records)._repr_mimebundle_()
    assert list(bundle) == ["text/html"]
    page = bundle["text/html"]
    assert page.count("</script>") == 1
    assert "<script>alert" not in page
    state = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])
    assert state["prompts"] == records
    assert set(state) == {"prompts", "prompt_index", "answer_by", "position", "live"}
    assert state["live"] is False
    again = [prompt_record(models, tokenizer, p, n_bars=4) for p in (PROMPT, FOLLOWUP)]
    assert ProbabilityShift(again)._repr_mimebundle_() == bundle
    assert ProbabilityShift(again, key="other")._repr_mimebundle_() != bundle


# -- modules and live models --------------------------------------------------------------------


def test_a_module_is_one_file():
    """The helpers stand in front of the module; nothing is imported or exported twice."""
    for path in sorted(WIDGET_DIR.glob("*.mjs")):
        source = module_source(path.stem)
        assert not re.search(r"^import\b", source, re.MULTILINE), path.name
        assert len(re.findall(r"^export default\b", source, re.MULTILINE)) == 1
        assert len(re.findall(r"^export\b", source, re.MULTILINE)) == 1
        if "static/kit.mjs" in path.read_text(encoding="utf-8"):
            assert "function percent(p)" in source
    assert ".cw-tok-chip" in style_sheet() and ".cw-gate" in style_sheet()


LIVE = (ThreeWayChat, TokenizerPlayground, SamplingPlayground, MaskDebugger)


@pytest.mark.parametrize("kind", LIVE)
def test_live_widgets_in_the_book(kind, smoke_run, monkeypatch):
    """The page holds no weights and no runtime, twice the same bytes, and an escaped fallback."""
    monkeypatch.setenv(BOOK_BUILD_VARIABLE, "1")
    page = kind(smoke_run)._repr_mimebundle_()["text/html"]
    assert kind(smoke_run)._repr_mimebundle_()["text/html"] == page
    state = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])
    assert state["live"] is True
    assert len(page) < 20_000
    fallback = page.split("</script>", 1)[1]
    tags = set(re.findall(r"</?([a-z]\w*)", fallback))
    assert tags <= {
        *("div", "p", "strong", "br", "table", "caption", "thead", "tbody", "tr", "th", "td")
    }
    assert len(re.findall(r"<(?:td|p)\b", fallback)) > 3


def test_live_widget_with_a_kernel(smoke_run, monkeypatch):
    """The small parts are a trait; the weights go over the comm, each when it is asked for."""
    monkeypatch.delenv(BOOK_BUILD_VARIABLE, raising=False)
    widget = TokenizerPlayground(smoke_run)
    assert set(widget.live["models"]) == {"base", "sft", "rlhf", "reward"}
    assert widget.live["source"].count("export class LiveModels") == 1
    sent = []
    monkeypatch.setattr(widget, "send", lambda content, buffers: sent.append((content, buffers)))
    widget._send_weights(widget, {"want": "sft"}, [])
    widget._send_weights(widget, {"want": "../../etc"}, [])
    [(content, [data])] = sent
    assert content == {"weights": "sft"}
    assert data == pack(smoke_run.model("sft"))
    assert widget.live["models"]["sft"]["bytes"] == len(data)


def test_book_files(smoke_run):
    files = dict(book_files(smoke_run))
    names = {"base", "sft", "rlhf", "reward"}
    assert set(files) == {"live.js"} | {n + e for n in names for e in (".bin", ".js")}
    assert dict(book_files(smoke_run)) == files
    for name in names:
        code = files[f"{name}.js"].decode().split("'")[1]
        assert base64.b64decode(code) == files[f"{name}.bin"]
    state = json.loads(re.match(r"window.COURSE_LIVE = (.*);\n", files["live.js"].decode())[1])
    assert state["models"]["base"]["bytes"] == len(files["base.bin"])
    tokenizer = smoke_run.tokenizer()
    assert len(state["tokenizer"]["merges"]) == len(tokenizer.merges)


def test_fallbacks_are_measured(smoke_run):
    """Chat: what the models answer, with their scores. Sampling: their distribution."""
    tokenizer = smoke_run.tokenizer()
    exchange = first_exchange(smoke_run, "Hi <b>")
    prompt = Prompt("typed", "Hi <b>", None)
    for name in MODELS:
        [reply] = replies(smoke_run.model(name), tokenizer, [prompt], as_document=name == "base")
        assert exchange["replies"][name]["text"] == reply.text
    got = distribution(smoke_run, "sft", "Hi", {"temperature": 1.0, "top_k": 5})
    probs = direct(smoke_run.model("sft"), chat_ids(Prompt("typed", "Hi", None), tokenizer))
    assert got["kept"] == 5
    assert got["mass"] == pytest.approx(probs.topk(5).values.sum().item(), abs=1e-4)
    assert [row[1] for row in got["rows"][:5]] == pytest.approx(
        probs.topk(5).values.tolist(), abs=1e-4
    )
    assert sum(row[2] or 0 for row in got["rows"]) == pytest.approx(1, abs=1e-3)
    assert [row[2] is None for row in got["rows"]] == [False] * 5 + [True] * 7


def test_the_playground_says_its_own_knobs_and_what_is_cut(smoke_run):
    text = SamplingPlayground(smoke_run, knobs={"temperature": 0.1, "top_p": 1.0}).fallback_html()
    assert "temperature 0.1" in text and "top-p 1.0" in text
    assert ">cut<" not in text and "&lt;0.1" in text  # nearly impossible, and not cut


def test_a_message_that_only_the_base_model_can_read_has_no_score(smoke_run):
    tokenizer, text = smoke_run.tokenizer(), "a"
    room = smoke_run.model("sft").config.context_length
    while len(chat_ids(Prompt("typed", text, None), tokenizer)) + REPLY_TOKENS <= room:
        text += " a"
    answers = first_exchange(smoke_run, text)["replies"]
    assert answers["base"]["score"] is None and isinstance(answers["sft"]["score"], float)
    assert answers["base"]["text"]


def test_live_widgets_refuse_what_does_not_exist(smoke_run):
    with pytest.raises(CourseError, match="model_name is 'gpt'"):
        SamplingPlayground(smoke_run, model_name="gpt")
    with pytest.raises(CourseError, match="top_p"):
        SamplingPlayground(smoke_run, knobs={"top_p": 7.0})
    with pytest.raises(CourseError, match="merges is -1"):
        TokenizerPlayground(smoke_run, merges=-1)
    with pytest.raises(CourseError, match="unknown template"):
        MaskDebugger(smoke_run, template="xml")
    with pytest.raises(CourseError, match="speaks first"):
        MaskDebugger(smoke_run, [("assistant", "a")])
    assert MaskDebugger(smoke_run, [("user", "nothing is learned here")]).selected == 0


def test_live_bundle_is_anywidgets_own(records, monkeypatch):
    monkeypatch.delenv(BOOK_BUILD_VARIABLE, raising=False)
    data, _ = ProbabilityShift(records)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "text/html" not in data
