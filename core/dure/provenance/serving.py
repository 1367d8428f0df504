"""How core asks the coordinator that serves: through the one entry point that its packages bring, which are not core's."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from dure.errors import BadInput


def serving_coordinator(command: str) -> Callable[..., dict[str, Any]]:
    """The call `(directory, command, arguments, timeout_s=…) -> answer`.

    Args:
        command: who asks, for words.

    Raises:
        BadInput: the coordinator's packages are not installed.
    """
    found = next(iter(entry_points(group="dure.admin", name="call")), None)
    try:
        if found is None:
            raise ModuleNotFoundError("dure_coordinator")
        call: Callable[..., dict[str, Any]] = found.load()
    except ModuleNotFoundError as error:
        raise BadInput(f"`dure {command}` needs {error.name or error}, which is not installed; `pip install dure[coordinator]`") from None
    return call
