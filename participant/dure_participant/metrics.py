"""What `dure node run --metrics PORT` shows at a scrape: the node's store, as `dure node status` and `gave` read it. For this site only."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from datetime import UTC

from dure.identity import tls
from dure.identity.node import NodeIdentity
from dure.scrape import Sample
from dure_participant.exchange.state import NodeRunState
from dure_participant.store import NodeStore


def samples(identity: NodeIdentity, store: NodeStore) -> Iterator[Sample]:
    """Every number of one scrape."""
    connection = store.fact("connection") or {}
    connected = float(connection.get("state") == "connected")
    yield Sample("dure_node_connected", "1 while this node follows the coordinator.", connected)
    yield Sample("dure_node_connection_since_timestamp_seconds", "Unix time the connection came or went.", connection.get("since", 0.0))
    certificate = tls.load_certificate(identity.tls_certificate_pem, "tls.pem")
    expires = certificate.not_valid_after_utc.replace(tzinfo=UTC).timestamp()
    yield Sample("dure_node_certificate_expires_timestamp_seconds", "Unix time the TLS certificate runs out.", expires)
    yield Sample("dure_node_disk_free_bytes", "Free space where the node keeps its state.", shutil.disk_usage(identity.directory).free)
    undecided = sum(store.decision(run) is None for run in store.plans())
    yield Sample("dure_node_plans_waiting", "Plans offered that wait for the operator.", undecided)
    yield Sample("dure_node_scrape_timestamp_seconds", "Unix time of this scrape.", time.time())
    for raw in store.states().values():
        yield from _of_run(NodeRunState.from_bytes(raw))
    yield from _given(store)


def _of_run(state: NodeRunState) -> Iterator[Sample]:
    if state.finished:
        return
    run = {"run": state.run.hex()[:12]}
    number = state.exchange.number if state.exchange is not None else 0
    yield Sample("dure_node_exchange", "Number of the exchange this node is in or was in last.", number, run)
    yield Sample("dure_node_exchange_accepted", "Highest exchange this node verified and accepted.", state.last_accepted, run)
    yield Sample("dure_node_frozen", "1 if a sum did not verify and the node takes no further part.", float(bool(state.frozen)), run)
    sat_out = float(bool(state.exchange is not None and state.exchange.sat_out))
    yield Sample("dure_node_sits_out", "1 while the node sits the current exchange out.", sat_out, run)


def _given(store: NodeStore) -> Iterator[Sample]:
    totals: dict[tuple[str, str], int] = {}
    for run, _number, fact in store.given():
        for name, value in fact.items():
            if name.startswith("bytes_") and type(value) is int:
                key = (run.hex()[:12], name.removeprefix("bytes_"))
                totals[key] = totals.get(key, 0) + value
    for (short, purpose), total in totals.items():
        yield Sample(
            "dure_node_masked_bytes_total", "Masked bytes that left this site, by purpose.", total, {"run": short, "purpose": purpose}
        )
