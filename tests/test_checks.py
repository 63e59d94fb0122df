"""The checks of the exercises: right answers pass, wrong ones get the right message.

`pytest tests/exercises --kill-table` shows more: automatic mutants of the right answers.
"""

import ast
import contextlib
import doctest
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from exercises.bank import HERE, ROOT, STUBS, exercises, id_of, load, reference, wrong_answers

from course_lib import attention, bpe, dpo, ppo, reward, sampling, sizing
from course_lib import positions as positions_
from course_lib.checks import NOT_ATTEMPTED, SECONDS, SOLVED, WRONG, Check
from course_lib.checks.tools import is_tensor

CHECKS = exercises()
WRONG_ANSWERS = [(c, name, fn) for c in CHECKS for name, fn in wrong_answers(c).items()]
LIBRARY = {
    "count_pairs": bpe.count_pairs,
    "sinusoidal_table": positions_.sinusoidal_table,
    "rotate": positions_.rotate,
    "softmax": attention.softmax,
    "scaled_dot_product_attention": attention.scaled_dot_product_attention,
    "causal_mask": attention.causal_mask,
    "parameter_count": sizing.parameter_count,
    "training_flops": sizing.training_flops,
    "kv_cache_bytes": sizing.kv_cache_bytes,
    "top_k_filter": sampling.top_k_filter,
    "top_p_filter": sampling.top_p_filter,
    "pairwise_loss": reward.pairwise_loss,
    "last_token_reward": ppo.token_rewards,
    "gae": ppo.gae,
    "clipped_policy_loss": lambda *args: ppo.policy_loss(*args)[0],
    "kl_estimators": ppo.kl_estimates,
    "dpo_loss": dpo.dpo_loss,
}


# -- the checks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("check", CHECKS, ids=id_of)
def test_the_reference_answer_passes_in_two_seconds(check):
    began = time.process_time()
    verdict = check.grade(reference(check))
    assert verdict.status == SOLVED, verdict.message
    assert time.process_time() - began < 2 or check.seconds > SECONDS  # a capstone trains
    assert verdict.printed == ""


@pytest.mark.parametrize("check", [c for c in CHECKS if c.name in LIBRARY], ids=id_of)
def test_the_library_passes(check):
    verdict = check.grade(LIBRARY[check.name])
    assert verdict.status == SOLVED, verdict.message


@pytest.mark.filterwarnings("ignore:The use of .x.T. on tensors")  # that is what is wrong there
@pytest.mark.parametrize(
    ("check", "name", "fn"), WRONG_ANSWERS, ids=[f"{id_of(c)}-{n}" for c, n, _ in WRONG_ANSWERS]
)
def test_a_wrong_answer_gets_its_own_message(check, name, fn):
    verdict = check.grade(fn, seconds=None if check.seconds > SECONDS else 5)
    assert verdict.status == WRONG
    assert fn.__doc__ in verdict.message


def test_every_exercise_has_wrong_answers():
    for check in CHECKS:
        assert len(wrong_answers(check)) >= 3, id_of(check)
    for path in (HERE / "wrong").glob("l*.py"):  # none may be lost by a slip in its name
        names = {n.split("__")[0] for n in vars(load(path)) if "__" in n.strip("_")}
        assert names <= {c.name for c in CHECKS if c.lesson.lower() == path.stem}


def test_a_check_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for check in CHECKS:
        check.grade(wrong_answers(check).popitem()[1])
    assert torch.equal(torch.get_rng_state(), before)


# -- the runner -----------------------------------------------------------------------------------


@Check
def check_double(fn):
    """A small exercise for the tests of the runner: twice the argument."""
    is_tensor(fn(torch.ones(2)), (2,))
    assert fn(torch.ones(2)).sum() == 4, "double it"


def not_attempted(x):
    raise NotImplementedError


def a_bug(x):
    return x + undefined_name  # noqa: F821


def own_assert(x):
    assert x.sum() > 99, "mine"


def half_way(x):
    raise NotImplementedError("no kernel for Half")  # as PyTorch does


def for_ever(x):
    while True:
        with contextlib.suppress(Exception):
            x = x + 1


def prints_for_ever(x):
    while True:
        print("hello", x)


