import pytest

from nostrvpn.errors import UserError
from nostrvpn.lab.patience import LabTimeout, patient, wait_until


def test_patience_scales_every_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOSTRVPN_LAB_PATIENCE", "2.5")
    assert patient(4) == 10


@pytest.mark.parametrize("text", ["", "0", "-1", "much", "inf", "nan"])
def test_a_patience_that_is_no_positive_number_is_refused(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("NOSTRVPN_LAB_PATIENCE", text)
    with pytest.raises(UserError, match="NOSTRVPN_LAB_PATIENCE"):
        patient(1)


def test_waiting_returns_what_the_condition_found() -> None:
    found = iter([None, "", "it"])
    assert wait_until(lambda: next(found), "it") == "it"


def test_waiting_in_vain_names_what_was_awaited_and_what_was_seen() -> None:
    with pytest.raises(LabTimeout, match="the moon") as caught:
        wait_until(lambda: False, "the moon", timeout=0.0, evidence=lambda: "only clouds")
    assert "only clouds" in str(caught.value)
