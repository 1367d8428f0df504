"""The charter as everybody uses it: a frozen, judged form of one TUF root version. Source: ledger.md §2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dure.errors import BadInput
from dure.secagg.thresholds import dropouts_survived, u_min, votes_allowed
from dure.statements.schema import Hex, Items, Pattern, Range

Text = Annotated[str, Pattern(r"[^\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]{0,200}")]
"""Any script. No control characters, no overrides of writing direction: people decide on a charter by what a terminal shows them."""
Key = Annotated[bytes, Hex(32)]
Pem = Annotated[str, Pattern(r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]{100,4000}-----END CERTIFICATE-----\n")]


@dataclass(frozen=True)
class CharterMember:
    """A member: ids and keys, no personal names; the log is for ever."""

    id: Annotated[str, Pattern(r"[a-z0-9-]{1,32}")]
    display_name: Text
    registration: Text
    """Legal registration number; may be empty."""
    host: Annotated[str, Pattern(r"[a-z0-9-]{1,32}\.[a-z0-9-]{1,32}")]
    """SPIFFE host of its nodes, unique."""
    governance_key: Key
    signing_key: Key
    witness_key: Key
    ca_pem: Pem


@dataclass(frozen=True)
class CharterCoordinator:
    signing_key: Key
    log_key: Key
    ca_pem: Pem
    release_ca_pem: Pem
    """Root of the certificates that sign releases; it signs nothing else."""
    member: Annotated[str, Pattern(r"[a-z0-9-]{1,32}")] | None
    """The member whose organisation runs the coordinator, if any; then it counts as one of c."""


@dataclass(frozen=True)
class Terms:
    """What k members can agree on; everything but the keys and the version."""

    consortium_id: Annotated[bytes, Hex(16)]
    name: Annotated[str, Pattern(r"[A-Za-z0-9._-]{1,64}")]
    k: Annotated[int, Range(2, 255)]
    """Votes that decide: charter versions, releases."""
    colluders: Annotated[int, Range(1, 254)]
    """c, counted among all members."""
    w_max: Annotated[int, Range(1, 2**40)]
    """Largest weight (number of examples) a member may bring to one exchange."""
    max_run_days: Annotated[int, Range(1, 3_650)]
    challenge_window_s: Annotated[int, Range(0, 10 * 86_400)]
    allow_unrecomputed_bases: bool
    allow_unmasked: bool
    public_log: bool
    agreement_sha256: Annotated[bytes, Hex(32)] | None
    """SHA-256 of the signed contract."""
    coordinator: CharterCoordinator
    members: Annotated[tuple[CharterMember, ...], Items(2, 100)]


@dataclass(frozen=True)
class Charter:
    """One verified version."""

    version: int
    digest: bytes
    """SHA-256 of the signed bytes; the file's own digest changes with every signature."""
    expires: float
    """Unix seconds; past it no new run begins, an audit goes on."""
    terms: Terms

    @property
    def members(self) -> tuple[CharterMember, ...]:
        """In bytewise order of id."""
        return self.terms.members

    @property
    def colluders(self) -> int:
        return self.terms.colluders

    def member(self, name: str) -> CharterMember:
        """The member of that id.

        Raises:
            BadInput: no such member in this version.
        """
        for member in self.members:
            if member.id == name:
                return member
        raise BadInput(f"{name} is no member of charter version {self.version}; members are {', '.join(m.id for m in self.members)}")


def check_terms(terms: Terms) -> None:
    """Whether these terms can protect anybody.

    Raises:
        BadInput: says which arithmetic does not hold, and what would.
    """
    n, c, k = len(terms.members), terms.colluders, terms.k
    if n < 3:
        raise BadInput(f"members: {n} is too few; with two, each learns the other's update by subtraction. Add a third member")
    for what in ("id", "host", "governance_key", "signing_key", "witness_key", "ca_pem"):
        values = [getattr(m, what) for m in terms.members]
        if len(set(values)) != n:
            raise BadInput(f"members.{what}: two members have the same; each needs its own")
    if [m.id for m in terms.members] != sorted(m.id for m in terms.members):
        raise BadInput("members: must be in order of id")
    for m in terms.members:
        if m.host.partition(".")[0] != m.id:
            raise BadInput(f"members.host: {m.host} is not a host of {m.id}")
    keys = [key for m in terms.members for key in (m.governance_key, m.signing_key, m.witness_key)]
    keys += [terms.coordinator.signing_key, terms.coordinator.log_key]
    if len(set(keys)) != len(keys):
        raise BadInput("members: one key serves two purposes; each needs its own")
    if not votes_allowed(k, n, c):
        raise BadInput(f"k = {k}: must be {c + 1} to {n - c}, so that {c} colluders can neither decide nor block")
    if u_min(n, c) > n:
        raise BadInput(f"colluders = {c}: {n} members can never be enough ({u_min(n, c)} would have to finish); lower it")
    if terms.coordinator.release_ca_pem == terms.coordinator.ca_pem:
        raise BadInput("coordinator.release_ca_pem: must sign nothing but releases; it is the coordinator's CA")
    operator = terms.coordinator.member
    if operator is not None:
        if operator not in [m.id for m in terms.members]:
            raise BadInput(f"coordinator.member: {operator} is no member")
        if c < 2:
            raise BadInput("colluders: at least 2 where a member's organisation runs the coordinator, since it counts as one of them")


class CharterExpired(BadInput):
    """The newest charter version has run out: nothing new begins under it, what began and every audit goes on."""

    exit_code = 8


def check_current(charter: Charter, now: float) -> None:
    """That new things may begin under this version; what began before, and an audit, goes on.

    Raises:
        CharterExpired: it has expired.
    """
    if now >= charter.expires:
        raise CharterExpired(expired(charter.version))


def expired(version: int) -> str:
    """What everybody says who begins nothing new under an expired version."""
    return f"charter version {version} has expired, no new run begins under it; have the members sign a new one (`dure charter propose`)"


def tolerance(terms: Terms) -> str:
    """What these terms tolerate, in one sentence."""
    n, c = len(terms.members), terms.colluders
    spare = dropouts_survived(n, c)
    who = "no member may drop out" if spare == 0 else f"{spare} may drop out"
    return f"{n} members, {c} assumed colluder{'s' if c > 1 else ''}: {u_min(n, c)} must finish an exchange, {who}; {terms.k} votes decide"
