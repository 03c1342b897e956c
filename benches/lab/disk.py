"""File systems that are new for every measurement.

ext4 remembers which inodes were freed in the last minutes and steps over each of them when it makes new ones: after
80,000 deletions every creation is slow for minutes. Whoever measures on a file system that was used before measures
that.
"""

import os
import subprocess
from pathlib import Path

ROOT = Path("/run/vsync-bench")


def call(*command):
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


def make_image(image, gigabytes):
    """An empty ext4 in a sparse file."""
    image.parent.mkdir(parents=True, exist_ok=True)
    image.unlink(missing_ok=True)
    with open(image, "wb") as file:
        file.truncate(gigabytes << 30)
    call("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,nodiscard", image)


def copy_image(image, copy):
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.unlink(missing_ok=True)
    call("cp", "--sparse=always", "--reflink=auto", image, copy)


def used(path):
    """Bytes that a tree takes on disk."""
    if not path.exists():
        return 0
    return int(subprocess.check_output(["du", "-s", "--block-size=1", path]).split()[0])


class Mount:
    """A mount point, and the image that is there."""

    def __init__(self, name, scratch=None):
        self.path = ROOT / name
        self.path.mkdir(parents=True, exist_ok=True)
        self.image = scratch / f"{name}.img" if scratch else None
        self.mounted = False

    def format(self, gigabytes=24):
        """A new, empty file system."""
        self.unmount()
        make_image(self.image, gigabytes)
        self.mount(self.image)

    def copy(self, image):
        """A copy of a file system, to be written to."""
        self.unmount()
        copy_image(image, self.image)
        self.mount(self.image)

    def mount(self, image, read_only=False):
        """Mounts an image; one that is only read is in the page cache afterwards."""
        if self.mounted:
            call("umount", self.path)
        # Background work of the file system would be counted.
        mode = "ro" if read_only else "rw,noinit_itable"
        call("mount", "-o", f"loop,noatime,{mode}", image, self.path)
        self.mounted = True
        if read_only:
            warm(self.path)
        elif (self.path / "lost+found").exists():
            (self.path / "lost+found").rmdir()

    def unmount(self):
        """Unmounts, and removes the image if it is scratch."""
        if self.mounted:
            call("umount", self.path)
            self.mounted = False
        if self.image:
            self.image.unlink(missing_ok=True)


def warm(root):
    buffer = bytearray(1 << 20)
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb", buffering=0) as file:
                    while file.readinto(buffer):
                        pass
