//! Missing links below `/dev/stratis` are requested again. udev changes some names.

use std::path::{Path, PathBuf};

use serde_json::json;
use stratisd::{
    engine::{
        dm_names,
        ops::{self, Depth, NewFilesystem},
        request::{Access, Granted, Step},
    },
    platform::{
        DeviceNumber, Platform, WriteStep,
        sim::{CallKind, Sim},
    },
};
use support::{
    bench::{Bench, GIB, name},
    disks::{self, reboot},
};

use crate::witness::listen;

fn link(bench: &Bench, path: &str) -> Option<DeviceNumber> {
    bench.sim.link(Path::new(path))
}

fn check(bench: &mut Bench) {
    let pool = bench.id("p");
    bench.run(ops::check_all(pool, Depth::Whole, |_| ()));
}

/// Pool `p` with the filesystem `f`, and the number of the thin device of `f`.
fn one_filesystem() -> (Bench, DeviceNumber) {
    let mut bench = Bench::start(Sim::builder().record().build());
    bench.create_pool("p", &["/dev/a"]).unwrap();
    bench.create_filesystems("p", &["f"]).unwrap();
    let number = link(&bench, "/dev/stratis/p/f").unwrap();
    (bench, number)
}

fn announcements(sim: &Sim) -> usize {
    sim.trace().iter().filter(|step| step.call == CallKind::Announce).count()
}

/// Formerly, when a udev worker was killed, the link stayed missing until the next start.
#[test]
fn a_check_asks_for_missing_links() {
    let (mut bench, number) = one_filesystem();
    bench.sim.drop_link(Path::new("/dev/stratis/p/f"));
    let ((), said) = listen(|| check(&mut bench));
    assert_eq!(link(&bench, "/dev/stratis/p/f"), Some(number));
    assert!(said.contains("/dev/stratis/p/f is missing"), "{said}");
    let before = announcements(&bench.sim);
    check(&mut bench);
    assert_eq!(announcements(&bench.sim), before, "links that are there are not asked for");
}

/// Formerly, when a `change` event removed a link, only the next check requested it, up to ten
/// seconds later.
#[test]
fn an_event_without_a_link_asks_for_it() {
    let event_of: [fn(&Sim, DeviceNumber); 2] = [Sim::coldplug, Sim::written_and_closed];
    for happens in event_of {
        let (mut bench, number) = one_filesystem();
        let mut events = bench.sim.device_events().unwrap();
        let mut told = Vec::new();
        for lost in [false, true] {
            if lost {
                bench.sim.drop_link(Path::new("/dev/stratis/p/f"));
            }
            happens(&bench.sim, number);
            let event = events.next().unwrap().unwrap();
            told.push(event.unlinked.is_some());
            bench.run(ops::device_event(event));
        }
        assert_eq!(told, [false, true]);
        assert_eq!(link(&bench, "/dev/stratis/p/f"), Some(number));
    }
}

/// Runs a chain until it waits for links.
fn until_it_waits<T>(bench: &mut Bench, mut next: Step<T>) -> Step<T> {
    loop {
        next = match next {
            Step::Done(_) | Step::Linked(..) => return next,
            Step::Blocking(_, step) => step(&bench.engine),
            Step::Parallel(parts, join) => {
                let results = parts.into_iter().map(|part| Some(part(&bench.engine))).collect();
                join(&bench.engine, results)
            }
            Step::Locked(Access::Pool(which, _), step) => {
                let pool = bench.pools.resolve(&which).unwrap();
                step(&bench.engine, Granted::Write(bench.pools.0.get_mut(&pool).unwrap()))
            }
            _ => panic!("a step that a creation does not have"),
        }
    }
}

