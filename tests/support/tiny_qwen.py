"""A small random Qwen3-VL, saved as transformers saves the published ones."""

import json
import shutil
from pathlib import Path

import torch


def save_qwen3(nano_checkpoint: Path, folder: Path) -> Path:
    """A Qwen3-VL of the preset's sizes, with its processor."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    for file in nano_checkpoint.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copy(file, folder)
    config = json.loads((nano_checkpoint / "config.json").read_text())
    config["model_type"] = "qwen3_vl"
    config["text_config"]["model_type"] = "qwen3_vl_text"
    config["vision_config"]["model_type"] = "qwen3_vl"
    for key in ("architectures", "auto_map"):
        config.pop(key, None)
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder
