"""The AR model against the reference's vectors: reading, teacher-forced drawing, gradients."""

import pytest
import torch
import torch.nn.functional as F
from support.golden_inputs import answer, as_bits, close, drawn_inputs, editing_inputs, load, reading_inputs

from uniar.configuration_uniar import UniARConfig
from uniar.engine.layers import layers_of
from uniar.errors import UserError
from uniar.modeling_uniar import UniARForConditionalGeneration

VARIANTS = ["bsq8", "bsq64", "bsq8_novd"]
READING = ["bsq8", "bsq64"]
ATTENTIONS = ["eager", "sdpa"]

# Teacher-forced drawing


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_teacher_forced_logits(golden, variant, attention):
    found = golden(variant).model(attention)(**drawn_inputs(golden(variant))).logits
    close(found, golden(variant).tensors("vistok_forward")["logits"])


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("variant", ["bsq8", "bsq8_novd"])
def test_teacher_forced_logits_in_bfloat16(golden, variant, attention):
    found = golden(variant).model(attention, torch.bfloat16)(**drawn_inputs(golden(variant))).logits
    assert found.dtype == torch.float32  # the last product is
    vectors = golden(variant).tensors("vistok_forward")
    close(found, vectors["logits"], 0.06)
    if attention == "sdpa":  # rounds where the reference's flash-attention does
        close(found, vectors["logits_bf16"], 0.06)


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_teacher_forced_logits_of_an_edit(golden, attention):
    inputs, expected = editing_inputs(golden("bsq8"))
    model = golden("bsq8").model(attention)
    close(model(**inputs).logits, expected)
    given = inputs["image_grid_thw"][::2]
    bits = model.model.visual.encode(inputs["pixel_values"], given)
    close(model(**{**inputs, "pixel_values": None, "visual_bits": bits}).logits, expected)
    # Positions given, the grids are needed for the pixels only.
    positions = model.model.rotary_positions(inputs["input_ids"], inputs["attention_mask"], inputs["image_grid_thw"])
    placed = {**inputs, "pixel_values": None, "visual_bits": bits, "image_grid_thw": None, "position_ids": positions}
    close(model(**placed).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("variant", ["bsq8", "bsq8_novd"])
def test_prefix_states(golden, variant, attention):
    """Before the final norm, where the visual decoder and the head take over."""
    inputs = golden(variant).tensors("visual_inputs")
    tag = "t2i_128x128" if variant == "bsq8" else "t2i_64x128"
    ids, mask = inputs[f"{tag}.prefix_input_ids"], inputs[f"{tag}.attention_mask"]
    backbone = golden(variant).model(attention).model
    hidden = backbone.hidden_before_norm(
        backbone.get_input_embeddings()(ids), mask, backbone.rotary_positions(ids, mask), torch.zeros_like(ids), []
    )
    close(hidden * mask[..., None], golden(variant).tensors("vistok_forward")["prefix_hidden_prenorm"])


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_missing_mask_means_all_ones(golden, attention):
    model, inputs = golden("bsq8").model(attention), drawn_inputs(golden("bsq8"))
    # Rows of one length, so that nothing is padding.
    inputs = {name: value[:1] if torch.is_tensor(value) else value for name, value in inputs.items()}
    first = int(inputs["attention_mask"].argmax())
    inputs["input_ids"] = inputs["input_ids"][:, first:]
    expected = model(**{**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}).logits
    close(model(**{**inputs, "attention_mask": None}).logits, expected, 0)
    close(expected, golden("bsq8").tensors("vistok_forward")["logits"][:1])

    reading = reading_inputs(golden("bsq8"))
    close(model(**{**reading, "attention_mask": None}).logits, golden("bsq8").tensors("understanding")["logits"])


def test_wrong_calls_are_refused(golden):
    model, inputs = golden("bsq8").model(), drawn_inputs(golden("bsq8"))
    edit, _ = editing_inputs(golden("bsq8"))
    bits = torch.zeros(4, 4, 4, 8)
    calls = [
        ({**inputs, "online_rollout_codes": None}, "online_rollout_codes"),
        ({**inputs, "online_rollout_codes": torch.zeros(2, 17, 4, 4, 8)}, r"17 image tokens.*\[16, 16\]"),
        ({**inputs, "online_rollout_codes": torch.zeros(2, 15, 4, 4, 8)}, "32 image tokens.*give 30"),
        ({**inputs, "online_rollout_codes": torch.zeros(2, 16, 4, 4, 9)}, r"\(4, 4, 9\)"),
        ({**inputs, "image_grid_thw": None}, "image_grid_thw or position_ids"),
        ({**edit, "visual_bits": bits}, "not both"),
        ({**edit, "pixel_values": None, "visual_bits": bits[:3]}, "24 image tokens, the images give 19"),
        ({**edit, "image_grid_thw": edit["image_grid_thw"][:3]}, "3 image grids.*2 rows"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            model(**call)
    reading = reading_inputs(golden("bsq8"))
    with pytest.raises(ValueError, match="visual_bits take the place"):
        model(**reading, visual_bits=bits)
    with pytest.raises(ValueError, match=r"9 image tokens.*give 4"):
        model(**{**reading, "pixel_values": None, "visual_bits": bits})


def test_a_model_without_a_visual_head_says_so(golden):
    config = UniARConfig.from_pretrained(golden("bsq8_novd").checkpoint)
    config.vistok_pred = False
    model = UniARForConditionalGeneration(config)
    assert not hasattr(model, "output_layer_vistok")
    with pytest.raises(UserError, match="vistok_pred false"):
        model(**drawn_inputs(golden("bsq8_novd")))


# The visual head


def test_mlp_head(golden):
    vectors, config = golden("bsq8").tensors("mlp_head"), UniARConfig.from_pretrained(golden("bsq8").checkpoint)
    config.vistok_pred_use_mlp = True
    head = UniARForConditionalGeneration(config).output_layer_vistok
    weights = {name: torch.empty(0) for name in head.state_dict()}
    assert list(weights) == ["0.weight", "1.weight", "3.weight"]
    i, j = torch.arange(16384, dtype=torch.float64)[:, None], torch.arange(64, dtype=torch.float64)
    k = torch.arange(256, dtype=torch.float64)[:, None]
    weights["0.weight"] = 1 + 0.1 * torch.cos(j)
    weights["1.weight"] = 0.2 * torch.sin(0.013 * i + 0.71 * j + 0.5)
    weights["3.weight"] = 0.02 * torch.cos(0.017 * k - 0.0031 * i.T + 0.3)
    head.load_state_dict({name: weight.float() for name, weight in weights.items()})
    with torch.no_grad():
        close(head(vectors["x"]), vectors["y"])


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({}, ["weight"]),
        ({"vistok_pred_layernorm": True}, ["0.weight", "1.weight"]),
        ({"vistok_pred_layernorm": True, "vistok_pred_use_mlp": True}, ["0.weight", "1.weight", "3.weight"]),
    ],
)
def test_which_head_the_flags_build(golden, flags, names):
    config = UniARConfig.from_pretrained(golden("bsq8").checkpoint)
    config.vistok_pred_layernorm = config.vistok_pred_use_mlp = False
    config.update(flags)
    head = UniARForConditionalGeneration(config).output_layer_vistok
    assert list(head.state_dict()) == names
    assert head.state_dict()[names[-1]].shape[0] == 8 * 2 * 4 * 4


# Log-probabilities and gradients of the reference's GRPO step


def bit_logps(logits, bits, temperature=1.0):
    return F.log_softmax(logits / temperature, -1).gather(-1, bits.long()[..., None])[..., 0].flatten(1)


def grpo_inputs(golden):
    vectors = golden.tensors("grpo")
    bits = vectors["codes"]
    tail = torch.ones(bits.shape[:2], dtype=torch.long)
    return vectors, {
        "input_ids": torch.cat([vectors["prompt_ids"], tail * golden.model().config.image_token_id], 1),
        "attention_mask": torch.cat([vectors["prompt_mask"], tail], 1),
        "image_grid_thw": torch.tensor([[1, 4, 8]]).expand(len(bits), 3),
        "online_rollout_codes": bits,
        "is_vistok_pred": True,
    }


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_golden_log_probabilities(golden, temperature):
    vectors, inputs = grpo_inputs(golden("bsq8"))
    logits = golden("bsq8").model()(**inputs).logits
    close(bit_logps(logits, vectors["codes"], temperature), vectors[f"logps_T{temperature}"])
    p = torch.sigmoid((logits[..., 1] - logits[..., 0]) / temperature).flatten(1)
    entropy = F.binary_cross_entropy(p, p, reduction="none").mean(1)
    close(entropy, vectors[f"entropies_T{temperature}_mean"])


def grpo_loss(model, vectors, inputs, recipe):
    """PPO's clipped objective on single bits with the k3 estimate of the KL divergence, in the reference's average."""
    logps = bit_logps(model(**inputs).logits, vectors["codes"])
    advantages, ratio = vectors["advantages"][:, None], (logps - vectors["old_logps"]).exp()
    clipped = ratio.clamp(1 - recipe["epsilon"], 1 + recipe["epsilon"])
    towards = vectors["ref_logps"] - logps
    kl = towards.exp() - towards - 1
    return (-torch.min(ratio * advantages, clipped * advantages) + recipe["beta"] * kl).mean()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_golden_gradients(golden, attention):
    model, recipe = load(golden("bsq8"), attn_implementation=attention), golden("bsq8").params["grpo"]
    model.set_trainable()
    vectors, inputs = grpo_inputs(golden("bsq8"))
    expected = recipe["losses"]["grpo_bsqnormFalse"]
    loss = grpo_loss(model, vectors, inputs, recipe)
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-5)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, gradient in vectors.items():
        if name.startswith("grad."):
            close(gradients[name.removeprefix("grad.")], gradient, 1e-5)
    # What the reference trains is what has a gradient here, but for the two that it counts and never reaches.
    assert set(gradients) == set(expected["grad_norms"])
    assert {n: g.norm().item() for n, g in gradients.items()} == pytest.approx(expected["grad_norms"], abs=1e-5)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name for name in frozen if not name.startswith("model.visual.")} == set(expected["no_grad_params"])
    assert all(p.requires_grad for name, p in model.named_parameters() if name in expected["grad_norms"])


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_changes_nothing(golden):
    """Of all layers, of all but the last three, whose activations are kept, or of none: the same gradients."""
    vectors, inputs = grpo_inputs(golden("bsq8"))
    recipe, gradients, layer_runs = golden("bsq8").params["grpo"], [], []
    for kept in (None, 0, 3, 99):
        model = load(golden("bsq8")).train()
        model.set_trainable()
        if kept is not None:
            model.kept_layers = kept
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.gradient_checkpointing_disable()  # as TRL does around a rollout
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        runs = []
        for number, layer in enumerate(layers_of(model)):
            layer.mlp.register_forward_pre_hook(lambda *_, runs=runs, number=number: runs.append(number))
        grpo_loss(model, vectors, inputs, recipe).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        layer_runs.append([runs.count(number) for number in range(len(layers_of(model)))])
    for found in gradients[1:]:
        assert found.keys() == gradients[0].keys()
        assert all(torch.equal(found[name], gradient) for name, gradient in gradients[0].items())
    # Run again in the backward pass; two of the five are the visual decoder's.
    assert layer_runs == [[1] * 5, [2] * 5, [2, 2, 1, 1, 1], [1] * 5]