/// While a device is formatted, and until udev has answered, its events carry no link.
#[test]
fn an_event_requests_no_awaited_link() {
    let (mut bench, _) = one_filesystem();
    let mut events = bench.sim.device_events().unwrap();
    bench.sim.hold_links();
    let new = NewFilesystem { name: name("g"), size: None, size_limit: None };
    let created = ops::create_filesystems(bench.id("p"), vec![new]);
    let waiting = until_it_waits(&mut bench, created);
    assert!(matches!(waiting, Step::Linked(..)));
    let device = dm_names::filesystem(bench.id("p"), bench.filesystem("p", "g"));
    bench.sim.written_and_closed(bench.sim.dm_find(&device).unwrap().unwrap().number);
    let before = announcements(&bench.sim);
    let mut told = 0;
    while let Some(event) = events.next().unwrap() {
        told += usize::from(event.unlinked.as_ref() == Some(&device));
        bench.run(ops::device_event(event));
    }
    assert!(told > 1, "{told}");
    assert_eq!(announcements(&bench.sim), before);
    bench.sim.release_links();
    assert_eq!(bench.run(waiting).unwrap().len(), 1);
    // From here on the link counts as missing.
    bench.sim.drop_link(Path::new("/dev/stratis/p/g"));
    bench.sim.written_and_closed(bench.sim.dm_find(&device).unwrap().unwrap().number);
    let event = events.next().unwrap().unwrap();
    bench.run(ops::device_event(event));
    assert!(link(&bench, "/dev/stratis/p/g").is_some());
}

#[test]
fn refused_links_are_requested_ever_less_often() {
    let (mut bench, _) = one_filesystem();
    bench.sim.drop_link(Path::new("/dev/stratis/p/f"));
    bench.sim.lose_links(u32::MAX);
    let before = announcements(&bench.sim);
    for _ in 0..200 {
        check(&mut bench);
    }
    assert_eq!(announcements(&bench.sim) - before, 6 + 3, "after 1, 2, 4 … 32 looks, then after each 64");
    // The link is requested at once when it is lost again after udev has made it.
    bench.sim.lose_links(0);
    for _ in 200..256 {
        check(&mut bench);
    }
    assert!(link(&bench, "/dev/stratis/p/f").is_some());
    check(&mut bench);
    bench.sim.drop_link(Path::new("/dev/stratis/p/f"));
    check(&mut bench);
    assert!(link(&bench, "/dev/stratis/p/f").is_some());
}

/// The existing daemon takes a comma for a character that udev keeps.
#[test]
fn names_that_udev_changes_share_no_link() {
    let mut bench = Bench::start(Sim::builder().build());
    for (pool, disk) in [("a_b", "/dev/a"), ("x", "/dev/b")] {
        bench.create_pool(pool, &[disk]).unwrap();
        bench.create_filesystems(pool, &["f"]).unwrap();
    }
    reboot(&bench.sim);
    disks::change(&bench.sim, "/dev/b", |json| json["name"] = json!("a,b"));
    let (bench, said) = listen(|| Bench::start(bench.sim));
    assert_eq!(bench.names(), ["a,b", "a_b"], "the pool stays usable");
    let links = bench.sim.leftovers().links;
    assert_eq!(links, ["/dev/stratis/a\\x2cb/f", "/dev/stratis/a_b/f"].map(PathBuf::from));
    assert!(said.contains("/dev/stratis/a\\x2cb/f") && said.contains("rename the pool"), "{said}");
}

/// A signature of another file system, between the blocks that mkfs writes, made the result of
/// blkid ambiguous.
#[test]
fn a_new_filesystem_has_no_old_signature() {
    const BLOCK: usize = 1 << 20;
    let sim = Sim::builder().build();
    let mut bench = Bench::start(sim.clone());
    bench.create_pool("p", &["/dev/a"]).unwrap();
    // The disk was used before: fill the space of the pool, past all headers.
    let old = vec![0xa5; BLOCK];
    for block in 64..2048 {
        sim.put(Path::new("/dev/a"), block * BLOCK as u64, &old).unwrap();
    }
    bench.create_filesystems("p", &["f"]).unwrap();
    let node = bench.thin_node(bench.id("p"), bench.filesystem("p", "f"));
    let size = sim.geometry(&node).unwrap().size.0 * 512;
    assert!(size >= GIB.0 * 512 / 2);
    for at in [0, size - BLOCK as u64] {
        let read = sim.read(&node, at, BLOCK).unwrap();
        let left = read.chunks(512).filter(|sector| sector.iter().all(|byte| *byte == 0xa5)).count();
        assert_eq!(left, 0, "sectors of what the disk held before, from byte {at} on");
    }
    // The test could fail: elsewhere a new filesystem exposes the former contents of the disk.
    sim.write(&node, &[WriteStep::At(8 * BLOCK as u64, &[1; 512])]).unwrap();
    assert_eq!(sim.read(&node, 8 * BLOCK as u64 + 512, 512).unwrap(), [0xa5; 512]);
}
