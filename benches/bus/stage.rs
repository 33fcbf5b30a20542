//! The measured system: a private bus with raised limits, one `stratisd --sim`, a second program
//! that serves the floors, and pools with filesystems.
//!
//! This module knows nothing of what is measured.

use std::{
    collections::BTreeMap,
    fs,
    process::{Child, Command},
    time::{Duration, Instant},
};

use support::{
    bus::{Bus, Limits},
    client::{self, Client},
    daemon::Daemon,
};

use crate::{
    figures::Samples,
    wire::{Call, Wire},
};

/// The limits that docs/bus.md recommends for tens of thousands of filesystems.
const LIMITS: Limits = Limits { message_bytes: Some(64 << 20), held_bytes: None };
const LIMIT_VARIABLE: (&str, &str) = ("STRATISD_DBUS_MAX_MESSAGE_SIZE", "67108864");
/// The default limit on the number of filesystems in a pool.
const FILESYSTEMS_OF_A_POOL: usize = 100;
/// Bus name and object path of the program that serves the floors.
const FLOORS: &str = "bench.Floors";
/// The argument that makes this program serve the floors. The socket of the bus follows it.
pub const SERVE_FLOORS: &str = "--serve-floors";

pub fn list() -> Call {
    Call::new(client::NAME, client::TOP, client::OBJECT_MANAGER, "GetManagedObjects", &[])
}

pub fn ping() -> Call {
    Call::new(client::NAME, client::TOP, client::PEER, "Ping", &[])
}

pub fn get(filesystem: &str) -> Call {
    Call::new(client::NAME, filesystem, client::PROPERTIES, "Get", &[client::FILESYSTEM, "Name"])
}

pub fn get_all(filesystem: &str) -> Call {
    Call::new(client::NAME, filesystem, client::PROPERTIES, "GetAll", &[client::FILESYSTEM])
}

/// A method of the program that serves the floors.
pub fn floor(method: &str) -> Call {
    Call::new(FLOORS, "/", FLOORS, method, &[])
}

/// The main function of the program that serves the floors.
pub fn serve_floors(socket: &str) -> ! {
    let mut wire = Wire::connect(socket.as_ref());
    wire.take_name(FLOORS);
    wire.serve_floors(&mut list(), "a{oa{sa{sv}}}")
}

/// Sends a call, waits for its reply and records the time.
pub fn sample(wire: &mut Wire, call: &mut Call, samples: &mut Samples) {
    let begin = Instant::now();
    wire.call(call);
    samples.add(begin.elapsed());
}

/// A child process that ends with the stage.
struct Floors(Child);

impl Drop for Floors {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The measured system. Fields are dropped in order, the bus last.
pub struct Stage {
    _floors: Floors,
    pub daemon: Daemon,
    pub client: Client,
    /// The paths of the pools, each with the paths of its filesystems.
    pub pools: Vec<(String, Vec<String>)>,
    pub bus: Bus,
}

impl Stage {
    /// A bus and a daemon without pools.
    pub fn new(variables: &[(&str, &str)]) -> Stage {
        let bus = Bus::with_limits(LIMITS);
        let daemon = bus.daemon(&[&[LIMIT_VARIABLE], variables].concat());
        #[allow(clippy::disallowed_methods, reason = "like the daemon, a floor must be another process")]
        let floors = Command::new(std::env::current_exe().expect("the path of this program is known"))
            .arg(SERVE_FLOORS)
            .arg(bus.socket())
            .spawn()
            .expect("this program can be started again");
        let client = Client::new(&bus);
        Stage { _floors: Floors(floors), daemon, client, pools: Vec::new(), bus }
    }

    pub fn wire(&self) -> Wire {
        Wire::connect(&self.bus.socket())
    }

    /// Creates filesystems up to this number, with the pools that they need.
    pub fn grow_to(&mut self, filesystems: usize) {
        for number in self.filesystems().count()..filesystems {
            if number.is_multiple_of(FILESYSTEMS_OF_A_POOL) {
                self.add_pool();
            }
            self.add_filesystem(&format!("fs{number}"));
        }
    }

    /// Creates a filesystem in the last pool.
    pub fn add_filesystem(&mut self, name: &str) {
        let (pool, filesystems) = self.pools.last_mut().expect("pools are created first");
        // The reply contains the path, then the name.
        filesystems.push(self.client.done(client::create_filesystem(pool, name)).swap_remove(0));
    }

    /// Creates a pool.
    pub fn add_pool(&mut self) {
        let number = self.pools.len();
        let made = self.client.done(client::create_pool(&format!("p{number}"), &[&format!("/dev/d{number}")]));
        self.pools.push((made[0].clone(), Vec::new()));
    }

    pub fn filesystems(&self) -> impl Iterator<Item = &String> {
        self.pools.iter().flat_map(|(_, filesystems)| filesystems)
    }

    /// How often each thread of the daemon has gone to sleep since it started, by thread name.
    pub fn sleeps(&self) -> BTreeMap<String, u64> {
        let bus = "org.freedesktop.DBus";
        let mut ask = Call::new(bus, "/org/freedesktop/DBus", bus, "GetConnectionUnixProcessID", &[client::NAME]);
        let mut wire = self.wire();
        let answer = wire.call(&mut ask);
        let process = u32::from_le_bytes(answer.try_into().expect("a process id is one number"));
        let mut sleeps = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{process}/task")).expect("the daemon runs") {
            let task = task.expect("a readable directory").path();
            let name = fs::read_to_string(task.join("comm")).expect("threads do not end while the daemon runs");
            let status = fs::read_to_string(task.join("status")).expect("threads do not end while the daemon runs");
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            let count: u64 = line.and_then(|count| count.trim().parse().ok()).expect("the kernel counts them");
            *sleeps.entry(name.trim().to_owned()).or_default() += count;
        }
        sleeps
    }

    /// The threads that woke up within a time, and how often. Work that is still running at the
    /// start has a second to settle.
    #[allow(clippy::disallowed_methods, reason = "the measurement is about a span of time")]
    pub fn wakings(&self, within: Duration) -> BTreeMap<String, u64> {
        std::thread::sleep(Duration::from_secs(1));
        let before = self.sleeps();
        std::thread::sleep(within);
        let woken = |(name, count): (String, u64)| {
            let more = count - before.get(&name).copied().unwrap_or_default();
            (more > 0).then_some((name, more))
        };
        self.sleeps().into_iter().filter_map(woken).collect()
    }
}
