"""An `eval` statement says in words what an opened sum says, and nothing else: whatever is changed in one, an audit names."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.synthetic_log import SyntheticLog

from dure.audit import report
from dure.audit.bundle import Bundle
from dure.audit.level1 import verify
from dure.provenance.drawn_from_log import metrics_of
from dure.provenance.evaluation import decimal, evaluation
from dure.provenance.facts import Metric
from dure.statements.kinds import Eval, InstanceAggregate, Measured
from dure.statements.schema import decode, encode

ENTRIES = 200


class Told(SyntheticLog):
    """A log in which the coordinator says its first evaluation otherwise, or says it again in the place of the second."""

    def __init__(self, change=lambda said: said, *, twice: bool = False) -> None:
        super().__init__(exchanges_per_run=8, seed=9, evaluations=True)
        self.evals = list[Eval]()
        honest = self.coordinator.say

        def say(fact, now):
            if isinstance(fact, Eval):
                fact = change(fact) if not self.evals else self.evals[0] if twice and len(self.evals) == 1 else fact
                self.evals.append(fact)
            return honest(fact, now)

        self.coordinator.say = say  # type: ignore[method-assign]


def audited(log, folder):
    return verify(Bundle.open(log.write(folder, log.entries(ENTRIES))), log.pin, now=log.now, cores=1)


def test_evaluations_follow_from_the_sums_and_are_counted(tmp_path):
    log = Told()
    result = audited(log, tmp_path / "b")
    assert (result.findings, result.history.counts["eval"] >= 3) == ([], True)
    (row,) = [r for r in report.rows(result) if r.claim.startswith("metrics in words")]
    assert row.how == report.PROVED
    assert [m.name for m in log.evals[0].metrics] == ["accuracy", "loss"]
    assert len(log.evals[0].members) == 5


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda said: {"metrics": (Measured("accuracy", "0.99"), said.metrics[1])}, "metrics"),
        (lambda said: {"metrics": said.metrics[:1]}, "metrics"),
        (lambda said: {"metrics": tuple(replace(m, value=m.value + "0") for m in said.metrics)}, "metrics"),
        (lambda said: {"examples": said.examples + 1}, "examples"),
        (lambda said: {"members": said.members[1:]}, "members"),
        (lambda said: {"weights_id": bytes(32)}, "weights_id"),
        (lambda said: {"data": (bytes(32),)}, "data"),
        (lambda said: {"aggregate_sha256": bytes(32)}, "aggregate_sha256"),
        (lambda said: {"exchange": said.exchange + 1}, "aggregate_sha256"),
    ],
)
def test_one_that_says_otherwise_is_named(tmp_path, change, field):
    result = audited(Told(lambda said: replace(said, **change(said))), tmp_path / "b")
    (found,) = result.findings
    assert found.why.startswith(f"{field}: ")


def test_a_sum_is_put_into_words_once(tmp_path):
    result = audited(Told(twice=True), tmp_path / "b")
    (found,) = result.findings
    assert "is put into words twice" in found.why


def test_a_mean_reads_back_as_the_very_float_and_without_weight_there_is_none():
    for value in (0.1, 1e-12, -3.5, 123456789.25, 2.0**-40):
        assert float(decimal(value)) == value
        assert "e" not in decimal(value)
    shared = {"run": bytes(32), "exchange": 1, "weights_id": bytes(32), "aggregate_sha256": bytes(32), "names": ("loss",), "w_max": 100}
    assert evaluation(**shared, members=("ara",), trailer=(3, 0, 0, 0), data=()) is None


@pytest.mark.parametrize(
    "said",
    [
        pytest.param((3, 0), id="nobody's weight"),
        pytest.param((3, -(2**40)), id="below zero"),
        pytest.param((3, 2**62), id="more than any members have"),
        pytest.param((-1, 2**40), id="fewer than no members"),
        pytest.param((2**50, 2**40), id="more members than there can be"),
    ],
)
def test_what_one_member_wrote_into_a_masked_trailer_makes_no_statement_out_of_form_and_ends_no_release(said):
    """Nobody sees it but in the sum. An entry out of form would end every audit of the log, and a metric every release of the model."""
    trailer = tuple(word % 2**64 for word in (*said, 0, 2**30))
    shared = {"run": bytes(32), "exchange": 1, "weights_id": bytes(32), "aggregate_sha256": bytes(32), "names": ("loss",), "w_max": 2**40}
    assert evaluation(**shared, members=("ara",), trailer=trailer, data=()) is None
    opened = SimpleNamespace(category="evaluate", weights_id=bytes(32), metrics=("loss",))
    sums = [(SimpleNamespace(exchange=n), opened, SimpleNamespace(trailer=t)) for n, t in ((1, trailer), (2, (255, 255 << 40, 0, 2**30)))]
    log = SimpleNamespace(evaluations=dict, summed=lambda: sums, plan=SimpleNamespace(w_max=2**40))
    (metric,) = metrics_of(log, 1, bytes(32))
    assert decode(Metric, encode(metric)) == metric and metric.exchange == 2


class Unfitting(SyntheticLog):
    """A log whose coordinator signs trailers for evaluations that are not as long as the metrics it asked for."""

    def __init__(self, trailer: tuple[int, ...]) -> None:
        super().__init__(exchanges_per_run=8, seed=9, evaluations=True)
        self.trailer = trailer

    def told(self, fact):
        return replace(fact, trailer=self.trailer) if isinstance(fact, InstanceAggregate) and len(fact.trailer) == 5 else fact

    def _eval(self, where, opened, aggregate, commits, plan):
        said = Eval(where.run, where.exchange, bytes(32), aggregate.payload_sha256, ("m01",), 1, (), ())
        return self.coordinator.say(said, self.now)


@pytest.mark.parametrize("trailer", [(3,), (3, 1 << 40), (3, 1 << 40, 0, 0), (3, 1 << 40, 0, 0, 0, 0)], ids=len)
def test_a_trailer_that_does_not_fit_its_metrics_is_a_finding_and_ends_no_audit_and_no_release(tmp_path, trailer):
    """The coordinator alone signs it: whom an audit is about must not be able to end the audit."""
    result = audited(Unfitting(trailer), tmp_path / "b")
    assert result.findings and all(found.why == "weights_id: is not what the opened sum says" for found in result.findings)
    opened = SimpleNamespace(category="evaluate", weights_id=bytes(32), metrics=("accuracy", "loss"))
    sums = [(SimpleNamespace(exchange=1), opened, SimpleNamespace(trailer=trailer))]
    log = SimpleNamespace(evaluations=dict, summed=lambda: sums, plan=SimpleNamespace(w_max=100))
    assert metrics_of(log, 1, bytes(32)) == ()


def test_the_most_that_honest_members_come_to_is_a_statement_in_form():
    shared = {"run": bytes(32), "exchange": 1, "weights_id": bytes(32), "aggregate_sha256": bytes(32), "names": ("loss",), "w_max": 2**40}
    found = evaluation(**shared, members=("ara",), trailer=(255, 255 << 40, 0, 2**63 - 1), data=())
    assert found is not None and decode(Eval, encode(found)) == found
    assert evaluation(**shared, members=("ara",), trailer=(1, 1, 0, 2**63), data=()).metrics[0].value == "-9444732965739290000000"
