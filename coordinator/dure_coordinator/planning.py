"""From an app and a few options to a run plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dure.apps import App, ConfigValue, plan_settings
from dure.charter.model import Charter, check_current
from dure.errors import BadInput, Refused
from dure.model.initial import SCHEME, check_rules
from dure.model.layout import Layout
from dure.model.outer import StepRefused, parse_step
from dure.model.per_node import permitted_of
from dure.secagg.thresholds import u_min
from dure.statements import schema
from dure.statements.kinds import Deadlines, InitialRule, JointInitial, NamedBase, OuterStep, RunPlan

DEFAULT_W_MAX = 65_536
EXAMPLES = {"nesterov": "nesterov,lr=0.8,momentum=0.5", "adam": "adam,lr=0.01,beta1=0.9,beta2=0.99,eps=1e-3"}


def outer_step(app: App, chosen: str | None) -> OuterStep:
    """The plan's outer step: `--outer-step name[,key=value…]`, else the app's `[tool.dure]`, else none.

    Raises:
        BadInput: an unknown name or an incomplete setting.
    """
    if chosen is not None:
        name, *pairs = chosen.split(",")
        settings = dict(p.split("=", 1) for p in pairs if "=" in p)
        if len(settings) != len(pairs):
            raise BadInput(f"--outer-step {chosen}: write name,key=value,…, such as nesterov,lr=0.8,momentum=0.5")
    elif app.dure.outer_step is not None:
        table = dict(app.dure.outer_step)
        name = str(table.pop("kind"))
        settings = {key: value if isinstance(value, str) else repr(value) for key, value in table.items()}
    else:
        name, settings = "none", {}
    if name not in ("none", "average", "nesterov", "adam"):
        raise BadInput(f"outer step {name}: must be none, average, nesterov or adam")
    where = f"--outer-step {chosen}" if chosen is not None else "[tool.dure] outer-step"
    try:
        if name != "none":
            parse_step({"name": name, **settings})
        elif settings:
            raise StepRefused(next(iter(settings)), "none takes no settings")
    except StepRefused as error:
        raise BadInput(f"{where}: {error}; write {EXAMPLES.get(name, name)}") from None
    step = OuterStep(name, settings, app.dure.averaged if name in ("nesterov", "adam") else ())
    try:
        return schema.decode(OuterStep, schema.encode(step))
    except Refused as error:
        raise BadInput(f"[tool.dure] {error}; name a tensor, or the end, beginning or middle of names with a star: *running_var") from None


def make_plan(
    *,
    charter: Charter,
    app: App,
    app_sha256: bytes,
    app_blob: str,
    config: Mapping[str, ConfigValue],
    rounds: int,
    members: tuple[str, ...],
    step: OuterStep,
    nonce: bytes,
    deadlines: Mapping[str, int],
    now: float,
    keep_uploads: str = "none",
    base: NamedBase | None = None,
) -> RunPlan:
    """The plan members approve.

    Raises:
        BadInput: what the charter does not allow, with the arithmetic; or that it has expired.
    """
    check_current(charter, now)
    if keep_uploads not in ("none", "all"):
        raise BadInput(f"--keep-uploads {keep_uploads}: must be none (until the charter's challenge window has closed) or all (for good)")
    terms = charter.terms
    roster = tuple(sorted(members or tuple(m.id for m in terms.members)))
    for name in roster:
        charter.member(name)
    c = terms.colluders
    if u_min(len(roster), c) > len(roster):
        raise BadInput(f"{len(roster)} members are too few: with {c} assumed colluders {u_min(len(roster), c)} would have to finish")
    if step.name == "none" and not terms.allow_unrecomputed_bases:
        raise BadInput(
            "without a plan-named outer step the ServerApp chooses the bases, which the charter does not allow "
            "(allow_unrecomputed_bases); name one in [tool.dure] or with --outer-step average"
        )
    w_max = app.dure.w_max or min(DEFAULT_W_MAX, terms.w_max)
    if w_max > terms.w_max:
        raise BadInput(f"[tool.dure] w-max = {w_max}: the charter allows at most {terms.w_max}")
    needed = 2 * rounds
    return RunPlan(
        nonce=nonce,
        consortium=terms.consortium_id,
        charter_version=charter.version,
        charter_sha256=charter.digest,
        name=app.name,
        app_sha256=app_sha256,
        app_blob=app_blob,
        app_name=app.name,
        app_version=app.version,
        env_sha256=app.env_sha256,
        roster=roster,
        rounds=rounds,
        max_exchanges=app.dure.max_exchanges or 2 * needed + 16,
        outer_step=step,
        encoding="ring16",
        stream="aes-256-ctr",
        recheck="off",
        keep_uploads=keep_uploads,
        base=base,
        w_max=w_max,
        e_cap=6,
        colluders=c,
        u_min=u_min(len(roster), c),
        metrics={"train": tuple(sorted(app.dure.metrics))} if app.dure.metrics else {},
        per_node_config=permitted_of(app.dure.per_node_config),
        scalars_max=app.dure.max_messages or rounds + 1,
        allow_unrecomputed_bases=terms.allow_unrecomputed_bases,
        settings=plan_settings(config),
        deadlines=replace(Deadlines(), **deadlines),
    )


def with_joint_initial(plan: RunPlan, app: App, layout: Layout | None) -> RunPlan:
    """The plan with first weights that its members draw together, by the app's rules.

    Raises:
        BadInput: the app sends no arrays first, or the rules leave one of its tensors out.
    """
    if layout is None:
        raise BadInput(
            "[tool.dure] initial: the app's first message has no arrays, so there are no first weights to draw; use --initial app"
        )
    rules = tuple(InitialRule(rule.tensors, rule.kind, rule.value) for rule in app.dure.initial)
    try:
        check_rules(layout, app.dure.initial)
        return replace(
            plan, initial=schema.decode(JointInitial, schema.encode(JointInitial(SCHEME, layout.tensors_sha256, layout.parameters, rules)))
        )
    except Refused as error:
        raise BadInput(f"[tool.dure] initial: {error}") from None
