"""Several processes train the same run as one; a process that dies costs a few steps."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
import torch
from processes import PLANS, SETTINGS, lm_loss, make_model, make_reward_model, reward_loss

from course_lib import reward, sft
from course_lib import train as training
from course_lib.__main__ import main
from course_lib.data import step_generator, windows
from course_lib.distributed import _check_batches, chat_share, windows_share
from course_lib.errors import CourseError
from course_lib.files import MetricLog, load_tensors
from course_lib.parallel import Share, together, train_together
from course_lib.presets import SMOKE
from course_lib.recipes import report
from course_lib.runs import STAGES, open_run
from course_lib.train import TrainSettings, cross_entropy, train

WHOLE = Share(0, 1)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


# -- parts of a batch -----------------------------------------------------------------------------


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def recipe_losses():
    """The losses that the recipes' stages use, beside the shares of them."""
    talks, groups = processes.examples(), processes.prompts()

    def base(model, step):
        idx, targets = windows(processes.STREAM, 6, 32, 1, step)
        return cross_entropy(model(idx), targets)

    def chat(model, step):
        return sft.sft_loss(model, *sft.chat_batch(talks, 7, 32, 0, step))

    def compare(model, step):
        return reward.reward_loss(model, groups, 7, 0, step)

    return {
        "base": (make_model, base, lambda m, i, s: windows_share(m, processes.STREAM, 6, 1, i, s)),
        "sft": (make_model, chat, lambda m, i, s: chat_share(m, talks, 7, 0, i, s)),
        "reward": (make_reward_model, compare, reward_loss),
    }


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
@pytest.mark.parametrize("stage", ["base", "sft", "reward"])
def test_the_parts_add_up_to_the_loss_and_gradient_of_the_recipe(stage, parts):
    make, whole, part = recipe_losses()[stage]
    model = make()
    for step in range(3):
        losses = [part(model, step, Share(i, parts)) for i in range(parts)]
        expected = whole(model, step)
        torch.testing.assert_close(sum(losses), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            gradient(model, sum(losses)), gradient(model, whole(model, step)), rtol=1e-4, atol=1e-6
        )


def test_the_mean_of_the_processes_means_has_another_gradient():
    """What DDP alone computes: replies differ in length, and each token of a short one would weigh
    more."""
    model, talks = make_model(), processes.examples()
    draw = torch.randint(30, (7,), generator=step_generator(0, 0)).tolist()

    def mean_of(share):
        batch = sft.packed_batch(talks, [[i] for i in share.take(draw)])
        return sft.sft_loss(model, *batch)

    weighed = gradient(model, sum(chat_share(model, talks, 7, 0, 0, Share(i, 2)) for i in (0, 1)))
    whole = gradient(model, mean_of(WHOLE))
    means = gradient(model, (mean_of(Share(0, 2)) + mean_of(Share(1, 2))) / 2)
    assert (weighed - whole).norm() < 1e-5 * whole.norm()
    assert (means - whole).norm() > 0.05 * whole.norm()


def test_a_batch_with_too_few_rows_for_its_parts():
    assert Share(2, 3).take([10, 11, 12, 13, 14]) == [12]
    with pytest.raises(CourseError, match="2 rows cannot be cut into 3 parts"):
        _check_batches(SMOKE, 3)  # two replayed windows
    _check_batches(SMOKE, 2)
    with pytest.raises(CourseError, match="1 or more"):
        _check_batches(SMOKE, 0)


# -- one process that torchrun might have started -------------------------------------------------


