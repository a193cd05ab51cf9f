"""SQL from files: named blocks, so that a statement can be read and tried by itself."""

from __future__ import annotations

from importlib.resources import files

__all__ = ["load_sql", "split_statements"]

_MARK = "-- name: "


def load_sql(package: str, filename: str) -> dict[str, str]:
    """The blocks of a file of a package: each begins with a line ``-- name: NAME``.

    Raises:
        ValueError: a name is given twice.
    """
    blocks: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in files(package).joinpath(filename).read_text("utf-8").splitlines():
        if line.startswith(_MARK):
            name = line.removeprefix(_MARK).strip()
            if name in blocks:
                raise ValueError(f"{filename}: two blocks are named {name}")
            lines = blocks[name] = []
        else:
            lines.append(line)
    return {name: "\n".join(block).strip() for name, block in blocks.items()}


def split_statements(block: str) -> list[str]:
    """The statements of a block; a statement ends with a semicolon at the end of a line."""
    return [statement.strip() for statement in block.split(";\n") if statement.strip(" \n;")]
