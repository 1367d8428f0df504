"""What an app says its tensors begin as; `dure.model.initial` makes weights of it.

Apart from that, so that commands which only read an app do not wait for numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("normal", "constant")


@dataclass(frozen=True)
class Rule:
    """What the tensors of a pattern begin as: `normal` with standard deviation `value`, or all `value`."""

    tensors: str
    """A name, or with a star at either end the end, beginning or middle of one; `*`: every tensor."""
    kind: str
    value: str
    """Decimal text; what float32 is nearest to it."""
