"""Weights that were summed on before: rule 2 of secure-aggregation.md §5, "New run".

The plan lists every sum that was or may have been opened on its base, with its survivors. A node whose own memory says otherwise refuses
the plan; its operator consents to each sum listed; and the node signs a survivor set, or reveals for one, only if it is the same as theirs
or far enough from each. Every signer knows the list, so one honest one is enough, whoever was there before.
"""

from __future__ import annotations

from dure.errors import Refused
from dure.secagg import differences
from dure.secagg.ids import InstanceId
from dure.statements.kinds import EarlierSum, NamedBase, RunPlan
from dure_participant.exchange.site import History, Sent, Site
from dure_participant.exchange.state import ExchangeWork, InstanceWork
from dure_participant.exchange.turn import Turn

NO_WEIGHTS = bytes(32)


def judge_base(site: Site, history: History, run: bytes, plan: RunPlan) -> None:
    """`Refused` if the plan's list of earlier sums is not true, as far as this node knows, or leaves no set that could be signed."""
    base = plan.base
    if base is None:
        return
    if base.weights_id == NO_WEIGHTS:
        raise Refused("base.weights_id", "must name weights")
    for fact in base.earlier:
        _judge_form(site, fact)
    listed = {fact.instance: fact for fact in base.earlier}
    for sent in history.sent:
        if sent.weights_id == base.weights_id and sent.run != run and sent.outcome != "void":
            _judge_known(sent, listed.get(sent.instance))
    for kind in {(fact.category, fact.purpose) for fact in base.earlier}:
        sets = {frozenset(fact.survivors) for fact in base.earlier if (fact.category, fact.purpose) == kind}
        if len(sets) > differences.MOST_SETS:
            raise Refused("base.earlier", f"has {len(sets)} different survivor sets of {kind[0]} {kind[1]}; no further sum may be opened")


def _judge_form(site: Site, fact: EarlierSum) -> None:
    where = InstanceId.decode(fact.instance)
    if (where.consortium, where.purpose.value) != (site.consortium, fact.purpose):
        raise Refused("base.earlier", "has an instance of another consortium or purpose than it says")
    if list(fact.survivors) != sorted(set(fact.survivors)) or not set(fact.survivors) <= {*site.members, *site.former}:
        raise Refused("base.earlier", "has survivors that are not distinct members in order")


def _judge_known(sent: Sent, listed: EarlierSum | None) -> None:
    where = f"{sent.category} exchange {sent.exchange} of run {sent.run.hex()[:12]}"
    if not sent.survivors:
        raise Refused("base", f"this node sent its part in {where} on these weights and was never told whom that sum is of")
    if listed is None:
        raise Refused("base.earlier", f"does not list {where}, in which this node sent its part on these weights")
    if listed.survivors != sent.survivors or (listed.category, listed.purpose) != (sent.category, sent.purpose):
        raise Refused("base.earlier", f"says another sum of {where} than this node saw opened")


def needs_consent(plan: RunPlan) -> frozenset[bytes]:
    """Instances an operator must have seen and consented to, each by itself."""
    return frozenset(fact.instance for fact in plan.base.earlier) if plan.base is not None else frozenset()


def judge_consent(plan: RunPlan, consented: frozenset[bytes]) -> None:
    """`Refused` unless the operator consented to every earlier sum the plan lists."""
    if missing := needs_consent(plan) - consented:
        raise Refused("consent", f"the operator has not consented to {len(missing)} of the sums opened on this plan's weights before")


def is_consented(turn: Turn, sent: Sent) -> bool:
    """Whether an earlier instance of another run no longer forbids sending on its weights: listed truly, and consented to."""
    base = turn.plan.base
    if base is None or sent.run == turn.state.run or sent.weights_id != base.weights_id or sent.instance not in turn.state.consented:
        return False
    return any(f.instance == sent.instance and f.survivors == sent.survivors for f in base.earlier)


def earlier_sets(turn: Turn, exchange: ExchangeWork, work: InstanceWork) -> list[tuple[str, ...]]:
    """Survivor sets that this instance's must be compared with: the plan's on these weights, and those of this run this node knows of.

    Without arrays all of a run's messages count as one base.
    """
    found: list[tuple[str, ...]] = []
    base = turn.plan.base
    if base is not None and exchange.layout and exchange.weights_id == base.weights_id:
        found += [f.survivors for f in base.earlier if (f.category, f.purpose) == (exchange.category, work.purpose)]
    for sent in turn.history.sent:
        same_base = sent.weights_id == exchange.weights_id and (sent.category == exchange.category or not exchange.layout)
        mine = sent.run == turn.state.run and sent.instance != work.instance and sent.outcome != "void"
        if mine and same_base and sent.purpose == work.purpose and sent.survivors:
            found.append(sent.survivors)
    return found


def judge_set(turn: Turn, exchange: ExchangeWork, work: InstanceWork, survivors: tuple[str, ...]) -> None:
    """`Refused` for a survivor set from which, with an earlier one, few members' parts could be told."""
    if why := differences.why_not(survivors, earlier_sets(turn, exchange, work), turn.site.colluders):
        raise Refused("survivors", why)


def in_words(base: NamedBase, plan: RunPlan) -> list[str]:
    """What a person consents to: where the weights come from, and every sum opened on them."""
    lines = [f"first weights: {base.origin} ({base.parameters} parameters, id {base.weights_id.hex()[:16]})"]
    if not base.earlier:
        return [*lines, "no sum was ever opened on these weights"]
    lines.append("sums were opened on these very weights before; another one tells more about the members in it:")
    for fact in base.earlier:
        where = InstanceId.decode(fact.instance)
        of = ", ".join(fact.survivors)
        lines.append(f"  {fact.category} {fact.purpose}, exchange {where.exchange} of run {where.run.hex()[:12]}: the sum of {of}")
    if differences.one_set_only(len(plan.roster), plan.u_min, plan.colluders):
        return [*lines, "this node will sign only a sum of exactly the same members again"]
    apart = plan.colluders + 2
    return [*lines, f"this node will sign only a sum of the same members, or of ones that differ by {apart} or more; never a third set"]
