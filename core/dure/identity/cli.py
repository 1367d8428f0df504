"""`dure member`: an organisation's own keys and its say about the charter."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from dure.charter import root
from dure.charter.consortium import ConsortiumFile
from dure.charter.model import Charter, Terms, tolerance
from dure.charter.succession import changes
from dure.console import DEFAULT_DIR, AsJson, Dir, Yes, first_use, one_line_errors, say, show_json
from dure.errors import BadInput, NotAuthorised, Refused
from dure.identity import keys
from dure.identity.changes_cli import register
from dure.identity.files import read, write_atomic
from dure.identity.member import JoinRequest, MemberFolder

app = typer.Typer(no_args_is_help=True, help="An organisation's own keys, and its say about the charter. Keys never leave this machine.")
register(app)


@app.command()
@one_line_errors
def init(
    name: Annotated[str, typer.Argument(help="Your id in the consortium: a-z, 0-9, '-'.")],
    directory: Dir = DEFAULT_DIR,
    consortium: Annotated[str, typer.Option(help="Label of the consortium in node names, <member>.<label>.")] = "dure",
    display_name: Annotated[str, typer.Option(help="The name people read; any script.")] = "",
    registration: Annotated[str, typer.Option(help="Legal registration number.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make your organisation's keys and CA, and the join request to hand out.

    Example: dure member init krafton --display-name 크래프톤

    Send NAME.join.json to the administrator and read the fingerprint to them over the telephone.
    """
    names = {"label": consortium, "display_name": display_name, "registration": registration}
    with first_use(directory):
        folder = MemberFolder.create(directory, name, **names, now=time.time())
        request = folder.join_request()
        path = directory / f"{name}.join.json"
        request.write(path)
    if as_json:
        show_json({"member": name, "join": str(path), "fingerprint": request.digest.hex()})
        return
    say(f"join request  {path}")
    say(f"fingerprint   {keys.words(request.digest)}")
    say(f"              {request.digest.hex()}")
    say("next: send the join request to the administrator, and compare the fingerprint by telephone")


PROPOSAL = "a proposed charter, N.root.json, from the administrator (`dure charter propose`)"


def describe(terms: Terms, version: int, digest: bytes) -> list[str]:
    """A charter version in words, for the person who must decide on it."""
    lines = [f"charter of {terms.name}, version {version}", f"digest {digest.hex()}", tolerance(terms)]
    lines += [f"  {m.id:<32} {keys.words(JoinRequest(m, b'').digest)}  {m.display_name}" for m in terms.members]
    lines.append(f"a member's weight in one exchange is at most {terms.w_max} examples")
    lines.append(f"releases are signed under the CA {keys.words(keys.fingerprint(terms.coordinator.release_ca_pem.encode()))}")
    lines.append(f"the ServerApp may choose bases itself: {'yes' if terms.allow_unrecomputed_bases else 'no'}")
    lines.append(f"runs without secure aggregation: {'ALLOWED' if terms.allow_unmasked else 'no'}")
    return lines


@app.command()
@one_line_errors
def sign(
    proposal: Annotated[Path, typer.Argument(help="N.root.json, from the administrator.")],
    consortium: Annotated[
        Path | None, typer.Option(help="For later versions: the consortium file in force; default: consortium.json beside the proposal.")
    ] = None,
    directory: Dir = DEFAULT_DIR,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """See a proposed charter in words, and sign it with your governance key.

    Example: dure member sign 1.root.json

    Signing version 1 also pins it: your nodes will obey this charter and versions that follow from it. A later version shows what it
    changes; it counts once enough members have signed it, whoever leaves or is removed included.
    """
    folder = MemberFolder.load(directory)
    raw = read(proposal, PROPOSAL)
    try:
        metadata = root.parse(raw)
    except Refused as error:
        raise BadInput(f"{proposal}: {error.why}; expected {PROPOSAL}") from None
    terms, version, digest = root.terms_of(metadata), metadata.signed.version, root.digest(metadata)
    before = None if version == 1 else _in_force(folder, proposal, consortium or proposal.with_name("consortium.json"), terms, version)
    if folder.member not in terms.members and (before is None or folder.member not in before.members):
        raise NotAuthorised(
            f"{proposal}: does not have {folder.member.id} with the keys in {directory}; do not sign it, ask the administrator"
        )
    what = [] if before is None else changes(before.terms, terms) or ["nothing changes but the charter's term"]
    if not as_json:
        for line in [*describe(terms, version, digest), *(f"  {line}" for line in what)]:
            say(line)
    if not yes and not typer.confirm("Have you compared the fingerprints, and sign this for your organisation?"):
        raise BadInput("not signed")
    if version == 1:
        folder.trust(digest)
    path = directory / f"{version}.root.{folder.member.id}.sig"
    write_atomic(path, root.sign(raw, folder.member.id, folder.governance_key))
    if as_json:
        show_json({"signature": str(path), "version": version, "digest": digest.hex(), "changes": what})
    else:
        say(f"signed: {path}; send it to the administrator")


def _in_force(folder: MemberFolder, proposal: Path, consortium: Path, terms: Terms, version: int) -> Charter:
    """The version before the proposed one, verified from what this member pinned."""
    if folder.pin is None:
        raise NotAuthorised(
            f"{folder.directory} has pinned no charter: get the digest of version 1 from another member, then `dure member trust DIGEST`"
        )
    if not consortium.exists():
        raise BadInput(f"{proposal} is version {version}: give the consortium file in force with --consortium, to see what it changes")
    before = ConsortiumFile.load(consortium).charter(folder.pin)
    if version != before.version + 1 or terms.consortium_id != before.terms.consortium_id:
        raise BadInput(
            f"{proposal}: version {version} does not follow version {before.version} in {consortium}; ask for the newest of both"
        )
    return before


@app.command()
@one_line_errors
def trust(
    digest: Annotated[str, typer.Argument(help="64 hex digits: digest of charter version 1, from another channel.")],
    directory: Dir = DEFAULT_DIR,
    consortium: Annotated[Path | None, typer.Option(help="Check that this consortium file is of that charter.")] = None,
    as_json: AsJson = False,
) -> None:
    """Pin the charter your nodes obey, by the digest you were told out of band.

    Example: dure member trust 3f9a…c1 --consortium consortium.json
    """
    try:
        pin = bytes.fromhex(digest)
    except ValueError:
        pin = b""
    if len(pin) != 32:
        raise BadInput(f"DIGEST {digest!r}: must be 64 hex digits")
    if consortium is not None:
        charter = ConsortiumFile.load(consortium).charter(pin)
        if not as_json:
            for line in describe(charter.terms, charter.version, charter.digest):
                say(line)
    MemberFolder.load(directory).trust(pin)
    if as_json:
        show_json({"pinned": pin.hex()})
    else:
        say(f"pinned {pin.hex()} at {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
