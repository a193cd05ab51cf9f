"""The schema of the PostgreSQL store: its names, its version, and how it is made.

A database administrator who lets no worker create anything runs what ``script`` gives, and names
``auto_create=false`` in the URL.
"""

from __future__ import annotations

import re
from importlib.resources import files

import psycopg

from ..errors import StoreCorrupt, StoreUnavailable
from .postgres_address import DEFAULT_SCHEMA, Address
from .postgres_arrays import of_one
from .postgres_sessions import Session
from .sql import load_sql

__all__ = ["SCHEMA_VERSION", "Schema", "script"]

#: The last of the migrations.
SCHEMA_VERSION = 1

#: Statements that take a batch.
VERBS = ("claim", "renew", "settle", "expire")

_NAME = re.compile(r"(@{1,3})(\w*)")


class Schema:
    """The statements for one schema and prefix, and its creation.

    Parameters:
        address: names them.
        wait: seconds that creating waits for a lock.
    """

    def __init__(self, address: Address, wait: float) -> None:
        self._address = address
        self._wait_ms = max(1, round(wait * 1000))
        self.statements = {
            name: self._render(_without_comments(block))
            for name, block in load_sql("celery_claims.stores", "postgres.sql").items()
        }
        for verb in VERBS:
            self.statements[f"{verb}_one"] = of_one(self.statements[verb])

    def ensure(self, session: Session) -> None:
        """Make the schema, or bring it up to date; does nothing to one that is.

        Raises:
            StoreCorrupt: a newer version of this package made it.
            StoreUnavailable: there is none, and the URL says to make none.
            psycopg.Error.
        """
        version = self._version(session)
        if version == SCHEMA_VERSION:
            return
        if not self._address.auto_create:
            raise StoreUnavailable(
                self._address.name,
                f"the schema {self._address.schema} is at version {version}, {SCHEMA_VERSION} is "
                "needed, and auto_create=false: run what python -m "
                "celery_claims.stores.postgres_schema prints",
            )
        with session.transaction():
            name = f"celery-claims {self._address.schema}.{self._address.prefix}"
            session.execute(self.statements["limit_wait"], {"wait": str(self._wait_ms)})
            session.execute(self.statements["serialize_migrations"], {"name": name})
            # Another worker may have been first, between the look and the lock.
            self._migrate(session, self._version(session))

    def _migrate(self, session: Session, version: int) -> None:
        for number in range(version + 1, SCHEMA_VERSION + 1):
            if number == 1:
                self._make_namespace(session)
            session.execute(self._render(_migration(number)))
            session.execute(self.statements["set_version"], {"number": number})

    def _make_namespace(self, session: Session) -> None:
        # CREATE SCHEMA IF NOT EXISTS needs the right to create even where it does nothing.
        found = session.execute(self.statements["has_schema"], {"name": self._address.schema})
        if found.fetchone() != (True,):
            session.execute(self.statements["make_schema"])

    def _version(self, session: Session) -> int:
        """The version of the schema, 0 where there is none."""
        try:
            with session.transaction():
                row = session.execute(self.statements["get_version"]).fetchone()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return 0
        version = 0 if row is None else int(row[0])
        if version > SCHEMA_VERSION:
            raise StoreCorrupt(
                self._address.name,
                f"a newer celery-claims made it (schema {version}, this version knows "
                f"{SCHEMA_VERSION}): upgrade celery-claims here too",
            )
        if version < 1:
            raise StoreCorrupt(self._address.name, f"no version ever made schema {version}")
        return version

    def _render(self, sql: str) -> bytes:
        return _render(sql, self._address.schema, self._address.prefix).encode()


def script(schema: str = DEFAULT_SCHEMA, prefix: str = "", since: int = 0) -> str:
    """The SQL that makes the schema, to be run in one transaction.

    Parameters:
        schema, prefix: as in the URL.
        since: the version that is there, 0 for none.
    """
    parts = [] if since else [f'CREATE SCHEMA IF NOT EXISTS "{schema}";\n']
    for number in range(since + 1, SCHEMA_VERSION + 1):
        parts.append(_render(_migration(number), schema, prefix))
        version = f"UPDATE @version SET number = {number};\n"  # noqa: S608 - a number of ours
        parts.append(_render(version, schema, prefix))
    return "\n".join(["BEGIN;", *parts, "COMMIT;\n"])


def _migration(number: int) -> str:
    folder = files("celery_claims.stores").joinpath("migrations")
    return folder.joinpath(f"postgres_{number:04}.sql").read_text("utf-8")


def _render(sql: str, schema: str, prefix: str) -> str:
    """``@name`` becomes the name in our schema, ``@@name`` without it, ``@@@`` the schema's own."""

    def name(match: re.Match[str]) -> str:
        marks, word = match.groups()
        if len(marks) == 3:  # noqa: PLR2004 - see above
            return f'"{schema}"'
        if not word:
            return marks
        own = f'"{prefix}{word}"'
        return own if len(marks) == 2 else f'"{schema}".{own}'  # noqa: PLR2004

    return _NAME.sub(name, sql)


def _without_comments(block: str) -> str:
    return "\n".join(line for line in block.splitlines() if not line.lstrip().startswith("--"))


if __name__ == "__main__":
    import sys

    schema_name = sys.argv[1] if len(sys.argv) > 1 else DEFAULT_SCHEMA
    sys.stdout.write(script(schema_name, "".join(sys.argv[2:3])))
