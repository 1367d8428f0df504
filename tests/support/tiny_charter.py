"""A charter version in memory, with keys a test chooses; nobody signed it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.charter.model import Charter, CharterCoordinator, CharterMember, Terms


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def key_of(name: str) -> Ed25519PrivateKey:
    """A key that is the same in every test."""
    return Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"."))


def member(name: str, **changes: Any) -> CharterMember:
    keys = {f"{what}_key": public(key_of(f"{name} {what}")) for what in ("governance", "signing", "witness")}
    fields: dict[str, Any] = {"id": name, "display_name": "", "registration": "", "host": f"{name}.titan", "ca_pem": f"{name}'s", **keys}
    return CharterMember(**{**fields, **changes})


def charter(
    members: tuple[str, ...] = ("ara", "bora", "chan"),
    version: int = 1,
    *,
    changed: Mapping[str, Mapping[str, Any]] | None = None,
    coordinator: Mapping[str, Any] | None = None,
    **terms: Any,
) -> Charter:
    """Args:
    changed: per member the fields that are not as `member` makes them.
    coordinator: the same for the coordinator.
    """
    hub = {
        "signing_key": public(key_of("hub signing")),
        "log_key": public(key_of("hub log")),
        "ca_pem": "hub's",
        "release_ca_pem": "releases",
        "member": None,
    }
    fields: dict[str, Any] = dict(
        consortium_id=b"c" * 16,
        name="titan",
        k=2,
        colluders=1,
        w_max=65_536,
        max_run_days=90,
        challenge_window_s=86_400,
        allow_unrecomputed_bases=False,
        allow_unmasked=False,
        public_log=False,
        agreement_sha256=None,
        coordinator=CharterCoordinator(**{**hub, **(coordinator or {})}),
        members=tuple(member(m, **(changed or {}).get(m, {})) for m in members),
    )
    return Charter(version, bytes([version]) * 32, float("inf"), Terms(**{**fields, **terms}))
