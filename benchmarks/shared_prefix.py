"""What it saves that the samples of a prompt share it when they are replayed, on UniAR-Tiny in float32.

    python benchmarks/shared_prefix.py
    python benchmarks/shared_prefix.py --prompts data/shapes/edits_train.jsonl
    python benchmarks/shared_prefix.py --prompts data/shapes/questions_train.jsonl --episode answer

(`uniar-rl prompts --output data/shapes --train 0 --held-out 0 --questions 6000 --edits 2000` makes the files of the
last two.) Groups of samples are drawn or written, and replayed with gradient, with guidance as the quickstart has it:
each in a row of its own, and packed behind the prefix that they share (uniar/shared_prefix.py). Both take turns; the
least of the repeats counts. What is computed is compared too.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

# The folder of this script comes first, where rewards.py would be taken for the package.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from rl.config.recipe import load_recipe  # noqa: E402
from rl.data.prompts import load_prompts  # noqa: E402
from rl.policy.play import play  # noqa: E402
from rl.policy.replay import Branch  # noqa: E402
from rl.policy.samples import DrawSettings, Sample  # noqa: E402
from rl.policy.turns import Pictures, Turn, joined  # noqa: E402
from uniar.checkpoint import load_processor  # noqa: E402
from uniar.modeling_uniar import UniARForConditionalGeneration  # noqa: E402

ROOT = Path(__file__).parent.parent
TINY = ROOT / "assets" / "uniar-tiny"


def alone(branch: Branch | None) -> Branch | None:
    """The same without a word of what its rows share."""
    return None if branch is None else replace(branch, prefixes=None)


def alone_in_rows(turns: Turn) -> Turn:
    if isinstance(turns, Pictures):
        return replace(turns, prompt=alone(turns.prompt), unconditional=alone(turns.unconditional))
    return replace(turns, prompt=alone(turns.prompt))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", default=str(ROOT / "configs/prompts/shapes/train.jsonl"))
    parser.add_argument("--episode", default="draw", choices=["draw", "answer"])
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8, help="of a group, default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = load_recipe(ROOT / "configs/quickstart.yaml", [f"rollout.episodes={{default: {arguments.episode}}}"])
    model = UniARForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32, attn_implementation="eager")
    model.set_trainable(text=arguments.episode == "answer")
    records = load_prompts(arguments.prompts)[: arguments.groups]
    samples = [Sample(record, number) for record in records for number in range(arguments.samples)]
    with torch.no_grad():
        played = play(model, load_processor(TINY), samples, DrawSettings.for_training(recipe))
    packed = joined([one.turns[0] for one in played])
    guidance = recipe.rollout.guidance_settings

    def passed(turns: Turn) -> tuple[float, Tensor, Tensor]:
        """Seconds of a forward and backward pass, what was found, and the gradient."""
        model.zero_grad()
        start = time.perf_counter()
        if isinstance(turns, Pictures):
            found = guidance.policy_gap(turns.replay(model, guidance))
        else:
            found = turns.replay(model, 1.0).log_probs
        (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum().backward()
        seconds = time.perf_counter() - start
        gradient = torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])
        return seconds, found.detach(), gradient

    ways = {"in rows of their own": alone_in_rows(packed), "sharing": packed}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    made = {}
    for repeat in range(arguments.repeats + 1):
        for name, turns in ways.items():
            taken, *made[name] = passed(turns)
            if repeat:  # not the first, which warms up
                seconds[name].append(taken)
    rows, width = packed.prompt.input_ids.shape
    tail = packed.bits.shape[1] if isinstance(packed, Pictures) else packed.tokens.shape[1]
    (apart, its_gradient), (together, gradient) = made.values()
    print(f"{rows} samples of {len(records)} prompts, prefixes of {width - tail} positions and {tail} behind them")
    for name, taken in seconds.items():
        print(f"{name}: {min(taken):.2f} s")
    ratio = min(seconds["in rows of their own"]) / min(seconds["sharing"])
    print(f"times as fast: {ratio:.2f}")
    print(f"differ by {(apart - together).abs().max():.1e} of {apart.abs().max():.1f} at most")
    print(f"gradients by {(gradient - its_gradient).norm() / its_gradient.norm():.1e} of their norm")


if __name__ == "__main__":
    main()
