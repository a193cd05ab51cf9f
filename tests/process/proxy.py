"""A TCP proxy that does to a connection what networks do: delay, silence, cuts, lost replies."""

from __future__ import annotations

import contextlib
import socket
import threading
from enum import Enum

__all__ = ["Fault", "Proxy"]

#: Bytes that are passed on at once.
CHUNK = 65_536

#: Seconds that stopping waits for a thread.
STOP = 10.0


class Fault(Enum):
    """What happens to what passes from now on, on old connections and new ones."""

    NONE = "everything passes"
    #: the server does the work and its answer is thrown away
    LOSE_REPLIES = "replies are lost"
    #: the server does the work and the connection breaks instead of its answer
    CUT_ON_REPLY = "the connection is cut when a reply comes"
    #: half-open: accepted, and nothing passes either way
    SILENCE = "nothing passes"
    #: connections are closed as soon as they are made
    REFUSE = "connections are refused"


class Proxy:
    """Listens on a free port of the loopback interface and passes on to a server.

    Parameters:
        host, port: the server.
        delay: seconds that each chunk waits, in both directions; may be changed at any time.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", *, delay: float = 0.0) -> None:
        self.delay = delay
        self.fault = Fault.NONE
        #: replies that were lost or cut off so far
        self.lost = 0
        self._server = (host, port)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._begin(self._accept)

    def cut(self) -> None:
        """Break every connection now, without a word to either side's protocol."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._close(pair)

    def stop(self) -> None:
        """Close everything and wait for the threads."""
        self._stopping.set()
        # Closing alone does not wake a thread that waits in accept().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(STOP)
            assert not thread.is_alive(), f"{thread.name} does not end"

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _begin(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.fault is Fault.REFUSE:
                client.close()
                continue
            try:
                server = socket.create_connection(self._server)
            except OSError:
                client.close()
                continue
            pair = (client, server)
            with self._lock:
                self._pairs.add(pair)
                too_late = self._stopping.is_set()
            if too_late:
                # Nobody would cut it any more.
                self._close(pair)
                return
            self._begin(self._pass_on, client, server, pair, False)
            self._begin(self._pass_on, server, client, pair, True)

    def _pass_on(
        self,
        source: socket.socket,
        sink: socket.socket,
        pair: tuple[socket.socket, socket.socket],
        replies: bool,
    ) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(CHUNK):
                if self.delay:
                    self._stopping.wait(self.delay)
                if self.fault is Fault.SILENCE:
                    continue
                if replies and self.fault in (Fault.LOSE_REPLIES, Fault.CUT_ON_REPLY):
                    self.lost += 1
                    if self.fault is Fault.CUT_ON_REPLY:
                        break
                    continue
                sink.sendall(chunk)
        self._close(pair)

    def _close(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            self._pairs.discard(pair)
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
