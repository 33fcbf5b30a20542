//! `stratis-decode-dm` against a daemon on a private bus.

use std::os::unix::net::UnixListener;

use support::{bus::Bus, processes::command};

use crate::{Said, pool_with_filesystem};

const DECODE: &str = env!("CARGO_BIN_EXE_stratis-decode-dm");

fn decode(address: &str, words: &[&str]) -> Said {
    Said::of(&command(DECODE).args(words).env("DBUS_SYSTEM_BUS_ADDRESS", address).output().unwrap())
}

#[test]
fn names_of_a_running_pool_are_printed() {
    let bus = Bus::start();
    let _daemon = bus.daemon(&[]);
    let (pool_uuid, fs_uuid) = pool_with_filesystem(&bus);
    let path = format!("/dev/mapper/stratis-1-{pool_uuid}-thin-fs-{fs_uuid}");
    let ask = |path: &str, output: &str| decode(&bus.address, &[path, "--output", output]);
    ask(&path, "symlink").is(0, "/dev/stratis/p1/f1\n", "");
    ask(&path, "pool-name").is(0, "p1\n", "");
    ask(&path, "filesystem-name").is(0, "f1\n", "");
    let unknown = "824da802f37d43c7916f71d33fc9a208";
    let other_pool = path.replace(&pool_uuid, unknown);
    let missing = "Error: \"Name for pool with UUID 824da802-f37d-43c7-916f-71d33fc9a208 not found\"\n";
    ask(&other_pool, "pool-name").is(1, "", missing);
    ask(&other_pool, "filesystem-name").is(0, "f1\n", "");
    let no_link = "Error: \"Pool name could not be found; can not synthesize Stratis filesystem symlink\"\n";
    ask(&other_pool, "symlink").is(1, "", no_link);
    let other_fs = path.replace(&fs_uuid, unknown);
    ask(&other_fs, "pool-name").is(0, "p1\n", "");
    let no_link = "Error: \"Filesystem name could not be found; can not synthesize Stratis filesystem symlink\"\n";
    ask(&other_fs, "symlink").is(1, "", no_link);
}

#[test]
fn wrong_paths_and_options_are_refused() {
    let bus = Bus::start();
    let ask = |words: &[&str]| decode(&bus.address, words);
    let name = "Error: \"error parsing Stratis filesystem devicemapper name \\\"name\\\"\"\n";
    ask(&["/dev/mapper/name", "--output=pool-name"]).is(1, "", name);
    let path = "Error: \"error decomposing Stratis filesystem devicemapper path: /dev/dm-0\"\n";
    ask(&["/dev/dm-0", "--output=pool-name"]).is(1, "", path);
    let relative = ask(&["name", "--output=pool-name"]);
    assert_eq!(relative.status, 2);
    assert!(relative.stderr.contains("'name' must be specified as an absolute path"), "{}", relative.stderr);
    assert_eq!(ask(&["/dev/mapper/name"]).status, 2);
    assert_eq!(ask(&["/dev/mapper/name", "--output=uuid"]).status, 2);
    assert_eq!(ask(&["--output=pool-name"]).status, 2);
}

const PATH: &str = "/dev/mapper/stratis-1-3524f7f329154326aa341c9750598037-thin-fs-7da3bdccfafe4783bf420f2a2d22b37a";

#[test]
fn without_a_daemon_or_bus_it_fails() {
    let bus = Bus::start();
    let said = decode(&bus.address, &[PATH, "--output", "symlink"]);
    let start =
        "Error: \"Unable to retrieve Stratis information from the D-Bus: org.freedesktop.DBus.Error.ServiceUnknown: ";
    assert!(said.status == 1 && said.stdout.is_empty() && said.stderr.starts_with(start), "{said:?}");
    let said = decode("unix:path=/nonexistent/bus", &[PATH, "--output", "symlink"]);
    let start = "Error: \"Unable to retrieve Stratis information from the D-Bus: org.freedesktop.DBus.Error.";
    assert!(said.status == 1 && said.stderr.starts_with(start), "{said:?}");
}

/// A bus that accepts connections and says nothing. libdbus waits for it without a bound.
#[test]
fn a_silent_bus_ends_the_wait() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("bus");
    let _listener = UnixListener::bind(&socket).unwrap();
    let said = decode(&format!("unix:path={}", socket.display()), &[PATH, "--output", "symlink"]);
    assert!(said.status == 1 && said.stderr.contains("org.freedesktop.DBus.Error.NoReply"), "{said:?}");
}
