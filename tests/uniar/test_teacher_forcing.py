"""Texts replayed: the log-probabilities of the rollout, plain logits in float64, and memory that does not grow."""

import copy

import pytest
import torch
from support.golden_inputs import close, picture
from torch.utils._python_dispatch import TorchDispatchMode

from rl.plan.memory import PeakBytes
from uniar import teacher_forcing
from uniar.conversations import Message, encode_turns
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.writing import text_noise, write

TURNS = [
    [Message("user", (picture(64, 96), "What is in this image?"))],
    [Message("user", ("Which colour?",))],
    [Message("user", ("Describe both pictures in detail.", picture(64, 64, 1), picture(128, 64, 2)))],
]


def replay_inputs(prompt, tokens, mask, owners):
    """What a text turn is replayed with."""
    return {
        "input_ids": torch.cat([prompt.input_ids[owners], tokens], 1),
        "attention_mask": torch.cat([prompt.attention_mask[owners], mask.long()], 1),
        "position_ids": prompt.position_ids[:, owners, : prompt.input_ids.shape[1] + tokens.shape[1]],
        "visual_bits": prompt.rows(owners).visual_bits,
        "written_tokens": tokens,
        "written_mask": mask,
    }


@pytest.fixture
def case(nano_checkpoint, nano_processor):
    """A model in float64, and texts of several lengths that it wrote; an image's token is among them."""
    model = UniARForConditionalGeneration.from_pretrained(nano_checkpoint, dtype=torch.float32)
    prompt, owners = encode_turns(TURNS, model, nano_processor, new_tokens=10), [0, 0, 1, 1, 2, 2]
    written = write(model, prompt, text_noise(range(6), 10), ends=[-1])
    tokens, lengths = written.tokens.clone(), torch.tensor([10, 4, 7, 1, 9, 2])
    tokens[0, 3] = model.config.image_token_id
    return model.double(), replay_inputs(prompt, tokens, torch.arange(10) < lengths[:, None], owners)


def plain(model, inputs, temperature=1.0):
    """The same in one piece: log-probabilities, entropy, and the whole distributions."""
    ids, width = inputs["input_ids"], inputs["written_tokens"].shape[1]
    image_mask = ids == model.config.image_token_id
    image_mask[:, -width:] = False
    main, *deepstack = model.model.visual.language_features(inputs["visual_bits"])
    embeds = model.get_input_embeddings()(ids).masked_scatter(image_mask[..., None], main)
    hidden = model.model.hidden_before_norm(
        embeds, inputs["attention_mask"], inputs["position_ids"], image_mask, deepstack
    )
    logits = model.lm_head(model.model.language_model.norm(hidden))[:, -width - 1 : -1] / temperature
    log_p = logits - logits.logsumexp(-1, keepdim=True)
    found = log_p.gather(-1, inputs["written_tokens"][..., None])[..., 0], -(log_p.exp() * log_p).sum(-1)
    return *(each * inputs["written_mask"] for each in found), log_p


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_plain_logits(case, monkeypatch, temperature):
    model, inputs = case
    monkeypatch.setattr(teacher_forcing, "LOGITS_AT_ONCE", 7 * 512)  # 9 chunks, the last one short
    model.set_trainable(text=True)
    reference = copy.deepcopy(model)
    for parameter in reference.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        given = reference(**inputs, text_temperature=temperature)
        log_q = plain(reference, inputs, temperature)[2]
    assert given.kl is None
    weights = torch.rand(3, 6, 10, generator=torch.Generator().manual_seed(2)).double()

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    found = model(
        **inputs, text_temperature=temperature, reference_hidden=given.hidden, reference_head=reference.lm_head
    )
    log_probs, entropy, log_p = plain(model, inputs, temperature)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1) * inputs["written_mask"]
    for ours, expected in ((found.log_probs, log_probs), (found.entropy, entropy), (found.kl, kl)):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
        assert not ours[~inputs["written_mask"]].any()
    assert (found.kl[inputs["written_mask"]] > 0).all()
    ours = gradients((weights[0] * found.log_probs + weights[1] * found.entropy + weights[2] * found.kl).sum())
    expected = gradients((weights[0] * log_probs + weights[1] * entropy + weights[2] * kl).sum())
    assert ours.keys() == expected.keys() >= {"lm_head.weight", "model.language_model.norm.weight"}
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=1e-10)
    # The policy's own head serves a reference that has no other.
    own = model(**inputs, text_temperature=temperature, reference_hidden=found.hidden.detach())
    assert own.kl.abs().max() < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_rollouts_log_probs_are_the_replayed_ones(nano_model, nano_processor, temperature):
    prompt, owners = encode_turns(TURNS, nano_model, nano_processor, new_tokens=24), [0, 1, 2, 2, 1, 0]
    probe = write(nano_model, prompt, text_noise(range(6), 24), prompt_index=owners, ends=[-1])
    ends = [int(probe.tokens[1, 4]), int(probe.tokens[2, 11])]
    written = write(
        nano_model, prompt, text_noise(range(6), 24), prompt_index=owners, ends=ends, temperature=temperature
    )
    inputs = replay_inputs(prompt, written.tokens, written.mask, owners)
    close(nano_model(**inputs, text_temperature=temperature).log_probs, written.log_probs)


