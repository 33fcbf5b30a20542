"""The daemon under systemd: stopped, killed and restarted while filesystems are mounted and written
to.
"""

import os
import pathlib
import signal
import stat
import subprocess

import pytest
import stratis_bus
import system
from stratis_bus import done

GIB = 1 << 30


@pytest.fixture
def mounted(stratis, disks):
    """A pool with a mounted filesystem and a snapshot, and their contents."""
    pool, _ = done(stratis.create_pool("p", disks))
    ((fs, _),) = done(stratis.create_filesystem(pool, "f", GIB))
    system.mount("/dev/stratis/p/f", "/mnt/f")
    data = {"before": system.put("/mnt/f", "before", 4 << 20)}
    done(stratis.snapshot(pool, fs, "s"))
    return data


def shape(pools):
    """What must be the same after a restart; object paths may differ."""
    return {
        name: (pool.uuid, pool.devices, {fs.name: fs._replace(path="") for fs in pool.filesystems.values()})
        for name, pool in pools.items()
    }


def restarted():
    """A new connection to the daemon that has just been started."""
    system.start_daemon()
    return stratis_bus.Stratis()


@pytest.mark.parametrize("end", [system.stop_daemon, system.kill_daemon], ids=["stopped", "killed"])
def test_pool_stays_up_and_is_found_again(stratis, mounted, end):
    before, mapped = shape(stratis.pools()), system.mapped_devices()
    writer = subprocess.Popen(
        ["fio", "--name=w", "--directory=/mnt/f", "--size=32m", "--rw=randwrite", "--bs=4k", "--verify=crc32c",
         "--time_based", "--runtime=6", "--do_verify=1", "--output=/tmp/fio.log"]
    )  # fmt: skip
    end()
    assert system.mapped_devices() == mapped, "devices were taken down"
    mounted["while down"] = system.put("/mnt/f", "while down")
    again = restarted()
    assert shape(again.pools()) == before
    assert writer.wait() == 0, open("/tmp/fio.log").read()
    files = system.contents("/mnt/f")
    assert {name: files[name] for name in mounted} == mounted

    # The adopted pool works.
    pool = again.pool("p")
    done(again.create_filesystem(pool.path, "new", GIB))
    done(again.snapshot(pool.path, pool.filesystems["f"].path, "s2"))
    system.mount("/dev/stratis/p/s2", "/mnt/s2")
    files = system.contents("/mnt/s2")
    assert {name: files[name] for name in mounted} == mounted
    done(again.rename_pool(pool.path, "q"))
    system.unmount_all()
    for fs in again.pool("q").filesystems.values():
        done(again.destroy_filesystem(pool.path, fs.path))
    done(again.destroy_pool(pool.path))


def test_stop_is_clean(stratis, mounted):
    system.stop_daemon()
    assert system.unit("Result") == "success"
    assert system.unit("ExecMainStatus") == "0"


def test_sigterm_is_a_clean_stop_too(stratis, mounted):
    system.send_daemon(signal.SIGTERM)
    system.stop_daemon()
    assert system.unit("Result") == "success"
    assert system.unit("ExecMainStatus") == "0"


def test_two_sigints_are_a_clean_stop(stratis, mounted):
    """systemd sends one, and a daemon that takes over another; the second used to end the daemon at
    once."""
    process = os.pidfd_open(int(system.unit("MainPID")))
    for _ in range(2):
        signal.pidfd_send_signal(process, signal.SIGINT)
    system.wait_for_end(process)
    os.close(process)
    system.stop_daemon()
    assert system.unit("Result") == "success"
    assert system.unit("ExecMainStatus") == "0"


def test_the_unit_is_confined(stratis, mounted):
    exposure = system.run("systemd-analyze", "security", "--threshold=50", "--no-pager", system.UNIT, check=False)
    assert "Overall exposure level" in exposure
    level = float(exposure.rsplit(": ", 1)[1].split()[0])
    assert level <= 4.1, exposure
    verified = subprocess.run(["systemd-analyze", "verify", system.UNIT], capture_output=True, text=True, check=False)
    assert system.UNIT not in verified.stderr, verified.stderr
    pid = system.unit("MainPID")
    assert pathlib.Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "-900"
    assert stat.S_IMODE(os.stat("/run/stratisd.pid").st_mode) == 0o600


