"""What a recipe needs: parameters, images per step, and memory by part and phase, computed from config files alone.

Weights, gradients, optimizer states and caches are exact sums. Activations come from running the model's own code on
the meta device. What no sum shows (the CUDA context, NCCL's buffers, workspaces, fragmentation) is kept in reserve.
Bytes are those of one GPU; all GPUs hold the same.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from rl.config import checkpointing
from rl.config.checks import check_batches
from rl.config.evaluation_sets import sets_of
from rl.config.sections import Recipe
from rl.plan.caches import cache_parts, evaluation_caches, largest, text_cache_parts
from rl.plan.model_states import PHASES, ModelStates, Part
from rl.plan.reward_sizes import RewardSizes
from rl.plan.simulation import Simulation, turns_of
from rl.policy.loading import base_model
from uniar.errors import UserError
from uniar.placement import DTYPES
from uniar.processing import check_size

GIB = 2**30
RESERVE = 2 * GIB
RESERVED_SHARE = 0.05
GPUS_A_MACHINE = 8
PREFIX = 128
"""positions before the drawn tokens, for prompts of about 100 tokens; an image to edit adds its own"""
ANSWER = 32
"""tokens of an answer of the text-KL term; the question and its picture are taken to be as long as a prompt and a
drawing"""


@dataclass(frozen=True)
class Plan:
    """The figures of a recipe on `gpus` GPUs of `memory` bytes; parts and phases are those of a GPU that trains."""

    gpus: int
    memory: int
    origin: str
    """where the sizes come from"""
    parameters: dict[str, int]
    """of `policy`, `trained` among them, and of `decoder`"""
    parts: tuple[Part, ...]
    bits_per_image: int
    images_an_update: int
    images_a_rollout: int
    prompts_a_rollout: int
    updates_a_rollout: int
    states: ModelStates
    host: int
    """bytes that one process keeps in the machine's memory"""
    host_loading: int
    """and while it loads models"""
    decoding_gpus: int
    """of `gpus`, those that decode and score and do not train (decode.processes)"""
    decoding: int
    """bytes on one of them"""
    not_counted: tuple[str, ...]
    """rewards whose size is not known here"""
    layers: int
    """of backbone and visual decoder"""
    kept_layers: int
    """of how many of them activations are kept for the backward pass"""
    none_because: str = ""
    """why `auto` keeps those of none"""

    def held(self, phase: str) -> int:
        """Bytes on a GPU in this phase."""
        return sum(part.bytes for part in self.parts if phase in part.phases)

    @property
    def peak_phase(self) -> str:
        return max(PHASES, key=self.held)

    @property
    def peak(self) -> int:
        return self.held(self.peak_phase)

    @property
    def most(self) -> int:
        """Bytes on the GPU that holds most, be it one that trains or one that decodes."""
        return max(self.peak, self.decoding)

    @property
    def usable(self) -> int:
        return int((self.memory - RESERVE) * (1 - RESERVED_SHARE))

    @property
    def fits(self) -> bool:
        return self.most <= self.usable

    @property
    def kept(self) -> str:
        """In which layers activations are kept, in words."""
        if self.kept_layers == self.layers:
            return f"kept in all {self.layers} layers"
        if self.kept_layers:
            return f"kept in {self.kept_layers} of {self.layers} layers, computed again in the others"
        return f"kept in none of {self.layers} layers" + (f" ({self.none_because})" if self.none_because else "")

    def part(self, name: str) -> int:
        """Bytes of one part; 0 where the recipe has none."""
        return sum(part.bytes for part in self.parts if part.name == name)


