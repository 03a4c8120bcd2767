"""A PgBouncer before a real server, for the tests that need one. Blocks.

Debian and its kin have the program in the package `pgbouncer`; any other place in `PATH` will do.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from db.embedded import EmbeddedPostgres

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
RECIPE = Path(__file__).parents[3] / "deploy" / "pgbouncer.ini"
MISSING = "needs PgBouncer: apt-get install pgbouncer, or have it in PATH"


@contextmanager
def pgbouncer(
    server: EmbeddedPostgres, port: int, pool_mode: str, **settings: str
) -> Iterator[str]:
    """The address of the server's databases through a pooler in this mode, with `*` for the name.

    All else is as `deploy/pgbouncer.ini` has it, but for places, passwords and a pool so small that
    connections are dealt out.
    """
    assert PROGRAM is not None
    recipe = ConfigParser()
    recipe.read(RECIPE)
    owner = server.data_dir.joinpath("cluster").stat()
    lines = {
        **{key: value for key, value in recipe["pgbouncer"].items() if key != "auth_file"},
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "any",
        "pool_mode": pool_mode,
        "default_pool_size": "3",
        **settings,
    }
    with TemporaryDirectory(prefix="verbatim-chat-") as name:
        path = Path(name, "pgbouncer.ini")
        written = "\n".join(f"{key} = {value}" for key, value in lines.items())
        target = f"host={server.data_dir / 'cluster'} port=5432 user=postgres"
        path.write_text(f"[databases]\n* = {target}\n[pgbouncer]\n{written}\n")
        Path(name).chmod(0o755)
        is_root = os.geteuid() == 0  # as which it refuses to run
        with Path(name, "log").open("wb") as log:
            process = subprocess.Popen(
                [PROGRAM, str(path)],
                stderr=log,
                stdout=log,
                user=owner.st_uid if is_root else None,
                group=owner.st_gid if is_root else None,
            )
        try:
            _wait_until_it_listens(port)
            yield f"postgresql://postgres@127.0.0.1:{port}/*"
        finally:
            process.kill()
            process.wait()


def _wait_until_it_listens(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
