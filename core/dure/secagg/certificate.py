"""Survivor sets: the one statement about U that each member of a cohort signs at most once per instance."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.secagg import messages, tlv
from dure.secagg.errors import BelowThreshold, Malformed
from dure.secagg.ids import InstanceId
from dure.secagg.kdf import PROTOCOL, digest
from dure.secagg.thresholds import share_threshold

SURVIVORS = "survivors"


def context(instance: InstanceId, open_payload_sha256: bytes) -> bytes:
    """ctx: masks, certificates and tags are bound to it, so views that differ in anything never cancel."""
    if len(open_payload_sha256) != 32:
        raise Malformed("open", "its payload's SHA-256 has 32 bytes")
    return digest("ctx", instance.parts(), open_payload_sha256)


def survivors_message(instance: InstanceId, ctx: bytes, commits: Mapping[str, bytes]) -> bytes:
    """TLV("SA1", "survivors", I, ctx, ((member, SHA-256 of its commit payload)…)): the bytes that are signed."""
    if any(len(c) != 32 for c in commits.values()) or len(ctx) != 32:
        raise Malformed(SURVIVORS, "ctx and hashes have 32 bytes")
    listed = tuple((m, commits[m]) for m in sorted(commits, key=str.encode))
    return tlv.encode(PROTOCOL, SURVIVORS, instance.parts(), ctx, listed)


def sign_survivors_message(payload: bytes, node_key: Ed25519PrivateKey) -> bytes:
    """64 bytes. `instance.sign_survivors` decides whether this member may."""
    return node_key.sign(payload)


def verify_survivors_signature(payload: bytes, signature: bytes, *, member: str, node_keys: Mapping[str, bytes]) -> None:
    """`BadSignature` unless this member's node signed it."""
    messages.check_signature(payload, signature, "survivor set", member, node_keys)


def check_set(cohort: tuple[str, ...], commits: Mapping[str, bytes], signers: Collection[str], u_min: int) -> None:
    """Whether a survivor set is one of this cohort's, signed by nobody else, and large enough; signatures are not looked at.

    Raises:
        Malformed: somebody named is not in the cohort.
        BelowThreshold: fewer than u_min survivors.
    """
    if not set(commits) <= set(cohort) or not set(signers) <= set(cohort):
        raise Malformed(SURVIVORS, "names somebody who is not in the cohort")
    if len(commits) < u_min:
        raise BelowThreshold(len(commits), u_min, "survivors")


def check_signers(cohort: tuple[str, ...], signers: Collection[str], colluders: int) -> None:
    """`BelowThreshold` for fewer than t signers."""
    need = share_threshold(len(cohort), colluders)
    if len(signers) < need:
        raise BelowThreshold(len(signers), need, "signatures of the survivor set")


def verify_certificate(
    instance: InstanceId,
    ctx: bytes,
    cohort: tuple[str, ...],
    commits: Mapping[str, bytes],
    signatures: Mapping[str, bytes],
    node_keys: Mapping[str, bytes],
    colluders: int,
    u_min: int,
) -> bytes:
    """The signed payload, if at least t members of the cohort signed exactly this set and it is large enough.

    Raises:
        Malformed: somebody named is not in the cohort.
        BelowThreshold: fewer than u_min survivors or t signatures.
        BadSignature: one of the signatures given does not verify; the coordinator embeds none that do not.
    """
    check_set(cohort, commits, signatures.keys(), u_min)
    payload = survivors_message(instance, ctx, commits)
    for member, signature in signatures.items():
        verify_survivors_signature(payload, signature, member=member, node_keys=node_keys)
    check_signers(cohort, signatures.keys(), colluders)
    return payload