def swallows(x):
    while True:
        try:
            x = x + 1
        except:  # noqa: E722
            print("swallowed")


def leaves(x):
    sys.exit(0)


def recursion(x):
    return recursion(x)


def in_place(x):
    x *= 2
    return x


def two_arguments(x, y):
    return x + y


def not_a_number(x):
    return x * 2 * torch.nan


def prints_and_returns_nothing(x):
    print(x * 2)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (a_bug, "it stops with NameError: name 'undefined_name'"),
        (a_bug, "`return x + undefined_name"),
        (own_assert, "it stops with AssertionError: mine"),
        (for_ever, "is there a loop that never ends?"),
        (prints_for_ever, "is there a loop that never ends?"),
        (swallows, "is there a loop that never ends?"),
        (leaves, "it stops with SystemExit"),
        (recursion, "it stops with RecursionError"),
        (in_place, "it changes its argument `x` in place"),
        (two_arguments, "it stops with TypeError"),
        (not_a_number, "NaN"),
        (prints_and_returns_nothing, "must `return`, not print"),
        (lambda x: [2, 2], "a list of 2"),
        (lambda x: x[0] * 2, "shape ()"),
        (lambda x: x * 3, "double it"),
        (half_way, "it stops with NotImplementedError"),
        (None, "what it returned cannot be used"),
    ],
)
def test_a_bad_answer_ends_in_a_message(answer, says, capsys):
    verdict = check_double.grade(answer, seconds=0.5)
    assert verdict.status == WRONG
    assert says in verdict.message
    assert len(verdict.printed) <= 2000
    assert capsys.readouterr().out == ""


def test_in_a_notebook_a_line_is_printed(capsys):
    check_double(lambda x: x * 2)
    check_double(not_attempted)
    check_double(lambda x: print("debug", x) or x * 3)
    printed = capsys.readouterr().out
    assert printed.startswith(
        "✓ double: solved\n– double: not attempted\n✗ double: wrong: double it\n"
    )
    assert "| debug tensor([1., 1.])" in printed


def test_lists_and_dicts_are_watched_too():
    @Check
    def check_longest(fn):
        """Takes a nested argument."""
        assert fn([{"a": [1, 2]}], k=torch.zeros(1)) is not None, "None"

    def edits_deep(rows, k):
        rows[0]["a"].append(3)
        return rows

    def edits_by_name(rows, k):
        k.add_(1)
        return rows

    assert "`rows`" in check_longest.grade(edits_deep).message
    assert "`k`" in check_longest.grade(edits_by_name).message
    assert check_longest.grade(lambda rows, k: rows).status == SOLVED


# -- stubs, reference answers and pages ---------------------------------------------------------


def functions(text):
    """Name -> source of every function at the top of a text."""
    lines = text.splitlines()
    return {
        node.name: "\n".join(lines[node.lineno - 1 : node.end_lineno])
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    }


def stubs_of(lesson):
    return functions((STUBS / f"{lesson.lower()}.py").read_text(encoding="utf-8"))


@pytest.mark.parametrize("lesson", sorted({c.lesson for c in CHECKS}))
def test_stubs_say_what_is_asked(lesson):
    stubs, mine = stubs_of(lesson), [c.name for c in CHECKS if c.lesson == lesson]
    answers = functions((HERE / "reference" / f"{lesson.lower()}.py").read_text(encoding="utf-8"))
    assert list(stubs) == mine == list(answers)
    for name, source in stubs.items():
        assert re.search(r"(Easy|Medium|Hard), \d+ minutes\.", source), name
        assert ">>>" in source and source.endswith("raise NotImplementedError"), name
        assert source.splitlines()[0] == answers[name].splitlines()[0], "one signature"
        assert check_of(name).grade(getattr(load(STUBS / f"{lesson.lower()}.py"), name)).status == (
            NOT_ATTEMPTED
        )


RUNS_ALONE = [
    c
    for c in CHECKS
    if not c.seconds > SECONDS
    and c.name
    not in (
        "previous_token_head",
        "accumulate_gradients",
        "block",
        "beam_search",
        "generate_cached",
        "render_chat",
    )
]


