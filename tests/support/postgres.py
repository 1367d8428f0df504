"""A PostgreSQL server of this machine's own binaries, on a Unix socket, for as long as a test needs it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa


def binaries() -> Path | None:
    """Folder with initdb, postgres and pg_ctl: on the PATH, or where Debian puts them."""
    on_path = shutil.which("postgres")
    places = [Path(on_path).parent] if on_path else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((p for p in places if all((p / name).exists() for name in ("initdb", "postgres", "pg_ctl"))), None)


def found_or_skip() -> Path:
    """The binaries; a test that needs them counts as not run where there are none."""
    found = binaries()
    if found is None:
        pytest.skip("not run: this machine has no PostgreSQL (initdb, postgres, pg_ctl)")
    return found


@dataclass
class Postgres:
    """One server. PostgreSQL refuses to run as root, so it then runs as nobody; its folder is short, since a socket's path must be."""

    binaries: Path
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="dure-pg-")))
    _numbers: count[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        self._run("initdb", "--username=dure", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", f"--pgdata={self.data}")
        self.start()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}'"
        self._run("pg_ctl", "start", "--wait", f"--pgdata={self.data}", f"--log={self.folder / 'log'}", f"--options={options}")

    def stop(self, mode: str = "fast") -> None:
        """`immediate` is a crash: no shutdown checkpoint, every connection is cut."""
        self._run("pg_ctl", "stop", "--wait", f"--mode={mode}", f"--pgdata={self.data}")

    def database(self) -> str:
        """URL of a new, empty database."""
        name = f"dure{next(self._numbers)}"
        engine = sa.create_engine(self._url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as c:
            c.execute(sa.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self._url(name)

    def remove(self) -> None:
        self.stop("immediate")
        shutil.rmtree(self.folder)

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://dure@/{name}?host={quote(str(self.folder), safe='')}"

    def _run(self, program: str, *arguments: str) -> None:
        as_nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
        done = subprocess.run(
            [*as_nobody, str(self.binaries / program), *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # pg_ctl hands its output on to the server, which would keep a pipe open
            stderr=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (
            f"{program}: {done.stderr}\n{(self.folder / 'log').read_text() if (self.folder / 'log').exists() else ''}"
        )
