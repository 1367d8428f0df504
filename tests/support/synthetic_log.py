"""A consortium's log that nobody trained for: real statements in real proportions, every signature real, every digest that an audit
compares real; what only levels 2 and 3 look into (updates, sums, tags) is made up. One seed, one log, to the byte.

Runs of train and evaluate exchanges; now and then a member drops out, an instance is voided, an acceptance comes late. At given points
the charter gets a new version: other limits, a member with a new signing key, one more member.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.charter import root
from dure.charter.log_keys import log_key, origin_of, witness_name
from dure.charter.model import CharterCoordinator, CharterMember, Terms
from dure.provenance.evaluation import evaluation
from dure.secagg.certificate import context, survivors_message
from dure.secagg.ids import InstanceId, Purpose
from dure.secagg.thresholds import default_colluders, share_threshold, u_min, voids_needed
from dure.statements import kinds
from dure.statements.dsse import Envelope
from dure.statements.statement import Chain, SeenHead, read_payload, seal
from dure.tlog.checkpoint import Checkpoint
from dure.tlog.merkle import Frontier, leaf_hash
from dure.tlog.note import Note, cosign, sign
from dure.tlog.tiles import TileBuilder

BEGAN = 1_790_000_000
"""Unix seconds of the first entry."""
NAMES = ("ara", "bora", "chan", "dana", "eun", "fani", "gaon", "hana", "iseul", "jun")


@dataclass
class Signer:
    """A key and its chain."""

    key: Ed25519PrivateKey
    chain: Chain = field(default_factory=Chain)

    @property
    def public(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    def say(self, fact: Any, now: int) -> Envelope:
        envelope, self.chain = seal(fact, self.key, self.chain, now)
        return envelope


@dataclass
class Member:
    """One member's keys. `signing` and `node` are replaced in its life."""

    name: str
    governance: Ed25519PrivateKey
    witness: Ed25519PrivateKey
    signing: Signer
    node: Signer
    generation: int = 0
    ca_pem: str = ""

    @property
    def host(self) -> str:
        return f"{self.name}.titan"

    def charter_member(self) -> CharterMember:
        governance, witness = (k.public_key().public_bytes_raw() for k in (self.governance, self.witness))
        return CharterMember(self.name, self.name, "", self.host, governance, self.signing.public, witness, self.ca_pem)


