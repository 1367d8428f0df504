"""Metrics for Prometheus: a small HTTP port that answers scrapes from a component's state. Off unless asked for; needs prometheus-client.

Nothing is counted on the data path for it: a scrape reads what the process keeps anyway. Names end in their unit, as Prometheus asks
(https://prometheus.io/docs/practices/naming/). Nothing in them is a member's secret: a scrape shows what `status` shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dure.errors import BadInput, Unavailable

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Sample:
    """One number at the moment of the scrape."""

    name: str
    """With its unit; a counter's ends in `_total`."""
    help: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


def parse_listen(text: str) -> tuple[str, int]:
    """(host, port) of `--metrics PORT` or `--metrics HOST:PORT`; a bare port is loopback only.

    Raises:
        BadInput: it is neither.
    """
    host, _, port = text.rpartition(":")
    if not port.isdigit() or not 0 < int(port) <= 65_535:
        raise BadInput(f"--metrics {text}: give a port (loopback only) or host:port")
    return host.strip("[]") or LOOPBACK, int(port)


def serve_metrics(listen: str, samples: Callable[[], Iterable[Sample]]) -> str:
    """Answer scrapes on `http://HOST:PORT/metrics` from a thread of its own until the process ends; returns HOST:PORT.

    Args:
        samples: called in that thread at every scrape; must only read.

    Raises:
        BadInput: `listen` is out of form.
        Unavailable: the port is in use, or may not be bound.
    """
    from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry, start_http_server

    host, port = parse_listen(listen)
    registry = CollectorRegistry()
    for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
        registry.register(collector)
    registry.register(_collector(samples))
    try:
        start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise Unavailable(
            f"--metrics {listen}: {(error.strerror or str(error)).lower()}; stop whoever uses it or give another port"
        ) from None
    return f"{host}:{port}"


def _collector(samples: Callable[[], Iterable[Sample]]) -> Collector:
    from prometheus_client.registry import Collector

    class Scrape(Collector):
        def collect(self) -> Iterator[Metric]:
            families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
            for sample in samples():
                family = families.get(sample.name)
                if family is None:
                    family = families[sample.name] = _family(sample)
                family.add_metric(list(sample.labels.values()), sample.value)
            yield from families.values()

        def describe(self) -> list[Metric]:
            return []  # names are known at the scrape; without this, registering would make one

    return Scrape()


def _family(sample: Sample) -> CounterMetricFamily | GaugeMetricFamily:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    kind = CounterMetricFamily if sample.name.endswith("_total") else GaugeMetricFamily
    return kind(sample.name, sample.help, labels=list(sample.labels))
