"""The training loop: schedule, accumulation, clipping, exact resume, and losses that blow up."""

import contextlib
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from course_lib import train as training
from course_lib.data import IGNORE_INDEX, windows
from course_lib.errors import CourseError
from course_lib.files import MetricLog, load_tensors
from course_lib.train import TrainSettings, cross_entropy, make_optimizers, train

STREAM = torch.arange(400) % 37


def loss_at(model, step, batch=4):
    idx, targets = windows(STREAM, batch, 16, seed=0, step=step)
    return cross_entropy(model(idx), targets)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_cross_entropy_by_hand():
    logits = torch.tensor([[[3.0, 1.0], [1.0, 1.0], [9.0, -9.0]]]).log().nan_to_num(nan=0.0)
    loss = cross_entropy(logits, torch.tensor([[0, 1, IGNORE_INDEX]]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_a_fully_masked_batch_is_an_error():
    with pytest.raises(CourseError, match="every target is masked"):
        cross_entropy(torch.zeros(2, 3, 5), torch.full((2, 3), IGNORE_INDEX))


def test_every_parameter_has_one_optimizer(make_model):
    model = make_model()
    adam, muon = make_optimizers(model, TrainSettings(1, weight_decay=0.1))
    groups = [*adam.param_groups, *muon.param_groups]
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.dim() > 1), name
        hidden = any(parameter is p for g in muon.param_groups for p in g["params"])
        assert hidden == ("blocks." in name and parameter.dim() > 1), name
    assert len(make_optimizers(model, TrainSettings(1, muon=False))) == 1


def plain_descent(model, settings):
    """In place of the real optimisers: a step as large as the gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.learning_rate)
    optimizer.param_groups[0]["peak"] = settings.learning_rate
    return [optimizer]


@pytest.fixture
def full_precision(monkeypatch):
    monkeypatch.setattr(training, "precision", lambda device: contextlib.nullcontext())


def test_accumulation_equals_the_large_batch(make_model, tmp_path, monkeypatch, full_precision):
    monkeypatch.setattr(training, "make_optimizers", plain_descent)
    settings = {"steps": 3, "learning_rate": 0.1, "clip": 1e9, "warmup": 0}
    small, large = make_model(), make_model()
    start = weights(small)

    def large_loss(model, step):
        return sum(loss_at(model, 4 * step + micro) for micro in range(4)) / 4

    train(small, loss_at, TrainSettings(**settings, accumulate=4), tmp_path / "a", "a")
    train(large, large_loss, TrainSettings(**settings), tmp_path / "b", "b")
    for name, value in weights(small).items():
        torch.testing.assert_close(value, weights(large)[name], rtol=1e-5, atol=1e-6)
    assert not same(weights(small), start)
    rows = [MetricLog.read(tmp_path / name / "metrics.jsonl") for name in "ab"]
    for a, b in zip(*rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_accumulated_means_weigh_by_their_targets(
    make_model, tmp_path, monkeypatch, full_precision
):
    """Micro-batches with 1, 4, 16 and 60 targets; the mean of their means is another loss."""
    monkeypatch.setattr(training, "make_optimizers", plain_descent)
    settings = {"steps": 1, "learning_rate": 0.1, "clip": 1e9, "warmup": 0}
    idx, targets = windows(STREAM, 16, 16, seed=0, step=0)
    targets = targets.clone()  # of one memory with idx
    for part, count in zip(targets.split(4), (1, 4, 16, 60), strict=True):
        part[(torch.arange(64) >= count).view(4, 16)] = IGNORE_INDEX

    def micro(model, i):
        own = targets[4 * i : 4 * i + 4]
        loss = cross_entropy(model(idx[4 * i : 4 * i + 4]), own)
        return loss, int((own != IGNORE_INDEX).sum())

    models = {name: make_model() for name in ("counted", "means", "large")}
    losses = {
        "counted": micro,
        "means": lambda model, i: micro(model, i)[0],
        "large": lambda model, i: cross_entropy(model(idx), targets),
    }
    rows = {}
    for name, model in models.items():
        accumulate = 1 if name == "large" else 4
        path = tmp_path / name
        train(model, losses[name], TrainSettings(**settings, accumulate=accumulate), path, name)
        [rows[name]] = MetricLog.read(path / "metrics.jsonl")
    for name, value in weights(models["counted"]).items():
        torch.testing.assert_close(value, weights(models["large"])[name], rtol=1e-5, atol=1e-6)
    assert rows["counted"]["loss"] == pytest.approx(rows["large"]["loss"], rel=1e-5)
    assert rows["counted"]["grad_norm"] == pytest.approx(rows["large"]["grad_norm"], rel=1e-4)
    assert rows["means"]["loss"] != pytest.approx(rows["large"]["loss"], rel=1e-3)


def test_gradients_are_clipped_to_the_norm(make_model, tmp_path, monkeypatch, full_precision):
    monkeypatch.setattr(training, "make_optimizers", plain_descent)
    model = make_model()
    before = weights(model)
    settings = TrainSettings(steps=1, learning_rate=1.0, clip=0.01, warmup=0)
    train(model, loss_at, settings, tmp_path, "clip")
    moved = torch.cat([(weights(model)[n] - before[n]).flatten() for n in before]).norm().item()
    assert moved == pytest.approx(0.01, rel=1e-2)
    assert MetricLog.read(tmp_path / "metrics.jsonl")[0]["grad_norm"] > 0.01


def test_the_schedule_scales_the_step(make_model, tmp_path, monkeypatch, full_precision):
    monkeypatch.setattr(training, "make_optimizers", plain_descent)
    moved = []
    for warmup in (0, 10):
        model = make_model()
        before = weights(model)["embedding.weight"]
        settings = TrainSettings(steps=1, learning_rate=0.5, clip=1e9, warmup=warmup)
        train(model, loss_at, settings, tmp_path / str(warmup), "rate")
        moved.append(weights(model)["embedding.weight"] - before)
    torch.testing.assert_close(moved[1], moved[0] / 10, rtol=1e-3, atol=1e-7)
    row = MetricLog.read(tmp_path / "10" / "metrics.jsonl")[0]
    assert row["rate"] == pytest.approx(0.05)


def test_training_learns(make_model, tmp_path):
    model = make_model()
    train(model, loss_at, TrainSettings(40, learning_rate=1e-2, warmup=5), tmp_path, "learn")
    losses = [row["loss"] for row in MetricLog.read(tmp_path / "metrics.jsonl")]
    assert losses[0] > 3.5 and losses[-1] < 0.7 * losses[0]
    assert not model.training


class Killed(Exception):
    pass


@pytest.mark.parametrize("muon", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("kill_at", [2, 3, 7, 11])
def test_a_killed_run_equals_an_uninterrupted_one(make_model, tmp_path, muon, dropout, kill_at):
    settings = TrainSettings(12, learning_rate=1e-2, checkpoint_every=3, accumulate=2, muon=muon)
    whole = make_model(dropout=dropout)
    train(whole, loss_at, settings, tmp_path / "whole", "whole")

    def dies(model, step):
        if step == 2 * kill_at + 1:
            raise Killed
        return loss_at(model, step)

    with pytest.raises(Killed):
        train(make_model(dropout=dropout), dies, settings, tmp_path / "killed", "killed")
    resumed = make_model(
        seed=0 if kill_at < 3 else 99, dropout=dropout
    )  # from a checkpoint the start is forgotten
    steps = []

    def count(model, step):
        steps.append(step // 2)
        return loss_at(model, step)

    train(resumed, count, settings, tmp_path / "killed", "resumed")
    assert steps[0] == 3 * (kill_at // 3)
    assert same(weights(resumed), weights(whole))
    rows = [MetricLog.read(tmp_path / part / "metrics.jsonl") for part in ("whole", "killed")]
    assert [r["step"] for r in rows[1]] == list(range(12))
    assert [r["loss"] for r in rows[1]] == [r["loss"] for r in rows[0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(make_model, tmp_path, bad):
    model, at_four = make_model(), {}

    def blows_up(model, step):
        if step == 4:
            at_four.update(weights(model))
        return loss_at(model, step) * (bad if step == 5 else 1)

    settings = TrainSettings(10, checkpoint_every=2, learning_rate=1e-2)
    with pytest.raises(
        CourseError, match=r"loss (nan|inf) .* at step 5 \(batches 5 to 5\).*smaller learning rate"
    ):
        train(model, blows_up, settings, tmp_path, "nan")
    tensors, note = load_tensors(tmp_path / "checkpoint.safetensors")
    assert note["step"] == 4
    assert all(torch.equal(tensors[f"model.{name}"], value) for name, value in at_four.items())
    assert all(p.isfinite().all() for p in model.parameters())
    train(model, loss_at, settings, tmp_path, "a second try")  # its gradients are gone
    assert all(p.isfinite().all() for p in model.parameters())


def test_what_an_earlier_backward_pass_left_does_not_count(make_model, tmp_path):
    clean, stray = make_model(), make_model()
    loss_at(stray, 5).backward()
    for name, model in (("clean", clean), ("stray", stray)):
        train(model, loss_at, TrainSettings(2), tmp_path / name, name)
    for a, b in zip(clean.parameters(), stray.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("muon", [True, False])
def test_a_checkpoint_of_other_optimisers_is_an_error(make_model, tmp_path, muon):
    settings = TrainSettings(4, checkpoint_every=2, muon=muon)
    train(make_model(), loss_at, settings, tmp_path, "one")
    with pytest.raises(CourseError, match="with other optimisers"):
        train(make_model(), loss_at, replace(settings, muon=not muon), tmp_path, "other")


@pytest.mark.parametrize("name", ["accumulate", "checkpoint_every"])
def test_settings_that_cannot_be(name):
    with pytest.raises(CourseError, match=f"{name} is 0"):
        TrainSettings(2, **{name: 0})


def test_a_count_may_be_a_tensor(make_model, tmp_path):
    def counted(model, step):
        return loss_at(model, step), torch.tensor(16)

    train(make_model(), counted, TrainSettings(2, accumulate=2), tmp_path, "counted")
    assert len(MetricLog.read(tmp_path / "metrics.jsonl")) == 2


def test_a_checkpoint_of_another_model_is_an_error(make_model, tmp_path):
    model = make_model()
    optimizers = make_optimizers(model, TrainSettings(1))
    training.save_state(model, optimizers, tmp_path / "checkpoint.safetensors", 1)
    with pytest.raises(CourseError, match="another configuration"):
        train(make_model(d_model=32), loss_at, TrainSettings(3), tmp_path, "other")


def test_evaluation_runs_without_training_mode_at_its_steps_and_at_the_end(make_model, tmp_path):
    seen = []

    def evaluate(model, step):
        seen.append((step, model.training))
        return {"extra": step}

    def loss_in_training_mode(model, step):
        assert model.training
        return loss_at(model, step)

    train(
        make_model(),
        loss_in_training_mode,
        TrainSettings(5),
        tmp_path,
        "eval",
        evaluate,
        evaluate_every=2,
    )
    assert seen == [(1, False), (3, False), (4, False)]
    rows = MetricLog.read(tmp_path / "metrics.jsonl")
    assert [row.get("extra") for row in rows] == [None, 1, None, 3, 4]


@pytest.mark.parametrize(
    ("cuda", "mps", "device"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_best_device_is_picked(monkeypatch, cuda, mps, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    on = {name: SimpleNamespace(device=torch.device(name)) for name in ("cuda", "mps", "cpu")}
    monkeypatch.setattr(torch, "empty", lambda size, device: on[device])
    assert training.pick_device() == torch.device(device)
    assert training.pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "ability", "fast"),
    [
        ("cuda", (7, 5), False),  # a T4 has no bf16
        ("cuda", (8, 0), True),
        ("cuda", (9, 0), True),
        ("mps", None, False),
        ("cpu", {"avx512_bf16": True}, True),
        ("cpu", {"amx_bf16": True}, True),
        ("cpu", {"avx512_bf16": False}, False),
    ],
)
def test_bf16_only_where_it_is_fast(monkeypatch, device, ability, fast):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: ability)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: ability, raising=False)
    monkeypatch.setattr(torch, "autocast", lambda *kinds, enabled: (*kinds, enabled))
    assert training.precision(torch.device(device)) == (device, torch.bfloat16, fast)


def test_an_unknown_device_is_an_error():
    with pytest.raises(CourseError, match="abacus"):
        training.pick_device("abacus")
