"""YAML in and out, on YAML 1.2's rules for plain values.

PyYAML follows YAML 1.1, which reads `1e-5` as a string, `no` as false, `010` as 8 and `1:30` as 90. Here `1e-5` is a
number, only `true` and `false` are booleans, and `no` (a value of `save_strategy`, say) stays a string. Nothing but
mappings with string keys, lists and plain values is read: no tags, no merge keys, and no key twice.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from uniar.errors import UserError
from uniar.reading.files import decoded
from uniar.reading.settings import Origins

LARGEST_FILE = 400_000  # bytes
LARGEST_CONTENT = 20_000
"""values and collections, aliases written out: 500 bytes of aliases of aliases can stand for gigabytes"""
DEEPEST = 40
_TOO_MANY = f"more than {LARGEST_CONTENT} values, aliases written out; a recipe has hundreds"
_TOO_DEEP = f"lists and mappings are nested more than {DEEPEST} deep"

_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z|[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z")
_RESOLVERS = [  # in order of precedence
    ("tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    ("tag:yaml.org,2002:int", re.compile(r"([-+]?[0-9]+|0x[0-9a-fA-F]+)\Z"), list("-+0123456789")),
    ("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789")),
]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's own way to say which plain scalars have a type)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.composed = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """While the text is read too: what PyYAML makes of a value takes a hundred times the value's room."""
        self.composed += 1
        if self.composed > 2 * LARGEST_CONTENT + 1:  # keys count here
            raise yaml.MarkedYAMLError(problem=_TOO_MANY, problem_mark=self.get_mark())
        return super().compose_node(parent, index)

    def fetch_flow_collection_start(self, token: type) -> None:
        self._check_depth()
        super().fetch_flow_collection_start(token)

    def add_indent(self, column: int) -> bool:
        self._check_depth()
        return super().add_indent(column)

    def _check_depth(self) -> None:
        """While the text is read: for what is nested deeper PyYAML takes seconds, then as much stack as there is."""
        if self.flow_level + len(self.indents) > DEEPEST:
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=self.get_mark())


class _Dumper(yaml.SafeDumper):
    """PyYAML's writer. It quotes what YAML 1.1 would misread, and what the rules above would."""


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    digits = node.value.lstrip("+-").lower()
    if len(digits) <= 20:  # Python refuses to read thousands of digits
        value = int(node.value, 16 if digits.startswith("0x") else 10)
        if -(2**63) <= value < 2**63:
            return value
    raise yaml.MarkedYAMLError(problem="a whole number of more than 64 bits", problem_mark=node.start_mark)


_PLAIN_TAGS = {"tag:yaml.org,2002:str", *(tag for tag, _, _ in _RESOLVERS)}
for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def read_yaml(path: str | Path, what: str = "file") -> tuple[Any, Origins]:
    """The content of a YAML file and where each of its keys stands ("file, line n").

    Raises UserError: no such file, not text, not YAML, a key twice, or anything beyond mappings, lists and values.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UserError(f"The {what} '{path}' is larger than {LARGEST_FILE / 1e3:g} kB, so it cannot be meant.")
    except FileNotFoundError:
        raise UserError(f"The {what} '{path}' does not exist.") from None
    except OSError as error:
        raise UserError(f"The {what} '{path}' cannot be read: {error.strerror}.") from error
    return parse_yaml(decoded(content, path, what), str(path))


def parse_yaml(text: str, source: str, lines: bool = True) -> tuple[Any, Origins]:
    """YAML text as plain Python values, and the origin of each key: `source`, with its line if `lines`."""
    origins: Origins = {(): source}
    count = 0

    def place(mark: yaml.Mark | None) -> str:
        return f"{source}, line {mark.line + 1}" if lines and mark else source

    def value_of(node: yaml.Node, path: tuple[str, ...], around: tuple[yaml.Node, ...]) -> Any:
        nonlocal count
        count += 1
        where = place(node.start_mark)
        origins.setdefault(path, where)
        if count > LARGEST_CONTENT:
            raise UserError(f"{where}: {_TOO_MANY}.")
        if any(node is outer for outer in around):
            raise UserError(f"{where}: an alias refers to the list or mapping that it stands in.")
        if len(around) > DEEPEST:
            raise UserError(f"{where}: {_TOO_DEEP}.")
        if isinstance(node, yaml.ScalarNode):
            if node.tag not in _PLAIN_TAGS:
                raise UserError(f"{where}: the tag '{node.tag}' is not supported; expected a plain value.")
            value = loader.construct_object(node, deep=True)
            if isinstance(value, str) and any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
                raise UserError(f"{where}: {'.'.join(path)} holds a NUL or half of a surrogate pair, {value[:40]!r}.")
            return value
        if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            raise UserError(f"{where}: the tag '{node.tag}' is not supported; expected a plain mapping or list.")
        if isinstance(node, yaml.SequenceNode):
            return [value_of(item, (*path, str(i)), (*around, node)) for i, item in enumerate(node.value)]
        mapping = {}
        for key_node, item in node.value:
            where = place(key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
                raise UserError(f"{where}: a key must be a plain string; found a list, mapping or merge key.")
            key = key_node.value
            if key in mapping:
                raise UserError(f"{where}: the key '{'.'.join((*path, key))}' is given twice.")
            origins[(*path, key)] = where
            mapping[key] = value_of(item, (*path, key), (*around, node))
        return mapping

    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return (None if node is None else value_of(node, (), ())), origins
    except yaml.MarkedYAMLError as error:
        where = place(error.problem_mark or error.context_mark)
        raise UserError(f"{where}: not valid YAML: {error.problem or error.context}.") from error
    except yaml.reader.ReaderError as error:
        where = f"{source}, line {text.count(chr(10), 0, error.position) + 1}" if lines else source
        found = ascii(chr(error.character))  # PyYAML gives its number
        raise UserError(f"{where}: not valid YAML: the character {found} is not allowed.") from error
    except (ValueError, KeyError, TypeError) as error:  # of a tag that does not go with its value, such as !!int x
        raise error if isinstance(error, UserError) else UserError(f"{source}: not valid YAML: {error}.") from error


def dump_yaml(value: Any) -> str:
    """Plain Python values as YAML that `parse_yaml` reads back equal."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
