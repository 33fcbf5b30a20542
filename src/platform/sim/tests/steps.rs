//! Faults strike where they are planned, gates hold what they should, and a seed determines the
//! history.

use super::*;
use crate::platform::{
    Program, Timestamp,
    sim::{CallKind, RecordedCall, Snapshot},
};

type Outcome = Result<(), String>;

/// Ten calls of many kinds. None depends on another's result, so each can fail alone.
fn calls(sim: &Sim) -> Vec<Outcome> {
    let path = Path::new("/dev/a");
    let said = |result: Result<(), Error>| result.map_err(|error| error.to_string());
    vec![
        said(sim.block_devices().map(drop)),
        said(sim.find_device(path).map(drop)),
        said(sim.geometry(path).map(drop)),
        said(sim.read(path, 0, 10).map(drop)),
        said(sim.write(path, &[WriteStep::At(0, b"one")])),
        said(sim.write(path, &[WriteStep::Flush])),
        said(sim.dm_list().map(drop)),
        said(sim.run(Program::MkfsXfs, &["-V"]).map(drop)),
        said(sim.mount_points(DeviceNumber { major: 1, minor: 1 }).map(drop)),
        said(sim.announce(&[]).map(drop)),
    ]
}

#[test]
fn a_fault_strikes_its_step_only() {
    let total = {
        let sim = Sim::builder().build();
        assert!(calls(&sim).iter().all(Result::is_ok));
        sim.steps()
    };
    assert_eq!(total, 10);
    for k in 0..total {
        for after in [false, true] {
            let sim = Sim::builder().record().build();
            if after {
                sim.faults().fail_after(k)
            } else {
                sim.faults().fail_at(k)
            }
            let outcomes = calls(&sim);
            let failed: Vec<usize> = (0..outcomes.len()).filter(|i| outcomes[*i].is_err()).collect();
            assert_eq!(failed, [k as usize]);
            assert_eq!((sim.faults().struck(), sim.steps()), (1, total));
            // A fault before the step leaves no effect; a fault after it leaves the effect.
            if sim.trace()[k as usize].call == CallKind::Write {
                let held = sim.read(Path::new("/dev/a"), 0, 3).unwrap();
                assert_eq!(held == b"one", after);
            }
            assert!(calls(&sim).iter().all(Result::is_ok));
        }
    }
}

#[test]
fn a_cut_ends_everything_until_power_is_back() {
    for k in 0..10 {
        let sim = Sim::builder().build();
        sim.faults().cut_power_at(k);
        let outcomes = calls(&sim);
        assert!(outcomes[..k as usize].iter().all(Result::is_ok));
        let dark = Error::PowerCut.to_string();
        assert!(outcomes[k as usize..].iter().all(|outcome| outcome.as_ref().is_err_and(|said| *said == dark)));
        assert!(!sim.has_power());
        sim.power_on();
        assert!(calls(&sim).iter().all(Result::is_ok));
    }
}

#[test]
fn parts_of_a_call_are_separate_steps() {
    let sim = Sim::builder().record().build();
    let path = Path::new("/dev/a");
    sim.write(path, &[WriteStep::At(0, b"1"), WriteStep::Flush, WriteStep::At(1, b"2"), WriteStep::Flush]).unwrap();
    let calls: Vec<CallKind> = sim.trace().into_iter().map(|step| step.call).collect();
    assert_eq!(calls, [CallKind::Write, CallKind::Flush, CallKind::Write, CallKind::Flush]);
    // The third step fails: earlier ones took effect, later ones are not tried.
    sim.faults().fail_at(sim.steps() + 2);
    let steps = [WriteStep::At(0, b"3"), WriteStep::Flush, WriteStep::At(1, b"4"), WriteStep::At(2, b"5")];
    assert!(sim.write(path, &steps).is_err());
    assert_eq!(sim.read(path, 0, 3).unwrap(), b"32\0");
}

#[test]
fn a_fault_strikes_the_next_matching_call() {
    let sim = Sim::builder().build();
    sim.faults().fail_next(CallKind::Write, "/dev/b");
    sim.faults().fail_next(CallKind::Flush, "");
    let write = |path: &str| sim.write(Path::new(path), &[WriteStep::At(0, b"x")]);
    assert!(write("/dev/a").is_ok());
    assert!(write("/dev/b").is_err());
    assert!(write("/dev/b").is_ok());
    sim.faults().clear();
    assert!(sim.write(Path::new("/dev/a"), &[WriteStep::Flush]).is_ok());
    assert_eq!(sim.faults().struck(), 1);
}

