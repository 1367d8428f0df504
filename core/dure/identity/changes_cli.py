"""`dure member leave`, `replace-keys`: requests that a charter version grants, signed by k members. `revoke`: a member's own word."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Annotated

import typer

from dure.charter.consortium import ConsortiumFile
from dure.console import DEFAULT_DIR, AsJson, Dir, one_line_errors, say, show_json
from dure.errors import BadInput, NotAuthorised
from dure.identity import keys
from dure.identity.files import write_json
from dure.identity.member import MemberFolder
from dure.identity.requests import LeaveRequest, ReplaceRequest, replace_keys


def register(app: typer.Typer) -> None:
    """Add the commands to `dure member`."""
    app.command("leave")(leave)
    app.command("replace-keys")(replace)
    app.command("revoke")(revoke)


@one_line_errors
def leave(directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """Ask to leave the consortium.

    Example: dure member leave --dir ~/krafton

    The request goes to the administrator, who drafts a charter version without you; it counts once enough members have signed it. Your
    nodes work on until then. What you did stays in the log, and stays valid.
    """
    folder = MemberFolder.load(directory)
    path = directory / f"{folder.member.id}.leave.json"
    LeaveRequest.of(folder).write(path)
    if as_json:
        show_json({"member": folder.member.id, "request": str(path)})
        return
    say(f"leave request  {path}")
    say("next: send it to the administrator (`dure charter draft`); sign the version that comes back like the others")


@one_line_errors
def replace(
    target: Annotated[Path, typer.Option("--out", help="Folder for the new keys; must not hold a member yet.")],
    consortium: Annotated[Path, typer.Option(help="The newest consortium file, from the administrator.")],
    name: Annotated[str, typer.Option("--lost", metavar="MEMBER", help="The old keys are lost: your id in the consortium.")] = "",
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Make new keys for your organisation, and the request to put them in the place of the old ones.

    Example: dure member replace-keys --dir ~/krafton --out ~/krafton-new --consortium consortium.json

    The old keys, where they are not lost, sign the request too. Your nodes work on under the old keys until the new charter version is in
    force; then make a new node with the new folder. What the old keys signed before stays valid.
    """
    old = None if name else MemberFolder.load(directory)
    if old is not None and old.pin is None:
        raise NotAuthorised(f"{directory} has pinned no charter; make the keys anew with `dure member init` instead")
    charter = ConsortiumFile.load(consortium).charter(None if old is None else old.pin)
    before = charter.member(name or (old.member.id if old is not None else ""))
    if old is not None and old.member != before:
        raise BadInput(f"{directory}: its keys are not those of {before.id} in charter version {charter.version}; give that folder")
    new = replace_keys(target, before, old, charter.version, time.time())
    request = ReplaceRequest.of(new, before, old)
    path = target / f"{before.id}.replace.json"
    request.write(path)
    if as_json:
        show_json({"member": before.id, "request": str(path), "fingerprint": request.request.digest.hex(), "old_signed": old is not None})
        return
    say(f"new keys      {target}")
    say(f"request       {path}{'' if old is not None else '  (not signed by the old key)'}")
    say(f"fingerprint   {keys.words(request.request.digest)}")
    if old is None:
        say(f"next: `dure member trust DIGEST --dir {target}` with the digest of charter version 1, from another member")
    say("next: send the request to the administrator, and let every member compare the fingerprint by telephone")


@one_line_errors
def revoke(
    node: Annotated[str, typer.Argument(help="The node's name.")],
    reason: Annotated[str, typer.Option(help="For everybody to read, for ever.")] = "",
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Take your organisation's word for a node back: stolen, lost, or not to be trusted any more.

    Example: dure member revoke node1 --reason "stolen" --dir ~/krafton

    The file that is written goes to the administrator, who can only pass it on (`dure coordinator enter`): it counts from its entry in the
    log on. The node is cut off at once, and its certificate refused. A new node of yours brings the word too (`dure node init`). The
    witness key that the node had stays your organisation's: where it may be known to others, `dure member replace-keys`.
    """
    folder = MemberFolder.load(directory)
    fact = folder.revoke(node, reason, time.time())
    path = directory / f"{folder.member.id}.revocation.json"
    write_json(path, {"member": folder.member.id, "statements": [base64.b64encode(raw).decode() for raw in folder.statements()]})
    if as_json:
        show_json({"member": fact.member, "node": node, "generation": fact.generation, "file": str(path)})
        return
    say(f"revoked: node {node} of {fact.member}, up to generation {fact.generation}")
    say(f"next: send {path} to the administrator now (`dure coordinator enter {path.name}`)")
