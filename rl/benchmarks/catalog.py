"""Which benchmarks there are, and the settings that UniAR draws each at. Loads no library.

UniAR's evaluation scripts name the settings of GenEval, OneIG, LongText-Bench and ImgEdit. For GenEval 2 and DPG-Bench
there are none of UniAR's; they have GenEval's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from uniar.shipped_files import SHIPPED


@dataclass(frozen=True)
class Drawing:
    """How the images of a benchmark are drawn."""

    height: int
    """of the image as the AR model draws it, in pixels"""
    width: int
    images: int
    """of each prompt"""
    guidance: float
    upsampling_ratio: float = 1.0
    temperature: float = 0.1
    steps: int = 28
    decoder_guidance: float = 1.5


@dataclass(frozen=True)
class Benchmark:
    """A benchmark by its name on the command line."""

    title: str
    prompts: str
    """where its prompts are published; of one whose prompts come along, their file"""
    drawing: Drawing
    rewards: tuple[Mapping[str, Any], ...] = ()
    """entries as of a recipe; none for one that is scored by its own scorer alone"""
    groups: tuple[str, ...] = ()
    """keys of the metadata that the table is by"""
    own_prompts: bool = False
    edits: bool = False
    judge: Mapping[str, Any] = field(default_factory=dict)
    """what `vlm_judge` is given where a judge is named"""
    batch_size: int = 8
    """images drawn at once, where nothing else is said"""


SHAPES_PROMPTS = SHIPPED / "configs/prompts/shapes/held_out.jsonl"
_GENEVAL = Drawing(512, 512, images=4, guidance=2.5, upsampling_ratio=2.0)
_TEXT = Drawing(704, 1280, images=4, guidance=2.0)

BENCHMARKS = {
    "shapes": Benchmark(
        "UniAR-Tiny's held-out captions",
        str(SHAPES_PROMPTS),
        Drawing(64, 64, images=1, guidance=2.0, temperature=0.5, steps=6),
        ({"use": "rl.tiny.shapes:Shapes", "name": "shapes"},),
        ("tag",),
        own_prompts=True,
        batch_size=32,
    ),
    "geneval": Benchmark(
        "GenEval (arXiv:2310.11513), short or long prompts",
        "evaluation_metadata.jsonl of github.com/djghosh13/geneval, or UniAR's geneval.jsonl and geneval_long.jsonl",
        _GENEVAL,
        ({"use": "geneval"},),
        ("tag",),
    ),
    "geneval2": Benchmark(
        "GenEval 2 (arXiv:2512.16853)",
        "geneval2_data.jsonl of github.com/facebookresearch/GenEval2",
        Drawing(512, 512, images=1, guidance=2.5, upsampling_ratio=2.0),
        ({"use": "geneval2"},),
        ("atom_count",),
    ),
    "oneig": Benchmark(
        "OneIG-Bench, text rendering (arXiv:2506.07977)",
        "OneIG-Bench.csv of github.com/OneIG-Bench/OneIG-Benchmark, or UniAR's oneig.jsonl",
        _TEXT,
        ({"use": "text_rendering"},),
        ("class", "prompt_length"),
    ),
    "longtext": Benchmark(
        "LongText-Bench (arXiv:2507.22058)",
        "text_prompts.jsonl of the data set X-Omni/LongText-Bench, or UniAR's longtext.jsonl",
        _TEXT,
        ({"use": "text_rendering"},),
        ("category", "length"),
    ),
    "imgedit": Benchmark(
        "ImgEdit-Bench, single turn (arXiv:2505.20275)",
        "basic_edit.json of the data set sysuyy/ImgEdit with its pictures, or UniAR's imgedit.jsonl",
        Drawing(512, 512, images=1, guidance=2.0, upsampling_ratio=2.0),
        groups=("edit_type",),
        edits=True,
        judge={"preset": "imgedit", "rescale": "none", "expectation": False},  # the numbers as they are published
    ),
    "dpg": Benchmark(
        "DPG-Bench (arXiv:2403.05135)",
        "the folder dpg_bench/prompts, or dpg_bench.csv, of github.com/TencentQQGYLab/ELLA",
        _GENEVAL,
    ),
}
