"""`uniar-rl plan` against what a small model on a CPU really holds, and on the released size without its weights."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.planned_recipes import plan_of, planned_settings, recipe_of, simulation_of
from support.tiny_detector import tiny_config
from transformers import Mask2FormerForUniversalSegmentation

from rewards.geneval.reward import GenEval
from rl.algorithm.guidance import GuidanceSettings
from rl.algorithm.losses import LossInputs, policy_loss
from rl.checkpoint.tensor_files import TensorFiles, write_like
from rl.commands.plan import describe
from rl.config.recipe import recipe_from_mapping
from rl.data.questions import QuestionRecord
from rl.plan.estimate import GIB, RESERVE, Plan
from rl.plan.memory import Measured, PeakBytes, fused_rms_norm
from rl.plan.model_states import ZeroSettings
from rl.plan.reward_sizes import RELEASED_DETECTORS
from rl.plan.simulation import checkpoint_layers
from rl.policy.loading import load_policy, trainable
from rl.policy.replay import Branch, replay
from rl.policy.text_kl import TextKL
from rl.train import train
from rl.trainer.extensions.ema import WeightAverage
from rl.trainer.trainer import UniARTrainer
from uniar import generation
from uniar.conversations import Message, encode_turns
from uniar.engine.steps import Steps
from uniar.errors import UserError
from uniar.processing import build_visual_prompt

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden" / "bsq8" / "ckpt"


@pytest.fixture
def settings(nano_checkpoint, tmp_path) -> dict:
    return planned_settings(nano_checkpoint, tmp_path)


@pytest.fixture
def fused_norms(monkeypatch) -> None:
    """Norms that keep what a GPU's do; torch writes out their steps on a CPU."""
    monkeypatch.setattr(torch.nn.functional, "rms_norm", fused_rms_norm)


# Against real tensors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [{}, {"lora": {"r": 4}, "dtype": "bfloat16", "ema": {}}],
    ids=["full, float32", "LoRA, bfloat16, averaged"],
)
def test_weights_gradients_optimizer_and_reference_are_exact(settings, monkeypatch, model):
    trainers, gradients = [], []

    class Watched(UniARTrainer):
        def training_step(self, *args, **kwargs):
            trainers.append(self)
            loss = super().training_step(*args, **kwargs)
            gradients.append(sum(p.grad.nbytes for p in self.model.parameters() if p.grad is not None))
            return loss

    monkeypatch.setattr("rl.train.UniARTrainer", Watched)
    recipe = recipe_of(settings, model=model)
    train(recipe)
    trainer, plan = trainers[0], plan_of(recipe)
    assert plan.part("policy weights") == sum(p.nbytes for p in trainer.model.parameters())
    assert plan.part("gradients") == gradients[0] > 0
    states = [t for state in trainer.optimizer.state.values() for name, t in state.items() if name != "step"]
    assert plan.part("optimizer") == sum(state.nbytes for state in states) > 0
    assert plan.parameters["trained"] == sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    if not model:
        assert plan.part("reference") == sum(p.nbytes for p in trainer.reference.model.parameters())
    assert plan.part("averaged weights") == sum(
        average.slices.bytes for average in trainer.stateful_callbacks if isinstance(average, WeightAverage)
    )
    decoder = trainer.step.scorer.decoder
    held = [*decoder.parameters(), *decoder.sd3_transformer.buffers()]
    assert plan.part("decoder") == sum(tensor.nbytes for tensor in held)


@pytest.mark.parametrize("guidance_scale", [None, 2.0])
def test_caches_are_exact(settings, nano_model, nano_processor, monkeypatch, guidance_scale):
    prompt = build_visual_prompt(["a red circle"], nano_model, nano_processor, height=64, width=64, unconditional=True)
    held = []

    class Watched(Steps):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            held.append(sum(tensor.nbytes for tensor in (*self.keys, *self.values)))

    monkeypatch.setattr(generation, "Steps", Watched)
    noise = generation.draw_noise(range(4), prompt.new_tokens, nano_model.config.vision_config.code_shape)
    with PeakBytes(nano_model.parameters()) as measured:
        generation.rollout(nano_model, prompt, noise, guidance_scale=guidance_scale, return_gaps=True)
    guided = guidance_scale is not None
    rollout = {"guidance": "guided", "guidance_scale": 2.0} if guided else {}
    plan = plan_of(recipe_of(settings, rollout=rollout), prefix=prompt.input_ids.shape[1])
    assert plan.part("KV caches") == held[0]
    # The engine's own account of a sample is from above, and here one prompt serves all four.
    assert 0.5 * plan.held("rollout") < plan.held("rollout") - (
        plan.part("KV caches") + plan.part("engine buffers") - measured.peak
    )
    assert measured.peak <= plan.part("KV caches") + plan.part("engine buffers")


