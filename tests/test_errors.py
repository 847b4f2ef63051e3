"""Errors go from a worker on one machine to the one who collects on another."""

import pickle

import pytest

from gateway.errors import EngineDown, EngineRefused, GatewayError, NoTierLeft


@pytest.mark.parametrize(
    "error",
    [
        EngineDown("small", "nobody answers"),
        EngineRefused("small", 429, "too many", 2.5),
        NoTierLeft([("small", "down")], 1.5),
        GatewayError("said"),
    ],
)
def test_an_error_keeps_its_type_its_words_and_its_facts_on_its_way_to_another_process(error: GatewayError) -> None:
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is type(error)
    assert (str(there), there.args, vars(there)) == (str(error), error.args, vars(error))
