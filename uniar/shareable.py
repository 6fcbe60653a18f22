"""What is written into files that are passed on (model cards, pictures): names in place of paths, and neither addresses
nor keys."""

import re
from collections.abc import Mapping
from typing import Any

ADDRESS, SECRET = "<URL>", "<secret>"

_SECRET_KEYS = re.compile(
    r"(?:^|[_-])(?:tokens?|secret|passw(?:or)?d|credentials?|authorization|cookie)$|api[_-]?key$", re.I
)
_SECRETS = re.compile(r"\b(?:sk|hf|pk|gh[opsu]|xox[abp])[-_][\w-]{8,}|(?<=\bbearer )\S+|(?<=\bbasic )\S+", re.I)
_HOST = r"(?:localhost|(?:\d{1,3}\.){3}\d{1,3}|\[[0-9a-f:]+\]|[a-z][\w-]*(?:\.[\w-]+)+)"
_ADDRESSES = re.compile(
    rf"\b[a-z][a-z0-9+.-]*://[^\s'\"<>]+|\b[^\s/:@'\"]+:[^\s/@'\"]+@[\w.-]+\S*|\b{_HOST}:\d{{2,5}}\b(?:/\S*)?"
    r"|\b(?:\d{1,3}\.){3}\d{1,3}\b",
    re.I,
)
_BEGINNING = r"(?:~[\w.-]*|\.\.|[a-z]:)?[\\/]"
_WHOLE_PATH = re.compile(rf"{_BEGINNING}|\.\.$|~$|[\\/]?(?:[^\\/\n]+[\\/])+\.\.(?:[\\/]|$)", re.I)
_PATHS = re.compile(rf"(?<![\w.:~<>/\\-]){_BEGINNING}(?:[^\s\\/'\",;)\]}}]+[\\/])+([^\s\\/'\",;)\]}}]*)", re.I)


def shareable(value: Any, key: str = "") -> Any:
    """The value, mappings and lists included, without what tells of a machine: of a path outside the current folder its
    last name is left, of an address ADDRESS, of a key or password (recognised by `key`, its name, or by its look)
    SECRET. Relative paths and hub ids stay."""
    if isinstance(value, Mapping):
        return {
            _text(name) if isinstance(name, str) else name: shareable(own, str(name)) for name, own in value.items()
        }
    if isinstance(value, list | tuple):
        return [shareable(own, key) for own in value]
    if not isinstance(value, str):
        return value
    return SECRET if value and _SECRET_KEYS.search(key) else _text(value)


def _text(text: str) -> str:
    text = _ADDRESSES.sub(ADDRESS, _SECRETS.sub(SECRET, text))
    if "\n" not in text and _WHOLE_PATH.match(text):
        return re.split(r"[\\/]", text.rstrip("\\/"))[-1]
    return _PATHS.sub(lambda found: found[1] or "…", text)
