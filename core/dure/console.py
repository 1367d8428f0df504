"""What every command shares: the --dir option, one-line errors, JSON for scripts."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from dure.errors import DureError, world_error
from dure.plain_text import plain, plain_lines

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_DIR = Path(".dure")
Dir = Annotated[Path, typer.Option("--dir", help="Where this role keeps its state.", show_default=True)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for scripts.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask; for scripts.")]
Metrics = Annotated[
    str | None, typer.Option("--metrics", metavar="PORT", help="Answer Prometheus on this loopback port, or host:port; default: off.")
]

WIDE = 240
"""Characters of a line where there is no terminal."""


class PlainConsole(Console):
    """A console on which a file name from a hostile bundle is only a file name, brackets and all."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **settings)

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(plain_lines(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for part in super().render(renderable, options):
            ours = part.control or part.text in ("\n", "\r")  # rich's own ends of lines, and a progress line's
            yield part if ours else Segment(plain(part.text), part.style)


out = PlainConsole(soft_wrap=True)
err = PlainConsole(stderr=True, soft_wrap=True)


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """A command whose expected errors are one line on standard error and a non-zero exit; our own mistakes keep their traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except DureError as error:
            fail(str(error), error.exit_code)
        except OSError as error:
            known = world_error(error)
            if known is None:
                raise
            fail(str(known), known.exit_code)
        except KeyboardInterrupt:
            fail("interrupted; everything acknowledged is kept", 130)

    return run


def fail(message: str, exit_code: int = 1) -> NoReturn:
    """Print one line and leave."""
    print(f"error: {plain(' '.join(message.split()))}", file=sys.stderr)
    raise typer.Exit(exit_code)


def show_json(value: object) -> None:
    """One JSON object on one line, last."""
    print(plain(json.dumps(value, ensure_ascii=False, sort_keys=True)))


def say(line: str) -> None:
    """A line for people; markup-free, so a name in brackets stays as it is."""
    out.print(plain(line), markup=False)


def draw(picture: RenderableType) -> None:
    """A table for people: as wide as the terminal, and in a pipe or log as wide as it wants to be, so that no name is cut."""
    (out if out.is_terminal else PlainConsole(width=WIDE)).print(picture)


@contextlib.contextmanager
def first_use(directory: Path) -> Iterator[None]:
    """Says once where state is kept: after what is inside has made the folder."""
    known = directory.exists()
    yield
    if not known:
        err.print(f"state is kept in {directory.resolve()} (--dir)", markup=False)


def span_words(seconds: int) -> str:
    """A time for people: 90 s, 10 min, 6 h, 2 days; the largest unit that is whole."""
    for size, name in ((86_400, "day"), (3_600, "h"), (60, "min")):
        if seconds % size == 0:
            return f"{seconds // size} {name}" + ("s" if name == "day" and seconds > size else "")
    return f"{seconds} s"
