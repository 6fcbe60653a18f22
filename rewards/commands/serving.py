"""`uniar-rl rewards serve`: the rewards of a YAML file, for `use: remote` in training runs elsewhere."""

import argparse
import os
import warnings
from pathlib import Path

from PIL import Image

from rewards.commands.arguments import TOKEN_VARIABLE
from rewards.suite import RewardSuite
from uniar.errors import UserError, did_you_mean
from uniar.reading.yaml_files import read_yaml


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError for bad input; returns when the server has ended."""
    from rewards.remote.wire_images import Limits
    from rewards.serving.connections import build_server, raise_file_limit
    from rewards.serving.memory import return_large_blocks
    from rewards.serving.server import bind, check_access, create_app, run_server
    from rewards.serving.sparse_log import log_sparsely

    least_of = {"max_body_mb": 0.001, "max_samples": 1, "max_pixels": 1, "max_memory_mb": 0.001, "drain_seconds": 0}
    for name, least in least_of.items():
        if not least <= getattr(arguments, name) < 1e9:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(arguments, name):g}; at least {least} is needed.")
    # Pillow warns of pictures that the limit on pixels refuses, or that it was raised for.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    token = read_token(arguments.token_file)
    check_access(arguments.host, token)
    suite = read_suite(arguments.config)
    limits = Limits(
        body_bytes=round(arguments.max_body_mb * 1e6),
        samples=arguments.max_samples,
        image_pixels=arguments.max_pixels,
        request_pixels=max(arguments.max_pixels, Limits.request_pixels),
        resident_bytes=round(arguments.max_memory_mb * 1e6),
    )
    listener = bind(arguments.host, arguments.port)
    print(f"loading {', '.join(suite.names)} ...", flush=True)
    suite.load()
    raise_file_limit()
    return_large_blocks()
    log_sparsely()
    server = build_server(create_app(suite, limits=limits, token=token), arguments.drain_seconds, limits)
    listener.listen(128)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {', '.join(suite.names)} on http://{shown}:{port}", flush=True)
    run_server(server, listener)
    print("ended", flush=True)


def read_suite(path: Path) -> RewardSuite:
    """The rewards under `rewards:` of a YAML file; plug-in files are named from the current folder, or else from the
    file's. Raises UserError."""
    content, _ = read_yaml(path)
    if not isinstance(content, dict) or "rewards" not in content:
        raise UserError(f"{path}: a mapping with the key 'rewards', a list of rewards, is needed.")
    for key in content:
        if key != "rewards":
            raise UserError(
                f"{path}: unknown key {key!r}; only 'rewards' is read.{did_you_mean(str(key), ['rewards'])}"
            )
    try:
        suite = RewardSuite.from_recipe(content["rewards"], folder=path.parent)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not suite.names:
        raise UserError(f"{path}: rewards is empty; there is nothing to serve.")
    return suite


def read_token(path: Path | None) -> str | None:
    """The token of the file, else of the environment, else None. Raises UserError."""
    if path is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip() or None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--token-file '{path}' cannot be read: {error}.") from error
    if not token:
        raise UserError(f"--token-file '{path}' is empty; it holds the token.")
    return token
