"""What attention is given: no row of a mask that sees nothing, no masked call that cuDNN may serve, aligned widths."""

from types import SimpleNamespace

import pytest
import torch
from support.golden_inputs import any_noise, close, edit_prompt, picture, replayed_gap, text_prompt

from uniar import attention, conversations, turn_prompt
from uniar.answering import answer, answer_log_probs
from uniar.conversations import Drawing
from uniar.engine import prefix
from uniar.generation import rollout
from uniar.modeling_uniar import UniARForConditionalGeneration

QUESTIONS = ["what is it?", "is it blue, or red, or something else? answer with one word."]


@pytest.fixture
def calls(monkeypatch):
    """Torch's attention with a kernel that answers NaN for a row that sees nothing. Each call is kept: whether it had a
    mask, whether cuDNN could have served it, and how many rows were empty."""
    seen, original = [], torch.nn.functional.scaled_dot_product_attention

    def attend(query, key, value, attn_mask=None, **settings):
        output, empty = original(query, key, value, attn_mask=attn_mask, **settings), 0
        if attn_mask is not None:
            is_empty = ~(attn_mask if attn_mask.dtype == torch.bool else attn_mask > -torch.inf).any(-1, keepdim=True)
            output, empty = output.masked_fill(is_empty, torch.nan), int(is_empty.sum())
        cudnn = torch.backends.cuda.cudnn_sdp_enabled()
        seen.append(SimpleNamespace(masked=attn_mask is not None, cudnn=cudnn, empty=empty, shape=key.shape))
        return output

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    return seen


@pytest.fixture
def model(golden) -> UniARForConditionalGeneration:
    """One of its own, ready to be trained."""
    model = UniARForConditionalGeneration.from_pretrained(golden("bsq8").checkpoint, attn_implementation="sdpa")
    model.set_trainable()
    return model


def drawn_and_replayed(model, prompt):
    """Gaps of a guided rollout, of its replays, and the gradients of these by parameter."""
    index = [0, 1, 1]
    drawn = rollout(
        model, prompt, any_noise(model, prompt, 3), prompt_index=index, guidance_scale=2.0, return_gaps=True
    )
    # Both branches in the width of the wider, as the update replays them.
    branches = [prompt, prompt.unconditional if len(prompt.unconditional) > 1 else prompt.unconditional.rows([0, 0])]
    gaps = [replayed_gap(model, branch, drawn.bits, index) for branch in branches]
    model.zero_grad()
    sum((gap * torch.linspace(-1, 1, gap.numel()).view_as(gap)).mean() for gap in gaps).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return [drawn.gap_cond, drawn.gap_uncond, *(gap.detach() for gap in gaps)], gradients


