"""A release's facts as the log has them: the run, who took part, what was measured on its weights. Pure, from verified entries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from dure.charter.model import Charter
from dure.errors import BadInput
from dure.model.lineage_words import lineage
from dure.provenance.ancestry import Ancestry
from dure.provenance.contributions import Row, contributions
from dure.provenance.environments import in_words
from dure.provenance.evaluation import decimal, totals_of
from dure.provenance.facts import MOST_ANCESTORS, About, Ancestor, Binding, Compute, MemberFacts, Metric, TrainingRun
from dure.provenance.spent import said_of_hardware, spent
from dure.recompute.joint_seed import is_draw
from dure.secagg.encode import num_examples
from dure.secagg.ids import InstanceId, Purpose
from dure.statements import kinds
from dure.statements.statement import Signed

DRAWN = "weights drawn from a seed that the members made together"
SENT = "weights that the app drew"
MOST_WORDS = 20_000
"""Characters of what a release says of a member's data (facts.Words)."""


@dataclass
class LogOfRun:
    """What the log says of one run."""

    run: bytes
    plan: kinds.RunPlan
    statements: list[Signed[Any]] = field(default_factory=list)
    """Everything that concerns the run, in order."""
    time: int = 0
    """Unix seconds of the newest entry of the whole log."""
    data: dict[bytes, kinds.DataCommitment] = field(default_factory=dict)
    """Every data commitment of the whole log, by its payload digest."""
    environments: dict[bytes, kinds.EnvCommitment] = field(default_factory=dict)
    """Every env-commitment of the whole log, by its envelope's digest."""
    ancestry: Ancestry = field(default_factory=Ancestry)
    """Of every run of the log."""

    @property
    def opens(self) -> dict[bytes, kinds.InstanceOpen]:
        return {s.fact.instance: s.fact for s in self._of(kinds.InstanceOpen)}

    def _of(self, kind: type) -> Iterator[Signed[Any]]:
        return (s for s in self.statements if isinstance(s.fact, kind))

    def summed(self) -> Iterator[tuple[InstanceId, kinds.InstanceOpen, kinds.InstanceAggregate]]:
        """Every opened sum but those of scales."""
        opens = self.opens
        for signed in self._of(kinds.InstanceAggregate):
            where = InstanceId.decode(signed.fact.instance)
            if where.purpose is not Purpose.SCALES and signed.fact.instance in opens:
                yield where, opens[signed.fact.instance], signed.fact

    def train_exchanges(self) -> list[int]:
        """Numbers of the train exchanges that were summed, in order: round k is the k-th."""
        return sorted({where.exchange for where, opened, _ in self.summed() if opened.category == "train"})

    def evaluations(self) -> dict[int, bytes]:
        """Payload digest of what the log says in words, by exchange."""
        return {s.fact.exchange: s.envelope.payload_sha256 for s in self._of(kinds.Eval)}

    def accepts(self, exchange: int) -> dict[str, kinds.ExchangeAccept]:
        return {s.fact.member: s.fact for s in self._of(kinds.ExchangeAccept) if s.fact.exchange == exchange}


def run_in(entries: Iterable[Signed[Any]], wanted: str) -> LogOfRun:
    """One run's part of the log.

    Args:
        wanted: the beginning of the run's id, hex.

    Raises:
        BadInput: no run starts so, or several do.
    """
    found: dict[bytes, LogOfRun] = {}
    time = 0
    data: dict[bytes, kinds.DataCommitment] = {}
    environments: dict[bytes, kinds.EnvCommitment] = {}
    ancestry = Ancestry()
    for signed in ancestry.following(entries):
        time = max(time, signed.time)
        run = _run_of(signed)
        if isinstance(signed.fact, kinds.DataCommitment):
            data[signed.envelope.payload_sha256] = signed.fact
        elif isinstance(signed.fact, kinds.EnvCommitment):
            environments[signed.envelope.sha256] = signed.fact
        if isinstance(signed.fact, kinds.RunPlan) and run.hex().startswith(wanted.lower()):
            found[run] = LogOfRun(run, signed.fact)
        if run in found:
            found[run].statements.append(signed)
    if len(found) != 1:
        raise BadInput(f"run {wanted}: {'several runs' if found else 'no run'} in the log start so; `dure contributions` shows all")
    only = next(iter(found.values()))
    only.time, only.data, only.environments, only.ancestry = time, data, environments, ancestry
    return only


