"""Texts: transformers' own greedy ones, the distribution that is asked for, and samples that nothing else moves."""

import contextlib

import pytest
import torch
from support.golden_inputs import close, picture
from torch.utils._python_dispatch import TorchDispatchMode

from uniar.conversations import Message, as_drawings, encode_turns
from uniar.engine import running
from uniar.engine.memory import text_bytes
from uniar.engine.prefix import prefill
from uniar.engine.text_steps import TextSteps
from uniar.errors import UserError
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.turn_prompt import patch_grids
from uniar.writing import Written, end_tokens, text_noise, write

TURNS = [
    [Message("user", (picture(64, 96), "What is in this image?"))],
    [Message("user", ("a red circle",)), Message("assistant", ("it is red",)), Message("user", ("Which colour?",))],
    [Message("user", ("Describe both pictures in detail.", picture(64, 64, 1), picture(128, 64, 2)))],
]


def prompt_of(model, processor, tokens=12, turns=TURNS):
    return encode_turns(turns, model, processor, new_tokens=tokens)


@torch.no_grad()
def replayed(model, prompt, written, owners, temperature=1.0):
    """log p of the written tokens, from the plain logits of each sample alone."""
    found = torch.zeros(written.tokens.shape)
    for sample, owner in enumerate(owners):
        row, length = prompt.rows([owner]), int(written.lengths[sample])
        real = row.attention_mask[0].bool()
        ids = torch.cat([row.input_ids[0][real], written.tokens[sample, :length]])[None]
        positions = torch.cat([row.position_ids[:, :, : len(real)][:, :, real], row.position_ids[..., len(real) :]], -1)
        embeds = model.get_input_embeddings()(ids)
        image_mask, deepstack = torch.zeros_like(ids, dtype=torch.bool), []
        if row.visual_bits is not None:
            main, *deepstack = model.model.visual.language_features(row.visual_bits)
            image_mask[:, : int(real.sum())] = ids[:, : int(real.sum())] == model.config.image_token_id
            embeds = embeds.masked_scatter(image_mask[..., None], main)
        hidden = model.model.hidden_before_norm(
            embeds, torch.ones_like(ids), positions[:, :, : ids.shape[1]], image_mask, deepstack
        )
        logits = model.lm_head(model.model.language_model.norm(hidden))[0, -length - 1 : -1].double()
        log_probs = (logits / temperature).log_softmax(-1)
        found[sample, :length] = log_probs.gather(-1, ids[0, -length:, None])[:, 0].float()
    return found


@pytest.fixture(scope="module", params=["nano", "tiny"])
def pair(request, nano_checkpoint, nano_processor):
    """A model and its processor: of random weights, and UniAR-Tiny, which has learned to answer."""
    if request.param == "nano":
        return UniARForConditionalGeneration.from_pretrained(nano_checkpoint, dtype=torch.float32), nano_processor
    from transformers import AutoProcessor

    folder = "assets/uniar-tiny"
    return (
        UniARForConditionalGeneration.from_pretrained(folder, dtype=torch.float32),
        AutoProcessor.from_pretrained(folder),
    )


def test_greedy_texts_are_those_of_transformers(pair):
    model, processor = pair
    prompt, expected = prompt_of(model, processor), []
    for row in range(3):
        alone = prompt.rows([row])
        real = alone.attention_mask[0].bool()
        content = {"input_ids": alone.input_ids[:, real], "attention_mask": alone.attention_mask[:, real]}
        if alone.visual_bits is not None:
            shown = [part for turn in TURNS[row] for part in turn.parts if not isinstance(part, str)]
            grids = [[drawing.grid for drawing in as_drawings(shown, model, processor)]]
            content |= {"visual_bits": alone.visual_bits, "image_grid_thw": patch_grids(grids, 2)}
        said = model.generate(**content, max_new_tokens=12, do_sample=False)
        expected.append(said[0, int(real.sum()) :])
    written = write(model, prompt, torch.zeros(3, 12), ends=end_tokens(model), temperature=0)
    for tokens, length, said in zip(written.tokens, written.lengths, expected, strict=True):
        assert torch.equal(tokens[:length], said)
    close(written.log_probs, replayed(model, prompt, written, range(3)))
    assert written.texts(processor) == processor.batch_decode(expected, skip_special_tokens=True)


