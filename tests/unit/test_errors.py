"""Errors carry their facts, read as a sentence, and survive being sent to another process."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
from celery_claims import errors

EXAMPLES: list[errors.ClaimsError] = [
    errors.ConfigurationError("claims_url", "no such store"),
    errors.InvalidArgument("lease_ms", "must be positive"),
    errors.ClaimNotFound("q", "t", 7),
    errors.StaleToken("q", "t", 7),
    errors.ExtensionLimit("q", "t", 7),
    errors.StoreUnavailable("redis://h", "no answer"),
    errors.StoreCorrupt("redis://h", "damaged"),
    errors.StoreReadOnly("redis://h", "read only"),
    errors.StoreFull("redis://h", "full"),
    errors.DeliveriesExhausted("t", 20),
]


def every_error() -> list[type[errors.ClaimsError]]:
    return [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.ClaimsError)
    ]


def test_all_names_are_exported() -> None:
    assert sorted(errors.__all__) == sorted(kind.__name__ for kind in every_error())


def test_docstring_draws_every_error() -> None:
    assert errors.__doc__ is not None
    for kind in every_error():
        assert kind.__name__ in errors.__doc__


def test_every_error_that_is_raised_has_an_example() -> None:
    abstract = {errors.ClaimsError, errors.ClaimError, errors.StoreError}
    assert {type(example) for example in EXAMPLES} == set(every_error()) - abstract


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling_and_copying(error: errors.ClaimsError) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_claim_errors_carry_the_claim() -> None:
    error = errors.StaleToken("mail", "id-1", 42)
    assert (error.queue, error.task_id, error.token) == ("mail", "id-1", 42)
    assert all(part in str(error) for part in ("mail", "id-1", "42", "another owner"))


def test_store_errors_carry_the_store() -> None:
    error = errors.StoreFull("sqlite:///x.db", "no room")
    assert error.store == "sqlite:///x.db"
    assert str(error) == "sqlite:///x.db: no room"


def test_configuration_errors_are_value_errors_and_name_the_setting() -> None:
    error = errors.InvalidArgument("lease_ms", "must be positive")
    assert isinstance(error, ValueError)
    assert error.argument == error.setting == "lease_ms"
    assert str(error) == "lease_ms: must be positive"
