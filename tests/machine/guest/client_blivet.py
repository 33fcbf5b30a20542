"""blivet, which Anaconda and the storage system role drive: pools and filesystems are created, seen
in the device tree, and destroyed, by its own actions alone.
"""

import logging
import os

import pytest
import system
from stratis_bus import Stratis
from tang import Tang

GIB = 1 << 30
PASSPHRASE, WRONG = "the passphrase of this test", "another passphrase"


def empty_tree(disks):
    """A new blivet, which has not scanned the system yet and sees only the disks of the test."""
    import blivet as package

    tree = package.Blivet()
    tree.exclusive_disks = [disk.removeprefix("/dev/") for disk in disks]
    return tree


@pytest.fixture
def blivet(disks):
    """A device tree of the disks of the test, after a scan of the system."""
    logging.getLogger("blivet").setLevel(logging.DEBUG)
    tree = empty_tree(disks)
    tree.reset()
    return tree


def started(pool):
    """blivet starts a pool. If it passes no passphrase, it passes descriptor 0 in its place, and the
    library below closes what it has passed. A later start would close whatever has that number then.
    """
    pool.setup()
    lowest = os.open("/dev/null", os.O_RDONLY)
    if lowest:
        os.close(lowest)


def tree_of(blivet):
    """The Stratis devices that blivet sees: pool name → names of filesystems."""
    return {pool.name: sorted(fs.fsname for fs in pool.filesystems) for pool in blivet.stratis_pools}


def format_disks(blivet, disks):
    """Plans disks as members of a pool; returns blivet's devices."""
    from blivet.formats import get_format

    devices = [blivet.devicetree.get_device_by_name(disk.removeprefix("/dev/")) for disk in disks]
    for device in devices:
        blivet.format_device(device, get_format("stratis"))
    return devices


def test_plain_pool(blivet, disks):
    from blivet.size import Size

    pool = blivet.new_stratis_pool(name="p", parents=format_disks(blivet, disks[:2]))
    blivet.create_device(pool)
    first = blivet.new_stratis_filesystem(name="first", parents=[pool], size=Size("1 GiB"))
    second = blivet.new_stratis_filesystem(name="second", parents=[pool], size=Size("1 GiB"), size_limit=Size("2 GiB"))
    for device in (first, second):
        blivet.create_device(device)
    blivet.do_it()

    # The daemon has them, and a new scan finds them.
    stratis = Stratis()
    there = stratis.pool("p")
    assert sorted(there.devices) == sorted(disks[:2])
    assert sorted(there.filesystems) == ["first", "second"]
    blivet.reset()
    assert tree_of(blivet) == {"p": ["first", "second"]}
    pool = blivet.devicetree.get_device_by_name("p")
    assert pool.uuid == there.uuid and not pool.encrypted and pool.status
    assert {parent.path for parent in pool.parents} == set(disks[:2])
    first = blivet.devicetree.get_device_by_name("p/first")
    assert first.path == "/dev/stratis/p/first" and first.format.type == "stratis xfs"
    second = blivet.devicetree.get_device_by_name("p/second")
    assert second.size_limit == Size("2 GiB")

    # Mounted by blivet, and written to.
    first.format.mount(mountpoint="/mnt/f")
    data = {"first": system.put("/mnt/f", "first")}
    first.format.unmount()

    # Stopped and started again by blivet.
    pool.teardown()
    assert there.uuid in stratis.stopped_pools() and system.mapped_devices() == []
    blivet.reset()
    pool = blivet.devicetree.get_device_by_name("p")
    assert not pool.status
    started(pool)
    blivet.reset()
    assert tree_of(blivet) == {"p": ["first", "second"]}
    first = blivet.devicetree.get_device_by_name("p/first")
    first.format.mount(mountpoint="/mnt/f")
    assert system.contents("/mnt/f") == data
    first.format.unmount()

    # Add a member, as the storage role does.
    pool = blivet.devicetree.get_device_by_name("p")
    (third,) = format_disks(blivet, disks[2:3])
    from blivet.deviceaction import ActionAddMember

    blivet.devicetree.actions.add(ActionAddMember(pool, third))
    blivet.do_it()
    blivet.reset()
    pool = blivet.devicetree.get_device_by_name("p")
    assert {parent.path for parent in pool.parents} == set(disks[:3])

    for device in (*pool.filesystems, pool):
        blivet.destroy_device(device)
    blivet.do_it()
    blivet.reset()
    assert tree_of(blivet) == {}
    assert stratis.pools() == {} and system.mapped_devices() == []
    stratis.close()


def test_encrypted_pool(blivet, disks, tmp_path):
    from blivet.devices.stratis import StratisClevisConfig
    from blivet.size import Size

    tang = Tang(tmp_path / "tang", 7500).start()
    clevis = StratisClevisConfig(pin="tang", tang_url=tang.url, tang_thumbprint=tang.thumbprint())
    pool = blivet.new_stratis_pool(name="e", parents=format_disks(blivet, disks[:1]), encrypted=True, passphrase=PASSPHRASE,
                                   clevis=clevis)  # fmt: skip
    blivet.create_device(pool)
    blivet.create_device(blivet.new_stratis_filesystem(name="f", parents=[pool], size=Size("1 GiB")))
    blivet.do_it()
    blivet.reset()
    assert tree_of(blivet) == {"e": ["f"]}
    pool = blivet.devicetree.get_device_by_name("e")
    assert pool.encrypted and pool._clevis.tang_url == tang.url

    # Locked, and unlocked by a passphrase that blivet has been given; the wrong one opens nothing.
    pool.teardown()
    assert system.mapped_devices() == []
    blivet.reset()
    pool = blivet.devicetree.get_device_by_name("e")
    assert pool.encrypted and not pool.status
    pool.passphrase = WRONG
    from blivet.errors import StratisError

    with pytest.raises(StratisError):
        pool.setup()
    assert system.mapped_devices() == []
    # As after a wrong passphrase in Anaconda, which takes a refusal for an error.
    pool.teardown()
    pool.passphrase = PASSPHRASE
    started(pool)
    blivet.reset()
    assert tree_of(blivet) == {"e": ["f"]}

    # Anaconda starts what it finds, and tries every passphrase that it knows.
    from blivet.flags import flags
    from blivet.static_data import encryption_data

    blivet.devicetree.get_device_by_name("e").teardown()
    blivet = empty_tree(disks)
    encryption_data.clear_passphrases()
    encryption_data.add_passphrases([WRONG, PASSPHRASE])
    flags.auto_dev_updates = True
    try:
        blivet.devicetree.populate()
    finally:
        flags.auto_dev_updates = False
    pool = blivet.devicetree.get_device_by_name("e")
    assert pool.status
    blivet.reset()
    assert tree_of(blivet) == {"e": ["f"]}

    # Unlock by the server alone.
    pool = blivet.devicetree.get_device_by_name("e")
    pool.teardown()
    pool.passphrase = None
    started(pool)
    blivet.reset()
    assert tree_of(blivet) == {"e": ["f"]}

    pool = blivet.devicetree.get_device_by_name("e")
    for device in (*pool.filesystems, pool):
        blivet.destroy_device(device)
    blivet.do_it()
    assert system.mapped_devices() == []
    tang.stop()
    system.run("stratis", "key", "unset", "blivet-e")
