"""KL browser: what PPO does to true and learned reward at each price of KL, in real runs.

The reader picks a reward model and one of the prices that were measured, sees both rewards against
KL on the way from the SFT model, and reads what that run answers. Nothing is computed here and
nothing lies between the measured prices: all of it is in the record of the study
(`course_lib/studies/overoptimization.py`).
"""

import html
from typing import Any

import traitlets

from course_lib.errors import CourseError

from .base import CourseWidget

MEASURED = ("step", "kl", "proxy", "judge")


def ppo_paths(study: dict) -> list[dict]:
    """The PPO runs of the study, each from the SFT model (step 0) to its end.

    Returns:
        Rows with `reward`, `kl_coef` and `path`: step, KL, and for both rewards mean, low, high.
    """
    paths = []
    for run in (run for run in study["runs"] if run["method"] == "PPO"):
        start = {"step": 0} | study["start"][run["reward"]]
        end = {"step": study["iterations"]} | run["end"]
        path = [{name: point[name] for name in MEASURED} for point in (start, *run["path"], end)]
        paths.append({"reward": run["reward"], "kl_coef": run["kl_coef"], "path": path})
    return paths


def rounded(value: Any) -> Any:
    """Plain data with the four digits after the point that a record has: more would be noise."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, list):
        return [rounded(x) for x in value]
    return {k: rounded(v) for k, v in value.items()} if isinstance(value, dict) else value


class KLBrowser(CourseWidget):
    """The recorded PPO runs by reward model and price of KL.

    Args:
        study: the results of the study "overoptimization".
        reward, kl_coef, prompt: where the reader is (`prompt` numbers the samples); synchronised
            both ways.

    Raises:
        CourseError: a reward model, price or prompt that the study does not have.
    """

    widget_name = "kl_browser"
    title = "KL browser: true and learned reward of measured PPO runs"

    runs = traitlets.List(traitlets.Dict()).tag(sync=True)
    before = traitlets.Dict().tag(sync=True)
    usual = traitlets.Float().tag(sync=True)
    reward = traitlets.Unicode().tag(sync=True)
    kl_coef = traitlets.Float().tag(sync=True)
    prompt = traitlets.Int(0).tag(sync=True)

    def __init__(self, study: dict, *, key: str = "", **state: Any) -> None:
        ends = [run["end"] for run in study["runs"] if run["method"] == "PPO"]
        runs = [
            path | {"samples": end["samples"]}
            for path, end in zip(ppo_paths(study), ends, strict=True)
        ]
        given = {
            "runs": rounded(runs),
            "before": {name: rounded(row["samples"]) for name, row in study["start"].items()},
            "usual": study["kl_coef"],
            "reward": runs[0]["reward"],
            "kl_coef": runs[0]["kl_coef"],
        }
        super().__init__(key=key, **(given | state))
        self._check()

    def _check(self) -> None:
        measured = [(run["reward"], run["kl_coef"]) for run in self.runs]
        n = len(self.before[self.runs[0]["reward"]])
        if (self.reward, self.kl_coef) not in measured or not 0 <= self.prompt < n:
            raise CourseError(
                f"no run with reward model {self.reward!r}, kl_coef {self.kl_coef} and prompt "
                f"{self.prompt}: choose from {measured} and prompts 0 to {n - 1}"
            )

    def fallback_html(self) -> str:
        """Where each run with the chosen reward model ended."""
        rows = []
        for run in self.runs:
            if run["reward"] != self.reward:
                continue
            end = run["path"][-1]
            values = (end["kl"], end["proxy"][0], end["judge"][0])
            cells = "".join(f'<td class="cw-number">{value:.2f}</td>' for value in values)
            rows.append(f'<tr><th scope="row">{run["kl_coef"]:g}</th>{cells}</tr>')
        heads = ("price of KL", "KL, nats a reply", "score", "judge’s points")
        return (
            f"<table><caption>PPO against the reward model “{html.escape(self.reward)}”</caption>"
            f"<thead><tr>{''.join(f'<th scope=col>{head}</th>' for head in heads)}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>"
        )