def test_processes_with_and_without_pictures_run_the_same_modules(nano_model, nano_processor):
    """Under ZeRO-3 each module that runs gathers its weights, which takes every process."""
    ran, found = [], []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in nano_model.named_modules()
    ]
    for turns in TURNS:
        prompt = encode_turns([turns], nano_model, nano_processor, new_tokens=4)
        ran.clear()
        tokens = torch.ones(1, 4, dtype=torch.long)
        nano_model(**replay_inputs(prompt, tokens, tokens.bool(), [0])).log_probs.sum().backward()
        found.append(list(ran))
    for hook in hooks:
        hook.remove()
    assert found[0] == found[1] == found[2]
    assert any(name.startswith("model.visual") for name in found[0])
    assert "lm_head" in found[0]


class LargestLogits(TorchDispatchMode):
    """The most entries that a tensor over the vocabulary has, other than the weights of `head` and their gradient."""

    def __init__(self, head):
        super().__init__()
        (self.vocabulary, self.width), self.entries = head.weight.shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.shape[-1:] == (self.vocabulary,) and len(made) != self.width:
            self.entries = max(self.entries, made.numel())
        return made


def test_memory_does_not_grow_with_the_text(nano_checkpoint, nano_processor, monkeypatch):
    """Forward and backward: no more logits at once than were allowed, and nothing of them kept in between."""
    model = UniARForConditionalGeneration.from_pretrained(nano_checkpoint, dtype=torch.float32)
    vocabulary, hidden = model.lm_head.weight.shape
    prompt = encode_turns(TURNS[:2], model, nano_processor, new_tokens=300)
    tokens = torch.randint(0, 400, (2, 300), generator=torch.Generator().manual_seed(0))
    inputs = replay_inputs(prompt, tokens, torch.ones(2, 300, dtype=torch.bool), [0, 1])
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    peaks = {}
    for positions in (20, 600):
        monkeypatch.setattr(teacher_forcing, "LOGITS_AT_ONCE", positions * vocabulary)
        with PeakBytes(model.parameters()) as measured, LargestLogits(model.lm_head) as seen:
            output = model(**inputs, reference_hidden=torch.zeros(2, 300, hidden))
            (output.log_probs + output.entropy + output.kl).sum().backward()
        model.lm_head.weight.grad = None
        peaks[positions] = measured.peak
        assert seen.entries == positions * vocabulary
    assert peaks[600] - peaks[20] > 3 * 4 * 600 * vocabulary  # several times all logits


def test_what_text_trains(nano_model):
    def trained():
        return {name for name, parameter in nano_model.named_parameters() if parameter.requires_grad}

    nano_model.set_trainable()
    drawing = trained()
    nano_model.set_trainable(text=True)
    assert trained() - drawing == {"lm_head.weight", "model.language_model.norm.weight"}
    nano_model.set_trainable()
    assert trained() == drawing


def test_wrong_calls_are_refused(case):
    model, inputs = case
    for change, message in (
        ({"position_ids": None}, "need input_ids, attention_mask, position_ids and written_mask"),
        ({"written_mask": None}, "written_mask"),
        ({"text_temperature": 0.0}, "text_temperature is 0.0; it must be above 0"),
        ({"visual_bits": inputs["visual_bits"][1:]}, "image tokens, the images or visual bits give"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**inputs | change)