@pytest.fixture
def launched(monkeypatch):
    """The environment of a run with one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1"}
    for name, value in (names | {"MASTER_PORT": port}).items():
        monkeypatch.setenv(name, str(value))
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
    if torch.distributed.is_initialized():  # an error leaves that to the end of the process
        torch.distributed.destroy_process_group()


@pytest.fixture
def full_precision(monkeypatch):
    monkeypatch.setattr(training, "precision", lambda device: contextlib.nullcontext())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("muon", [True, False])
def test_a_world_of_one_is_the_plain_loop(launched, tmp_path, muon):
    settings = TrainSettings(6, learning_rate=1e-2, warmup=3, checkpoint_every=4, muon=muon)
    with together("cpu") as world:
        ours = train_together(make_model(), lm_loss, settings, tmp_path / "a", "a", world)
    theirs = make_model()
    train(theirs, lambda m, i: lm_loss(m, i, WHOLE), settings, tmp_path / "b", "b")
    assert same(ours.state_dict(), theirs.state_dict())
    rows = [MetricLog.read(tmp_path / name / "metrics.jsonl") for name in "ab"]
    assert [r["loss"] for r in rows[0]] == [r["loss"] for r in rows[1]]
    assert [r["grad_norm"] for r in rows[0]] == [r["grad_norm"] for r in rows[1]]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(launched, tmp_path):
    def blows_up(model, step, share):
        return lm_loss(model, step, share) * (float("nan") if step == 5 else 1)

    said = pytest.raises(CourseError, match=r"loss nan .* at step 5.*smaller learning rate")
    with said, together("cpu") as world:
        train_together(make_model(), blows_up, SETTINGS, tmp_path, "nan", world)
    assert [p.name for p in (tmp_path / "shards").iterdir()] == ["4"]


def test_an_unfinished_checkpoint_does_not_count_and_a_damaged_one_is_an_error(launched, tmp_path):
    (tmp_path / "shards" / "9.tmp").mkdir(parents=True)
    settings = TrainSettings(5, checkpoint_every=4)
    with together("cpu") as world:
        train_together(make_model(), lm_loss, settings, tmp_path, "a", world)
        assert [p.name for p in (tmp_path / "shards").iterdir()] == ["4"]
        (part,) = (tmp_path / "shards" / "4").glob("*.distcp")
        part.write_bytes(part.read_bytes()[:100])
        with pytest.raises(CourseError, match=r"shards/4 is damaged .*delete it"):
            train_together(make_model(), lm_loss, settings, tmp_path, "b", world)


def test_a_checkpoint_that_cannot_be_written(launched, tmp_path):
    (tmp_path / "shards").write_text("a file")
    with together("cpu") as world, pytest.raises(CourseError, match="cannot be written"):
        train_together(make_model(), lm_loss, SETTINGS, tmp_path, "a", world)


def test_a_process_that_torchrun_ends_says_why(launched):
    before = signal.getsignal(signal.SIGTERM)
    with together("cpu"):
        pass
    assert signal.getsignal(signal.SIGTERM) is before
    said = pytest.raises(CourseError, match=r"another process of this run ended.*same command")
    with said, together("cpu"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    os.kill(os.getpid(), signal.SIGTERM)  # a second one must not cut the message short


def test_an_error_of_our_own_is_not_taken_for_a_lost_process(launched):
    with pytest.raises(RuntimeError, match="shapes"), together("cpu"):
        raise RuntimeError("shapes do not fit")


# -- the command line -----------------------------------------------------------------------------


def error_of(capsys, *arguments):
    code = main(["train", "--preset", "smoke", *arguments])
    err = capsys.readouterr().err
    assert code == 2 and err.startswith("error") and len(err.splitlines()) <= 2
    return err


def test_a_half_set_environment(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    err = error_of(capsys, "--out", str(tmp_path / "run"))
    assert "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set" in err and "torchrun" in err


@pytest.mark.parametrize("option", [("--parallel", "fsdp"), ("--accumulate", "2")])
def test_options_that_need_torchrun(capsys, monkeypatch, tmp_path, option):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert "need torchrun" in error_of(capsys, *option, "--out", str(tmp_path / "run"))


def test_bad_input_under_torchrun(capsys, launched, tmp_path):
    out = ("--out", str(tmp_path / "run"))
    assert "(process 0)" in error_of(capsys, "--device", "abacus", *out)
    err = error_of(capsys, "--device", "cpu", "--accumulate", "3", *out)
    assert "2 rows cannot be cut into 3 parts" in err


def test_an_output_that_is_a_file(capsys, launched, tmp_path):
    out = ("--out", str(tmp_path / "run"))
    (tmp_path / "run").write_text("a file")
    assert "cannot write a run" in error_of(capsys, "--device", "cpu", *out)


# -- two real processes ---------------------------------------------------------------------------


def launch(folder, task):
    """A task of `processes.py` in two processes; returns when both have ended."""
    command = [*TORCHRUN, processes.__file__, str(folder), task]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """A folder with a training by every plan, in two processes."""
    folder = tmp_path_factory.mktemp("two")
    done = launch(folder, "curves")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def curve(path, key="loss"):
    return [row[key] for row in MetricLog.read(path / "metrics.jsonl")]


def ending(path):
    """Losses by step and final weights of a training in two processes."""
    return curve(path), load_tensors(path / "end.safetensors")[0]


# Sums in another order differ in the seventh digit; AdamW carries that on. Muon rounds the inside
# of its step to bfloat16, three digits, where a last digit may fall to the other side.
@pytest.mark.parametrize("name", PLANS)
def test_two_processes_have_the_loss_curve_of_one(curves, tmp_path, full_precision, name):
    model = make_model()
    settings = PLANS[name][1]
    settings = TrainSettings(**(vars(settings) | {"accumulate": 1}))
    train(model, lambda m, i: lm_loss(m, i, WHOLE), settings, tmp_path, "one")
    one = curve(tmp_path)
    two, weights = ending(curves / name)
    close = 1e-3 if settings.muon else 1e-5
    assert two == pytest.approx(one, abs=close)
    # AdamW would hide gradients of half the size.
    norms = curve(tmp_path, "grad_norm")
    assert curve(curves / name, "grad_norm") == pytest.approx(norms, rel=10 * close)
    assert one[-1] < one[0] - 0.2  # it learned something
    for key, value in model.state_dict().items():
        torch.testing.assert_close(weights[key], value, rtol=0, atol=10 * close)


def test_two_processes_train_the_same_reward_model(curves, tmp_path, full_precision):
    model = make_reward_model()
    train(model, lambda m, i: reward_loss(m, i, WHOLE), SETTINGS, tmp_path, "one")
    one = curve(tmp_path)
    two, weights = ending(curves / "fsdp-reward")
    assert two == pytest.approx(one, abs=1e-5)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(weights[key], value, rtol=0, atol=2e-4)


def test_a_checkpoint_serves_another_kind_and_another_number_of_processes(
    curves, tmp_path, launched, full_precision
):
    """Both go on from step 8 of a DDP run with two processes: as two with shards, and as one."""
    losses, weights = ending(curves / "ddp")
    other, shards = ending(curves / "other" / "fsdp")
    shutil.copytree(curves / "ddp", tmp_path / "one")
    started = []

    def noted(model, step, share):
        started.append(step)
        return lm_loss(model, step, share)

    with together("cpu") as world:
        one = train_together(make_model(), noted, SETTINGS, tmp_path / "one", "one", world)
    assert started[0] == 8
    assert other == pytest.approx(losses, abs=1e-5)
    assert curve(tmp_path / "one") == pytest.approx(losses, abs=1e-5)
    for key, value in weights.items():
        torch.testing.assert_close(shards[key], value, rtol=0, atol=2e-4)
        torch.testing.assert_close(one.state_dict()[key], value, rtol=0, atol=2e-4)


def test_a_killed_process_ends_the_run_and_a_second_launch_makes_it_the_same_run(curves):
    folder = curves / "killed" / "fsdp"
    done = launch(curves, "killed")
    assert done.returncode != 0 and "-9" in done.stderr
    assert "another process of this run ended" in done.stderr
    assert [p.name for p in (folder / "shards").iterdir()] == ["8"]
    assert curve(folder, "step") == list(range(9))
    done = launch(curves, "again")
    assert done.returncode == 0, done.stderr[-3000:]
    (losses, weights), (whole, expected) = ending(folder), ending(curves / "fsdp")
    assert losses == whole  # to the last bit
    assert same(weights, expected)
    assert curve(folder, "step") == list(range(SETTINGS.steps))


# -- the whole command, killed --------------------------------------------------------------------


def command(out):
    train_it = ("-m", "course_lib", "train", "--preset", "smoke", "--device", "cpu")
    return [*TORCHRUN, *train_it, "--out", str(out)]


def second_process(parent):
    """The process number 1 of a torchrun, found by its environment."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if b"\0RANK=1\0" in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError("no second process")


