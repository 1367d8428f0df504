"""What a node says of its environment: as its site declares it, or looked up; nothing that names this machine, and nothing invented."""

from __future__ import annotations

import asyncio
import ctypes
import getpass
import platform
import threading
from types import SimpleNamespace

import pytest
from sim.exchange_world import make_plan

from dure.errors import BadInput
from dure.statements.dsse import canonical_json
from dure.statements.kinds import Accelerators, Energy, EnvCommitment
from dure.statements.schema import decode, encode
from dure_participant import accelerators, energy, settings
from dure_participant.accelerators import cpu, declared, nvidia
from dure_participant.energy import Counters, counted_millijoules, counters_of, energy_of
from dure_participant.environment import commit_of, commitment
from dure_participant.settings import NodeSettings

PLAN = make_plan(("a", "b", "c"), 1, "average")


def test_what_was_looked_up_has_the_form_of_the_statement_and_nothing_of_this_host(tmp_path):
    said = commitment("a", NodeSettings(node_config={"data": "/srv/secret"}), PLAN, b"l" * 32)
    assert decode(EnvCommitment, encode(said)) == said and said.app_sha256 == PLAN.app_sha256 and said.lock_sha256 == b"l" * 32
    assert said.accelerators[0] == cpu() and cpu().kind == "cpu" and cpu().count >= 1
    text = canonical_json(encode(said)).decode()
    assert not [word for word in (platform.node(), getpass.getuser(), "/", "secret") if len(word) > 4 and word in text]
    assert "/" not in text


def test_a_site_declares_its_own_accelerators_and_then_nothing_is_looked_up(tmp_path):
    settings.assign(tmp_path, {"accelerators": "8 x npu Rebellions ATOM-Max 64 GiB driver 1.1.67; gpu NVIDIA H100 80GB HBM3"})
    settings.assign(tmp_path, {"device": "npu"})
    found = commitment("a", settings.load(tmp_path), PLAN, None).accelerators
    assert found == (
        Accelerators("npu", "Rebellions ATOM-Max", 8, 64, "1.1.67"),
        Accelerators("gpu", "NVIDIA H100 80GB HBM3", 1, None, None),
    )
    (tmp_path / settings.FILE).write_text('accelerators = ["cpu EPYC"]\n')
    assert commitment("a", settings.load(tmp_path), PLAN, None).accelerators == declared(["cpu EPYC"])


@pytest.mark.parametrize(
    "bad",
    ["H100", "tpu v5", "gpu /dev/nvidia0", "0 x gpu H100", "70000 x gpu H100", "gpu H100 driver a/b", "npu host.example:22"],
)
def test_a_declaration_out_of_form_is_refused_where_it_is_made(tmp_path, bad):
    with pytest.raises(BadInput, match=r"accelerators: .* is not of the form"):
        settings.assign(tmp_path, {"accelerators": bad})
    assert settings.load(tmp_path).accelerators == ()


@pytest.mark.parametrize("name", ["watts", "peak_flops"])
@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_a_rate_or_power_that_is_none_is_refused(tmp_path, name, bad):
    with pytest.raises(BadInput, match=name):
        settings.assign(tmp_path, {name: bad})


def test_devices_that_nvidia_smi_lists_are_counted_by_kind():
    """The form of its csv output without units, driver 550; a device whose memory it does not know is passed over."""
    table = "NVIDIA H100 80GB HBM3, 81559, 550.54.15\n" * 8 + "Tesla T4, 15360, 550.54.15\nNVIDIA GB10, [N/A], 580.95.05\n"
    assert nvidia(table) == (
        Accelerators("gpu", "NVIDIA H100 80GB HBM3", 8, 79, "550.54.15"),
        Accelerators("gpu", "Tesla T4", 1, 15, "550.54.15"),
    )
    assert nvidia("") == nvidia("Failed to initialize NVML: Driver/library version mismatch\n") == ()


def test_devices_that_the_worker_does_not_use_are_not_looked_for(monkeypatch):
    monkeypatch.setattr(accelerators, "ask", lambda _command: "NVIDIA H100 80GB HBM3, 81559, 550.54.15\n")
    found = {device: accelerators.looked_up.__wrapped__(device) for device in ("cpu", "cuda")}
    assert [a.kind for a in found["cpu"]] == ["cpu"] and [a.kind for a in found["cuda"]] == ["cpu", "gpu"]


def test_a_commit_is_named_only_for_a_source_tree_without_changes(tmp_path):
    answers = {"status": "", "rev-parse": "ab" * 20 + "\n"}

    def ask(command):
        return answers[command[3]]

    assert commit_of(tmp_path, ask) is None, "an installed package lies in no source tree"
    (tmp_path / "core" / "dure").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    for status, expected in (("", "ab" * 20), (" M core/dure/cli.py\n", None), (None, None)):
        answers["status"] = status
        commit_of.cache_clear()
        assert commit_of(tmp_path, ask) == expected
    commit_of.cache_clear()


def test_energy_is_the_sites_word_or_the_devices_counters_and_else_nobodys():
    silent, told = NodeSettings(), NodeSettings(watts=350.5)
    assert energy_of(told, 2_000, 5, 7) == Energy(701_000, "declared")
    assert energy_of(silent, 2_000, 1_000, 41_000) == Energy(40_000, "nvml")
    for before, after in ((None, None), (None, 5), (5, 5), (9, 5)):  # a driver that was loaded anew counts from zero
        assert energy_of(silent, 2_000, before, after) is None
    assert energy_of(told, 0, None, None) is None


def test_the_counters_of_all_devices_are_added_or_none_is_said():
    def library(*counts, status=0):
        def number(out):
            out._obj.value = len(counts)
            return 0

        def handle(index, out):
            out._obj.value = index + 1
            return 0

        def energy(device, out):
            out._obj.value = counts[device.value - 1]
            return status

        return SimpleNamespace(
            nvmlDeviceGetCount_v2=number, nvmlDeviceGetHandleByIndex_v2=handle, nvmlDeviceGetTotalEnergyConsumption=energy
        )

    assert counted_millijoules(library(1_000, 2**40)) == 1_000 + 2**40
    assert counted_millijoules(library()) is None
    assert counted_millijoules(library(1_000, status=3)) is None, "NVML_ERROR_NOT_SUPPORTED: older than Volta"
    older = library(1_000)
    del older.nvmlDeviceGetTotalEnergyConsumption
    assert counted_millijoules(older) is None
    assert ctypes.c_ulonglong(2**40).value == 2**40


async def test_a_driver_that_gives_no_answer_ends_no_training_and_is_not_asked_again(monkeypatch):
    """On the event loop it would keep the node from its log and its coordinator, too."""
    monkeypatch.setattr(energy, "ASK_S", 0.05)
    asked, gone = [], threading.Event()
    counters = Counters(True, lambda: asked.append(1) or gone.wait(5) or 7)
    try:
        assert await asyncio.wait_for(counters.read(), 2) is None
        assert await counters.read() is None and asked == [1]
    finally:
        gone.set()
    assert await Counters(True, lambda: 7).read() == 7
    for silent in (NodeSettings(device="cpu"), NodeSettings(device="cuda", watts=300.0)):
        assert not counters_of(silent).asks
    assert counters_of(NodeSettings(device="cuda")).asks
