"""Builds and starts the contender in Rust (`rust/`), where cargo is.

Built in release mode with the locked versions into `var/bench/`, once and after each change.
"""

import re
import shutil
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.contenders.contender import Missing, Place
from benchmarks.stand.running import ENVIRONMENTS, process

_CRATE = Path(__file__).parent / "rust"
_TARGET = ENVIRONMENTS / "rust"
_SHOWN = ("rig-core", "axum", "sqlx")


def _cargo() -> str:
    found = shutil.which("cargo")
    if found is None:
        raise Missing("rust can't be built: cargo is not installed (https://rustup.rs)")
    return found


def _program(place: Place) -> Path:
    cargo, program = _cargo(), _TARGET / "release" / "rust-contender"
    if not program.exists():
        place.tell("building the contender in Rust (once; this takes minutes)")
    build = [cargo, "build", "--quiet", "--release", "--locked"]
    paths = ["--manifest-path", str(_CRATE / "Cargo.toml"), "--target-dir", str(_TARGET)]
    started = time.monotonic()
    if subprocess.run([*build, *paths]).returncode:
        raise Missing("rust can't be built here; cargo has said why")
    if (seconds := time.monotonic() - started) > 10:
        place.tell(f"built it in {seconds:.0f} s")
    return program


def start(place: Place) -> AbstractContextManager[tuple[int, int]]:
    """Port and process id of the program; raises `Missing` if it can't be built."""
    environ = {
        # sqlx wants a host's name in the URL, even where a socket's folder is the host.
        "DATABASE_URL": place.dsn.replace("@/", "@localhost/"),
        "OPENAI_BASE_URL": f"http://127.0.0.1:{place.upstream_port}/v1",
        "KEEP_ALIVE_SECONDS": str(place.keep_alive_seconds),
    }

    def find_port(log: str) -> int | None:
        found = re.search(r"^port (\d+)$", log, re.MULTILINE)
        return int(found[1]) if found else None

    return process([str(_program(place))], place.directory, find_port, environ)


def version() -> str:
    """The compiler's and the libraries' versions; raises `Missing` without cargo."""
    shown = subprocess.run([_cargo(), "--version"], capture_output=True, text=True).stdout
    pins = (_CRATE / "Cargo.toml").read_text("utf-8")
    found = (re.search(rf'^{name} = .*?"=([\d.]+)"', pins, re.MULTILINE) for name in _SHOWN)
    crates = [f"{name} {match[1]}" for name, match in zip(_SHOWN, found, strict=True) if match]
    return ", ".join([" ".join(shown.split()[:2]), *crates])
