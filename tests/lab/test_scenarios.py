"""Every registered scenario ends as it says: direct where it can be, honest where it cannot."""

import json

import pytest
from rich.console import Console

from nostrvpn.lab.patience import patient
from nostrvpn.lab.scenarios import SCENARIOS, run_scenario

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(120))]

# What happens in these is looked at more closely in test_meeting.py (and two-nats is the demo).
ELSEWHERE = {"two-nats", "same-lan", "accept-input", "hard-and-easy", "two-hard"}


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in ELSEWHERE])
def test_scenario(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = run_scenario(name, Console(), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert code == 0, told
    assert told["left_behind"] == []
    if SCENARIOS[name].direct:
        assert len(told["ping_ms"]) == 2
    else:
        assert {peer["path"] for peer in told["peers"]} == {"none"}
