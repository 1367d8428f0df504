"""Logs of the two daemons: events with facts, JSON for machines, lines for a terminal. Needs structlog, which both extras bring."""

from __future__ import annotations

import sys


def configure_logs() -> None:
    """Events on standard output from `info` up: one JSON object a line, or readable lines where it is a terminal.

    Tracebacks are text only: renderers that show local variables would print keys and seeds.
    """
    import structlog

    terminal = sys.stdout.isatty()
    render: structlog.typing.Processor = structlog.processors.JSONRenderer(ensure_ascii=False)
    if terminal:
        render = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(() if terminal else (structlog.processors.format_exc_info,)),
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(20),
    )
