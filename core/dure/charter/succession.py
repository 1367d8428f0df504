"""What a newer charter version changes: in words for whoever signs it, for the runs that were approved before, and for whose keys count."""

from __future__ import annotations

from collections.abc import Sequence

from dure.charter.model import Charter, CharterCoordinator, CharterMember, Terms
from dure.statements import schema
from dure.statements.kinds import RunPlan

KEYS = ("governance_key", "signing_key", "witness_key", "ca_pem")
COORDINATORS_KEYS = {"signing_key": "signing key", "log_key": "log key", "ca_pem": "CA", "release_ca_pem": "release CA"}


def signing_keys(charters: Sequence[Charter], since: int) -> dict[str, tuple[bytes, ...]]:
    """Every signing key of each member in the versions from `since` on, newest last: a run of that version knows its nodes by them."""
    found: dict[str, tuple[bytes, ...]] = {}
    for charter in charters[since - 1 :]:
        for member in charter.members:
            before = found.get(member.id, ())
            found[member.id] = before if member.signing_key in before else (*before, member.signing_key)
    return found


def coordinator_keys(charters: Sequence[Charter], since: int) -> tuple[bytes, ...]:
    """The coordinator's signing keys in the versions from `since` on, newest last: what it says in a run of that version is under one."""
    return tuple(dict.fromkeys(charter.terms.coordinator.signing_key for charter in charters[since - 1 :]))


def barred(plan: RunPlan, charters: Sequence[Charter]) -> str:
    """Why a run that was approved under an earlier version begins no exchange under the newest; "" where it goes on as approved."""
    newest = charters[-1]
    if not plan.charter_version < newest.version:
        return ""
    then, now = charters[plan.charter_version - 1].terms, newest.terms
    gone = sorted(set(plan.roster) - {m.id for m in now.members})
    left = len(plan.roster) - len(gone)
    why = ""
    if left < plan.u_min:
        why = f"removes {', '.join(gone)}: {left} members of the run are left, {plan.u_min} are needed"
    elif now.coordinator.member != then.coordinator.member:
        why = "gives the coordinator to another organisation"
    elif now.colluders > plan.colluders:
        why = f"assumes {now.colluders} colluders, the run was approved for {plan.colluders}"
    elif plan.w_max > now.w_max:
        why = f"allows weights up to {now.w_max}, the run was approved for {plan.w_max}"
    elif not plan.outer_step.named and not now.allow_unrecomputed_bases:
        why = "does not allow bases that the ServerApp chooses"
    return f"charter version {newest.version} {why}" if why else ""


def changes(before: Terms, after: Terms) -> list[str]:
    """What a version changes, one line each, for the person who must decide on it."""
    old, new = ({m.id: m for m in terms.members} for terms in (before, after))
    lines = [f"REMOVES {m}" for m in sorted(old.keys() - new.keys())]
    lines += [f"ADDS {m}" for m in sorted(new.keys() - old.keys())]
    for name in sorted(old.keys() & new.keys()):
        lines += _member(old[name], new[name])
    lines += _coordinator(before.coordinator, after.coordinator)
    old_terms, new_terms = (schema.encode(terms) for terms in (before, after))
    fields = [f for f in old_terms if f not in ("members", "coordinator") and old_terms[f] != new_terms[f]]
    lines += [f"{field}: {_word(old_terms[field])} becomes {_word(new_terms[field])}" for field in fields]
    return lines


def _coordinator(old: CharterCoordinator, new: CharterCoordinator) -> list[str]:
    replaced = [words for field, words in COORDINATORS_KEYS.items() if getattr(old, field) != getattr(new, field)]
    lines = [f"REPLACES the coordinator's {', '.join(replaced)}"] if replaced else []
    if old.member != new.member:
        lines.append(f"the coordinator is run by {new.member or 'nobody of the members'}, before: {old.member or 'nobody of the members'}")
    return lines


def _member(old: CharterMember, new: CharterMember) -> list[str]:
    replaced = [field.replace("_pem", "").replace("_", " ") for field in KEYS if getattr(old, field) != getattr(new, field)]
    lines = [f"REPLACES {new.id}'s {', '.join(replaced)}"] if replaced else []
    names = [f for f in ("display_name", "registration", "host") if getattr(old, f) != getattr(new, f)]
    return lines + [f"{new.id}'s {f}: {getattr(old, f)!r} becomes {getattr(new, f)!r}" for f in names]


def _word(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)
