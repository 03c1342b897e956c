"""The tools that are measured. Each has a server and a client of its own, and talks over the loopback interface.

Every tool runs as its documentation says, with its defaults: no option makes one quicker or slower. Where a tool has a
choice of transports, it is the one that its documentation calls the fastest.
"""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from .measure import Command

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PEERS = ["rsync", "rsync-z", "restic", "borg", "rustic", "bupstash"]

# Built from source by cargo, for minutes.
LONG_TO_BUILD = {"rustic", "bupstash"}


@dataclasses.dataclass
class Place:
    """Where tools find things."""

    programs: Path
    store: Path
    source: Path
    suite: str
    # Where servers listen, and what stands before the commands of either side: for hosts of their own.
    host: str = "127.0.0.1"
    at_server: tuple = ()
    at_client: tuple = ()

    def program(self, name):
        for path in (self.programs / "usr/bin" / name, self.programs / "bin" / name, self.programs / "borg/bin" / name):
            if path.exists():
                return str(path)
        return shutil.which(name) or name


def usual_peers(everything):
    place = Place(Path("target/bench-tools"), Path(), Path(), "")
    found = lambda name: shutil.which(place.program(name)) is not None
    return ["rsync", "restic", "borg"] + sorted(name for name in LONG_TO_BUILD if everything or found(name))


def version(name, place):
    tool = TOOLS[name]
    output = subprocess.run([place_program(place, tool), *tool.version], capture_output=True, text=True).stdout
    match = re.search(r"\d+(\.\d+)+", output)
    return match.group() if match else "?"


def place_program(place, tool):
    return os.environ["VSYNC_BENCH_BIN"] if tool is Vsync else place.program(tool.program)


class Tool:
    """A tool with an empty store. As a context manager, it runs its server."""

    program = ""
    version = ("--version",)

    def __init__(self, place):
        self.place = place
        self.home = None
        self.processes = []

    def __enter__(self):
        # State and caches of the client: like the store, new for every cycle.
        self.home = Path(tempfile.mkdtemp(prefix="vsync-bench-"))
        self.env = {"PATH": PATH, "HOME": str(self.home), "LANG": "C.UTF-8", "TZ": "UTC"}
        self.store = self.place.store / "data"
        self.start()
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
            process.wait()
        shutil.rmtree(self.home)

    def servers(self):
        return [process.pid for process in self.processes]

    def start(self):
        """Makes the store, and starts the server."""
        raise NotImplementedError

    def backup(self):
        """The command that backs the source up."""
        raise NotImplementedError

    def restore(self, target):
        """The command that makes `target` what was backed up last."""
        raise NotImplementedError

    def serve(self, *words, ready):
        log = open(self.home / "server.log", "wb")
        words = [str(word) for word in (*self.place.at_server, *words)]
        process = subprocess.Popen(words, env=self.env, stdout=log, stderr=log)
        self.processes.append(process)
        deadline = time.monotonic() + 20
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{words[0]} does not start: {(self.home / 'server.log').read_text()}")
            time.sleep(0.05)

    def answers(self, port):
        attempt = f"import socket; socket.create_connection(('{self.place.host}', {port}), 1)"
        words = [*self.place.at_client, "python3", "-c", attempt]
        return subprocess.run(words, stderr=subprocess.DEVNULL).returncode == 0

    def prepare(self, *words, cwd="/"):
        words = [str(word) for word in (*self.place.at_client, *words)]
        done = subprocess.run(words, env=self.env, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr}")

    def command(self, *words, cwd=None, fine=(0,)):
        return Command([str(word) for word in (*self.place.at_client, *words)], self.env, str(cwd or self.place.source), fine)


class Vsync(Tool):
    """Two processes: `vsync server run`, and the agent."""

    def start(self):
        self.binary = os.environ["VSYNC_BENCH_BIN"]
        machines = {name: self.home / name for name in ("admin", "server", "client")}
        for path in machines.values():
            path.mkdir()
        (machines["admin"] / "vsync.toml").write_text(
            '[realm]\nname = "bench"\n'
            f'[[servers]]\nname = "server"\naddress = "{self.place.host}:10022"\ndata = "{self.store}"\n'
            '[[clients]]\nname = "client"\nbackup = ["data"]\n'
            f'[[volumes]]\nname = "data"\npath = "{self.place.source}"\n'
            f'[keys]\nstore = "directory"\npath = "{self.home}/keys"\n'
        )
        self.prepare(self.binary, "init", "--suite", self.place.suite, cwd=machines["admin"])
        self.prepare(self.binary, "keygen", "--all", cwd=machines["admin"])
        for name in ("server", "client"):
            for file in ("vsync.toml", "vsync.pub"):
                shutil.copy(machines["admin"] / file, machines[name])
            self.prepare(self.binary, "configure", name, cwd=machines[name])
        self.client = machines["client"]
        listening = lambda: b"listening on" in (self.home / "server.log").read_bytes()
        config = machines["server"] / "vsync.toml"
        self.serve(self.binary, "--config", config, "--as", "server", "server", "run", ready=listening)

    def backup(self):
        return self.command(self.binary, "backup", "data", cwd=self.client)

    def restore(self, target):
        return self.command(self.binary, "restore", "data", "--to-path", target, "--delete", cwd=self.client)


