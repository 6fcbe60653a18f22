"""The AR model with attention flash_attention_2, its kernels played by plain torch."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from support.golden_inputs import answer, close, drawn_inputs, editing_inputs, load, reading_inputs
from transformers import modeling_flash_attention_utils as flash_attention
from transformers.modeling_utils import PreTrainedModel

from uniar.errors import UserError


def attend(query, key, value, softmax_scale, causal):
    """(S, heads, D) each; causal masks are aligned with the last key, as flash-attn's are."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * softmax_scale
    if causal:
        visible = torch.ones(scores.shape[1:], dtype=torch.bool).tril(len(key) - len(query))
        scores = scores.masked_fill(~visible, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)


@pytest.fixture
def flash_kernels(monkeypatch):
    """transformers' own integration of flash-attn, finding a package with plain torch in place of the CUDA kernels."""
    calls = SimpleNamespace(dense=0, ragged=0)

    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
        calls.dense += 1
        return torch.stack([attend(*row, softmax_scale, causal) for row in zip(q, k, v, strict=True)])

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
    ):
        calls.ragged += 1
        rows = zip(
            q.split(cu_seqlens_q.diff().tolist()),
            k.split(cu_seqlens_k.diff().tolist()),
            v.split(cu_seqlens_k.diff().tolist()),
            strict=True,
        )
        return torch.cat([attend(*row, softmax_scale, causal) for row in rows])

    def flash_attn_with_kvcache(*args, **kwargs):
        raise AssertionError("paged attention is not used here")

    package = ModuleType("flash_attn")
    package.flash_attn_func, package.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func
    package.flash_attn_with_kvcache = flash_attn_with_kvcache
    padding = ModuleType("flash_attn.bert_padding")
    padding.pad_input, padding.unpad_input = flash_attention._pad_input, flash_attention._unpad_input
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    monkeypatch.setattr(flash_attention, "is_flash_attn_2_available", lambda: True)
    for name, value in vars(flash_attention).copy().items():
        if value is None:  # what a first use of the package fills in
            monkeypatch.setattr(flash_attention, name, None)
    entry = flash_attention.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]
    monkeypatch.setitem(entry, "general_availability_check", lambda: True)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *args, **kwargs: True)
    return calls


@torch.no_grad()
def test_flash_attention(golden, flash_kernels):
    flash = load(golden("bsq8"), attn_implementation="flash_attention_2")
    assert flash.model.visual.config._attn_implementation == "flash_attention_2"
    close(flash(**drawn_inputs(golden("bsq8"))).logits, golden("bsq8").tensors("vistok_forward")["logits"])
    layers = len(flash.model.language_model.layers) + len(flash.visual_decoder)
    assert flash_kernels.ragged == layers  # padded rows
    edit, expected = editing_inputs(golden("bsq8"))
    close(flash(**edit).logits, expected)

    vectors = golden("bsq8").tensors("understanding")
    close(flash(**reading_inputs(golden("bsq8"))).logits, vectors["logits"])
    assert flash_kernels.dense == 3  # no padding
    for batch in (False, True):
        inputs = reading_inputs(golden("bsq8"), batch)
        assert torch.equal(answer(flash, inputs), vectors["batch_generated" if batch else "generated"])


@torch.no_grad()
def test_flash_attention_without_a_mask(golden, flash_kernels):
    """Image positions jump; without a mask transformers would take the jumps for packed sequences."""
    flash, inputs = load(golden("bsq8"), attn_implementation="flash_attention_2"), reading_inputs(golden("bsq8"))
    close(flash(**{**inputs, "attention_mask": None}).logits, golden("bsq8").tensors("understanding")["logits"])


def test_flash_attention_that_is_not_installed(golden):
    with pytest.raises(UserError, match=r"flash_attention_2.*pip install 'uniar-rl\[flash\]'"):
        load(golden("bsq8"), attn_implementation="flash_attention_2")
