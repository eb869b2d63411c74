# mypy: allow-untyped-calls
from nostrvpn.paths.states import LIVE, TRANSITIONS, LinkState


def test_every_state_can_be_reached_and_left():
    assert set(TRANSITIONS) == set(LinkState)
    reached = {LinkState.IDLE}
    while True:
        more = reached | {after for state in reached for after in TRANSITIONS[state]}
        if more == reached:
            break
        reached = more
    assert reached == set(LinkState)
    assert all(TRANSITIONS.values())
    assert all(state not in after for state, after in TRANSITIONS.items())


def test_data_is_only_believed_of_a_path_that_answered():
    before = {state for state, after in TRANSITIONS.items() if LinkState.CONNECTED in after}
    assert before == {LinkState.VALIDATED}
    assert set(LIVE) == {LinkState.VALIDATED, LinkState.CONNECTED}
