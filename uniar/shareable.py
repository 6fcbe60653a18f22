"""What is written into files that are passed on (model cards, pictures): names in place of paths, and neither addresses
nor keys."""

import re
from collections.abc import Mapping
from typing import Any

ADDRESS, SECRET = "<URL>", "<secret>"

_SECRET_NAMES = re.compile(
    r"secret|private|auth(?!ors?(?:$|[_-]))|passw|passphrase|pwd|token(?!i[sz])|credential|cookie|key$", re.I
)
_HARMLESS_NAMES = re.compile(
    r"(?:prompt|image|answer|question|text|target|reward)_key|\w+_env|hub_private_repo|(?:pad|bos|eos)_token"
    r"|(?:max|min|num)_(?:\w+_)?tokens|include_num_input_tokens_seen",
    re.I,
)
"""of ours, transformers' and TRL's"""
_SECRETS = re.compile(
    r"\b(?:sk|hf|pk|rk|gh[oprsu]|github_pat|glpat|npm|pypi|xox[abeprs])[-_][\w-]{8,}|\b(?:AKIA|ASIA)[0-9A-Z]{12,}"
    r"|\bAIza[\w-]{20,}|\beyJ[\w-]+\.[\w-]+(?:\.[\w-]*)?|(?<=\bbearer )\S+|(?<=\bbasic )\S+",
    re.I,
)
_NAMED = re.compile(r"(?<![\w<-])(-{0,2})(\w[\w-]*)(\s*=\s*|:\s*|\s+)(?!bearer |basic )[^\s&,;'\"]+", re.I)
_HOST = r"(?:localhost|(?:\d{1,3}\.){3}\d{1,3}|\[[0-9a-f:]*:[0-9a-f:]+\]|[a-z][\w-]*(?:\.[\w-]+)+)"
_ADDRESSES = re.compile(
    rf"\b[a-z][a-z0-9+.-]*://[^\s'\"<>]+|\b[^\s/:@'\"]+:[^\s/@'\"]+@[\w.-]+\S*|(?<![\w.]){_HOST}:\d{{2,5}}\b(?:/\S*)?"
    r"|\b[a-z][\w-]*:(?:\d{4,5}|80|443)\b(?:/\S*)?|\b(?:\d{1,3}\.){3}\d{1,3}\b|\b[\w.+-]+@(?:[\w-]+\.)+[a-z]{2,}\b"
    r"|(?<![\w:])\[?(?=[0-9a-f:]*::|(?:[0-9a-f]+:){7})(?=[0-9a-f:]*\d)[0-9a-f:]{3,}(?![\w:])\]?",
    re.I,
)
_BEGINNING = r"(?:~[\w.-]*|\.\.|[a-z]:)?[\\/]"
_WHOLE_PATH = re.compile(rf"{_BEGINNING}|\.\.$|~$|[\\/]?(?:[^\\/\n]+[\\/])+\.\.(?:[\\/]|$)", re.I)
# A folder's name may have spaces, but none after what looks like a file's name or before an option.
_FOLDER = r"[^\s\\/'\",;)\]}]+(?:(?<!\.\w\w)(?<!\.\w\w\w)(?<!\.\w{4})[ ](?=\w)[^\s\\/'\",;)\]}]+)*[\\/]"
_PATHS = re.compile(rf"(?<![\w.~<>/\\-]){_BEGINNING}(?:{_FOLDER})+([^\s\\/'\",;)\]}}]*)", re.I)


def shareable(value: Any, key: str = "") -> Any:
    """The value, mappings and lists included, without what tells of a machine: of a path outside the current folder its
    last name is left, of an address ADDRESS, of a key or password (recognised by `key`, its name, or by its look)
    SECRET. Relative paths and hub ids stay."""
    if value and _is_secret(key) and not isinstance(value, bool | float):
        return SECRET
    if isinstance(value, Mapping):
        return {
            _text(name) if isinstance(name, str) else name: shareable(own, str(name)) for name, own in value.items()
        }
    if isinstance(value, list | tuple):
        return [shareable(own, key) for own in value]
    return _text(value) if isinstance(value, str) else value


def _is_secret(name: str) -> bool:
    return _SECRET_NAMES.search(name) is not None and _HARMLESS_NAMES.fullmatch(name) is None


def _text(text: str) -> str:
    text = _ADDRESSES.sub(ADDRESS, _NAMED.sub(_without_value, _SECRETS.sub(SECRET, text)))
    if "\n" not in text and _WHOLE_PATH.match(text):
        return re.split(r"[\\/]", text.rstrip("\\/"))[-1]
    return _PATHS.sub(lambda found: found[1] or "…", text)


def _without_value(found: re.Match[str]) -> str:
    """`name=value`, `name: value` or `--name value` without the value of a secret."""
    dashes, name, between = found.groups()
    says = "=" in between or dashes == "--" or (":" in between and name.lower() != "key")
    return f"{dashes}{name}{between}{SECRET}" if says and _is_secret(name) else found[0]
