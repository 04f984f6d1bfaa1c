"""The models that the API lists."""

from __future__ import annotations

import pytest

from jobs.protocol.errors import NotFoundError
from jobs.protocol.served_models import check_model, model, model_list


def test_there_is_one_model() -> None:
    assert model_list() == {"object": "list", "data": [model("helixnet")]}
    assert model("helixnet")["id"] == "helixnet"
    check_model("helixnet")


@pytest.mark.parametrize("name", ["gpt-5", "", "HELIXNET"])
def test_other_models_are_not_found(name: str) -> None:
    for look_up in (model, check_model):
        with pytest.raises(NotFoundError) as excinfo:
            look_up(name)
        assert excinfo.value.code == "model_not_found"
