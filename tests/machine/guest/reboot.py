"""Before and after a reboot; the two tests run in different lives of a machine with the same disks.
"""

import json
import os
import pathlib

import stratis_bus
import system
from stratis_bus import done

GIB = 1 << 30


def test_before():
    stratis = stratis_bus.Stratis()
    for disk in system.DISKS:
        system.erase(disk)
    pool, _ = done(stratis.create_pool("p", system.DISKS))
    ((fs, _),) = done(stratis.create_filesystem(pool, "f", GIB))
    system.mount("/dev/stratis/p/f", "/mnt/f")
    first = system.put("/mnt/f", "first", 8 << 20)
    done(stratis.snapshot(pool, fs, "s"))
    second = system.put("/mnt/f", "second", 8 << 20)
    # The filesystems hold what the next life must find.
    system.mount("/dev/stratis/p/s", "/mnt/s")
    found = stratis.pool("p")
    expected = {
        "uuid": found.uuid,
        "devices": sorted(found.devices.values()),
        "filesystems": {name: fs.uuid for name, fs in found.filesystems.items()},
        "f": {"first": first, "second": second},
        "s": {"first": first},
    }
    pathlib.Path("/mnt/f/expected").write_text(json.dumps(expected))
    pathlib.Path("/run/machine-orderly-end").touch()
    os.sync()


def test_after():
    stratis = stratis_bus.Stratis()
    found = stratis.pool("p")
    system.mount("/dev/stratis/p/f", "/mnt/f")
    system.mount("/dev/stratis/p/s", "/mnt/s")
    expected = json.loads(pathlib.Path("/mnt/f/expected").read_text())
    assert found.uuid == expected["uuid"]
    assert sorted(found.devices.values()) == expected["devices"]
    assert {name: fs.uuid for name, fs in found.filesystems.items() if name in "fs"} == expected["filesystems"]
    files = system.contents("/mnt/f")
    assert {name: files[name] for name in expected["f"]} == expected["f"]
    assert system.contents("/mnt/s") == expected["s"]
    name = f"made-in-life-{len(found.filesystems)}"
    done(stratis.create_filesystem(found.path, name, GIB))
    assert set(stratis.pool("p").filesystems) == set(found.filesystems) | {name}
    pathlib.Path("/run/machine-orderly-end").touch()
