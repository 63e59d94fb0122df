"""The command line: `python -m course_lib train | report | chat | study`."""

import argparse
import json
import os
import sys
from pathlib import Path

from course_lib.errors import CourseError
from course_lib.presets import PRESETS, get_preset
from course_lib.recipes import report, train_all
from course_lib.runs import MODELS, open_run, runs_dir


def main(argv: list[str] | None = None) -> int:
    """Run one command; bad input gives a short message on standard error and exit code 2."""
    parser = _parser()
    args = parser.parse_args(argv)
    again = "; the same command goes on from the last checkpoint" if args.run is _train else ""
    try:
        args.run(args)
    except CourseError as error:
        who = f" (process {os.environ['RANK']})" if "RANK" in os.environ else ""
        print(f"error{who}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped{again}", file=sys.stderr)
        return 130
    except Exception as error:  # Python and safetensors say it in different classes
        if "No space left" not in str(error):
            raise
        print(f"error: the disk is full: make room first{again}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m course_lib",
        description="Train a small language model, from raw text to a chat assistant; talk to it.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_train(commands)
    show = commands.add_parser("report", help="print the measured figures of a run")
    show.add_argument("dir", nargs="?", type=Path, help="run directory (default: the laptop run)")
    show.add_argument("--json", action="store_true", help="everything, as JSON")
    show.set_defaults(run=_report)

    chat = commands.add_parser("chat", help="talk to a trained model")
    chat.add_argument("dir", nargs="?", type=Path, help="run directory (default: the laptop run)")
    chat.add_argument(
        "--model", default="rlhf", choices=MODELS, help="which model answers (default: rlhf)"
    )
    chat.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    chat.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    chat.set_defaults(run=_chat)

    study = commands.add_parser(
        "study",
        help="run a recorded study and write its result for the book",
        description="Measurements that need many trainings: run once, committed, shown by a page.",
    )
    study.add_argument("names", nargs="*", help="which studies (default: list them)")
    study.add_argument("--small", action="store_true", help="a slice in seconds; printed only")
    study.set_defaults(run=_study)
    return parser


def _add_train(commands) -> None:
    train = commands.add_parser(
        "train",
        help="run the whole pipeline: tokenizer, base, SFT, reward model, PPO",
        description="Train every stage that is not there yet. A killed run goes on where it was.",
        epilog="In several processes, each with a GPU if there are any: torchrun --standalone "
        "--nproc_per_node=2 -m course_lib train. The result is that of one process, up to "
        "rounding; PPO runs in the first process alone.",
    )
    train.add_argument(
        "--preset",
        default="laptop",
        help=f"one of {', '.join(sorted(PRESETS))} (default: laptop, minutes on 2 CPU cores; "
        "gpu is five times as large, for one GPU)",
    )
    train.add_argument("--out", type=Path, help="run directory (default: runs/<preset>)")
    train.add_argument("--seed", type=int, default=0, help="seed of data and weights (default: 0)")
    train.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    train.add_argument(
        "--parallel",
        choices=("ddp", "fsdp"),
        help="under torchrun: a whole model in every process, or shards of it (default: ddp)",
    )
    train.add_argument(
        "--accumulate",
        type=int,
        metavar="N",
        help="under torchrun: work through each process's share of a batch in N parts, which saves "
        "memory (default: 1)",
    )
    train.set_defaults(run=_train)


def _train(args) -> None:
    preset = get_preset(args.preset)
    out = args.out or runs_dir() / preset.name
    if "WORLD_SIZE" in os.environ:
        from course_lib import distributed

        how = (args.parallel or "ddp", 1 if args.accumulate is None else args.accumulate)
        run = distributed.train_all(preset, out, args.seed, args.device, *how)
    elif args.parallel or args.accumulate is not None:
        raise CourseError(
            "--parallel and --accumulate need torchrun: torchrun --standalone --nproc_per_node=2 "
            "-m course_lib train"
        )
    else:
        run = train_all(preset, out, args.seed, args.device)
    if run is None:  # not the first process: it has nothing to report
        return
    print(f"run: {run.path}  ({report(run)['seconds']['total']:.0f} s of training and measuring)")


def _report(args) -> None:
    figures = report(open_run(args.dir))
    if args.json:
        print(json.dumps(figures, indent=1))
        return
    for stage, seconds in figures["seconds"].items():
        print(f"{stage:10} {seconds:8.1f} s")
    rows = (
        ("base", "fact_completion", "continuation_share", "heldout_loss"),
        (
            "sft",
            "direct_answer_share",
            "accuracy_seen",
            "accuracy_unseen",
            "ends_turn",
            "judge_mean",
            "refusal_harmful",
        ),
        ("reward", "pair_accuracy"),
        ("rlhf", "judge_mean", "accuracy_unseen", "refusal_harmful", "refusal_harmless", "kl"),
    )
    for stage, *names in rows:
        for name in names:
            print(f"{stage + '.' + name:28} {figures[stage][name]:.3f}")


def _chat(args) -> None:
    from course_lib.chatloop import chat_loop

    chat_loop(open_run(args.dir), args.model, args.temperature, args.seed)


def _study(args) -> None:
    from course_lib import studies

    for name in args.names:
        if args.small:
            print(json.dumps(studies.run_study(name, "small"), indent=1))
        else:
            print(f"written: {studies.record(name)}")
    if not args.names:
        print("\n".join(f"{name:16} {studies.state(name)}" for name in studies.STUDIES))


if __name__ == "__main__":
    sys.exit(main())
