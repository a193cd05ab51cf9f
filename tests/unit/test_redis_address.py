"""The store beside a Redis broker, by every form of address that kombu takes."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from celery import Celery
from celery_claims import install
from celery_claims.brokers import open_deliveries
from celery_claims.brokers.redis_address import options_of, url_of
from celery_claims.claims import claims_of
from celery_claims.errors import ConfigurationError
from celery_claims.places import default_options, default_url
from celery_claims.stores.redis_url import Target, parse_url
from kombu import Connection
from kombu.transport.redis import Channel
from redis import CredentialProvider

from tests.process.versions import CREDENTIAL_PROVIDERS

pytestmark = pytest.mark.oldest


def target(url: str, **options: Any) -> Target:
    connection = Connection(url, **options)
    return parse_url(default_url(connection), default_options(connection))


def test_a_server_and_its_database() -> None:
    found = target("redis://user:p%40ss@broker:6380/3")
    assert (found.kind, found.hosts) == ("single", (("broker", 6380),))
    assert found.connection == {"username": "user", "password": "p@ss", "db": 3}
    assert "p@ss" not in found.name


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("redis://", ("127.0.0.1", 6379)),
        ("redis://broker", ("broker", 6379)),
        ("redis://:secret@[::1]:1", ("::1", 1)),
        ("redis://first;redis://second", ("first", 6379)),
    ],
)
def test_hosts(url: str, host: tuple[str, int]) -> None:
    assert target(url).hosts == (host,)


@pytest.mark.parametrize(
    ("url", "given", "expected"),
    [
        ("rediss://broker?ssl_cert_reqs=required&ssl_ca_certs=/ca", None,
         {"ssl": True, "ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": "/ca"}),
        ("redis://broker", {"ssl_cert_reqs": None}, {"ssl": True, "ssl_cert_reqs": "none"}),
        ("redis://broker", {"ssl_keyfile": "/key"}, {"ssl": True, "ssl_keyfile": "/key"}),
        ("redis://broker", None, {}),
        # Kombu connects without TLS here, and so must we.
        ("redis://broker", True, {}),
    ],
)  # fmt: skip
def test_tls(url: str, given: Any, expected: dict[str, Any]) -> None:
    found = target(url, ssl=given).connection
    assert {name: found[name] for name in found if name.startswith("ssl")} == expected


def test_a_socket() -> None:
    found = target("redis+socket://user:pass@/run/re%20dis.sock?virtual_host=4")
    assert found.path == "/run/re dis.sock"
    assert found.connection == {"username": "user", "password": "pass", "db": 4}


def test_sentinels() -> None:
    found = target(
        "sentinel://:secret@one:26380/2;sentinel://two/2",
        transport_options={
            "master_name": "main",
            "sentinel_kwargs": {"password": "of the sentinels"},
            "global_keyprefix": "ours-",
        },
    )
    assert (found.kind, found.master_name) == ("sentinel", "main")
    assert found.hosts == (("one", 26380), ("two", 26379))
    assert found.connection == {"password": "secret", "db": 2}
    assert found.sentinel_kwargs == {"password": "of the sentinels"}
    assert found.prefix == b"ours-claims:"


def test_one_sentinel() -> None:
    found = target("sentinel://one/1", transport_options={"master_name": "main"})
    assert found.hosts == (("one", 26379),)


def test_sentinels_need_the_name_of_their_master() -> None:
    with pytest.raises(ConfigurationError, match="master_name") as caught:
        target("sentinel://one/1")
    assert caught.value.setting == "broker_transport_options"


with_provider = pytest.mark.skipif(
    not CREDENTIAL_PROVIDERS, reason="credential providers came with kombu 5.6"
)


class Provider(CredentialProvider):
    """Of a test."""


@with_provider
@pytest.mark.parametrize(
    "url",
    [
        "redis://user:pass@broker?credential_provider={}",
        "redis+socket:///run/redis.sock?credential_provider={}",
    ],
)
def test_a_credential_provider_takes_the_place_of_a_password(url: str) -> None:
    found = target(url.format("redis.UsernamePasswordCredentialProvider")).connection
    assert type(found["credential_provider"]).__name__ == "UsernamePasswordCredentialProvider"
    assert "password" not in found


@with_provider
def test_an_instance_of_one() -> None:
    provider = Provider()
    assert (
        target("redis://broker", credential_provider=provider).connection["credential_provider"]
        is provider
    )


def test_options_of_the_sockets_are_taken_over() -> None:
    given = {"socket_keepalive": True, "health_check_interval": 10, "visibility_timeout": 5}
    connection = Connection("redis://broker", transport_options=given)
    found = options_of(connection)
    assert {name: found[name] for name in given if name in found} == {
        "socket_keepalive": True,
        "health_check_interval": 10,
    }
    assert url_of(connection) == "redis://broker:6379"


def test_other_brokers_have_no_options() -> None:
    assert default_options(Connection("memory://")) == {}


def test_a_key_prefix_with_braces_is_no_prefix_of_a_store() -> None:
    """But a broker may have one, whose messages are looked after all the same."""
    connection = Connection("redis://broker", transport_options={"global_keyprefix": "{x}"})
    with pytest.raises(ConfigurationError, match="global_keyprefix") as caught:
        default_options(connection)
    assert caught.value.setting == "claims_url"
    assert open_deliveries(connection, timeout=1.0, stale_after=1.0) is not None


def test_a_key_prefix_of_a_channel_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Channel, "global_keyprefix", "own-")
    assert target("redis://broker").prefix == b"own-claims:"


@pytest.mark.parametrize("own", [{}, {"global_keyprefix": "mine-"}])
def test_options_of_the_store_go_with_those_of_the_broker(own: dict[str, str]) -> None:
    """The broker's password and prefix stay; what is said for the claims wins."""
    app = Celery("proj", broker="sentinel://one:26379", set_as_current=False)
    app.conf.broker_transport_options = {
        "master_name": "mymaster",
        "sentinel_kwargs": {"password": "secret"},
        "global_keyprefix": "theirs-",
    }
    install(app, store_options={"wait_replicas": 1, "slots": 4, **own})
    found = claims_of(app)
    assert found is not None
    target = parse_url(found.url, found.url_options)
    assert (target.wait_replicas, target.slots) == (1, 4)
    assert target.sentinel_kwargs["password"] == "secret"
    assert target.prefix.startswith(own.get("global_keyprefix", "theirs-").encode())


@pytest.mark.parametrize("url", ["sqlite:///x.db", "redis://localhost", "memory://x"])
def test_an_option_that_the_store_does_not_have_is_refused_by_name(url: str) -> None:
    app = Celery("proj", broker="memory://", set_as_current=False)
    install(app, url=url, store_options={"slotz": 4})
    found = claims_of(app)
    assert found is not None
    with pytest.raises(ConfigurationError, match="slotz"):
        found.open_store()
