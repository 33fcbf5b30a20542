"""Device links: they exist when the reply arrives and always lead to the right device."""

import os

import pytest
import system
from stratis_bus import done

TRIES = int(os.environ.get("LINK_TRIES", "40"))
SMALL = 512 << 20


@pytest.fixture
def pool(stratis, disks):
    path, _ = done(stratis.create_pool("p", disks))
    return path


def target_of(link):
    """The device-mapper name behind a link, read at once."""
    node = os.path.basename(os.path.realpath(link, strict=True))
    return open(f"/sys/block/{node}/dm/name").read().strip()


def expect_link(stratis, pool_name, fs_name):
    """Checks that the link exists now, without waiting for udev, and leads to the filesystem of
    that name."""
    found = target_of(f"/dev/stratis/{pool_name}/{fs_name}")
    pool = stratis.pool(pool_name)
    assert found == f"stratis-1-{pool.uuid}-thin-fs-{pool.filesystems[fs_name].uuid}"


def test_mount_right_after_create_never_fails(stratis, pool):
    for number in range(TRIES):
        ((path, _),) = done(stratis.create_filesystem(pool, f"f{number}", SMALL))
        system.mount(f"/dev/stratis/p/f{number}", "/mnt/f")
        system.unmount("/mnt/f")
        done(stratis.destroy_filesystem(pool, path))


def test_a_reused_name_leads_to_the_new_filesystem(stratis, pool):
    """A link of a destroyed filesystem must not be mistaken for the new one's."""
    seen = set()
    for _ in range(10):
        ((path, _),) = done(stratis.create_filesystem(pool, "same", SMALL))
        expect_link(stratis, "p", "same")
        uuid = stratis.pool("p").filesystems["same"].uuid
        assert uuid not in seen
        seen.add(uuid)
        done(stratis.destroy_filesystem(pool, path))


def test_links_follow_snapshots_and_renames(stratis, pool):
    ((path, _),) = done(stratis.create_filesystem(pool, "f", SMALL))
    expect_link(stratis, "p", "f")
    for number in range(5):
        done(stratis.snapshot(pool, path, f"s{number}"))
        expect_link(stratis, "p", f"s{number}")
        system.mount(f"/dev/stratis/p/s{number}", "/mnt/s")
        system.unmount("/mnt/s")
    for number in range(5):
        done(stratis.rename_filesystem(path, f"renamed{number}"))
        expect_link(stratis, "p", f"renamed{number}")
    names = set(stratis.pool("p").filesystems)
    for number in range(5):
        done(stratis.rename_pool(pool, f"pool{number}"))
        for name in names:
            expect_link(stratis, f"pool{number}", name)
    system.settle()
    assert set(os.listdir("/dev/stratis")) == {"pool4"}, "old links remain"
    assert set(os.listdir("/dev/stratis/pool4")) == names


def test_links_survive_other_events_and_a_restart(stratis, pool):
    done(stratis.create_filesystem(pool, "f", SMALL))
    node = os.path.realpath("/dev/stratis/p/f")
    system.run("udevadm", "trigger", "--settle", "--action=change", node)
    expect_link(stratis, "p", "f")
    system.stop_daemon()
    expect_link_of = target_of("/dev/stratis/p/f")
    system.start_daemon()
    assert target_of("/dev/stratis/p/f") == expect_link_of


def test_names_that_udev_sees(stratis, disks):
    """Non-ASCII and punctuation reach the link unchanged."""
    pool, _ = done(stratis.create_pool("pöol-1.x", disks))
    for name in ("ünïcode☺", "a:b@c", "x=y+z", "#1", "n" * 100):
        done(stratis.create_filesystem(pool, name, SMALL))
        expect_link(stratis, "pöol-1.x", name)
