"""Takes the steps of `deploy/Dockerfile` without Docker, and runs what comes of them.

    make image

Each stage's files are a layer (overlayfs) over this machine's own, whose Python stands for the base
image's. RUN is run in there; the command is run there too: as the user that the file names, as
process 1, with a root that can't be written to. It is asked for an answer and told to stop.
Needs Linux and root, as mounting does; packages come from an index, as they do in a real build.
"""

import http.client
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.deploy.reading import DEPLOY, ROOT, Step, argument_of, stages, steps, variables
from tests.postgres import empty_database, running_server

PATIENCE_SECONDS = 60.0
IN_NAMESPACE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c")
MOUNT = """
set -e
mount -t overlay overlay -o lowerdir=/,upperdir={place}/{name}/files,workdir={place}/{name}/work \
    {place}/{name}/root
mount -t proc proc {place}/{name}/root/proc
mount --rbind /dev {place}/{name}/root/dev
"""
READ_ONLY = "mount -o remount,ro {place}/{name}/root\n"
VOLUME = "mount --bind {place}/volume {place}/{name}/root{volume}\n"


class Stage:
    """One stage's files.

    Attributes:
        files: those that it adds to this machine's.
    """

    def __init__(self, place: Path, name: str, found: Sequence[Step]) -> None:
        self.place, self.name, self.steps = place, name, found
        for part in ("files", "work", "root"):
            (place / name / part).mkdir(parents=True)
        self.files = place / name / "files"
        self.arguments = dict(step.argument.split("=", 1) for step in found if step.name == "ARG")
        self.arguments |= {key: os.environ[key] for key in self.arguments if key in os.environ}
        path = f"{Path(sys.base_prefix, 'bin')}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        self.environ = {"PATH": path, "HOME": "/root", "PIP_QUIET": "1"} | {
            key: value for key, value in os.environ.items() if key.startswith("PIP_")
        }

    def script(self, command: str, mounts: str = "") -> list[str]:
        inside = shlex.join(["chroot", f"{self.place}/{self.name}/root", "/bin/sh", "-c", command])
        mounted = (MOUNT + mounts).format(place=self.place, name=self.name)
        return [*IN_NAMESPACE, f"{mounted}exec {inside}"]

    def take(self, others: "dict[str, Stage]") -> None:
        """All its steps, in their order."""
        workdir = "/"
        for step in self.steps:
            if step.name == "WORKDIR":
                workdir = step.argument
                self.run(f"mkdir -p {workdir}")
            elif step.name == "RUN":
                print(f"  RUN {step.argument}", flush=True)
                self.run(f"cd {workdir} && {step.argument}")
            elif step.name == "COPY":
                self.copy(step.argument.split(), workdir, others)
            elif step.name == "ENV":
                self.environ = variables([step], self.environ)

    def run(self, command: str) -> None:
        environ = {**self.environ, **self.arguments}
        subprocess.run(self.script(command), env=environ, check=True, stdin=subprocess.DEVNULL)

    def copy(self, words: list[str], workdir: str, others: "dict[str, Stage]") -> None:
        """Files of the repository, or of another stage."""
        source = ROOT
        if words[0].startswith("--from="):
            source = others[words.pop(0).partition("=")[2]].files
        *names, target = words
        folder = self.files / Path(workdir, target).relative_to("/")
        ignored = shutil.ignore_patterns("__pycache__")
        for name in names:
            path = source / name.lstrip("/")
            if path.is_dir():
                shutil.copytree(path, folder, ignore=ignored, symlinks=True, dirs_exist_ok=True)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder)


