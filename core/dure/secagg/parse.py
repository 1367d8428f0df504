"""Takes a decoded TLV message apart, field by field; whatever is not as asked is `Malformed` and named."""

from __future__ import annotations

from dure.errors import Refused
from dure.secagg import tlv
from dure.secagg.errors import Malformed


class Fields:
    """The parts of one tuple, taken in order."""

    def __init__(self, what: str, values: tuple[tlv.Value, ...]) -> None:
        self._what = what
        self._values = values
        self._at = 0

    def _next(self, name: str) -> tlv.Value:
        if self._at >= len(self._values):
            raise Malformed(f"{self._what}.{name}", "is missing")
        self._at += 1
        return self._values[self._at - 1]

    def value(self, name: str) -> tlv.Value:
        """The next field, whatever it is."""
        return self._next(name)

    def blob(self, name: str, size: int | None = None) -> bytes:
        value = self._next(name)
        if not isinstance(value, bytes) or (size is not None and len(value) != size):
            raise Malformed(f"{self._what}.{name}", "must be bytes" + (f", {size} of them" if size is not None else ""))
        return value

    def text(self, name: str) -> str:
        value = self._next(name)
        if not isinstance(value, str):
            raise Malformed(f"{self._what}.{name}", "must be text")
        return value

    def number(self, name: str, high: int = 2**48) -> int:
        value = self._next(name)
        if not isinstance(value, int) or not 0 <= value <= high:
            raise Malformed(f"{self._what}.{name}", f"must be an integer in 0…{high}")
        return value

    def sub(self, name: str) -> Fields:
        """A nested tuple, to be taken apart the same way."""
        value = self._next(name)
        if not isinstance(value, tuple):
            raise Malformed(f"{self._what}.{name}", "must be a tuple")
        return Fields(f"{self._what}.{name}", value)

    def texts(self, name: str) -> tuple[str, ...]:
        part = self.sub(name)
        return tuple(part.text(str(k)) for k in range(part.left))

    def pairs(self, name: str, size: int | None = None) -> dict[str, bytes]:
        """((name, bytes), …), names strictly ascending bytewise."""
        part = self.sub(name)
        found: dict[str, bytes] = {}
        last = b""
        for k in range(part.left):
            item = part.sub(str(k))
            key = item.text("name")
            if k and key.encode() <= last:
                raise Malformed(f"{self._what}.{name}", "names must ascend, each once")
            found[key] = item.blob("value", size)
            item.end()
            last = key.encode()
        return found

    @property
    def left(self) -> int:
        return len(self._values) - self._at

    def end(self) -> None:
        if self.left:
            raise Malformed(self._what, f"{self.left} fields too many")


def fields(data: bytes, what: str, *, max_bytes: int = 1 << 22) -> Fields:
    """`tlv.decode`, ready to be taken apart."""
    try:
        return Fields(what, tlv.decode(data, max_bytes=max_bytes))
    except Refused as e:
        raise Malformed(what, e.why) from None


def state(data: bytes, kind: str) -> Fields:
    """The fields of a persisted state, after its kind and version."""
    part = fields(data, kind, max_bytes=1 << 24)
    if part.text("kind") != kind or part.number("version") != 1:
        raise Malformed(kind, "is not a state this version wrote")
    return part


def pairs(table: dict[str, bytes]) -> tuple[tuple[str, bytes], ...]:
    """A table as `Fields.pairs` reads it back."""
    return tuple((k, table[k]) for k in sorted(table, key=str.encode))
