"""A site's rules: what they admit, what they never do, and a file that cannot be read."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from dure.errors import BadInput
from dure.secagg.ids import InstanceId, Purpose
from dure.statements.kinds import EarlierSum, NamedBase
from dure_participant import policy
from dure_participant.exchange.site import History, Sent
from dure_participant.settings import NodeSettings, assign, load

PLAN = SimpleNamespace(
    app_name="pretrain", app_sha256=b"\xab" * 32, env_sha256=b"\xcd" * 32, name="titan-7", rounds=10, w_max=500, base=None
)
NOTHING_SENT = History()


def consent(tmp_path, text: str, history=NOTHING_SENT, settings=None):
    (tmp_path / policy.FILE).write_text(text)
    return policy.consent(policy.load(tmp_path), PLAN, history, settings or NodeSettings())  # type: ignore[arg-type]


def test_without_a_file_nothing_is_allowed(tmp_path):
    assert policy.load(tmp_path) == ()


@pytest.mark.parametrize(
    ("conditions", "admits"),
    [
        ('app = "pre*"', True),
        ('app = "digits"', False),
        (f'app_sha256 = "{"ab" * 32}"', True),
        (f'app_sha256 = "{"ac" * 32}"', False),
        (f'app = "*"\nenv_sha256 = "{"cd" * 32}"', True),
        (f'app = "*"\nenv_sha256 = "{"ce" * 32}"', False),
        ('app = "*"\nrun = "titan-*"', True),
        ('app = "*"\nrun = "other"', False),
        ('app = "*"\nmax_rounds = 10', True),
        ('app = "*"\nmax_rounds = 9', False),
        ('app = "*"\nmax_weight = 499', False),
        ('app = "*"\ndevice = "cpu"', True),
        ('app = "*"\ndevice = "cuda"', False),
        ('app = "*"\nallow_when_no_earlier_runs = true', True),
    ],
)
def test_every_condition_of_a_rule_must_hold(tmp_path, conditions, admits):
    found = consent(tmp_path, f"[[allow]]\n{conditions}\n")
    assert (found is not None) == admits


def test_a_rule_may_name_the_environment_of_a_plan_that_names_none(tmp_path):
    (tmp_path / policy.FILE).write_text(f'[[allow]]\napp = "*"\nenv_sha256 = "{"ce" * 32}"\n')
    bare = SimpleNamespace(**{**vars(PLAN), "env_sha256": None})
    found = policy.consent(policy.load(tmp_path), bare, NOTHING_SENT, NodeSettings())  # type: ignore[arg-type]
    assert found is not None and found.env_sha256 == "ce" * 32


def test_no_rule_consents_after_an_earlier_run(tmp_path):
    history = History((Sent(b"\1" * 32, "train", "update", b"\2" * 32, 1, b"i", b"\3" * 32),))
    assert consent(tmp_path, '[[allow]]\napp = "*"\n', history) is None


@pytest.mark.parametrize(
    "text",
    [
        "[[allow",
        "[[allow]]\n",
        "[[allow]]\napp = 3\n",
        '[[allow]]\napp = "x"\ncolour = "red"\n',
        '[deny]\napp = "x"\n',
        '[[allow]]\napp = "x"\nallow_when_no_earlier_runs = false\n',
        '[[allow]]\napp = "x"\nenv_sha256 = "CD"\n',
        "allow = 1\n",
    ],
)
def test_a_policy_that_cannot_be_read_allows_nothing_and_says_why(tmp_path, text):
    with pytest.raises(BadInput, match=policy.FILE):
        consent(tmp_path, text)


def test_settings_for_the_node_and_for_its_apps_live_in_one_file(tmp_path):
    assign(tmp_path, {"data": "/srv/text", "device": "cuda", "threads": 2, "partition-id": 0})
    found = load(tmp_path)
    assert (found.device, found.threads) == ("cuda", 2)
    assert dict(found.node_config) == {"data": "/srv/text", "partition-id": 0}


def test_a_setting_of_the_wrong_type_is_named(tmp_path):
    with pytest.raises(BadInput, match="threads must be int"):
        assign(tmp_path, {"threads": "many"})


def test_no_rule_consents_to_another_sum_on_weights_that_were_summed_on_even_at_a_node_that_was_not_there(tmp_path):
    (tmp_path / policy.FILE).write_text('[[allow]]\napp = "*"\n')
    before = EarlierSum(InstanceId(b"c" * 16, b"r" * 32, 1, Purpose.SCALARS).tlv(), "evaluate", "scalars", ("a", "b", "c"))
    base = NamedBase(b"w" * 32, b"t" * 32, 7, "run 3f9a, after round 4", b"r" * 32, None, (before,))
    plan = SimpleNamespace(**{**vars(PLAN), "base": base})
    assert policy.consent(policy.load(tmp_path), plan, NOTHING_SENT, NodeSettings()) is None
    plan.base = replace(base, earlier=())
    assert policy.consent(policy.load(tmp_path), plan, NOTHING_SENT, NodeSettings()) is not None
