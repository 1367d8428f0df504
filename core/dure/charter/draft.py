"""charter.toml: what people edit before a charter is proposed. Members are named by id; their keys come from the join requests."""

from __future__ import annotations

import tomllib
from typing import Any

from dure.charter.coordinator import CoordinatorFolder
from dure.charter.model import CharterCoordinator, Terms, check_terms
from dure.errors import BadInput
from dure.identity import keys
from dure.identity.files import read
from dure.identity.member import JoinRequest
from dure.secagg.thresholds import default_colluders
from dure.statements import schema

FIELDS = (
    "k", "colluders", "w_max", "max_run_days", "challenge_window_s", "allow_unrecomputed_bases", "allow_unmasked", "public_log",
    "coordinator_member", "agreement_sha256", "members",
)  # fmt: skip


def default_toml(name: str, requests: list[JoinRequest]) -> str:
    """A first draft with sane thresholds: c a third of the members, k a majority within its bounds."""
    n = len(requests)
    c = default_colluders(n)
    k = min(max(n // 2 + 1, c + 1), max(n - c, 2))
    rows = "\n".join(f'  "{r.member.id}", # {keys.words(r.digest)}' for r in requests)
    return f"""# The charter of {name}. Edit, then `dure charter propose`.

# Votes that decide on versions and releases: at least colluders + 1, at most members - colluders.
k = {k}
# Members (the coordinator's operator aside) assumed to work together against the others.
colluders = {c}
# Largest weight, in examples, one member may bring to an exchange.
w_max = 65536
max_run_days = 90
# How long masked uploads are kept for a challenge, in seconds.
challenge_window_s = 86400
# May a run's own ServerApp choose the next base? Then lineage reads "signed, not recomputed".
allow_unrecomputed_bases = false
# May a run go without secure aggregation? Every log and screen would show it.
allow_unmasked = false
public_log = false
# Id of the member whose organisation runs the coordinator; "" for none.
coordinator_member = ""
# SHA-256 of the signed contract; "" for none.
agreement_sha256 = ""
members = [
{rows}
]
"""


def joins(folder: CoordinatorFolder) -> dict[str, JoinRequest]:
    """The join requests taken in so far, by member id."""
    found = [JoinRequest.load(path) for path in sorted((folder.directory / "joins").glob("*.join.json"))]
    return {request.member.id: request for request in found}


def terms_from(folder: CoordinatorFolder) -> Terms:
    """What charter.toml and the join requests say.

    Raises:
        BadInput: names the field, or the member whose join request is missing.
    """
    path = folder.directory / "charter.toml"
    try:
        body: dict[str, Any] = tomllib.loads(read(path, "make it with `dure charter draft *.join.json`").decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}") from None
    for name in FIELDS:
        if name not in body:
            raise BadInput(f"{path}: {name} is absent")
    for name in body:
        if name not in FIELDS:
            raise BadInput(f"{path}: {name} is unknown; fields are {', '.join(FIELDS)}")
    known = joins(folder)
    for member in body["members"]:
        if member not in known:
            raise BadInput(f"{path}: members: no join request of {member}; `dure charter draft {member}.join.json`")
    coordinator = CharterCoordinator(
        keys.public_bytes(folder.signing_key), keys.public_bytes(folder.log_key), folder.ca_pem.decode(), body["coordinator_member"] or None
    )
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
