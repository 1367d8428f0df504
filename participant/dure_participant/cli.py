"""`dure node`: a member's node, from its keys to what it gave away."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from dure.charter.model import check_current
from dure.charter.succession import coordinator_keys
from dure.console import DEFAULT_DIR, AsJson, Dir, Metrics, Yes, first_use, one_line_errors, say, show_json
from dure.environments import place
from dure.environments.cli import environments
from dure.errors import BadInput, Unavailable
from dure.identity import tls
from dure.identity.node import NodeIdentity, create_node, load_node
from dure.model.lineage_words import lineage
from dure.statements.kinds import RunPlan
from dure.statements.statement import open_statement, read_verified
from dure_participant import environment, named_data, recompute_cli, settings
from dure_participant.exchange.state import NodeRunState
from dure_participant.log.noted import noted
from dure_participant.store import NodeStore

app = typer.Typer(no_args_is_help=True, help="A node in your data centre: it only dials out, and runs only what you allowed.")
config = typer.Typer(no_args_is_help=True, help="Site-only settings; they never leave this machine.")
app.add_typer(config, name="config")
recompute_cli.register(app)


def _app_folder(directory: Path, app: str) -> Path:
    """An app's folder, or that of a plan this node was offered."""
    if Path(app).is_dir():
        return Path(app)
    if not re.fullmatch(r"[0-9a-fA-F]{4,64}", app):
        raise BadInput(f"{app} is neither an app's folder nor the digest of a plan")
    run = _digest(app, list(_store(directory).plans()))
    folder = directory / "runs" / run.hex()[:16] / "app"
    if not folder.is_dir():
        raise Unavailable(f"the code of plan {run.hex()[:16]}… is not here yet; it comes while `dure node run` is connected")
    return folder


app.add_typer(environments(_app_folder), name="env")


def _store(directory: Path) -> NodeStore:
    load_node(directory)
    return NodeStore(directory / "node.sqlite")


