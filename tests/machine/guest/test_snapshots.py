"""What filesystems and snapshots take of their pool, and whether an XFS with a new identity is sound
for the kernel and for the programs of XFS.
"""

import itertools
import time

import system
from stratis_bus import done

MIB = 1 << 20
GIB = 1 << 30


def used_mib():
    """Data blocks that the thin pool has given out."""
    return int(system.run("dmsetup", "status", system.thin_pool()).partition(" thin-pool ")[2].split()[2].partition("/")[0])


def node(name):
    return f"/dev/stratis/p/{name}"


def check_sound(name, uuid, digests):
    """The XFS has its identity; it survives a crash; xfs_repair has nothing to say at any time."""

    def look():
        system.run("xfs_repair", "-n", node(name))
        found = system.run("xfs_db", "-r", "-c", "uuid", node(name)).split()[-1]
        assert found.replace("-", "") == uuid, (name, found)

    place = f"/mnt/{name}"
    look()
    system.mount(node(name), place)
    assert system.contents(place) == digests, name
    digests = digests | {f"in-{name}": system.put(place, f"in-{name}", MIB)}
    system.crash(place)
    system.mount(node(name), place)
    assert system.contents(place) == digests, name
    system.unmount(place)
    look()
    return digests


def check_snapshots(stratis, disk):
    pool, _ = done(stratis.create_pool("p", [disk]))
    done(stratis.create_filesystem(pool, "f", 16 * GIB))
    known = {"f": {}}

    def snapshot(origin, name):
        done(stratis.snapshot(pool, stratis.pool("p").filesystems[origin].path, name))
        known[name] = check_sound(name, stratis.pool("p").filesystems[name].uuid, known[origin])

    snapshot("f", "of-new")
    system.mount(node("f"), "/mnt/f")
    known["f"] = {"one": system.put("/mnt/f", "one", MIB)}
    snapshot("f", "of-mounted")
    system.unmount("/mnt/f")
    snapshot("f", "of-unmounted")
    system.mount(node("f"), "/mnt/f")
    known["f"]["two"] = system.put("/mnt/f", "two", MIB)
    system.crash("/mnt/f")
    snapshot("f", "of-crashed")
    snapshot("of-mounted", "of-snapshot")
    # Another program has given the origin another identity, and a log that it wrote.
    system.run("xfs_db", "-x", "-c", "uuid generate", node("of-new"))
    snapshot("of-new", "of-foreign")
    system.mount(node("f"), "/mnt/f")
    system.unmount("/mnt/f")
    check_sound("f", stratis.pool("p").filesystems["f"].uuid, known["f"])


def test_snapshots_are_sound_for_every_program(stratis, disks):
    check_snapshots(stratis, disks[0])


def test_snapshots_are_sound_on_large_sectors(stratis, large_sectors):
    check_snapshots(stratis, large_sectors)


def test_little_space_is_taken(stratis, disks):
    """A filesystem used to take 545 MiB, and each snapshot of it as much again."""
    pool, _ = done(stratis.create_pool("p", disks[:2]))
    before = used_mib()
    done(stratis.create_filesystem(pool, "f"))
    made = used_mib() - before
    system.mount(node("f"), "/mnt/f")
    for number in range(5):
        system.put("/mnt/f", f"file{number}", 40 * MIB)
    system.run("sync")
    taken = []
    for name in ("one", "two"):
        before, started = used_mib(), time.monotonic()
        done(stratis.snapshot(pool, stratis.pool("p").filesystems["f"].path, name))
        print(f"FIGURE snapshot of a mounted filesystem of 1 TiB: {time.monotonic() - started:.2f} s")
        taken.append(used_mib() - before)
    print(f"FIGURE a filesystem of 1 TiB takes {made} MiB, snapshots of it {taken} MiB")
    assert made <= 80, made
    assert max(taken) <= 16, taken
    uuids = [filesystem.uuid for filesystem in stratis.pool("p").filesystems.values()]
    assert all(one != other for one, other in itertools.combinations(uuids, 2))
