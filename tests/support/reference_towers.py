"""Transformer towers in a few lines of float64, written from the papers' definitions: what rewards are compared with.

Weights come as a mapping of names to tensors, in the naming of the published file that a test imitates.
"""

import json
import math
from contextlib import contextmanager

import torch
from PIL import Image

CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64)


def random_weights(shapes, seed=0, std=0.3):
    """Tensors far from any near-identity initialisation, so that all terms matter."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * std for name, shape in shapes.items()}


def random_images(*sizes, seed=1):
    """(width, height) each, smooth enough that resizing keeps something."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for width, height in sizes:
        coarse = torch.randint(0, 256, (5, 5, 3), generator=generator, dtype=torch.uint8).numpy()
        images.append(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))
    return images


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(x, w, name, eps=1e-5):
    x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + eps)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attend(q, k, v, heads, mask=None):
    """(tokens, width) each → (tokens, width)."""
    width = q.shape[-1] // heads
    parts = []
    for start in range(0, q.shape[-1], width):
        part = slice(start, start + width)
        scores = q[:, part] @ k[:, part].T / math.sqrt(width)
        parts.append(torch.softmax(scores if mask is None else scores + mask, dim=-1) @ v[:, part])
    return torch.cat(parts, dim=-1)


def causal(tokens):
    return torch.full((tokens, tokens), -math.inf, dtype=torch.float64).triu(1)


def pixels_of(image):
    """(H, W, 3) float64 from 0 to 1."""
    width, height = image.size
    return torch.tensor(list(image.convert("RGB").tobytes()), dtype=torch.float64).reshape(height, width, 3) / 255


def clip_center_crop(image, size):
    """(size, size, 3) float64: PIL's bicubic on 8 bits, the middle, CLIP's normalisation."""
    scale = size / min(image.size)
    width, height = (max(int(side * scale + 1e-9), size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return (pixels_of(image.crop((left, top, left + size, top + size))) - CLIP_MEAN) / CLIP_STD


def patches_of(pixels, patch):
    """(H, W, 3) → (patches, 3·patch²) in raster order, channel slowest, as a convolution's weight has them."""
    height, width, _ = pixels.shape
    corners = [(y, x) for y in range(0, height, patch) for x in range(0, width, patch)]
    return torch.stack([pixels[y : y + patch, x : x + patch].permute(2, 0, 1).flatten() for y, x in corners])


# open_clip's naming: clip_score, hpsv2, aesthetic

TINY_OPEN_CLIP = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@contextmanager
def open_clip_architecture(folder):
    """TINY_OPEN_CLIP as an architecture that open_clip knows by name."""
    import open_clip

    file = folder / "tiny-for-tests.json"
    file.write_text(json.dumps(TINY_OPEN_CLIP))
    paths = list(open_clip.factory._MODEL_CONFIG_PATHS)
    open_clip.add_model_config(file)
    yield file.stem
    open_clip.factory._MODEL_CONFIG_PATHS[:] = paths
    del open_clip.factory._MODEL_CONFIGS[file.stem]


def open_clip_block(x, w, name, mask=None):
    h = norm(x, w, f"{name}.ln_1")
    q, k, v = (h @ w[f"{name}.attn.in_proj_weight"].T + w[f"{name}.attn.in_proj_bias"]).chunk(3, dim=-1)
    x = x + linear(attend(q, k, v, 2, mask), w, f"{name}.attn.out_proj")
    return x + linear(gelu(linear(norm(x, w, f"{name}.ln_2"), w, f"{name}.mlp.c_fc")), w, f"{name}.mlp.c_proj")


def open_clip_image(pixels, w):
    """(16, 16, 3) normalised pixels → (12,)"""
    x = patches_of(pixels, 8) @ w["visual.conv1.weight"].flatten(1).T
    x = torch.cat([w["visual.class_embedding"][None], x]) + w["visual.positional_embedding"]
    x = open_clip_block(norm(x, w, "visual.ln_pre"), w, "visual.transformer.resblocks.0")
    return norm(x, w, "visual.ln_post")[0] @ w["visual.proj"]


def clip_tokens(prompt, context):
    from open_clip.tokenizer import SimpleTokenizer

    return [49406, *SimpleTokenizer().encode(prompt)[: context - 2], 49407]


def open_clip_text(prompt, w):
    """(12,)"""
    tokens = clip_tokens(prompt, 12)
    x = w["token_embedding.weight"][tokens] + w["positional_embedding"][: len(tokens)]
    x = open_clip_block(x, w, "transformer.resblocks.0", causal(len(tokens)))
    return norm(x, w, "ln_final")[-1] @ w["text_projection"]


def open_clip_shapes():
    """Names and shapes of TINY_OPEN_CLIP, as open_clip's own files have them."""
    shapes = {
        "positional_embedding": (12, 16),
        "text_projection": (16, 12),
        "logit_scale": (),
        "visual.class_embedding": (16,),
        "visual.positional_embedding": (5, 16),
        "visual.proj": (16, 12),
        "visual.conv1.weight": (16, 3, 8, 8),
        "token_embedding.weight": (49408, 16),
    }
    for name in ("visual.ln_pre", "visual.ln_post", "ln_final"):
        shapes |= {f"{name}.weight": (16,), f"{name}.bias": (16,)}
    for tower in ("visual.transformer.resblocks.0", "transformer.resblocks.0"):
        shapes |= {f"{tower}.attn.in_proj_weight": (48, 16), f"{tower}.attn.in_proj_bias": (48,)}
        shapes |= {f"{tower}.attn.out_proj.weight": (16, 16), f"{tower}.attn.out_proj.bias": (16,)}
        shapes |= {f"{tower}.mlp.c_fc.weight": (64, 16), f"{tower}.mlp.c_fc.bias": (64,)}
        shapes |= {f"{tower}.mlp.c_proj.weight": (16, 64), f"{tower}.mlp.c_proj.bias": (16,)}
        shapes |= {f"{tower}.{n}.{part}": (16,) for n in ("ln_1", "ln_2") for part in ("weight", "bias")}
    return shapes


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def linear_head(x, w, names):
    """Five linear layers, one after the other; `names` are theirs."""
    for name in names:
        x = linear(x, w, name)
    return float(x[0])


def head_shapes(names, features):
    widths = [features, 1024, 128, 64, 16, 1]
    return {
        f"{name}.{part}": (after, before) if part == "weight" else (after,)
        for name, before, after in zip(names, widths[:-1], widths[1:], strict=True)
        for part in ("weight", "bias")
    }
