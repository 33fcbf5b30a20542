//! The idle cost of the daemon: its start, its wake-ups without requests, its memory.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use support::bus::Bus;

use crate::{
    figures::{Musts, Samples, chapter, head, row, time},
    stage::{Stage, get, get_all, list, ping},
};

const STARTS: usize = 20;
const IDLE: Duration = Duration::from_secs(12);
/// Two or three rounds of checks.
const IDLE_WITH_POOLS: Duration = Duration::from_secs(25);
const POOLS: u64 = 3;
/// The threads that the periodic check needs.
const OF_THE_CHECK: [&str; 3] = ["timers", "worker-", "tree-writer"];
const FILESYSTEMS: usize = 1000;
const LISTS: usize = 20;
const FILESYSTEMS_OF_100_KB: usize = 25;
/// The growth of memory over many calls that still counts as flat: the allocator's pages move a
/// little.
const GROWTH_MAX_KIB: u64 = 512;

pub fn start() {
    let mut samples = Samples::new();
    for _ in 0..STARTS {
        let bus = Bus::start();
        let begin = Instant::now();
        let _daemon = bus.daemon(&[]);
        samples.add(begin.elapsed());
    }
    chapter("Start");
    head(&["", "median", "max"]);
    row(&["program started to name acquired and readiness reported", &time(samples.median()), &time(samples.max())]);
}

pub fn idle(musts: &mut Musts) {
    let mut stage = Stage::new(&[]);
    let without = stage.wakings(IDLE);
    (0..POOLS).for_each(|_| stage.add_pool());
    let with = stage.wakings(IDLE_WITH_POOLS);
    let show = |wakings: &BTreeMap<String, u64>| {
        let each: Vec<_> = wakings.iter().map(|(name, count)| format!("{name} {count}")).collect();
        if each.is_empty() { "none".to_owned() } else { each.join(", ") }
    };
    chapter("Wake-ups when idle");
    head(&["", "within", "threads that woke up, and how often"]);
    row(&["no pool".to_owned(), format!("{} s", IDLE.as_secs()), show(&without)]);
    row(&[format!("{POOLS} pools"), format!("{} s", IDLE_WITH_POOLS.as_secs()), show(&with)]);
    musts.note("wake-ups without pools", &show(&without), without.is_empty());
    let of_the_check = |name: &String| OF_THE_CHECK.iter().any(|thread| name.starts_with(thread));
    let rounds = IDLE_WITH_POOLS.as_secs() / 10 + 1;
    let timer = with.get("timers").copied().unwrap_or_default();
    musts.note(
        &format!("wake-ups with {POOLS} pools: only for the check every 10 s"),
        &show(&with),
        with.keys().all(of_the_check) && timer <= rounds * (1 + POOLS),
    );
}

/// The parts of the crowd of short-lived clients. The first two fill the queues.
const PARTS: usize = 10;
const PARTS_BEFORE: usize = 2;

/// Short-lived clients, one after the other, that ask for a list of some 100 kB. Some read it,
/// others disconnect without reading.
///
/// Those that do not read come faster than lists can be sent, so the queue of lists is full most of
/// the time, and memory goes up and down with it. What is kept for each client would raise the
/// lowest value, too. So the limit is for the lowest value of the first and of the second half.
pub fn clients(count: usize, musts: &mut Musts) {
    chapter("Resident memory over short-lived clients");
    let after = |parts: usize| format!("after {}", count / PARTS * parts);
    head(&["", &after(PARTS_BEFORE), &after(PARTS), "lowest in the first half", "in the second"]);
    for (what, reads) in [("they read their lists", true), ("they leave without", false)] {
        let mut stage = Stage::new(&[]);
        stage.grow_to(FILESYSTEMS_OF_100_KB);
        let mut resident = Vec::new();
        for _ in 0..PARTS {
            for _ in 0..count / PARTS {
                let mut wire = stage.wire();
                match reads {
                    true => drop(wire.call(&mut list())),
                    false => wire.post(&mut list()),
                }
            }
            // This call is answered after all earlier ones.
            stage.wire().call(&mut ping());
            resident.push(stage.daemon.resident_kib());
        }
        let (first, second) = resident[PARTS_BEFORE..].split_at((PARTS - PARTS_BEFORE) / 2);
        let lowest = |half: &[u64]| half.iter().copied().min().unwrap_or_default();
        let growth = lowest(second).saturating_sub(lowest(first));
        let kib = |kib: u64| format!("{kib} KiB");
        let figures = [resident[PARTS_BEFORE - 1], resident[PARTS - 1], lowest(first), lowest(second)];
        row(&[vec![what.to_owned()], figures.map(kib).to_vec()].concat());
        musts.note(
            &format!("flat over {count} clients, {what}"),
            &format!("{} more", kib(growth)),
            growth <= GROWTH_MAX_KIB,
        );
    }
}

/// `calls` calls of every kind of read, in ten parts.
pub fn memory(calls: usize, musts: &mut Musts) {
    let mut stage = Stage::new(&[]);
    let mib = |kib: u64| kib as f64 / 1024.0;
    let line = |what: &str, kib: u64| row(&[what, &format!("{:.1} MiB", mib(kib))]);
    chapter("Resident memory");
    head(&["", "VmRSS"]);
    let idle = stage.daemon.resident_kib();
    line("idle, no pool", idle);
    stage.grow_to(FILESYSTEMS);
    line("1000 filesystems created", stage.daemon.resident_kib());
    let mut wire = stage.wire();
    for _ in 0..LISTS {
        wire.call(&mut list());
    }
    let listed = stage.daemon.resident_kib();
    line(&format!("… and listed {LISTS} times"), listed);

    let filesystem = stage.filesystems().next().expect("filesystems exist");
    let mut kinds = [ping(), get(filesystem), get_all(filesystem)];
    let mut after = Vec::new();
    for _ in 0..10 {
        for number in 0..calls / 10 {
            wire.call(&mut kinds[number % 3]);
        }
        wire.call(&mut list());
        after.push(stage.daemon.resident_kib());
    }
    line(&format!("… after {} calls", calls / 10), after[0]);
    line(&format!("… after {calls} calls"), after[9]);
    musts.at_most("resident memory, idle", mib(idle), 12.0, " MiB");
    musts.at_most("resident memory, 1000 filesystems, listed", mib(listed), 40.0, " MiB");
    let growth = after[9].saturating_sub(after[0]);
    musts.note(&format!("flat over {calls} calls"), &format!("{growth} KiB more"), growth <= GROWTH_MAX_KIB);
}
