//! The programs beside the daemon, run as users and other programs run them: the examples of
//! `docs/spec/tools/utilities.md`, and their output on pools that the engine makes on the simulated
//! machine.

// A failed unwrap shows where a test stopped. Clippy allows it only in functions marked as tests,
// not in their helpers.
#![allow(clippy::unwrap_used)]

mod decode_dm;
mod doctor;
mod examples;
mod legacy_pool;
mod metadata;
mod predict_usage;

use std::{ffi::OsStr, fs, path::PathBuf, process::Output};

use stratisd::platform::{Platform, sim::Sim};
use support::{
    bus::Bus,
    client::{self, Client},
    processes::command,
};
use tempfile::TempDir;

/// What a program printed, and its exit status.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Said {
    fn of(output: &Output) -> Said {
        Said {
            status: output.status.code().expect("no signal ended the program"),
            stdout: String::from_utf8(output.stdout.clone()).unwrap(),
            stderr: String::from_utf8(output.stderr.clone()).unwrap(),
        }
    }

    #[track_caller]
    fn is(&self, status: i32, stdout: &str, stderr: &str) {
        assert_eq!((self.status, self.stdout.as_str(), self.stderr.as_str()), (status, stdout, stderr));
    }
}

const TOOLS: &str = env!("CARGO_BIN_EXE_stratisd-tools");

fn run<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> Said {
    Said::of(&command(program).args(arguments).env_remove("RUST_LOG").output().unwrap())
}

/// Creates the pool `p1` with the filesystem `f1` through the daemon on this bus. Returns their UUIDs.
fn pool_with_filesystem(bus: &Bus) -> (String, String) {
    let client = Client::new(bus);
    let pool = client.done(client::create_pool("p1", &["/dev/a"])).remove(0);
    let filesystem = client.done(client::create_filesystem(&pool, "f1")).remove(0);
    let uuid = |path: &str, interface: &str| client::value(&client.call(client::get(path, interface, "Uuid"))).unwrap();
    (uuid(&pool, client::POOL), uuid(&filesystem, client::FILESYSTEM))
}

/// Writes the first mebibytes of a simulated disk into a file.
fn image(folder: &TempDir, sim: &Sim, disk: &str) -> PathBuf {
    let path = folder.path().join(disk.replace('/', "_"));
    fs::write(&path, sim.read(disk.as_ref(), 0, 2 << 20).unwrap()).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(8 << 20).unwrap();
    path
}
