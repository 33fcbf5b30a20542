"""The initial state of every test in the machine: a running daemon, no pool, empty disks."""

import encrypted_pool
import pytest
import stratis_bus
import system


def _clear(stratis):
    """Removes what a test left."""
    system.unmount_all()
    for pool in stratis.pools().values():
        paths = [fs.path for fs in pool.filesystems.values()]
        if paths:
            assert stratis.destroy_filesystem(pool.path, *paths).code == 0
        assert stratis.destroy_pool(pool.path).code == 0


def _clear_by_force():
    """Removes it without the daemon."""
    system.stop_daemon()
    system.remove_mapped()


def _empty_disks():
    system.start_daemon()
    connection = stratis_bus.Stratis()
    try:
        _clear(connection)
    except Exception:  # the next test must be able to run after any end of this one
        _clear_by_force()
    finally:
        connection.close()
    for disk in system.DISKS:
        system.erase(disk)
    system.stop_daemon()
    system.start_daemon()
    assert system.mapped_devices() == []
    return list(system.DISKS)


@pytest.fixture
def disks():
    """Empty disks; the daemon knows no pool."""
    return _empty_disks()


@pytest.fixture(scope="session")
def disks_for_all():
    """Empty disks for several tests in sequence; none of them may take `disks` before the last has
    ended."""
    return _empty_disks()


@pytest.fixture(scope="session")
def encrypted(disks_for_all):
    """One encrypted pool for several tests."""
    pool = encrypted_pool.EncryptedPool(disks_for_all)
    yield pool
    pool.end()


@pytest.fixture
def stratis(disks):
    """A connection to a daemon without pools."""
    connection = stratis_bus.Stratis()
    yield connection
    connection.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed:
        report.sections.append(("the daemon's log", system.daemon_log()))


@pytest.fixture
def large_sectors(stratis, disks):
    """A disk with logical sectors of 4096 bytes."""
    node = system.run("losetup", "--sector-size", "4096", "--find", "--show", disks[0]).strip()
    system.settle()
    yield node
    system.unmount_all()
    system.stop_daemon()
    system.remove_mapped()
    system.run("losetup", "--detach", node)
    system.erase(disks[0])
