"""A thin_check that is killed, cannot run or cannot read gives no verdict on the metadata: no
repair follows.
"""

import contextlib
import os
import pathlib
import stat

import pytest
import system
from stratis_bus import done

GIB = 1 << 30


@contextlib.contextmanager
def thin_check_that(does):
    """Programs see this script in place of thin_check; /run/thin-tools has the original programs.

    On Debian, thin_check is one of many names of one program, which acts by the name it is called
    by.
    """
    place = pathlib.Path(system.run("sh", "-c", "command -v thin_check").strip())
    target = pathlib.Path(os.path.realpath(place))
    script, tools = pathlib.Path("/run/thin_check"), pathlib.Path("/run/thin-tools")
    tools.mkdir(exist_ok=True)
    real = tools / "program"
    real.write_bytes(target.read_bytes())
    for name in ("thin_check", "thin_repair", "thin_metadata_size"):
        (tools / name).unlink(missing_ok=True)
        (tools / name).symlink_to(real)
    others = f'[ "${{0##*/}}" = thin_check ] || exec "{tools}/${{0##*/}}" "$@"'
    script.write_text(f"#!/bin/sh\n{others}\n{does}\n")
    for file in (script, real):
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    system.run("mount", "--bind", script, target)
    try:
        yield
    finally:
        system.run("umount", target)


@pytest.fixture
def stopped(stratis, disks):
    """The UUID of a stopped pool with a filesystem, its contents, and the location of the pool's
    metadata."""
    path, _ = done(stratis.create_pool("p", disks))
    done(stratis.create_filesystem(path, "f", GIB))
    system.mount("/dev/stratis/p/f", "/mnt/f")
    data = {"kept": system.put("/mnt/f", "kept", 4 << 20)}
    system.unmount("/mnt/f")
    uuid, before = stratis.pool("p").uuid, flex_devs(stratis)
    done(stratis.stop_pool(uuid))
    return uuid, data, before


def flex_devs(stratis):
    """Location of the thin pool's metadata."""
    return stratis.pool_metadata("p")["flex_devs"]


@pytest.mark.parametrize("does", ["kill -9 $$", "exit 1", "exit 127", "echo 'std::bad_alloc' >&2; exit 1"])
def test_no_repair_without_a_verdict(stratis, stopped, does):
    uuid, data, before = stopped
    with thin_check_that(does):
        reply = stratis.start_pool(uuid)
        assert reply.code != 0
        assert "could not be checked, and nothing was changed; start the pool again" in reply.text, reply
    assert system.mapped_devices() == []
    done(stratis.start_pool(uuid))
    assert flex_devs(stratis) == before
    system.mount("/dev/stratis/p/f", "/mnt/f")
    assert system.contents("/mnt/f") == data


def test_a_verdict_is_followed_by_a_repair_that_keeps_the_old_metadata(stratis, stopped):
    uuid, data, before = stopped
    # The first check finds damage; the result of thin_repair is checked for real.
    finding = "echo 'examining superblock' >&2; echo '  bad checksum in btree node (block 7)' >&2; exit 1"
    with thin_check_that(f'case "$*" in *thinmetaspare*) exec /run/thin-tools/thin_check "$@";; esac; {finding}'):
        done(stratis.start_pool(uuid))
        after = flex_devs(stratis)
        assert after["thin_meta_dev"] == before["thin_meta_dev_spare"]
        assert after["thin_meta_dev_spare"] == before["thin_meta_dev"]
        done(stratis.stop_pool(uuid))
        # Damaged again before a set-up has found it sound: the spare is not overwritten.
        reply = stratis.start_pool(uuid)
        assert reply.code != 0 and "damaged again after a repair" in reply.text, reply
    done(stratis.start_pool(uuid))
    assert flex_devs(stratis) == after
    system.mount("/dev/stratis/p/f", "/mnt/f")
    assert system.contents("/mnt/f") == data