def test_log_probs_are_the_teacher_forced_ones(pair):
    model, processor = pair
    prompt, owners = prompt_of(model, processor), [0, 0, 1, 1, 2, 2]
    for temperature in (1.0, 0.7):
        written = write(model, prompt, text_noise(range(6), 12), ends=end_tokens(model), temperature=temperature)
        close(written.log_probs, replayed(model, prompt, written, owners, temperature))
        assert (written.log_probs[written.mask] < 0).any()
        assert not written.log_probs[~written.mask].any()


def test_a_text_is_the_same_alone_and_in_any_batch(pair):
    model, processor = pair
    prompt, noise = prompt_of(model, processor), text_noise(range(6), 12)
    # Tokens that come soon, so that texts end at different places.
    probe = write(model, prompt, noise, ends=[-1])
    assert (probe.lengths == 12).all()
    assert not probe.ended.any()
    ends = [int(probe.tokens[0, 3]), int(probe.tokens[3, 6])]
    whole = write(model, prompt, noise, ends=ends)
    assert len(set(whole.lengths.tolist())) > 1
    assert whole.tokens.shape[1] == whole.lengths.max()
    for sample, (length, ended) in enumerate(zip(whole.lengths.tolist(), whole.ended.tolist(), strict=True)):
        assert torch.equal(whole.tokens[sample, :length], probe.tokens[sample, :length])  # it ends, and is no other
        assert ended == (int(whole.tokens[sample, length - 1]) in ends)
        assert not set(whole.tokens[sample, : length - 1].tolist()) & set(ends)
        assert ended or length == 12
        alone = write(model, prompt.rows([sample // 2]), noise[sample : sample + 1], ends=ends)
        assert torch.equal(alone.tokens[0], whole.tokens[sample, :length])
        close(alone.log_probs[0], whole.log_probs[sample, :length])
    order = [5, 0, 3, 1, 4, 2]
    for samples in (1, 2, 4, None):
        one = text_bytes(model, prompt.input_ids.shape[1], 12, 1, 1)
        mixed = write(
            model,
            prompt,
            noise[order],
            prompt_index=[sample // 2 for sample in order],
            ends=ends,
            memory_budget=None if samples is None else samples * one,
        )
        assert torch.equal(mixed.tokens * mixed.mask, (whole.tokens * whole.mask)[order])
        assert torch.equal(mixed.lengths, whole.lengths[order])
    assert not torch.equal(write(model, prompt, noise.flip(0), ends=ends).tokens[:, :1], whole.tokens[:, :1])


def test_tokens_come_as_often_as_they_should(nano_model, nano_processor):
    """First token, 2,000 samples: frequencies against the whole distribution, within five standard errors."""
    prompt, samples = prompt_of(nano_model, nano_processor, 1, TURNS[1:2]), 2000
    written = write(nano_model, prompt, text_noise(range(samples), 1), ends=[-1], temperature=0.3)
    logits = nano_model.lm_head(
        nano_model.model.language_model.norm(
            prefill(nano_model, prompt, nano_model.model.language_model.layers).last_hidden
        )
    )
    p = (logits[0].double() / 0.3).softmax(-1)
    counts = torch.bincount(written.tokens[:, 0], minlength=len(p))
    error = (counts - samples * p) / (samples * p * (1 - p)).sqrt()
    assert error[p > 0.005].abs().max() < 5
    assert counts[p < 1e-5].sum() <= 2
    # The inverse of the distribution: the token up to which no more lies than the uniform number.
    edge = write(nano_model, prompt, torch.tensor([[0.0], [1 - 2**-24]]), prompt_index=[0, 0], ends=[-1])
    assert edge.tokens[0, 0] == 0
    assert edge.tokens[1, 0] > len(p) - 5


def test_noise_belongs_to_its_seed():
    both = text_noise([7, 8], 3)
    assert both.shape == (2, 3)
    assert torch.equal(both[1:], text_noise([8], 3))
    assert not torch.equal(both[0], both[1])


def test_what_is_seen_as_it_comes(nano_model, nano_processor):
    prompt, seen = prompt_of(nano_model, nano_processor, 40), []
    probe = write(nano_model, prompt, text_noise(range(3), 40), ends=[-1], seen=seen.append)
    assert torch.tensor(seen).T.tolist() == probe.tokens.tolist()
    ends = probe.tokens[:, 4].tolist()
    seen.clear()
    written = write(nano_model, prompt, text_noise(range(3), 40), ends=ends, seen=seen.append)
    assert len(seen) == written.tokens.shape[1] <= 5


def test_writing_stops_soon_after_all_have_ended(nano_model, nano_processor, monkeypatch):
    prompt, steps, original = prompt_of(nano_model, nano_processor, 100), [], TextSteps.step
    monkeypatch.setattr(TextSteps, "step", lambda self, *how: steps.append(1) or original(self, *how))
    noise = text_noise(range(3), 100)
    probe = write(nano_model, prompt, noise, ends=[-1])
    steps.clear()
    written = write(nano_model, prompt, noise, ends=probe.tokens[:, 17].tolist())
    assert written.tokens.shape[1] <= 18
    assert len(steps) <= 32


def test_texts_pass_over_what_is_no_text(nano_model, nano_processor):
    """Tokens of pictures and ids that the tokenizer has not are sampled at their probability, and are not said."""
    tokenizer = nano_processor.tokenizer
    letters, beyond = tokenizer("a red")["input_ids"], len(tokenizer) + 5  # as the released vocabulary has some
    row = [*letters, nano_model.config.image_token_id, beyond, *tokenizer(" circle")["input_ids"], 7]
    written = Written(torch.tensor([row]), torch.tensor([len(row) - 1]), torch.zeros(1, len(row)), torch.tensor([True]))
    assert written.texts(nano_processor) == ["a red circle"]
    # Fed back as tokens, a picture's token is a word like any other: there are no bits for it.
    prompt = prompt_of(nano_model, nano_processor, 3)
    image = nano_model.config.image_token_id
    with patched_head(nano_model, image):
        written = write(nano_model, prompt, text_noise(range(3), 3), ends=[-1])
        assert (written.tokens == image).all()
        close(written.log_probs, replayed(nano_model, prompt, written, range(3)))


@contextlib.contextmanager
def patched_head(model, token):
    """Inside, the model says nothing but this token."""
    before, bias = model.lm_head.bias, torch.zeros(model.config.text_config.vocab_size)
    bias[token] = 30
    model.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)
    yield
    model.lm_head.bias = before


def test_drawings_are_read_as_their_images(nano_model, nano_processor):
    images = [picture(64, 96), picture(128, 64, 1)]
    noise, texts = text_noise(range(2), 8), []
    for shown in (images, as_drawings(images, nano_model, nano_processor)):
        prompt = prompt_of(nano_model, nano_processor, 8, [[Message("user", (one, "What?"))] for one in shown])
        texts.append(write(nano_model, prompt, noise, ends=[-1]).tokens)
    assert torch.equal(*texts)


def test_a_cumulative_sum_is_allowed_where_all_else_is_deterministic(nano_model, nano_processor, monkeypatch):
    """torch has none for a GPU that it calls deterministic, and would end a run with trainer.full_determinism."""
    allowed, original = [], TextSteps.sample
    monkeypatch.setattr(
        TextSteps,
        "sample",
        lambda self: allowed.append(not torch.are_deterministic_algorithms_enabled()) or original(self),
    )
    prompt = prompt_of(nano_model, nano_processor, 3)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        write(nano_model, prompt, text_noise(range(3), 3), ends=[-1])
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert allowed == [True] * 3


def test_weights_that_are_not_a_number_end_in_no_crash(nano_model, nano_processor):
    prompt = prompt_of(nano_model, nano_processor, 3)
    before = nano_model.lm_head.weight.detach().clone()
    nano_model.lm_head.weight.data.fill_(torch.nan)
    try:
        assert write(nano_model, prompt, text_noise(range(3), 3), ends=[-1]).log_probs.isnan().all()
    finally:
        nano_model.lm_head.weight.data.copy_(before)


def test_wrong_calls_are_refused(nano_model, nano_processor):
    prompt = prompt_of(nano_model, nano_processor, 4)
    noise = text_noise(range(3), 4)
    cases = [
        (noise[:, :3], {}, r"noise is \(3, 3\); it must be \(3, 4\)"),
        (noise[:2], {}, "2 samples cannot be divided evenly over 3 prompts"),
        (noise, {"prompt_index": [0, 1, 3]}, r"\[0, 1, 3\]"),
        (noise, {"temperature": -0.5}, "temperature is -0.5"),
    ]
    for uniforms, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            write(nano_model, prompt, uniforms, **{"ends": [-1]} | settings)
    with pytest.raises(UserError, match="allow more or write a shorter text"):
        write(nano_model, prompt, noise, ends=[-1], memory_budget=1000)
    with pytest.raises(UserError, match="graph needs a CUDA GPU"):
        write(nano_model, prompt, noise, ends=[-1], engine="graph")


# Steps


class Recorder(TorchDispatchMode):
    """Notes every operator with its shapes, and refuses those that make the host wait."""

    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        assert not any(wait in name for wait in ("_local_scalar_dense", "nonzero", "masked_select", "equal.")), name
        output = function(*args, **(kwargs or {}))
        self.operators.append((name, [tuple(leaf.shape) for leaf in (*args, output) if isinstance(leaf, torch.Tensor)]))
        return output


@torch.no_grad()
def test_steps_are_alike_and_the_host_never_waits(nano_model, nano_processor):
    prompt = prompt_of(nano_model, nano_processor, 8)
    prefix = prefill(nano_model, prompt, nano_model.model.language_model.layers)
    steps = TextSteps(nano_model, prefix, torch.tensor([0, 1, 1]), text_noise(range(3), 8), [3], 0, 1.0)
    steps.step()
    recorded = []
    for _ in range(6):
        with Recorder() as recorder:
            steps.step()
        recorded.append(recorder.operators)
    assert len(recorded[0]) > 50
    assert all(operators == recorded[0] for operators in recorded)


@pytest.mark.slow
@pytest.mark.skipif(__import__("shutil").which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_steps_write_the_same(nano_model, nano_processor):
    prompt, noise = prompt_of(nano_model, nano_processor, 20), text_noise(range(6), 20)
    found, expected = (write(nano_model, prompt, noise, ends=[-1], engine=engine) for engine in ("compiled", "eager"))
    assert torch.equal(found.tokens, expected.tokens)
    close(found.log_probs, expected.log_probs)


def test_auto_is_eager_where_there_is_no_gpu(nano_model, nano_processor):
    prompt, noise = prompt_of(nano_model, nano_processor, 6), text_noise(range(3), 6)
    assert running.GPU == "cuda"
    found, expected = (write(nano_model, prompt, noise, ends=[-1], engine=engine) for engine in ("auto", "eager"))
    assert torch.equal(found.tokens, expected.tokens)


@pytest.mark.parametrize(("said", "ends"), [(5, [5]), ([5, 6], [5, 6])])
def test_what_ends_a_turn_is_the_checkpoints_own(nano_model, said, ends):
    nano_model.generation_config.eos_token_id = said
    assert end_tokens(nano_model) == ends
    for nothing in (None, []):
        nano_model.generation_config.eos_token_id = nothing
        with pytest.raises(UserError, match=r"which token ends a turn.*eos_token_id"):
            end_tokens(nano_model)
