"""A replica as a process, which may die and come back: `Replica`."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults.service import ROOT, Service
from tests.fleet_faults.wires import Address, Wires

PLAIN = (sys.executable, str(ROOT / "run.py"))
OTHER_VERSION = (
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    "from tests.fleet_faults.other_version import main; sys.exit(main())",
)


class Replica:
    """One name in the fleet, with a journal's directory of its own.

    Args:
        name: its name.
        directory: an empty one of its own.
        config: its configuration.
        wires: its ways.
        command: what stands before the program.
        port: where it listens; 0: anywhere.

    Attributes:
        is_up: clients may be sent there: a balancer would.
        is_lost: it died, and doesn't come back.
        processes: all that it has been.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        config: dict[str, Any],
        wires: Wires,
        *,
        command: Sequence[str] = (),
        port: int = 0,
    ) -> None:
        self.name = name
        self.is_up = False
        self.is_lost = False
        self.processes: list[Service] = []
        self.journal = directory / "journal"
        self._directory = directory
        self._config = {**config, "journal": {"directory": str(self.journal)}}
        self._wires = wires
        self._command = command
        self._port = port

    async def start(self, program: Sequence[str] = PLAIN) -> None:
        """Start it, again or for the first time, and return once it serves."""
        command = (*self._command, *program)
        number = len(self.processes)
        self.processes.append(
            Service.launch(self._directory, number, self._config, command=command, port=self._port)
        )
        await self.process.ready()
        self.is_up = True
        self.is_lost = False

    @property
    def process(self) -> Service:
        return self.processes[-1]

    @property
    def address(self) -> Address:
        """Where clients find it."""
        return self._wires.address(self.name, (self.process.host, self.process.port))

    def kill(self, *, for_good: bool = False) -> None:
        """SIGKILL."""
        self.is_up = False
        self.is_lost = for_good
        self.process.kill()

    def freeze(self) -> None:
        """SIGSTOP."""
        os.kill(self.process.popen.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process.popen.pid, signal.SIGCONT)

    async def drain(self) -> int:
        """SIGTERM, and wait for its end; the exit status."""
        self.is_up = False
        return await self.process.stop(60)

    def cut(self, what: str) -> None:
        self._wires.cut(self.name, what)

    def mend(self, what: str) -> None:
        self._wires.mend(self.name, what)

    async def unsettled(self) -> str:
        """Why it isn't at rest; empty if it is."""
        status, body = await self.process.get("/readyz")
        if status != 200:
            return f"{self.name}: /readyz says {status} {body.get('reasons')}"
        if body["streams"] or body["unsaved"]:
            return f"{self.name}: {body['streams']} streams, {body['unsaved']} unsaved"
        if (left := len(self.journals())) > 1:
            return f"{self.name}: {left} journals"
        return ""

    def journals(self) -> list[Path]:
        """Of its processes, dead or alive."""
        if not self.journal.exists():
            return []
        return [path for path in self.journal.iterdir() if (path / "lock").exists()]

    @property
    def complaints(self) -> list[str]:
        """All its processes' own mistakes, by their own words."""
        return [f"{self.name}: {said}" for process in self.processes for said in process.complaints]

    def end(self) -> None:
        """Leave nothing behind."""
        for process in self.processes:
            process.end()
