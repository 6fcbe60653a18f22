"""What a run says while it trains: a head, lines of updates and evaluations, on a terminal a bar."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

_SHOWN = {"kl": "kl", "text/kl": "kl of texts", "understanding/kl": "text kl", "grad_norm": "grad_norm"}
_ENTROPIES = {"entropy": "entropy", "text/entropy": "entropy of texts"}


def print_head(recipe: str, rows: Mapping[str, str]) -> None:
    """The recipe's name and a line per row, its label first."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(f"uniar-rl {version('uniar-rl')}: {recipe}", style="bold"))
    for label, line in rows.items():
        console.print(Text.assemble((f"  {label:<9}", "cyan"), line))


class RunConsole:
    """The output of the process that speaks for all; others have none.

    On a terminal updates move a bar, which shows the time left and images per second, and evaluations are lines above
    it. Elsewhere both are lines.
    """

    def __init__(self, *, speaks: bool = True, bar: bool = True, console: Console | None = None) -> None:
        """bar: whether a terminal gets one. console: where to, instead of standard output."""
        self.speaks = speaks
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        if speaks and bar and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                BarColumn(),
                TextColumn("{task.fields[said]}"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(compact=True),
                console=self._console,
                speed_estimate_period=float("inf"),  # an update may take minutes, an evaluation more
                refresh_per_second=2,
                transient=True,
            )
        self._task: TaskID | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While the run trains: whatever is printed meanwhile stands above the bar."""
        if self._bar is None:
            yield
            return
        with self._bar:
            yield

    def at(self, step: int, last: int) -> None:
        """Called where training begins and after each update."""
        if self._bar is None:
            return
        if self._task is None:
            self._task = self._bar.add_task("", total=last, completed=step, said="")
        self._bar.update(self._task, completed=step, total=max(last, step))

    def log(self, step: int, last: int, logs: Mapping[str, Any]) -> None:
        """Called with each line of metrics."""
        head = f"[{step}/{max(step, last)}]"  # max_steps may have been lowered
        if line := _evaluation_line(logs):
            self._print(f"{head}  {line}")
        elif "loss" in logs and self._bar is not None and self._task is not None:
            self._bar.update(self._task, said=_beside_the_bar(logs))
        elif "loss" in logs:
            self._print(f"{head} {_update_line(logs)}")

    def _print(self, line: str) -> None:
        if self.speaks:
            self._console.print(Text(line))
            self._console.file.flush()


def _evaluation_line(logs: Mapping[str, Any]) -> str:
    held_out = []
    if "eval_reward" in logs:
        held_out.append(f"held-out reward {logs['eval_reward']:.4f} ± {logs['eval_reward_se']:.4f}")
    if "eval_understanding/exact_match" in logs:
        exact, p_answer, p_token = (logs[f"eval_understanding/{key}"] for key in ("exact_match", "p_answer", "p_token"))
        held_out.append(f"questions: {exact:.1%} exact, P(answer) {p_answer:.3g}, per token {p_token:.3g}")
    return "  ".join(held_out)


def _update_line(logs: Mapping[str, Any]) -> str:
    """Reward (of updates that begin a rollout), KL, entropy and the seconds of each phase."""
    parts = [f"reward {logs['reward']:.4f}"] if logs.get("reward") is not None else []
    parts += [f"{name} {logs[key]:.2e}" for key, name in _SHOWN.items() if logs.get(key) is not None]
    parts += [f"{name} {logs[key]:.4f}" for key, name in _ENTROPIES.items() if logs.get(key) is not None]
    seconds = [f"{key.split('/')[1]} {value:.1f}s" for key, value in logs.items() if key.startswith("seconds/")]
    return "  ".join([*parts, "| " + " ".join(seconds)])


def _beside_the_bar(logs: Mapping[str, Any]) -> str:
    shown = {"reward": "reward {:.3f}", "kl": "kl {:.1e}", "throughput/images_per_second": "{:.3g} images/s"}
    return "  ".join(form.format(logs[key]) for key, form in shown.items() if logs.get(key) is not None)