@pytest.mark.parametrize("checkpointing", [True, False, {"keep_layers": 2}])
@pytest.mark.parametrize(("guidance", "pictures"), [("none", 1), ("guided", 1), ("none", 2)])
def test_activations_within_15_percent(
    settings, nano_checkpoint, nano_processor, fused_norms, guidance, pictures, checkpointing
):
    rollout = {"guidance": guidance, "guidance_scale": 1.0 if guidance == "none" else 2.0}
    rollout["episodes"] = {"default": "draw" if pictures == 1 else "draw_check_redraw"}
    recipe = recipe_of(settings, rollout=rollout, trainer={"gradient_checkpointing": checkpointing})
    model = trainable(load_policy(recipe.model, nano_checkpoint), None).train()
    checkpoint_layers(model, simulation_of(recipe.model).kept_layers(recipe))
    policy = GuidanceSettings(guidance, rollout["guidance_scale"])
    prompts = ["a red circle on a large blue table"] * 4
    prompt = build_visual_prompt(prompts, model, nano_processor, height=64, width=64, unconditional=True)
    rows, image_token = [0] * 4 if pictures == 1 else range(4), model.config.image_token_id
    unconditional = Branch.of(prompt.unconditional, rows, image_token) if guidance == "guided" else None
    shape = (4, prompt.new_tokens, *model.config.vision_config.code_shape)
    bits = torch.randint(0, 2, shape, dtype=torch.uint8)
    with Measured(model) as measured:
        losses = []
        for _ in range(pictures):
            gaps = replay(model, bits, Branch.of(prompt, rows, image_token), unconditional, policy)
            gap = policy.policy_gap(gaps)
            inputs = LossInputs(bits=bits, gap=gap, ref_gap=torch.zeros(shape), advantages=torch.ones(4))
            losses.append(policy_loss(inputs, recipe.algorithm.loss_settings)[0])
        del gaps, gap, inputs
        sum(losses).backward()
    planned = plan_of(recipe, prefix=prompt.input_ids.shape[1]).part("activations")
    assert planned == pytest.approx(measured.peak, rel=0.15)


def test_decoding_within_15_percent(settings, nano_decoder):
    recipe = recipe_of(settings, decode={"batch_size": 3})
    bits = torch.randint(0, 2, (3, 4, *nano_decoder.bsq_encoder.config.code_shape), dtype=torch.uint8)
    with Measured(nano_decoder) as measured:
        nano_decoder.decode(bits, 64, 64, 1.0, num_inference_steps=1, guidance_scale=1.0, output_type="pt")
    assert plan_of(recipe).part("decoding") == pytest.approx(measured.peak, rel=0.15)


