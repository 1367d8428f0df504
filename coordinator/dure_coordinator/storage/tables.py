"""The coordinator's tables. Rows stop in this folder; what leaves it are frozen dataclasses and bytes.

Events are append-only and the only truth about a run: its state is their fold (engine.py). What else is here is what must
be found without folding (names, statements by party, blobs by run), written in the transaction of the event it belongs to.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, Index, Integer, LargeBinary, MetaData, String, Table, Text, false

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Counter = BigInteger().with_variant(Integer, "sqlite")

runs = Table(
    "runs",
    metadata,
    Column("run", LargeBinary(32), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("plan", LargeBinary, nullable=False),  # the run-plan envelope, verbatim
    Column("app_digest", LargeBinary(32), nullable=False),
    Column("label", String(16), nullable=False),  # open | finished | stopped | aborted
    Column("reason", Text, nullable=False, default=""),
    Column("created", Float, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("run", LargeBinary(32), ForeignKey("runs.run"), primary_key=True),
    Column("position", Counter, primary_key=True),  # 0, 1, 2 … without gaps
    Column("time", Float, nullable=False),  # the `now` it was applied with: a replay uses the same
    Column("body", LargeBinary, nullable=False),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("run", LargeBinary(32), ForeignKey("runs.run"), primary_key=True),
    Column("position", Counter, nullable=False),  # how many events it is the fold of
    Column("time", Float, nullable=False),  # of the last of them
    Column("shape", String(64), nullable=False),  # a snapshot of another shape is not read
    Column("head", LargeBinary, nullable=False),
)

past_exchanges = Table(
    "past_exchanges",
    metadata,
    Column("run", LargeBinary(32), ForeignKey("runs.run"), primary_key=True),
    Column("place", Counter, primary_key=True),  # 0, 1, 2 … in the order in which they ended
    Column("body", LargeBinary, nullable=False),
)

statements = Table(
    "statements",
    metadata,
    # Two envelopes of one party with one seq are both kept: that is the evidence of equivocation.
    Column("party", String(64), primary_key=True),  # key id of the signer
    Column("seq", Counter, primary_key=True),
    Column("digest", LargeBinary(32), primary_key=True),  # of the envelope's bytes
    Column("kind", String(64), nullable=False),
    Column("run", LargeBinary(32), nullable=True),
    Column("envelope", LargeBinary, nullable=False),
)
Index("ix_statements_run_kind", statements.c.run, statements.c.kind)
Index("ix_statements_digest", statements.c.digest)

log = Table(
    "log",
    metadata,
    Column("position", Counter, primary_key=True, autoincrement=False),  # the entry's index, 0, 1, 2 … without gaps
    Column("digest", LargeBinary(32), nullable=False),  # of the statement that is the entry
)
Index("ix_log_digest", log.c.digest, unique=True)

log_parties = Table(
    "log_parties",
    metadata,
    Column("party", String(64), primary_key=True),  # key id of a signer
    Column("next_seq", Counter, nullable=False),  # of its first statement that is no entry yet
)

log_head = Table(
    "log_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # 1: there is one row
    Column("size", Counter, nullable=False),
    Column("peaks", LargeBinary, nullable=False),  # 32 bytes each: complete subtrees, left to right
)

chain = Table(
    "chain",
    metadata,
    Column("party", String(64), primary_key=True),
    Column("seq", Counter, nullable=False),  # of the next statement
    Column("prev", LargeBinary(32), nullable=True),
)

blobs = Table(
    "blobs",
    metadata,
    Column("run", LargeBinary(32), ForeignKey("runs.run"), primary_key=True),
    Column("purpose", String(32), primary_key=True),
    Column("blob", String(96), primary_key=True),  # BlobId as text
    Column("exchange", Counter, nullable=False, default=0),
)
Index("ix_blobs_blob", blobs.c.blob)

uploads = Table(
    "uploads",
    metadata,
    Column("upload", LargeBinary(32), primary_key=True),  # also the spool's key
    Column("run", LargeBinary(32), ForeignKey("runs.run"), nullable=False),
    Column("instance", LargeBinary(512), nullable=False),
    Column("member", String(32), nullable=False),
    Column("length", Counter, nullable=False),
    Column("chunk_bytes", Integer, nullable=False),
    Column("commit", LargeBinary, nullable=True),  # the signed commit; NULL while chunks come
    Column("keep_until", Float, nullable=True),  # when its challenge window closes; NULL while its exchange goes on
    Column("pinned", Boolean, nullable=False, default=False, server_default=false()),  # kept past that: disputed, or the plan keeps all
    Column("removed", Boolean, nullable=False, default=False, server_default=false()),  # its bytes are gone, the row is the record
)
Index("ix_uploads_run_instance", uploads.c.run, uploads.c.instance)

journal = Table(
    "journal",
    metadata,
    Column("run", LargeBinary(32), ForeignKey("runs.run"), primary_key=True),
    Column("seq", Counter, primary_key=True),
    Column("nodes", Text, nullable=True),  # JSON list of node ids that `Nodes(seq)` was answered with
    Column("digest", LargeBinary(32), nullable=True),
    Column("category", String(16), nullable=True),
    Column("weights_id", LargeBinary(32), nullable=True),
    Column("reply", Text, nullable=True),  # JSON
    Column("summed", Boolean, nullable=False, default=False),
)

nodes = Table(
    "nodes",
    metadata,
    Column("member", String(32), primary_key=True),
    Column("node", String(64), nullable=False),
    Column("node_key", LargeBinary(32), nullable=False),
    Column("generation", Counter, nullable=False),  # highest seen; a lower one is refused
)
