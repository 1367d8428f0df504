"""Key epochs, the node's half: dure.secagg.epoch, driven by directives; node keys come from delegations, never from adverts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dure.errors import Refused
from dure.secagg import epoch as keys
from dure.secagg import messages
from dure.secagg.errors import Convicted, PairMismatch
from dure.statements.kinds import NodeDelegation, RunPlan
from dure.statements.statement import open_statement
from dure.wire.messages import Directive
from dure_participant.exchange.state import EpochWork, NodeRunState
from dure_participant.exchange.turn import Turn, document, lose, same, signing_key


def follow_advert(turn: Turn, directive: Directive) -> None:
    """Begins a new epoch; the same number again gives the same advert, a lower one nothing."""
    state, site = turn.state, turn.site
    members = directive.members
    if state.epoch is not None and state.epoch.number == directive.epoch:
        same("members", members, state.epoch.members, "are others than this epoch was begun with")
        if not state.epoch.keys:
            turn.change(kind="advert")
        return
    if directive.epoch <= state.last_epoch:
        raise Refused("epoch", f"{directive.epoch} is over; this node has begun {state.last_epoch}")
    if not set(members) <= set(turn.plan.roster) or len(members) < turn.u_min:
        raise Refused("members", f"must be at least {turn.u_min} of the run's roster")
    secret, advert = keys.begin_epoch(
        consortium=site.consortium,
        run=state.run,
        epoch=directive.epoch,
        members=members,
        me=site.member,
        node_key=site.node_key,
        generation=site.generation,
        last_accepted=state.last_accepted,
        rng=turn.rng,
    )
    old = state.epoch if state.epoch is not None and state.epoch.keys else state.old_epoch
    fresh = EpochWork(directive.epoch, members, secret=secret.to_bytes(), advert=advert)
    turn.change(epoch=fresh, old_epoch=old, last_epoch=directive.epoch, kind="advert", lost=b"")


def _current(state: NodeRunState, directive: Directive) -> EpochWork:
    epoch = state.epoch
    if epoch is None or epoch.number != directive.epoch:
        raise _Lost(f"this node has no state of epoch {directive.epoch}")
    return epoch


class _Lost(Exception):
    """This epoch cannot go on here."""


def follow_kem(turn: Turn, directive: Directive) -> None:
    try:
        epoch = _current(turn.state, directive)
        if epoch.keys:
            return  # a directive that was under way when the epoch was complete
        if not epoch.kem:
            node_keys = delegated_keys(turn, epoch.members, directive.documents)
            if turn.state.above is None and younger_than_run(turn):
                turn.change(above=reached(turn, epoch.members, directive.parts, node_keys))
            secret, kem = keys.encapsulate(keys.EpochSecret.from_bytes(epoch.secret), directive.parts, node_keys, turn.rng)
            hashes = {m: messages.message_hash(directive.parts[m], keys.ADVERT) for m in epoch.members}
            epoch = replace(epoch, secret=secret.to_bytes(), kem=kem, node_keys=node_keys, advert_sha256=hashes)
        turn.change(epoch=epoch, kind="kem")
    except _Lost as e:
        lose(turn, directive.epoch, str(e))
    except Convicted as e:
        lose(turn, directive.epoch, e.reason, convicts=e.member, evidence=e.evidence)


def delegated_keys(turn: Turn, members: tuple[str, ...], documents: Mapping[str, bytes]) -> dict[str, bytes]:
    """Node key of each member, as its signing key in the pinned charter delegated it. Lower generations than seen are refused."""
    found = {}
    for member in members:
        signer = signing_key(turn.site, member)
        word = open_statement(document(documents, f"delegation/{member}"), NodeDelegation, [signer]).fact
        same(f"delegation/{member}", word.member, member, "names another member")
        if not word.not_before <= turn.now < word.not_after:
            raise Refused(f"delegation/{member}", "has run out or is not yet valid")
        if word.generation < turn.state.generations.get(member, 0):
            raise Refused(f"delegation/{member}", "is of an older generation than this node has seen")
        if word.node_key in turn.site.ended_keys:
            raise Refused(f"delegation/{member}", "is of a key that was revoked, or replaced")
        turn.change(generations={**turn.state.generations, member: word.generation})
        found[member] = word.node_key
    same(f"delegation/{turn.site.member}", found[turn.site.member], turn.site.node_key.public_key().public_bytes_raw())
    return found


YOUNG_S = 300
"""How far apart the clocks of a member and of the coordinator may be: a key delegated so long before the plan counts as younger than it."""


def younger_than_run(turn: Turn) -> bool:
    """Whether this node's key was delegated after the run began, in the place of another: then that one's history is not known here."""
    if turn.site.generation <= 1:
        return False
    word = open_statement(turn.site.delegation, NodeDelegation, [turn.site.members[turn.site.member]])
    return word.time + YOUNG_S >= open_statement(turn.state.plan_envelope, RunPlan, turn.site.coordinator_keys).time


def reached(turn: Turn, members: tuple[str, ...], adverts: Mapping[str, bytes], node_keys: Mapping[str, bytes]) -> int:
    """X of rule 7: the highest exchange that c + 1 adverts say they accepted; one of these is honest, c alone cannot raise it."""
    said = [keys.verify_advert(adverts[m], member=m, node_keys=node_keys).last_accepted for m in members if m in adverts]
    return sorted(said, reverse=True)[turn.site.colluders] if len(said) > turn.site.colluders else 0


def follow_group(turn: Turn, directive: Directive) -> None:
    try:
        epoch = _current(turn.state, directive)
        if epoch.keys:
            return
        if not epoch.group:
            secret, group = keys.agree(keys.EpochSecret.from_bytes(epoch.secret), directive.parts, turn.rng)
            epoch = replace(epoch, secret=secret.to_bytes(), group=group)
        turn.change(epoch=epoch, kind="group")
    except (_Lost, PairMismatch) as e:
        lose(turn, directive.epoch, str(e))
    except Convicted as e:
        lose(turn, directive.epoch, e.reason, convicts=e.member, evidence=e.evidence)


def follow_join(turn: Turn, directive: Directive) -> None:
    try:
        epoch = _current(turn.state, directive)
        if not epoch.keys:
            complete = keys.complete(keys.EpochSecret.from_bytes(epoch.secret), directive.parts)
            epoch = replace(epoch, secret=b"", keys=complete.to_bytes(), advert=b"", kem=b"", group=b"")
            turn.note(f"epoch {epoch.number}: keys agreed with {', '.join(m for m in epoch.members if m != turn.site.member)}")
        turn.change(epoch=epoch, kind="join")
    except (_Lost, PairMismatch) as e:
        lose(turn, directive.epoch, str(e))
    except Convicted as e:
        lose(turn, directive.epoch, e.reason, convicts=e.member, evidence=e.evidence)
