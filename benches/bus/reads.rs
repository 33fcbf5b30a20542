//! Single reads compared with `Peer.Ping` to the same daemon, which is the cost of the round trip:
//! on an idle daemon, while every pool is being written, and with a growing number of clients.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use support::client::{self, Client};

use crate::{
    figures::{Musts, Samples, chapter, head, ratio, row, time},
    stage::{Stage, get, get_all, ping, sample},
    wire::Call,
};

const ROUNDS: usize = 20_000;
const POOLS: usize = 4;
const CLIENTS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// The time for each row of clients, for each kind of call.
const STRETCH: Duration = Duration::from_millis(700);

pub fn measure(musts: &mut Musts) {
    let mut stage = Stage::new(&[]);
    for _ in 0..POOLS {
        stage.add_pool();
        stage.add_filesystem("home");
    }
    chapter("Single reads");
    head(&["", "call", "median", "p99", "median / Ping", "p99 / Ping"]);
    against_ping(&stage, "idle", musts);
    writing(&stage, || against_ping(&stage, "every pool is being written", musts));
    chapter("Many clients");
    head(&["clients", "Get/s", "median", "p99", "Ping/s", "median", "p99"]);
    let filesystem = stage.filesystems().next().expect("filesystems exist");
    for clients in CLIENTS {
        let mut cells = vec![clients.to_string()];
        for call in [&|| get(filesystem), &ping as &(dyn Fn() -> Call + Sync)] {
            let (samples, took) = crowd(&stage, clients, call);
            cells.push(format!("{:.0}", samples.count() as f64 / took.as_secs_f64()));
            cells.extend([time(samples.median()), time(samples.p99())]);
        }
        row(&cells);
    }
}

fn against_ping(stage: &Stage, when: &str, musts: &mut Musts) {
    let mut wire = stage.wire();
    let filesystem = stage.filesystems().next().expect("filesystems exist");
    let mut calls = [("Ping", ping()), ("Get", get(filesystem)), ("GetAll", get_all(filesystem))];
    let mut samples = [const { Samples::new() }; 3];
    for _ in 0..ROUNDS {
        for ((_, call), samples) in calls.iter_mut().zip(&mut samples) {
            sample(&mut wire, call, samples);
        }
    }
    let (floor, floor_p99) = (samples[0].median(), samples[0].p99());
    for ((name, _), samples) in calls.iter().zip(&samples) {
        let (median, p99) = (ratio(samples.median(), floor), ratio(samples.p99(), floor_p99));
        let (median_shown, p99_shown) = (format!("{median:.2}"), format!("{p99:.2}"));
        row(&[when, name, &time(samples.median()), &time(samples.p99()), &median_shown, &p99_shown]);
        if *name == "Get" {
            musts.at_most(&format!("`Get`, {when}: median"), median, 1.2, " × Ping");
            musts.at_most(&format!("`Get`, {when}: p99"), p99, 2.0, " × Ping");
        }
    }
}

/// Runs `measure` while one client for each pool keeps creating, renaming and destroying
/// filesystems in it.
fn writing(stage: &Stage, measure: impl FnOnce()) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (pool, _) in &stage.pools {
            let (over, bus) = (&over, &stage.bus);
            scope.spawn(move || {
                let client = Client::new(bus);
                while !over.load(Ordering::Relaxed) {
                    write_once(&client, pool, "w");
                }
            });
        }
        measure();
        over.store(true, Ordering::Relaxed);
    });
}

/// Three mutations that restore the former state.
pub fn write_once(client: &Client, pool: &str, name: &str) {
    let made = client.done(client::create_filesystem(pool, name));
    client.done(client::rename_filesystem(&made[0], &format!("{name}-renamed")));
    client.done(client::destroy_filesystem(pool, &made[0]));
}

/// Runs clients that make calls without pause. Returns their samples and the elapsed time.
fn crowd(stage: &Stage, clients: usize, call: &(dyn Fn() -> Call + Sync)) -> (Samples, Duration) {
    let wires: Vec<_> = (0..clients).map(|_| stage.wire()).collect();
    let begin = Instant::now();
    let mut all = Samples::new();
    std::thread::scope(|scope| {
        let running: Vec<_> = wires
            .into_iter()
            .map(|mut wire| {
                scope.spawn(move || {
                    let (mut call, mut samples) = (call(), Samples::new());
                    while begin.elapsed() < STRETCH {
                        sample(&mut wire, &mut call, &mut samples);
                    }
                    samples
                })
            })
            .collect();
        running.into_iter().for_each(|client| all.append(client.join().expect("no client fails")));
    });
    (all, begin.elapsed())
}
