"""Metric records <-> the flat, public names under which their numbers are summed.

The names of one exchange are compared between all members, so they must say everything that has to be equal: the key, the record it
stands in, and for a list how long it is. Source: docs/spec/flower.md, "Metric names".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias

from dure.errors import Refused

Number: TypeAlias = int | float
USUAL_RECORD = "metrics"
MAX_NAMES = 64
"""Names in one exchange; what an instance-open and a trailer hold."""
MAX_NAME_CHARS = 128
_ELEMENT = re.compile(r"(.+)\[([0-9]{1,2})/([0-9]{1,2})\]", re.DOTALL)


def spread(record: str, values: Mapping[str, Number | list[int] | list[float]]) -> dict[str, Number]:
    """{public name: number} of one metric record; a list becomes one name per element.

    Raises:
        Refused: naming the metric whose name cannot be public, an empty list, or that there are more than 64.
    """
    if "/" in record:
        raise Refused(f"metric record {record!r}", "must not have a slash in its name")
    found: dict[str, Number] = {}
    for key, value in values.items():
        name = key if record == USUAL_RECORD and not key.startswith("@") else f"@{record}/{key}"
        if isinstance(value, list):
            if not value:
                raise Refused(f"metric {key!r}", "is an empty list")
            found |= {f"{name}[{i}/{len(value)}]": element for i, element in enumerate(value)}
        elif _ELEMENT.fullmatch(name):
            raise Refused(f"metric {key!r}", "has the name of a list element; call it something else")
        else:
            found[name] = value
    if len(found) > MAX_NAMES:
        raise Refused("metrics", f"are {len(found)} numbers, list elements counted singly; at most {MAX_NAMES} are summed")
    if long := [name for name in found if len(name) > MAX_NAME_CHARS or not name.isprintable()]:
        raise Refused(f"metric {long[0][:40]!r}", f"must be printable and at most {MAX_NAME_CHARS} characters with its record's name")
    return found


def gather(means: Mapping[str, float]) -> tuple[str, dict[str, float | list[float]]]:
    """(record name, values) as the app had them; the inverse of `spread` on the weighted means."""
    record, values = USUAL_RECORD, dict[str, float | list[float]]()
    for name in sorted(means, key=_in_order):
        plain = name
        if name.startswith("@"):
            record, _, plain = name[1:].partition("/")
        element = _ELEMENT.fullmatch(plain)
        if element is None:
            values[plain] = means[name]
            continue
        found = values.setdefault(element[1], [])
        assert isinstance(found, list), "spread gives no scalar the name of an element"
        found.append(means[name])
    return record, values


def _in_order(name: str) -> tuple[str, int]:
    """Elements of a list by their number."""
    element = _ELEMENT.fullmatch(name)
    return (element[1], int(element[2])) if element else (name, 0)
