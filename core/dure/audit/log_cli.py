"""`dure log`: look into the consortium's log, and prove or check single entries. Works on a coordinator's folder and on a node's mirror."""

from __future__ import annotations

import json
import signal
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from dure.audit.contains_cli import contains
from dure.audit.places import log_of
from dure.charter.log_keys import judging, log_key, witness_keys, witness_quorum
from dure.console import DEFAULT_DIR, AsJson, Dir, one_line_errors, say, show_json
from dure.errors import DureError
from dure.identity.files import read, write_atomic
from dure.statements.anykind import kind_of
from dure.statements.dsse import Envelope
from dure.statements.statement import read_place
from dure.tlog.http import LogServer, Shelf, check_private, parse_listen
from dure.tlog.merkle import inclusion_proof
from dure.tlog.proof import TlogProof

app = typer.Typer(no_args_is_help=True, help="The consortium's log: one history, cosigned by its members.")
EVIDENCE = "log-evidence"

app.command("contains")(contains)


@app.callback()
def group() -> None:
    """The consortium's log: one history, cosigned by its members."""


@app.command()
@one_line_errors
def show(directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """The newest head here: size, root, who cosigned it and when, and the keys to check it with other tools.

    Example: dure log show --dir /var/lib/dure/node
    """
    place = log_of(directory)
    terms, checked = place.charter.terms, place.head()
    body = {
        "origin": checked.checkpoint.origin,
        "size": checked.checkpoint.size,
        "root": checked.checkpoint.root.hex(),
        "cosigned": checked.cosigned,
        "quorum": witness_quorum(terms),
        "log_vkey": log_key(terms).vkey(),
        "witness_vkeys": [key.vkey() for key in witness_keys(terms)],
    }
    if as_json:
        show_json(body)
        return
    say(f"{body['origin']}: {body['size']} entries, root {body['root']}")
    for name, at in sorted(checked.cosigned.items()):
        say(f"  cosigned by {name} at {datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC")
    say(f"a head counts with {body['quorum']} of {len(terms.members)} witnesses")
    say(f"log key      {body['log_vkey']}")


def _described(index: int, entry: bytes) -> dict[str, Any]:
    try:
        envelope = Envelope.from_bytes(entry)
        kind = kind_of(envelope.payload)
        read_place(envelope.payload)  # so its time is one, whoever signed it
        predicate = json.loads(envelope.payload)["predicate"]
    except (DureError, ValueError, KeyError, TypeError) as error:
        return {"index": index, "kind": "?", "why": str(error)}
    return {"index": index, "kind": kind, "key": envelope.signatures[0][0], "sha256": envelope.sha256.hex(), "statement": predicate}


@app.command()
@one_line_errors
def tail(
    count: Annotated[int, typer.Option("-n", help="How many entries.")] = 10, directory: Dir = DEFAULT_DIR, as_json: AsJson = False
) -> None:
    """The last entries, one line each.

    Example: dure log tail -n 20
    """
    tree = log_of(directory).tree()
    start = max(0, tree.size - max(0, count))
    rows = [_described(start + i, entry) for i, entry in enumerate(tree.entries(start))]
    if as_json:
        show_json({"size": tree.size, "entries": rows})
        return
    for row in rows:
        said = row.get("statement", {})
        who = said.get("member") or "coordinator"
        when = datetime.fromtimestamp(said["time"], UTC).strftime("%m-%d %H:%M:%S") if "time" in said else ""
        say(f"{row['index']:>8}  {when}  {row['kind']:<18} {who}")


@app.command()
@one_line_errors
def entry(index: Annotated[int, typer.Argument(help="Its index.")], directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """One entry, whole.

    Example: dure log entry 42
    """
    row = _described(index, log_of(directory).tree().entry(index))
    if as_json:
        show_json(row)
    else:
        for line in json.dumps(row, indent=2, ensure_ascii=False, sort_keys=True).split("\n"):
            say(line)


@app.command()
@one_line_errors
def prove(
    index: Annotated[int, typer.Argument(help="The entry's index.")],
    target: Annotated[Path, typer.Option("--out", help="Where the proof goes; the entry itself is written beside it, .json.")],
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Write a proof that an entry is in the log (C2SP tlog-proof), for somebody who has only the charter.

    Example: dure log prove 42 --out mine.tlog-proof
    """
    place = log_of(directory)
    head, tree = place.head(), place.tree()
    size = head.checkpoint.size
    body = tree.entry(index)
    proof = TlogProof(index, tuple(inclusion_proof(tree.node, index, size)), head.note.to_bytes())
    write_atomic(target, proof.to_bytes())
    write_atomic(target.with_suffix(".json"), body)
    if as_json:
        show_json({"proof": str(target), "entry": str(target.with_suffix(".json")), "index": index, "size": size})
    else:
        say(f"{target} proves {target.with_suffix('.json')}, entry {index} of {size}")


@app.command()
@one_line_errors
def verify(
    proof: Annotated[Path, typer.Argument(help="A .tlog-proof file.")],
    body: Annotated[Path, typer.Option("--entry", help="The entry it proves.")],
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Check a proof against this folder's charter, by the version that its head is of: log key, witnesses, quorum.

    Example: dure log verify mine.tlog-proof --entry mine.json
    """
    charters = log_of(directory).charters
    parsed = TlogProof.from_bytes(read(proof, "a proof, made with `dure log prove`"))
    by = judging(charters, parsed.checkpoint)
    head = parsed.verify(read(body, "the entry"), by.log, by.keys, quorum=by.quorum)
    if as_json:
        show_json({"holds": True, "index": parsed.index, "size": head.checkpoint.size, "cosigned": head.cosigned})
    else:
        say(f"{body} is entry {parsed.index} of {head.checkpoint.size}; cosigned by {', '.join(sorted(head.cosigned))}")


@app.command()
@one_line_errors
def serve(
    listen: Annotated[str, typer.Option(help="PORT, which is loopback, or ADDRESS:PORT.")] = "7480",
    directory: Dir = DEFAULT_DIR,
) -> None:
    """Serve the log over HTTP until SIGTERM: its files, read only (C2SP tlog-tiles), from a coordinator's folder or a node's mirror.

    Loopback only, unless the charter makes the log public (public_log). Tiles may be cached for ever. A process of its own: nobody who
    reads here can slow a coordinator or node down.

    Example: dure log serve --listen 7480 --dir /var/lib/dure/coordinator
    """
    place = log_of(directory)
    host, port = parse_listen(listen)
    public = place.charter.terms.public_log
    check_private(host, public=public)
    with LogServer(host, port, Shelf(place.folder, place.head_name), public=public) as server:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
        say(f"log  {server.url}/  read only, {'public by the charter' if public else 'for this machine only'}")
        server.serve_forever()


@app.command()
@one_line_errors
def evidence(directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """Where this node's witness caught the log: heads it signed that contradict what was cosigned before.

    Example: dure log evidence --dir /var/lib/dure/node
    """
    log_of(directory)
    found = [
        {"folder": str(folder), "why": (folder / "why").read_text().strip(), "time": int(folder.name) / 1000}
        for folder in sorted((directory / EVIDENCE).glob("[0-9]*"))
        if (folder / "why").exists()
    ]
    if as_json:
        show_json({"evidence": found})
        return
    for row in found:
        say(f"{datetime.fromtimestamp(float(str(row['time'])), UTC):%Y-%m-%d %H:%M:%S}  {row['why']}  ({row['folder']})")
    if not found:
        say("none: every head this witness was shown continued the one before")
