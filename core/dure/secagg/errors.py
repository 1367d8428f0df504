"""What can go wrong in the secure sum; every class is one that a caller treats differently.

SecaggError
├── Malformed         a peer's bytes are not what they must be; `field` names where
├── BadSignature      a message is not signed by the node it names
├── Convicted         a member is shown to have cheated; restart the attempt or epoch without it
├── PairMismatch      two members disagree on their key, nobody can say who lies; new epoch
├── BelowThreshold    too few shares or members
├── Refused           this member never does that (secure-aggregation.md, section 5)
├── NonFiniteUpdate   the update holds NaN or infinity; the member sits out
├── OutOfRange        a value does not fit its encoding; the member sits out
├── TagMismatch       the opened sum is not the sum of what the survivors sent
└── RootMismatch      bytes do not have the Merkle root that was signed
"""

from __future__ import annotations

from dure.errors import DureError


class SecaggError(DureError):
    """Base of everything here."""


class Malformed(SecaggError):
    """A peer's bytes are refused; `field` names what was wrong."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field
        self.why = why


class BadSignature(SecaggError):
    """`what` does not verify under the node key of `member`; it may have been forged, so nobody is convicted."""

    def __init__(self, member: str, what: str) -> None:
        super().__init__(f"{what} does not carry a valid signature of {member}'s node")
        self.member = member
        self.what = what


class Convicted(SecaggError):
    """`evidence` shows everyone that `member` cheated; judge it with `epoch.judge_group` or `instance.judge_share`.

    Empty evidence: the member's signed messages speak for themselves.
    """

    def __init__(self, member: str, reason: str, evidence: bytes = b"") -> None:
        super().__init__(f"{member}: {reason}; go on without this member")
        self.member = member
        self.reason = reason
        self.evidence = evidence


class PairMismatch(SecaggError):
    """`a` and `b` do not share a key although both say so; one lies or someone sits between them."""

    def __init__(self, a: str, b: str) -> None:
        super().__init__(f"{a} and {b} disagree on their pair key; start a new epoch, and if it recurs, let the operators talk")
        self.a, self.b = sorted((a, b))


class BelowThreshold(SecaggError):
    """Too few; what is protected stays protected."""

    def __init__(self, have: int, need: int, what: str = "shares") -> None:
        super().__init__(f"{have} {what}, {need} needed")
        self.have = have
        self.need = need


class Refused(SecaggError):
    """This member never does that. `rule` is the number in secure-aggregation.md, section 5."""

    def __init__(self, rule: int, reason: str) -> None:
        super().__init__(f"refused (rule {rule}): {reason}")
        self.rule = rule
        self.reason = reason


class NonFiniteUpdate(SecaggError):
    """Element `element` of the flat model is NaN or infinite; the caller adds the tensor's name."""

    def __init__(self, element: int) -> None:
        super().__init__(f"element {element} of the update is not finite; this member sits out")
        self.element = element


class OutOfRange(SecaggError):
    """`what` does not fit the encoding; nothing was sent."""

    def __init__(self, what: str, why: str, element: int | None = None) -> None:
        super().__init__(f"{what}: {why}")
        self.what = what
        self.why = why
        self.element = element


class TagMismatch(SecaggError):
    """The sum, its trailer or its tag was tampered with, or a survivor sent garbage; recompute to know which."""

    def __init__(self, why: str = "the opened sum does not carry the tag of what the survivors sent") -> None:
        super().__init__(why)


class RootMismatch(SecaggError):
    """`what` does not have the signed Merkle root."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} does not have the signed root; fetch it again")
        self.what = what
