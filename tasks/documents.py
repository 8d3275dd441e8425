"""YAML and JSON that a user wrote, read so that nothing in it can surprise: strict, bounded, and with clear errors.

YAML is that of the 1.2 core schema: ``yes`` and ``2001-01-01`` are texts, ``1e-3`` is a number. A key given twice,
of which loaders silently keep the last, is refused, and so are documents that are nested too deeply for a reader
or whose aliases would expand to far more than was written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, ClassVar, NoReturn

import yaml

from tasks.errors import BadInput, shortened

MOST_BYTES = 16 * 2**20
DEEPEST = 64
MOST_EXPANDED = 20_000
"""Nodes that a document with aliases may always have; above it, at most ten times those that were written."""

_LibraryLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_LibraryLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        tag: constructor
        for tag, constructor in _LibraryLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
            tag = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{shortened(repr(node.value))} is no {tag}", node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag != "tag:yaml.org,2002:merge":
                key = self.construct_object(key_node, deep=True)
                fault = "a key is no plain value" if isinstance(key, list | dict) else f"key {key!r} occurs twice"
                if isinstance(key, list | dict) or key in seen:
                    raise yaml.constructor.ConstructorError(None, None, fault, key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, 0) if re.match(r"[-+]?0[ox]", text) else int(text)


for _tag, _pattern, _first in (
    ("merge", r"<<", "<"),
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)


def parse_yaml(text: str | bytes, field: str, source: str) -> Any:
    """What a YAML document says. ``field`` and ``source`` are for messages: the parameter and the file it names.

    Raises:
        BadInput: it is no such document, is too large or too deep, or gives a key twice.
    """
    if len(text) > MOST_BYTES:
        _too_large(field, source)
    try:
        return _constructed(text.decode("utf-8-sig") if isinstance(text, bytes) else text, field, source)
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        where = f"line {place.line + 1}, column {place.column + 1}: " if place else ""
        problem = f"this is no YAML: {where}{error.problem or error.context}"
        raise BadInput(field, source, problem, "correct the file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(field, source, f"this is no YAML: {error}", "give a text file in UTF-8") from error


def _constructed(text: str, field: str, source: str) -> Any:
    depth = 0
    for event in yaml.parse(text, Loader=_LibraryLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            line = event.start_mark.line + 1
            raise BadInput(field, source, f"line {line}: nested more than {DEEPEST} deep", "write it flatter")
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        written, expanded = _sizes(root)
        if expanded > max(MOST_EXPANDED, 10 * written):
            problem = f"its aliases expand {written:,} nodes to {min(expanded, 10**12):,} or more"
            raise BadInput(field, source, problem, "write the values out instead of *alias")
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _sizes(root: yaml.Node) -> tuple[int, int]:
    """Nodes as written, and with every alias replaced by what it stands for."""
    expanded: dict[int, int] = {}
    open_nodes: set[int] = set()
    stack = [(root, False)]
    while stack:
        node, children_done = stack.pop()
        if children_done:
            open_nodes.discard(id(node))
            expanded[id(node)] = 1 + sum(expanded[id(child)] for child in _children(node))
        elif id(node) in open_nodes:
            raise yaml.composer.ComposerError(None, None, "an alias inside of what it stands for", node.start_mark)
        elif id(node) not in expanded:
            open_nodes.add(id(node))
            stack.append((node, True))
            stack.extend((child, False) for child in _children(node))
    return len(expanded), expanded[id(root)]


def _children(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def parse_json(text: str | bytes, field: str, source: str) -> Any:
    """What a JSON text says; NaN and infinities, which are none, and keys given twice are refused.

    Raises:
        BadInput: it is no such text, or nested too deeply, or holds a number that can't be read.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    except RecursionError as error:
        raise BadInput(field, source, "nested too deeply", "write it flatter") from error
    except UnicodeDecodeError as error:
        raise BadInput(field, source, f"this is no UTF-8 text ({error})", "correct the encoding") from error
    except ValueError as error:
        raise BadInput(field, source, f"this is no JSON ({error})", "correct it") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return content


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _too_large(field: str, source: str) -> NoReturn:
    problem = f"more than {MOST_BYTES // 2**20} MiB, which no file of parameters has"
    raise BadInput(field, source, problem, "check the path; texts and prompts in bulk go into files of their own")
