"""`uniar-rl generate`, `edit` and `chat` at a small size, for tests of them."""

import json
from pathlib import Path

from rl.cli import main


def write_lines(file: Path, lines: list) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def draw(checkpoint: Path, *options: object, command: str = "generate") -> int:
    sizes = ("--height", "64", "--width", "64") if command == "generate" else ()
    return main([command, "--model", str(checkpoint), "--steps", "2", *sizes, *map(str, options)])


def chat(checkpoint: Path, *options: object) -> int:
    return main(["chat", "--model", str(checkpoint), "--max-new-tokens", "8", *map(str, options)])
