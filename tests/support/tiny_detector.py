"""A small random Mask2Former for the reward `geneval`, and pictures to look at."""

import numpy as np
import torch
from PIL import Image

from rewards.geneval.request import OBJECT_NAMES

SIDES = {"short_side": 64, "long_side": 96}


def tiny_config(**changed):
    from transformers import Mask2FormerConfig, SwinConfig

    swin = SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    sizes = {
        "feature_size": 32,
        "mask_feature_size": 16,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 32,
        "dim_feedforward": 32,
        "num_attention_heads": 2,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_queries": 12,
        "id2label": dict(enumerate(OBJECT_NAMES)),
        "label2id": {name: index for index, name in enumerate(OBJECT_NAMES)},
    }
    return Mask2FormerConfig(backbone_config=swin, **{**sizes, **changed})


def save_detector(folder):
    """A random Mask2Former that is sure of itself, saved as transformers saves the published one."""
    from transformers import Mask2FormerForUniversalSegmentation

    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(tiny_config())
    for name, parameter in model.named_parameters():
        if "backbone" not in name and "encoder.encoder" not in name and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.35)
    torch.nn.init.normal_(model.class_predictor.weight, std=0.5)
    with torch.no_grad():
        model.class_predictor.bias[3:-1] -= 8  # so that three classes share the detections
        model.class_predictor.bias[-1] += 2  # and not every query is an object
    model.save_pretrained(folder)
    return folder


def pictures(count, size=(72, 48), seed=0):
    """Coloured rectangles on a coloured ground."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        image = Image.new("RGB", size, tuple(rng.integers(0, 256, 3).tolist()))
        for _ in range(3):
            x, y = rng.integers(0, size[0] - 20), rng.integers(0, size[1] - 20)
            width, height = rng.integers(10, 30, 2)
            image.paste(tuple(rng.integers(0, 256, 3).tolist()), (int(x), int(y), int(x + width), int(y + height)))
        images.append(image)
    return images
