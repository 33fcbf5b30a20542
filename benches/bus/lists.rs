//! GetManagedObjects compared with two floors, called alternately by the same client: a byte array
//! of the same size, and the same list from the memory of another program. The second floor is the
//! cost of the bus, which checks every value of a list from any program. The programs of both
//! floors only write the message.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use support::client;

use crate::{
    figures::{Musts, Samples, chapter, head, ratio, row, time},
    stage::{Stage, floor, get, list, sample},
    wire::Call,
};

/// Numbers of filesystems, and how often each list is requested.
const SIZES: [(usize, usize); 4] = [(10, 200), (100, 100), (1000, 40), (10_000, 6)];
/// The number of filesystems for which limits are set.
const JUDGED: usize = 1000;
/// Lists requested while single reads are timed.
const LISTS_MEANWHILE: usize = 6;

pub fn measure(musts: &mut Musts) {
    let mut stage = Stage::new(&[]);
    chapter("Lists of all objects");
    let columns =
        ["filesystems", "bytes", "byte array", "same list from memory", "list, unchanged", "list, one changed"];
    head(&[columns.as_slice(), &["/ byte array", "/ same list"]].concat());
    for (filesystems, rounds) in SIZES {
        stage.grow_to(filesystems);
        one_size(&stage, filesystems, rounds, musts);
    }
    chapter("Single reads beside lists of the last size");
    head(&["Get", "calls", "median", "p99", "max"]);
    meanwhile(&stage, "beside the daemon's lists", list());
    meanwhile(&stage, "beside the same lists from another program", floor("Kept"));
}

fn one_size(stage: &Stage, filesystems: usize, rounds: usize, musts: &mut Musts) {
    let mut wire = stage.wire();
    let (mut list, mut bytes, mut kept) = (list(), floor("Bytes"), floor("Kept"));
    wire.call(&mut floor("Keep"));
    let length = wire.call(&mut list).len();
    let [mut of_bytes, mut of_kept, mut of_unchanged, mut of_changed] = [const { Samples::new() }; 4];
    let changed = stage.filesystems().next().expect("filesystems exist");
    for round in 0..rounds {
        sample(&mut wire, &mut bytes, &mut of_bytes);
        sample(&mut wire, &mut list, &mut of_unchanged);
        sample(&mut wire, &mut kept, &mut of_kept);
        stage.client.done(client::rename_filesystem(changed, &format!("round{round}")));
        sample(&mut wire, &mut list, &mut of_changed);
    }
    let medians = [&of_bytes, &of_kept, &of_unchanged, &of_changed].map(Samples::median);
    let [bytes, kept, unchanged, changed] = medians;
    let mut cells = vec![filesystems.to_string(), length.to_string()];
    cells.extend(medians.map(time));
    cells.extend([ratio(unchanged, bytes), ratio(unchanged, kept)].map(|ratio| format!("{ratio:.2}")));
    row(&cells);
    if filesystems == JUDGED {
        musts.at_most("list of 1000 filesystems, unchanged", ratio(unchanged, bytes), 1.5, " × byte array");
        musts.at_most("list of 1000 filesystems, one changed", ratio(changed, bytes), 3.0, " × byte array");
    }
    if filesystems > JUDGED {
        musts.note(&format!("list of {filesystems} filesystems"), &format!("{length} bytes"), true);
    }
}

/// Single reads while another client requests one list after the other.
fn meanwhile(stage: &Stage, when: &str, mut list: Call) {
    let mut get = get(stage.filesystems().next().expect("filesystems exist"));
    let (over, mut samples) = (AtomicBool::new(false), Samples::new());
    let mut lister = stage.wire();
    std::thread::scope(|scope| {
        let over = &over;
        scope.spawn(move || {
            for _ in 0..LISTS_MEANWHILE {
                lister.call(&mut list);
            }
            over.store(true, Ordering::Relaxed);
        });
        let mut wire = stage.wire();
        while !over.load(Ordering::Relaxed) {
            sample(&mut wire, &mut get, &mut samples);
        }
    });
    let figures: [Duration; 3] = [samples.median(), samples.p99(), samples.max()];
    let mut cells = vec![when.to_owned(), samples.count().to_string()];
    cells.extend(figures.map(time));
    row(&cells);
}
