//! The cost of calls about one pool beside something large, long or hung in other pools, compared
//! with the same calls to an idle daemon.

use std::{
    fs::File,
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use dbus::arg::{RefArg, Variant};
use support::client::{self, Client, MANAGER, Outcome, POOL, PROPERTIES, TOP};

use crate::{
    figures::{Musts, Samples, chapter, head, ratio, row, time},
    stage::{Stage, floor, get, ping, sample},
};

const HOUR_MS: &str = "3600000";
const FILESYSTEMS: usize = 10_000;
/// Calls that one client has waiting: one less than the pending replies that a system bus allows a
/// connection.
const CALLS_OF_ONE: usize = 127;
/// Formats that never end. Half of the workers may run slow steps.
const HUNG: usize = 8;
/// Requests that wait for a claim of such a format.
const PARKED: usize = 12_000;
const KEYS: usize = 256;
const KEYS_OF_ONE: usize = 64;
/// The time of each measurement. A rename of all filesystems takes a second.
const STRETCH: Duration = Duration::from_secs(5);
const GET_P99_MAX: Duration = Duration::from_millis(10);

/// A pool that the load does not touch.
struct Quiet {
    pool: String,
    device: String,
    filesystem: String,
}

/// The durations of calls about the quiet pool. `Get` alternates with two floors: `Ping` to another
/// program on the same bus, which is the cost of the bus, and `Ping` to the daemon.
struct Figures {
    bus: Samples,
    ping: Samples,
    get: Samples,
    set: Samples,
    creation: Samples,
}

pub fn measure(musts: &mut Musts) {
    let slow = [("STRATISD_SIM_SLOW_MS", HOUR_MS), ("STRATISD_SIM_SLOW_PATH", "/dev/slow")];
    let stage = Stage::new(&[&slow[..], &[("STRATISD_SIM_DISK_GIB", "16384")]].concat());
    let made = stage.client.done(client::create_pool("quiet", &["/dev/quiet"]));
    let filesystem = stage.client.done(client::create_filesystem(&made[0], "home")).swap_remove(0);
    let quiet = Quiet { pool: made[0].clone(), device: made[1].clone(), filesystem };
    let large = large_pool(&stage.client);

    chapter("One pool beside load on others");
    head(&[
        "beside",
        "another program's Ping, median",
        "p99",
        "Ping, median",
        "p99",
        "Get, median",
        "p99",
        "Set, median",
        "p99",
        "creation, median",
        "p99",
    ]);
    let idle = calls(&stage, &quiet);
    tell("nothing", &idle);
    let mut compare = |what: &str, found: Figures| {
        tell(what, &found);
        musts.at_most(
            &format!("`Get` beside {what}: median"),
            ratio(found.get.median(), idle.get.median()),
            2.0,
            " × idle",
        );
        let over_bus = ratio(found.get.median(), found.bus.median());
        musts.note("… against the floor of the same stretch", &format!("{over_bus:.2} × another program's Ping"), true);
        let p99_ms = found.get.p99().as_secs_f64() * 1e3;
        musts.at_most(&format!("`Get` beside {what}: p99"), p99_ms, GET_P99_MAX.as_secs_f64() * 1e3, " ms");
        musts.at_most(
            &format!("`Set` beside {what}: median"),
            ratio(found.set.median(), idle.set.median()),
            3.0,
            " × idle",
        );
        let creation = ratio(found.creation.median(), idle.creation.median());
        musts.at_most(&format!("creation beside {what}: median"), creation, 3.0, " × idle");
    };
    let renames = |client: &Client, round: usize| {
        client.done(client::rename_pool(&large, &format!("large{}", round % 2)));
    };
    compare("renames of 10,000 filesystems", beside(&stage, &quiet, renames));
    let reports = |client: &Client, _: usize| drop(client.call(client::engine_state_report()));
    compare("endless reports on 10,000 filesystems", beside(&stage, &quiet, reports));
    {
        let _awaited = awaited_keys(&stage);
        compare("256 awaited keys", calls(&stage, &quiet));
    }
    let hung = Client::new(&stage.bus);
    for number in 0..HUNG {
        hung.send(client::create_pool(&format!("slow{number}"), &[&format!("/dev/slow-{number}")]));
    }
    hung.call(client::ping());
    compare("8 hung formats", calls(&stage, &quiet));
    let parked: Vec<(Client, Vec<u32>)> = (0..PARKED.div_ceil(CALLS_OF_ONE)).map(|_| parked_calls(&stage)).collect();
    compare("8 hung formats and 12,000 parked requests", calls(&stage, &quiet));
    let waiting: usize = parked
        .iter()
        .map(|(client, calls)| {
            client.call(client::ping());
            calls.iter().filter(|call| !client.has_reply(**call)).count()
        })
        .sum();
    musts.note("parked requests that wait to the end", &waiting.to_string(), waiting >= PARKED);
}

/// Creates a pool with many filesystems. Returns the path of the pool.
fn large_pool(client: &Client) -> String {
    let pool = client.done(client::create_pool("large", &["/dev/large"])).swap_remove(0);
    let limit = Variant(Box::new(2 * FILESYSTEMS as u64) as Box<dyn RefArg>);
    client.call(client::call(&pool, PROPERTIES, "Set", (POOL, "FsLimit", limit)));
    let names: Vec<String> = (0..FILESYSTEMS).map(|number| format!("f{number}")).collect();
    for some in names.chunks(CALLS_OF_ONE) {
        let create = |name: &String| {
            let wanted = vec![(name.as_str(), (true, "536870912"), (false, ""))];
            client.send(client::call(&pool, POOL, "CreateFilesystems", (wanted,)))
        };
        let calls: Vec<u32> = some.iter().map(create).collect();
        for call in calls {
            let outcome = client::outcome(&client.wait(call));
            assert!(matches!(outcome, Outcome::Changed(_)), "{outcome:?}");
        }
    }
    pool
}

/// Measures while a client repeats some work.
fn beside(stage: &Stage, quiet: &Quiet, work: impl Fn(&Client, usize) + Sync) -> Figures {
    let over = AtomicBool::new(false);
    let client = Client::new(&stage.bus);
    std::thread::scope(|scope| {
        let (over, work) = (&over, &work);
        scope.spawn(move || {
            (0..).take_while(|_| !over.load(Ordering::Relaxed)).for_each(|round| work(&client, round));
        });
        let found = calls(stage, quiet);
        over.store(true, Ordering::Relaxed);
        found
    })
}

fn calls(stage: &Stage, Quiet { pool, device, filesystem }: &Quiet) -> Figures {
    let (mut wire, mut bus, mut ping, mut get) = (stage.wire(), floor("Ping"), ping(), get(filesystem));
    let client = Client::new(&stage.bus);
    let [of_bus, of_ping, of_get, set, creation] = [const { Samples::new() }; 5];
    let mut found = Figures { bus: of_bus, ping: of_ping, get: of_get, set, creation };
    let timed = |call: dbus::Message, samples: &mut Samples| {
        let begin = Instant::now();
        let made = client.done(call);
        samples.add(begin.elapsed());
        made
    };
    let begin = Instant::now();
    for round in 0.. {
        if begin.elapsed() > STRETCH {
            break;
        }
        for _ in 0..10 {
            sample(&mut wire, &mut bus, &mut found.bus);
            sample(&mut wire, &mut ping, &mut found.ping);
            sample(&mut wire, &mut get, &mut found.get);
        }
        timed(client::set_user_info(device, &format!("note{round}")), &mut found.set);
        let made = timed(client::create_filesystem(pool, "new"), &mut found.creation);
        client.done(client::destroy_filesystem(pool, &made[0]));
    }
    found
}

fn tell(beside: &str, Figures { bus, ping, get, set, creation }: &Figures) {
    let figures =
        [bus, ping, get, set, creation].into_iter().flat_map(|samples| [time(samples.median()), time(samples.p99())]);
    row(&std::iter::once(beside.to_owned()).chain(figures).collect::<Vec<_>>());
}

/// Calls whose keys are never written, and the write ends of the pipes.
fn awaited_keys(stage: &Stage) -> Vec<(Client, Vec<std::io::PipeWriter>)> {
    let one = |of: usize| {
        let client = Client::new(&stage.bus);
        let ends = (0..KEYS_OF_ONE).map(|number| {
            let (reader, writer) = std::io::pipe().expect("descriptors are left");
            let reader = File::from(OwnedFd::from(reader));
            client.send(client::call(TOP, MANAGER, "SetKey", (format!("key-{of}-{number}"), reader)));
            writer
        });
        let ends = ends.collect();
        client.call(client::ping());
        (client, ends)
    };
    (0..KEYS / KEYS_OF_ONE).map(one).collect()
}

/// A client with many calls that wait for the name of a pool whose creation hangs.
fn parked_calls(stage: &Stage) -> (Client, Vec<u32>) {
    let client = Client::new(&stage.bus);
    let calls = (0..CALLS_OF_ONE).map(|_| client.send(client::create_pool("slow0", &["/dev/another"]))).collect();
    client.call(client::ping());
    (client, calls)
}
