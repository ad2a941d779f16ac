"""Paths into a JSON value, for tests that plant faults."""

from __future__ import annotations

import copy
from typing import Any


def changed(release: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy of the release with one value replaced."""
    result = copy.deepcopy(release)
    node = result
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    return result


def written(path: tuple[Any, ...]) -> str:
    return "release" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)


def fields(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all fields in objects, descending into the first entry of each list."""
    found: list[tuple[Any, ...]] = []
    if isinstance(node, dict):
        for name, item in node.items():
            found += [(*path, name), *fields(item, (*path, name))]
    elif isinstance(node, list) and node:
        found += fields(node[0], (*path, 0))
    return found
