"""Gradients of an update's micro-batches are added up in float32 under ZeRO-2, and `plan` counts them so."""

from pathlib import Path

import pytest

from rl.config.deepspeed_file import accumulates_in_float32, filled_by_trainer
from rl.plan.model_states import ZeroSettings
from uniar.reading.files import read_object

CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"
TWO = {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    ("settings", "float32"),
    [
        (TWO, True),
        (read_object(CONFIGS / "zero2.json"), True),
        ({**TWO, "data_types": {}}, True),
        ({**TWO, "data_types": None}, True),
        ({**TWO, "data_types": {"grad_accum_dtype": "fp32"}}, True),
        ({**TWO, "data_types": {"grad_accum_dtype": "bf16"}}, False),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}}, True),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, False),
        ({"zero_optimization": {"stage": 1}}, False),
        ({"zero_optimization": {}}, False),
        ({}, False),
        (None, False),
        (read_object(CONFIGS / "zero3.json"), False),
    ],
)
def test_which_settings_add_up_in_float32(settings, float32):
    assert accumulates_in_float32(settings) is float32
    assert ZeroSettings.of(settings, 64).float32_gradients is float32
    if settings is None:
        return
    told, said = filled_by_trainer(settings).get("data_types"), settings.get("data_types")
    assert told == ({"grad_accum_dtype": "fp32"} if float32 else said)


def test_deepspeed_reads_it():
    from deepspeed.runtime.config import DeepSpeedConfig

    sizes = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0}
    told = {**filled_by_trainer(TWO), **sizes, "bf16": {"enabled": True}}
    assert DeepSpeedConfig(told).grad_accum_dtype == "fp32"
