"""Architecture calculator: what a configuration costs, in parameters, operations, bytes and hours.

The reader starts from a published model or from the book's own and turns its knobs. Everything is
computed in the page by the formulas of `course_lib.sizing`; the one
speed that is measured, that of the machine which built the book, comes with the page.
"""

import html
from dataclasses import dataclass
from typing import Any

import traitlets

from course_lib.errors import CourseError
from course_lib.gpt import GPTConfig
from course_lib.sizing import kv_cache_bytes, memory, parameters, training_flops, training_seconds

from .base import CourseWidget


@dataclass(frozen=True)
class Machine:
    """A machine to train on: what its maker states for dense 16-bit products, and its memory."""

    flops_per_second: float
    memory_bytes: float
    source: str


GPUS = {
    "NVIDIA T4": Machine(65e12, 16e9, "NVIDIA T4 data sheet: 65 TFLOPS FP16, 16 GB"),
    "NVIDIA A100 80 GB": Machine(312e12, 80e9, "NVIDIA A100 data sheet: 312 TFLOPS BF16, 80 GB"),
    "NVIDIA H100 SXM": Machine(
        989e12, 80e9, "NVIDIA H100 data sheet: 989 TFLOPS BF16 without sparsity, 80 GB"
    ),
}
OWN_MACHINE = "This book's machine (measured)"
# The fields of a configuration that the reader can change.
KNOBS = ("vocab_size", "context_length", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff")


class ArchitectureCalculator(CourseWidget):
    """Size and cost of a configuration.

    Args:
        configs: configurations to start from, by name; the first is shown.
        measured: operations a second that a training on this machine reached, and its memory in
            bytes; the utilisation does not apply to it.
        tokens, batch, length, bytes_per_value, utilization, machine: what the reader can set.

    Raises:
        CourseError: no configuration, or a speed that is not positive.
    """

    widget_name = "architecture_calculator"
    title = "Architecture calculator: parameters, operations, memory and time of a configuration"

    presets = traitlets.List(traitlets.Dict()).tag(sync=True)
    machines = traitlets.List(traitlets.Dict()).tag(sync=True)
    config = traitlets.Dict().tag(sync=True)
    preset = traitlets.Int(0).tag(sync=True)
    machine = traitlets.Int(0).tag(sync=True)
    tokens = traitlets.Float(1e9).tag(sync=True)
    utilization = traitlets.Float(0.4).tag(sync=True)
    batch = traitlets.Int(8).tag(sync=True)
    length = traitlets.Int(128).tag(sync=True)
    bytes_per_value = traitlets.Int(2).tag(sync=True)

    def __init__(
        self, configs: dict[str, GPTConfig], measured: tuple[float, float], **state: Any
    ) -> None:
        if not configs:
            raise CourseError("configs is empty: give at least one configuration to start from")
        if min(measured) <= 0:
            raise CourseError(f"measured: speed and memory must be positive, not {measured}")
        presets = [{"name": name, **config.to_dict()} for name, config in configs.items()]
        machines = [
            {"name": OWN_MACHINE, "flops": measured[0], "memory": measured[1], "measured": True}
        ]
        machines += [
            {"name": name, "flops": m.flops_per_second, "memory": m.memory_bytes, "measured": False}
            for name, m in GPUS.items()
        ]
        start = {key: value for key, value in presets[0].items() if key != "name"}
        super().__init__(presets=presets, machines=machines, config=start, **state)

    def fallback_html(self) -> str:
        """The first configuration's numbers on the first machine."""
        config, machine = GPTConfig(**self.config), self.machines[self.machine]
        flops = training_flops(config, self.tokens, self.length)
        share = 1.0 if machine["measured"] else self.utilization
        seconds = training_seconds(flops, machine["flops"], share)
        held = sum(memory(config, self.batch, self.length, self.bytes_per_value).values())
        cache = kv_cache_bytes(config, self.length, 1, self.bytes_per_value)
        rows = [(name, f"{n:,}") for name, n in parameters(config).items()]
        rows += [("all parameters", f"{sum(parameters(config).values()):,}")]
        rows += [("operations to train", f"{flops:.2e}"), ("hours", f"{seconds / 3600:.3g}")]
        rows += [("bytes to train", f"{held:,}"), ("bytes of one KV cache", f"{cache:,}")]
        body = "".join(
            f'<tr><th scope="row">{html.escape(name)}</th><td class="cw-number">{value}</td></tr>'
            for name, value in rows
        )
        caption = html.escape(f"{self.presets[self.preset]['name']}, {self.tokens:.3g} tokens")
        return f"<table><caption>{caption}</caption><tbody>{body}</tbody></table>"
