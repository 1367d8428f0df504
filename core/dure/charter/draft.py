"""charter.toml: what people edit before a charter is proposed. Members are named by id; their keys come from the join requests."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dure.charter import root
from dure.charter.coordinator import CoordinatorFolder
from dure.charter.model import CharterMember, Terms, check_terms
from dure.charter.succession import changes
from dure.errors import BadInput
from dure.identity import keys
from dure.identity.files import read, read_json, write_atomic
from dure.identity.member import JoinRequest
from dure.identity.requests import LEAVES, REPLACES, LeaveRequest, ReplaceRequest
from dure.secagg.thresholds import default_colluders
from dure.statements import schema

FIELDS = (
    "k", "colluders", "w_max", "max_run_days", "challenge_window_s", "allow_unrecomputed_bases", "allow_unmasked", "public_log",
    "coordinator_member", "agreement_sha256", "members",
)  # fmt: skip


def default_settings(members: int) -> dict[str, Any]:
    """Sane settings for so many members: c a third of them, k a majority within its bounds."""
    c = default_colluders(members)
    return {
        "k": min(max(members // 2 + 1, c + 1), max(members - c, 2)),
        "colluders": c,
        "w_max": 65_536,
        "max_run_days": 90,
        "challenge_window_s": 86_400,
        "allow_unrecomputed_bases": False,
        "allow_unmasked": False,
        "public_log": False,
        "coordinator_member": "",
        "agreement_sha256": "",
    }


def default_toml(name: str, requests: Sequence[JoinRequest], before: str = "") -> str:
    """A draft of these members; what people changed in the draft before stays as they set it.

    Raises:
        BadInput: the draft before does not parse.
    """
    settings = default_settings(len(requests))
    if before:
        old = parse_toml(before, "charter.toml")
        untouched = default_settings(len(old.get("members", ())))
        settings |= {key: old[key] for key in settings if key in old and old[key] != untouched[key]}
    value = {key: json.dumps(setting, default=str) for key, setting in settings.items()}
    rows = "\n".join(f'  "{r.member.id}", # {keys.words(r.digest)}' for r in requests)
    return f"""# The charter of {name}. Edit, then `dure charter propose`.

# Votes that decide on versions and releases: at least colluders + 1, at most members - colluders.
k = {value["k"]}
# Members (the coordinator's operator aside) assumed to work together against the others.
colluders = {value["colluders"]}
# Largest weight, in examples, one member may bring to an exchange.
w_max = {value["w_max"]}
max_run_days = {value["max_run_days"]}
# How long masked uploads are kept for a challenge, in seconds.
challenge_window_s = {value["challenge_window_s"]}
# May a run's own ServerApp choose the next base? Then lineage reads "signed, not recomputed".
allow_unrecomputed_bases = {value["allow_unrecomputed_bases"]}
# May a run go without secure aggregation? Every log and screen would show it.
allow_unmasked = {value["allow_unmasked"]}
public_log = {value["public_log"]}
# Id of the member whose organisation runs the coordinator; "" for none.
coordinator_member = {value["coordinator_member"]}
# SHA-256 of the signed contract; "" for none.
agreement_sha256 = {value["agreement_sha256"]}
members = [
{rows}
]
"""


def joins(folder: CoordinatorFolder) -> dict[str, JoinRequest]:
    """The join requests taken in so far, by member id."""
    found = [JoinRequest.load(path) for path in sorted((folder.directory / "joins").glob("*.join.json"))]
    return {request.member.id: request for request in found}


@dataclass(frozen=True)
class TakenIn:
    """Members' requests, judged; nothing is written before `keep`."""

    members: dict[str, JoinRequest]
    """Whom the draft will name, by id."""
    said: list[str]
    """What the requests ask for, one line each, where it is more than to join."""
    files: dict[str, bytes]
    """Join requests to keep, by member."""
    left: list[str]

    def keep(self, folder: Path) -> None:
        for name, raw in self.files.items():
            write_atomic(folder / f"{name}.join.json", raw)
        for name in self.left:
            (folder / f"{name}.join.json").unlink(missing_ok=True)