def main() -> int:
    """Build, run, ask, stop. 3: this machine can't mount."""
    if subprocess.run([*IN_NAMESPACE, "true"], capture_output=True).returncode:
        print("needs root, and Linux that lets it make namespaces", file=sys.stderr)
        return 3
    began = time.monotonic()
    with TemporaryDirectory(prefix="verbatim-image-") as name, running_server() as server:
        place = Path(name)
        place.chmod(0o755)
        made: dict[str, Stage] = {}
        for number, found in enumerate(stages(steps((DEPLOY / "Dockerfile").read_text()))):
            name = found[0].argument.partition(" AS ")[2] or f"stage-{number}"
            print(f"FROM {found[0].argument}", flush=True)
            made[name] = stage = Stage(place, name, found)
            open_way_to_python(stage)
            stage.take(made)
        size = sum(path.lstat().st_size for path in stage.files.rglob("*") if path.is_file())
        print(f"the last stage adds {size / 1e6:.0f} MB", flush=True)
        with empty_database(server.dsn) as database:
            serve(stage, database)
    print(f"built, served as process 1 and stopped; {time.monotonic() - began:.0f} s in all")
    return 0


def open_way_to_python(stage: Stage) -> None:
    """In the layer alone: this machine's Python may lie where only root gets to."""
    folders = [Path(sys.base_prefix), *Path(sys.base_prefix).parents]
    stage.run(f"chmod o+x {shlex.join(map(str, folders[:-1]))}")


def serve(stage: Stage, database: str) -> None:
    """What the file's last lines say, with a volume, a database and a key."""
    volume = json.loads(f'["{argument_of(stage.steps, "VOLUME")}"]')[0]
    shutil.copytree(stage.files / volume[1:], stage.place / "volume")
    uid, _, gid = argument_of(stage.steps, "USER").partition(":")
    for path in (stage.place / "volume", *(stage.place / "volume").rglob("*")):
        os.chown(path, int(uid), int(gid))
    command = json.loads(argument_of(stage.steps, "ENTRYPOINT"))
    command += json.loads(argument_of(stage.steps, "CMD"))
    command[command.index("--port") + 1] = "0"
    command[command.index("--host") + 1] = "127.0.0.1"  # others need not get at a test
    as_user = f"setpriv --reuid={uid} --regid={gid} --clear-groups --no-new-privs"
    mounts = VOLUME.replace("{volume}", volume) + READ_ONLY
    script = stage.script(f"cd {volume} && exec {as_user} {shlex.join(command)}", mounts)
    key = secrets.token_hex(16)
    told = {"API_KEYS": f"test:{key}", "DATABASE_URL": database}
    log = stage.place / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            script, env={**stage.environ, **told}, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        port = port_in(log, process)
        ask(port, key)
        child = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
        status = Path(f"/proc/{child}/status").read_text()
        assert f"\nUid:\t{uid}\t" in status, status
        assert "1" == status.split("NSpid:")[1].splitlines()[0].split()[-1], status
        health = json.loads(
            argument_of(stage.steps, "HEALTHCHECK").partition(" CMD ")[2].replace("8000", str(port))
        )
        subprocess.run(health, check=True)
        os.kill(int(child), getattr(signal, argument_of(stage.steps, "STOPSIGNAL")))
        assert 0 == process.wait(PATIENCE_SECONDS)
    except BaseException:
        print(log.read_text(), file=sys.stderr)
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert any((stage.place / "volume/journal").iterdir()), "the journal is not in the volume"


def port_in(log: Path, process: "subprocess.Popen[bytes]") -> int:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if '"serving"' in line and line.endswith("}"):
                return int(json.loads(line)["url"].rpartition(":")[2])
        time.sleep(0.1)
    raise AssertionError("it doesn't serve")


def ask(port: int, key: str) -> None:
    """One streamed answer of the built-in agent."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    question = [{"role": "user", "content": "Hello?"}]
    body = json.dumps({"model": "demo", "stream": True, "messages": question})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    response = connection.getresponse()
    said = response.read()
    assert (200, True) == (response.status, said.endswith(b"data: [DONE]\n\n")), said
    connection.close()


if __name__ == "__main__":
    sys.exit(main())