# Reading images


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("variant", READING)
def test_reading_logits(golden, variant, attention):
    model, vectors = golden(variant).model(attention), golden(variant).tensors("understanding")
    logits = model(**reading_inputs(golden(variant))).logits
    close(logits, vectors["logits"]) if "logits" in vectors else close(logits[:, -1], vectors["logits_last"])
    close(model(**reading_inputs(golden(variant), batch=True)).logits[:, -1], vectors["batch_logits_last"])


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("variant", READING)
def test_reading_logits_in_bfloat16(golden, variant, attention):
    """Pixels give a few other bits in bfloat16 (in the reference too), so the model gets the float32 ones."""
    inputs = as_bits(golden(variant).model(), reading_inputs(golden(variant)))
    found = golden(variant).model(attention, torch.bfloat16)(**inputs).logits[:, -1]
    vectors = golden(variant).tensors("understanding")
    close(found, vectors["logits"][:, -1] if "logits" in vectors else vectors["logits_last"], 0.06)


@torch.no_grad()
def test_reading_logits_as_the_reference_rounds_them(golden):
    found = golden("bsq8").model(dtype=torch.bfloat16)(**reading_inputs(golden("bsq8"))).logits[:, -1]
    close(found, golden("bsq8").tensors("understanding")["bf16_logits_last"], 0.06)


