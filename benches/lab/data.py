"""The data that is backed up, in versions that follow from one another.

A version is an ext4 image, and the next one a copy of it in which files were changed in place: what did not change
keeps its inode and its times, as on a machine that has been running meanwhile. The same seed makes the same bytes,
except for PostgreSQL's, which are as random as pgbench is.
"""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from . import disk

# Counts up when a recipe changes, so that data made by an older one is not used.
RECIPE = 1

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))

# Text, code and programs as they come with Debian: whatever machine this is, it has most of them.
INSTALLED = ["/usr/share", "/usr/lib/python3", "/usr/lib/python3.11", "/usr/include", "/usr/lib/x86_64-linux-gnu"]


def make(letter, folder, quick):
    """The images of all versions, made if they are not there."""
    folder = folder / f"{letter}-{'quick' if quick else 'full'}-{RECIPE}"
    first, *changes = STEPS[letter]
    images = [folder / f"v{number + 1}.img" for number in range(len(changes) + 1)]
    if (folder / "complete").exists():
        return images
    print(f"== making data {letter}", file=sys.stderr)
    mount = disk.Mount("source")
    disk.make_image(images[0], 4 if quick else 12)
    fill(mount, images[0], first, quick)
    for image, change in zip(images[1:], changes):
        disk.copy_image(images[0], image)
        fill(mount, image, change, quick)
    (folder / "complete").touch()
    return images


def fill(mount, image, step, quick):
    mount.mount(image)
    step(mount.path, quick)
    mount.unmount()


# A: a PostgreSQL cluster


def cluster(root, quick):
    shutil.chown(root, "postgres", "postgres")
    root.chmod(0o700)
    postgres("initdb", "-D", root, "--no-sync")
    with Cluster(root):
        postgres("pgbench", "-q", "-i", "-s", "20" if quick else "150", "-h", root, "postgres")


def busy_minute(root, quick):
    """Some 30,000 transactions, which touch a sixth of all pages."""
    with Cluster(root):
        seconds = "8" if quick else "60"
        postgres("pgbench", "-n", "--random-seed=1", "-R", "500", "-T", seconds, "-c", "4", "-h", root, "postgres")


def few_updates(root, quick):
    """2,000 rows, evenly spread over the table, and a checkpoint."""
    rows = 100_000 * (20 if quick else 150)
    updates = 200 if quick else 2000
    statements = [
        f"UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = {row};"
        for row in range(1, rows, rows // updates)
    ]
    with Cluster(root):
        postgres("psql", "-q", "-h", root, "postgres", stdin="\n".join([*statements, "CHECKPOINT;"]))


class Cluster:
    """A server on a cluster's files, reached through a socket beside them."""

    def __init__(self, root):
        self.root = root

    def __enter__(self):
        options = f"-c listen_addresses= -c unix_socket_directories={self.root} -c fsync=off"
        postgres("pg_ctl", "-D", self.root, "-w", "-l", "/dev/null", "-o", options, "start")

    def __exit__(self, *_):
        postgres("pg_ctl", "-D", self.root, "-w", "-m", "fast", "stop")


def postgres(program, *words, stdin=""):
    words = ["runuser", "-u", "postgres", "--", POSTGRES[-1] / program, *words]
    subprocess.run(list(map(str, words)), input=stdin, text=True, check=True, cwd="/", capture_output=True)


# B: very many files in dated versions, as an archive of reports keeps them


def archive(root, quick):
    """Five versions, 13,000 files each, of which every version changes a fifth."""
    rng = random.Random(1)
    files = installed_files(rng, 2_000 if quick else 13_000)
    for day in range(1, 6):
        write_version(root / "archive" / f"202611{day:02}-060000-0f1e2d3c", files, rng)
        files = [edited(path, content, rng) if rng.random() < 0.2 else (path, content) for path, content in files]


def another_version(root, quick):
    """One more version; in the old ones, some files are edited and some deleted."""
    rng = random.Random(2)
    last = sorted((root / "archive").iterdir())[-1]
    paths = sorted(path for path in last.rglob("*") if path.is_file() and not path.is_symlink())
    files = [(str(path.relative_to(last)), path.read_bytes()) for path in paths]
    files = [edited(path, content, rng) if rng.random() < 0.2 else (path, content) for path, content in files]
    write_version(root / "archive" / "20261106-060000-0f1e2d3c", files, rng)
    for path in rng.sample(paths, len(paths) // 25):
        path.write_bytes(edited("", path.read_bytes(), rng)[1])
    for path in rng.sample(paths, len(paths) // 100):
        path.unlink(missing_ok=True)


def installed_files(rng, count):
    """So many of the files that are installed here, not above 1 MiB, with their contents."""
    paths = []
    for folder in INSTALLED:
        for parent, folders, names in os.walk(folder):
            folders.sort()
            paths += [os.path.join(parent, name) for name in sorted(names)]
    rng.shuffle(paths)
    files = []
    for path in paths:
        if len(files) == count:
            break
        if not os.path.islink(path) and os.path.isfile(path) and os.path.getsize(path) <= 1 << 20:
            files.append((path.lstrip("/"), Path(path).read_bytes()))
    return sorted(files)


def edited(path, content, rng):
    """The file with one stretch replaced, inserted or deleted."""
    at = rng.randrange(len(content) + 1)
    length = min(rng.choice([8, 40, 200, 1000]), len(content) - at)
    new = [b"", content[at : at + length][::-1], rng.randbytes(length // 2).hex().encode()][rng.randrange(3)]
    return path, content[:at] + new + content[at + length * rng.randrange(2) :]


def write_version(folder, files, rng):
    for path, content in files:
        path = folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(rng.choice([0o644, 0o644, 0o644, 0o600, 0o755]))


# C: one large file that nothing compresses


def large_file(root, quick):
    noise(root, 256 if quick else 2048)


def noise(root, mebibytes):
    rng = random.Random(1)
    with open(root / "noise.bin", "wb") as file:
        for _ in range(mebibytes):
            file.write(rng.randbytes(1 << 20))


def overwritten(root, quick):
    """64 blocks of 4 KiB overwritten, and 1 MiB inserted in the middle."""
    rng = random.Random(2)
    with open(root / "noise.bin", "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for _ in range(64):
            file.seek(rng.randrange(size // 4096) * 4096)
            file.write(rng.randbytes(4096))
        file.seek(size // 2)
        rest = file.read()
        file.seek(size // 2)
        file.write(rng.randbytes(1 << 20))
        file.write(rest)


STEPS = {
    "A": [cluster, busy_minute, few_updates],
    "B": [archive, another_version],
    "C": [large_file, overwritten],
}