class SyntheticLog:
    """Makes the entries; keeps every key, so that a test can forge whatever a key's holder could.

    Args:
        members: how many the consortium begins with, at least 4.
        exchanges_per_run: half of them train (scales, then update), half evaluate.
        versions_at: entries after which the charter gets its versions 2, 3, …, at the end of the run under way.
        evaluations: the coordinator says what evaluate exchanges measured, in words too.
    """

    def __init__(
        self,
        *,
        members: int = 5,
        exchanges_per_run: int = 100,
        versions_at: tuple[int, ...] = (),
        seed: int = 0,
        evaluations: bool = False,
    ) -> None:
        self.rng = random.Random(seed)
        self.exchanges_per_run, self.versions_at = exchanges_per_run, versions_at
        self.log, self.coordinator = self._key(), Signer(self._key())
        self.members = [self._member(name) for name in NAMES[:members]]
        self.now, self.size, self.frontier = BEGAN, 0, Frontier()
        self.evaluations = evaluations
        self.news = random.Random(seed)
        """Who hears of a head in time; apart, so that the story does not depend on it."""
        self.environments: dict[str, Envelope] = {}
        """Each member's env-commitment, signed before its first usage statement."""
        self.signatures = 0
        """Made for the entries so far: one each, and those in certificates."""
        n = len(self.members)
        self.colluders = default_colluders(n)
        self.terms = Terms(
            consortium_id=self.rng.randbytes(16),
            name="titan",
            k=max(self.colluders + 1, n // 2 + 1),
            colluders=self.colluders,
            w_max=65_536,
            max_run_days=30,
            challenge_window_s=3_600,
            allow_unrecomputed_bases=False,
            allow_unmasked=False,
            public_log=False,
            agreement_sha256=None,
            coordinator=CharterCoordinator(
                self.coordinator.public, self.log.public_key().public_bytes_raw(), self._pem(), self._pem(), None
            ),
            members=tuple(m.charter_member() for m in self.members),
        )
        self.roots: list[bytes] = []
        self._publish(self.terms)

    # -- keys and charter ------------------------------------------------------------------------------------------------

    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.rng.randbytes(32))

    def _pem(self) -> str:
        """Of a certificate's form; nothing in an audit of the log reads it."""
        body = base64.b64encode(self.rng.randbytes(300)).decode()
        return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"

    def _member(self, name: str) -> Member:
        return Member(name, self._key(), self._key(), Signer(self._key()), Signer(self._key()), ca_pem=self._pem())

    def member(self, name: str) -> Member:
        return next(m for m in self.members if m.name == name)

    def _publish(self, terms: Terms) -> None:
        """The next version, signed by everybody there was and is."""
        raw = root.propose(terms, len(self.roots) + 1, datetime.fromtimestamp(self.now, UTC))
        signatures = {m.name: root.sign(raw, m.name, m.governance) for m in self.members}
        self.roots.append(root.merge(raw, signatures, self.roots[-1] if self.roots else None))
        self.terms, self.charter_sha256 = terms, root.digest(root.parse(raw))

    @property
    def pin(self) -> bytes:
        return root.digest(root.parse(self.roots[0]))

    # -- the story -------------------------------------------------------------------------------------------------------

    def entries(self, count: int) -> Iterator[bytes]:
        """So many entries of the story, wherever in it that ends."""
        for envelope in self._story():
            if self.size >= count:
                return
            self.size += 1
            self.signatures += 1
            entry = envelope.to_bytes()
            self.frontier.extend([leaf_hash(entry)])
            yield entry

    def _published(self) -> None:
        """The head over all so far is cosigned: the coordinator knows it, and of the nodes those that are quick."""
        head = SeenHead(self.frontier.size, self.frontier.root())
        for signer in (self.coordinator, *(m.node for m in self.members if self.news.random() < 0.7)):
            signer.chain = signer.chain.having_seen(head)

    def _story(self) -> Iterator[Envelope]:
        changes = list(self.versions_at)
        yield self._charter_entry()
        yield from map(self._delegation, self.members)
        while True:
            yield from self._run()
            if changes and self.size >= changes[0]:
                changes.pop(0)
                yield from self._new_version()

    def _charter_entry(self) -> Envelope:
        raw = self.roots[-1]
        return self.coordinator.say(kinds.CharterVersion(len(self.roots), self.charter_sha256, sha256(raw).digest()), self.now)

    def _delegation(self, member: Member) -> Envelope:
        member.generation += 1
        fact = kinds.NodeDelegation(member.name, "node1", member.node.public, member.generation, self.now - 3_600, self.now + 31_536_000)
        return member.signing.say(fact, self.now)

    def _new_version(self) -> Iterator[Envelope]:
        """By turns: a member with a new signing key and a new node; one more member; another limit."""
        turn = len(self.roots) % 3
        changed = []
        if turn == 1:
            changed = [self.members[0]]
            self.members[0].signing, self.members[0].node = Signer(self._key()), Signer(self._key())
        elif turn == 2 and len(self.members) < len(NAMES):
            changed = [self._member(NAMES[len(self.members)])]
            self.members = [*self.members, *changed]
        members = tuple(m.charter_member() for m in self.members)
        self._publish(replace(self.terms, members=members, w_max=self.terms.w_max + 1, k=len(members) // 2 + 1))
        yield self._charter_entry()
        yield from map(self._delegation, changed)

    def _run(self) -> Iterator[Envelope]:
        roster = tuple(sorted(m.name for m in self.members))
        plan = self._plan(roster)
        envelope = self.coordinator.say(plan, self.now)
        run = envelope.payload_sha256
        yield envelope
        for name in roster:
            yield self.member(name).node.say(kinds.RunApproval(run, name, "node1"), self.now)
        late: list[tuple[str, kinds.ExchangeAccept]] = []
        for number in range(1, self.exchanges_per_run + 1):
            self.now += 60
            yield from self._exchange(run, plan, number, late)
            self._published()

    def _plan(self, roster: tuple[str, ...]) -> kinds.RunPlan:
        digest = self.rng.randbytes(32)
        return kinds.RunPlan(
            nonce=self.rng.randbytes(16),
            consortium=self.terms.consortium_id,
            charter_version=len(self.roots),
            charter_sha256=self.charter_sha256,
            name=f"run-{digest[:4].hex()}",
            app_sha256=digest,
            app_blob=f"{digest.hex()}:20480",
            app_name="digits",
            app_version="1.0.0",
            env_sha256=None,
            roster=roster,
            rounds=self.exchanges_per_run // 2 + 1,
            max_exchanges=self.exchanges_per_run,
            outer_step=kinds.OuterStep("nesterov", {"lr": "0.7", "momentum": "0.9"}),
            encoding="ring16",
            stream="aes-256-ctr",
            recheck="off",
            keep_uploads="none",
            base=None,
            w_max=self.terms.w_max,
            e_cap=6,
            colluders=self.colluders,
            u_min=u_min(len(roster), self.colluders),
            metrics={},
            per_node_config={},
            scalars_max=10_000,
            allow_unrecomputed_bases=False,
            settings={"lr": "0.05", "local-epochs": 1, "batch-size": 32},
            deadlines=kinds.Deadlines(),
        )

    def _exchange(self, run: bytes, plan: kinds.RunPlan, number: int, late: list[tuple[str, kinds.ExchangeAccept]]) -> Iterator[Envelope]:
        """One exchange. `late`: acceptances of the one before that come in the middle of this one."""
        roster, train = plan.roster, number % 2 == 1
        lost = self.rng.choice(roster) if len(roster) > plan.u_min and self.rng.random() < 0.02 else ""
        voided = self.rng.random() < 0.005
        sums: list[bytes] = []
        scales: kinds.ScalesReference | None = None
        purposes = (Purpose.SCALES, Purpose.UPDATE) if train else (Purpose.SCALARS,)
        for purpose in purposes:
            cohort = tuple(m for m in roster if m != lost or purpose is purposes[0])
            where = InstanceId(self.terms.consortium_id, run, number, purpose, epoch=1)
            opened = self._open(where, plan, cohort, scales)
            yield opened
            while late:
                name, word = late.pop()
                yield self.member(name).node.say(word, self.now)
            ctx, last = context(where, opened.payload_sha256), purpose is purposes[-1]
            there = tuple(m for m in cohort if m != lost)
            commits = {}
            for name in self.rng.sample(there, len(there)):
                usage = None
                if last:
                    if name not in self.environments:
                        self.environments[name] = self.member(name).node.say(environment(name), self.now)
                        yield self.environments[name]
                    usage = self._usage(run, number, name)
                    yield usage
                commit = self._commit(where, ctx, name, usage)
                commits[name] = commit.payload_sha256
                yield commit
            if voided:
                yield from self._voids(where, cohort, plan)
                return
            survivors = self._survivors(where, ctx, commits, len(cohort), plan)
            yield survivors
            self._published()  # before anything is revealed
            length = LENGTH[purpose]
            aggregate = self._aggregate(where, ctx, survivors, length)
            yield aggregate
            if self.evaluations and purpose is Purpose.SCALARS:
                yield self._eval(where, opened, aggregate, commits, plan)
            if lost in cohort:
                yield self.coordinator.say(kinds.InstanceDropout(where.tlv(), lost, "upload", "connection lost", False), self.now)
            sums.append(aggregate.payload_sha256)
            scales = kinds.ScalesReference(where.tlv(), survivors.payload_sha256, aggregate.payload_sha256, self.rng.randbytes(32))
        yield from self._accepts(run, number, [m for m in roster if m != lost], sums, train, late)

    def _open(self, where: InstanceId, plan: kinds.RunPlan, cohort: tuple[str, ...], scales: kinds.ScalesReference | None) -> Envelope:
        category = "evaluate" if where.purpose is Purpose.SCALARS else "train"
        fact = kinds.InstanceOpen(
            instance=where.tlv(),
            charter_version=plan.charter_version,
            charter_sha256=plan.charter_sha256,
            run=where.run,
            category=category,
            message_type=category,
            weights_id=self.rng.randbytes(32),
            base_id=self.rng.randbytes(32),
            content_id=self.rng.randbytes(32),
            layout_sha256=plan.app_sha256,
            elements=2_410,
            codec={"update": "ring16", "scales": "fp61", "scalars": "none"}[where.purpose],
            cohort=tuple(kinds.CohortMember(m, self.rng.randbytes(32), self.member(m).node.chain.seq) for m in cohort),
            metrics=METRICS,
            shares_sha256=self.rng.randbytes(32),
            scales=scales if where.purpose is Purpose.UPDATE else None,
            u_min=plan.u_min,
            threshold=share_threshold(len(cohort), plan.colluders),
            upload_deadline=self.now + 600,
        )
        return self.coordinator.say(self.told(fact), self.now)

    def told(self, fact: Any) -> Any:
        """An opening or an aggregate as it is signed; whoever makes up real sums fills them in here (made_runs.py)."""
        return fact

    def _usage(self, run: bytes, number: int, name: str) -> Envelope:
        numbers = [self.rng.randrange(10**6) for _ in range(5)]
        fact = kinds.Usage(run, number, name, *numbers, "cpu", environment_sha256=self.environments[name].sha256)
        return self.member(name).node.say(fact, self.now)

    def _commit(self, where: InstanceId, ctx: bytes, name: str, usage: Envelope | None) -> Envelope:
        trailer = tuple(self.rng.getrandbits(64) for _ in range(1 if where.purpose is Purpose.SCALES else 4))
        told = usage.sha256 if usage is not None else None
        tag = self.rng.getrandbits(60)
        fact = kinds.InstanceCommit(where.tlv(), ctx, name, self.rng.randbytes(32), LENGTH[where.purpose], trailer, tag, told)
        return self.member(name).node.say(fact, self.now)

    def _survivors(self, where: InstanceId, ctx: bytes, commits: dict[str, bytes], cohort: int, plan: kinds.RunPlan) -> Envelope:
        """Certified by as many as are needed: the coordinator does not wait for more."""
        payload = survivors_message(where, ctx, commits)
        who = sorted(self.rng.sample(sorted(commits), share_threshold(cohort, plan.colluders)))
        self.signatures += len(who)
        fact = kinds.InstanceSurvivors(
            where.tlv(),
            ctx,
            tuple(kinds.Survivor(m, commits[m]) for m in sorted(commits)),
            tuple(kinds.SurvivorSignature(m, self.member(m).node.key.sign(payload)) for m in who),
        )
        return self.coordinator.say(fact, self.now)

    def _aggregate(self, where: InstanceId, ctx: bytes, survivors: Envelope, length: int) -> Envelope:
        trailer = tuple(self.rng.getrandbits(64) for _ in range(1 if where.purpose is Purpose.SCALES else 4))
        if self.evaluations and where.purpose is Purpose.SCALARS:
            trailer = (5, *(self.news.randrange(1, 1 << 30) for _ in range(2 + len(METRICS))))  # which says something
        root, seeds, tag = self.rng.randbytes(32), self.rng.randbytes(32), self.rng.getrandbits(60)
        fact = kinds.InstanceAggregate(where.tlv(), ctx, survivors.payload_sha256, root, length, trailer, tag, seeds)
        return self.coordinator.say(self.told(fact), self.now)

    def _eval(self, where: InstanceId, opened: Envelope, aggregate: Envelope, commits: dict[str, bytes], plan: kinds.RunPlan) -> Envelope:
        """What the sum says in words."""
        fact = evaluation(
            run=where.run,
            exchange=where.exchange,
            weights_id=read_payload(opened.payload, kinds.InstanceOpen)[0].weights_id,
            aggregate_sha256=aggregate.payload_sha256,
            members=commits,
            names=METRICS,
            trailer=read_payload(aggregate.payload, kinds.InstanceAggregate)[0].trailer,
            w_max=plan.w_max,
            data=(),
        )
        return self.coordinator.say(fact, self.now)

    def _voids(self, where: InstanceId, cohort: tuple[str, ...], plan: kinds.RunPlan) -> Iterator[Envelope]:
        for name in cohort[: voids_needed(len(cohort), plan.colluders)]:
            fact = kinds.InstanceVoid(where.tlv(), name, "the survivor set was not certified in time")
            yield self.member(name).node.say(fact, self.now)

    def _accepts(
        self, run: bytes, number: int, names: list[str], sums: list[bytes], train: bool, late: list[tuple[str, kinds.ExchangeAccept]]
    ) -> Iterator[Envelope]:
        base = self.rng.randbytes(32) if train else None
        for name in self.rng.sample(names, len(names)):
            word = kinds.ExchangeAccept(run, number, name, tuple(sums), (), base)
            if number < self.exchanges_per_run and self.rng.random() < 0.01:
                late.append((name, word))
            else:
                yield self.member(name).node.say(word, self.now)

    # -- the bundle ------------------------------------------------------------------------------------------------------

    def write(self, folder: Path, entries: Iterable[bytes], *, witnesses: Iterable[str] | None = None, at: int | None = None) -> Path:
        """A bundle over these entries, its head signed by the log and cosigned by these members (default: all) at unix seconds `at`."""
        builder = TileBuilder()
        for entry in entries:
            _files(folder, builder.append(entry))
        _files(folder, builder.partial())
        for number, raw in enumerate(self.roots, 1):
            (folder / "trust").mkdir(parents=True, exist_ok=True)
            (folder / "trust" / f"{number}.root.json").write_bytes(raw)
        text = Checkpoint(origin_of(self.terms), builder.size, builder.frontier.root()).text()
        (folder / "log" / "checkpoint").write_bytes(self.head(text, witnesses, self.now if at is None else at))
        return folder

    def head(self, text: bytes, witnesses: Iterable[str] | None, at: int) -> bytes:
        """A signed and cosigned note."""
        who = [m for m in self.members if witnesses is None or m.name in set(witnesses)]
        lines = [sign(text, log_key(self.terms).name, self.log), *(cosign(text, witness_name(m.host), m.witness, at) for m in who)]
        return Note(text, tuple(lines)).to_bytes()


def environment(member: str) -> kinds.EnvCommitment:
    """What a member says it trains in."""
    devices = kinds.Accelerators("npu", "Rebellions ATOM-Max", 8, 64, "1.1.67")
    return kinds.EnvCommitment(member, "0.1.0", None, bytes(32), None, "cpython-311 linux-x86_64", (devices,))


METRICS = ("accuracy", "loss")
LENGTH = {Purpose.SCALES: 192, Purpose.UPDATE: 4_824, Purpose.SCALARS: 0}
"""Bytes of a masked vector of 2,410 parameters."""


def _files(folder: Path, tiles: Iterable[tuple[Any, bytes]]) -> None:
    for tile, data in tiles:
        path = folder / "log" / tile.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