@pytest.mark.parametrize(
    ("model", "at_once", "phase"),
    [({}, 8, "decode"), ({}, 1, "update"), ({"lora": {"r": 4}}, 8, "decode")],
    ids=["full", "full, decoded singly", "LoRA"],
)
def test_the_peak_of_an_update_within_15_percent(settings, monkeypatch, fused_norms, model, at_once, phase):
    """Everything at once: drawing, decoding, the reference and the update of a run, whichever holds most."""
    held, prefixes = [], []

    class Watched(UniARTrainer):
        def _compute_loss(self, model, inputs):
            rows = inputs["forwards"][0].rows()
            prefixes.append(rows.prompt.input_ids.shape[1] - rows.bits.shape[1])
            return super()._compute_loss(model, inputs)

        def training_step(self, *args, **kwargs):
            decoder = self.step.scorer.decoder
            modules = [self.model, decoder.sd3_transformer, decoder.vae, decoder.bsq_encoder]
            modules += [self.reference.model] if hasattr(self.reference, "model") else []
            weights = [tensor for m in modules for tensor in (*m.parameters(), *m.buffers())]
            with PeakBytes(weights) as measured:
                loss = super().training_step(*args, **kwargs)
            storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in weights}
            held.append(measured.peak + sum(storages.values()))
            return loss

    monkeypatch.setattr("rl.train.UniARTrainer", Watched)
    rollout, trainer = {"samples_per_prompt": 16}, {"per_device_train_batch_size": 16}
    recipe = recipe_of(settings, model=model, rollout=rollout, trainer=trainer, decode={"batch_size": at_once})
    train(recipe)
    plan = plan_of(recipe, prefix=prefixes[0])
    optimizer = plan.part("optimizer")  # made after the first update
    assert plan.peak_phase == phase
    assert plan.peak - optimizer == pytest.approx(held[0], rel=0.15)


def test_export_holds_one_shard_at_a_time(nano_checkpoint, tmp_path):
    source = TensorFiles(nano_checkpoint)
    whole, largest = (f(tensor.bytes for tensor in source.stored.values()) for f in (sum, max))
    with PeakBytes() as measured:
        write_like(nano_checkpoint, source, tmp_path, 2 * largest)
    assert measured.peak <= 3 * largest
    assert whole > 7 * largest


def test_peak_is_what_is_held_together():
    there = torch.zeros(1000)
    with PeakBytes([there]) as measured:
        one = there + 1
        del one
        two = there.view(10, 100)[2:] + 1
        three = two * 2
    assert measured.held == two.nbytes + three.nbytes == 6400
    assert measured.peak == 6400
    del two, three
    assert measured.held == 0


# Sums ----------------------------------------------------------------------------------------------------------------


def test_zero_settings_are_deepspeeds():
    defaults = ZeroSettings.of({"zero_optimization": {"stage": 2}}, 64)
    assert (defaults.stage, defaults.bucket, defaults.buckets) == (2, 500_000_000, 1)
    shipped = {
        file.stem: ZeroSettings.of(json.loads(file.read_text()), 64) for file in (ROOT / "configs/deepspeed").iterdir()
    }
    assert shipped["zero2"].buckets == 2
    assert (shipped["zero3"].stage, shipped["zero3"].bucket) == (3, 64**2)
    assert shipped["zero3_offload"].optimizer_on_cpu
    assert shipped["zero3_offload"].weights_on_cpu
    assert ZeroSettings.of(None, 64) == ZeroSettings()


def test_gpus_share_what_zero_shards(settings):
    def plan(gpus: int, stage: int) -> Plan:
        deepspeed = {"zero_optimization": {"stage": stage}} if stage else None
        return plan_of(recipe_of(settings, trainer={"deepspeed": deepspeed}), gpus)

    for name, first_stage in {"optimizer": 2, "gradients": 2, "policy weights": 3, "reference": 3}.items():
        for stage in (0, 2, 3):
            shared = plan(4, stage).part(name) == pytest.approx(plan(1, stage).part(name) / 4, rel=0.01)
            assert shared == (stage >= first_stage), (name, stage)
    assert plan(4, 0).part("DDP buckets") > 0 == plan(1, 0).part("DDP buckets")
    assert plan(4, 3).part("gathered policy") == plan(1, 0).part("policy weights")


def test_images_and_bits_a_step(settings):
    trainer = {"gradient_accumulation_steps": 2, "steps_per_generation": 4}
    plan = plan_of(recipe_of(settings, trainer=trainer, algorithm={"num_iterations": 3}), gpus=2)
    assert plan.images_an_update == 4 * 2 * 2
    assert (plan.images_a_rollout, plan.prompts_a_rollout, plan.updates_a_rollout) == (32, 8, 6)
    assert plan.bits_per_image == 4 * 3 * 4 * 8
    with pytest.raises(UserError, match="does not divide the 3 samples"):
        plan_of(recipe_of(settings, trainer={"per_device_train_batch_size": 3}))


