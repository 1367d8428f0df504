"""What this node obeys: the charter version a run was approved under, the newest one there is, and which node keys ended since."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from dure.charter.log_keys import log_keys, witness_name, witnessing
from dure.charter.succession import barred, changes, coordinator_keys, signing_keys
from dure.identity.node import NodeIdentity
from dure.statements.kinds import RunPlan
from dure.tlog.files import LogFiles
from dure_participant.exchange.site import Site
from dure_participant.exchange.state import NodeRunState
from dure_participant.exchange.turn import plan_of
from dure_participant.log.following import ended_keys
from dure_participant.log.mirror import Mirror
from dure_participant.settings import NodeSettings
from dure_participant.store import NodeStore


def site_of(identity: NodeIdentity, settings: NodeSettings, plan: RunPlan | None = None, ended: frozenset[bytes] = frozenset()) -> Site:
    """What the exchange logic knows of this node: its keys, the charter, and what the site asks for.

    Args:
        plan: of a run this node approved; None where it has not yet: only the newest version counts then.
        ended: node keys that may speak no more.
    """
    version = identity.charter.version if plan is None else plan.charter_version
    charters = identity.charters[version - 1 :]
    then, now = charters[0], charters[-1]
    members = {m.id: m.signing_key for m in now.members}
    return Site(
        consortium=then.terms.consortium_id,
        member=identity.member,
        node=identity.node,
        node_key=identity.key,
        generation=identity.delegated.generation,
        delegation=identity.delegation,
        charter_version=then.version,
        charter_sha256=then.digest,
        charter_expires=now.expires,
        colluders=then.terms.colluders,
        members=members,
        delegators=signing_keys(identity.charters, version),
        former=frozenset(m.id for charter in identity.charters for m in charter.members) - members.keys(),
        ended_keys=ended,
        coordinator_keys=coordinator_keys(identity.charters, version),
        witnessing=tuple(witnessing(charter.terms) for charter in reversed(charters)),
        barred="" if plan is None else barred(plan, identity.charters),
        w_max=then.terms.w_max,
        allow_unrecomputed_bases=then.terms.allow_unrecomputed_bases,
        challenge_window_s=then.terms.challenge_window_s,
        recompute_first=settings.recompute == "always",
        software="dure",
    )


def mirror_of(identity: NodeIdentity, settings: NodeSettings, store: NodeStore, clock: Callable[[], float]) -> Mirror:
    """This member's copy of the log, and its witness, unless that is elsewhere."""
    newest, *former = log_keys(identity.charters)
    return Mirror(
        files=LogFiles(identity.directory / "log", newest, former=former),
        member=identity.member,
        name=witness_name(identity.charter.member(identity.member).host),
        key=identity.witness_key if settings.cosign else None,
        own=identity.key.public_key().public_bytes_raw(),
        charters=identity.charters,
        store=store,
        folder=identity.directory,
        clock=clock,
    )


class Standing:
    """One node's; moves on as it hears of charter versions and as its mirror reads of ended keys."""

    def __init__(self, identity: NodeIdentity, settings: NodeSettings, mirror: Mirror) -> None:
        self.identity, self._settings, self._mirror = identity, settings, mirror
        self._sites: dict[bytes, Site] = {}
        """Of runs approved here; made anew when anything of this changes."""
        mirror.on_news = self._sites.clear

    def site(self, run: bytes, state: NodeRunState) -> Site:
        """What this run may rely on: the version it was approved under, and who may take part by the newest."""
        ended = ended_keys(self._mirror.followed, self.identity.charter)
        if state.decision != "allowed":
            return site_of(self.identity, self._settings, ended=ended)
        if run not in self._sites:
            self._sites[run] = site_of(self.identity, self._settings, plan_of(state.plan_envelope), ended)
        return self._sites[run]

    def obey(self, roots: Sequence[bytes]) -> list[str]:
        """Takes the charter versions the coordinator shows; a newer one is on disk before it is obeyed. In words, what is new.

        Raises:
            NotAuthorised, Refused, BadInput: they do not follow from those this node has; it goes on under its own.
        """
        before, self.identity = self.identity, self.identity.followed(roots)
        if self.identity is before:
            return []
        self._mirror.obey(self.identity.charters)
        self._sites.clear()
        newer = itertools.pairwise(self.identity.charters[before.charter.version - 1 :])
        words = ((now.version, "; ".join(changes(then.terms, now.terms)) or "nothing but its term") for then, now in newer)
        return [f"charter version {version} is in force: {what}" for version, what in words]