def _run_of(signed: Signed[Any]) -> bytes:
    if isinstance(signed.fact, kinds.RunPlan):
        return signed.envelope.payload_sha256
    instance = getattr(signed.fact, "instance", None)
    if instance is not None:
        return InstanceId.decode(instance).run
    run = getattr(signed.fact, "run", None)
    return run if isinstance(run, bytes) else b""


def exchange_of_round(log: LogOfRun, round_number: int | None) -> tuple[int, int]:
    """(round, exchange that made its model); None: the newest.

    Raises:
        BadInput: there is no such round.
    """
    trained = log.train_exchanges()
    number = len(trained) if round_number is None else round_number
    if not 0 <= number <= len(trained):
        raise BadInput(f"run {log.run.hex()[:12]} has no round {number} in the log; it has rounds 0 (its first weights) to {len(trained)}")
    return number, trained[number - 1] if number else 0


def training_run(log: LogOfRun, number: int, exchange: int) -> TrainingRun:
    plan, base = log.plan, log.plan.base
    step = plan.outer_step
    return TrainingRun(
        run=log.run,
        app_name=plan.app_name,
        app_version=plan.app_version,
        app_sha256=plan.app_sha256,
        env_sha256=plan.env_sha256,
        rounds=plan.rounds,
        round=number,
        exchange=exchange,
        outer_step=" ".join([step.name, *(f"{k}={v}" for k, v in sorted(step.settings.items()))]),
        lineage=lineage(step.name),
        begins=begins(plan),
        base_weights_id=None if base is None else base.weights_id,
        settings={key: str(value)[:500] for key, value in sorted(plan.settings.items())},
        ancestors=ancestors(log),
    )


def begins(plan: kinds.RunPlan) -> str:
    """In words: what a plan starts from."""
    return plan.base.origin if plan.base is not None else DRAWN if plan.initial is not None else SENT


def ancestors(log: LogOfRun) -> tuple[Ancestor, ...]:
    """Earlier runs whose models it goes back to, nearest first."""
    plans = log.ancestry.plans
    return tuple(Ancestor(run, plans[run].app_name, begins(plans[run])) for run in log.ancestry.chain(log.run)[:MOST_ANCESTORS])


def member_facts(log: LogOfRun, charter: Charter, exchange: int) -> tuple[MemberFacts, ...]:
    """Every roster member's part, up to and with this exchange."""
    names = {m.id: m.display_name for m in charter.members}
    rows = contributions(_until(log, exchange), span=(0.0, float(2**48)))
    words, places = _data_words(log, exchange), _environment_words(log, exchange)
    return tuple(_member(row, names.get(row.member, row.member), words.get(row.member), places.get(row.member)) for row in rows)


def _until(log: LogOfRun, exchange: int) -> Iterator[Signed[Any]]:
    for signed in log.statements:
        instance = getattr(signed.fact, "instance", None)
        number = InstanceId.decode(instance).exchange if instance is not None else getattr(signed.fact, "exchange", 0)
        if number <= exchange:
            yield signed


def _member(row: Row, display_name: str, data: str | None, environment: str | None) -> MemberFacts:
    exchanges, spent = (row.invited, row.counted, row.accepted), (row.tokens, row.steps, row.milliseconds)
    return MemberFacts(row.member, display_name, *exchanges, *spent, row.devices, data, environment)


def _data_words(log: LogOfRun, exchange: int) -> dict[str, str]:
    """By member the data commitments of its own that its counted usage statements name, in the order they were first named."""
    found: dict[str, dict[bytes, str]] = {}
    for said in _counted(log, exchange):
        for digest in said.data:
            fact = log.data.get(digest)
            if fact is not None and fact.member == said.member:
                found.setdefault(said.member, {})[digest] = f"{_described(fact)} (data-commitment {digest.hex()[:16]})"
    return {member: "; ".join(own.values())[:MOST_WORDS] for member, own in found.items()}