@pytest.mark.parametrize("check", RUNS_ALONE, ids=id_of)
def test_the_example_in_a_stub_is_true(check):
    path = STUBS / f"{check.lesson.lower()}.py"
    names = vars(load(path)) | {check.name: reference(check)}
    test = doctest.DocTestParser().get_doctest(
        getattr(load(path), check.name).__doc__, names, check.name, str(path), 0
    )
    assert any(example.want for example in test.examples)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    assert runner.run(test).failed == 0


def check_of(name):
    return next(c for c in CHECKS if c.name == name)


PAGES = {p.name[:3]: p for p in (ROOT / "book").glob("L[0-9][0-9]_*.md")}
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
WITH_EXERCISES = [
    lesson
    for lesson, path in sorted(PAGES.items())
    if f"course_lib.checks.{lesson.lower()}" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("lesson", WITH_EXERCISES)
def test_a_page_shows_the_stub_and_the_reference_answer(lesson):
    text = PAGES[lesson].read_text(encoding="utf-8")
    cells = [re.sub(r"^:tags:.*\n", "", c).strip() for c in CELL.findall(text)]
    for name, stub in stubs_of(lesson).items():
        answer = functions((HERE / "reference" / f"{lesson.lower()}.py").read_text("utf-8"))[name]
        holding = [functions(c).get(name) for c in cells if f"def {name}(" in c]
        assert stub in holding, f"{name}: the stub differs from notebooks/exercises"
        assert answer in holding, f"{name}: the solution differs from the reference answer"
        label = f"{lesson.lower()}-{name.replace('_', '-')}"
        if label == "l04-multi-head-attention":  # the page's own title has this name already
            label = "l04-whole-module"
        assert f":label: {label}\n" in text and f"{{solution-start}} {label}\n" in text
        assert any(f"check_{name}({name})" in c for c in cells)


# -- pytest as the learner runs it ----------------------------------------------------------------


def run_pytest(*arguments):
    command = [sys.executable, "-m", "pytest", "tests/exercises", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ)
    )
    return done.returncode, done.stdout + done.stderr


def test_a_fresh_clone_has_everything_not_attempted(tmp_path):
    code, out = run_pytest(
        f"--junitxml={tmp_path / 'results.xml'}", f"--results={tmp_path / 'results.json'}"
    )
    assert code == 0, out
    n = len(CHECKS)
    assert f"{n} skipped" in out and "passed" not in out and "failed" not in out
    assert re.search(rf"^ +all +0 +0 +{n}$", out, re.MULTILINE)
    cases = list(ElementTree.parse(tmp_path / "results.xml").iter("testcase"))
    assert len(cases) == n
    assert all(c.find("skipped").get("message") == "not attempted" for c in cases)
    properties = {p.get("name"): p.get("value") for p in cases[0].iter("property")}
    first = {"lesson": "L01", "exercise": "count_pairs", "status": "not attempted", "message": ""}
    assert properties == first
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))[0] == first


def test_solving_one_stub_turns_one_line_green(tmp_path):
    answers = tmp_path / "answers"
    shutil.copytree(STUBS, answers)
    stub = answers / "l03.py"
    solved = stub.read_text(encoding="utf-8")
    body = "    raise NotImplementedError\n\n\ndef scaled"
    solved = solved.replace(body, "    return x.softmax(dim)\n\n\ndef scaled")
    stub.write_text(solved, encoding="utf-8")
    (answers / "l06.py").write_text("def causal_mask(:", encoding="utf-8")  # a syntax error
    assert run_pytest(f"--answers={answers}", "--required", "-k", "L03 and softmax")[0] == 0
    assert run_pytest(f"--answers={answers}", "--required", "-k", "L03")[0] == 1
    code, out = run_pytest(f"--answers={answers}", "-vv", "-k", "L03 or L06 or L01")
    assert code == 1, out
    assert out.count(" PASSED") == 1 and "[L03-softmax] PASSED" in out
    assert re.search(r"^ +L01 +0 +0 +4$", out, re.MULTILINE)
    assert re.search(r"^ +L03 +1 +0 +2$", out, re.MULTILINE)
    assert re.search(r"^ +L06 +0 +3 +0$", out, re.MULTILINE)
    assert "cannot be loaded: SyntaxError" in out
