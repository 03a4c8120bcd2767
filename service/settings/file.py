"""Reads and writes a configuration's YAML, whatever is in it.

A key that is given twice is refused, where the last one would win in silence. Never here: any key.
"""

from pathlib import Path
from typing import Any

import yaml

from service.settings.checking import ConfigError, Problem, mask_password


def dump_yaml(tree: dict[str, Any]) -> str:
    """The tree as YAML, its keys in their order."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses a key given twice, where the last one would win."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Not where values are made: by then merge keys (`<<`) have added theirs.
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):  # a list as a key is refused later
                if (key.tag, key.value) in seen:
                    words = f"the key {key.value!r} is given twice"
                    raise yaml.MarkedYAMLError(None, None, words, key.start_mark)
                seen.add((key.tag, key.value))
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """What a file says; {} if it says nothing. Raises ConfigError."""
    try:
        tree = yaml.load(path.read_text("utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError(
            [Problem(str(path), "", "no such file", "the path of a YAML file")]
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(str(path), "", str(error), "a readable YAML file")]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(
            [Problem(str(path), where, error.problem or "bad YAML", "YAML")]
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # Control characters, dates like 2026-13-01, endless nesting.
        words = " ".join(str(error).split())
        raise ConfigError([Problem(str(path), "", words, "YAML")]) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(
            [Problem(str(path), "", mask_password(repr(tree))[:60], "a mapping of keys")]
        )
    return tree
