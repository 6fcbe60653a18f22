"""What a reward needs before it can score (packages, weights, parameters), and whether it is there; loads nothing."""

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniar.reading.files import HUB_ID

_OURS = ("rewards", "uniar")
_EVERYWHERE = {  # the model itself needs them
    "PIL",
    "huggingface_hub",
    "numpy",
    "safetensors",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
}
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Need:
    """`what` is needed, and whether it is `there`; `how` it comes."""

    what: str
    there: bool
    how: str


def needs_of(target: Callable, parameters: Mapping[str, Any] | None = None) -> list[Need]:
    """What a reward class or function needs with these parameters over its defaults: packages that its source imports,
    within functions too; weights that parameters name, as a file or on the Hugging Face hub; parameters without a
    default."""
    given = {**_defaults(target), **(parameters or {})}
    packages = sorted(_packages(target))
    needs = [Need(name, _is_installed(name), "package") for name in packages]
    texts = [value for value in given.values() if isinstance(value, str)]
    files = [text for text in texts if text.endswith(WEIGHT_SUFFIXES) and "/" in text]
    needs += [Need(file, Path(file).is_file(), "file") for file in files]
    hub_ids = dict.fromkeys(_hub_ids([text for text in texts if text not in files], packages))
    needs += [Need(name, _is_cached(name), "weights") for name in hub_ids]
    return needs + [Need(name, False, "parameter") for name in _required(target) if name not in given]


def _signature(target: Callable) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(target).parameters


def _defaults(target: Callable) -> dict[str, Any]:
    found = {name: parameter.default for name, parameter in _signature(target).items()}
    return {name: value for name, value in found.items() if value is not inspect.Parameter.empty}


def _required(target: Callable) -> list[str]:
    if not inspect.isclass(target):
        return []  # what a function's signature requires are columns of the batch
    return [
        name
        for name, parameter in _signature(target).items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]


def _packages(target: Callable) -> set[str]:
    """Third-party packages that the reward's file imports, or a file of this project that it imports."""
    seen: set[Path] = set()
    found: set[str] = set()
    try:
        source = inspect.getsourcefile(target)
    except (TypeError, OSError):  # typed into a session, or its module is gone
        source = None
    pending = [Path(source)] if source else []
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        for module in _imports(path):
            package = module.partition(".")[0]
            if package == "rewards":
                pending += _sources(module)
            elif package not in _OURS and package not in _EVERYWHERE and package not in sys.stdlib_module_names:
                found.add(package)
    return found


def _imports(path: Path) -> Iterator[str]:
    """Modules that a file imports as `import a.b` or `from a.b import c`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module


def _sources(module: str) -> list[Path]:
    spec = importlib.util.find_spec(module)
    return [Path(spec.origin)] if spec is not None and spec.origin and not spec.origin.endswith("__init__.py") else []


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _hub_ids(texts: list[str], packages: list[str]) -> Iterator[str]:
    for text in texts:
        if HUB_ID.fullmatch(text.removeprefix("hf-hub:")) and not Path(text).exists():
            yield text.removeprefix("hf-hub:")
    if "open_clip" not in packages or not _is_installed("open_clip"):
        return
    import open_clip

    for model in (text for text in texts if text in open_clip.list_models()):
        for tag in (text for text in texts if text in open_clip.list_pretrained_tags_by_model(model)):
            hub_id = (open_clip.get_pretrained_cfg(model, tag) or {}).get("hf_hub", "").rstrip("/")
            if hub_id:
                yield hub_id


def _is_cached(hub_id: str) -> bool:
    from huggingface_hub import constants

    snapshots = Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}" / "snapshots"
    return snapshots.is_dir() and any(any(folder.iterdir()) for folder in snapshots.iterdir())
