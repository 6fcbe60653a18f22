"""What `uniar-rl chat`, `generate` and `edit` take. Loads no library."""

import argparse
from typing import get_args

from uniar.engine import Engine
from uniar.reading.files import user_path
from uniar.reading.prompt_forms import SUFFIXES

ATTENTIONS = ("eager", "sdpa", "flash_attention_2")

CHAT_EXAMPLES = """\
examples:
  uniar-rl chat --model CHECKPOINT --image cat.png --prompt "What is this?"
  uniar-rl chat --model CHECKPOINT --image left.png --image right.png
  uniar-rl chat --model CHECKPOINT --prompts questions.jsonl --output answers.jsonl

Without a prompt, questions are read line by line until the end of the input, as one conversation. A line of the JSONL
file names its picture (or a list of them) in the field image, a path from the file's folder; lines without one take
--image. Run the same command again to go on with a file of answers.
"""

GENERATE_EXAMPLES = """\
examples:
  uniar-rl generate --model CHECKPOINT --prompt "a red circle" --output circle.png
  uniar-rl generate --model CHECKPOINT --prompts prompts.jsonl --images-per-prompt 4 --output drawn/
  uniar-rl generate --model tiny --prompt "a photo of a red circle" --output circle.png

A line of the JSONL file may have a height and a width of its own. Run the same command again to go on with a folder.
Several GPUs share the work, and draw the same images: torchrun --nproc_per_node 8 -m rl.cli generate …
"""

EDIT_EXAMPLES = """\
examples:
  uniar-rl edit --model CHECKPOINT --image cat.png --prompt "make it night" --output night.png
  uniar-rl edit --model CHECKPOINT --prompts edits.jsonl --output edited/

A line of the JSONL file names its picture in the field image, a path from the file's folder; lines without one take
--image. Run the same command again to go on with a folder.
Several GPUs share the work, and draw the same images: torchrun --nproc_per_node 8 -m rl.cli edit …
"""


def chat(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = CHAT_EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--image", type=user_path, action="append", default=[], help="a picture to ask about; repeatable"
    )
    _prompt_options(parser, "the question; without it, questions are read from the terminal", pictures=True)
    parser.add_argument(
        "--output", type=user_path, metavar="FILE.jsonl", help="file to write the answers to --prompts to"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=512, metavar="N", help="longest answer; default: %(default)s"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="sampling temperature; 0: the likeliest token each time; above 0 any token may come, at its probability "
        "(no top-k, no top-p); default: %(default)s",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of sampling at a temperature above 0; default: %(default)s"
    )
    _model_options(parser)


def generate(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = GENERATE_EXAMPLES, argparse.RawDescriptionHelpFormatter
    _prompt_options(parser, "what to draw", pictures=False)
    parser.add_argument("--height", type=int, help="in pixels; default: what the checkpoint was made for")
    parser.add_argument("--width", type=int, help="in pixels; see --height")
    _drawing_options(parser)
    _model_options(parser)


def edit(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EDIT_EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--image", type=user_path, help="the picture to edit")
    _prompt_options(parser, "the edit to make", pictures=True)
    parser.add_argument(
        "--height", type=int, help="in pixels; default: the picture's shape, no larger than the checkpoint was made for"
    )
    parser.add_argument("--width", type=int, help="in pixels; see --height")
    _drawing_options(parser)
    _model_options(parser)


def _prompt_options(parser: argparse.ArgumentParser, what: str, *, pictures: bool) -> None:
    parser.add_argument("--prompt", help=what)
    parser.add_argument(
        "--prompts",
        type=user_path,
        metavar="FILE",
        help=f"many of them: a {', '.join(SUFFIXES)} file or a folder of such; as JSONL an object per line with "
        "`prompt` and optionally an `id`",
    )
    parser.add_argument("--prompt-key", metavar="NAME", help="field of --prompts with the prompt; default: prompt")
    parser.set_defaults(image_key=None, image_root=None)
    if pictures:
        parser.add_argument(
            "--image-key",
            metavar="NAME",
            help="field of --prompts, or of its metadata, with the picture; default: image",
        )
        parser.add_argument(
            "--image-root",
            type=user_path,
            metavar="FOLDER",
            help="folder that relative paths of pictures start from; default: the folder of the file",
        )


def _drawing_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        type=user_path,
        required=True,
        metavar="FILE.png|FOLDER",
        help="a PNG for a single image; else a folder, filled with <id or line number>-<k>.png and manifest.jsonl. "
        "Images that are there already are not drawn again",
    )
    parser.add_argument(
        "--layout",
        choices=("flat", "uniar"),
        default="flat",
        help="what the folder looks like; uniar: <idx>/metadata.json and <idx>/samples/<k>.png, as UniAR's own "
        "generate_batch.py writes and its converters read; default: %(default)s",
    )
    parser.add_argument("--overwrite", action="store_true", help="draw again what is there already, and replace it")
    group = parser.add_argument_group("drawing")
    group.add_argument(
        "--images-per-prompt", type=int, default=1, metavar="N", help="images of each prompt; default: %(default)s"
    )
    group.add_argument(
        "--seed", type=int, default=0, help="seed of the noise; another seed gives other images; default: %(default)s"
    )
    group.add_argument(
        "--cfg",
        type=float,
        default=2.5,
        help="scale of classifier-free guidance; 1 or less: none; default: %(default)s",
    )
    group.add_argument(
        "--temperature",
        type=float,
        default=0.1,
        help="sampling temperature; 0: the likeliest bits; default: %(default)s",
    )
    group.add_argument(
        "--upsampling-ratio",
        type=float,
        default=1.0,
        metavar="RATIO",
        help="size of the image over height × width, 1 to 2; default: %(default)s",
    )
    group.add_argument(
        "--steps", type=int, default=28, help="denoising steps of the visual decoder; default: %(default)s"
    )
    group.add_argument(
        "--decoder-guidance",
        type=float,
        default=1.5,
        metavar="SCALE",
        help="guidance of the visual decoder; default: %(default)s",
    )
    group.add_argument("--batch-size", type=int, default=4, help="images drawn at once; default: %(default)s")
    group.add_argument(
        "--memory-budget-gb",
        type=float,
        metavar="GB",
        help="memory for drawing visual tokens; a batch that needs more is drawn in parts, which may change "
        "some bits in bfloat16; default: no limit",
    )
    group.add_argument(
        "--engine",
        choices=get_args(Engine),
        default="auto",
        help="how visual tokens are drawn: operator by operator (eager), with layers compiled first, as CUDA graphs, "
        "or as CUDA graphs where their first bits are eager's (auto; on a CPU that is eager); default: %(default)s",
    )


def _model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        required=True,
        help="checkpoint folder, hub id (owner/name), or preset:NAME, a small random model, made at "
        "first use in the folder $UNIAR_CACHE, or models",
    )
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, …; default: a GPU if there is one")
    group.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16"],
        help="default: bfloat16 on a GPU, float32 on a CPU",
    )
    group.add_argument(
        "--attention",
        default="auto",
        choices=["auto", *ATTENTIONS],
        help="default: flash_attention_2 where flash-attn is installed, else sdpa",
    )
    group.add_argument("--quiet", action="store_true", help="no progress bars and no closing summary")
