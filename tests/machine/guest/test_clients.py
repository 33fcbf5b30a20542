"""The stratis client in both versions in use: each does the main job, and lists and changes what
the other created. blkid reads the disks.
"""

import re
import subprocess

import pytest
import system
from stratis_bus import done

OLD, NEW = "3.7.0", "3.8.2"


def stratis_program(version, *arguments):
    result = subprocess.run([f"stratis-{version}", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, f"stratis-{version} {' '.join(arguments)}: {result.stdout}{result.stderr}"
    return result.stdout


def rows(version, what, *arguments):
    """A list that the client prints, as rows of words, without its header."""
    return [re.split(r"\s{2,}", line.strip()) for line in stratis_program(version, what, "list", *arguments).splitlines()[1:]]


def names(version, what):
    """First column for pools, second for the others."""
    return {row[0 if what == "pool" else 1] for row in rows(version, what)}


@pytest.mark.parametrize("maker, other", [(OLD, NEW), (NEW, OLD)])
def test_each_changes_what_the_other_made(disks, maker, other):
    stratis_program(maker, "pool", "create", "p", *disks[:2])
    system.run("sh", "-ec", f"mkdir -p /mnt/f; stratis-{maker} filesystem create p f --size=1GiB && mount /dev/stratis/p/f /mnt/f")
    before = {"first": system.put("/mnt/f", "first")}
    stratis_program(other, "filesystem", "snapshot", "p", "f", "s")
    after = {**before, "second": system.put("/mnt/f", "second")}
    stratis_program(other, "filesystem", "rename", "p", "f", "g")
    stratis_program(other, "pool", "add-data", "p", disks[2])
    stratis_program(other, "pool", "rename", "p", "q")
    for version in (OLD, NEW):
        assert names(version, "pool") == {"q"}
        assert names(version, "filesystem") == {"g", "s"}
        assert {row[1] for row in rows(version, "blockdev")} == set(disks)
        assert "f" not in names(version, "filesystem")
    system.unmount("/mnt/f")
    for filesystem, content in (("g", after), ("s", before)):
        system.run("sh", "-ec", f"mkdir -p /mnt/g; mount /dev/stratis/q/{filesystem} /mnt/g")
        assert system.contents("/mnt/g") == content
        system.unmount("/mnt/g")
    stratis_program(maker, "filesystem", "destroy", "q", "g", "s")
    stratis_program(other, "pool", "destroy", "q")
    assert names(maker, "pool") == set()


def test_both_versions_list_the_same(disks):
    stratis_program(NEW, "pool", "create", "p", *disks)
    stratis_program(NEW, "filesystem", "create", "p", "f")
    for what in ("pool", "filesystem", "blockdev"):
        old, new = rows(OLD, what), rows(NEW, what)
        # Names and sizes only; the pool properties that the client shows differ by version.
        assert [row[:2] for row in old] == [row[:2] for row in new]
    assert stratis_program(OLD, "daemon", "version") == stratis_program(NEW, "daemon", "version") == "3.9.2\n"


def test_blkid_reads_the_disks(disks, stratis):
    done(stratis.create_pool("p", disks))
    pool = stratis.pool("p")
    system.settle()
    for disk, uuid in pool.devices.items():
        seen = system.signature(disk)
        assert seen["TYPE"] == "stratis"
        assert seen["UUID"].replace("-", "") == uuid
        assert seen["POOL_UUID"].replace("-", "") == pool.uuid
        stored = system.run("udevadm", "info", "--query=property", disk)
        assert "ID_FS_TYPE=stratis\n" in stored, "udev has not recorded the type"
