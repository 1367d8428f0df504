"""What a hostile file is called, or says, steers no terminal, forges no line and ends no command with a traceback."""

from __future__ import annotations

import json
import os
from html import escape
from types import SimpleNamespace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.table import Table
from support.commands import dure, worked

from dure import console
from dure.audit import log_cli
from dure.audit.contributions_cli import as_csv
from dure.audit.html import document
from dure.console import PlainConsole
from dure.plain_text import plain
from dure.provenance.contributions import LeftOut, Row
from dure.provenance.documents.words import cell
from dure.provenance.spent import Spent
from dure.statements.dsse import seal_payload
from dure.statements.kinds import RunApproval
from dure.statements.statement import Chain, seal

HOSTILE = "x\x1b[2J\x9b1A\u202ey\nall of level 1 holds \udcff"
SHOWN = "x\\u001b[2J\\u009b1A\\u202ey\\nall of level 1 holds \\udcff"


def test_what_steers_a_terminal_is_shown_and_letters_of_any_language_stay():
    assert plain(HOSTILE) == SHOWN
    assert plain("모델 1.0\u3000é — [bold]") == "모델 1.0\u3000é — [bold]"


def test_lines_tables_and_json_show_it_likewise(capsys, monkeypatch):
    monkeypatch.setattr(console, "out", PlainConsole(soft_wrap=True))
    console.say(HOSTILE)
    table = Table("what")
    table.add_row(HOSTILE.replace("\n", " ") + "[/x] :bug:")
    console.draw(table)
    console.show_json({"name": HOSTILE})
    line, *rows, body = capsys.readouterr().out.splitlines()
    assert line == SHOWN
    assert any(SHOWN.replace("\\n", " ") + "[/x] :bug:" in row for row in rows)
    assert body.isprintable() and json.loads(body) == {"name": HOSTILE}


def test_a_model_card_and_a_page_show_it_likewise():
    """A member's words must not turn the line around that says whose they are; nor by an entity, which Markdown reads as the character."""
    assert cell(HOSTILE) == r"x\\u001b\[2J\\u009b1A\\u202ey all of level 1 holds \\udcff"
    assert cell("모델 a_b | é") == r"모델 a\_b \| é"
    assert cell("a &#x202e; ~~b~~") == "a \\&#x202e; \\~\\~b\\~\\~"
    shown = document(HOSTILE, f"<p>{escape(HOSTILE)}</p>\n")
    assert shown.count("x\\u001b[2J\\u009b1A\\u202ey") == 2 and shown.encode() and not {"\x1b", "\x9b", "\u202e"} & set(shown)


def test_a_table_for_spreadsheets_shows_it_likewise_and_has_no_formula():
    """`dure contributions --format csv` is printed; a device, and why somebody was left out, are words of members and the coordinator."""
    numbers = dict.fromkeys(("invited", "counted", "unsummed", "accepted", "tokens", "steps", "milliseconds", "usages"), 1)
    out = (LeftOut(3, "upload", HOSTILE, late=False),)
    row = Row(b"r" * 32, "app", "=1+1", left_out=out, bytes_up=0, bytes_down=0, devices=("\x9b2J\u202eupc",), spent=Spent(), **numbers)
    head, line = as_csv((row,)).splitlines()
    assert head.isprintable() and line.isprintable()
    assert "'=1+1" in line and SHOWN in line and "\\u009b2J\\u202eupc" in line


def test_a_logs_entries_are_shown_line_by_line_whatever_stands_in_them(monkeypatch):
    """A node's mirror has what the coordinator entered: a time that is none ended `dure log tail` with a traceback."""
    key = Ed25519PrivateKey.generate()
    good = seal(RunApproval(bytes(32), "ara", "node1"), key, Chain(), 86_400)[0]
    bad = [good.payload.replace(b'"time":86400', b'"time":' + time) for time in (b'"now"', b"99999999999999", b"null")]
    entries = [good.to_bytes(), *(seal_payload(payload, key).to_bytes() for payload in bad), b"\x9b2J"]
    tree = SimpleNamespace(size=len(entries), entries=lambda start: entries[start:], entry=lambda index: entries[index])
    monkeypatch.setattr(log_cli, "log_of", lambda _folder: SimpleNamespace(tree=lambda: tree))
    shown = worked("log", "tail").splitlines()
    assert [line.split()[0] for line in shown] == ["0", "1", "2", "3", "4"] and "01-02 00:00:00" in shown[0]
    first, *_, last = worked("log", "entry", "0").splitlines()
    assert (first, last) == ("{", "}")


def test_a_file_name_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / os.fsdecode(b"\x1b[2J\xff")).symlink_to("/")
    for command in (("audit", "verify"), ("release", "verify")):
        ran = dure(*command, tmp_path, "--root-sha256", "00" * 32)
        assert ran.code == 2 and "\\u001b[2J\\udcff: is no plain file" in ran.err and ran.err.count("\n") == 1