def test_what_is_placed_on_the_cpu_leaves_the_gpu(settings):
    on_gpu = plan_of(recipe_of(settings))
    moved = plan_of(recipe_of(settings, model={"reference_device": "cpu"}, decode={"device": "cpu"}))
    assert moved.part("decoder") == moved.part("decoding") == 0
    assert on_gpu.held("rollout") - moved.held("rollout") == on_gpu.part("reference") + on_gpu.part("decoder")
    assert moved.host == on_gpu.part("reference") + on_gpu.part("decoder")
    assert on_gpu.host == 0


def test_gpus_that_decode_leave_the_others_alone(settings):
    together = plan_of(recipe_of(settings), gpus=6)
    apart = plan_of(recipe_of(settings, decode={"processes": 2}), gpus=8)
    assert (apart.gpus, apart.decoding_gpus) == (8, 2)
    assert apart.images_an_update == together.images_an_update
    assert apart.part("decoder") == apart.part("decoding") == together.decoding == 0
    assert apart.decoding == together.part("decoder") + together.part("decoding")
    assert plan_of(recipe_of(settings, decode={"processes": 2}), gpus=16).decoding_gpus == 4
    with pytest.raises(UserError, match=r"decode\.processes 1 per machine leaves 0 of 1 GPUs to train on"):
        plan_of(recipe_of(settings, decode={"processes": 1}), gpus=1)


def test_a_gpu_that_decodes_may_be_what_does_not_fit(settings):
    recipe = recipe_of(settings, decode={"processes": 1, "batch_size": 64}, trainer={"per_device_train_batch_size": 64})
    roomy = plan_of(recipe, gpus=2)
    assert roomy.decoding > roomy.peak
    memory = RESERVE + int((roomy.decoding + roomy.peak) / 2 / 0.95)
    plan = plan_of(recipe, gpus=2, memory=memory)
    assert not plan.fits
    assert "GiB, which DOES NOT FIT" in describe(plan, "it", memory / GIB)


def test_rewards_are_counted_or_named(settings, tmp_path):
    (tmp_path / "mine.py").write_text("def mine(images, **_):\n    return [0.0] * len(images)\n")
    clip = {"use": "clip_score", "model": "RN50", "weights": "openai"}
    entries = [clip, "ocr", {"use": f"{tmp_path / 'mine.py'}:mine"}, {**clip, "name": "on_cpu", "device": "cpu"}]
    plan = plan_of(recipe_from_mapping({**settings, "rewards": entries}))
    assert plan.part("reward models") == 4 * 102_007_137  # open_clip's RN50
    assert plan.not_counted == ("mine",)


def test_geneval_is_its_detector_and_clip(settings, tmp_path):
    entry = {"use": "geneval", "clip_model": "RN50", "dtype": "bfloat16"}
    plan = plan_of(recipe_from_mapping({**settings, "rewards": [entry]}))
    assert plan.part("reward models") == 2 * (102_007_137 + RELEASED_DETECTORS[GenEval().detector])
    config = tiny_config()
    config.save_pretrained(tmp_path / "detector")
    plan = plan_of(recipe_from_mapping({**settings, "rewards": [{**entry, "detector": str(tmp_path / "detector")}]}))
    size = Mask2FormerForUniversalSegmentation(config).num_parameters()
    assert plan.part("reward models") == 2 * (102_007_137 + size)
    plan = plan_of(recipe_from_mapping({**settings, "rewards": [{**entry, "detector": str(tmp_path / "none")}]}))
    assert (plan.part("reward models"), plan.not_counted) == (0, ("geneval",))