@pytest.mark.parametrize("variant", READING)
def test_reading_positions(golden, variant):
    vectors, backbone = golden(variant).tensors("understanding"), golden(variant).model().model
    for prefix in ("", "batch_"):
        ids, mask = vectors[f"{prefix}input_ids"], vectors[f"{prefix}attention_mask"]
        positions = backbone.rotary_positions(ids, mask, vectors[f"{prefix}image_grid_thw"])
        assert torch.equal(positions * mask, vectors[f"{prefix}position_ids"] * mask)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("variant", READING)
def test_answers(golden, variant, attention):
    """Greedy, from pixels and from bits, without the token types that the model card's snippet pops."""
    model, vectors = golden(variant).model(attention), golden(variant).tensors("understanding")
    for batch in (False, True):
        inputs = reading_inputs(golden(variant), batch)
        expected = vectors["batch_generated" if batch else "generated"]
        assert torch.equal(answer(model, inputs), expected)
        assert torch.equal(answer(model, as_bits(model, inputs)), expected)
        if variant == "bsq8":  # random weights: bsq64 writes image tokens, which only a cache keeps apart from images
            assert torch.equal(answer(model, as_bits(model, inputs), use_cache=False), expected)


def test_several_answers_a_question(golden):
    """Images lie end to end, so that rows cannot simply be repeated."""
    model = golden("bsq8").model()
    inputs, expected = reading_inputs(golden("bsq8"), batch=True), golden("bsq8").tensors("understanding")
    twice = expected["batch_generated"].repeat_interleave(2, 0)
    for given in (inputs, as_bits(model, inputs)):
        assert torch.equal(answer(model, given, do_sample=True, top_k=1, num_return_sequences=2), twice)
    beams = answer(model, inputs, num_beams=3)
    assert torch.equal(answer(model, as_bits(model, inputs), num_beams=3), beams)
    # A row with two images beside a row with one: the beams of each row alone.
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    mixed = {
        "input_ids": torch.cat([torch.cat([ids[1:], ids[1:]], 1), F.pad(ids[:1], (30, 0), value=ids[1, 0])]),
        "attention_mask": torch.cat([torch.cat([mask[1:], mask[1:]], 1), F.pad(mask[:1], (30, 0))]),
        "image_grid_thw": inputs["image_grid_thw"][[1, 1, 0]],
        "pixel_values": torch.cat([inputs["pixel_values"][36:]] * 2 + [inputs["pixel_values"][:36]]),
    }
    alone = answer(model, reading_inputs(golden("bsq8")), num_beams=3)
    assert torch.equal(answer(model, mixed, num_beams=3)[1:, : alone.shape[1]], alone)


@torch.no_grad()
def test_an_answer_leaves_nothing_behind(golden):
    """Positions of an earlier image must not move a later text."""
    model, ids = golden("bsq8").model(), torch.arange(5, 15)[None]
    fresh = load(golden("bsq8"), attn_implementation="sdpa")
    expected = (fresh(input_ids=ids).logits, answer(fresh, {"input_ids": ids}))
    answer(model, reading_inputs(golden("bsq8")))
    assert torch.equal(model(input_ids=ids).logits, expected[0])
    assert torch.equal(answer(model, {"input_ids": ids}), expected[1])


@torch.no_grad()
def test_visual_bits_are_the_pixels_they_encode(golden):
    model, inputs = golden("bsq8").model(), reading_inputs(golden("bsq8"), batch=True)
    from_bits = model(**as_bits(model, inputs)).logits
    assert torch.equal(from_bits, model(**inputs).logits)
    drawing = as_bits(model, inputs)
    drawing["visual_bits"] = 1 - drawing["visual_bits"]
    assert not torch.allclose(model(**drawing).logits, from_bits, atol=0.1)
