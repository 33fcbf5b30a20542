"""stratisd-min and stratis-min: pools made, stopped and started without a bus, and the hand-over to
stratisd with a filesystem mounted and written to."""

import os
import subprocess

import pytest
import stratis_bus
import system

UNIT = "stratisd-min-try"
MIN = "/usr/bin/stratis-min"


def ask(*words, text=None):
    """What stratis-min prints."""
    done = subprocess.run([MIN, *words], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


@pytest.fixture
def early(disks):
    """stratisd-min as a service; stratisd does not run. The disks are empty."""
    system.stop_daemon()
    system.run("systemd-run", f"--unit={UNIT}", "--service-type=notify", "--property=KillSignal=SIGINT",
               "/usr/libexec/stratisd-min", "--log-level", "info")  # fmt: skip
    yield disks
    subprocess.run(["systemctl", "stop", UNIT], check=False, stderr=subprocess.DEVNULL)
    subprocess.run(["systemctl", "reset-failed", UNIT], check=False, stderr=subprocess.DEVNULL)


def is_up():
    return system.run("systemctl", "is-active", UNIT, check=False).strip() == "active"


def test_a_pool_is_made_stopped_and_started(early):
    ask("pool", "create", "p1", *early[:2])
    ask("filesystem", "create", "p1", "f1")
    system.mount("/dev/stratis/p1/f1", "/mnt/min")
    digest = system.put("/mnt/min", "file")
    system.unmount("/mnt/min")
    uuid = ask("pool").splitlines()[1].split()[-1]
    ask("pool", "stop", uuid)
    assert ask("pool", "is-stopped", uuid) == "true\n"
    assert ask("pool", "is-encrypted", uuid) == "false\n"
    ask("pool", "start", uuid)
    system.mount("/dev/stratis/p1/f1", "/mnt/min")
    assert system.contents("/mnt/min") == {"file": digest}
    system.unmount("/mnt/min")


def test_an_encrypted_pool_is_unlocked_by_passphrase(early, tmp_path):
    """LUKS2 work is done by children of stratisd-min's own binary."""
    ask("key", "set", "--capture-key", "k1", text="a passphrase\na passphrase\n")
    ask("pool", "create", "--key-descs", "k1", "e1", early[0])
    assert ask("pool", "has-passphrase", "--name", "e1") == "true\n"
    ask("pool", "stop", "--name", "e1")
    ask("key", "unset", "k1")
    assert ask("pool", "is-encrypted", "--name", "e1") == "true\n"
    wrong = subprocess.run([MIN, "pool", "start", "--token-slot=any", "--prompt", "--name", "e1"], input="wrong\n",
                           capture_output=True, text=True, check=False)  # fmt: skip
    # Who types it at boot knows the pool, not its devices.
    assert (wrong.returncode, wrong.stderr) == (1, 'Error: "the passphrase does not open pool e1; give the right one"\n')
    ask("pool", "start", "--token-slot=any", "--prompt", "--name", "e1", text="a passphrase\n")
    ask("pool", "stop", "--name", "e1")
    # The key from a file descriptor, in the keyring.
    key = tmp_path / "key"
    key.write_bytes(b"a passphrase")
    ask("key", "set", "--keyfile-path", str(key), "k1")
    ask("pool", "start", "--token-slot=any", "--name", "e1")
    ask("key", "unset", "k1")


def test_stratisd_takes_over_while_data_is_written(early):
    ask("pool", "create", "p1", *early)
    ask("filesystem", "create", "p1", "f1")
    system.mount("/dev/stratis/p1/f1", "/mnt/min")
    writer = system.Writer("/mnt/min")
    system.start_daemon()
    assert not is_up()
    written = writer.end()
    assert system.contents("/mnt/min") == written
    connection = stratis_bus.Stratis()
    assert [pool.name for pool in connection.pools().values()] == ["p1"]
    connection.close()
    # It is gone for good: while stratisd runs, it does not start.
    refused = subprocess.run(["/usr/libexec/stratisd-min"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "stratisd is already running" in refused.stderr
    assert not os.path.exists("/run/stratisd/stratisd-min-jsonrpc")
    system.unmount("/mnt/min")