class OverSsh(Tool):
    """A tool whose other side is started through ssh. The daemon is one of our own, for this run."""

    def start(self):
        keys = self.home / "ssh"
        keys.mkdir()
        for name in ("host", "user"):
            self.prepare("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / name)
        (keys / "sshd_config").write_text(
            f"ListenAddress {self.place.host}:10023\nHostKey {keys}/host\nAuthorizedKeysFile {keys}/user.pub\n"
            "PermitRootLogin yes\nUsePAM no\nStrictModes no\nPidFile none\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        self.serve("/usr/sbin/sshd", "-D", "-e", "-f", keys / "sshd_config", ready=lambda: self.answers(10023))
        self.ssh = f"ssh -p 10023 -i {keys}/user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"


class Rsync(OverSsh):
    """rsync over ssh, as privateer runs it. The store is a mirror: what is stored is one version, in clear."""

    program = "rsync"
    options = "-a"

    def backup(self):
        return self.sync(f"{self.place.source}/", f"root@{self.place.host}:{self.store}/")

    def restore(self, target):
        return self.sync(f"root@{self.place.host}:{self.store}/", f"{target}/")

    def sync(self, origin, destination):
        return self.command("rsync", self.options, "--delete", "--numeric-ids", "-e", self.ssh, origin, destination)


class RsyncCompressed(Rsync):
    """The same, compressing on the way."""

    options = "-az"


class Borg(OverSsh):
    """borg with encryption and its default compression, `borg serve` at the other end."""

    program = "borg"

    def start(self):
        super().start()
        self.binary = self.place.program("borg")
        self.env |= {
            "BORG_REPO": f"ssh://root@{self.place.host}{self.store}",
            "BORG_RSH": self.ssh,
            "BORG_REMOTE_PATH": self.binary,
            "BORG_PASSPHRASE": "bench",
            "BORG_BASE_DIR": str(self.home),
        }
        self.prepare(self.binary, "init", "--encryption=repokey-blake2")
        self.count = 0

    def backup(self):
        self.count += 1
        # 1 is a warning, such as a file that changed while it was read.
        return self.command(self.binary, "create", f"::{self.count}", ".", fine=(0, 1))

    def restore(self, target):
        return self.command(self.binary, "extract", "--numeric-ids", f"::{self.count}", cwd=target)


class Restic(Tool):
    """restic with its own REST server, which here neither encrypts the connection nor asks for a password."""

    program = "restic"
    version = ("version",)

    def start(self):
        self.binary = self.place.program("restic")
        self.env |= {
            "RESTIC_REPOSITORY": f"rest:http://{self.place.host}:10024/",
            "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": str(self.home / "cache"),
        }
        server = self.place.program("restic-rest-server")
        ready = lambda: self.answers(10024)
        self.serve(server, "--path", self.store, "--no-auth", "--listen", f"{self.place.host}:10024", ready=ready)
        self.prepare(self.binary, "init")

    def backup(self):
        return self.command(self.binary, "backup", ".")

    def restore(self, target):
        return self.command(self.binary, "restore", "latest", "--target", target, "--delete")


class Rustic(Restic):
    """restic's format, written in Rust."""

    program = "rustic"
    version = ("--version",)

    def start(self):
        super().start()
        self.env |= {"RUSTIC_REPOSITORY": self.env["RESTIC_REPOSITORY"], "RUSTIC_PASSWORD": "bench"}
        self.env["RUSTIC_CACHE_DIR"] = self.env["RESTIC_CACHE_DIR"]
        self.binary = self.place.program("rustic")

    def restore(self, target):
        return self.command(self.binary, "restore", "latest", target, "--delete")


class Bupstash(OverSsh):
    """bupstash over ssh, with its send log."""

    program = "bupstash"

    def start(self):
        super().start()
        self.binary = self.place.program("bupstash")
        serve = f"{self.ssh} root@{self.place.host} {self.binary} serve {self.store}"
        self.env |= {"BUPSTASH_REPOSITORY_COMMAND": serve, "BUPSTASH_KEY": str(self.home / "key")}
        self.prepare(self.binary, "new-key", "-o", self.home / "key")
        self.prepare(self.binary, "init")

    def backup(self):
        log = self.home / "send-log"
        return self.command(self.binary, "put", "-q", "--send-log", log, "name=data", self.place.source)

    def restore(self, target):
        script = 'id=$("$0" list --query-cache "$1" --format jsonl1 name=data | tail -n 1 | '
        script += """sed 's/.*"id":"\\([0-9a-f]*\\)".*/\\1/') && exec "$0" restore --into "$2" id="$id" """
        return self.command("sh", "-c", script, self.binary, self.home / "queries", target, cwd="/")

TOOLS = {
    "vsync": Vsync,
    "rsync": Rsync,
    "rsync-z": RsyncCompressed,
    "restic": Restic,
    "borg": Borg,
    "rustic": Rustic,
    "bupstash": Bupstash,
}
