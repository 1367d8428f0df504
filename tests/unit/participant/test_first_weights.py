"""First weights of a joint draw, at a node: made from what was opened, whatever the coordinator shows; words for all that is wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from support.opened_instance import Instance, open_instance

from dure.blobs import BlobId, BlobStore
from dure.errors import Unavailable
from dure.model.initial import initialise
from dure.model.layout import Layout
from dure.model.rules import Rule
from dure.recompute import joint_seed
from dure.secagg.ids import Purpose
from dure.statements.kinds import InitialRule, JointInitial
from dure.wire.messages import SumEvidence
from dure_participant import first
from dure_participant.bulk import BulkRefused

LAYOUT = Layout.build([("w", "float32", (300,)), ("bias", "float32", (3,))])
RULES = (InitialRule("bias", "constant", "0"), InitialRule("*", "normal", "0.02"))
PLAN = SimpleNamespace(initial=JointInitial("dure-initial-1", LAYOUT.tensors_sha256, LAYOUT.parameters, RULES))
DRAW = (joint_seed.MESSAGE_TYPE, joint_seed.CONTENT_ID)


@dataclass
class Shown:
    """A coordinator's answers: the evidence of one instance in exchange 1, nothing in others."""

    said: Instance
    parts: dict[str, bytes]
    refuses: str = ""
    away: bool = False
    channel: object = None

    async def evidence(self, query):
        if self.away:
            raise Unavailable("the coordinator is being restarted")
        one = SumEvidence(self.said.aggregate, *(f"{name:0>64}:1" for name in ("e1", "5eed")))
        return (one,) if query.exchange == 1 else ()


@pytest.fixture(scope="module")
def opened():
    return open_instance(purpose=Purpose.SCALARS, elements=0, lost=("m3",), message=DRAW)


@pytest.fixture
def shown(opened, monkeypatch):
    made = Shown(opened, {"e1": opened.evidence.to_bytes(), "5eed": opened.seeds})

    async def pull(_channel, blob: BlobId, limit: int) -> bytes:
        name = blob.root.hex().lstrip("0")
        if name == made.refuses:
            raise BulkRefused("blob", "is not here")
        return made.parts[name]

    monkeypatch.setattr(first, "pull_bytes", pull)
    return made


async def made_first(shown, blobs, offered, *, layout=LAYOUT, now=2):
    return await first.make_first(lambda: shown, blobs, shown.said.trust, PLAN, layout, offered, now)


def right(opened, blobs) -> BlobId:
    with blobs.writer() as out:
        initialise(joint_seed.drawn(opened.recovered), LAYOUT, [Rule("bias", "constant", "0"), Rule("*", "normal", "0.02")], out.append)
        return out.commit().id


async def test_the_opened_seeds_make_the_weights_and_others_are_refused(shown, opened, tmp_path):
    wanted = right(opened, BlobStore(tmp_path / "a"))
    blobs = BlobStore(tmp_path / "b")
    assert await made_first(shown, blobs, wanted) == "" and blobs.has(wanted)
    assert "not those of the seed" in await made_first(shown, blobs, replace(wanted, root=bytes(32)))


@pytest.mark.parametrize("part", ["e1", "5eed"])
async def test_what_does_not_hold_or_is_not_served_is_said_and_never_raised(shown, opened, tmp_path, part):
    blobs, wanted = BlobStore(tmp_path / "b"), right(opened, BlobStore(tmp_path / "a"))
    whole = shown.parts[part]
    for damaged in (whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:], whole[: len(whole) // 2], b""):
        shown.parts[part] = damaged
        assert await made_first(shown, blobs, wanted) != ""
    shown.refuses = part
    assert "is not here" in await made_first(shown, blobs, wanted)
    assert not blobs.has(wanted)


async def test_a_run_that_drew_nothing_has_no_first_weights(shown, opened, tmp_path):
    blobs, wanted = BlobStore(tmp_path / "b"), right(opened, BlobStore(tmp_path / "a"))
    assert "no exchange of this run drew one" in await made_first(shown, blobs, wanted, now=1)
    other = open_instance(purpose=Purpose.SCALARS, elements=0, message=("query.other", bytes(32)))
    shown.said, shown.parts = other, {"e1": other.evidence.to_bytes(), "5eed": other.seeds}
    assert "no exchange of this run drew one" in await made_first(shown, blobs, wanted)
    assert "other tensors" in await made_first(shown, blobs, wanted, layout=Layout.build([("w", "float32", (301,))]))


async def test_a_coordinator_that_is_away_is_waited_for(shown, opened, tmp_path):
    shown.away = True
    with pytest.raises(Unavailable):
        await made_first(shown, BlobStore(tmp_path / "b"), right(opened, BlobStore(tmp_path / "a")))