/// Everything that a test can observe of a run.
fn history(seed: u64) -> (Vec<RecordedCall>, Vec<[u8; 16]>, Timestamp, Snapshot) {
    let sim = Sim::builder().seed(seed).record().build();
    let pool = stack(&sim, 5000, "skip_block_zeroing");
    let mut values = Vec::new();
    for id in 0..5 {
        let name = format!("fs{id}");
        values.push(sim.random());
        thin(&sim, pool, &name, id);
        sim.run(Program::MkfsXfs, &["-f", &format!("/dev/mapper/{name}")]).unwrap();
        write(&sim, &name, 5 * BLOCK, &[7; 8192]).unwrap();
    }
    sim.cut_power();
    sim.power_on();
    (sim.trace(), values, sim.now(), sim.snapshot())
}

#[test]
fn a_seed_determines_the_history() {
    let (one, same, other) = (history(1), history(1), history(2));
    assert_eq!((&one.0, &one.1, one.2), (&same.0, &same.1, same.2));
    assert_eq!(one.3.differences(&same.3), []);
    assert_ne!(one.1, other.1);
    assert_ne!(one.3.differences(&other.3), []);
}

#[test]
fn the_logical_clock_advances_per_reading() {
    let sim = Sim::builder().build();
    let (first, second) = (sim.now(), sim.now());
    assert!(first < second);
    sim.advance_clock(Duration::from_secs(3600));
    assert!(sim.now().seconds >= second.seconds + 3600);
    sim.set_clock(Timestamp { seconds: 5, nanoseconds: 0 });
    assert_eq!(sim.now().seconds, 5);
}

/// Two formats overlap: both wait at the gate at once, and other calls continue meanwhile.
#[test]
fn a_gate_holds_its_calls_only() {
    let sim = Sim::builder().build();
    let gate = sim.delay(CallKind::Run(Program::MkfsXfs), "/dev/");
    std::thread::scope(|scope| {
        let format = |path: &'static str| sim.run(Program::MkfsXfs, &[path]);
        let formats = [scope.spawn(move || format("/dev/a")), scope.spawn(move || format("/dev/b"))];
        assert!(gate.wait_for(2, LIMIT));
        assert_eq!(gate.waiting(), 2);
        assert!(sim.read(Path::new("/dev/a"), 0, 4).is_ok());
        assert!(sim.run(Program::MkfsXfs, &["-V"]).is_ok());
        assert_eq!(sim.xfs_uuid(Path::new("/dev/a")), None);
        gate.open();
        formats.into_iter().for_each(|format| drop(format.join().unwrap().unwrap()));
    });
    assert!(sim.xfs_uuid(Path::new("/dev/a")).is_some());
    drop(gate);
    assert!(sim.run(Program::MkfsXfs, &["/dev/c"]).is_ok());
}

#[test]
fn power_and_dropping_open_a_gate() {
    let sim = Sim::builder().build();
    let gate = sim.delay(CallKind::Flush, "");
    std::thread::scope(|scope| {
        let flush = || sim.write(Path::new("/dev/a"), &[WriteStep::Flush]);
        let held = scope.spawn(flush);
        assert!(gate.wait_for(1, LIMIT));
        sim.cut_power();
        sim.power_on();
        // The held call belonged to the time before the power cut.
        assert!(matches!(held.join().unwrap(), Err(Error::PowerCut)));
        let held = scope.spawn(flush);
        assert!(gate.wait_for(2, LIMIT));
        drop(gate);
        held.join().unwrap().unwrap();
    });
}

/// A delayed step ends at a power cut.
#[test]
fn a_power_cut_ends_delays() {
    let sim = Sim::builder().step_delay(Duration::from_secs(3600)).build();
    std::thread::scope(|scope| {
        let held = scope.spawn(|| sim.write(Path::new("/dev/a"), &[WriteStep::Flush]));
        sim.cut_power();
        assert!(matches!(held.join().unwrap(), Err(Error::PowerCut)));
    });
}

/// A hung program used to be missing from the list of running programs.
#[test]
fn a_hung_program_is_listed() {
    let sim = Sim::builder().build();
    let gate = sim.delay(CallKind::Run(Program::MkfsXfs), "");
    std::thread::scope(|scope| {
        let held = scope.spawn(|| sim.run(Program::MkfsXfs, &["-V"]));
        assert!(gate.wait_for(1, LIMIT));
        let running: Vec<String> = sim.running_programs().into_iter().map(|program| program.label).collect();
        assert_eq!(running, ["mkfs.xfs -V"]);
        gate.open();
        held.join().unwrap().unwrap();
    });
    assert_eq!(sim.running_programs(), []);
}
