"""How stores write what is the same in most records, in few bytes. Pure."""

from __future__ import annotations

from ..protocol import Outcome, State

__all__ = ["CODES", "OUTCOMES", "pack_text", "state_of", "unpack_text"]

#: The outcome of a record by its code; 0 is a claimed one. Kept data depends on the order.
OUTCOMES: tuple[Outcome | None, ...] = (
    None,
    Outcome.NACKED,
    Outcome.EXPIRED,
    Outcome.REJECTED,
    Outcome.SUCCESS,
    Outcome.FAILURE,
    Outcome.RETRY,
    Outcome.IGNORED,
    Outcome.REVOKED,
    Outcome.TIMED_OUT,
    Outcome.WORKER_LOST,
    Outcome.EXHAUSTED,
)
CODES = {outcome: code for code, outcome in enumerate(OUTCOMES)}

_STATES = {None: State.CLAIMED, Outcome.NACKED: State.FREE, Outcome.EXPIRED: State.FREE}

#: First bytes of a UUID and of other hexadecimal text; none of them begins UTF-8.
_UUID, _HEX = 0xFF, 0xFE
_UUID_LENGTH, _UUID_DIGITS = 36, 32
#: Shorter hexadecimal text is not worth the looking.
_LEAST_HEX = 12


def state_of(outcome: Outcome | None) -> State:
    """What a record is that has this outcome."""
    return _STATES.get(outcome, State.FINISHED)


def pack_text(text: str) -> bytes:
    """UTF-8; a UUID or other hexadecimal text in half the bytes."""
    if len(text) == _UUID_LENGTH and text[8] == text[13] == text[18] == text[23] == "-":
        digits, first = text.replace("-", ""), _UUID
    elif len(text) >= _LEAST_HEX and not len(text) % 2:
        digits, first = text, _HEX
    else:
        return text.encode("utf-8", "surrogatepass")
    try:
        packed = bytes.fromhex(digits)
    except ValueError:
        return text.encode("utf-8", "surrogatepass")
    # Capitals, blanks or other dashes would not come back as they were.
    if packed.hex() != digits or (first == _UUID and len(digits) != _UUID_DIGITS):
        return text.encode("utf-8", "surrogatepass")
    return b"%c%b" % (first, packed)


def unpack_text(packed: bytes) -> str:
    """What ``pack_text`` packed.

    Raises:
        ValueError: it did not pack this.
    """
    first = packed[0] if packed else 0
    if first not in (_UUID, _HEX):
        return packed.decode("utf-8", "surrogatepass")
    digits = packed[1:].hex()
    if first == _HEX and len(digits) >= _LEAST_HEX:
        return digits
    if first == _HEX or len(digits) != _UUID_DIGITS:
        raise ValueError(f"{packed!r:.100} stands for no text")
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
