"""What in the settings of a Redis broker does not go with claims."""

from __future__ import annotations

from typing import Any

__all__ = ["find_concerns"]


def find_concerns(connection: Any, *, keep_finished: float, has_own_store: bool) -> list[str]:
    """A sentence for each concern.

    Parameters:
        connection: a kombu connection on a Redis transport, connected or not.
        keep_finished: ``claims_keep_finished``, in seconds; 0: forgotten at once, on purpose.
        has_own_store: ``claims_url`` names another place than the broker.
    """
    options, channel = connection.transport_options, connection.transport.Channel
    timeout = options.get("visibility_timeout", channel.visibility_timeout)
    concerns = []
    if not isinstance(timeout, int) or isinstance(timeout, bool) or timeout < 1:
        concerns.append(
            f"visibility_timeout in broker_transport_options is {timeout!r}: "
            "set it to whole seconds, 1 or more"
        )
    elif 0 < keep_finished < timeout:
        concerns.append(
            f"claims_keep_finished is {keep_finished:g} s, shorter than the broker's "
            f"visibility_timeout of {timeout} s: a message that comes again after that runs again; "
            "set it to twice the timeout, or leave it unset"
        )
    if not options.get("ack_emulation", channel.ack_emulation):
        concerns.append(
            "ack_emulation in broker_transport_options is off: "
            "what a killed worker had is lost, with claims too"
        )
    servers = [url for url in connection.alt if not url.startswith("sentinel://")]
    if len(servers) > 1:
        place = "messages" if has_own_store else "messages and claims"
        concerns.append(
            f"broker_url names {len(servers)} servers, and only the first one's {place} are looked "
            "after: use sentinels"
        )
    return concerns
