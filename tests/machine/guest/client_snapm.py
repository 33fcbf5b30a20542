"""snapm with its Stratis plug-in: a set of snapshots is created, listed, renamed, reverted, deleted."""

import json
import pathlib
import subprocess

import pytest
import system
from stratis_bus import done

GIB = 1 << 30


def snapm(*words):
    ended = subprocess.run(["snapm", *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"snapm {' '.join(words)}: {ended.stdout}{ended.stderr}"
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.stdout


def snapshots():
    """Snapshots as snapm lists them."""
    return json.loads(snapm("snapshot", "list", "--json"))["Snapshots"]


def sets():
    return [row["snapset_name"] for row in json.loads(snapm("snapset", "list", "--json"))["Snapsets"]]


def mounted(name, place, digests=None):
    """By mount(8), which records the device's own name; snapm looks for that, not for the link."""
    system.settle()
    pathlib.Path(place).mkdir(parents=True, exist_ok=True)
    system.run("mount", f"/dev/stratis/p/{name}", place)
    assert digests is None or system.contents(place) == digests


@pytest.fixture(autouse=True)
def directories():
    """The directories that a package of snapm, and one of boom, has; PyPI has none."""
    for path in ("/run/snapm", "/etc/snapm/plugins.d", "/etc/snapm/schedule.d", "/boot/loader/entries"):
        pathlib.Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)


def test_a_set_of_snapshots(stratis, disks):
    pool, _ = done(stratis.create_pool("p", disks[:2]))
    for name in ("f", "g"):
        done(stratis.create_filesystem(pool, name, GIB))
        mounted(name, f"/mnt/{name}")
    first = {name: {"first": system.put(f"/mnt/{name}", "first")} for name in ("f", "g")}

    assert "stratis" in snapm("plugin", "list")
    snapm("snapset", "create", "before", "/mnt/f", "/mnt/g")
    assert sets() == ["before"]
    for name in ("f", "g"):
        system.put(f"/mnt/{name}", "second")
    assert len(snapshots()) == 2 and len(stratis.pool("p").filesystems) == 4
    snapm("snapset", "rename", "before", "older")
    assert sets() == ["older"]
    made = set(stratis.pool("p").filesystems) - {"f", "g"}
    assert len(made) == 2 and all("_older_" in name for name in made)
    snapm("snapset", "show", "older")

    # The revert happens at the next start of the pool.
    snapm("snapset", "revert", "older")
    of_filesystems = [kinds.get("org.storage.stratis3.filesystem.r9", {}) for kinds in stratis.objects().values()]
    assert sum(bool(filesystem.get("MergeScheduled")) for filesystem in of_filesystems) == 2
    system.unmount_all()
    uuid = stratis.pool("p").uuid
    done(stratis.stop_pool(uuid))
    done(stratis.start_pool(uuid))
    assert sorted(stratis.pool("p").filesystems) == ["f", "g"]
    for name in ("f", "g"):
        mounted(name, f"/mnt/{name}", first[name])
    assert sets() == []

    snapm("snapset", "create", "again", "/mnt/f")
    assert sets() == ["again"] and len(stratis.pool("p").filesystems) == 3
    snapm("snapset", "delete", "again")
    assert sets() == [] and sorted(stratis.pool("p").filesystems) == ["f", "g"]
