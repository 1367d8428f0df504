"""The entries of a log, each verified by the key that was valid at its index: what tables are made from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dure.audit.entry import read_entry
from dure.audit.history import check_author
from dure.audit.keys import Keys
from dure.charter.model import Charter
from dure.errors import DureError, Refused
from dure.statements.anykind import open_any
from dure.statements.statement import Signed


def verified(entries: Iterable[bytes], versions: Sequence[Charter]) -> Iterator[Signed[Any]]:
    """Entries in order, signature, chain and key checked; the rules between them are the audit's affair (`level1`).

    Raises:
        Refused: names the first entry that does not hold.
    """
    keys = Keys(versions)
    for index, entry in enumerate(entries):
        try:
            read = read_entry(entry)
            key, party = keys.signer(read.key_id, read.kind)
            signed = open_any(entry, [key])
            keys.follow(read, party)
            check_author(read.kind, signed.fact, party)
        except DureError as error:
            raise Refused(f"entry {index}", str(error)) from None
        yield signed
