//! The cost of the bus side, always compared with a floor that is measured alternately in the same
//! run, so that other load on the machine affects both alike. `make bench` runs it;
//! docs/performance.md contains its output.
//!
//! Times are from the first byte of a call written to the last byte of its reply read, by a client
//! that does no more than that ([`wire`]). A client library adds its own cost.

mod beside;
mod cost;
mod figures;
mod lists;
mod reads;
mod scale;
mod stage;
mod wire;
mod writes;

use std::{env, fs};

use figures::Musts;

const USAGE: &str = "usage: bus [--only reads|lists|writes|scale|beside|start|idle|memory|clients]\n           [--calls NUMBER] [--clients NUMBER]";
/// The number of calls over which memory must stay flat. docs/performance.md promises it for
/// `--calls 1000000`.
const CALLS: usize = 100_000;
/// The number of short-lived clients over which memory must stay flat. `--clients 32000` is the
/// longer proof.
const CLIENTS: usize = 4000;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let after = |option: &str| {
        let at = arguments.iter().position(|argument| argument == option)?;
        Some(arguments.get(at + 1).unwrap_or_else(|| panic!("{USAGE}")).as_str())
    };
    if let Some(socket) = after(stage::SERVE_FLOORS) {
        stage::serve_floors(socket);
    }
    let only = after("--only");
    let calls = after("--calls").map_or(CALLS, |number| number.parse().expect(USAGE));
    let clients = after("--clients").map_or(CLIENTS, |number| number.parse().expect(USAGE));
    let wanted = |chapter: &str| only.is_none_or(|only| only == chapter);

    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = load.split(' ').next().unwrap_or_default();
    println!("{cores} cores, load {load} before the run.");
    let mut musts = Musts::default();
    if wanted("reads") {
        reads::measure(&mut musts);
    }
    if wanted("lists") {
        lists::measure(&mut musts);
    }
    if wanted("writes") {
        writes::measure();
    }
    if wanted("scale") {
        scale::measure(&mut musts);
        scale::stopped(&mut musts);
    }
    if wanted("beside") {
        beside::measure(&mut musts);
    }
    if wanted("start") {
        cost::start();
    }
    if wanted("idle") {
        cost::idle(&mut musts);
    }
    if wanted("memory") {
        cost::memory(calls, &mut musts);
    }
    if wanted("clients") {
        cost::clients(clients, &mut musts);
    }
    musts.tell();
}
