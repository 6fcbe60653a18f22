"""Fixtures that several test files share: a small random checkpoint, and its parts loaded once."""

import os

# Tests share few cores, and threads that wait for each other slow small models down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")

from pathlib import Path

import pytest
import torch

import uniar  # noqa: F401  (first: makes torchvision importable)

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def nano_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint folder with random weights, float32."""
    from uniar.presets import build_preset

    return build_preset("nano", tmp_path_factory.mktemp("presets") / "nano")


@pytest.fixture(scope="session")
def nano_processor(nano_checkpoint: Path):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(nano_checkpoint)


@pytest.fixture(scope="session")
def nano_decoder(nano_checkpoint: Path):
    from uniar.modeling_decoder import UniARVisualDecoder

    return UniARVisualDecoder.from_pretrained(nano_checkpoint)


@pytest.fixture
def nano_model(nano_checkpoint: Path):
    """A fresh model for each test: some of them train it."""
    from uniar.modeling_uniar import UniARForConditionalGeneration

    return UniARForConditionalGeneration.from_pretrained(nano_checkpoint)
