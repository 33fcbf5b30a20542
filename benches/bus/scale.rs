//! One pool with a growing number of filesystems: the cost of one more, and of the list, the stop
//! and the start of all. The floor is the smallest number: the cost per filesystem must not grow.
//! Also one pool beside a growing number of stopped ones.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use dbus::arg::Variant;
use support::client::{self, Client, MANAGER, POOL, PROPERTIES, TOP};

use crate::{
    figures::{Musts, Samples, chapter, head, ratio, row, time},
    stage::{Stage, sample},
    wire::Call,
};

const NUMBERS: [usize; 4] = [125, 250, 500, 1000];
/// The tolerated growth of the cost per filesystem between the smallest and the largest number.
const TOLERANCE: f64 = 1.5;
/// Numbers of stopped pools: none, as many as each signal contains, and many.
const STOPPED: [usize; 3] = [0, 15, 1000];
const ROUNDS: usize = 100;

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let result = work();
    (result, begin.elapsed())
}

fn named(member: &str, pool_name: &str) -> dbus::Message {
    let call = client::call(TOP, MANAGER, member, (pool_name, "name"));
    match member {
        // Not encrypted, without a key, and with its cache.
        "StartPool" => {
            let none = File::open("/dev/null").expect("/dev/null exists");
            call.append3((false, (false, 0_u32)), (false, none), false)
        }
        _ => call,
    }
}

fn pool_path(client: &Client) -> String {
    let list = client.list();
    let objects = client::objects(&list);
    let found = objects.iter().find(|(_, interfaces)| interfaces.contains_key(POOL));
    found.expect("the pool runs").0.clone()
}

pub fn measure(musts: &mut Musts) {
    let mut stage = Stage::new(&[]);
    stage.add_pool();
    let client = Client::new(&stage.bus);
    let limit = Variant(Box::new(2000_u64) as Box<dyn dbus::arg::RefArg>);
    client.call(client::call(&stage.pools[0].0, PROPERTIES, "Set", (POOL, "FsLimit", limit)));

    chapter("Filesystems of one pool");
    head(&["filesystems", "creation of one", "list", "StopPool", "StartPool", "the last two, for each filesystem"]);
    let (mut made, mut first) = (0, None);
    let mut costs = [0.0; 2];
    for number in NUMBERS {
        let pool = pool_path(&client);
        let ((), creation) = timed(|| {
            for number in made..number {
                client.done(client::create_filesystem(&pool, &format!("f{number}")));
            }
        });
        let creation = creation / u32::try_from(number - made).expect("a thousand at most");
        made = number;
        let (_, list) = timed(|| client.list());
        let (_, stop) = timed(|| client.done(named("StopPool", "p0")));
        let (_, start) = timed(|| client.done(named("StartPool", "p0")));
        let each = (stop + start) / u32::try_from(number).expect("a thousand at most");
        row(&[number.to_string(), time(creation), time(list), time(stop), time(start), time(each)]);
        costs = [creation, each].map(|cost| cost.as_secs_f64());
        first.get_or_insert(costs);
    }
    let first = first.unwrap_or(costs);
    for (what, (last, first)) in ["creation of one", "stop and start, for each"].iter().zip(costs.iter().zip(first)) {
        musts.at_most(&format!("{what}: with 1000 against 125 filesystems"), last / first, TOLERANCE, " ×");
    }
}

/// The time to stop and start a pool beside stopped pools, and to read the property that lists
/// them.
pub fn stopped(musts: &mut Musts) {
    let stage = Stage::new(&[]);
    let client = Client::new(&stage.bus);
    client.done(client::create_pool("mine", &["/dev/mine"]));
    let arguments = ["org.storage.stratis3.Manager.r9", "StoppedPools"];
    let mut get = Call::new(client::NAME, TOP, PROPERTIES, "Get", &arguments);
    let mut wire = stage.wire();

    chapter("One pool beside stopped pools");
    head(&["stopped", "StopPool, median", "p99", "StartPool, median", "p99", "Get of StoppedPools"]);
    let (mut made, mut first, mut last) = (0, None, [Duration::ZERO; 2]);
    for number in STOPPED {
        for number in made..number {
            client.done(client::create_pool(&format!("s{number}"), &[&format!("/dev/s{number}")]));
            client.done(named("StopPool", &format!("s{number}")));
        }
        made = number;
        let [mut stops, mut starts, mut gets] = [const { Samples::new() }; 3];
        for _ in 0..ROUNDS {
            stops.add(timed(|| client.done(named("StopPool", "mine"))).1);
            starts.add(timed(|| client.done(named("StartPool", "mine"))).1);
        }
        // Measured separately, because a long list evicts everything else from the processors'
        // caches.
        for _ in 0..ROUNDS {
            sample(&mut wire, &mut get, &mut gets);
        }
        let both = [&stops, &starts].into_iter().flat_map(|samples| [time(samples.median()), time(samples.p99())]);
        row(&[vec![number.to_string()], both.collect(), vec![time(gets.median())]].concat());
        last = [stops.median(), starts.median()];
        first.get_or_insert(last);
    }
    let first = first.unwrap_or(last);
    for (what, (last, first)) in ["StopPool", "StartPool"].iter().zip(last.into_iter().zip(first)) {
        musts.at_most(&format!("{what} beside 1000 stopped pools"), ratio(last, first), TOLERANCE, " × beside none");
    }
}
