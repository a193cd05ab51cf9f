"""A batch of which the store refuses one element: who pays for it. Pure: it only calls the verb."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from .errors import StoreError, StoreFull, StoreReadOnly, StoreUnavailable

__all__ = ["ask_in_parts"]

Q = TypeVar("Q")
A = TypeVar("A")

#: These say something of the store, not of what it was asked: no part of the batch fares better.
OF_THE_STORE = (StoreUnavailable, StoreReadOnly, StoreFull)


def ask_in_parts(
    verb: Callable[[Sequence[Q]], list[A]], batch: Sequence[Q]
) -> list[A | StoreError]:
    """The answers of a verb to a batch; where it refuses an element, the error in its place.

    A batch that is refused is halved until what is refused stands alone, so that one record that
    cannot be read costs its own answer and nobody else's. Of n elements and one bad one that is
    2 log n calls more, and 2n - 1 calls if all are bad.

    Parameters:
        verb: of a store. It is asked again for what a refused call may have done already; see
            "Repeating" in ``stores.base``.
        batch: what to ask.
    Returns:
        an answer or an error for each element, in order.
    Raises:
        StoreUnavailable, StoreReadOnly, StoreFull: of the whole store; part of it may be done.
        StoreError: of an empty batch.
    """
    try:
        return list(verb(batch))
    except OF_THE_STORE:
        raise
    except StoreError as error:
        if not batch:
            raise
        if len(batch) == 1:
            return [error]
    middle = len(batch) // 2
    return ask_in_parts(verb, batch[:middle]) + ask_in_parts(verb, batch[middle:])
