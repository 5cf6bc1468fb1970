"""YAML for settings, with limits: a file of a few hundred bytes must not take minutes, gigabytes, or end in a traceback."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from saekit.errors import ConfigError
from saekit.json_files import read_bytes

MAX_BYTES = 2**20
MAX_VALUES = 100_000
"""Values that a text may hold, each alias counted as a copy of what it stands for."""
MAX_DEPTH = 32
_FLOAT = "tag:yaml.org,2002:float"


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        ConfigError: there is no such file, it has more than 1 MiB, it is not UTF-8, :func:`parse_yaml` refuses it, or it does not
            hold names and values.
    """
    hint = "Give a YAML file of settings."
    try:
        settings = parse_yaml(read_bytes(path, error=ConfigError, hint=hint, max_bytes=MAX_BYTES).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error.reason}.", hint) from error
    except ConfigError as error:
        if str(path) in error.what:
            raise
        raise ConfigError(f"{path}: {error.what}", error.hint) from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds no settings.", "Write them as `name: value`, one on each line.")
    if strange := [key for key in settings if not isinstance(key, str)]:
        raise ConfigError(f"{path}: {strange[0]!r} is not the name of a setting.", "Write settings as `name: value`.")
    return settings


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Numbers such as `3e-4` are read as YAML 1.2 defines them.

    Raises:
        ConfigError: the text is not YAML, a key occurs twice in a mapping, values are nested deeper than 32 levels, or the text
            stands for more than 100,000 values.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"The text has {len(text):,} characters; at most {MAX_BYTES:,} are read.")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, MAX_DEPTH)
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as error:  # ValueError: a date that does not exist, say
        raise ConfigError(f"This is not valid YAML: {' '.join(str(error).split())}.") from error
    except RecursionError as error:
        raise ConfigError(f"The text is nested deeper than {MAX_DEPTH} levels.", "Write it with fewer levels.") from error


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Values that `node` stands for, itself included; raises ConfigError beyond a limit.

    Args:
        known: counts of the nodes seen so far, by id, so that an alias costs no second visit.
        depth: levels that are left.
    """
    if depth < 0:
        raise ConfigError(f"The text is nested deeper than {MAX_DEPTH} levels.", "Write it with fewer levels.")
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # what an alias within its own anchor meets
        parts = [each for pair in node.value for each in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_count(part, known, depth - 1) for part in parts)
    if known[id(node)] > MAX_VALUES:
        raise ConfigError(
            f"The text stands for more than {MAX_VALUES:,} values, or an alias refers to a value that contains it.",
            "Write out fewer values, or use fewer aliases.",
        )
    return known[id(node)]


class _Loader(yaml.SafeLoader):
    """Reads numbers as YAML 1.2 does, and refuses equal keys. PyYAML reads 3e-4 as a text and keeps the last of equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise ConfigError(f"{key.value!r} is given twice.", f"Remove one, near line {node.start_mark.line + 1}.")
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        value = super().construct_yaml_float(node)
        return int(value) if "." not in node.value and value.is_integer() else value  # 2e6 tokens


_Loader.add_constructor(_FLOAT, _Loader.construct_yaml_float)
_Loader.add_implicit_resolver(_FLOAT, re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))
