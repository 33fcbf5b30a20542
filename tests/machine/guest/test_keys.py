"""Passphrases in the kernel's keyring, set by the client: they survive the daemon, and the kernel
shows them as specified.
"""

import pathlib
import re
import subprocess

import pytest
import system


def stratis_program(*arguments):
    return subprocess.run(["stratis-3.8.2", *arguments], capture_output=True, text=True, check=False)


def listed():
    return {line.strip() for line in stratis_program("key", "list").stdout.splitlines()[1:]}


@pytest.fixture
def key_file(stratis, tmp_path):
    def write(text):
        path = pathlib.Path(tmp_path) / "key"
        path.write_text(text)
        return str(path)

    yield write
    for description in listed():
        stratis_program("key", "unset", description)


def test_a_key_is_set_changed_listed_and_removed(key_file):
    assert stratis_program("key", "set", "k1", f"--keyfile-path={key_file('first secret')}").returncode == 0
    assert listed() == {"k1"}
    # The client reports "nothing was changed" as an error, which shows that the value was compared.
    assert stratis_program("key", "set", "k1", f"--keyfile-path={key_file('first secret')}").returncode != 0
    assert stratis_program("key", "reset", "k1", f"--keyfile-path={key_file('another')}").returncode == 0
    system.stop_daemon()
    system.start_daemon()
    assert listed() == {"k1"}
    shown = pathlib.Path("/proc/keys").read_text()
    key = re.search(r"^\S+ \S+ +\d+ perm (\S+) +0 +0 user +stratis-1-key-k1: 7$", shown, re.MULTILINE)
    assert key and key[1] == "003f0000", shown
    assert stratis_program("key", "unset", "k1").returncode == 0
    assert listed() == set()


def test_a_key_of_the_longest_name_is_listed(key_file):
    """Found in review: the kernel describes such a key in more bytes than the buffer had, so it was
    never listed."""
    longest = "x" * (4095 - len("stratis-1-key-"))
    assert stratis_program("key", "set", longest, f"--keyfile-path={key_file('secret')}").returncode == 0
    assert listed() == {longest}
    too_long = stratis_program("key", "set", longest + "x", f"--keyfile-path={key_file('secret')}")
    assert too_long.returncode != 0 and "4081" in too_long.stdout + too_long.stderr
    assert listed() == {longest}


def test_bad_keys_are_refused(key_file):
    long = stratis_program("key", "set", "k2", f"--keyfile-path={key_file('x' * 65)}")
    assert long.returncode != 0 and "64 bytes" in long.stdout + long.stderr
    separator = stratis_program("key", "set", "a;b", f"--keyfile-path={key_file('secret')}")
    assert separator.returncode != 0 and ";" in separator.stderr
    assert listed() == set()
