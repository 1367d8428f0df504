"""What members say their apps worked in, in words: of an env-commitment, for tables, pages and model cards."""

from __future__ import annotations

from dure.statements.kinds import Accelerators, EnvCommitment


def in_words(fact: EnvCommitment) -> str:
    """One line."""
    commit = f" (commit {fact.dure_commit[:12]})" if fact.dure_commit else ""
    lock = f"lock {fact.lock_sha256.hex()[:12]}" if fact.lock_sha256 else "no lock"
    devices = ", ".join(_device(a) for a in fact.accelerators)
    return f"{devices}; dure {fact.dure_version}{commit}, app {fact.app_sha256.hex()[:12]}, {lock}, {fact.python}"


def _device(one: Accelerators) -> str:
    what = f"{one.count} x {one.kind} {one.name}" if one.count > 1 else f"{one.kind} {one.name}"
    memory = f", {one.memory_gib} GiB" if one.memory_gib else ""
    return what + memory + (f", driver {one.driver}" if one.driver else "")
