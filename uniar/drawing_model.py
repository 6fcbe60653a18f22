"""What drawing and writing need of the AR model, so that the engine does not depend on the model's own file."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from uniar.configuration_uniar import UniARConfig
from uniar.shared_prefix import SharedPrefixes


class DrawingModel(Protocol):
    """UniARForConditionalGeneration, as uniar/generation.py and uniar/processing.py see it."""

    config: UniARConfig
    device: torch.device
    dtype: torch.dtype
    model: nn.Module
    """the backbone, with its vision tower"""
    visual_decoder_layers: nn.ModuleList
    visual_logits: Callable[..., Tensor]
    lm_head: Callable[..., Tensor]
    shared_prefixes: Callable[..., SharedPrefixes | None]
    generation_config: Any
