"""`dure data`: commit to what you train on, and open single files of it to an auditor, who checks them offline."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from dure.audit import bundle as bundles
from dure.audit.cli import pin_of
from dure.audit.contains_cli import Source, of_bundle
from dure.audit.places import log_of
from dure.audit.reading import verified
from dure.charter import root as charter_root
from dure.charter.log_keys import judging
from dure.console import DEFAULT_DIR, AsJson, Dir, err, one_line_errors, say, show_json
from dure.errors import BadInput, NotAuthorised, Refused
from dure.identity.files import read, write_atomic, write_json
from dure.identity.member import MemberFolder
from dure.provenance import data_folder
from dure.provenance.data_files import compare, read_all
from dure.provenance.data_set import MOST_OPENED, Opening, check_opening, drawn, opened
from dure.statements import schema
from dure.statements.kinds import DataCommitment
from dure.tlog.checkpoint import Head
from dure.tlog.merkle import root_at

app = typer.Typer(no_args_is_help=True, help="Commit to the data you train on; open single files of it to an auditor.")


@app.command()
@one_line_errors
def register(
    path: Annotated[Path, typer.Argument(help="The folder, or the one file, as your node reads it.")],
    name: Annotated[str, typer.Option("--name", help="A short name: letters, digits, '.', '_', '-'. Everybody sees it.")],
    licence: Annotated[str, typer.Option("--licence", "--license", help="Under which you may use it: an SPDX expression, or words.")],
    since: Annotated[str | None, typer.Option("--from", metavar="DATE", help="First day it was collected, YYYY-MM-DD.")] = None,
    until: Annotated[str | None, typer.Option("--to", metavar="DATE", help="Last day.")] = None,
    documents: Annotated[int | None, typer.Option(min=0, help="How many documents, as you count them.")] = None,
    tokens: Annotated[int | None, typer.Option(min=0, help="How many tokens.")] = None,
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Sign what you train on: one digest over all files, their number and size, and what you declare about them.

    Example: dure data register /srv/text --name news-2026 --licence CC-BY-4.0 --from 2024-01-01 --to 2026-03-31 --dir ~/krafton

    No file and no file's name leaves this machine. Names, sizes, digests and the salt that hides them are kept in the member's folder,
    under data/: without them nothing can be opened later, so back them up. The statement goes to the administrator, who can only pass it on
    (`dure coordinator enter`).
    The same command again, after a crash, say, gives the same statement.
    """
    folder = MemberFolder.load(directory)
    days = _day("--from", since), _day("--to", until)
    if since and until and since > until:
        raise BadInput(f"--from {since} is after --to {until}")
    declared = {"documents": documents, "tokens": tokens, "license": licence, "collected_from": days[0], "collected_to": days[1]}
    _judge(folder, name, declared)
    manifest = data_folder.manifest_of(folder, name, read_all(path, _progress() if err.is_terminal else lambda _done, _all: None))
    sizes = {"files": len(manifest.files), "total_bytes": sum(f.size for f in manifest.files)}
    fact = schema.decode(
        DataCommitment, {"member": folder.member.id, "name": name, "root": manifest.root.hex(), **sizes, **declared}, "data"
    )
    envelope = data_folder.sign(folder, manifest, fact, time.time())
    target = directory / f"{folder.member.id}.data.json"
    write_json(target, {"member": folder.member.id, "statements": [base64.b64encode(raw).decode() for raw in folder.statements()]})
    if as_json:
        show_json({**schema.encode(fact), "commitment": envelope.payload_sha256.hex(), "file": str(target)})
        return
    say(f"{name}: {fact.files} files, {fact.total_bytes} bytes, root {fact.root.hex()}")
    say(f"commitment  {envelope.payload_sha256.hex()}")
    say(f"kept here   {data_folder.manifest_path(folder, name)}  (back it up: without it no file can be opened)")
    say(f"next: send {target} to the administrator (`dure coordinator enter {target.name}`)")
    say(f"      where a run trains on it: dure node allow RUN --data {name}")
    say(f"      where every run does: dure node config set data_commitments={envelope.payload_sha256.hex()}")


