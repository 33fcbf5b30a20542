//! What a power cut may do, and what it must not do.

use proptest::prelude::*;

use super::*;

const SECTOR: usize = 512;
const SECTORS: usize = 40;

#[derive(Debug, Clone)]
enum Step {
    /// First sector, number of sectors.
    Write(usize, usize),
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..SECTORS, 1..6_usize).prop_map(|(at, n)| Step::Write(at, n.min(SECTORS - at))),
        1 => Just(Step::Flush)
    ]
}

/// What each sector may hold after a power cut: its content at the last flush, or any written
/// since.
struct Model(Vec<Vec<u8>>);

impl Model {
    fn apply(&mut self, step: &Step, stamp: u8) {
        match step {
            Step::Write(at, n) => self.0[*at..at + n].iter_mut().for_each(|sector| sector.push(stamp)),
            Step::Flush => self.0.iter_mut().for_each(|sector| {
                sector.drain(..sector.len() - 1);
            }),
        }
    }

    /// Whether no sector is torn and each has an allowed content.
    fn admits(&self, bytes: &[u8]) -> bool {
        bytes
            .chunks(SECTOR)
            .zip(&self.0)
            .all(|(sector, allowed)| sector.iter().all(|byte| *byte == sector[0]) && allowed.contains(&sector[0]))
    }

    /// Whether nothing was written since the last flush.
    fn is_settled(&self) -> bool {
        self.0.iter().all(|sector| sector.len() == 1)
    }
}

fn history(seed: u64, steps: &[Step], path: &str, base: u64) -> (Sim, Model) {
    let sim = Sim::builder().seed(seed).build();
    if path.starts_with("/dev/mapper") {
        create(&sim, "x", &linear(number(&sim, "/dev/a"), base / 512, 4096));
    }
    let mut model = Model(vec![vec![0]; SECTORS]);
    for (stamp, step) in (1..).zip(steps) {
        let done = match step {
            Step::Write(at, n) => {
                let bytes = vec![stamp; n * SECTOR];
                sim.write(Path::new(path), &[WriteStep::At((at * SECTOR) as u64, &bytes)])
            }
            Step::Flush => sim.write(Path::new(path), &[WriteStep::Flush]),
        };
        done.unwrap();
        model.apply(step, stamp);
    }
    (sim, model)
}

proptest! {
    /// Flushed data survives. Unflushed data survives, is lost or is torn, sector by sector; on a
    /// disk and through a table on one.
    #[test]
    fn flushed_bytes_survive(seed: u64, steps in prop::collection::vec(step(), 1..30), stacked: bool) {
        let (path, base) = if stacked { ("/dev/mapper/x", 81_920) } else { ("/dev/a", 0) };
        let (sim, model) = history(seed, &steps, path, base);
        let seen = sim.read(Path::new(path), 0, SECTORS * SECTOR).unwrap();
        // Before the power cut, every read returns the last write.
        prop_assert!(seen.chunks(SECTOR).zip(&model.0).all(|(sector, held)| Some(&sector[0]) == held.last()));
        sim.cut_power();
        prop_assert!(sim.read(Path::new(path), 0, 1).is_err());
        sim.power_on();
        let left = sim.read(Path::new("/dev/a"), base, SECTORS * SECTOR).unwrap();
        prop_assert!(model.admits(&left));
        prop_assert!(!model.is_settled() || left == seen);
        // A second power cut changes nothing.
        sim.cut_power();
        sim.power_on();
        prop_assert!(sim.read(Path::new("/dev/a"), base, SECTORS * SECTOR).unwrap() == left);
    }

    /// The same seed and calls leave the same bytes.
    #[test]
    fn a_cut_is_repeatable(seed: u64, steps in prop::collection::vec(step(), 1..30)) {
        let left = || {
            let (sim, _) = history(seed, &steps, "/dev/a", 0);
            sim.cut_power();
            sim.durable(Path::new("/dev/a"), 0..(SECTORS * SECTOR) as u64)
        };
        prop_assert!(left() == left());
    }
}

