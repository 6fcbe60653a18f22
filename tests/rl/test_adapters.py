"""LoRA factors merged into the weights they are for."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.training_runs import nudge

from rl.checkpoint.adapters import MergedAdapter, merge_checkpoint, merge_state, require_plain_lora
from rl.checkpoint.tensor_files import TensorFiles
from rl.cli import main
from rl.config.model import LoraSection
from rl.policy.loading import LORA_TARGETS, trainable
from uniar.errors import UserError
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.weight_files import ADAPTER


def adapted(checkpoint: Path, **settings):
    model = UniARForConditionalGeneration.from_pretrained(checkpoint)
    model = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 7, "target_modules": LORA_TARGETS, **settings}))
    return nudge(model) or model


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
    later = MergedAdapter(base, TensorFiles(tmp_path / "checkpoint", ADAPTER), config, "the adapter")
    expected = policy.merge_and_unload().state_dict()
    assert merged.keys() == later.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    assert all(torch.equal(later[name], expected[name]) for name in expected)


PLAIN = {
    "gaussian": {"init_lora_weights": "gaussian"},
    "random": {"init_lora_weights": False},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 8, r"layers\.0\.mlp\.up_proj": 2}, "alpha_pattern": {"v_proj": 3.5}},
}


@pytest.mark.parametrize("case", PLAIN)
def test_adapters_that_leave_the_base_alone_merge_as_peft_merges_them(nano_checkpoint, tmp_path, case):
    model = adapted(nano_checkpoint, **PLAIN[case])
    model.save_pretrained(tmp_path)
    found, expected = merge_checkpoint(tmp_path, nano_checkpoint), model.merge_and_unload().state_dict()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "PiSSA", "corda", "loftq", "lora_ga", "new"])
def test_adapters_that_change_the_base_are_refused(nano_checkpoint, tmp_path, start):
    if start in ("pissa", "olora"):  # what peft itself writes
        adapted(nano_checkpoint, init_lora_weights=start).save_pretrained(tmp_path)
    else:
        (tmp_path / "adapter_config.json").write_text(json.dumps({**CONFIG, "init_lora_weights": start}))
    with pytest.raises(UserError, match="changes the weights it is added to"):
        merge_checkpoint(tmp_path, nano_checkpoint)


def test_an_adapter_that_peft_has_made_plain_merges_to_what_was_trained(nano_checkpoint, tmp_path):
    model = UniARForConditionalGeneration.from_pretrained(nano_checkpoint)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=7, target_modules=LORA_TARGETS, init_lora_weights="pissa"))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    nudge(model)
    model.peft_config["default"].init_lora_weights = "pissa"
    start = tmp_path / "start"
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(start))
    found, expected = merge_checkpoint(tmp_path / "plain", nano_checkpoint), model.merge_and_unload().state_dict()
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)


def test_exporting_somebody_elses_adapter(nano_checkpoint, tmp_path, capsys):
    model = adapted(nano_checkpoint, use_rslora=True)
    model.save_pretrained(tmp_path / "adapter")
    command = ["export", str(tmp_path / "adapter"), "--source", str(nano_checkpoint), "--output", str(tmp_path / "out")]
    assert main(command) == 0
    found, expected = TensorFiles(tmp_path / "out"), model.merge_and_unload().state_dict()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in found)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": "pissa"}))
    assert main(command) == 2
    assert "init_lora_weights 'pissa', which changes the weights" in capsys.readouterr().err


CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "rank_pattern": {}, "use_dora": False, "bias": "none"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "sets use_dora"),
        ({"modules_to_save": ["lm_head"]}, "sets modules_to_save"),
        ({"something_new": {"a": 1}}, "sets something_new"),
        ({"bias": "all"}, "sets bias 'all'"),
        ({"peft_type": "VERA"}, "is of type VERA"),
        ({"r": "4"}, "has '4' in r"),
        ({"r": 0}, "has 0 in r"),
        ({"lora_alpha": None}, "has None in lora_alpha"),
        ({"rank_pattern": {"q_proj": -1}}, "has -1 in r or rank_pattern"),
        ({"alpha_pattern": [2]}, r"has \[2\] in lora_alpha or alpha_pattern"),
    ],
)
def test_other_adapters_are_refused(change, words):
    require_plain_lora(CONFIG, "x")
    with pytest.raises(UserError, match=words):
        require_plain_lora({**CONFIG, **change}, "x")


def test_adapter_tensors_must_be_pairs_for_the_model():
    base = {"layer.weight": torch.zeros(2, 3)}
    a, b = torch.ones(1, 3), torch.ones(2, 1)
    names = ["base_model.model.layer.lora_A.weight", "base_model.model.layer.lora_B.weight"]
    config = {**CONFIG, "r": 1, "lora_alpha": 2}
    pair = dict(zip(names, (a, b), strict=True))
    assert torch.equal(MergedAdapter(base, pair, config, "x")["layer.weight"], 2 * b @ a)
    with pytest.raises(UserError, match=r"of layer\.weight in x have shapes \(2, 1\) and \(1, 3\).*says rank 4"):
        MergedAdapter(base, pair, CONFIG, "x")["layer.weight"]
    with pytest.raises(UserError, match="only the factor"):
        MergedAdapter(base, {names[0]: a}, config, "x")
    with pytest.raises(UserError, match="not a LoRA factor of a weight"):
        MergedAdapter(base, {names[0].replace("layer", "other"): a}, config, "x")
