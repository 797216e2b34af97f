"""JSON objects: read one from a file, and describe how two differ."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not valid JSON, or does not contain an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, but must hold a JSON object.")
    return content


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Describe each changed field as "NAME was VALUE, is now VALUE"; the result is keyed and sorted by name."""
    return {
        name: f"{name} was {_to_json(before.get(name))}, is now {_to_json(now.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    }


def _to_json(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)
