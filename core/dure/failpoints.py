"""Places at which a crash would hurt most, by name: tests kill a real process exactly there.

`reach(point)` does nothing, unless `arm` was told of this point: then the process sends itself SIGKILL, as a power cut would end it, the
n-th time it comes by. Both daemons arm what the environment variable DURE_KILL_AT says, once, when they start:

    DURE_KILL_AT=coordinator.reveal.durable        the first time
    DURE_KILL_AT=node.upload.chunk_sent:2          the second time
"""

from __future__ import annotations

import os
import signal
from enum import StrEnum

from dure.errors import BadInput

VARIABLE = "DURE_KILL_AT"


class Point(StrEnum):
    """Every fail point; the name says what has happened, the comment what has not."""

    # -- coordinator -----------------------------------------------------------------------------------------------
    KEM_DURABLE = "coordinator.epoch.kem_durable"  # the epoch is half agreed; the node has no answer
    REQUEST_JOURNALED = "coordinator.request.journaled"  # the ServerApp's request is in its journal, not in the run's log
    REQUEST_DURABLE = "coordinator.request.durable"  # the exchange has begun; nobody has heard of it
    READY_DURABLE = "coordinator.ready.durable"  # the node has no answer
    CHUNKS_DURABLE = "coordinator.upload.chunks_durable"  # some chunks of an upload are, not all
    COMMIT_DURABLE = "coordinator.upload.commit_durable"  # the upload counts; the node has no answer
    REVEAL_DURABLE = "coordinator.reveal.durable"  # the node has no answer, others have not revealed
    SUM_WRITTEN = "coordinator.sum.written"  # the sum is a blob; its Done is not in the log
    AGGREGATE_SEALED = "coordinator.aggregate.sealed"  # the statement is signed; neither it nor its Done is durable
    STEP_STORED = "coordinator.step.stored"  # the next base is a blob; its Done is not in the log
    ACCEPT_DURABLE = "coordinator.accept.durable"  # the node has no answer
    ANSWER_JOURNALED = "coordinator.answer.journaled"  # the ServerApp has not heard it
    RESULT_KEPT = "coordinator.result.kept"  # the ServerApp's result is kept; the run does not know that it is over

    # -- node ------------------------------------------------------------------------------------------------------
    KEM_PERSISTED = "node.kem.persisted"  # nothing of it was sent; so with all that are persisted
    TRAINING_ENDED = "node.training.ended"  # the worker's answer is there; nothing of it is persisted
    SHARE_PERSISTED = "node.share.persisted"
    UPLOAD_PROMISED = "node.upload.promised"  # what will be uploaded is fixed; no byte of it was made
    CHUNK_SENT = "node.upload.chunk_sent"  # some chunks are under way, not all
    CHUNKS_SENT = "node.upload.chunks_sent"  # all chunks are under way, the signed commit is not
    SIGNATURE_PERSISTED = "node.signature.persisted"
    REVEAL_PERSISTED = "node.reveal.persisted"
    SUM_VERIFIED = "node.sum.verified"  # the agent knows that the sum holds; the exchange logic does not
    ACCEPT_PERSISTED = "node.accept.persisted"


_armed: Point | None = None
_left = 0


def arm(text: str) -> None:
    """Takes what DURE_KILL_AT says; "" disarms.

    Raises:
        BadInput: there is no such point, or the count is no number above 0.
    """
    global _armed, _left
    name, _, count = text.partition(":")
    if not text:
        _armed = None
        return
    if name not in set(Point):
        raise BadInput(f"{VARIABLE}={name}: no such point; points are {', '.join(Point)}")
    if not (count or "1").isdecimal() or int(count or "1") < 1:
        raise BadInput(f"{VARIABLE}={text}: after the colon comes a number of at least 1")
    _armed, _left = Point(name), int(count or "1")


def reach(point: Point) -> None:
    """The process has come to this point; safe from any thread."""
    global _left
    if point is not _armed:
        return
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()  # from another thread the signal may take a moment; nothing more must happen meanwhile
