"""`dure`: commands come from the entry-point group `dure.commands` and are imported only when called."""

from __future__ import annotations

import importlib
import re
import sys
from importlib.metadata import entry_points
from typing import Any, NoReturn

import click
import typer
from typer.main import get_command

SUMMARIES = {
    "member": "Partner: keys, join request, signing and trusting a charter.",
    "node": "Partner: a node in your data centre: set up, allow plans, run, look.",
    "charter": "Administrator: draft, propose, publish, show the charter.",
    "coordinator": "Administrator: set up and serve the coordinator.",
    "run": "Administrator: plan, start, watch, export training runs.",
    "data": "Partner: commit to training data, open files of it to an auditor.",
    "contributions": "Who did what, per member and run, from the signed log.",
    "allocation": "Who gets which part, by the contributions in the log; signed by k members.",
    "release": "Published weights with evidence: create, sign, publish, verify.",
    "log": "The consortium's log: look, prove, check; evidence against it.",
    "audit": "Auditor: export a bundle, check one offline.",
    "settings": "Which settings are in force, and where each comes from.",
    "demo": "A whole consortium on this machine, in a few minutes.",
}
EXTRA = {"coordinator": "coordinator", "run": "coordinator", "node": "participant", "demo": "coordinator,participant,demo"}
GROUP = "dure.commands"


class LazyCommands(click.Group):
    """Lists every command without importing it; what was typed wrong is one line, too."""

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except click.Abort:
            self._end("nothing was decided; answer the question, or give --yes in scripts", 1)
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            where = f"; see `{context.command_path} --help`" if context is not None else ""
            said = re.sub(r"( Did you mean [^?]*\?)\1", r"\1", error.format_message())  # click and typer both suggest
            self._end(said.rstrip(".") + where, error.exit_code)
        sys.exit(code if isinstance(code, int) else 0)

    @staticmethod
    def _end(message: str, code: int) -> NoReturn:
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(code)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        found = next((e for e in entry_points(group=GROUP) if e.name == name), None)
        if found is None:
            return None
        try:
            module, _, attribute = found.value.partition(":")
            application = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            extra = EXTRA.get(name)
            if extra is None or (error.name or "").startswith("dure"):
                raise
            print(f"error: `dure {name}` needs {error.name}, which is not installed; `pip install dure[{extra}]`", file=sys.stderr)
            raise SystemExit(2) from None
        command = get_command(application) if isinstance(application, typer.Typer) else application
        assert isinstance(command, click.Command)
        command.short_help = SUMMARIES.get(name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))


@click.command(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dure", message="dure %(version)s")
def main() -> None:
    """Dure: companies that do not trust each other train one model together.

    Every command takes --dir, where its role keeps its state, and teaches itself with --help. First time here? `dure demo` plays a whole
    consortium on this machine.
    """


if __name__ == "__main__":
    main(prog_name="dure")
