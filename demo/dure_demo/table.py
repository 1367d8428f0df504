"""The demo's last screen: what each member did, which model is how good on whose text, and that in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from dure_coordinator.watch import human_bytes
from dure_demo.evaluate import Evaluation

Row = Sequence[str]


def show_members(console: Console, members: Sequence[Mapping[str, Any]]) -> None:
    """One line per member; `members` as `dure demo --json` prints them."""
    rows = [
        (
            member["name"],
            str(member["exchanges_counted"]),
            f"{member['tokens']:,}",
            f"{member['seconds']:.0f}",
            human_bytes(member["bytes_up"]),
            human_bytes(member["bytes_down"]),
        )
        for member in members
    ]
    _show(console, "What each member did", ("member", "exchanges counted", "tokens", "seconds", "sent", "received"), rows)


def show_matrix(console: Console, evaluation: Evaluation) -> None:
    """Bits per byte with perplexity in brackets, model by text; the best model of each column is marked."""
    bits, ppl = evaluation.bits_per_byte, evaluation.perplexity
    members = list(bits.joint)
    models: list[tuple[str, Mapping[str, float], Mapping[str, float]]] = [
        ("before training", bits.initial, ppl.initial),
        ("JOINT", bits.joint, ppl.joint),
        *((f"{member} alone", bits.solo[member], ppl.solo[member]) for member in bits.solo),
    ]
    columns = [*members, "mean"]
    values = [[*(b[m] for m in members), bits.mean(b)] for _, b, _ in models]
    others = [[*(p[m] for m in members), ppl.mean(p)] for _, _, p in models]
    best = [min(row[column] for row in values) for column in range(len(columns))]
    rows = []
    for (name, _, _), mine, beside in zip(models, values, others, strict=True):
        cells = [f"{b:.2f}{'*' if b == best[c] else ''} ({_short(p)})" for c, (b, p) in enumerate(zip(mine, beside, strict=True))]
        rows.append((name, *cells))
    title = "Held-out text: bits per byte (perplexity in brackets); lower is better, * is the best of its column"
    _show(console, title, ("model", *columns), rows, emphasised="JOINT")
    for line in verdict(evaluation):
        console.print(line, highlight=False, markup=False)


def verdict(evaluation: Evaluation) -> list[str]:
    """What the numbers say, in words; nothing that they do not say."""
    bits, ppl = evaluation.bits_per_byte, evaluation.perplexity
    whose, best = bits.best_solo
    _, best_ppl = ppl.best_solo
    joint, joint_ppl = bits.mean(bits.joint), ppl.mean(ppl.joint)
    home, members = evaluation.solo_wins_at_home, list(bits.solo)
    numbers = (
        f"On the mean over all members' held-out text the joint model needs {joint:.2f} bits per byte, the best solo model "
        f"({whose}) {best:.2f}; perplexity {_short(joint_ppl)} against {_short(best_ppl)}."
    )
    if not evaluation.joint_wins_on_the_mean:
        if joint < best or joint_ppl < best_ppl:
            return [numbers, "The two measures disagree on which is better: train longer before concluding anything."]
        return [numbers, "The joint model is NOT the best single model for everybody here: train longer, or look at the logs."]
    said = "The joint model is the best single model for everybody"
    if len(home) == len(members):
        return [numbers, f"{said}; each member alone still knows its own text better at this size."]
    if home:
        return [
            numbers,
            f"{said}; {_list(home)} alone still {'know their' if len(home) > 1 else 'knows its'} own text better at this size.",
        ]
    return [numbers, f"{said}, and better than every member's own model on that member's own text, too."]


def _show(console: Console, title: str, header: Row, rows: Sequence[Row], *, emphasised: str = "") -> None:
    """A rich table on a terminal; elsewhere aligned plain text that nothing wraps or cuts."""
    if not console.is_terminal:
        widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
        lines = [title]
        for row in (header, *rows):
            cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
            lines.append("  ".join(cells).rstrip())
        for line in [*lines, ""]:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        return
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column, name in enumerate(header):
        table.add_column(name, justify="right" if column else "left", no_wrap=column == 0)
    for row in rows:
        table.add_row(*row, style="bold" if row[0] == emphasised else None)
    console.print(table)


def _short(value: float) -> str:
    """Perplexities run from tens to hundreds of thousands."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
