"""A base that the ServerApp hands back is the coordinator's own blob already: it is neither read nor copied."""

from __future__ import annotations

import stat
from dataclasses import replace

import pytest
from sim.exchange_world import LAYOUT, World

from dure.model.content import ArrayItem
from dure.model.layout import Layout
from dure_coordinator.rpc.serverapp import current_base, link_or_copy


@pytest.mark.parametrize("step_name", ["average", "none"])
def test_only_the_very_base_of_the_run_is_taken_for_it(step_name):
    world = World(4, 1, seed=5, step_name=step_name)
    world.start()
    world.run_until(lambda w: w.idle())
    layout, first = LAYOUT, world.first_weights()
    item = ArrayItem("arrays", layout, bytes(32))
    assert current_base(world.state, item) == "", "there is no base yet, and no zeros are it"
    reply = world.exchange(1, "train", first)
    same = replace(item, weights_id=world.state.base_weights_id)
    if step_name == "none":
        assert current_base(world.state, same) == "", "a ServerApp's next base is known once it comes"
        return
    assert current_base(world.state, same) == reply.blob
    assert current_base(world.state, replace(item, weights_id=b"\x01" * 32)) == ""
    other = Layout.build((f"x{e.name}", e.dtype, e.shape) for e in layout.entries)
    assert current_base(world.state, replace(same, layout=other)) == "", "the same numbers under another layout"


def test_what_a_serverapp_is_given_is_the_blob_itself_and_read_only(tmp_path, monkeypatch):
    blob, given = tmp_path / "data", tmp_path / "reply-1.f32"
    blob.write_bytes(b"weights")
    given.write_bytes(b"of an earlier try")
    link_or_copy(blob, given)
    assert given.samefile(blob) and stat.S_IMODE(given.stat().st_mode) == 0o400

    def no_links(*_paths):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    link_or_copy(blob, given)
    assert given.read_bytes() == b"weights" and not given.samefile(blob)
