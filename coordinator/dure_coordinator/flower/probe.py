"""How large is an app's model, and does it fit the weights it shall start from? Asked of the app itself, in a process of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from dure.errors import BadInput
from dure.model.layout import Layout
from dure_coordinator.flower.launch import OWN_INTERPRETER, ProcessConfig, ServerAppProcess
from dure_coordinator.flower.probe_backend import ANSWER

TIMEOUT_S = 180.0


async def probe(config: ProcessConfig, launcher: Sequence[str] = OWN_INTERPRETER, *, timeout_s: float = TIMEOUT_S) -> Layout | None:
    """The layout of the first arrays the ServerApp would send; None if its first message has none.

    Raises:
        BadInput: the app did not come so far; its own reason.
    """
    folder = Path(config.run_dir)
    log = folder / "probe.log"
    process = ServerAppProcess(config, log, launcher, max_restarts=0)
    try:
        async with asyncio.timeout(timeout_s):
            await process.run()
    except TimeoutError:
        raise BadInput(f"the ServerApp sent nothing within {timeout_s:.0f} s; give --parameters to plan without asking it") from None
    finally:
        await process.stop()
    found = folder / ANSWER
    if not found.exists():
        raise BadInput(f"the ServerApp ended before it sent anything; its last words: {_last_words(log)}")
    answer = json.loads(found.read_text())
    if answer["error"]:
        raise BadInput(answer["error"])
    return None if answer["layout"] is None else Layout.from_json(answer["layout"].encode())


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1][:300] if lines else "none"