def make_plan(recipe: Recipe, simulation: Simulation, gpus: int, memory: int, prefix: int = PREFIX) -> Plan:
    """The plan of a recipe whose model is that of `simulation`. `memory`: bytes of one GPU. Where
    trainer.gradient_checkpointing is auto, the plan's `kept_layers` are what it comes to.

    Raises UserError for a recipe that cannot run on so many GPUs, whatever their memory.
    """
    if checkpointing.asked(recipe.trainer) == checkpointing.AUTO:
        return _fullest(recipe, simulation.layers(recipe), lambda one: make_plan(one, simulation, gpus, memory, prefix))
    model, total, decoders = simulation.model, gpus, recipe.decode.processes * -(-gpus // GPUS_A_MACHINE)
    if 2 * decoders > gpus:
        raise UserError(
            f"decode.processes {recipe.decode.processes} per machine leaves {max(0, gpus - decoders)} of {gpus} GPUs "
            "to train on; as many must train as decode."
        )
    gpus -= decoders
    prompts = check_batches(recipe, gpus)
    vision = model.config.vision_config
    rollout, decode, trainer = recipe.rollout, recipe.decode, recipe.trainer
    check_size(rollout.height, rollout.width, vision.pixels_per_token, "rollout.")
    tokens = (rollout.height // vision.pixels_per_token) * (rollout.width // vision.pixels_per_token)
    bits = tokens * math.prod(vision.code_shape)
    micro = trainer.get("per_device_train_batch_size", 8)
    accumulation = trainer.get("gradient_accumulation_steps", 1)
    generation = trainer.get("steps_per_generation") or accumulation
    share = micro * generation
    policy = simulation.policy(recipe)
    states = ModelStates.of(recipe, policy, model.config.text_config.hidden_size)
    decoder = Decoder.of(*simulation.decoder(DTYPES[decode.dtype or recipe.model.dtype]), policy)
    rewards = RewardSizes.of(recipe)

    draws_both, turns = rollout.guidance_settings.convention.draws_unconditional, turns_of(recipe)
    parts = [
        *states.parts(gpus),
        *states.reference_parts(gpus),
        Part("averaged weights", states.average_bytes(gpus) if states.average == "gpu" else 0),
    ]
    caches, replays = [], [0]
    # All turns of a sample wait for one backward pass. A later picture is taken to be drawn behind the earlier ones.
    if pictures := turns["picture"]:
        before = prefix + (pictures - 1) * tokens
        parts += [
            Part("rollout data", pictures * rollout_bytes(recipe, share, bits, generation > accumulation)),
            Part("activations", simulation.update(recipe, micro, prefix, tokens), frozenset({"update"})),
        ]
        alike = rollout.samples_per_prompt if pictures == 1 else 1
        caches.append(cache_parts(recipe, policy, share, alike, before, tokens, draws_both, "rollout"))
        replays += [simulation.replay(asked, micro, before, tokens) for asked in (recipe, *_as_experts(recipe))]
    if texts := turns["text"]:
        # A conversation is taken to be as long as a prompt and the pictures before it, or one that came with it.
        before, longest = prefix + max(1, pictures) * tokens, rollout.max_new_tokens
        written = simulation.written(recipe, micro, before, longest)
        parts += [
            Part("texts", texts * share * longest * token_bytes(recipe, policy)),
            Part("text activations", written, frozenset({"update"})),
        ]
        if states.reference_leaves and _compares_vocabularies(recipe):
            parts.append(Part("output layer of the reference", _output_bytes(policy)))
        caches.append(text_cache_parts(recipe, policy, share, before, "rollout"))
        replays.append(simulation.written(recipe, micro, before, longest, gradient=False))
    parts += largest(caches)
    parts.append(Part("replay activations", max(replays), frozenset({"replay"})))
    if recipe.understanding.kl_beta:
        asked = math.ceil(recipe.understanding.kl_questions_per_update / (gpus * accumulation))
        kept = simulation.text(recipe, asked, prefix + tokens + ANSWER, ANSWER)
        parts.append(Part("text-KL activations", kept, frozenset({"update"})))
    evaluated = [one for one in sets_of(recipe).values() if one.evaluate.prompts is not None]
    if evaluated:
        parts += largest([evaluation_caches(one, policy, prefix, vision.pixels_per_token) for one in evaluated])
        if recipe.evaluate.ema:  # the average takes the place of the policy's own weights, which wait beside it
            aside = states.trained_bytes // gpus
            parts.append(Part("policy weights set aside", aside, frozenset({"evaluate", "decode"})))
    scoring = [
        Part("reward models", rewards.always),
        Part("offloaded reward models", rewards.scoring, frozenset({"decode"})),
    ]
    if decode.device == "gpu":
        scoring.append(Part("decoder", decoder.weights))
        working = simulation.decode(recipe, min(decode.batch_size, share))
        if recipe.evaluate.sets:  # which may be larger
            working = max(working, *(simulation.decode(one, decode.batch_size) for one in evaluated))
        scoring.append(Part("decoding", working, frozenset({"decode"})))
    if not decoders:
        parts += scoring
    host = states.host(gpus)
    # Weights of the files' type stay in the files, which are mapped; others are converted in memory.
    mapped = model.is_stored_as(DTYPES[recipe.model.dtype])
    if not decoders:
        host += rewards.host + (0 if decode.device == "gpu" else decoder.weights)
    return Plan(
        gpus=total,
        memory=memory,
        origin=model.origin,
        parameters={**states.counts, "decoder": decoder.parameters},
        parts=tuple(part for part in parts if part.bytes),
        bits_per_image=bits,
        images_an_update=micro * accumulation * gpus,
        images_a_rollout=share * gpus,
        prompts_a_rollout=prompts,
        updates_a_rollout=max(1, generation * recipe.algorithm.num_iterations // accumulation),
        states=states,
        host=host,
        host_loading=host + (0 if mapped else states.whole * (1 + states.has_reference + states.experts)),
        decoding_gpus=decoders,
        decoding=sum(part.bytes for part in scoring) if decoders else 0,
        not_counted=rewards.unknown,
        layers=simulation.layers(recipe),
        kept_layers=simulation.kept_layers(recipe),
    )


def _fullest(recipe: Recipe, layers: int, plan_of: Callable[[Recipe], Plan]) -> Plan:
    """The plan in which the activations of as many of so many layers are kept as fit.

    Of none where the plan leaves something out that may need what is left.
    """
    least = plan_of(checkpointing.keeping(recipe, 0))
    if because := _left_out(recipe, least):
        return replace(least, none_because=because)
    if (most := plan_of(checkpointing.keeping(recipe, layers))).fits:
        return most
    kept = bisect_right(
        range(1, layers), False, key=lambda layers: not plan_of(checkpointing.keeping(recipe, layers)).fits
    )
    if kept == 0:
        return replace(least, none_because="no memory is left")
    return plan_of(checkpointing.keeping(recipe, kept))


def _left_out(recipe: Recipe, plan: Plan) -> str:
    """What a recipe's plan guesses or leaves out, in a few words; empty where it is complete."""
    if plan.not_counted:
        return f"the size of {', '.join(plan.not_counted)} is not known"
    if any(name != "draw" for name in recipe.rollout.episodes.values()):
        return "episodes other than draw may write, and draw from pictures or in any size"
    if recipe.understanding.kl_beta:
        return "pictures of understanding.kl_questions may be of any size"
    return ""


@dataclass(frozen=True)
class Decoder:
    """The SD3 decoder as it stays in memory: without its text encoders, whose embedding of the constant prompt is kept
    from the first start on (uniar/prompt_embedding.py)."""

    parameters: int
    weights: int
    """bytes, the table of position embeddings included"""

    @classmethod
    def of(cls, transformer: nn.Module, vae: nn.Module, policy: nn.Module) -> "Decoder":
        # bsq_encoder/ is the policy's vision tower once more.
        towers = [base_model(policy).model.visual, transformer, vae]
        parameters = sum(parameter.numel() for tower in towers for parameter in tower.parameters())
        buffers = sum(buffer.numel() for buffer in transformer.buffers())
        return cls(parameters, (parameters + buffers) * transformer.dtype.itemsize)


def _as_experts(recipe: Recipe) -> list[Recipe]:
    """The recipe with the guidance of each expert, or of the reference, which replays as such a policy would."""
    own = recipe.rollout.guidance_settings
    rollouts = [
        replace(recipe.rollout, guidance=one.name, guidance_scale=one.scale)
        for one in recipe.expert_guidance.values()
        if one.convention != own.convention
    ]
    return [replace(recipe, rollout=rollout) for rollout in rollouts]


def rollout_bytes(recipe: Recipe, samples: int, bits: int, several_updates: bool) -> int:
    """What is kept of a rank's samples until they are trained on: bits (a byte each) and float32 gaps, of the rollout,
    of the reference or an expert, and of the old policy where a rollout serves several updates."""
    convention, algorithm = recipe.rollout.guidance_settings.convention, recipe.algorithm
    drawn, replayed = 1 + convention.draws_unconditional, 1 + convention.replays_unconditional
    experts = recipe.expert_guidance.values()
    compared = max((1 + one.convention.replays_unconditional for one in experts), default=replayed)
    several_updates = several_updates or algorithm.num_iterations > 1
    old = replayed * (several_updates and algorithm.old_logp == "replay")
    return samples * bits * (1 + 4 * (drawn + compared * (algorithm.beta > 0) + old))


def token_bytes(recipe: Recipe, policy: nn.Module) -> int:
    """What is kept of a written token: itself, whether it counts, its log-probabilities, and for the exact KL
    divergence the state from which the reference predicts it."""
    model = base_model(policy)
    state = model.config.text_config.hidden_size * model.dtype.itemsize
    return 8 + 1 + 3 * 4 + _compares_vocabularies(recipe) * state


def _compares_vocabularies(recipe: Recipe) -> bool:
    text = recipe.algorithm.text_loss_settings
    return text.beta > 0 and text.kl == "exact"


def _output_bytes(policy: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in base_model(policy).lm_head.parameters())
