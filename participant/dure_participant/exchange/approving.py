"""The plan: compared with the pinned charter, shown to the operator, approved or refused in this member's name (rule 6)."""

from __future__ import annotations

from dure.charter.model import expired
from dure.errors import DureError, Refused
from dure.model.outer import parse_step
from dure.secagg import thresholds
from dure.statements.kinds import RunApproval, RunPlan
from dure.statements.statement import open_statement
from dure.wire.messages import Directive
from dure_participant.exchange.again import judge_base, judge_consent, needs_consent
from dure_participant.exchange.inputs import Allowed
from dure_participant.exchange.turn import Turn, document, plain, same


def follow_approve(turn: Turn, directive: Directive) -> None:
    """Takes the plan once; what the charter forbids is refused without asking anyone."""
    envelope = document(directive.documents, "plan")
    if turn.state.plan_envelope:
        same("plan", envelope, turn.state.plan_envelope, "is another plan than the one shown for this run")
        turn.change(kind="approve")
        return
    plan = open_statement(envelope, RunPlan, turn.site.coordinator_keys[-1:])
    same("plan", plan.envelope.payload_sha256, turn.state.run, "is not the plan this run is named after")
    app = document(directive.documents, "app").decode("ascii", "replace")
    same("app", app, plan.fact.app_blob, "is not the plan's")
    turn.change(plan_envelope=envelope, app_blob=app, kind="approve")
    try:
        judge_plan(turn, plan.fact)
    except DureError as e:
        turn.change(decision="refused", refusal=plain(f"refused by this node: {e}", 900))
        turn.note(f"refuses the plan {plan.fact.name}: {e}")


def judge_plan(turn: Turn, plan: RunPlan) -> None:
    """`Refused` naming the field that the pinned charter, or this version, does not allow."""
    site = turn.site
    same("consortium", plan.consortium, site.consortium)
    same("charter_version", plan.charter_version, site.charter_version, "is not the charter version this node's operator pinned")
    if turn.now >= site.charter_expires:
        raise Refused("charter_version", expired(site.charter_version))
    same("charter_sha256", plan.charter_sha256, site.charter_sha256, "is not the charter this node's operator pinned")
    roster = sorted(set(plan.roster))
    same("roster", list(plan.roster), roster, "must be distinct members in order")
    if strangers := [m for m in roster if m not in site.members]:
        raise Refused("roster", f"{strangers[0]} is not in the charter")
    if site.member not in roster:
        raise Refused("roster", "does not name this member")
    same("colluders", plan.colluders, site.colluders, f"must be the charter's c = {site.colluders}")
    needed = thresholds.u_min(len(roster), site.colluders)
    same("u_min", plan.u_min, needed, f"must be {needed} for {len(roster)} members and c = {site.colluders}")
    if len(roster) < needed:
        raise Refused("roster", f"{len(roster)} members are too few, {needed} are needed")
    if plan.w_max > site.w_max:
        raise Refused("w_max", f"{plan.w_max} is above the charter's {site.w_max}")
    if not plan.outer_step.named and not (plan.allow_unrecomputed_bases and site.allow_unrecomputed_bases):
        raise Refused("outer_step", "none needs allow_unrecomputed_bases in charter and plan: the coordinator would pick every base")
    if plan.outer_step.named:
        parse_step(plan.outer_step.config)
    if plan.initial is not None and plan.base is not None:
        raise Refused("initial", "the first weights are drawn, or those of the plan's base; this plan has both")
    judge_base(site, turn.history, turn.state.run, plan)


def take_allowed(turn: Turn, given: Allowed) -> None:
    """The operator's word: one approval per run."""
    state = turn.state
    same("run", given.run, state.run)
    if not state.plan_envelope:
        raise Refused("plan", "was not shown yet")
    if state.decision == "allowed":
        return
    if not given.allowed:
        turn.change(decision="refused", refusal=plain(given.reason or "refused by the operator", 900))
        return
    try:
        judge_plan(turn, turn.plan)  # again: the charter may have expired while the operator thought about it
    except DureError as e:
        turn.change(decision="refused", refusal=plain(f"refused by this node: {e}", 900))
        turn.note(f"refuses the plan {turn.plan.name}: {e}")
        return
    judge_consent(turn.plan, frozenset(given.consented))
    approval = turn.seal(RunApproval(state.run, turn.site.member, turn.site.node)).to_bytes()
    turn.change(decision="allowed", refusal="", approval=approval, consented=tuple(sorted(needs_consent(turn.plan))))
    turn.note(f"approved {turn.plan.name}")
