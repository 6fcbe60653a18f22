"""`uniar-rl plan`: what a recipe needs, and whether it fits; no GPU and no weights needed."""

import argparse

from rl.config.recipe import load_loss, load_recipe
from rl.plan.estimate import GIB, GPUS_A_MACHINE, RESERVE, RESERVED_SHARE, Plan, make_plan
from rl.plan.model_states import PHASES
from rl.plan.planned_model import planned_model
from rl.plan.simulation import Simulation
from rl.plan.summary import millions
from rl.trainer.build import load_episodes
from uniar.errors import UserError

LEVERS = (
    ("rollout.memory_budget_gb=N", "rollouts in several parts"),
    ("decode.batch_size=1", "slower decoding"),
    ("trainer.gradient_checkpointing=true", "a second forward pass"),
    ("trainer.per_device_train_batch_size=N", "smaller micro-batches; accumulate more of them"),
    ("model.reference_device=cpu", "memory of the machine for a reference, none under ZeRO-3"),
    ("rewards.0.offload=true", "a copy of a reward model per rollout"),
    ("trainer.deepspeed=configs/deepspeed/zero2.json", "communication; needs several GPUs"),
    ("trainer.deepspeed=configs/deepspeed/zero3.json", "more communication; needs several GPUs"),
    ("trainer.deepspeed=configs/deepspeed/zero3_offload.json", "much slower updates, memory of the machine"),
    ("model.lora={r: 16, alpha: 32}", "adapters are trained, not all weights"),
    ("algorithm.beta=0", "no KL term"),
)
"""what can be changed where a recipe does not fit, and its price"""


def run(arguments: argparse.Namespace) -> None:
    for name in ("gpus", "memory", "prompt_tokens"):
        if not getattr(arguments, name) > 0:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be above 0.")
    if not 0 <= arguments.reward_memory < arguments.memory:
        raise UserError(f"--reward-memory is {arguments.reward_memory}; it must be 0 or more, and below --memory.")
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    load_loss(recipe)
    load_episodes(recipe)
    simulation = Simulation(planned_model(recipe.model))
    memory = int((arguments.memory - arguments.reward_memory) * GIB)
    plan = make_plan(recipe, simulation, arguments.gpus, memory, arguments.prompt_tokens)
    print(describe(plan, arguments.recipe, arguments.memory, arguments.reward_memory))
    if not plan.fits:
        print("\nwhat lowers the peak, cheapest first; try them as overrides of this command:")
        print("\n".join(f"  {change:<58}{price}" for change, price in LEVERS))


def describe(plan: Plan, name: str, memory: float, reward_memory: float = 0.0) -> str:
    """The plan as text: the verdict first."""
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    gpus, here = f"{plan.gpus} GPU{'s' * (plan.gpus > 1)}", min(plan.gpus, GPUS_A_MACHINE)
    if plan.decoding_gpus:
        gpus += f" ({plan.decoding_gpus} of them for decoding and rewards)"
    lines = [
        f"{name} on {gpus} of {memory:g} GiB {verdict}: {plan.peak / GIB:.1f} GiB at its peak ({plan.peak_phase}), "
        f"{plan.usable / GIB:.1f} to use",
        f"model: {plan.origin}",
        f"parameters: policy {millions(plan.parameters['policy'])}, of which "
        f"{millions(plan.parameters['trained'])} trained; decoder {millions(plan.parameters['decoder'])}",
        f"an update: {plan.images_an_update} images, {plan.images_an_update * plan.bits_per_image:,} bits "
        f"({plan.bits_per_image:,} per image)",
        f"a rollout: {plan.images_a_rollout} images of {plan.prompts_a_rollout} prompts, for "
        f"{plan.updates_a_rollout} update{'s' * (plan.updates_a_rollout > 1)}",
        f"activations: {plan.kept}",
        "",
        _table(plan),
        "",
        f"kept free: {RESERVE / GIB:g} GiB for the CUDA context and NCCL, {RESERVED_SHARE:.0%} for fragmentation"
        + (f", {reward_memory:g} GiB for rewards" if reward_memory else ""),
        f"memory of the machine per process, beside Python's own: {_gib(plan.host)} GiB while it trains, "
        f"{_gib(plan.host_loading)} while it loads; {_gib(here * plan.host)} for {here} of them on one machine",
    ]
    if plan.decoding_gpus:
        verdict = "" if plan.decoding <= plan.usable else ", which DOES NOT FIT"
        lines.append(f"a GPU for decoding and rewards: {plan.decoding / GIB:.1f} GiB{verdict}")
    if plan.not_counted:
        lines.append(f"not counted, their size is not known: {', '.join(plan.not_counted)} (see --reward-memory)")
    return "\n".join(lines)


def _gib(size: int) -> str:
    """To a tenth, or where that is nothing, to one digit."""
    return f"{size / GIB:.1f}" if size >= 0.05 * GIB else f"{size / GIB:.1g}"


def _table(plan: Plan) -> str:
    phases = [phase for phase in PHASES if phase != "evaluate" or plan.part("KV caches of evaluations")]
    width = max(len(part.name) for part in plan.parts)
    unit, size = ("GiB", GIB) if plan.peak >= GIB else ("MiB", 2**20)
    rows = [f"{f'{unit} per GPU':<{width}}" + "".join(f"{phase:>10}" for phase in phases)]
    for part in plan.parts:
        cells = [f"{part.bytes / size:.2f}" if phase in part.phases else "" for phase in phases]
        rows.append(f"{part.name:<{width}}" + "".join(f"{cell:>10}" for cell in cells))
    totals = [f"{plan.held(phase) / size:.2f}" for phase in phases]
    rows.append(f"{'together':<{width}}" + "".join(f"{total:>10}" for total in totals))
    return "\n".join(row.rstrip() for row in rows)
