"""Figures of page L11c: where the roads from comparisons to a policy end."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from course_lib.plots import AMBER, BLUE, GREEN, INK, PINK, SOFT, VERMILION, legend, panels, smooth

# Road -> its name, colour and marker, everywhere on the page.
ROADS = {
    "sft": ("SFT", GREEN, "o"),
    "ppo": ("PPO", VERMILION, "D"),
    "longer": ("PPO, longer", AMBER, "v"),
    "round two": ("second round", PINK, "P"),
    "dpo": ("DPO", BLUE, "s"),
    "grpo": ("GRPO", INK, "^"),
}


def roads_map(ends: dict[str, dict], best: Sequence[dict]) -> Figure:
    """Two panels over the KL to the SFT model: the true reward, and the learned one.

    Args:
        ends: road -> its row in the record; intervals are drawn.
        best: rows of best of n, by n; a line through them, every point with its n.
    """
    figure, (left, right) = panels(4.4, 1, 2)
    truths = {n: (row["judge_mean"], *row["judge_interval"]) for n, row in ends.items()}
    proxies = {name: row["reward"] for name, row in ends.items()}
    sides = ((left, truths, "judge"), (right, proxies, "reward"))
    for ax, intervals, key in sides:
        kl = [row["kl"] for row in best]
        ax.plot(kl, [row[key][0] for row in best], ".-", color=SOFT, linewidth=1, label="best of n")
        for row in best[1:]:
            place = {"textcoords": "offset points", "color": SOFT, "fontsize": 9.5}
            ax.annotate(str(row["n"]), (row["kl"], row[key][0]), (3, -12), **place)
        for name, (mean, low, high) in intervals.items():
            label, colour, marker = ROADS[name]
            x = max(0.0, ends[name]["kl"])
            ax.plot([x, x], [low, high], color=colour, linewidth=1.2)
            ax.plot([x], [mean], marker, color=colour, markersize=7, label=label, zorder=3)
        ax.set_xlim(left=-0.1)
    left.set_title("judge's points (true)", loc="left")
    right.set_title("reward model's score", loc="left")
    figure.supxlabel("KL to the SFT model, nats a reply", fontsize=10.5, color=SOFT)
    legend(figure, "upper", 4)
    return figure


def score_paths(curves: dict[str, dict[str, Sequence[float]]], window: int = 5) -> Figure:
    """Score and KL by iteration of every road that samples: running means of `window`.

    Args:
        curves: road -> {"score": by iteration, "kl": by iteration}.
    """
    figure, axes = panels(3.4, 1, 2)
    titles = {"score": "score by its reward model", "kl": "KL, nats a reply"}
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        for name, rows in curves.items():
            label, colour, marker = ROADS[name]
            values, n = smooth(rows[key], window), len(rows[key])
            ax.plot(range(1, n + 1), values, color=colour, linewidth=1.4)
            ax.plot([n], [values[-1]], marker, color=colour, markersize=6, label=label)
        ax.set_title(title, loc="left")
        ax.set_xlabel("iteration")
    legend(figure, ncols=4)
    return figure
