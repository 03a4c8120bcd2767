"""`deploy/systemd/verbatim.service`: its times add up, and systemd takes it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from service.process.command import parse_flags
from service.settings.config import Config
from tests.deploy.reading import DEPLOY, LAST_SAVES_SECONDS

UNIT = DEPLOY / "systemd" / "verbatim.service"
EMBEDDED_STOP_SECONDS = 60
KEYS = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE))


def test_a_stop_is_waited_for() -> None:
    """The drain by default, the last saves, and the embedded PostgreSQL."""
    drain = Config().server.drain_timeout_seconds
    least = drain + LAST_SAVES_SECONDS + EMBEDDED_STOP_SECONDS
    assert int(KEYS["TimeoutStopSec"]) >= least
    assert "mixed" == KEYS["KillMode"]


def test_the_command_is_one_that_the_service_knows() -> None:
    """Its flags are; what it writes is where it may write; a bad configuration isn't tried again."""
    program, *flags = KEYS["ExecStart"].split()
    assert "verbatim" == Path(program).name
    assert Path("/etc/verbatim/config.yaml") == parse_flags(flags).config
    journal = re.search(r"^Environment=JOURNAL_DIR=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert journal
    assert Path(journal[1]).is_relative_to(Path("/var/lib", KEYS["StateDirectory"]))
    assert "2" == KEYS["RestartPreventExitStatus"]


def analyze(*arguments: str) -> str:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("needs systemd-analyze")
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_systemd_takes_it(tmp_path: Path) -> None:
    """Every key is known and has a value that is one; the program alone is another, which is there."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/verbatim/bin/verbatim", "/bin/true"))
    said = analyze("verify", str(unit))
    assert UNIT.name not in said, said


def test_it_may_do_little() -> None:
    """By systemd's own measure of what a service could do; 10 is everything."""
    said = analyze("security", "--offline=true", str(UNIT))
    level = re.search(r"exposure level for \S+: ([\d.]+)", said)
    assert level, said
    assert float(level[1]) <= 2.0
