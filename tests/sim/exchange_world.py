"""A world from a seed: one coordinator's half and every node's half, no threads, a simulated clock, sums in memory.

Messages wait in one bag and are delivered in any order, some twice. Nodes and coordinator crash before and after any write: nodes
go on from the bytes they persisted, the coordinator refolds its event log, and every connection is made anew.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sim.sim_log import SimLog
from support.opened_instance import Upload
from support.synthetic_log import environment

from dure.blobs import CHUNK_BYTES, BlobId, chunk_leaf
from dure.model.base import BaseRecord
from dure.model.content import ArrayItem, ConfigItem, Instruction
from dure.model.layout import BLOCK_ELEMENTS, CHUNK_ELEMENTS, Layout
from dure.model.outer import parse_step, step_model, steps_taken
from dure.model.weights import weights_id
from dure.recompute.evidence import Trust
from dure.recompute.sums import Finding, prepare, recompute
from dure.secagg import encode, scales, thresholds
from dure.secagg import field as fp
from dure.secagg.encode import decode_mean_chunk
from dure.secagg.masks import MaskSet
from dure.statements.dsse import Envelope, canonical_json
from dure.statements.kinds import Deadlines, Energy, NodeDelegation, OuterStep, RunPlan
from dure.statements.statement import Chain, seal
from dure.tlog.merkle import merkle_root
from dure.wire.messages import Directive, Report, ReportKind, ReportReply
from dure_coordinator.exchange import decide, snapshot, view
from dure_coordinator.exchange.duties import Answer, Cosign, Sign, Step, Sum, duties, next_deadline
from dure_coordinator.exchange.events import (
    Asked,
    Done,
    Event,
    Gone,
    Reported,
    Seen,
    Stop,
    TakenUp,
    Tick,
    Uploaded,
    decode_event,
    encode_event,
)
from dure_coordinator.exchange.facts import RunFacts
from dure_coordinator.exchange.state import RunPhase, RunState
from dure_participant.exchange import actions as act
from dure_participant.exchange import inputs as inp
from dure_participant.exchange.again import needs_consent
from dure_participant.exchange.site import History, Site
from dure_participant.exchange.state import NodeRunState
from dure_participant.exchange.step import begin, owed, step

LAYOUT = Layout.build([("w", "float32", (90, 100)), ("b", "float32", (1000,))])
CONSORTIUM = b"c" * 16


def blob_id(data: bytes, chunk_bytes: int = CHUNK_BYTES) -> BlobId:
    return BlobId(merkle_root(chunk_leaf(data[i : i + chunk_bytes]) for i in range(0, len(data), chunk_bytes)), len(data))


def make_plan(members: tuple[str, ...], c: int, step_name: str, **changes: Any) -> RunPlan:
    settings = {
        "average": {},
        "none": {},
        "nesterov": {"lr": "0.7", "momentum": "0.9"},
        "adam": {"lr": "0.01", "beta1": "0.9", "beta2": "0.99", "eps": "0.001"},
    }
    fields: dict[str, Any] = dict(
        nonce=b"n" * 16,
        consortium=CONSORTIUM,
        charter_version=1,
        charter_sha256=b"h" * 32,
        name="sim",
        app_sha256=b"a" * 32,
        app_blob=str(blob_id(b"app")),
        app_name="app",
        app_version="1",
        env_sha256=None,
        roster=tuple(sorted(members)),
        rounds=3,
        max_exchanges=40,
        outer_step=OuterStep(step_name, settings[step_name]),
        encoding="ring16",
        stream="aes-256-ctr",
        recheck="off",
        keep_uploads="none",
        base=None,
        w_max=65536,
        e_cap=6,
        colluders=c,
        u_min=thresholds.u_min(len(members), c),
        metrics={},
        per_node_config={},
        scalars_max=10,
        allow_unrecomputed_bases=step_name == "none",
        settings={},
        deadlines=Deadlines(),
    )
    return RunPlan(**{**fields, **changes})


TAKEN_UP = TakenUp(15_000, 30_000, 5_000)


class CoordinatorDied(Exception):
    """Its process ended here; whoever called it gets no answer."""


@dataclass
class SimNode:
    """One node: what it has persisted, and what lives in its process only."""

    site: Site
    state: bytes
    chain: Chain = field(default_factory=Chain)
    history: History = field(default_factory=History)
    alive: bool = True
    connected: bool = False
    local: dict[int, Any] = field(default_factory=dict)
    """exchange -> (local weights, weight, metrics), as on its disk."""
    replies: list[tuple[Report, ReportReply]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    approves: bool = True
    consents: bool = True
    """Its operator consents to whatever sums the plan lists."""
    data: tuple[bytes, ...] = ()
    """What its usage statements name."""
    deaf: bool = False
    """Gets no directives (a network that holds them back)."""


class World:
    """Everything. `run_until` drives it; `log`, `answers` and `sent` are what tests look at."""

    def __init__(self, n: int = 5, c: int = 1, *, seed: int = 0, step_name: str = "average", duplicate: float = 0.1, **plan: Any) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.np = np.random.default_rng(seed)
        self.members = tuple(f"m{i:02d}" for i in range(n))
        self.now = 1_000_000.0
        self.duplicate = duplicate
        self.coordinator_key = self._key()
        self.chain = Chain()
        self.signing = {m: self._key() for m in self.members}
        self.plan = make_plan(self.members, c, step_name, **plan)
        envelope, self.chain = seal(self.plan, self.coordinator_key, self.chain, self.now)
        self.run = envelope.payload_sha256
        public = {m: (k.public_key().public_bytes_raw(),) for m, k in self.signing.items()}
        self.facts = RunFacts(CONSORTIUM, self.run, self.plan, envelope.to_bytes(), 1, b"h" * 32, public)
        self.began = self.now
        self.state: RunState = decide.begin(self.facts, self.now)
        self.log: list[tuple[float, bytes]] = []
        self.sim_log = SimLog(self.members, thresholds.u_min(n, c), self._key)
        self.folded: tuple[RunState, int] = (self.state, 0)
        self.kept: tuple[int, bytes] | None = None
        self.kept_past: list[bytes] = []
        self.blobs: dict[str, bytes] = {}
        self.spools: dict[tuple[str, bytes], bytes] = {}
        self.plain: dict[tuple[str, bytes], Any] = {}
        """(member, instance) -> the unmasked ring elements it uploaded."""
        self.answers: dict[int, Any] = {}
        self.sent: list[tuple[str, Report]] = []
        """Every report a node let go of."""
        self.bag: list[tuple[Any, ...]] = []
        self.shown: dict[str, Directive] = {}
        self.crash_at: tuple[str, int, str] | None = None
        """("coordinator" | "node", number of the write, "before" | "after"): the one crash of a run."""
        self.away_s = 0.0
        """How long a coordinator that crashed stays away."""
        self.writes = {"coordinator": 0, "node": 0}
        """Writes so far: events logged, and steps persisted by whichever node."""
        self.envelopes: list[bytes] = []
        """Every statement that left its signer's process, or will."""
        self.reasons: list[str] = []
        self.check_refold = False
        self.tamper: Callable[[str, Directive], Directive] | None = None
        """Stands between coordinator and node: what a malicious coordinator shows a member instead."""
        self.nodes = {m: self._node(m) for m in self.members}

    # -- making ------------------------------------------------------------------------------------------------------

    def bytes(self, n: int) -> bytes:
        return self.rng.randbytes(n)

    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.rng.randbytes(32))

    def _node(self, member: str, generation: int = 1) -> SimNode:
        key = self._key()
        word = NodeDelegation(member, "n1", key.public_key().public_bytes_raw(), generation, 0, 2**40)
        delegation, _ = seal(word, self.signing[member], Chain(), self.now)
        site = Site(
            consortium=CONSORTIUM,
            member=member,
            node="n1",
            node_key=key,
            generation=generation,
            delegation=delegation.to_bytes(),
            charter_version=1,
            charter_sha256=b"h" * 32,
            colluders=self.plan.colluders,
            members={m: keys[-1] for m, keys in self.facts.member_signing_keys.items()},
            coordinator_keys=(self.coordinator_key.public_key().public_bytes_raw(),),
            allow_unrecomputed_bases=True,
            witnessing=(self.sim_log.witnessing,),
        )
        return SimNode(site, begin(self.run).to_bytes())

    def run_after(self, **plan: Any) -> World:
        """Another run of the same members and nodes: they remember what they sent in this one."""
        after = World(
            len(self.members), self.plan.colluders, seed=self.seed, step_name=self.plan.outer_step.name, **{"nonce": b"2" * 16, **plan}
        )
        assert after.run != self.run
        after.rng.seed(self.seed + len(self.log))
        after.now, after.blobs, after.chain = self.now, self.blobs, self.chain
        for member, node in after.nodes.items():
            node.history, node.chain = self.nodes[member].history, self.nodes[member].chain
        return after

    def put(self, data: bytes, chunk_bytes: int = CHUNK_BYTES) -> str:
        name = str(blob_id(data, chunk_bytes))
        self.blobs[name] = data
        return name

    # -- the coordinator ---------------------------------------------------------------------------------------------

    def _dies(self, who: str, when: str) -> bool:
        return self.crash_at == (who, self.writes[who], when)

    def apply(self, event: Event, also: Callable[[], None] = lambda: None) -> ReportReply:
        """Decides one event; `also` is what is committed in its transaction."""
        decision = decide.apply(self.state, event, self.now)
        if decision.changed:
            if self._dies("coordinator", "before"):
                raise CoordinatorDied
            self.log.append((self.now, encode_event(event)))
            also()
            if self._dies("coordinator", "after"):
                raise CoordinatorDied
            self.writes["coordinator"] += 1
            if decision.reason:
                self.reasons.append(decision.reason)
        self.state = decision.state
        if decision.changed:
            self._keep()
        if self.check_refold and decision.changed:
            self._fold_on()
        self._push()
        return decision.reply

    def refold(self) -> None:
        """The coordinator crashed: only its log and its last snapshot are left, which say the same."""
        state = decide.begin(self.facts, self.began)
        for at, data in self.log:
            state = decide.apply(state, decode_event(data), at).state
        if self.kept is not None:
            position, head = self.kept
            sooner = snapshot.thaw(self.facts, head, self.kept_past)
            for at, data in self.log[position:]:
                sooner = decide.apply(sooner, decode_event(data), at).state
            assert sooner == state, "a load from a snapshot must give the same state as one from the first event"
        self.state = state

    def _keep(self) -> None:
        """A snapshot whenever one may be taken; the coordinator itself takes them far less often."""
        if snapshot.settled(self.state):
            frozen = snapshot.freeze(self.state, len(self.kept_past))
            self.kept = (len(self.log), frozen.head)
            self.kept_past += frozen.past

    def crash_coordinator(self) -> None:
        """Only the log is left, and nobody is connected. What nodes have persisted stays; what was under way is lost."""
        self.crash_at = None
        self.refold()
        self.now += self.away_s
        lost = [m for m in self.members if self.nodes[m].connected]
        coming = {b[1] for b in self.bag if b[0] == "connect"}
        self.bag = [b for b in self.bag if b[0] == "action"]
        self.shown.clear()
        for member in self.members:
            self.nodes[member].connected = False
        self.apply(TAKEN_UP)
        self.bag += [("connect", m) for m in self.members if m in coming or (m in lost and self.nodes[m].alive)]

    def _fold_on(self) -> None:
        """The log, folded as far as it goes, gives the state: checked event by event, each folded once."""
        state, upto = self.folded
        for at, data in self.log[upto:]:
            state = decide.apply(state, decode_event(data), at).state
        assert state == self.state, "a refolded log must give the same state"
        self.folded = (state, len(self.log))

    def _push(self) -> None:
        for member, node in self.nodes.items():
            if node.connected:
                shown = view.directive(self.state, member)
                if self.shown.get(member) != shown:
                    self.shown[member] = shown
                    self.envelopes += [e for name in ("plan", "open", "survivors", "aggregate") if (e := shown.documents.get(name))]
                    self.bag.append(("directive", member, shown))
        known = {b[1].id for b in self.bag if b[0] == "duty"}
        for duty in duties(self.state):
            if duty.id not in known:
                self.bag.append(("duty", duty))

    def hear_again(self, member: str) -> None:
        """What the network held back arrives."""
        self.nodes[member].deaf = False
        self.bag.append(("directive", member, self.shown[member]))

    def connect(self, member: str) -> None:
        node = self.nodes[member]
        node.connected = node.alive = True
        self.shown.pop(member, None)
        key = node.site.node_key.public_key().public_bytes_raw()
        reply = self.apply(Seen(member, key, node.site.generation, node.site.delegation))
        assert reply.accepted, reply
        self._push()
        self._perform(member, owed(node.site, self.state_of(member)))

    def disconnect(self, member: str) -> None:
        self.nodes[member].connected = False
        self.apply(Gone(member))

    def kill(self, member: str) -> None:
        """The node's process is gone; what it persisted stays."""
        node = self.nodes[member]
        node.alive = False
        self.bag = [b for b in self.bag if b[1] != member]
        self.disconnect(member)

    def state_of(self, member: str) -> NodeRunState:
        return NodeRunState.from_bytes(self.nodes[member].state)

    def _duty(self, duty: Any) -> None:
        if duty.id not in {d.id for d in duties(self.state)}:
            return
        if isinstance(duty, Sign):
            envelope, after = seal(duty.statement, self.coordinator_key, self.chain, self.now)
            self.apply(Done(duty.id, {"envelope": envelope.to_bytes()}), lambda: setattr(self, "chain", after))
        elif isinstance(duty, Cosign):
            proof = self.sim_log.covering(duty.envelope, [m for m, node in self.nodes.items() if node.connected], self.now)
            if proof is None:  # too few witnesses are there: owed until they come or the deadline passes
                return
            self.apply(Done(duty.id, {"proof": proof}))
        elif isinstance(duty, Sum):
            self.apply(Done(duty.id, self.sum(duty)))
        elif isinstance(duty, Step):
            self.apply(Done(duty.id, self.step(duty)))
        elif isinstance(duty, Answer):
            self.apply(Done(duty.id, {}), lambda: self.answers.update({duty.seq: duty.reply}))
        assert duty.id not in {d.id for d in duties(self.state)}, f"{duty.id} is owed still"

    def sum(self, duty: Sum) -> dict[str, bytes]:
        kept = {"seeds": self.put(duty.seeds).encode(), "evidence": self.put(duty.evidence).encode()}
        if duty.purpose == "scalars":
            return {"root": merkle_root([]), "sum": b"", **kept}
        spools = [self.spools[m, duty.instance] for m in duty.survivors]
        for m, spool in zip(duty.survivors, spools, strict=True):
            assert blob_id(spool, duty.chunk_bytes).root == duty.roots[m]
        data = self.total(duty.purpose, spools, duty.chunk_bytes, duty.recovered.unmask)
        name = self.put(data, duty.chunk_bytes)
        result = {"root": BlobId.parse(name).root, "sum": name.encode(), **kept}
        if duty.purpose == "scales":
            e_b = self.exponents(data, duty.base_e_b, duty.e_cap)
            result |= {"e_b": self.put(e_b).encode(), "e_b_sha256": hashlib.sha256(e_b).digest()}
        return result

    @staticmethod
    def total(purpose: str, spools: list[bytes], chunk_bytes: int, unmask: MaskSet | None) -> bytes:
        out = []
        for k, at in enumerate(range(0, len(spools[0]), chunk_bytes)):
            if purpose == "update":
                part = np.zeros(len(spools[0][at : at + chunk_bytes]) // 2, np.uint16)
                for spool in spools:
                    part += np.frombuffer(spool[at : at + chunk_bytes], "<u2")
                if unmask:
                    unmask.ring_chunk(k, part)
            else:
                part = np.zeros(len(spools[0][at : at + chunk_bytes]) // 8, np.uint64)
                for spool in spools:
                    fp.add_into(part, np.frombuffer(spool[at : at + chunk_bytes], "<u8"))
                if unmask:
                    unmask.field_chunk(k, part)
            out.append(part.tobytes())
        return b"".join(out)

    def exponents(self, data: bytes, base_e_b: str, e_cap: int) -> bytes:
        base = np.frombuffer(self.blobs[base_e_b], np.int8) if base_e_b else None
        return scales.combine(scales.summed_exponents(np.frombuffer(data, "<u8")), base, e_cap).e_b.tobytes()

    def mean(self, data: bytes, e_b: str, bump: int, cohort: int, weight_sum: int) -> np.ndarray[Any, Any]:
        exponents = np.frombuffer(self.blobs[e_b], np.int8)
        exponents = scales.raised(exponents) if bump else exponents
        q = np.frombuffer(data, "<u2")
        step_blocks = CHUNK_ELEMENTS // BLOCK_ELEMENTS
        chunks = range(-(-q.size // CHUNK_ELEMENTS))
        parts = [
            decode_mean_chunk(
                q[k * CHUNK_ELEMENTS : (k + 1) * CHUNK_ELEMENTS], exponents[k * step_blocks : (k + 1) * step_blocks], cohort, weight_sum
            )
            for k in chunks
        ]
        return np.concatenate(parts)

    def next_base(self, record: bytes, layout: Layout, mean: Any, e_b: str, exchange: int, config: Any) -> tuple[bytes, bytes, str]:
        """(base record, weights id, weights blob): what coordinator and node compute, each for itself."""
        base = BaseRecord.from_json(record)
        rule, taken = parse_step(config), steps_taken(base.step)
        weights, state = bytearray(), bytearray()
        step_model(
            rule,
            taken=taken,
            base_D=np.frombuffer(self.blobs[str(base.weights)], "<f4"),
            state=np.frombuffer(self.blobs[str(base.outer_state)], "<f4") if base.outer_state else None,
            mean_chunks=[mean[i : i + CHUNK_ELEMENTS] for i in range(0, mean.size, CHUNK_ELEMENTS)],
            weights_out=lambda b: weights.extend(b),
            state_out=(lambda b: state.extend(b)) if rule.vectors else None,
        )
        blob = self.put(bytes(weights))
        outer = BlobId.parse(self.put(bytes(state))) if rule.vectors else None
        after = BaseRecord(BlobId.parse(blob), outer, {**base.step, "t": str(taken + 1)}, BlobId.parse(e_b), exchange)
        return after.to_json(), weights_id(np.frombuffer(bytes(weights), "<f4"), layout), blob

    def step(self, duty: Step) -> dict[str, bytes]:
        layout = Layout.from_json(duty.layout)
        mean = self.mean(self.blobs[duty.sum], duty.e_b, duty.e_bump, duty.cohort_size, duty.weight_sum)
        if not duty.outer_step:
            return {"reply": self.put(mean.tobytes()).encode()}
        record, wid, blob = self.next_base(duty.base_record, layout, mean, duty.e_b, duty.exchange, duty.outer_step)
        return {"reply": blob.encode(), "base_record": record, "weights_id": wid}

    # -- the nodes ---------------------------------------------------------------------------------------------------

    def give(self, member: str, given: inp.Input, *, crash_before: bool = False, crash_after: bool = False) -> None:
        node = self.nodes[member]
        if not node.alive:
            return
        state = NodeRunState.from_bytes(node.state)
        done = step(node.site, node.history, node.chain, state, given, self.now, self.bytes)
        writes = done.state != state or bool(done.records)
        if crash_before or (writes and self._dies("node", "before")):
            self._restart(member)
            return
        node.state, node.chain = done.state.to_bytes(), done.chain
        assert NodeRunState.from_bytes(node.state) == done.state
        node.history = node.history.with_records(done.records).with_committed(done.committed)
        self.envelopes += done.statements
        if crash_after or (writes and self._dies("node", "after")):
            self._restart(member)
            return
        self.writes["node"] += writes
        self._perform(member, done.actions)

    def _restart(self, member: str) -> None:
        self.crash_at = None
        coming = self.nodes[member].connected or ("connect", member) in self.bag
        self.bag = [b for b in self.bag if b[1] != member]
        if self.nodes[member].connected:
            self.disconnect(member)
        if coming:
            self.bag.append(("connect", member))

    def _perform(self, member: str, actions: tuple[act.Action, ...]) -> None:
        for action in actions:
            if isinstance(action, act.Note):
                self.nodes[member].notes.append(action.text)
            else:
                self.bag.append(("action", member, action))

    def _action(self, member: str, action: Any) -> None:
        node = self.nodes[member]
        match action:
            case act.Send():
                self.sent.append((member, action.report))
                if node.connected:
                    reply = self.apply(Reported(member, action.report))
                    node.replies.append((action.report, reply))
                    if not reply.accepted:
                        node.notes.append(f"{action.report.kind}: {reply.field}: {reply.reason}")
            case act.AskOperator():
                shown = tuple(sorted(needs_consent(self.plan))) if node.consents else ()
                self.give(member, inp.Allowed(action.run, node.approves, "no", shown))
            case act.Train():
                self.give(member, inp.Trained(action.exchange, self.train(member, action)))
            case act.Upload():
                self.give(member, self.upload(member, action))
            case act.Commit():
                if node.connected:
                    reply = self.apply(Uploaded(member, action.upload.instance, action.envelope))
                    if not reply.accepted:
                        node.notes.append(f"commit: {reply.field}: {reply.reason}")
            case act.Verify():
                self.give(member, inp.Verified(action.instance, self.verify(action)))
            case act.Recompute():
                self.give(member, inp.Recomputed(action.instance, action.aggregate_sha256, self.recompute(member, action), action.dispute))

    def train(self, member: str, action: act.Train) -> inp.TrainResult:
        node = self.nodes[member]
        base = np.frombuffer(self.blobs[action.weights], "<f4") if action.weights else None
        if action.exchange not in node.local:
            arrays = action.instruction.arrays is not None and action.instruction.category == "train"
            delta = (self.np.standard_normal(LAYOUT.elements) * 0.01).astype(np.float32) if arrays else None
            if delta is not None:
                for first, last in LAYOUT.gaps():
                    delta[first:last] = 0
            node.local[action.exchange] = (delta, float(self.rng.randint(1, 1000)), {"loss": self.rng.random(), "acc": self.rng.random()})
        delta, weight, metrics = node.local[action.exchange]
        wid = weights_id(base, LAYOUT) if base is not None else bytes(32)
        digest = hashlib.sha256(delta.tobytes() if delta is not None else b"").digest()
        spent = {"environment": environment(member), "hardware_flop": 5 * 10**9, "energy": Energy(500, "declared")}
        return inp.TrainResult(wid, delta is not None, digest, weight, metrics, 10, 1, 5, "cpu", **spent)

    def upload(self, member: str, action: act.Upload) -> inp.UploadReady:
        delta = self.nodes[member].local[action.exchange][0]
        e_b = np.frombuffer(self.blobs[action.e_b], np.int8) if action.e_b else None
        encoder = action.encoder(e_b)
        data = b"".join(bytes(encoder.chunk(k, delta[encoder.elements_of(k)])[0]) for k in range(encoder.chunks))
        key = (member, action.instance)
        assert self.spools.setdefault(key, data) == data, "rule 1: a repeated upload is of the identical bytes"
        if action.purpose == "update":
            exponents = scales.raised(e_b) if action.e_bump else e_b
            self.plain[key] = np.concatenate(
                [
                    encode.encode_update_chunk(
                        delta[encoder.elements_of(k)],
                        encode.Weight(action.weight_int).w_hat,
                        exponents,
                        len(action.cohort),
                        encode.rounding_streams(action.rounding_key),
                        k,
                    )[0]
                    for k in range(encoder.chunks)
                ]
            )
        trailer, tag = encoder.finish()
        root = blob_id(data, action.chunk_bytes).root if data else merkle_root([])
        return inp.UploadReady(action.instance, root, len(data), trailer, tag, data=self.nodes[member].data)

    def recompute(self, member: str, action: act.Recompute) -> Finding:
        """As the agent does it: everything from what the coordinator shows this member, nothing on trust."""
        site = self.nodes[member].site
        trust = Trust(CONSORTIUM, self.run, site.coordinator_keys, self.facts.member_signing_keys, site.colluders, self.plan.u_min)
        for said in view.opened_sums(self.state, member, action.exchange):
            if Envelope.from_bytes(said.aggregate).payload_sha256 == action.aggregate_sha256:
                break
        else:
            return Finding("gone", why="it is of no sum this node accepted")
        ready = prepare(said.aggregate, self.blobs[said.evidence], self.blobs[said.seeds], trust)
        if isinstance(ready, Finding):
            return ready
        opened, recovered = ready
        cut = opened.chunk_bytes
        uploads = {m: Upload.of(self.spools.get((m, action.instance), b""), cut) for m in opened.survivors}
        name = str(BlobId(opened.aggregate.root, opened.length))
        total = Upload.of(self.blobs[name] if opened.length else b"", cut).manifest
        return recompute(opened, recovered, uploads, total, chunks=action.chunks)

    def verify(self, action: act.Verify) -> inp.VerifyFacts:
        if action.purpose == "scalars":
            return inp.VerifyFacts(merkle_root([]), 0, 0)
        data, key = self.blobs[action.sum], action.tag_key()
        dtype, part = ("<u8", key.field_chunk) if action.purpose == "scales" else ("<u2", key.ring_chunk)
        pieces = [data[i : i + action.chunk_bytes] for i in range(0, len(data), action.chunk_bytes)]
        tag = sum(part(k, np.frombuffer(p, dtype)) for k, p in enumerate(pieces)) % fp.P  # type: ignore[operator]
        root = blob_id(data, action.chunk_bytes).root
        if action.purpose == "scales":
            base = BaseRecord.from_json(action.base_record)
            e_b = self.exponents(data, str(base.e_b) if base.e_b else "", action.e_cap)
            return inp.VerifyFacts(root, len(data), tag, self.put(e_b), hashlib.sha256(e_b).digest())
        if not action.outer_step:
            return inp.VerifyFacts(root, len(data), tag)
        mean = self.mean(data, action.e_b, action.e_bump, len(action.cohort), action.weight_sum)
        record, wid, _ = self.next_base(
            action.base_record, Layout.from_json(action.layout), mean, action.e_b, action.exchange, action.outer_step
        )
        return inp.VerifyFacts(root, len(data), tag, next_base=record, next_weights_id=wid)

    # -- driving -----------------------------------------------------------------------------------------------------

    def deliver(self, *, crash: float = 0.0) -> bool:
        """One random waiting thing happens; False when nothing waits."""
        if not self.bag:
            return False
        try:
            self._deliver(crash)
        except CoordinatorDied:
            self.crash_coordinator()
        return True

    def _deliver(self, crash: float) -> None:
        i = self.rng.randrange(len(self.bag))
        again = self.rng.random() < self.duplicate
        what = self.bag[i] if again else self.bag.pop(i)
        if what[0] == "directive":
            node = self.nodes[what[1]]
            if node.deaf or not node.alive:
                return
            shown = self.tamper(what[1], what[2]) if self.tamper else what[2]
            if what[2] != self.shown.get(what[1]) and node.connected:  # a stale one, replayed: the newest comes after it
                self.bag.append(("directive", what[1], self.shown[what[1]]))
            before, after = self.rng.random() < crash, self.rng.random() < crash
            self.give(what[1], inp.Directed(shown), crash_before=before, crash_after=after and not before)
        elif what[0] == "duty":
            if not again:
                self._duty(what[1])
        elif what[0] == "action":
            if self.nodes[what[1]].alive:
                if self.rng.random() < crash:
                    self._restart(what[1])
                else:
                    self._action(what[1], what[2])
        elif what[0] == "connect" and not again:
            self.connect(what[1])

    def run_until(
        self, done: Callable[[World], bool], *, steps: int = 20_000, crash: float = 0.0, hook: Callable[[World], None] | None = None
    ) -> None:
        for _ in range(steps):
            if done(self):
                return
            if hook is not None:
                hook(self)
            if not self.deliver(crash=crash):
                at = next_deadline(self.state)
                if (at is None and not self.bag) or self.state.phase in (RunPhase.FINISHED, RunPhase.ABORTED):
                    return
                assert at is not None and at > self.now - 1, f"woken for {at}, which is past: {view.summary(self.state)}"
                self.now = max(self.now, at) + 0.01
                self._event(Tick())
        raise AssertionError(f"not done after {steps} steps: {view.summary(self.state)}")

    def _event(self, event: Event) -> None:
        """From outside the bag: asked again by whoever it came from, if the coordinator dies under it."""
        try:
            self.apply(event)
        except CoordinatorDied:
            self.crash_coordinator()
            self.apply(event)

    def start(self) -> None:
        self._event(TAKEN_UP)
        self.bag += [("connect", m) for m in self.members if self.nodes[m].alive]

    def idle(self, world: World | None = None) -> bool:
        return self.state.phase is RunPhase.IDLE and self.state.epoch is not None and not self.bag

    # -- asking ------------------------------------------------------------------------------------------------------

    def ask(self, seq: int, message_type: str, weights: str = "", *, config: float = 0.1, members: tuple[str, ...] = ()) -> Asked:
        records: list[Any] = []
        if weights:
            flat = np.frombuffer(self.blobs[weights], "<f4")
            records.append(ArrayItem("arrays", LAYOUT, weights_id(flat, LAYOUT)))
        records.append(ConfigItem("config", {"lr": config}))
        instruction = Instruction(message_type, "1", 3600.0, tuple(records))
        body = canonical_json(instruction.to_json())
        asked = Asked(seq, hashlib.sha256(body + weights.encode()).digest(), body, weights, members)
        self._event(asked)
        return asked

    def exchange(self, seq: int, message_type: str, weights: str = "", **how: Any) -> Any:
        """Asks, runs until answered (or the run is over), gives the reply."""
        config = how.pop("config", 0.1)
        self.ask(seq, message_type, weights, config=config, members=how.pop("members", ()))
        over = (RunPhase.ABORTED, RunPhase.FINISHED)
        self.run_until(lambda w: seq in w.answers or (w.state.phase in over and not duties(w.state)), **how)
        return self.answers.get(seq)

    def first_weights(self) -> str:
        flat = self.np.standard_normal(LAYOUT.elements).astype("<f4")
        for first, last in LAYOUT.gaps():
            flat[first:last] = 0
        return self.put(flat.tobytes())

    def stop(self) -> None:
        self._event(Stop("done"))

    # -- what must hold ----------------------------------------------------------------------------------------------

    def check_mean(self, reply: Any, exchange: int, base: str) -> None:
        """The integer sum exactly, and the mean within the quantisation bound of the plain weighted mean."""
        state = next(e for e in (*self.state.closed, self.state.exchange) if e and e.number == exchange)
        instance = state.instance
        assert instance is not None and instance.purpose == "update" and state.scales is not None
        total = sum((self.plain[m, instance.instance].astype(np.uint32) for m in instance.survivors), np.zeros(LAYOUT.elements, np.uint32))
        assert (total.astype(np.uint16) == np.frombuffer(self.blobs[instance.sum], "<u2")).all()
        local = {m: self.nodes[m].local[exchange] for m in instance.survivors}
        weights = {m: encode.weight_of(w, self.plan.w_max).w_int * 2.0**-40 for m, (_, w, _) in local.items()}
        mean = sum(weights[m] * local[m][0].astype(np.float64) for m in local) / sum(weights.values())
        got = np.frombuffer(self.blobs[reply.blob], "<f4").astype(np.float64)
        if reply.arrays == "weights" and self.plan.outer_step.name == "average":
            got = got - np.frombuffer(self.blobs[base], "<f4").astype(np.float64)
        elif reply.arrays == "weights":
            return
        e_b = np.frombuffer(self.blobs[state.scales.e_b], np.int8)
        e_b = scales.raised(e_b) if state.scales_exchange != exchange else e_b
        s_b = np.repeat(np.ldexp(1.0, encode.scale_exponents(e_b, len(instance.cohort))), BLOCK_ELEMENTS)[: LAYOUT.elements]
        bound = s_b * len(local) / sum(weights.values()) + 1e-6
        assert (np.abs(got - mean) <= bound).all()
        loss = sum(weights[m] * local[m][2]["loss"] for m in local) / sum(weights.values())
        assert abs(reply.metrics["loss"] - loss) < 1e-6

    def check_secrets(self) -> None:
        """Of no member both kinds of share were ever given, and nothing was revealed in a voided instance."""
        from dure.secagg import recover
        from dure.secagg.ids import InstanceId

        opened: dict[tuple[bytes, str], set[str]] = {}
        voided = {(r.instance, m) for m, r in self.sent if r.kind is ReportKind.VOID}
        for member, report in self.sent:
            if report.kind is not ReportKind.REVEAL:
                continue
            assert (report.instance, member) not in voided
            found = self._instance(report.instance)
            if found is None:
                continue
            said = recover.check_reveal(
                report.body,
                instance=InstanceId.decode(report.instance),
                ctx=found.ctx,
                cohort=found.cohort,
                survivors=found.survivors,
                member=member,
                node_keys=None,
            )
            for m in [*said.self_shares, *([member] if said.own else [])]:
                opened.setdefault((report.instance, m), set()).add("b")
            for m in [*said.bundle_shares, *said.pair_secrets]:
                opened.setdefault((report.instance, m), set()).add("R")
        assert all(len(kinds) == 1 for kinds in opened.values())

    def check_statements(self) -> None:
        """Of no signing key did two statements with one number ever leave."""
        said: dict[tuple[str, int], bytes] = {}
        for raw in self.envelopes:
            envelope = Envelope.from_bytes(raw)
            seq = json.loads(envelope.payload)["predicate"]["seq"]
            assert said.setdefault((envelope.signatures[0][0], seq), envelope.payload_sha256) == envelope.payload_sha256

    def _instance(self, instance: bytes) -> Any:
        exchanges = [*self.state.closed, *([self.state.exchange] if self.state.exchange else [])]
        return next((i for e in exchanges for i in e.instances if i.instance == instance), None)


__all__ = ["LAYOUT", "World", "blob_id", "make_plan", "replace"]