def take_in(folder: CoordinatorFolder, paths: Sequence[Path], before: str) -> TakenIn:
    """Join, leave and replacement requests.

    Args:
        before: the draft before, "" for none: whom people took off its list stays off.

    Raises:
        BadInput, NotAuthorised: a request is out of form, or not signed by whose it is.
    """
    known = joins(folder)
    named = parse_toml(before, "charter.toml").get("members", ()) if before else known
    taken = TakenIn({m: known[m] for m in known if m in named}, [], {}, [])
    for path in paths:
        body = read_json(path, "a join request, or a member's request to leave or to replace its keys")
        if LEAVES in body:
            member = _of_charter(folder, path, str(body[LEAVES]))
            LeaveRequest.load(path, member, folder.charters()[0].digest)
            taken.members.pop(member.id, None)
            taken.left.append(member.id)
            taken.said.append(f"{member.id} LEAVES, by its own request")
            continue
        if REPLACES in body:
            asked = ReplaceRequest.load(path, _of_charter(folder, path, str(body["id"])))
            request = asked.request
            by = "its old governance key signed this" if asked.old_signature else "NOT signed by its old key: be sure whom you talk to"
            taken.said.append(f"{request.member.id}'s keys are REPLACED ({by})")
        else:
            request = JoinRequest.load(path)
        taken.members[request.member.id] = request
        taken.files[request.member.id] = request.to_bytes()
    ordered = dict(sorted(taken.members.items()))
    taken.members.clear()
    taken.members.update(ordered)
    return taken


def _of_charter(folder: CoordinatorFolder, path: Path, name: str) -> CharterMember:
    if not folder.versions():
        raise BadInput(f"{path}: no charter is published yet, so nobody can leave it or have keys in it replaced")
    return folder.charter().member(name)


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """charter.toml as a table; `BadInput` naming `where` if it is not TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{where}: {error}") from None


def text_of(path: Path) -> str:
    """charter.toml's text.

    Raises:
        BadInput: it is not there, or not UTF-8.
    """
    try:
        return read(path, "the draft that `dure charter draft *.join.json` writes").decode()
    except UnicodeDecodeError:
        raise BadInput(f"{path}: is not UTF-8 text") from None


def terms_from(folder: CoordinatorFolder, text: str | None = None, known: Mapping[str, JoinRequest] | None = None) -> Terms:
    """What a charter.toml says, and the join requests; both as they are in the folder unless given.

    Raises:
        BadInput: names the field, or the member whose join request is missing.
    """
    path = folder.directory / "charter.toml"
    text = text_of(path) if text is None else text
    known = joins(folder) if known is None else known
    body = parse_toml(text, str(path))
    for name in FIELDS:
        if name not in body:
            raise BadInput(f"{path}: {name} is absent")
    for name in body:
        if name not in FIELDS:
            raise BadInput(f"{path}: {name} is unknown; fields are {', '.join(FIELDS)}")
    if not isinstance(body["members"], list) or not all(isinstance(m, str) for m in body["members"]):
        raise BadInput(f"{path}: members must be a list of member ids")
    for member in body["members"]:
        if member not in known:
            raise BadInput(f"{path}: members: no join request of {member}; `dure charter draft {member}.join.json`")
    coordinator = folder.next_coordinator(body["coordinator_member"] or None)
    fields = {name: body[name] for name in FIELDS if name not in ("coordinator_member", "members", "agreement_sha256")}
    terms = schema.decode(
        Terms,
        {
            **fields,
            "name": folder.name,
            "consortium_id": folder.consortium_id.hex(),
            "agreement_sha256": body["agreement_sha256"] or None,
            "coordinator": schema.encode(coordinator),
            "members": [schema.encode(known[m].member) for m in sorted(body["members"])],
        },
        path.name,
    )
    check_terms(terms)
    return terms


@dataclass(frozen=True)
class Proposal:
    """A charter version on disk, for the members to sign."""

    path: Path
    version: int
    digest: bytes
    terms: Terms
    changes: tuple[str, ...]
    """Against the version in force, in words; none for the first."""
    replaces: bool
    """An earlier proposal of that number with other terms."""


def proposed(folder: CoordinatorFolder, now: float) -> Proposal:
    """Writes what charter.toml and the newest keys here say as the next version. The same terms keep the same proposal: signatures over it
    may be on their way already. Raises as `terms_from`."""
    terms, version = terms_from(folder), len(folder.versions()) + 1
    path = folder.root_path(version)
    before = read(path, "the earlier proposal") if path.exists() else None
    same = before is not None and root.terms_of(root.parse(before)) == terms
    raw = before if before is not None and same else root.propose(terms, version, datetime.fromtimestamp(now, UTC))
    write_atomic(path, raw)
    what = [] if version == 1 else changes(folder.charter().terms, terms) or ["nothing changes but the charter's term"]
    return Proposal(path, version, root.digest(root.parse(raw)), terms, tuple(what), before is not None and not same)