def _environment_words(log: LogOfRun, exchange: int) -> dict[str, str]:
    """By member the environments of its own that its counted usage statements name, in the order they were first named."""
    found: dict[str, dict[bytes, str]] = {}
    for said in _counted(log, exchange):
        fact = log.environments.get(said.environment_sha256 or b"")
        if fact is not None and fact.member == said.member and said.environment_sha256 is not None:
            found.setdefault(said.member, {})[said.environment_sha256] = in_words(fact)
    return {member: " / ".join(own.values())[:MOST_WORDS] for member, own in found.items()}


def _described(fact: kinds.DataCommitment) -> str:
    counts = ((fact.files, "files"), (fact.total_bytes, "bytes"), (fact.documents, "documents"), (fact.tokens, "tokens"))
    size = ", ".join(f"{number} {what}" for number, what in counts if number is not None)
    period = f", collected {fact.collected_from or '?'} to {fact.collected_to or '?'}" if fact.collected_from or fact.collected_to else ""
    return f"{fact.name}: {size}; {fact.license}{period}"


def binding(log: LogOfRun, exchange: int, weights_id: bytes, base_id: bytes | None) -> Binding:
    """What in the log names these weights.

    Args:
        base_id: of a base record whose weights were found to be these, bit for bit; None if there is none.
    """
    accepted = sorted(m for m, said in log.accepts(exchange).items() if base_id is not None and said.base_id == base_id)
    opened = {InstanceId.decode(o.instance).exchange for o in log.opens.values() if o.weights_id == weights_id}
    return Binding(base_id if accepted else None, tuple(accepted), tuple(sorted(opened)))


def metrics_of(log: LogOfRun, exchange: int, weights_id: bytes) -> tuple[Metric, ...]:
    """What members measured on these weights (evaluate), and while they made them (train)."""
    found: list[Metric] = []
    worded = log.evaluations()
    for where, opened, total in log.summed():
        evaluated = opened.category == "evaluate" and opened.weights_id == weights_id
        if evaluated or (opened.category == "train" and where.exchange == exchange):
            totals = totals_of(total.trailer, opened.metrics)
            if totals is None:
                continue
            examples = num_examples(totals.sum_w_int, log.plan.w_max)
            found += [
                Metric(where.exchange, opened.category, name, decimal(value)[:80], examples, totals.members, worded.get(where.exchange))
                for name, value in sorted(totals.metrics.items())
            ]
    return tuple(sorted(found, key=lambda m: (m.category, m.exchange, m.name)))


def compute(log: LogOfRun, exchange: int, about: About) -> Compute:
    """The totals (docs/spec/releases.md, "Compute") up to and with this exchange."""
    rates = {a.device: int(Decimal(a.peak_flops)) * a.devices for a in about.accelerators}

    def hardware(said: kinds.Usage) -> int | None:
        rate = rates.get(said.device)
        return said_of_hardware(said) or (rate * said.milliseconds // 1000 if rate is not None else None)

    used = list(_counted(log, exchange))
    device_ms: Counter[str] = Counter()
    for said in used:
        device_ms[said.device] += said.milliseconds
    return Compute(sum(u.tokens for u in used), len(used), spent(used, hardware), dict(sorted(device_ms.items())))


def _counted(log: LogOfRun, exchange: int) -> Iterator[kinds.Usage]:
    """Usage statements that a counted member's commit names; in the draw of first weights nobody spends anything."""
    counted, named = _counted_usage(log, exchange)
    for signed in _until(log, exchange):
        said = signed.fact
        if isinstance(said, kinds.Usage) and (said.exchange, said.member) in counted and signed.envelope.sha256 in named:
            yield said


def _counted_usage(log: LogOfRun, exchange: int) -> tuple[set[tuple[int, str]], set[bytes]]:
    drawn = {InstanceId.decode(opened.instance).exchange for opened in log.opens.values() if is_draw(opened)}
    counted: set[tuple[int, str]] = set()
    named: set[bytes] = set()
    for signed in _until(log, exchange):
        said = signed.fact
        if isinstance(said, kinds.InstanceSurvivors):
            where = InstanceId.decode(said.instance)
            if where.purpose is not Purpose.SCALES and where.exchange not in drawn:
                counted |= {(where.exchange, s.member) for s in said.survivors}
        elif isinstance(said, kinds.InstanceCommit) and said.usage_sha256 is not None:
            named.add(said.usage_sha256)
    return counted, named
