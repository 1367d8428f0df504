"""A run's seed that nobody could choose: it falls out of one secure sum whose self seeds everybody may know afterwards.

Each member of the cohort deals Shamir shares of a fresh 32-byte self seed and commits to it (share); a survivor set is certified, logged
and cosigned; then the seeds of exactly that set are revealed, or put together from shares where one is withheld (reveal). Nobody knows an
honest member's seed before the set is fixed, and nobody can take one back after: commit, reveal, recover. What is summed is nothing.

    seed = SHA-256(TLV("SA1", "joint seed", instance id, ctx, (survivor, self seed)…))

The message is the same in every run, and one message is summed once in a run (rule 2 of secure-aggregation.md): a seed that somebody
dislikes is not drawn again. Source: ledger.md, section 5. Format: docs/spec/formats.md, "First weights".
"""

from __future__ import annotations

from dure.errors import Refused
from dure.model.content import Instruction, content_id
from dure.recompute.evidence import Evidence, Trust
from dure.recompute.sums import Finding, prepare
from dure.secagg.kdf import digest
from dure.secagg.recover import Recovered
from dure.statements.kinds import InstanceOpen
from dure.statements.statement import open_statement

MESSAGE_TYPE = "query.dure_seed"
INSTRUCTION = Instruction(MESSAGE_TYPE, "", 86_400.0, ())
CONTENT_ID = content_id(INSTRUCTION)


def drawn(recovered: Recovered) -> bytes:
    """The seed these opened values are."""
    seeds = tuple((member, recovered.self_seeds[member]) for member in recovered.survivors)
    return digest("joint seed", recovered.instance.parts(), recovered.ctx, seeds)


def is_draw(opened: InstanceOpen) -> bool:
    return opened.content_id == CONTENT_ID and opened.message_type == MESSAGE_TYPE


def judged_draw(aggregate: bytes, evidence: bytes, seeds: bytes, trust: Trust) -> bytes | None:
    """The run's seed out of a sum's aggregate, evidence and seeds; None where the sum was about something else.

    Raises:
        Refused, SecaggError: what does not hold, by name.
    """
    opened = open_statement(Evidence.from_bytes(evidence).open, InstanceOpen, trust.coordinator_keys).fact
    if not is_draw(opened):
        return None
    found = prepare(aggregate, evidence, seeds, trust)
    if isinstance(found, Finding):
        raise Refused(f"joint seed: {found.kind}", found.why or "does not follow from what was committed")
    return drawn(found[1])
