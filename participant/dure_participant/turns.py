"""Who trains here now, and who waits: first come, first served, one place in the queue per run.

A run has one exchange at a time, so whoever waits has at most one turn of every other run before it. A turn is not cut short, since half a
training is worth nothing; what bounds it is the deadline that the operators approved with the plan. But a run whose app used up a deadline
for nothing keeps its next turns only while nobody else wants them: an app that hangs costs the others one deadline, not one a round.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field


@dataclass
class Turn:
    """One run's place: waiting, then training."""

    run: bytes
    give_up: Callable[[], None]
    """Called if the turn is taken away; whatever it does, the holder still leaves by itself."""
    begun: asyncio.Future[None]
    taken_for: bytes | None = None
    """The run that waited when this turn was taken away."""


@dataclass
class Turns:
    """For the event loop of one agent."""

    places: int
    """Runs that may train at once; 0: any number."""
    _holding: list[Turn] = field(default_factory=list)
    _waiting: list[Turn] = field(default_factory=list)
    _wasteful: set[bytes] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def take(self, run: bytes, give_up: Callable[[], None]) -> AsyncIterator[Turn]:
        """Waits for a turn, holds it inside. Cancelling a wait leaves the queue."""
        turn = Turn(run, give_up, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        try:
            self._admit()
            await turn.begun
            yield turn
        finally:
            (self._holding if turn in self._holding else self._waiting).remove(turn)
            self._admit()

    def full(self) -> bool:
        """Whether whoever comes now waits."""
        return bool(self._waiting) or 0 < self.places <= len(self._holding)

    def holders(self) -> tuple[bytes, ...]:
        return tuple(turn.run for turn in self._holding)

    def wasted(self, run: bytes) -> None:
        """Its app had the turn for most of an exchange's time and was not done at the deadline."""
        self._wasteful.add(run)

    def used(self, run: bytes) -> None:
        """Its app came to an end in time."""
        self._wasteful.discard(run)

    def _admit(self) -> None:
        while self._waiting and (self.places == 0 or len(self._holding) < self.places):
            turn = self._waiting.pop(0)
            self._holding.append(turn)
            turn.begun.set_result(None)
        if self._waiting and not any(turn.taken_for for turn in self._holding):
            loser = next((turn for turn in self._holding if turn.run in self._wasteful), None)
            if loser is not None:
                loser.taken_for = self._waiting[0].run
                loser.give_up()