@app.command()
@one_line_errors
def init(
    consortium: Annotated[Path, typer.Option(help="The consortium file, from the administrator.")],
    member: Annotated[Path, typer.Option(help="Your member's folder (`dure member init`).")],
    name: Annotated[str, typer.Option(help="This node's name.")] = "node1",
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Make this node's keys, its TLS certificate and your member's word for it.

    Example: dure node init --consortium consortium.json --member ~/krafton --dir /var/lib/dure

    The charter is checked against the digest your member pinned (`dure member sign` or `trust`).
    """
    with first_use(directory):
        identity = create_node(member, directory, name, consortium, now=time.time())
    if as_json:
        show_json(
            {"member": identity.member, "node": identity.node, "charter": identity.charter.digest.hex(), "coordinator": identity.address}
        )
        return
    say(f"node {identity.node} of {identity.member}, coordinator at {identity.address}")
    say(f"charter version {identity.charter.version}, pinned by {identity.pin.hex()}")
    say("next: `dure node config set data=/path`, then `dure node run`")


@config.command("set")
@one_line_errors
def config_set(
    pairs: Annotated[list[str], typer.Argument(help="key=value; true/false and numbers are recognised.")], directory: Dir = DEFAULT_DIR
) -> None:
    """Set site-only settings; apps see them as node_config.

    Example: dure node config set data=/srv/text device=cuda
    """
    load_node(directory)
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise BadInput(f"{pair!r}: write key=value")
        values[key] = settings.parse(value)
    settings.assign(directory, values)
    say(f"{', '.join(sorted(values))} set in {directory / settings.FILE}; in force at the node's next start")


@config.command("show")
@one_line_errors
def config_show(directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """The settings in force."""
    load_node(directory)
    found = settings.load(directory)
    body = {**{k: getattr(found, k) for k in found.__dataclass_fields__ if k != "node_config"}, "node_config": dict(found.node_config)}
    if as_json:
        show_json(body)
        return
    for key, value in body.items():
        say(f"{key} = {value}")


@app.command()
@one_line_errors
def run(directory: Dir = DEFAULT_DIR, metrics: Metrics = None) -> None:
    """Dial the coordinator and take part in runs, until stopped; reconnects for ever.

    Example: dure node run --dir /var/lib/dure
    """
    from dure_participant.app import run as run_node

    run_node(directory, metrics)


def _digest(prefix: str, known: list[bytes]) -> bytes:
    wanted = prefix.lower()
    found = [k for k in known if k.hex().startswith(wanted)]
    if len(found) > 1:
        raise BadInput(f"{prefix}: {len(found)} plans start so; give more digits")
    if found:
        return found[0]
    try:
        whole = bytes.fromhex(wanted)
    except ValueError:
        whole = b""
    if len(whole) != 32:
        raise BadInput(f"{prefix}: no plan offered so far starts so; give all 64 digits to decide ahead, or see `dure node allow --list`")
    return whole


@app.command()
@one_line_errors
def allow(
    digest: Annotated[
        str | None, typer.Argument(help="The plan's digest, from the administrator or `--list`; a unique beginning is enough.")
    ] = None,
    refuse: Annotated[str, typer.Option(help="Refuse instead, for this reason; the coordinator is told.")] = "",
    env: Annotated[str, typer.Option(help="Run it in this environment (`env list`), where the plan names none.")] = "",
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="What it trains on here, for everybody to read in this run's usage: name or digest of registered data; several times for "
            "several; '' for none. Default: the setting data_commitments.",
        ),
    ] = None,
    list_plans: Annotated[bool, typer.Option("--list", help="Plans offered and what was decided.")] = False,
    consent: Annotated[
        bool, typer.Option("--consent", help="With --yes: consent to another sum on weights on which sums were opened before.")
    ] = False,
    directory: Dir = DEFAULT_DIR,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """See a run's plan in words and allow it; the node then signs its approval.

    Example: dure node allow 3f9a12 --data news-2026

    The app's code lies in the node's folder, under runs/, from the moment the plan is offered: read it first.

    A plan that uses weights again shows every sum opened on them and whom it was of, and asks for consent to another one. No rule of
    site-policy.toml consents to that.

    Given again for a plan that is allowed, --data counts from the next exchange on.
    """
    from dure_participant import policy
    from dure_participant.exchange.again import needs_consent

    identity, store = load_node(directory), _store(directory)
    plans = store.plans()
    if list_plans or digest is None:
        rows = [{"plan": run.hex(), "decision": _word(store, run)} for run in plans]
        if as_json:
            show_json({"plans": rows})
        else:
            for row in rows or [{"plan": "no plan offered yet", "decision": ""}]:
                say(f"{row['plan']}  {row['decision']}")
        return
    run_id = _digest(digest, list(plans))
    if not refuse and store.decision(run_id) is None:
        check_current(identity.charter, time.time())
    chosen = bytes.fromhex(place.named(directory, env).env_sha256) if env else None
    named = None if refuse else _named(identity, store, directory, data)
    plan = _offered(identity, plans.get(run_id))
    if plan is not None:
        if chosen is not None and plan.env_sha256 is not None:
            raise BadInput(f"--env: plan {run_id.hex()[:16]}… names its environment ({plan.env_sha256.hex()[:16]}…); leave --env out")
        words = policy.in_words(plan, run_id, store.history(), environment.in_words(directory, plan, run_id, chosen))
        for line in words if not as_json else ():
            say(line)
    elif plan is None and not as_json:
        say(f"plan {run_id.hex()} has not been offered to this node yet; deciding ahead")
    if named is not None and not as_json:
        say(f"its usage statements name {named_data.in_words(named, noted(store).data)}, for everybody to read")
    needed = needs_consent(plan) if plan is not None and not refuse else frozenset()
    if needed and yes and not consent:
        raise BadInput(
            f"sums were opened on this plan's weights before; look at them with `dure node allow {run_id.hex()[:12]}`, "
            "and give --consent beside --yes to allow another one"
        )
    if not yes and not typer.confirm("Refuse it?" if refuse else "Allow this plan on this node?"):
        raise BadInput("nothing decided")
    if needed and not consent and not typer.confirm(f"Consent to another sum on weights on which {len(needed)} were opened?"):
        raise BadInput("no consent, nothing decided; `--refuse REASON` tells the coordinator")
    store.decide(run_id, allowed=not refuse, reason=refuse, how="operator", env_sha256=chosen, consented=needed, data=named)
    if as_json:
        facts = {"allowed": not refuse, "env_sha256": chosen.hex() if chosen else None, "consented_sums": len(needed)}
        show_json({"plan": run_id.hex(), **facts, "data": None if named is None else [d.hex() for d in named]})
    else:
        say(f"plan {run_id.hex()[:16]}… {'refused' if refuse else 'allowed'}; a running node acts on it within a second")


def _named(identity: NodeIdentity, store: NodeStore, directory: Path, data: list[str] | None) -> tuple[bytes, ...] | None:
    """What the run's usage will name: registered, all of it. None: the setting, which may still change, and is empty or registered now."""
    registered = noted(store).data
    if data is not None:
        return named_data.find(data, registered, identity.member)
    setting = [digest.hex() for digest in settings.load(directory).commitments]
    named_data.find(setting, registered, identity.member, "the setting data_commitments names")
    return None


def _offered(identity: NodeIdentity, envelope: bytes | None) -> RunPlan | None:
    """The plan in an offered envelope; None if none was."""
    if envelope is None:
        return None
    return open_statement(envelope, RunPlan, coordinator_keys(identity.charters, 1)).fact


def _word(store: NodeStore, run: bytes) -> str:
    decision = store.decision(run)
    if decision is None:
        return "waits for you: dure node allow " + run.hex()[:12]
    return f"{'allowed' if decision.allowed else 'refused: ' + decision.reason} ({decision.how})"


@app.command()
@one_line_errors
def status(directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """Where this node stands: connection, certificate, runs, last words. Works with the daemon off, too.

    Example: dure node status --json
    """
    identity, store = load_node(directory), _store(directory)
    certificate = tls.load_certificate(identity.tls_certificate_pem, "tls.pem")
    states = [NodeRunState.from_bytes(raw) for raw in store.states().values()]
    body = {
        "member": identity.member,
        "node": identity.node,
        "generation": identity.delegated.generation,
        "coordinator": identity.address,
        "connection": store.fact("connection") or {"state": "never started"},
        "certificate_days_left": round(tls.days_left(certificate, time.time()), 1),
        "charter_version": identity.charter.version,
        "runs": [
            {
                "run": s.run.hex(),
                "decision": s.decision,
                "doing": s.kind,
                "last_exchange_accepted": s.last_accepted,
                "status": s.status,
                "finished": s.finished,
                "frozen": s.frozen,
                "disputes": [
                    {"by": d.member, "exchange": d.exchange, "finding": d.finding, "chunk": d.chunk, "found_here": d.result}
                    for d in s.disputes
                ],
            }
            for s in states
        ],
        "recomputations": [
            {"run": r.run.hex(), "exchange": r.exchange, "ended": r.ended, "done": r.done, "total": r.total, "sums": r.result}
            for r in store.recomputations()[-5:]
        ],
        "notes": [{"time": t, "run": r.hex()[:12] if r else None, "text": x} for t, r, x in store.notes()],
    }
    if as_json:
        show_json(body)
        return
    say(f"node {identity.node} of {identity.member} (generation {body['generation']}), charter version {body['charter_version']}")
    connection = body["connection"]
    say(f"coordinator {identity.address}: {connection['state']}" + (f": {connection['reason']}" if connection.get("reason") else ""))
    say(f"certificate: {body['certificate_days_left']} days left")
    for s in states:
        say(f"run {s.run.hex()[:12]}: {'over' if s.finished else s.kind or 'waiting'}; {s.decision}; {s.status}")
        if s.frozen:
            say(f"  FROZEN here: {s.frozen}")
        for d in s.disputes:
            say(f"  {d.member} disputes exchange {d.exchange} ({d.finding}); this node: {d.result or 'is rechecking'}")
    for again in body["recomputations"]:
        words = "; ".join(s["words"] for s in again["sums"] or []) or f"{again['done']} of {again['total'] or '?'} chunks agree so far"
        say(f"recomputation of run {again['run'][:12]} exchange {again['exchange']}: {words}")
    for t, r, x in store.notes():
        say(f"  {datetime.fromtimestamp(t, UTC):%m-%d %H:%M:%S} {r.hex()[:8] if r else '        '} {x}")


@app.command()
@one_line_errors
def gave(directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """What this site gave away, exchange by exchange: masked bytes, and what was in the clear.

    Example: dure node gave --json
    """
    identity, store = load_node(directory), _store(directory)
    plans = {run: read_verified(envelope, RunPlan) for run, envelope in store.plans().items()}
    rows = [
        {"run": run.hex(), "exchange": number, "lineage": lineage(plans[run].outer_step.name), **fact}
        for run, number, fact in store.given()
    ]
    sums = [s for s in store.history().sent]
    colluders = identity.charter.colluders
    if as_json:
        outcomes = [{"run": s.run.hex(), "exchange": s.exchange, "purpose": s.purpose, "outcome": s.outcome} for s in sums]
        show_json({"exchanges": rows, "instances": outcomes, "colluders_needed": colluders + 1})
        return
    for row in rows:
        sent = ", ".join(f"{k.removeprefix('bytes_')} {v} bytes" for k, v in row.items() if k.startswith("bytes_"))
        again = f"; {row['recomputed']}" if "recomputed" in row else ""
        say(f"run {row['run'][:12]} exchange {row['exchange']}: masked {sent}; base {row['lineage']}{again}")
    say(f"opening one of these sums takes more than {colluders} members working together with the coordinator")
    say("in the clear: that this node took part, tokens, steps, seconds and bytes of each exchange")