@pytest.mark.parametrize("checkpointing", [True, False, {"keep_layers": 2}])
def test_the_text_kl_term_within_15_percent(
    settings, nano_checkpoint, nano_processor, fused_norms, tmp_path, checkpointing
):
    recipe = recipe_of(settings, trainer={"gradient_checkpointing": checkpointing})
    model = trainable(load_policy(recipe.model, nano_checkpoint), None).train()
    checkpoint_layers(model, simulation_of(recipe.model).kept_layers(recipe))
    Image.new("RGB", (128, 128)).save(tmp_path / "picture.png")
    record = QuestionRecord(tmp_path / "picture.png", "What is it?", "nothing at all, as far as one can see")
    text = TextKL([record] * 3, nano_processor, model.config, beta=1.0, questions_per_update=3, seed=0)
    text.begin(0, model, torch.device("cpu"))
    exchange = text._parts[0].exchange
    with Measured(model) as measured:
        divergence = text.divergence(model)
        held = measured.held - exchange.images["pixel_values"].nbytes  # which were there, and were seen first inside
    assert divergence.requires_grad
    rows, length = exchange.input_ids.shape
    planned = simulation_of(recipe.model).text(recipe, rows, length, exchange.answer_mask.shape[1])
    assert planned == pytest.approx(held, rel=0.15)


def test_the_text_kl_term_is_shared_among_gpus_and_micro_batches(settings):
    asked = {"kl_beta": 0.1, "kl_questions": "questions.jsonl", "kl_questions_per_update": 16}
    trainer = {"gradient_accumulation_steps": 4}
    plans = [plan_of(recipe_of(settings, understanding=asked, trainer=trainer), gpus=gpus) for gpus in (1, 2, 8)]
    one, two, eight = (plan.part("text-KL activations") for plan in plans)
    assert one > 1.5 * two > 1.5 * eight > 0
    assert plan_of(recipe_of(settings, trainer=trainer)).part("text-KL activations") == 0


def test_the_policys_own_weights_wait_while_its_average_is_evaluated(settings):
    sections = {"model": {"ema": {}}, "evaluate": {"prompts": "held_out.jsonl"}}
    without = plan_of(recipe_of(settings, **sections))
    sections["evaluate"]["ema"] = True
    averaged = plan_of(recipe_of(settings, **sections))
    for phase in ("evaluate", "decode"):
        assert averaged.held(phase) - without.held(phase) == 4 * averaged.parameters["trained"]
    assert averaged.held("update") == without.held("update")


def test_offloaded_rewards_are_counted_while_something_is_scored(settings):
    clip = {"use": "clip_score", "model": "RN50", "weights": "openai"}
    size = 4 * 102_007_137
    kept = plan_of(recipe_from_mapping({**settings, "rewards": ["color", clip], "eval_rewards": [clip]}))
    away = {**clip, "offload": True}
    moved = plan_of(recipe_from_mapping({**settings, "rewards": ["color", away], "eval_rewards": [away]}))
    assert kept.held("rollout") - moved.held("rollout") == 2 * size
    assert kept.held("decode") - moved.held("decode") == size  # training and evaluation take turns
    assert moved.host - kept.host == 2 * size


@pytest.mark.parametrize("checkpointing", [True, False, {"keep_layers": 2}])
def test_written_texts_within_15_percent(settings, nano_checkpoint, nano_processor, fused_norms, checkpointing):
    recipe = recipe_of(
        settings, rollout={"episodes": {"default": "answer"}}, trainer={"gradient_checkpointing": checkpointing}
    )
    model = trainable(load_policy(recipe.model, nano_checkpoint), None, ["text"]).train()
    checkpoint_layers(model, simulation_of(recipe.model).kept_layers(recipe))
    turns = [[Message("user", ("a red circle on a large blue table",))]] * 4
    prompt = encode_turns(turns, model, nano_processor, new_tokens=40)
    tokens = torch.ones(4, 40, dtype=torch.long)
    given = {
        "input_ids": torch.cat([prompt.input_ids, tokens], 1),
        "attention_mask": torch.cat([prompt.attention_mask, tokens], 1),
        "position_ids": prompt.position_ids,
        "written_tokens": tokens,
        "written_mask": tokens.bool(),
        "reference_hidden": torch.zeros(4, 40, model.config.text_config.hidden_size),
        "prefix_names": ["one"] * 4,
    }
    with Measured(model) as measured:
        output = model(**given)
        (output.log_probs + output.entropy + output.kl).sum().backward()
    planned = simulation_of(recipe.model).written(recipe, 4, prompt.input_ids.shape[1], 40)
    assert planned == pytest.approx(measured.peak, rel=0.15)