def kill_when(out, sign, log):
    """Start the command, kill its second process when `sign` is there; the exit code."""
    with log.open("w") as file:
        torchrun = subprocess.Popen(command(out), stdout=file, stderr=file)
        until = time.monotonic() + 300
        try:
            while not (out / sign).exists():
                assert torchrun.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.01)
            os.kill(second_process(torchrun.pid), signal.SIGKILL)
            return torchrun.wait(timeout=120)
        finally:
            torchrun.terminate()
            torchrun.wait()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the process to kill in /proc")
def test_the_command_killed_and_repeated_makes_the_run_of_one_process(smoke_run, tmp_path):
    """Where CPUs multiply in bf16, as in the recipe, sums differ in the third digit."""
    out, log = tmp_path / "run", tmp_path / "log"
    assert kill_when(out, "base/shards/10", log) != 0
    assert re.search(r"error \(process 0\): another process .* the same command", log.read_text())
    with pytest.raises(CourseError):
        open_run(out)
    done = subprocess.run(command(out), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]

    run = open_run(out)
    for stage, close in (("base", 0.01), ("sft", 0.05)):
        ours, theirs = ([row["loss"] for row in r.metrics(stage)] for r in (run, smoke_run))
        assert ours == pytest.approx(theirs, abs=close)
    for stage in STAGES[1:4]:
        record = run.stage(stage)
        assert (record["processes"], record["parallel"]) == (2, "ddp")
        assert record["resumed"] == (stage == "base")
    assert run.results("base")["heldout_loss"] == pytest.approx(
        smoke_run.results("base")["heldout_loss"], abs=0.01
    )
    assert report(run)["manifest"]["resumed"] == ["base"]
    names = ({str(p.relative_to(r.path)) for p in r.path.rglob("*")} for r in (run, smoke_run))
    assert next(names) == next(names)
    assert done.stdout.count("run: ") == 1  # the other process says nothing
