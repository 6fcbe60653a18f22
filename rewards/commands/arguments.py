"""What the commands under `uniar-rl rewards` take. Loads no library."""

import argparse
from pathlib import Path

from rewards.commands import COMMANDS
from uniar.reading.files import user_path

TOKEN_VARIABLE = "UNIAR_REWARDS_TOKEN"

SCORE_EXAMPLES = """\
examples:
  uniar-rl rewards score compressibility --image kettle.png
  uniar-rl rewards score clip_score model=ViT-B-32 --image kettle.png --prompt "a red kettle"
  uniar-rl rewards score my_rewards.py:Brightness darkest=0.1 --image samples/ --output scores.jsonl
  uniar-rl rewards score ocr --image drawn.jsonl

A line of a JSONL file names its picture in the field image, a path from the file's folder, and may have a prompt, a
task and metadata of its own; other fields are metadata too.
"""

CHECK_EXAMPLES = """\
examples:
  uniar-rl rewards check my_rewards.py
  uniar-rl rewards check my_rewards.py:Brightness darkest=0.1
  uniar-rl rewards check judge.py --samples drawn.jsonl

Without samples of your own the reward gets made-up ones: plain pictures with plain prompts, some with metadata.
"""

SERVE_EXAMPLES = f"""\
examples:
  uniar-rl rewards serve rewards.yaml --port 8000
  {TOKEN_VARIABLE}=... uniar-rl rewards serve rewards.yaml --host 0.0.0.0

The file has a list under `rewards:`, as a recipe has. Beyond this machine a token is needed, from the environment or a
file; anything between the machines can read it and the pictures, unless a tunnel or a proxy with TLS is in between.
SIGINT and SIGTERM end the server when the requests that it has are answered.
"""


def rewards(parser: argparse.ArgumentParser) -> None:
    subparsers = parser.add_subparsers(dest="reward_command", required=True, metavar="COMMAND")
    for name, (_, summary) in COMMANDS.items():
        DECLARE[name](subparsers.add_parser(name, help=summary, description=summary))


def _list(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The rewards that a recipe can name, what each needs with its default parameters and whether it is there. "
        "`rewards describe NAME` says more of one."
    )


def _describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="a name that `rewards list` shows, package.module:Class or path/to/file.py:Class")
    parser.add_argument(
        "parameters", nargs="*", default=[], metavar="key=value", help="to see what it needs with these"
    )


def _score(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = SCORE_EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", help="a name that `rewards list` shows, package.module:Class or path/to/file.py:Class")
    parser.add_argument("parameters", nargs="*", default=[], metavar="key=value", help="its parameters, read as YAML")
    parser.add_argument(
        "--image",
        type=user_path,
        action="extend",
        nargs="+",
        required=True,
        help="pictures, folders or JSONL files",
    )
    parser.add_argument("--prompt", default="", help="the prompt that the pictures were drawn from")
    parser.add_argument("--task", help="the task of that prompt")
    parser.add_argument(
        "--metadata", default="{}", metavar="JSON", help='metadata that a reward reads, such as {"text": "OPEN"}'
    )
    parser.add_argument(
        "--output", type=user_path, metavar="FILE.jsonl", help="file to write the scores to, one line per picture"
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="pictures scored at once; default: %(default)s"
    )


def _new(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="name of the file, such as my_reward")
    parser.add_argument(
        "--output",
        type=user_path,
        default=Path(),
        metavar="FOLDER",
        help="folder to write to; default: this one",
    )


def _check(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = CHECK_EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", help="a .py file, checked for all its rewards; file.py:Name, or any name of a reward")
    parser.add_argument(
        "parameters", nargs="*", default=[], metavar="key=value", help="the reward's parameters, read as YAML"
    )
    parser.add_argument(
        "--samples", type=user_path, metavar="FILE.jsonl", help="pictures, as for `rewards score`; 2 to 16"
    )
    parser.add_argument("--metadata", metavar="JSON", help="for all made-up samples, where the reward needs some")


def _serve(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = SERVE_EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("config", type=user_path, help="YAML file with a list under `rewards:`")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    parser.add_argument(
        "--port", type=int, default=8000, help="port to listen on; 0 takes a free one; default: %(default)s"
    )
    parser.add_argument("--token-file", type=user_path, help=f"file with the token, in place of {TOKEN_VARIABLE}")
    parser.add_argument(
        "--max-body-mb", type=float, default=64, metavar="MB", help="largest body of a request; default: %(default)s"
    )
    parser.add_argument(
        "--max-samples", type=int, default=64, metavar="N", help="most samples in a request; default: %(default)s"
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=2**24,
        metavar="N",
        help="most pixels of a picture; default: %(default)s, 4096 × 4096",
    )
    parser.add_argument(
        "--max-memory-mb",
        type=float,
        default=1074,
        metavar="MB",
        help="memory for requests, on top of the rewards' weights; default: %(default)s, enough for the largest "
        "request that the other defaults allow",
    )
    parser.add_argument(
        "--drain-seconds",
        type=float,
        default=60,
        metavar="S",
        help="time to answer the requests in flight when the server is stopped; default: %(default)s",
    )


DECLARE = {"list": _list, "describe": _describe, "score": _score, "new": _new, "check": _check, "serve": _serve}
