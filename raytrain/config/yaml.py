"""YAML 1.2 as people mean it: `off`, `no`, `010`, `12:30` and `2024-11-29` are text, and `1e-4` is a number.

A file is read along with the schema of what it holds: where a field takes text, any unquoted word is text as it is
written, so that a run may be named `007`, `1e5` or `null`, and a revision be `1234567`. Elsewhere a word is what YAML's
core schema says. A key that is given twice is an error; errors name the file and the line.
"""

import io
import math
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter

from raytrain.config.fields import of_kind, options_of, type_below
from raytrain.errors import ConfigError

TAG = "tag:yaml.org,2002:"
SCALARS = {f"{TAG}{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp", "value", "merge")}
NULL = re.compile(r"~|null|Null|NULL|")
BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
INT = re.compile(r"[-+]?(0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
PADDED = re.compile(r"[-+]?0[0-9]+")
# Words that are text here and something else to a reader of YAML 1.1. They are written in quotes.
OLD_WORDS = re.compile(r"y|n|yes|no|on|off|=|<<|[-+]?[0-9][0-9_,]*(:[0-9_.]+)*(\.[0-9_]*)?|\d{4}-\d\d?-\d\d?.*", re.I)

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]")  # readers fold or refuse them, unless escaped


def read_yaml(path: str, schema: Any = Any) -> Any:
    """Parse a YAML file. Raises ConfigError naming the file and the line.

    Args:
        schema: Type of what the file holds, such as RunConfig: its text fields take words as they are written.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid YAML: it is not UTF-8 text ({error})") from None
    return parse_yaml(text, schema, origin=path)


def parse_yaml(text: str | bytes, schema: Any = Any, origin: str = "the text") -> Any:
    """Parse YAML text. Raises ConfigError naming `origin` and the line."""
    try:
        node = YAML(typ="safe", pure=True).compose(text)
        return None if node is None else _construct(node, schema)
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{origin} is not valid YAML: {line}{error.problem}") from None
    except YAMLError as error:
        raise ConfigError(f"{origin} is not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{origin} is not valid YAML: an anchor holds itself") from None


def _construct(node: Node, schema: Any) -> Any:
    if isinstance(node, ScalarNode) and node.tag in SCALARS:
        return node.value if node.tag == f"{TAG}str" else _word(node.value, schema)
    if isinstance(node, SequenceNode) and node.tag == f"{TAG}seq":
        return [_construct(item, type_below(schema, 0)) for item in node.value]
    if isinstance(node, MappingNode) and node.tag == f"{TAG}map":
        return _mapping(node, schema)
    raise _problem(f"the tag {node.tag} is not supported", node)


def _mapping(node: MappingNode, schema: Any) -> dict[Any, Any]:
    """Raises MarkedYAMLError for a key that is given twice. `<<: *anchor` gives way to the mapping's own keys."""
    found: dict[Any, Any] = {}
    merged: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        if key_node.value == "kind" and isinstance(value_node, ScalarNode):
            schema = of_kind(schema, value_node.value)
    for key_node, value_node in node.value:
        if key_node.tag == f"{TAG}merge":
            sources = value_node.value if isinstance(value_node, SequenceNode) else [value_node]
            for source in reversed(sources):
                if not isinstance(source, MappingNode):
                    raise _problem("<< takes a mapping, or a list of mappings", key_node)
                merged |= _mapping(source, schema)
            continue
        if not isinstance(key_node, ScalarNode):
            raise _problem("a key can't be a list or a mapping", key_node)
        key = _construct(key_node, str)
        if key in found:
            raise _problem(f"{key!r} is given twice", key_node)
        found[key] = _construct(value_node, type_below(schema, key))
    return {**merged, **found}


def _problem(text: str, node: Node) -> MarkedYAMLError:
    return MarkedYAMLError(problem=text, problem_mark=node.start_mark)


def _word(text: str, schema: Any) -> Any:
    """The value of an unquoted word, according to the type of its field."""
    options = options_of(schema)
    if str in options and not {int, float, bool} & {*options} and text not in ("", "~"):
        return text if type(None) not in options or NULL.fullmatch(text) is None else None
    return plain_value(text)


def plain_value(text: str) -> Any:
    """An unquoted word by YAML's core schema, but for integers that begin with 0: they are text, like 007."""
    if NULL.fullmatch(text):
        return None
    if BOOL.fullmatch(text):
        return text.lower() == "true"
    if INT.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if PADDED.fullmatch(text):
        return text
    if FLOAT.fullmatch(text):
        return float(text)
    return float(text.lower().replace(".", "", 1)) if INFINITE.fullmatch(text) else text


class _Representer(SafeRepresenter):
    """Writes text in quotes if some reader could take it for another type, and floats so that every reader takes them
    for floats."""

    def represent_text(self, value: str) -> ScalarNode:
        is_ambiguous = not isinstance(plain_value(value), str) or OLD_WORDS.fullmatch(value) is not None
        is_ambiguous |= value[:1] in (
            "?",
            ":",
            "-",
        )  # ruamel writes [?0] and {:0: a} without quotes, and can't read them
        style = '"' if CONTROL.search(value) else "'" if is_ambiguous else None
        return self.represent_scalar(f"{TAG}str", value, style=style)

    def represent_number(self, value: float) -> ScalarNode:
        if not math.isfinite(value):
            return self.represent_scalar(f"{TAG}float", {"inf": ".inf", "-inf": "-.inf"}.get(str(value), ".nan"))
        mantissa, e, exponent = repr(value).partition("e")
        is_bare = e and "." not in mantissa
        return self.represent_scalar(f"{TAG}float", f"{mantissa}{'.0' if is_bare else ''}{e}{exponent}")


_Representer.add_representer(str, _Representer.represent_text)
_Representer.add_representer(float, _Representer.represent_number)


def to_yaml(raw: Any) -> str:
    """YAML for people: keys in their order, letters as they are. Reading it gives `raw` back, with or without a
    schema."""
    return _dumped(raw, is_one_line=False)


def to_word(value: Any) -> str:
    """A value on one line, as in `key=value`."""
    return _dumped(value, is_one_line=True).removesuffix("...\n").strip()


def _dumped(value: Any, *, is_one_line: bool) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = is_one_line
    yaml.allow_unicode = True
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # typed as None
    if is_one_line:
        yaml.width = 1 << 30
    out = io.StringIO()
    yaml.dump(value, out)
    return out.getvalue()
