"""What `uniar-rl train`, `distill`, `evaluate`, `benchmark`, `report`, `compare`, `init`, `plan` and `export` take.
Loads no library."""

import argparse

from uniar.reading.files import user_path


def train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML recipe, see docs/config.md")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key.sub=value", help="settings over the recipe's, read as YAML"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint in the output folder"
    )


distill = train


def evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", help="YAML recipe; its sections evaluate, decode, eval_rewards and understanding are used"
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key.sub=value", help="settings over the recipe's, read as YAML"
    )
    parser.add_argument(
        "--model", help="an exported folder or hub id, a run's checkpoint-N, or an adapter; default: the recipe's own"
    )
    parser.add_argument("--output", type=user_path, help="folder for scores.json, every sample, samples.png")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, …; default: a GPU if there is one")


def report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", type=user_path, help="a run's folder, or one of `uniar-rl evaluate --output`"
    )
    parser.add_argument(
        "--output", type=user_path, help="the file; default: report.html in the folder, of several in the current one"
    )


def compare(parser: argparse.ArgumentParser) -> None:
    what = (
        "a run's folder or one of `uniar-rl evaluate --output`, of which the last evaluation, or a file of evaluations/"
    )
    parser.add_argument("before", metavar="A", type=user_path, help=what)
    parser.add_argument(
        "after", metavar="B", type=user_path, help="the same; exit status 1 if it is significantly worse"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML recipe, see docs/config.md")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key.sub=value", help="settings over the recipe's, read as YAML"
    )
    parser.add_argument("--gpus", type=int, default=1, help="GPUs, one process each (default: 1)")
    parser.add_argument("--memory", type=float, default=80.0, help="memory of each GPU in GiB (default: 80)")
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        default=128,
        metavar="N",
        help="positions of the longest prompt, template and input image included (default: %(default)s)",
    )
    parser.add_argument(
        "--reward-memory",
        type=float,
        default=0.0,
        metavar="GIB",
        help="memory to leave free for rewards whose size is not known here (default: 0)",
    )


def init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=user_path, help="file to write")
    parser.add_argument("--model", help="a checkpoint folder or hub id; tiny: UniAR-Tiny")
    parser.add_argument("--prompts", help="prompts to train on, see data.prompts in docs/config.md")
    parser.add_argument("--rewards", metavar="NAME,…", help="rewards to train on, see `uniar-rl rewards list`")
    parser.add_argument("--gpus", metavar="N", help="how many, one process each")
    parser.add_argument("--memory", metavar="GIB", help="of each GPU")
    parser.add_argument("--held-out", metavar="FILE", help="held-out prompts, which are not asked for; default: none")


def export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=user_path, help="a run's checkpoint-N folder")
    parser.add_argument("--output", type=user_path, required=True, help="folder to write")
    parser.add_argument(
        "--source", help="checkpoint that training started from; default: the one the run's config.yaml names"
    )
    parser.add_argument(
        "--max-shard-size",
        default="5GB",
        metavar="SIZE",
        help="largest weight file, such as 2GB; also what has to fit in memory. Default: %(default)s",
    )
    parser.add_argument(
        "--ema", action="store_true", help="write the averaged weights of the run (model.ema), not the trained ones"
    )
    parser.add_argument(
        "--adapter-only", action="store_true", help="of a LoRA checkpoint, write the adapter alone, in peft's format"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="load what was written as its model card says, and compare its logits with the checkpoint's",
    )
    parser.add_argument(
        "--push-to-hub", metavar="OWNER/NAME", help="upload it to this repository of the Hugging Face hub"
    )
    parser.add_argument("--private", action="store_true", help="a repository that --push-to-hub makes is private")


def benchmark(parser: argparse.ArgumentParser) -> None:
    from rl.benchmarks.catalog import BENCHMARKS  # which loads no library either

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    width = max(map(len, BENCHMARKS))
    listed = "\n".join(f"  {name:<{width}}  {one.title}" for name, one in BENCHMARKS.items())
    parser.epilog = f"benchmarks, see docs/benchmarks.md:\n{listed}\n\n{_BENCHMARK_EXAMPLES}"
    parser.add_argument("name", metavar="NAME", choices=BENCHMARKS, help=f"one of {', '.join(BENCHMARKS)}")
    parser.add_argument("--model", required=True, help="as in `uniar-rl evaluate`, or preset:NAME")
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="the benchmark's own file or folder of prompts, or the id of a data set on the hub",
    )
    parser.add_argument(
        "--image-root", type=user_path, metavar="FOLDER", help="folder of the pictures to edit; default: the file's own"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first prompts, this many")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be drawn, and what is missing; draw nothing"
    )
    parser.add_argument(
        "--baseline",
        metavar="MODEL",
        help="another model, drawn with the same noise and compared image by image; or a folder of this command's",
    )
    parser.add_argument(
        "--output",
        type=user_path,
        metavar="FOLDER",
        help="default: runs/benchmark-NAME; the same again goes on with it",
    )
    parser.add_argument("--overwrite", action="store_true", help="draw again what is there already, and replace it")
    group = parser.add_argument_group("scores")
    group.add_argument(
        "--reward",
        action="append",
        metavar="YAML",
        help="a reward as in a recipe, such as '{use: remote, url: …}', in place of the benchmark's own; repeatable",
    )
    group.add_argument("--judge", metavar="URL", help="ask a model behind this OpenAI-compatible address (vlm_judge)")
    group.add_argument(
        "--no-scores", action="store_true", help="only draw, and lay out the images for the official scorer"
    )
    group = parser.add_argument_group("drawing, in place of the benchmark's own settings")
    for name, kind, what in (
        ("height", int, "in pixels, as the AR model draws"),
        ("width", int, "in pixels"),
        ("images-per-prompt", int, "images of each prompt"),
        ("cfg", float, "scale of classifier-free guidance; 1: none"),
        ("temperature", float, "sampling temperature; 0: the likeliest bits"),
        ("upsampling-ratio", float, "size of the image over height × width, 1 to 2"),
        ("steps", int, "denoising steps of the visual decoder"),
        ("decoder-guidance", float, "guidance of the visual decoder"),
        ("batch-size", int, "images drawn at once"),
    ):
        group.add_argument(f"--{name}", type=kind, help=what)
    group.add_argument("--seed", type=int, default=0, help="seed of the noise; default: %(default)s")
    group = parser.add_argument_group("model")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, …; default: a GPU if there is one")
    group.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    group.add_argument("--attention", default="auto", choices=["auto", "eager", "sdpa", "flash_attention_2"])


_BENCHMARK_EXAMPLES = """\
examples:
  uniar-rl benchmark shapes --model runs/quickstart/final --baseline assets/uniar-tiny
  uniar-rl benchmark geneval --model PATH --prompts geneval_long.jsonl --dry-run
  torchrun --nproc_per_node 8 -m rl.cli benchmark geneval --model PATH --prompts evaluation_metadata.jsonl
"""
