"""What is exported loads with the model card's snippets and holds the trained weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from inference.visual_inputs import prepare_visual_inputs
from rl.config import LoraSection
from rl.export import export_checkpoint, export_model
from rl.policy_model import trainable
from uniar.errors import UserError
from uniar.modeling_decoder import UniARVisualDecoder
from uniar.modeling_uniar import UniARForConditionalGeneration

GOLDEN = Path(__file__).parent / "golden" / "bsq8" / "ckpt"


def shapes(folder: Path) -> dict[str, tuple]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                piece = tensors.get_slice(name)
                found[name] = (tuple(piece.get_shape()), piece.get_dtype())
    return found


def keys(mapping: dict, prefix: str = "") -> set[str]:
    own = {f"{prefix}{key}" for key in mapping}
    return own.union(*(keys(value, f"{prefix}{key}.") for key, value in mapping.items() if isinstance(value, dict)))


def text_logits(model, processor) -> torch.Tensor:
    ids = processor.tokenizer("a red circle", return_tensors="pt").input_ids
    with torch.no_grad():
        return model(input_ids=ids).logits


def drawn(model, processor) -> torch.Tensor:
    inputs = prepare_visual_inputs(["a red circle"], model, processor, ar_height=64, ar_width=64)
    return model.generate_visual(**inputs, temperature=0, cfg=2.0)


def nudge(model) -> None:
    """Stands for training: moves every trained parameter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def test_exported_model_is_the_trained_one(nano_model, nano_processor, nano_checkpoint, tmp_path):
    policy = trainable(nano_model, None)
    before = drawn(policy, nano_processor)
    nudge(policy)
    trained, logits = drawn(policy, nano_processor), text_logits(policy, nano_processor)
    assert not torch.equal(before, trained)
    export_model(policy, nano_checkpoint, tmp_path / "out")
    loaded = UniARForConditionalGeneration.from_pretrained(tmp_path / "out", torch_dtype=torch.float32)
    assert torch.equal(text_logits(loaded, nano_processor), logits)
    assert torch.equal(drawn(loaded, nano_processor), trained)
    images = UniARVisualDecoder.from_pretrained(tmp_path / "out").decode(
        trained, ar_height=64, ar_width=64, num_inference_steps=2
    )
    assert images[0].size == (64, 64)
    assert not (tmp_path / "out.partial").exists()


def test_lora_is_merged_and_the_policy_left_as_it_was(nano_model, nano_processor, nano_checkpoint, tmp_path):
    policy = trainable(nano_model, LoraSection(r=4, alpha=8))
    nudge(policy)
    base = policy.get_base_model()
    trained, weights = drawn(base, nano_processor), [p.clone() for p in policy.parameters()]
    export_model(policy, nano_checkpoint, tmp_path / "out")
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights, policy.parameters(), strict=True))
    loaded = UniARForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert torch.equal(drawn(loaded, nano_processor), trained)
    assert shapes(tmp_path / "out") == shapes(nano_checkpoint)

    policy.save_pretrained(tmp_path / "checkpoint-1")
    export_checkpoint(tmp_path / "checkpoint-1", nano_checkpoint, tmp_path / "later")
    again = UniARForConditionalGeneration.from_pretrained(tmp_path / "later")
    assert torch.equal(drawn(again, nano_processor), trained)


def test_layout_is_the_source_checkpoints(tmp_path):
    model = UniARForConditionalGeneration.from_pretrained(GOLDEN, torch_dtype=torch.float32)
    export_model(model, GOLDEN, tmp_path / "out")
    assert shapes(tmp_path / "out") == shapes(GOLDEN)
    written, golden = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", GOLDEN))
    assert keys(golden) <= keys(written)
    assert keys(written) - keys(golden) <= {
        "text_config.rope_parameters",
        "text_config.rope_parameters.mrope_interleaved",
        "text_config.rope_parameters.mrope_section",
        "text_config.rope_parameters.rope_theta",
        "text_config.rope_parameters.rope_type",
        "text_config.pad_token_id",
        "text_config.dtype",
        "vision_config.dtype",
    }
    assert written["dtype"] == golden["dtype"] == "bfloat16"
    for file in GOLDEN.rglob("*"):
        name = file.relative_to(GOLDEN)
        if file.is_file() and str(name) not in ("config.json", "generation_config.json", "model.safetensors"):
            assert (tmp_path / "out" / name).read_bytes() == file.read_bytes(), name


def test_what_is_no_checkpoint_is_refused(nano_checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither config"):
        export_checkpoint(tmp_path / "empty", nano_checkpoint, tmp_path / "out")
    incomplete = tmp_path / "incomplete"
    incomplete.mkdir()
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "model.safetensors"):
        (incomplete / name).write_bytes((nano_checkpoint / name).read_bytes())
    (incomplete / "bsq_encoder").mkdir()
    (incomplete / "bsq_encoder" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="sd3_transformer"):
        export_checkpoint(tmp_path / "empty", incomplete, tmp_path / "out")


def test_a_folder_with_other_things_is_not_overwritten(nano_model, nano_checkpoint, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="no checkpoint folder"):
        export_model(nano_model, nano_checkpoint, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
