"""Devices are identified by their contents: a clone, a disk that comes back under another node, a
disk that is gone.

Disks are ranges of the machine's disks, which can be pulled (their table then fails all I/O) and
plugged in under another node.
"""

import json
import pathlib
import time

import pytest
import stratis_bus
import system
from stratis_bus import done

GIB = 1 << 30
SECTORS = 2 * GIB // 512
# Not at the start of the machine's disk, which would otherwise have the signature too.
FIRST = 2048


class Plug:
    """Maps ranges of disks to nodes."""

    def __init__(self, disks):
        self.disks = disks

    def insert(self, name, disk=0):
        system.run("dmsetup", "create", name, "--table", f"0 {SECTORS} linear {self.disks[disk]} {FIRST}")
        system.settle()
        return f"/dev/mapper/{name}"

    def _table(self, name, table):
        system.run("dmsetup", "suspend", "--noflush", name)
        system.run("dmsetup", "load", name, "--table", table)
        system.run("dmsetup", "resume", name)
        system.settle()

    def pull(self, name):
        self._table(name, f"0 {SECTORS} error")

    def put_back(self, name, disk=0):
        self._table(name, f"0 {SECTORS} linear {self.disks[disk]} {FIRST}")


@pytest.fixture
def plug(disks):
    yield Plug(disks)
    system.unmount_all()
    system.stop_daemon()
    system.remove_mapped()
    for disk in disks:
        # The range starts behind the first sectors, so `erase` does not reach it with the first
        # mebibytes.
        system.erase(disk)


def make_pool(stratis, node):
    """A pool with a filesystem and a file; returns its UUID and the digests of the files."""
    pool, _ = done(stratis.create_pool("p", [node]))
    done(stratis.create_filesystem(pool, "f", GIB))
    system.mount("/dev/stratis/p/f", "/mnt/f")
    files = {"file": system.put("/mnt/f", "file")}
    system.unmount("/mnt/f")
    return stratis.pool("p").uuid, files


def check_files(pool, files):
    system.mount(f"/dev/stratis/{pool}/f", "/mnt/f")
    assert system.contents("/mnt/f") == files
    system.unmount("/mnt/f")


def restart(clear=True):
    """Like a reboot, as far as pools are concerned."""
    system.stop_daemon()
    if clear:
        system.remove_mapped("stratis-")
    system.settle()
    system.start_daemon()


def soon(what, is_so):
    """Polls: udev events take their time, and the daemon does not signal all of their effects."""
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline, what


def canonical(node):
    return system.run("readlink", "-f", node).strip()


def copy(source, target):
    system.run("dd", f"if={source}", f"of={target}", "bs=1M", "count=16", "iflag=direct", "conv=fsync", "status=none")
    system.run("udevadm", "trigger", "--settle", "--action=change", canonical(target))


def reasons(stratis):
    return [pool.get("reason", "") for pool in stratis.report()["stopped_pools"]]


def test_an_older_clone_is_left_aside(plug):
    stratis = stratis_bus.Stratis()
    original, clone = plug.insert("original"), plug.insert("clone", 1)
    uuid, files = make_pool(stratis, original)
    copy(original, clone)
    # The running pool uses the original, so the clone is not considered.
    restart(clear=False)
    stratis = stratis_bus.Stratis()
    assert sorted(stratis.pool("p").devices) == [canonical(original)]
    aside = stratis.report()["devices_left_aside"]
    assert [(device["path"], device["pool_uuid"].replace("-", "")) for device in aside] == [(canonical(clone), uuid)]
    done(stratis.rename_pool(stratis.pool("p").path, "q"))
    # Now the original is newer.
    restart()
    stratis = stratis_bus.Stratis()
    assert sorted(stratis.pool("q").devices) == [canonical(original)]
    check_files("q", files)
    assert [device["path"] for device in stratis.report()["devices_left_aside"]] == [canonical(clone)]

    # Equal copies are indistinguishable.
    system.stop_daemon()
    system.remove_mapped("stratis-")
    copy(original, clone)
    system.start_daemon()
    stratis = stratis_bus.Stratis()
    assert stratis.pools() == {}
    (reason,) = reasons(stratis)
    assert canonical(original) in reason and canonical(clone) in reason, reason
    refused = stratis.start_pool(uuid)
    assert refused.code == 1 and canonical(clone) in refused.text, refused
    system.run("dmsetup", "remove", "clone")
    soon("the pool comes up when the clone is gone", lambda: "q" in stratis.pools())
    # The start was not a request, whose reply would have waited for the link.
    soon("its filesystem has a link", pathlib.Path("/dev/stratis/q/f").exists)
    check_files("q", files)


def test_a_table_counts_before_its_disk(plug):
    stratis = stratis_bus.Stratis()
    node = plug.insert("below")
    uuid, files = make_pool(stratis, node)
    done(stratis.stop_pool(uuid))
    system.run("dmsetup", "create", "above", "--table", f"0 {SECTORS} linear {node} 0")
    system.settle()
    restart()
    stratis = stratis_bus.Stratis()
    done(stratis.start_pool(uuid))
    assert sorted(stratis.pool("p").devices) == [canonical("/dev/mapper/above")]
    assert stratis.report()["devices_left_aside"] == []
    check_files("p", files)


def test_a_disk_is_recognized_under_another_node(plug):
    stratis = stratis_bus.Stratis()
    plug.insert("first")
    uuid, files = make_pool(stratis, "/dev/mapper/first")
    plug.pull("first")
    second = plug.insert("second")
    # The tables lead to the dead device; the stop is recorded on the disk itself.
    soon("the disk is reported", lambda: any(d["path"] == canonical(second) for d in stratis.report()["devices_left_aside"]))
    done(stratis.stop_pool(uuid))
    assert [list(pool["devs"]) for pool in stopped(stratis)] == [[(canonical(second))]]
    done(stratis.start_pool(uuid))
    assert sorted(stratis.pool("p").devices) == [canonical(second)]
    check_files("p", files)
    # The next daemon also finds a stopped pool.
    done(stratis.stop_pool(uuid))
    restart()
    stratis = stratis_bus.Stratis()
    assert stratis.pools() == {}
    done(stratis.start_pool(uuid))
    check_files("p", files)


def stopped(stratis):
    """The stopped pools, with the nodes of their devices."""
    return [{"devs": [device["path"] for device in pool["devices"]]} for pool in stratis.report()["stopped_pools"]]


def test_a_pool_whose_disk_was_pulled_is_stopped(plug):
    stratis = stratis_bus.Stratis()
    plug.insert("disk")
    uuid, files = make_pool(stratis, "/dev/mapper/disk")
    plug.pull("disk")
    refused = stratis.destroy_pool(stratis.pool("p").path)
    assert refused.code == 1 and len(stratis.pool("p").filesystems) == 1, refused
    done(stratis.stop_pool(uuid))
    assert stratis.pools() == {}
    assert [name for name in system.mapped_devices() if name.startswith("stratis-")] == []
    report = stratis.report()
    assert report["stopped_pools"] == [] and report["partially_constructed_pools"] == [], json.dumps(report)
    unknown = stratis.start_pool(uuid)
    assert unknown.code == 1 and unknown.text.count(".") <= 1, unknown
    # The disk is back, and the pool stays stopped, by now on record.
    plug.put_back("disk")
    soon("the pool is known again", lambda: uuid in [p["pool_uuid"].replace("-", "") for p in stratis.report()["stopped_pools"]])
    assert stratis.pools() == {}
    restart()
    stratis = stratis_bus.Stratis()
    assert stratis.pools() == {}
    done(stratis.start_pool(uuid))
    check_files("p", files)
