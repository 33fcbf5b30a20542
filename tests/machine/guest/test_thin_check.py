"""A thin_check that is killed, cannot run or cannot read gives no verdict on the metadata: no
repair follows.
"""

import pytest
import stand_in
import system
from stratis_bus import done

GIB = 1 << 30


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
    with stand_in.program("thin_check", does):
        reply = stratis.start_pool(uuid)
        assert reply.code != 0
        assert "could not be checked, and nothing was changed; start the pool again" in reply.text, reply
    assert system.mapped_devices() == []
    done(stratis.start_pool(uuid))
    assert flex_devs(stratis) == before
    system.mount("/dev/stratis/p/f", "/mnt/f")
    assert system.contents("/mnt/f") == data


def test_a_repair_keeps_the_old_metadata(stratis, stopped):
    uuid, data, before = stopped
    # The first check finds damage; the result of thin_repair is checked for real.
    finding = "echo 'examining superblock' >&2; echo '  bad checksum in btree node (block 7)' >&2; exit 1"
    with stand_in.program("thin_check", f'case "$*" in *thinmetaspare*) exec /run/thin-tools/thin_check "$@";; esac; {finding}'):
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
