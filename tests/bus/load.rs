//! Loads under which other daemons stopped answering or missed their own writes: a few writers with
//! a reader of lists, and many clients of every kind. Every call must be answered, and every writer
//! must see its own writes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rand::{Rng, SeedableRng, rngs::StdRng};
use support::{
    bus::Bus,
    client::{self, Client, FILESYSTEM},
};

/// Counts over all clients.
#[derive(Default)]
struct Counts {
    changes: AtomicUsize,
    reads: AtomicUsize,
    misses: AtomicUsize,
}

impl Counts {
    fn change(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads a filesystem in a list and by `Get`. `wanted` is its name, or `None` if it must not
    /// exist.
    fn look(&self, client: &Client, path: &str, wanted: Option<&str>) {
        let listed = client::labels(&client.list()).into_iter().find(|(at, _)| at == path);
        let listed = listed.map(|(_, label)| match label {
            client::Label::Filesystem(_, name) => name,
            other => panic!("{other:?}"),
        });
        let got = client::value(&client.call(client::get(path, FILESYSTEM, "Name"))).ok();
        self.reads.fetch_add(2, Ordering::Relaxed);
        if listed.as_deref() != wanted || got.as_deref() != wanted {
            eprintln!("{path} should be {wanted:?}, is {got:?}, is listed as {listed:?}");
            self.misses.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn report(self, what: &str) {
        let (changes, reads) = (self.changes.into_inner(), self.reads.into_inner());
        let misses = self.misses.into_inner();
        println!("{what}: {changes} changes, {reads} reads, {misses} misses");
        assert_eq!(misses, 0);
    }
}

/// Creates, renames and destroys a filesystem, with a read after each change.
fn write(client: &Client, pool: &str, tag: &str, counts: &Counts) {
    let path = &client.done(client::create_filesystem(pool, tag))[0];
    counts.look(client, path, Some(tag));
    let name = format!("{tag}-renamed");
    client.done(client::rename_filesystem(path, &name));
    counts.look(client, path, Some(&name));
    client.done(client::destroy_filesystem(pool, path));
    counts.look(client, path, None);
    (0..3).for_each(|_| counts.change());
}

#[test]
fn four_writers_see_their_own_writes() {
    let bus = Bus::start();
    let _daemon = bus.daemon(&[]);
    let pool = &Client::new(&bus).done(client::create_pool("p", &["/dev/a"]))[0];
    let (counts, over) = (Counts::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (bus, counts) = (&bus, &counts);
                scope.spawn(move || {
                    let client = Client::new(bus);
                    (0..150).for_each(|round| write(&client, pool, &format!("w{writer}-{round}"), counts));
                })
            })
            .collect();
        scope.spawn(|| {
            let client = Client::new(&bus);
            while !over.load(Ordering::Relaxed) {
                assert!(client::paths(&client.list()).contains(pool));
                counts.reads.fetch_add(1, Ordering::Relaxed);
            }
        });
        let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        over.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    counts.report("4 writers, 1 reader");
}

#[test]
fn sixteen_clients_of_every_kind_are_answered() {
    let bus = Bus::start();
    let _daemon = bus.daemon(&[]);
    let first = Client::new(&bus);
    let pools: Vec<String> =
        (0..4).map(|n| first.done(client::create_pool(&format!("p{n}"), &[&format!("/dev/{n}")]))[0].clone()).collect();
    let counts = Counts::default();
    std::thread::scope(|scope| {
        for number in 0..16u64 {
            let (bus, counts, pools) = (&bus, &counts, &pools);
            scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(number);
                let client = Client::new(bus).listens(",member='InterfacesAdded'");
                for round in 0..40 {
                    let tag = format!("c{number}-{round}");
                    match random.random_range(0..4) {
                        0 | 1 => write(&client, &pools[random.random_range(0..pools.len())], &tag, counts),
                        2 => {
                            let made = client.done(client::create_pool(&tag, &[&format!("/dev/{tag}")]));
                            let list = client::paths(&client.list());
                            counts
                                .misses
                                .fetch_add(made.iter().filter(|path| !list.contains(*path)).count(), Ordering::Relaxed);
                            client.done(client::destroy_pool(&made[0]));
                            let list = client::paths(&client.list());
                            counts
                                .misses
                                .fetch_add(made.iter().filter(|path| list.contains(*path)).count(), Ordering::Relaxed);
                            counts.change();
                            counts.change();
                            counts.reads.fetch_add(2, Ordering::Relaxed);
                        }
                        _ => {
                            client.list();
                            client.call(client::ping());
                            counts.reads.fetch_add(2, Ordering::Relaxed);
                        }
                    }
                    client.take_signals();
                }
            });
        }
    });
    counts.report("16 clients");
}
