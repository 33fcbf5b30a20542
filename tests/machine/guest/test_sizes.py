"""Sizes for which the kernel accepts no table, on disks with 4096-byte sectors, and sizes that
another daemon recorded.
"""

import json
import os
import pathlib

import dbus
import pytest
import stratis_bus
import system
from stratis_bus import done

GIB = 1 << 30
MIB = 1 << 20
LIMIT = GIB + GIB // 2


class Record:
    """The record of a filesystem in the metadata volume, to change it behind the daemon's back."""

    def __init__(self, pool_uuid, filesystem_uuid):
        self.node = f"/dev/mapper/stratis-1-private-{plain(pool_uuid)}-flex-mdv"
        self.name = f"filesystems/{plain(filesystem_uuid)}.json"

    def __enter__(self):
        system.mount(self.node, "/tmp/mdv")
        self.path = pathlib.Path("/tmp/mdv", self.name)
        self.values = json.loads(self.path.read_text())
        return self.values

    def __exit__(self, *_):
        with open(self.path, "w") as file:
            json.dump(self.values, file)
            file.flush()
            os.fsync(file.fileno())
        system.unmount("/tmp/mdv")


def plain(uuid):
    return uuid.replace("-", "")


def set_limit(stratis, path, size_bytes):
    value = dbus.Struct((True, str(size_bytes)), signature="bs", variant_level=1)
    stratis.bus.call_blocking(stratis_bus.NAME, path, dbus.PROPERTIES_IFACE, "Set", "ssv",
                              (stratis_bus.interface("filesystem"), "SizeLimit", value))  # fmt: skip


def started_anew():
    system.start_daemon()
    return stratis_bus.Stratis()


def fill(place):
    system.put(place, "much", 600 * MIB)


def the_filesystem(stratis):
    return stratis.pool("p").filesystems["f"]


def test_a_limit_of_part_of_a_sector(stratis, large_sectors):
    pool, _ = done(stratis.create_pool("p", [large_sectors]))
    refused = stratis.create_filesystem(pool, "odd", GIB + 512)
    assert refused.code == 1 and "4096" in refused.text, refused
    done(stratis.create_filesystem(pool, "f", GIB))
    uuid, found = stratis.pool("p").uuid, the_filesystem(stratis)
    with pytest.raises(dbus.DBusException, match="4096"):
        set_limit(stratis, found.path, LIMIT + 512)
    assert stratis.get(found.path, "filesystem", "SizeLimit") == (False, "")
    # A limit that an older daemon has recorded.
    system.stop_daemon()
    with Record(uuid, found.uuid) as record:
        record["fs_size_limit"] = LIMIT // 512 + 1
    again = started_anew()
    assert again.get(the_filesystem(again).path, "filesystem", "SizeLimit") == (True, str(LIMIT + 512))
    system.mount("/dev/stratis/p/f", "/mnt/f")
    fill("/mnt/f")
    again.refresh()
    assert the_filesystem(again).size == LIMIT
    data = system.contents("/mnt/f")
    system.unmount("/mnt/f")
    done(again.stop_pool(uuid))
    done(again.start_pool(uuid))
    system.mount("/dev/stratis/p/f", "/mnt/f")
    assert system.contents("/mnt/f") == data
    assert the_filesystem(again).size == LIMIT
    again.close()


def test_a_recorded_partial_sector_is_corrected(stratis, large_sectors):
    pool, _ = done(stratis.create_pool("p", [large_sectors]))
    done(stratis.create_filesystem(pool, "f", GIB))
    system.mount("/dev/stratis/p/f", "/mnt/f")
    data = {"before": system.put("/mnt/f", "before")}
    uuid, found = stratis.pool("p").uuid, the_filesystem(stratis)
    system.unmount("/mnt/f")
    system.stop_daemon()
    with Record(uuid, found.uuid) as record:
        record["size"] += 3
    system.remove_mapped()
    again = started_anew()
    assert the_filesystem(again).size == GIB
    system.mount("/dev/stratis/p/f", "/mnt/f")
    assert system.contents("/mnt/f") == data
    with Record(uuid, found.uuid) as record:
        assert record["size"] == GIB // 512
    again.close()


@pytest.mark.parametrize("switched_off", [False, True], ids=["adopted", "built again"])
def test_a_device_larger_than_its_record(stratis, disks, switched_off):
    """As left by a daemon that grows the device and its XFS first and writes the record last."""
    pool, _ = done(stratis.create_pool("p", disks[:1]))
    done(stratis.create_filesystem(pool, "f", GIB))
    uuid, found = stratis.pool("p").uuid, the_filesystem(stratis)
    system.mount("/dev/stratis/p/f", "/mnt/f")
    data = {"before": system.put("/mnt/f", "before")}
    system.stop_daemon()
    name = f"stratis-1-{plain(uuid)}-thin-fs-{plain(found.uuid)}"
    start, length, *rest = system.run("dmsetup", "table", name).split()
    system.run("dmsetup", "load", name, "--table", " ".join([start, str(2 * int(length)), *rest]))
    system.run("dmsetup", "resume", name)
    system.run("xfs_growfs", "-d", "/mnt/f")
    if switched_off:
        system.unmount("/mnt/f")
        system.remove_mapped()
    again = started_anew()
    assert the_filesystem(again).size == 2 * GIB
    if switched_off:
        system.mount("/dev/stratis/p/f", "/mnt/f")
    assert system.contents("/mnt/f") == data
    assert os.statvfs("/mnt/f").f_blocks * os.statvfs("/mnt/f").f_frsize > GIB
    with Record(uuid, found.uuid) as record:
        assert record["size"] == 2 * GIB // 512
    again.close()