def _judge(folder: MemberFolder, name: str, declared: dict[str, Any]) -> None:
    """What was typed, before hours of reading."""
    try:
        body = {"member": folder.member.id, "name": name, "root": bytes(32).hex(), "files": 1, "total_bytes": 0}
        schema.decode(DataCommitment, {**body, **declared})
    except Refused as error:
        raise BadInput(f"--{ {'license': 'licence'}.get(error.field, error.field) }: {error.why}") from None


def _day(option: str, text: str | None) -> str | None:
    try:
        return None if text is None else date.fromisoformat(text).isoformat()
    except ValueError:
        raise BadInput(f"{option} {text!r}: write a day as YYYY-MM-DD") from None


def _progress() -> Callable[[int, int], None]:
    from rich.progress import DownloadColumn, Progress

    bar = Progress(*Progress.get_default_columns(), DownloadColumn(), console=err, transient=True)
    task = bar.add_task("reading", total=None)

    def show(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)
        if done == total:
            bar.stop()

    return show


@app.command("list")
@one_line_errors
def list_(directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """What this member registered.

    Example: dure data list --dir ~/krafton
    """
    rows = [
        {**schema.encode(fact), "commitment": envelope.payload_sha256.hex()}
        for fact, envelope, _ in data_folder.registered(MemberFolder.load(directory)).values()
    ]
    if as_json:
        show_json({"data": rows})
        return
    for row in rows:
        days = f", collected {row['collected_from'] or '…'} to {row['collected_to'] or '…'}"
        period = days if row["collected_from"] or row["collected_to"] else ""
        say(f"{row['name']}  {row['commitment'][:16]}  {row['files']} files, {row['total_bytes']} bytes, {row['license']}{period}")
    if not rows:
        say("nothing yet: dure data register FOLDER --name NAME --licence LICENCE")


@app.command("open")
@one_line_errors
def open_(
    name: Annotated[str, typer.Argument(help="The data set's name (`dure data list`).")],
    files: Annotated[list[str] | None, typer.Argument(help="Paths in the data set; or else --challenge.")] = None,
    challenge: Annotated[
        Path | None, typer.Option(help="Open files drawn from the newest cosigned head in this folder: the auditor's bundle, or a node's.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=MOST_OPENED, help="With --challenge: how many.")] = 16,
    target: Annotated[Path | None, typer.Option("--out", help="Where the opening goes; default: NAME.opening.json here.")] = None,
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Show an auditor that files are part of what you registered: their names, sizes, digests and salts, and nothing of the others.

    Example: dure data open news-2026 --challenge bundle --samples 32 --dir ~/krafton

    With --challenge the log's head chooses: hash(head ‖ commitment ‖ i). The files themselves you hand over as you agree with the auditor.
    """
    if bool(files) == (challenge is not None):
        raise BadInput("give paths in the data set, or --challenge FOLDER, one of the two")
    folder = MemberFolder.load(directory)
    manifest, said = data_folder.load(folder, name), data_folder.registered(folder).get(name)
    if said is None or manifest.root != said[0].root:
        raise BadInput(f"{name}: what is kept in {data_folder.manifest_path(folder, name)} is not what was signed; register it again")
    head = None if challenge is None else _head(challenge, folder)
    root, count = said[0].root, said[0].files
    indices = drawn(head.checkpoint.root, root, count, samples) if head is not None else _chosen(manifest, files or [])
    note = head.note.to_bytes() if head is not None else None
    opening = Opening(1, said[1].payload_sha256, note, opened(manifest.salt, manifest.files, indices))
    out = target or Path(f"{name}.opening.json")
    write_atomic(out, opening.to_bytes())
    paths = [f.file.path for f in opening.files]
    if as_json:
        show_json({"opening": str(out), "files": paths, "head_size": head.checkpoint.size if head is not None else None})
        return
    say(f"{out} opens {len(paths)} of {said[0].files} files" + (f", drawn from the head of {head.checkpoint.size} entries" if head else ""))
    for path in paths:
        say(f"  {path}")


def _chosen(manifest: data_folder.Manifest, wanted: list[str]) -> tuple[int, ...]:
    places = {file.path: index for index, file in enumerate(manifest.files)}
    for path in wanted:
        if path not in places:
            raise BadInput(f"{path}: {manifest.name} has no such file; give its path as it was in the registered folder")
    return tuple(sorted({places[path] for path in wanted}))


def _head(where: Path, folder: MemberFolder) -> Head:
    """The newest cosigned head of a bundle, or in a role's folder, verified."""
    if not (where / bundles.TRUST).is_dir():
        return log_of(where).head()
    if folder.pin is None:
        raise NotAuthorised(f"{folder.directory} has pinned no charter; `dure member trust DIGEST` first")
    bundle = bundles.Bundle.open(where)
    roots, raw = bundle.roots(), bundle.read(f"{bundles.LOG}/checkpoint")
    return judging(charter_root.walk_all(roots, folder.pin), raw).open(raw)


@app.command()
@one_line_errors
def verify(
    opening: Annotated[Path, typer.Argument(help="NAME.opening.json, from the member (`dure data open`).")],
    pin: Annotated[str, typer.Option("--root-sha256", help="64 hex digits: charter version 1, from another channel.")],
    folder: Annotated[Path, typer.Option("--bundle", help="The bundle whose log has the commitment; it is verified first.")],
    files: Annotated[Path | None, typer.Option(help="The opened files, under their paths: their content is compared.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check an opening offline: the commitment is in the log, these files are in it, and a challenge's files are those the head draws.

    Example: dure data verify news-2026.opening.json --root-sha256 3f9a…c1 --bundle bundle --files handed-over

    It shows that these files, to the byte, were what the member registered; not that it trained on them. Have the files drawn from your
    bundle's own head: among older heads the member could have chosen one.
    """
    pin_of(pin)
    read_back = Opening.from_bytes(read(opening, "an opening, made with `dure data open`"))
    source = of_bundle(folder, pin)
    entry, fact = _registered(source, read_back.commitment)
    head = _drawing_head(source, read_back, entry)
    check_opening(read_back, fact, head.checkpoint.root if head is not None else None)
    for one in read_back.files if files is not None else ():
        compare(files or Path(), one)
    body = {
        "holds": True,
        "entry": entry,
        "declared": schema.encode(fact),
        "files": [f.file.path for f in read_back.files],
        "content_compared": files is not None,
        "head_size": head.checkpoint.size if head is not None else None,
        "head_is_the_bundles": head is not None and head.checkpoint.size == source.size,
        "bundle_size": source.size,
    }
    if as_json:
        show_json(body)
    else:
        _tell(body, fact)


def _registered(source: Source, commitment: bytes) -> tuple[int, DataCommitment]:
    for index, signed in enumerate(verified(source.tree.entries(0, source.size), source.versions)):
        if isinstance(signed.fact, DataCommitment) and signed.envelope.payload_sha256 == commitment:
            return index, signed.fact
    raise Refused("commitment", f"{commitment.hex()[:16]} is not among the log's {source.size} entries: not registered there, or not yet")


def _drawing_head(source: Source, opening: Opening, entry: int) -> Head | None:
    """The head that drew the files: cosigned, of this very log, and younger than the commitment."""
    if opening.head is None:
        return None
    head = judging(source.versions, opening.head).open(opening.head)
    size = head.checkpoint.size
    if size > source.size:
        raise Refused("head", f"is of {size} entries, the bundle of {source.size}: export a newer bundle")
    if root_at(source.tree.node, size) != head.checkpoint.root:
        raise Refused("head", "is of another history than the bundle")
    if entry >= size:
        raise Refused("head", f"is of {size} entries, before the commitment (entry {entry}): whoever committed knew what it draws")
    return head


def _tell(body: dict[str, Any], fact: DataCommitment) -> None:
    say(f"entry {body['entry']}: {fact.member} registered {fact.name}: {fact.files} files, {fact.total_bytes} bytes, {fact.license}")
    say("  self-declared: number of documents and tokens, licence, period; and that it trains on them")
    if body["head_size"] is None:
        say("the files were chosen by somebody, not drawn")
    elif body["head_is_the_bundles"]:
        say(f"the files were drawn by this bundle's head, of {body['head_size']} entries")
    else:
        say(
            f"the files were drawn by a head of {body['head_size']} entries; the bundle's is of {body['bundle_size']}: others were possible"
        )
    for path in body["files"]:
        say(f"  {path}  {'same content' if body['content_compared'] else 'in the commitment; content not compared (--files)'}")
    say(f"{len(body['files'])} opened files hold")
