"""The connection to Redis: scripts, one server or many, forks, and what its errors mean."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from typing import Any, NoReturn

import redis
import redis.cluster
import redis.sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ClusterError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.retry import Retry

from ..errors import StoreCorrupt, StoreError, StoreFull, StoreReadOnly, StoreUnavailable
from ..native import across_forks, allocate_lock
from .redis_url import Target
from .redis_wire import Wire

__all__ = ["Call", "Link", "Script", "load_script"]

# Its own types differ from version to version, and much of it has none.
_driver: Any = redis

#: Share of the timeout that WAIT may take: its answer must come before the socket gives up.
WAIT_SHARE = 0.8


#: Files before a script's own, where it has no usual case: see ``lua/shard.lua``.
BEFORE = {
    "lookup": ("shard", "head", "record"),
    "expire": ("shard", "head"),
    "page": ("shard",),
    "census": ("shard",),
}
#: Where it has one: what that needs, and what only the other cases need.
USUAL = {
    "claim": (("shard",), ("head", "record")),
    "renew": (("shard", "head"), ("record",)),
    "settle": (("shard", "head"), ("record",)),
}


class Script:
    """A script and the digest that the server knows it by."""

    def __init__(self, source: str) -> None:
        self.source = source.encode()
        self.digest = hashlib.sha1(self.source, usedforsecurity=False).hexdigest().encode()


def load_script(name: str) -> Script:
    """A file of ``lua/``, after what it shares with others: see ``shard.lua``."""
    if name not in USUAL:
        return Script(_read(*BEFORE.get(name, ()), name))
    first, others = USUAL[name]
    unusual = f"local function unusual()\n{_read(*others, name)}end\n"
    return Script(_read(*first) + unusual + _read(f"{name}_usual"))


def _read(*names: str) -> str:
    folder = files(__package__).joinpath("lua")
    return "".join(folder.joinpath(f"{name}.lua").read_text("utf-8") for name in names)


class Call:
    """A script and what it is asked; its keys are in one slot."""

    __slots__ = ("arguments", "keys", "script")

    def __init__(self, script: Script, keys: Sequence[bytes], arguments: Sequence[Any]) -> None:
        self.script = script
        self.keys = keys
        self.arguments = arguments

    def by_digest(self) -> tuple[Any, ...]:
        return ("EVALSHA", self.script.digest, len(self.keys), *self.keys, *self.arguments)

    def by_source(self) -> tuple[Any, ...]:
        return ("EVAL", self.script.source, len(self.keys), *self.keys, *self.arguments)


class Link:
    """Connections that are made on first use, once a process.

    The driver repeats nothing: a call whose answer was lost is repeated by who made it, with the
    same grant.

    Parameters:
        target: which servers.
        timeout: seconds for a connection, and for an answer.
    """

    def __init__(self, target: Target, timeout: float) -> None:
        self._target = target
        self._timeout = timeout
        self._known_nodes = set(target.hosts)
        self._wait = ("WAIT", target.wait_replicas, int(timeout * 1000 * WAIT_SHARE))
        self._guarded = _Guarded(self._connected, self._failed)
        self._start_anew()
        across_forks(self)

    def _start_anew(self) -> None:
        self._lock = allocate_lock()
        self._client: Any = None
        self._wire: Wire | None = None
        self._pid = os.getpid()

    def run(self, calls: Sequence[Call], *, writes: bool = False) -> list[Any]:
        """The answers of scripts; what goes to one server goes in one round trip.

        Raises:
            StoreError.
        """
        with self._guarded as client:
            answers = self._run(client, calls, writes and self._target.wait_replicas > 0)
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            return answers

    def run_apart(self, calls: Sequence[Call]) -> list[Any]:
        """As ``run``, but where a call meets what cannot be read, the error is in its place.

        Raises:
            StoreError: of any other kind.
        """
        with self._guarded as client:
            answers = self._run(client, calls, wait=False)
            for place, answer in enumerate(answers):
                if isinstance(answer, Exception):
                    answers[place] = self._explain(answer)
                    if not isinstance(answers[place], StoreCorrupt):
                        raise answer
            return answers

    def ask(self, *command: Any) -> Any:
        """The answer to one command.

        Raises:
            StoreError.
        """
        with self._guarded as client:
            return client.execute_command(*command)

    def servers(self) -> dict[str, Any]:
        """A client of each server that has keys of its own, by name.

        Raises:
            StoreError.
        """
        with self._guarded as client:
            if self._target.kind != "cluster":
                return {"": client}
            return {node.name: client.get_redis_connection(node) for node in client.get_primaries()}

    def on_server(self, server: Any, *command: Any) -> Any:
        """The answer of one of ``servers``.

        Raises:
            StoreError.
        """
        with self._guarded:
            return server.execute_command(*command)

    def close(self) -> None:
        """Close this process's connections. Idempotent."""
        with self._lock:
            client, self._client = self._client, None
            wire, self._wire = self._wire, None
        if client is not None and self._pid == os.getpid():
            client.close()
            if wire is not None:
                wire.close()

    def before_fork(self) -> None:
        """Nothing is held across a fork."""

    def after_fork_in_parent(self) -> None:
        """Nothing was held."""

    def after_fork_in_child(self) -> None:
        self._abandon()

    def _abandon(self) -> None:
        """Leave the parent's sockets alone, also when they would be collected."""
        if self._client is not None:
            _inherited.append((self._client, self._wire))
        self._start_anew()

    def _connected(self) -> Any:
        # A fork made by C code may have told nobody.
        if self._pid != os.getpid():
            self._abandon()
        client = self._client
        if client is None:
            with self._lock:
                client = self._client
                if client is None:
                    client = self._connect()
                    if self._target.kind == "single":
                        self._wire = Wire(client.connection_pool)
                    self._client = client
        return client

    def _connect(self) -> Any:
        options = {
            **self._target.connection,
            "socket_timeout": self._timeout,
            "socket_connect_timeout": self._timeout,
            # One attempt: the driver must not repeat what may have been done.
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        if self._target.kind == "sentinel":
            own = {"socket_timeout": self._timeout, **self._target.sentinel_kwargs}
            own.setdefault("retry", Retry(NoBackoff(), 0))
            sentinel = _driver.sentinel.Sentinel(self._target.hosts, sentinel_kwargs=own, **options)
            return sentinel.master_for(self._target.master_name)
        if self._target.kind == "cluster":
            return self._connect_to_cluster(options)
        if self._target.path:
            return _driver.Redis(unix_socket_path=self._target.path, **options)
        host, port = self._target.hosts[0]
        return _driver.Redis(host=host, port=port, **options)

    def _connect_to_cluster(self, options: dict[str, Any]) -> Any:
        nodes = [_driver.cluster.ClusterNode(*host) for host in self._known_nodes]
        try:
            client = _driver.cluster.RedisCluster(
                startup_nodes=nodes, require_full_coverage=False, **options
            )
        except IndexError as error:
            # The driver takes the first of the masters that it found.
            raise RedisClusterException("no node of the cluster has a slot") from error
        self._known_nodes |= {(node.host, node.port) for node in client.get_nodes()}
        return client

    def _run(self, client: Any, calls: Sequence[Call], wait: bool) -> list[Any]:
        if self._target.kind != "cluster":
            return self._run_on(client, calls, wait)
        answers: list[Any] = [None] * len(calls)
        for node, numbers in self._by_node(client, calls):
            server = client.get_redis_connection(node)
            found = self._run_on(server, [calls[number] for number in numbers], wait)
            for number, answer in zip(numbers, found, strict=True):
                answers[number] = self._follow(client, calls[number], answer, wait)
        return answers

    def _by_node(self, client: Any, calls: Sequence[Call]) -> Iterator[tuple[Any, list[int]]]:
        groups: dict[str, tuple[Any, list[int]]] = {}
        for number, call in enumerate(calls):
            node = client.get_node_from_key(call.keys[0])
            groups.setdefault(node.name, (node, []))[1].append(number)
        yield from groups.values()

    def _follow(self, client: Any, call: Call, answer: Any, wait: bool) -> Any:
        """The answer of the node that has the slot now, where the first one named another."""
        if not isinstance(answer, (AskError, TryAgainError)):
            return answer
        if wait:
            # WAIT counts the writes of one connection, and which one follows is the driver's.
            client.nodes_manager.initialize()
            return answer
        try:
            return client.execute_command(*call.by_source())
        except ResponseError as error:
            return error

    def _run_on(self, server: Any, calls: Sequence[Call], wait: bool) -> list[Any]:
        answers = self._send(server, [call.by_digest() for call in calls], wait)
        unknown = [n for n, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            again = self._send(server, [calls[number].by_source() for number in unknown], wait)
            for number, answer in zip(unknown, again, strict=True):
                answers[number] = answer
        return answers

    def _send(self, server: Any, commands: list[tuple[Any, ...]], wait: bool) -> list[Any]:
        if wait:
            commands = [*commands, self._wait]
        wire = self._wire
        if wire is not None:
            answers = wire.exchange(commands)
        else:
            pipeline = server.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            answers = pipeline.execute(raise_on_error=False)
        if not wait:
            return answers
        *answers, replicas = answers
        if isinstance(replicas, Exception):
            raise replicas
        if replicas < self._target.wait_replicas:
            raise _TooFewReplicas(replicas)
        return answers

    def _failed(self, error: Exception) -> NoReturn:
        self._recover(error)
        raise self._explain(error) from error

    def _recover(self, error: Exception) -> None:
        """Ask anew who the master is, where the answer may have changed."""
        client = self._client
        if client is None:
            return
        if self._target.kind == "cluster":
            if not isinstance(error, ResponseError) or isinstance(error, ClusterDownError):
                self.close()
        elif isinstance(error, ReadOnlyError) or "READONLY" in str(error):
            client.connection_pool.disconnect(inuse_connections=False)
            if self._wire is not None:
                self._wire.close()

    def _explain(self, error: Exception) -> StoreError:
        name, text = self._target.name, str(error)
        if isinstance(error, _TooFewReplicas):
            return StoreUnavailable(
                name,
                f"{error.replicas} of {self._target.wait_replicas} replicas have the write "
                "(wait_replicas); it may be lost in a failover: repeat it",
            )
        if _CORRUPT in text:
            # Without what Lua adds about the script.
            return StoreCorrupt(name, text.partition(_CORRUPT)[2].partition(" script: ")[0])
        for kinds, phrase, error_class, advice in _KINDS:
            if isinstance(error, kinds) or (phrase and phrase in text):
                if kinds == _READ_ONLY and self._target.kind != "single":
                    return StoreUnavailable(name, f"{text}: a failover may be under way")
                return error_class(name, f"{text}: {advice}" if advice else text)
        return StoreError(name, f"{text}: is this a Redis server of version 5 or newer?")


class _Guarded:
    """In a ``with`` of it, what the driver raises becomes one of ours; its value is the client."""

    __slots__ = ("_connect", "_fail")

    def __init__(self, connect: Callable[[], Any], fail: Callable[[Exception], NoReturn]) -> None:
        self._connect = connect
        self._fail = fail

    def __enter__(self) -> Any:
        try:
            return self._connect()
        except _DRIVERS_OWN as error:
            self._fail(error)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (*_DRIVERS_OWN, _TooFewReplicas)):
            self._fail(error)


class _TooFewReplicas(Exception):
    def __init__(self, replicas: int) -> None:
        super().__init__(replicas)
        self.replicas = replicas


#: All that the driver raises; of a cluster's errors some are no ``RedisError``.
_DRIVERS_OWN = (RedisError, RedisClusterException, OSError)

#: What our scripts begin their own errors with.
_CORRUPT = "CORRUPT record: "

_READ_ONLY: tuple[type[Exception], ...] = (ReadOnlyError,)

#: Which error it is by its class or by its text: inside a script on older servers, and from
#: redis-py 5, which knows the class in a cluster only.
_KINDS: tuple[
    tuple[tuple[type[Exception], ...], str, Callable[[str, str], StoreError], str], ...
] = (
    ((OutOfMemoryError,), "OOM command", StoreFull, "give it more memory, or keep less"),
    (_READ_ONLY, "READONLY ", StoreReadOnly, "it is a replica: name its master"),
    ((AuthenticationError,), "NOAUTH ", StoreUnavailable, "see to the user and the password"),
    (
        (NoPermissionError,),
        "NOPERM ",
        StoreReadOnly,
        "give the user the commands and keys that docs/{stores,brokers}/redis.md list",
    ),
    ((), "WRONGTYPE ", StoreCorrupt, "a key is of another type: who else uses this prefix?"),
    ((), "MISCONF ", StoreUnavailable, "it cannot save and refuses writes: see to its disk"),
    ((), "NOREPLICAS ", StoreUnavailable, "too few replicas follow (min-replicas-to-write)"),
    ((), "BUSY ", StoreUnavailable, "somebody's script runs too long"),
    ((BusyLoadingError,), "", StoreUnavailable, "it starts"),
    (
        (MovedError,),
        "MOVED ",
        StoreUnavailable,
        "the server is part of a cluster: use redis+cluster://, or the slot is moving",
    ),
    (
        (
            redis.ConnectionError,
            redis.TimeoutError,
            ClusterError,
            AskError,
            TryAgainError,
            RedisClusterException,
            OSError,
        ),
        "",
        StoreUnavailable,
        "",
    ),
)

#: Clients of a parent process: closing them here could end the parent's connections.
_inherited: list[Any] = []
