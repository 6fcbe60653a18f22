"""YAML in and out, on YAML 1.2's rules for plain values.

PyYAML follows YAML 1.1, which reads `1e-5` as a text, `no` as false, `010` as 8 and `1:30` as 90. Here `1e-5` is a
number, only `true` and `false` are booleans, and `no` (a value of `save_strategy`, say) stays a text. Nothing but
mappings with text keys, lists and plain values is read: no tags, no merge keys, and no key twice.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from rl.settings import Origins
from uniar.errors import UserError

_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z|[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z")
_RESOLVERS = [  # in order of precedence
    ("tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    ("tag:yaml.org,2002:int", re.compile(r"([-+]?[0-9]+|0x[0-9a-fA-F]+)\Z"), list("-+0123456789")),
    ("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789")),
]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's own way to say which plain scalars have a type)


class _Dumper(yaml.SafeDumper):
    """PyYAML's writer. It quotes what YAML 1.1 would misread, and what the rules above would."""


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(node.value, 16 if node.value.startswith("0x") else 10)


for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def read_yaml(path: str | Path, what: str = "file") -> tuple[Any, Origins]:
    """The content of a YAML file and where each of its keys stands ("file, line n").

    Raises UserError: no such file, not text, not YAML, a key twice, or anything beyond mappings, lists and values.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"The {what} '{path}' does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The {what} '{path}' cannot be read: {error}.") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str, lines: bool = True) -> tuple[Any, Origins]:
    """YAML text as plain Python values, and the origin of each key: `source`, with its line if `lines`."""
    origins: Origins = {(): source}

    def place(node: yaml.Node) -> str:
        return f"{source}, line {node.start_mark.line + 1}" if lines else source

    def value_of(node: yaml.Node, path: tuple[str, ...], around: tuple[yaml.Node, ...]) -> Any:
        origins.setdefault(path, place(node))
        if any(node is outer for outer in around):
            raise UserError(f"{place(node)}: an alias refers to the list or mapping that it stands in.")
        if isinstance(node, yaml.ScalarNode):
            return loader.construct_object(node, deep=True)
        if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            raise UserError(f"{place(node)}: the tag '{node.tag}' is not supported; expected a plain mapping or list.")
        if isinstance(node, yaml.SequenceNode):
            return [value_of(item, (*path, str(i)), (*around, node)) for i, item in enumerate(node.value)]
        mapping = {}
        for key_node, item in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
                raise UserError(f"{place(key_node)}: a key must be a plain text; found a list, mapping or merge key.")
            key = key_node.value
            if key in mapping:
                raise UserError(f"{place(key_node)}: the key '{'.'.join((*path, key))}' is given twice.")
            origins[(*path, key)] = place(key_node)
            mapping[key] = value_of(item, (*path, key), (*around, node))
        return mapping

    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return (None if node is None else value_of(node, (), ())), origins
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}, line {mark.line + 1}" if lines and mark else source
        raise UserError(f"{where}: not valid YAML: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}.") from error


def dump_yaml(value: Any) -> str:
    """Plain Python values as YAML that `parse_yaml` reads back equal."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
