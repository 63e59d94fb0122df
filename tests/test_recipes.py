"""The pipeline on the smoke preset: figures, keys, what is trained again, and real kills."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from course_lib import runs
from course_lib.errors import CourseError
from course_lib.files import load_tensors, read_json
from course_lib.presets import PRESETS, SMOKE, get_preset
from course_lib.recipes import report, train_all
from course_lib.runs import (
    MODELS,
    STAGE_SETTINGS,
    STAGES,
    code_hash,
    load_model,
    open_run,
    runs_dir,
    save_model,
    stage_key,
)

REPORT_KEYS = [
    *("seconds.total", *(f"seconds.{stage}" for stage in STAGES)),
    *("base.fact_completion", "base.continuation_share"),
    *("sft.direct_answer_share", "sft.accuracy_seen", "sft.accuracy_unseen", "sft.ends_turn"),
    *("sft.judge_mean", "sft.judge_interval", "reward.pair_accuracy"),
    *("rlhf.judge_mean", "rlhf.judge_interval", "rlhf.refusal_harmful", "rlhf.refusal_harmless"),
    *("rlhf.accuracy_unseen", "rlhf.kl", "manifest"),
]


@pytest.fixture
def copied_run(smoke_run, tmp_path):
    """A copy of the smoke run that a test may spoil."""
    shutil.copytree(smoke_run.path, tmp_path / "run")
    return tmp_path / "run"


def stamps(path):
    return {p.relative_to(path): p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}


def weights_of(path):
    return {s: load_tensors(path / s / "model.safetensors")[0] for s in STAGES if s != "tokenizer"}


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    for stage in a:
        assert a[stage].keys() == b[stage].keys()
        for name in a[stage]:
            assert torch.equal(a[stage][name], b[stage][name]), f"{stage}: {name}"


# -- what a run holds -----------------------------------------------------------------------------


@pytest.mark.parametrize("key", REPORT_KEYS)
def test_the_report_has_its_keys(smoke_run, key):
    value = report(smoke_run)
    for part in key.split("."):
        value = value[part]
    if key.endswith("interval"):
        low, high = value
        assert low <= report(smoke_run)[key.split(".")[0]]["judge_mean"] <= high
    elif key != "manifest":
        assert isinstance(value, int | float)
    if key.endswith(("share", "completion", "seen", "turn", "accuracy", "harmful", "harmless")):
        assert 0 <= value <= 1


def test_the_report_is_json_and_adds_up(smoke_run):
    figures = json.loads(json.dumps(report(smoke_run), allow_nan=False))
    seconds = figures["seconds"]
    assert seconds["total"] == pytest.approx(sum(seconds[s] for s in STAGES), abs=0.1)
    assert figures["manifest"]["preset"] == "smoke" and figures["manifest"]["seed"] == 0
    for stage in ("base", "sft", "rlhf"):
        shares = [row["share"] for row in figures[stage]["behaviour"].values()]
        assert sum(shares) == pytest.approx(1)


def test_every_stage_learned_and_left_nothing_behind(smoke_run):
    weights = weights_of(smoke_run.path)
    assert not torch.equal(weights["base"]["norm.weight"], weights["sft"]["norm.weight"])
    assert not torch.equal(weights["sft"]["norm.weight"], weights["rlhf"]["norm.weight"])
    assert smoke_run.metrics("base")[-1]["loss"] < smoke_run.metrics("base")[0]["loss"] - 1
    for stage, settings in (("base", SMOKE.base), ("sft", SMOKE.sft), ("reward", SMOKE.reward)):
        assert [row["step"] for row in smoke_run.metrics(stage)] == list(range(settings.steps))
    assert len(smoke_run.metrics("rlhf")) == SMOKE.ppo.iterations
    names = {p.name for p in smoke_run.path.rglob("*")}
    assert not [n for n in names if n.endswith(".tmp") or n.startswith(("checkpoint", "pending"))]


def test_ppo_starts_at_ratio_one_and_no_divergence(smoke_run):
    first = smoke_run.metrics("rlhf")[0]
    assert first["first_ratio"] == pytest.approx(1, abs=1e-5)
    assert first["kl"] == pytest.approx(0, abs=1e-4)


def test_the_models_open(smoke_run):
    run = open_run(smoke_run.path)
    size = run.tokenizer().vocab_size
    assert all(run.model(name).config.vocab_size == size for name in MODELS)
    assert run.reward_model()([[1, 2]], [[3]]).shape == (1,)
    pairs = run.pairs()
    assert pairs["train"] and pairs["heldout"] and all(p.label_right for p in pairs["heldout"])


# -- what is trained again ------------------------------------------------------------------------


def test_the_base_model_is_kept_a_dozen_times_while_it_learns(smoke_run):
    kept = smoke_run.snapshots()
    assert kept[0] == 0 and kept[-1] == SMOKE.base.steps and len(kept) >= 13
    measured = {r["step"] + 1: r for r in smoke_run.metrics("base") if "heldout_loss" in r}
    assert sorted(measured) == kept[1:]
    assert measured[kept[-1]]["heldout_loss"] < measured[kept[1]]["heldout_loss"]
    first, last = (load_model(smoke_run.snapshot(n)).state_dict() for n in (0, kept[-1]))
    end = smoke_run.model("base").state_dict()
    assert all(torch.equal(last[name], end[name]) for name in end)
    assert not torch.equal(first["embedding.weight"], end["embedding.weight"])


def test_a_second_run_trains_nothing(copied_run):
    before = stamps(copied_run)
    train_all(SMOKE, copied_run, device="cpu")
    assert stamps(copied_run) == before


def test_a_changed_setting_trains_only_what_follows(copied_run):
    before, old = weights_of(copied_run), stamps(copied_run)
    changed = replace(SMOKE, ppo=replace(SMOKE.ppo, kl_coef=0.5, iterations=2))
    run = train_all(changed, copied_run, device="cpu")
    new = stamps(copied_run)
    different = {p.parts[0] for p in new if new[p] != old.get(p)}
    assert different == {"rlhf", "manifest.json"}
    rlhf = weights_of(copied_run)["rlhf"]
    assert not torch.equal(rlhf["embedding.weight"], before["rlhf"]["embedding.weight"])
    assert report(run)["manifest"]["settings"]["ppo"]["kl_coef"] == 0.5


def keys(preset, seed=0):
    out, key = {}, ""
    for name in STAGES:
        key = out[name] = stage_key(name, preset, seed, key)
    return out


@pytest.mark.parametrize("setting", sorted({s for names in STAGE_SETTINGS.values() for s in names}))
def test_a_setting_changes_the_keys_from_its_first_stage_on(setting):
    value = getattr(SMOKE, setting)
    if isinstance(value, int | float):
        value = value + 1
    elif isinstance(value, dict):
        value = value | {"n_layers": 3}
    else:
        value = replace(value, learning_rate=0.123)
    before, after = keys(SMOKE), keys(replace(SMOKE, **{setting: value}))
    first = next(s for s in STAGES if setting in STAGE_SETTINGS[s])
    changed = [s for s in STAGES if before[s] != after[s]]
    assert changed == list(STAGES[STAGES.index(first) :])


def test_every_setting_belongs_to_a_stage():
    used = {s for names in STAGE_SETTINGS.values() for s in names}
    assert used == set(vars(SMOKE)) - {"name"}


def test_the_seed_changes_every_key():
    assert not set(keys(SMOKE).values()) & set(keys(SMOKE, seed=1).values())


def test_the_code_hash_sees_code_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "runs.py"))
    (tmp_path / "world").mkdir()
    table = tmp_path / "world" / "table.csv"
    table.write_text("a,b\n")
    code = 'def f(x):\n    """Doc."""\n    return x + 1  # one more\n'

    def digest(source):
        (tmp_path / "a.py").write_text(source)
        return code_hash(("a.py", "world"))

    first = digest(code)
    assert (
        digest("# hello\n\n" + code.replace("Doc.", "Words.").replace("  # one more", "")) == first
    )
    assert digest(code.replace('    """Doc."""\n', "")) == first
    assert digest(code.replace("def f(x)", "def f(x, y)")) != first
    assert "[]" not in runs._skeleton(code)  # empty fields, which newer versions of Python add
    assert digest(code.replace("+ 1", "+ 2")) != first
    digest(code)
    table.write_text("a,c\n")
    assert code_hash(("a.py", "world")) != first


def test_every_module_that_trains_is_in_a_key():
    """A stage that runs a module which is in no key would not notice that it changed."""
    folder = runs.Path(runs.__file__).parent
    reached, todo = set(), {"recipes.py"}
    while todo:
        name = todo.pop()
        reached.add(name)
        source = (folder / name).read_text(encoding="utf-8")
        found = set(re.findall(r"^from course_lib\.(\w+)", source, re.MULTILINE))
        for names in re.findall(r"^from course_lib import (.+)", source, re.MULTILINE):
            found |= set(names.split(", "))
        found = {f"{name}.py" for name in found}
        todo |= {f for f in found if (folder / f).exists()} - reached
    named = {name for names in runs.STAGE_CODE.values() for name in names} | {"recipes.py"}
    # Settings are in the keys by value; the rest of these does not touch a result.
    apart = {"__init__.py", "errors.py", "files.py", "presets.py", "runs.py"}
    assert reached - apart == named - {"atlas"}


# -- bad run directories --------------------------------------------------------------------------


def test_missing_and_partial_runs_are_errors(copied_run, tmp_path):
    with pytest.raises(CourseError, match=r"no run at .*nowhere.*course_lib train"):
        open_run(tmp_path / "nowhere")
    (copied_run / "sft" / "stage.json").unlink()
    with pytest.raises(CourseError, match="lacks sft"):
        open_run(copied_run)


def test_truncated_files_are_errors(copied_run):
    run = open_run(copied_run)
    for stage, opened in (("sft", lambda: run.model("sft")), ("reward", run.reward_model)):
        path = copied_run / stage / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(CourseError, match="damaged or cut short"):
            opened()
    for name, opened in (
        ("base/stage.json", lambda: run.results("base")),
        ("reward/pairs.json", run.pairs),
        ("tokenizer/tokenizer.json", run.tokenizer),
        ("manifest.json", lambda: report(run)),
    ):
        path = copied_run / name
        path.write_bytes(path.read_bytes()[:20])
        with pytest.raises(CourseError, match=name.rsplit("/")[-1]):
            opened()


def test_weights_of_another_config_are_an_error(make_model, tmp_path):
    model, other = make_model(), make_model(n_layers=3)
    path = tmp_path / "model.safetensors"
    save_model(model, model.config, path)
    assert torch.equal(load_model(path).embedding.weight, model.embedding.weight)
    save_model(model, other.config, path)
    with pytest.raises(CourseError, match="another configuration"):
        load_model(path)


def test_tensors_that_are_no_model_are_an_error(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CourseError, match="no model configuration"):
        load_model(tmp_path / "a.safetensors")


def test_presets():
    assert get_preset("smoke") is SMOKE
    assert all(name == preset.name for name, preset in PRESETS.items())
    with pytest.raises(CourseError, match=r"unknown preset 'huge'.*laptop.*smoke"):
        get_preset("huge")


def test_where_runs_live(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path))
    assert runs_dir() == tmp_path
    with pytest.raises(CourseError, match=str(tmp_path)):
        open_run()


# -- kills ----------------------------------------------------------------------------------------


def train_command(out):
    return [sys.executable, "-m", "course_lib", "train", "--preset", "smoke", "--out", str(out)]


def kill_when(out, sign, timeout=120):
    """Start training, and kill it without warning as soon as the file `sign` is there."""
    process = subprocess.Popen(
        [*train_command(out), "--device", "cpu"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + timeout
    try:
        while not (out / sign).exists():
            assert process.poll() is None, f"the run ended before {sign} appeared"
            assert time.monotonic() < until
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_with_the_same_weights(smoke_run, tmp_path):
    out = tmp_path / "killed"
    for stage in ("base", "sft", "reward", "rlhf"):
        kill_when(out, f"{stage}/checkpoint.safetensors")
        assert not (out / stage / "stage.json").exists()
        load_tensors(out / stage / "checkpoint.safetensors")  # complete, not half-written
        with pytest.raises(CourseError):
            open_run(out)
    done = subprocess.run(
        [*train_command(out), "--device", "cpu"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_weights(weights_of(out), weights_of(smoke_run.path))
    assert read_json(out / "rlhf" / "stage.json")["resumed"]
    ours, theirs = (
        {k: v for k, v in runs.Run(p).results("rlhf").items()} for p in (out, smoke_run.path)
    )
    assert ours == theirs