def test_units_that_need_pools_are_ordered_after_it(stratis, mounted):
    """The daemon used to come after the target that wants such units: a cycle, which systemd broke
    by dropping a unit."""
    unit = pathlib.Path("/run/systemd/system/needs-pools.service")
    wanted = pathlib.Path("/run/systemd/system/multi-user.target.wants", unit.name)
    unit.write_text("[Unit]\nAfter=stratisd.service\n[Service]\nType=oneshot\nExecStart=/bin/true\n")
    wanted.parent.mkdir(exist_ok=True)
    wanted.symlink_to(unit)
    try:
        verify = ["systemd-analyze", "verify", "multi-user.target"]
        verified = subprocess.run(verify, capture_output=True, text=True, check=False)
        assert "cycle" not in verified.stderr, verified.stderr
    finally:
        wanted.unlink()
        unit.unlink()
        system.run("systemctl", "daemon-reload")


def test_systemd_starts_a_killed_daemon_again(stratis, mounted):
    before, pid = shape(stratis.pools()), system.unit("MainPID")
    system.send_daemon(signal.SIGKILL)
    again = restarted()
    assert system.unit("MainPID") != pid
    assert shape(again.pools()) == before


WATCHDOG_SECONDS = 20


@pytest.fixture
def short_watchdog():
    drop_in = pathlib.Path(f"/run/systemd/system/{system.UNIT}.d/watchdog.conf")
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text(f"[Service]\nWatchdogSec={WATCHDOG_SECONDS}\n")
    system.run("systemctl", "daemon-reload")
    yield
    drop_in.unlink()
    system.run("systemctl", "daemon-reload")


def test_systemd_restarts_a_daemon_that_hangs(stratis, mounted, short_watchdog):
    """A daemon that hung used to stay unnoticed."""
    before = shape(stratis.pools())
    system.stop_daemon()
    log = system.Log()
    system.start_daemon()
    # The time of the daemon's last watchdog message. systemd sends no signal about it, so the test
    # polls.
    told = set()
    while len(told) < 3:
        told.add(system.unit("WatchdogTimestampMonotonic"))
    pid, restarts = int(system.unit("MainPID")), int(system.unit("NRestarts"))
    process = os.pidfd_open(pid)
    signal.pidfd_send_signal(process, signal.SIGSTOP)
    log.wait_for("Watchdog timeout")
    system.wait_for_end(process)
    os.close(process)
    log.wait_for("is served")
    log.close()
    again = restarted()
    assert int(system.unit("MainPID")) != pid and int(system.unit("NRestarts")) == restarts + 1
    assert shape(again.pools()) == before
    assert system.contents("/mnt/f") == mounted


def test_a_second_daemon_is_refused(stratis, mounted):
    before = shape(stratis.pools())
    second = subprocess.run(["/usr/libexec/stratisd"], capture_output=True, text=True, timeout=60)
    assert second.returncode == 1, second
    assert "running" in second.stderr
    assert shape(stratis.pools()) == before


def test_ten_kills_lose_nothing(stratis, mounted):
    """Ten times: killed at a random moment of a stream of requests; the state is then the one
    before or after."""
    for number in range(10):
        name = f"n{number}"
        before = set(stratis.pool("p").filesystems)
        pool = stratis.pool("p")
        call = subprocess.Popen(
            ["python3", "-c",
             "import sys, stratis_bus as s; s.Stratis().create_filesystem(sys.argv[1], sys.argv[2], 1 << 30)",
             pool.path, name], stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            call.wait(0.15 + 0.05 * number)
        except subprocess.TimeoutExpired:
            pass
        system.kill_daemon()
        call.wait()
        stratis.close()
        stratis = restarted()
        now = set(stratis.pool("p").filesystems)
        assert now in (before, before | {name})
        same = stratis.create_filesystem(stratis.pool("p").path, name, 1 << 30)
        assert same.code == 0, same.text
    system.mount("/dev/stratis/p/n0", "/mnt/n0")
    files = system.contents("/mnt/f")
    assert files == mounted


def test_pool_is_set_up_from_nothing(stratis, mounted):
    """Nothing of the pool is up when the daemon starts: it is set up again from the disks."""
    before = shape(stratis.pools())
    system.unmount_all()
    system.stop_daemon()
    system.remove_mapped()
    again = restarted()
    assert shape(again.pools()) == before
    system.mount("/dev/stratis/p/f", "/mnt/f")
    assert system.contents("/mnt/f") == mounted
    system.mount("/dev/stratis/p/s", "/mnt/s")
    assert system.contents("/mnt/s") == mounted
