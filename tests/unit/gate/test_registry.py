"""What the registry says of aliases that lead nowhere, and of models that are none of ours."""

from __future__ import annotations

from typing import Any

import pytest

from configs.exit_codes import UsageError
from gate import registry
from serve_app import mlflow_client as names
from tests.unit.gate.registry_double import Registry


def test_alias_that_leads_nowhere_is_not_the_same_as_none() -> None:
    double = Registry()
    client: Any = double
    assert registry.aliased(client, "m", names.PRODUCTION) is None
    double.create_registered_model("m", {names.KIND: names.KIND_MODEL}, "")
    assert registry.aliased(client, "m", names.PRODUCTION) is None
    double.models["m"].aliases[names.PRODUCTION] = "7"
    with pytest.raises(
        UsageError, match=r"'production' of model 'm' points at version 7, which does not exist.*rollback"
    ):
        registry.aliased(client, "m", names.PRODUCTION)
    assert registry.aliases(client, "m") == {names.PRODUCTION: "7"}
