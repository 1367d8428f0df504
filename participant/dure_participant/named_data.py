"""Which registered data a run's usage statements name: what the operator says with `dure node allow --data`, else the node's setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dure.errors import BadInput
from dure_participant.settings import NodeSettings
from dure_participant.store import Decision

MOST = 16
"""Data sets one usage statement may name."""
FEWEST_DIGITS = 8


def of_run(
    decision: Decision | None, settings: NodeSettings, registered: Mapping[bytes, str]
) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Payload digests that a run's usage names, and those it leaves out: the log does not have them of this member."""
    wanted = settings.commitments if decision is None or decision.data is None else decision.data
    return tuple(d for d in wanted if d in registered), tuple(d for d in wanted if d not in registered)


def find(asked: Sequence[str], registered: Mapping[bytes, str], member: str, option: str = "--data") -> tuple[bytes, ...]:
    """The payload digests of the data asked for, each once.

    Args:
        asked: names, or eight or more first digits of a digest; "" alone for no data at all.
        registered: what the log has of this member, as far as this node has read it.

    Raises:
        BadInput: the log has no such data of this member, or several; says what to do.
    """
    if list(asked) == [""]:
        return ()
    found = tuple(dict.fromkeys(_one(text, registered, member, option) for text in asked))
    if len(found) > MOST:
        raise BadInput(f"{option}: {len(found)} data sets; a usage statement names {MOST} at most")
    return found


def _one(text: str, registered: Mapping[bytes, str], member: str, option: str) -> bytes:
    asked = text.lower()
    found = [d for d, name in registered.items() if name == text or (len(asked) >= FEWEST_DIGITS and d.hex().startswith(asked))]
    if not found:
        here = f"there are {', '.join(sorted(registered.values()))}; " if registered else ""
        raise BadInput(
            f"{option} {text}: {member} has registered no such data in the log, as far as this node has read it; {here}"
            "`dure data register` it, have the administrator enter the file (`dure coordinator enter`), and try again in a few seconds"
        )
    if len(found) > 1:
        raise BadInput(f"{option} {text}: {len(found)} data sets are called so; give more digits of the digest (`dure data list --json`)")
    return found[0]


def in_words(data: Sequence[bytes], registered: Mapping[bytes, str]) -> str:
    """For the person who decides."""
    return ", ".join(f"{registered.get(d, '?')} ({d.hex()[:16]}…)" for d in data) or "no data"
