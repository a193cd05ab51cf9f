"""Checks of arguments: each returns nothing, or names the argument that is wrong. Pure."""

from __future__ import annotations

from .errors import InvalidArgument

__all__ = [
    "MAX_DURATION_MS",
    "MAX_KEY_BYTES",
    "MAX_TOKEN",
    "are_counts",
    "are_names",
    "check_count",
    "check_duration",
    "check_flag",
    "check_name",
    "check_text",
    "printable",
    "shown",
]

#: Longest queue name or task id, in bytes of UTF-8: one index entry stays a bounded cost.
MAX_KEY_BYTES = 10_240
#: Characters that are never more bytes than that, for none takes more than four.
_SHORT = MAX_KEY_BYTES // 4

#: Tokens stay exact as a double (Lua, JavaScript, JSON).
MAX_TOKEN = 2**53 - 1

#: Longest duration that a verb takes, in milliseconds (ten years): beyond it is a slip of units.
MAX_DURATION_MS = 10 * 365 * 24 * 3600 * 1000


#: Longest part of a wrong value that a message shows, in characters.
MAX_SHOWN = 100


def shown(value: object) -> str:
    """A wrong value as a message may show it: short, and whatever its ``repr`` does."""
    try:
        text = repr(value)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        # A number of many thousand digits, for one.
        return f"{type(value).__name__} that cannot be shown ({error})"[:MAX_SHOWN]
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def printable(text: str) -> str:
    """A text on one line that any stream takes: what cannot be printed is escaped."""
    if text.isprintable():
        return text
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(escaped)


def are_names(*values: object) -> bool:
    """Whether ``check_name`` surely passes each of them: a glance, for nearly every call."""
    for value in values:  # noqa: SIM110 - a generator takes twice as long
        if type(value) is not str or not 0 < len(value) <= _SHORT:
            return False
    return True


def are_counts(*values: object) -> bool:
    """Whether each is a whole number that may count something; a flag is none."""
    for value in values:  # noqa: SIM110 - as above
        if type(value) is not int or not 0 <= value <= MAX_TOKEN:
            return False
    return True


def check_name(argument: str, value: object) -> None:
    """A key part or an identity: any Unicode text of 1 to ``MAX_KEY_BYTES`` bytes.

    Raises:
        InvalidArgument: naming ``argument``.
    """
    # Nearly every one.
    if type(value) is str and 0 < len(value) <= _SHORT:
        return
    if not isinstance(value, str):
        raise InvalidArgument(argument, f"expected text, got {type(value).__name__}")
    if not value:
        raise InvalidArgument(argument, "must not be empty")
    if len(value.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES:
        raise InvalidArgument(argument, f"longer than {MAX_KEY_BYTES} bytes")


def check_text(argument: str, value: object) -> None:
    """Like ``check_name``, but may be empty.

    Raises:
        InvalidArgument: naming ``argument``.
    """
    if value != "":
        check_name(argument, value)


def check_duration(argument: str, value: object) -> None:
    """A positive whole number of milliseconds.

    Raises:
        InvalidArgument: naming ``argument``.
    """
    check_count(argument, value, least=1, most=MAX_DURATION_MS, unit=" milliseconds")


def check_count(
    argument: str, value: object, least: int, most: int = MAX_TOKEN, unit: str = ""
) -> None:
    """A whole number in a range.

    Raises:
        InvalidArgument: naming ``argument``.
    """
    # Nearly every one; a flag is no count.
    if type(value) is int and least <= value <= most:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        of_unit = unit and f" of{unit}"
        raise InvalidArgument(argument, f"expected a whole number{of_unit}, got {shown(value)}")
    if not least <= value <= most:
        raise InvalidArgument(argument, f"must be from {least} to {most}{unit}, got {shown(value)}")


def check_flag(argument: str, value: object) -> None:
    """True or False, and nothing that is merely taken for one of them.

    Raises:
        InvalidArgument: naming ``argument``.
    """
    if not isinstance(value, bool):
        raise InvalidArgument(argument, f"expected True or False, got {shown(value)}")
