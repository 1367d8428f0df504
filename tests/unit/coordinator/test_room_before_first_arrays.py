"""The coordinator looks at its disk before a run's first arrays; an exchange that drew their seed may have gone before."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dure_coordinator.exchange.events import Abort
from dure_coordinator.rpc.serverapp import ServerAppGrid


@pytest.mark.parametrize("exchanges", [0, 1])
async def test_a_run_whose_first_arrays_do_not_fit_ends_with_the_reason(tmp_path, exchanges):
    events = []

    async def submit(event):
        events.append(event)

    engine = SimpleNamespace(state=SimpleNamespace(exchanges=exchanges, base_record=b"", facts=SimpleNamespace(plan=None)), submit=submit)
    journal = SimpleNamespace(journal=SimpleNamespace(entries=[SimpleNamespace(digest=b"")], summed_before=lambda _entry: None))
    grid = ServerAppGrid(engine, journal, tmp_path, None, None, dict, lambda _plan, _layout: "3 GB are needed")  # type: ignore[arg-type]
    asked = SimpleNamespace(seq=1, flat_path=tmp_path / "base-1.f32", instruction=SimpleNamespace(arrays=SimpleNamespace(layout=None)))
    assert await grid._start(asked) == "3 GB are needed"  # type: ignore[arg-type]
    assert events == [Abort("3 GB are needed")]