/// All three fates of an unflushed write occur, and a single sector is never torn.
#[test]
fn writes_survive_are_lost_and_are_torn() {
    let (mut whole, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..100 {
        let sim = Sim::builder().seed(seed).build();
        let path = Path::new("/dev/a");
        sim.write(path, &[WriteStep::At(0, &[1; 4096]), WriteStep::At(8192, &[1; 512])]).unwrap();
        sim.cut_power();
        let left = sim.durable(path, 0..4096);
        match left.iter().filter(|byte| **byte == 1).count() {
            4096 => whole += 1,
            0 => lost += 1,
            n => {
                assert_eq!(n % 512, 0);
                torn += 1;
            }
        }
        let single = sim.durable(path, 8192..8704);
        assert!(single.iter().all(|byte| *byte == single[0]));
    }
    assert!(whole > 10 && lost > 10 && torn > 10, "{whole} {lost} {torn}");
}

/// A 4 KiB sector is never torn.
#[test]
fn large_sectors_are_not_torn() {
    for seed in 0..50 {
        let sim = Sim::builder().seed(seed).logical(4096).build();
        sim.write(Path::new("/dev/a"), &[WriteStep::At(0, &[1; 16384])]).unwrap();
        sim.cut_power();
        let left = sim.durable(Path::new("/dev/a"), 0..16384);
        assert!(left.chunks(4096).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
    }
}

/// A replaced file is the old or the new one, for a power cut at any step and with any surviving
/// writes. Once the call has returned, it is the new one.
#[test]
fn a_replaced_file_is_old_or_new() {
    let (mut old, mut new) = (0, 0);
    for seed in 0..50 {
        for k in 0..=4 {
            let sim = mounted(seed);
            sim.list_files("mdv/filesystems").unwrap();
            sim.replace_file("mdv/filesystems/x.json", b"old").unwrap();
            sim.faults().cut_power_at(sim.steps() + k);
            let replaced = sim.replace_file("mdv/filesystems/x.json", b"new and longer");
            assert_eq!(replaced.is_ok(), k == 4, "{replaced:?}");
            sim.faults().clear();
            sim.cut_power();
            sim.power_on();
            create(&sim, "mdv", &linear(number(&sim, "/dev/a"), 0, 1 << 20));
            sim.mount(Path::new("/dev/mapper/mdv"), "mdv", "").unwrap();
            match &sim.read_file("mdv/filesystems/x.json").unwrap()[..] {
                b"old" if k < 4 => old += 1,
                b"new and longer" => new += 1,
                other => panic!("cut at {k}: {other:?}"),
            }
            let names = sim.list_files("mdv/filesystems").unwrap();
            assert!(names.iter().all(|name| ["x.json", "x.temp"].contains(&name.as_str())), "{names:?}");
        }
    }
    assert!(old > 50 && new > 50, "{old} {new}");
}

/// The checker above can fail: without the sync of the file, its contents can be lost although its
/// name exists.
#[test]
fn the_order_of_a_replacement_matters() {
    let broken = (0..50).filter(|seed| {
        let sim = mounted(*seed);
        sim.replace_file("mdv/x.json", b"old").unwrap();
        {
            let mut machine = sim.machine().unwrap();
            let (files, _) = machine.files("mdv").unwrap();
            assert!(files.write("x.temp", b"new") && files.rename("x.temp", "x.json"));
            files.sync_directory();
        }
        sim.cut_power();
        sim.power_on();
        create(&sim, "mdv", &linear(number(&sim, "/dev/a"), 0, 1 << 20));
        sim.mount(Path::new("/dev/mapper/mdv"), "mdv", "").unwrap();
        let left = sim.read_file("mdv/x.json").unwrap();
        left != b"old" && left != b"new"
    });
    assert!(broken.count() > 0);
}

/// A machine with an XFS mounted at `mdv` on the device `mdv`.
fn mounted(seed: u64) -> Sim {
    let sim = Sim::builder().seed(seed).build();
    create(&sim, "mdv", &linear(number(&sim, "/dev/a"), 0, 1 << 20));
    sim.run(crate::platform::Program::MkfsXfs, &["-f", "/dev/mapper/mdv"]).unwrap();
    sim.mount(Path::new("/dev/mapper/mdv"), "mdv", "").unwrap();
    sim
}