@pytest.mark.parametrize("task", ["t2i", "edit"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_kernels_that_answer_nan_for_an_empty_row_change_nothing(golden, model, task, checkpointing, request):
    prompt = text_prompt(golden("bsq8")) if task == "t2i" else edit_prompt(golden("bsq8"))
    assert not prompt.attention_mask.all()
    expected, gradients = drawn_and_replayed(model, prompt)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    calls = request.getfixturevalue("calls")
    found, others = drawn_and_replayed(model, prompt)
    assert any(call.masked for call in calls)
    assert not any(call.empty for call in calls)
    assert all(torch.equal(gap, own) for gap, own in zip(found, expected, strict=True))
    assert others.keys() == gradients.keys()
    assert all(torch.equal(others[name], gradients[name]) for name in gradients)


def test_such_kernels_would_show(golden, model, calls, monkeypatch):
    monkeypatch.setattr(attention, "without_empty_rows", lambda visible: visible)
    monkeypatch.setattr(prefix, "without_empty_rows", lambda visible: visible)
    gaps, gradients = drawn_and_replayed(model, text_prompt(golden("bsq8")))
    assert any(call.empty for call in calls)
    for gap in (gaps[0], gaps[2]):  # of the padded prompt, in rollout and replay
        assert gap[0].isfinite().all()
        assert gap[1:].isnan().all()
    assert not all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("attention_of_model", ["sdpa", "eager"])
def test_answers_and_what_is_read(nano_checkpoint, nano_processor, calls, attention_of_model):
    """Questions of different lengths on images and on drawings: what evaluation, chat and the text-KL term ask."""
    model = UniARForConditionalGeneration.from_pretrained(nano_checkpoint, attn_implementation=attention_of_model)
    drawings = [Drawing(torch.zeros(4, *model.config.vision_config.code_shape, dtype=torch.uint8), 2)] * 2
    for pictures in ([picture(64, 64), picture(96, 64)], drawings):
        assert len(answer(model, nano_processor, pictures, QUESTIONS, max_new_tokens=3)) == 2
        for log_probs in answer_log_probs(model, nano_processor, pictures, QUESTIONS, ["yes", "a blue thing"]):
            assert log_probs.isfinite().all()
    assert not any(call.empty for call in calls)
    assert not any(call.masked and call.cudnn for call in calls)
    if attention_of_model == "sdpa":
        assert sum(call.masked for call in calls) > 10


def test_cudnn_serves_no_call_of_the_policy(golden, model, calls):
    """Neither in a rollout, nor in an update, nor where backward runs a checkpointed layer again."""
    prompt = text_prompt(golden("bsq8"))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    gap = replayed_gap(model, prompt, torch.zeros_like(any_noise(model, prompt, 2), dtype=torch.uint8), [0, 1])
    layers = len(model.model.language_model.layers) + len(model.visual_decoder_layers)
    assert len(calls) == layers
    gap.sum().backward()
    assert len(calls) == 2 * layers
    rollout(model, prompt, any_noise(model, prompt, 2))
    assert len(calls) == (2 + prompt.new_tokens) * layers
    assert all(call.masked and not call.cudnn for call in calls)
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_the_decoder_has_no_mask_and_keeps_every_kernel(nano_decoder, calls):
    bits = torch.zeros(1, 4, *nano_decoder.bsq_encoder.config.code_shape, dtype=torch.uint8)
    nano_decoder.decode(bits, 64, 64, num_inference_steps=1, noise_seeds=[0])
    assert calls
    assert all(call.cudnn and not call.masked for call in calls)


@pytest.mark.parametrize("task", ["t2i", "edit"])
def test_prefixes_of_aligned_width_are_drawn_alike(golden, monkeypatch, task):
    model = golden("bsq8").model()

    def draw(multiple):
        monkeypatch.setattr(conversations, "prefix_multiple", lambda model: multiple)
        prompt = text_prompt(golden("bsq8")) if task == "t2i" else edit_prompt(golden("bsq8"))
        noise = any_noise(model, prompt, 4)
        return prompt, rollout(model, prompt, noise, guidance_scale=2.0, return_gaps=True)

    narrow, expected = draw(1)
    wide, found = draw(32)
    for prompt in (wide, wide.unconditional):
        assert prompt.input_ids.shape[1] % 32 == 0
    assert wide.input_ids.shape[1] > narrow.input_ids.shape[1]
    assert wide.new_tokens == narrow.new_tokens
    assert torch.equal(found.bits, expected.bits)
    # Gaps are up to 4; the CPU's kernel sums what it attends to in another order.
    close(found.gap_cond, expected.gap_cond, 1e-5)
    close(found.gap_uncond, expected.gap_uncond, 1e-5)
    with torch.no_grad():
        index = [0, 0, 1, 1]
        close(replayed_gap(model, wide, found.bits, index), replayed_gap(model, narrow, found.bits, index), 1e-5)


def test_widths_are_aligned_in_half_precision(golden):
    for dtype, multiple in ((torch.float32, 1), (torch.bfloat16, 32)):
        assert turn_prompt.prefix_multiple(golden("bsq8").model(dtype=dtype)) == multiple
    on_a_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    assert turn_prompt.prefix_multiple(on_a_gpu) == 32
