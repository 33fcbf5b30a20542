"""What one life of a machine leaves to the next: a directory, kept on the last disk, which no pool
uses.
"""

import json
import os
import pathlib

import system

DISK = system.DISKS[-1]
# The disks for pools.
OTHERS = system.DISKS[:-1]
FOLDER = pathlib.Path("/root/notes")
TANG_KEYS = FOLDER / "tang"


def keep(**values):
    """Keeps values durably for the next life."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "values").write_text(json.dumps(values))
    system.run("tar", "-C", FOLDER, "-cf", DISK, ".")
    node = os.open(DISK, os.O_RDWR)
    os.fsync(node)
    os.close(node)


def found():
    """What the previous life kept; its other files are back in the directory."""
    FOLDER.mkdir(exist_ok=True)
    system.run("tar", "-C", FOLDER, "-xf", DISK)
    return json.loads((FOLDER / "values").read_text())
