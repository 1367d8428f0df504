"""Which execution of the secure sum: the instance id."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

from dure.errors import Refused
from dure.secagg.errors import Malformed
from dure.secagg.tlv import Value, decode, encode


class Purpose(StrEnum):
    """What an instance sums: block magnitudes, the update itself, or numbers only."""

    SCALES = "scales"
    UPDATE = "update"
    SCALARS = "scalars"


@dataclass(frozen=True)
class InstanceId:
    """I = (consortium, run, exchange, purpose, fragment, attempt, epoch). Source: secure-aggregation.md §2."""

    consortium: bytes
    run: bytes
    exchange: int
    purpose: Purpose
    fragment: int = 0
    attempt: int = 0
    epoch: int = 0

    def tlv(self) -> bytes:
        """The one encoding, used on the wire, in keys and in hashes."""
        return encode(*self.parts())

    @property
    def key(self) -> str:
        """For tables and file names."""
        return f"{self.run.hex()[:16]}-{self.exchange}-{self.purpose}-{self.fragment}-{self.attempt}-{self.epoch}"

    def parts(self) -> tuple[Value, ...]:
        return (self.consortium, self.run, self.exchange, self.purpose.value, self.fragment, self.attempt, self.epoch)

    @staticmethod
    def decode(raw: bytes) -> InstanceId:
        """The id whose encoding `raw` is.

        Raises:
            Malformed: names the field.
        """
        try:
            return InstanceId.of(decode(raw, max_bytes=512))
        except Refused as e:
            raise Malformed(e.field, e.why) from None

    @staticmethod
    def of(parts: Value) -> InstanceId:
        """The id whose `parts()` these are."""
        if not isinstance(parts, tuple) or len(parts) != 7:
            raise Malformed("instance", "must have seven parts")
        consortium, run, exchange, purpose, fragment, attempt, epoch = parts
        if not isinstance(consortium, bytes) or len(consortium) != 16:
            raise Malformed("instance.consortium", "must have 16 bytes")
        if not isinstance(run, bytes) or len(run) != 32:
            raise Malformed("instance.run", "must have 32 bytes")
        numbers = []
        for name, number in (("exchange", exchange), ("fragment", fragment), ("attempt", attempt), ("epoch", epoch)):
            if not isinstance(number, int) or number >= 2**48:
                raise Malformed(f"instance.{name}", "must be a number below 2^48")
            numbers.append(number)
        try:
            kind = Purpose(str(purpose))
        except ValueError:
            raise Malformed("instance.purpose", "must be scales, update or scalars") from None
        return InstanceId(consortium, run, numbers[0], kind, numbers[1], numbers[2], numbers[3])


def upload_id(instance: bytes, member: str) -> bytes:
    """The name of one member's upload on the bulk stream and among the coordinator's spools.

    Args:
        instance: the id's TLV.

    Returns:
        32 bytes: SHA-256("dure upload\\n" ‖ u16 (little-endian) length of instance ‖ instance ‖ member).
    """
    return sha256(b"dure upload\n" + len(instance).to_bytes(2, "little") + instance + member.encode()).digest()
