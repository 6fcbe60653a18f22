"""LoRA factors merged into the weights they are for."""

import json

import pytest
import torch
from training_runs import nudge

from rl.adapters import MergedAdapter, lora_scale, merge_state
from rl.config_model import LoraSection
from rl.policy_model import trainable
from rl.tensor_files import TensorFiles
from uniar.errors import UserError
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.weight_files import ADAPTER


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_is_pefts_own(nano_checkpoint, tmp_path, dtype):
    policy = trainable(
        UniARForConditionalGeneration.from_pretrained(nano_checkpoint, torch_dtype=dtype), LoraSection(r=4, alpha=7)
    )
    nudge(policy)
    policy.save_pretrained(tmp_path / "checkpoint")
    config = json.loads((tmp_path / "checkpoint" / "adapter_config.json").read_text())
    merged = dict(merge_state(policy.state_dict(), config))
    base = UniARForConditionalGeneration.from_pretrained(nano_checkpoint, torch_dtype=dtype).state_dict()
    later = MergedAdapter(base, TensorFiles(tmp_path / "checkpoint", ADAPTER), 7 / 4)
    expected = policy.merge_and_unload().state_dict()
    assert merged.keys() == later.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    assert all(torch.equal(later[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "sets use_dora"),
        ({"rank_pattern": {"q_proj": 8}}, "sets rank_pattern"),
        ({"peft_type": "VERA"}, "is of type VERA"),
    ],
)
def test_other_adapters_are_refused(change, words):
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "rank_pattern": {}, "use_dora": False}
    assert lora_scale(config, "x") == 2
    assert lora_scale({**config, "use_rslora": True}, "x") == 4
    with pytest.raises(UserError, match=words):
        lora_scale({**config, **change}, "x")


def test_adapter_tensors_must_be_pairs_for_the_model():
    base = {"layer.weight": torch.zeros(2, 3)}
    a, b = torch.ones(1, 3), torch.ones(2, 1)
    names = ["base_model.model.layer.lora_A.weight", "base_model.model.layer.lora_B.weight"]
    assert torch.equal(MergedAdapter(base, dict(zip(names, (a, b), strict=True)), 2.0)["layer.weight"], 2 * b @ a)
    with pytest.raises(UserError, match="only the factor"):
        MergedAdapter(base, {names[0]: a}, 2.0)
    with pytest.raises(UserError, match="no LoRA factor of a weight"):
        MergedAdapter(base, {names[0].replace("layer", "other"): a}, 2.0)
