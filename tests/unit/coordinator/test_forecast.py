"""The forecast's arithmetic against the formats, and what it refuses."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sim.exchange_world import make_plan

from dure.blobs import BlobStore
from dure.errors import BadInput
from dure.forecast import exchange_disk, forecast, in_json, one_round_disk, transfer_s
from dure.model.content import ArrayItem, Instruction
from dure.model.layout import Layout
from dure.secagg.summing import shape_of
from dure_coordinator.forecast_words import beside_lines, plan_lines, size_lines
from dure_coordinator.forecasting import check_disk, links_of, no_room
from dure_coordinator.settings import CoordinatorSettings
from dure_participant.exchange.actions import Train
from dure_participant.trainer import Trainer

MEMBERS = tuple(f"m{i}" for i in range(5))
D = 10_000_000
DAY = 86_400.0


def plan(step: str = "average", **changes):
    return make_plan(MEMBERS, 1, step, **{"rounds": 10, **changes})


@given(
    elements=st.integers(1, 10**11), n=st.integers(3, 40), rounds=st.integers(1, 1000), step=st.sampled_from(["none", "average", "adam"])
)
def test_the_whole_run_is_its_rounds_and_never_less_than_its_bulk_vectors(elements, n, rounds, step):
    found = forecast(make_plan(tuple(f"m{i:02d}" for i in range(n)), 1, step, rounds=rounds), elements, DAY)
    bulk = shape_of("update", elements)[0] + shape_of("scales", elements)[0]
    assert found.up >= bulk and found.down >= bulk
    assert found.up_run == rounds * found.up
    assert found.down_run == found.down_first + (rounds - 1) * found.down
    assert found.coordinator_in == n * found.up
    assert found.uploads_peak == n * bulk * rounds
    assert found.coordinator_disk >= found.uploads_peak + rounds * found.kept


def test_with_a_named_step_the_model_travels_once():
    named, shipped = forecast(plan("average"), D, DAY), forecast(plan("none"), D, DAY)
    assert named.down_first == shipped.down_first == shipped.down
    assert named.down == shipped.down - 4 * D
    assert named.down == pytest.approx(2.05 * D, rel=0.01)


def test_uploads_are_kept_at_once_for_as_many_rounds_as_fit_the_window():
    assert forecast(plan(), D, DAY, 6 * 3600.0).uploads_peak == 5 * forecast(plan(), D, DAY).uploads
    assert forecast(plan(), D, DAY, 10.0).uploads_peak == 10 * forecast(plan(), D, DAY).uploads
    kept = forecast(plan(keep_uploads="all"), D, DAY, 6 * 3600.0)
    assert kept.uploads_peak == 10 * kept.uploads


def test_momentum_takes_its_room():
    plain, nesterov, adam = (forecast(plan(step), D, DAY) for step in ("average", "nesterov", "adam"))
    assert nesterov.kept - plain.kept == adam.kept - nesterov.kept == 4 * D
    assert plain.node_disk < nesterov.node_disk < adam.node_disk


def test_time_follows_the_slower_of_the_members_and_the_coordinators_link():
    found = forecast(plan(), D, DAY)
    alone = transfer_s(found, 100.0, 100.0)
    assert alone == pytest.approx(2 * 2.05 * D * 8 / 100e6, rel=0.01)
    assert transfer_s(found, 100.0, 100.0, 100.0) == pytest.approx(2.5 * alone, rel=0.05), "five members share it, each way by itself"
    assert transfer_s(found, 100.0, 100.0, 10_000.0) == alone
    with pytest.raises(BadInput, match="--up-mbps 0"):
        links_of({"up_mbps": 0})


def coordinator(tmp_path, quota=10**12):
    return SimpleNamespace(folder=SimpleNamespace(directory=tmp_path), settings=CoordinatorSettings(spool_quota_bytes=quota))


def free(monkeypatch, amount):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=amount))


def test_a_run_that_would_fill_the_disk_or_the_quota_is_refused_with_the_numbers(tmp_path, monkeypatch):
    found = forecast(plan(), D, DAY)
    free(monkeypatch, found.coordinator_disk)
    check_disk(coordinator(tmp_path), found)
    with pytest.raises(BadInput, match=r"the quota is 500.0 MB; raise spool_quota_bytes"):
        check_disk(coordinator(tmp_path, 5 * 10**8), found)
    free(monkeypatch, found.coordinator_disk - 1)
    with pytest.raises(BadInput, match=r"disk: the run may need .* are free; make room"):
        check_disk(coordinator(tmp_path), found)


def test_no_exchange_begins_where_not_even_one_round_fits(tmp_path, monkeypatch):
    layout = Layout.build([("w", "float32", (D,))])
    free(monkeypatch, one_round_disk(plan(), D))
    assert no_room(tmp_path, plan(), layout) == ""
    free(monkeypatch, one_round_disk(plan(), D) - 1)
    assert "a round of this run takes" in no_room(tmp_path, plan(), layout)


def test_a_node_whose_disk_would_be_full_says_so_before_it_trains(tmp_path, monkeypatch):
    layout = Layout.build([("w", "float32", (D,))])
    store = BlobStore(tmp_path / "blobs")
    weights = store.put_bytes(b"held already")
    action = Train("t", 1, Instruction("train", "1", 60.0, (ArrayItem("a", layout, bytes(32)),)), str(weights), b"", 0, 1)
    node = SimpleNamespace(_blobs=store, _dir=tmp_path)
    needed = exchange_disk(plan("adam"), D, train=True, base_is_there=True)
    free(monkeypatch, needed)
    assert Trainer.no_room(node, plan("adam"), action) == ""
    free(monkeypatch, needed - 1)
    assert "GB at this node" in Trainer.no_room(node, plan("adam"), action)
    evaluate = Train("t", 1, Instruction("evaluate", "1", 60.0, (ArrayItem("a", layout, bytes(32)),)), str(weights), b"", 0, 1)
    assert Trainer.no_room(node, plan("adam"), evaluate) == "", "an evaluation writes nothing"


def test_a_forecast_is_told_in_words_with_and_without_a_known_size():
    base = {"app": "a", "app_sha256": "00", "env_sha256": None, "connected_now": ["m0"], "missing_now": ["m1"], "size_unknown": ""}
    more = {"parameters": D, "uploads_kept_s": DAY, "disk_free": 10**12}
    known = {**in_json(plan(), forecast(plan(), D, DAY), {"up_mbps": 50.0}, 60.0), **base, **more}
    text = "\n".join(plan_lines(known))
    assert "missing: m1" in text and "10,000,000 parameters, 40.0 MB" in text and "at 50 Mbit/s up, 100 down" in text
    assert "for 10 rounds" in text
    unknown = {**in_json(plan(), None, {}, None), **base, "size_unknown": "no tokenizer", **more}
    assert "no tokenizer" in "\n".join(plan_lines(unknown))
    assert list(size_lines(unknown)) == ["the model's size is not known yet: bytes and disk are checked before its first exchange"]
    assert list(beside_lines(None)) == []
