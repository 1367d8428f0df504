"""A member's word about its data becomes an entry, whoever brings it, and nobody else's does."""

from __future__ import annotations

import base64
import json
import time

import pytest
from attacks.ports import serving
from typer.testing import CliRunner

from dure.audit.data_cli import app
from dure.errors import Refused
from dure.statements.kinds import DataCommitment
from dure.statements.statement import Chain, open_statement, seal
from dure_coordinator.log.intake import Intake
from dure_coordinator.rpc.admin import Admin

NAMES = ("ara", "bora", "chan", "dana")


async def test_a_registered_data_set_is_entered_once_and_only_under_the_members_key(tmp_path):
    async with serving(tmp_path, names=NAMES) as port:
        await port.coordinator.start()
        ara = port.founded.members["ara"]
        (tmp_path / "a.txt").write_text("text")
        words = ["register", str(tmp_path / "a.txt"), "--name", "news", "--licence", "MIT", "--dir", str(ara.directory), "--json"]
        told = json.loads(CliRunner().invoke(app, words).stdout)
        passed_on = json.loads((ara.directory / "ara.data.json").read_text())
        for _ in range(2):
            assert (await Admin(port.coordinator)._enter(passed_on, b""))["statements"] == 2
        there = await port.coordinator.store.statements(kind=DataCommitment.kind)
        assert [open_statement(row.envelope, DataCommitment, [ara.member.signing_key]).fact.root.hex() for row in there] == [told["root"]]
        fact = open_statement(base64.b64decode(passed_on["statements"][1]), DataCommitment, [ara.member.signing_key]).fact
        for key in (port.founded.nodes["ara"].key, port.founded.members["bora"].signing_key, port.founded.hub.signing_key):
            with pytest.raises(Refused):
                await Intake(port.coordinator.fleet).enter("ara", seal(fact, key, Chain(), time.time())[0].to_bytes())
