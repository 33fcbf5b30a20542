//! Thin pools: mappings, positions of the data, status, power cuts.

use nix::libc::{EBUSY, EEXIST, EINVAL, EIO, ENODATA, ENOSPC, ENXIO, EOPNOTSUPP};

use super::*;

/// Offset of a data block on the disk in bytes.
fn on_disk(block: u64) -> u64 {
    METADATA.0 * 512 + block * BLOCK
}

/// The data blocks on the disk that contain a text at this offset, sorted.
fn find(sim: &Sim, text: &[u8], within: u64, blocks: u64) -> Vec<u64> {
    let holds = |block: &u64| sim.read(Path::new("/dev/a"), on_disk(*block) + within, text.len()).unwrap() == text;
    (0..blocks).filter(holds).collect()
}

#[test]
fn snapshots_share_until_a_write() {
    let sim = Sim::builder().build();
    let pool = stack(&sim, 100, "skip_block_zeroing");
    thin(&sim, pool, "origin", 5);
    write(&sim, "origin", 10, b"old head").unwrap();
    write(&sim, "origin", BLOCK - 4, b"end.next").unwrap();
    assert_eq!(sim.dm_status("origin").unwrap(), ["4096 4095"]);

    sim.dm_message("pool", "create_snap 6 5").unwrap();
    sim.dm_create("snap", "snap", &thin_table(pool, 6, 1 << 31), Visibility::Public).unwrap();
    assert_eq!(read(&sim, "snap", 10, 8), b"old head");
    assert_eq!(used(&sim), 2);
    write(&sim, "origin", 10, b"new head").unwrap();
    assert_eq!(used(&sim), 3);
    assert_eq!(read(&sim, "origin", 10, 8), b"new head");
    assert_eq!(read(&sim, "snap", 10, 8), b"old head");
    // The rest of the copied block was copied too.
    assert_eq!(read(&sim, "origin", BLOCK - 4, 8), b"end.next");
    // Both blocks are on the disk: one has the old text, another the new.
    let (old, new) = (find(&sim, b"old head", 10, 100), find(&sim, b"new head", 10, 100));
    assert_eq!((old.len(), new.len()), (1, 1));
    // The block is no longer shared, so it is written in place.
    write(&sim, "snap", 10, b"snapshot").unwrap();
    assert_eq!(used(&sim), 3);
    assert_eq!(find(&sim, b"snapshot", 10, 100), old);
    assert_eq!(read(&sim, "origin", 10, 8), b"new head");

    sim.dm_remove("snap").unwrap();
    sim.dm_message("pool", "delete 6").unwrap();
    assert_eq!(used(&sim), 2);
    assert_eq!(read(&sim, "origin", BLOCK, 4), b"next");
}

fn used(sim: &Sim) -> u64 {
    let status = sim.dm_status("pool").unwrap().remove(0);
    status.split(' ').nth(2).unwrap().split('/').next().unwrap().parse().unwrap()
}

#[test]
fn the_status_is_the_kernels() {
    let sim = Sim::builder().build();
    let pool = stack(&sim, 100, "no_discard_passdown skip_block_zeroing");
    let status = || sim.dm_status("pool").unwrap().remove(0);
    assert_eq!(status(), "0 111/1024 0/100 - rw no_discard_passdown queue_if_no_space - 256 ");
    thin(&sim, pool, "fs", 0);
    assert_eq!(sim.dm_status("fs").unwrap(), ["0 -"]);
    write(&sim, "fs", 3 * BLOCK, b"x").unwrap();
    assert_eq!(sim.dm_status("fs").unwrap(), ["2048 8191"]);
    sim.dm_message("pool", "set_transaction_id 0 7").unwrap();
    sim.dm_message("pool", "reserve_metadata_snap").unwrap();
    assert_eq!(status(), "7 114/1024 1/100 1 rw no_discard_passdown queue_if_no_space - 256 ");
    assert_eq!(sim.dm_status("data").unwrap(), [""]);
    sim.fail_pool("pool").unwrap();
    assert_eq!((status(), sim.dm_status("fs").unwrap()), ("Fail".to_owned(), vec!["Fail".to_owned()]));
    assert_eq!(errno(sim.dm_message("pool", "create_thin 1")), EOPNOTSUPP);
    assert_eq!(errno(write(&sim, "fs", 0, b"x")), EIO);
}

#[test]
fn messages_are_checked() {
    let sim = Sim::builder().build();
    let pool = stack(&sim, 100, "");
    thin(&sim, pool, "fs", 1);
    let cases = [
        ("create_thin 1", EEXIST),
        ("create_snap 1 1", EEXIST),
        ("create_snap 2 9", ENODATA),
        ("delete 9", ENODATA),
        ("delete 1", EBUSY),
        ("create_thin 16777216", EINVAL),
        ("create_thin 16777215", 0),
        ("create_thin", EINVAL),
        ("create_thin two", EINVAL),
        ("create_thin 2 3", EINVAL),
        ("set_transaction_id 1 2", EINVAL),
        ("release_metadata_snap", EINVAL),
        ("what", EINVAL),
        ("", EINVAL),
    ];
    for (message, expected) in cases {
        assert_eq!(errno(sim.dm_message("pool", message)), expected, "{message}");
    }
    assert_eq!(errno(sim.dm_message("data", "create_thin 2")), EINVAL);
    assert_eq!(errno(sim.dm_message("none", "create_thin 2")), ENXIO);
    assert_eq!(sim.thin_ids("pool"), Some(vec![1, 16_777_215]));
}

#[test]
fn a_full_pool_refuses_in_error_mode() {
    let sim = Sim::builder().build();
    let pool = stack(&sim, 2, "error_if_no_space");
    thin(&sim, pool, "fs", 0);
    write(&sim, "fs", 0, &vec![1; 2 * BLOCK as usize]).unwrap();
    assert_eq!(errno(write(&sim, "fs", 2 * BLOCK, b"x")), ENOSPC);
    let status = sim.dm_status("pool").unwrap().remove(0);
    assert!(status.contains(" 2/2 - out_of_data_space discard_passdown error_if_no_space - "), "{status}");
    // Mapped blocks can still be written.
    write(&sim, "fs", BLOCK, b"again").unwrap();
    // A deletion frees space.
    sim.dm_message("pool", "create_thin 1").unwrap();
    sim.dm_remove("fs").unwrap();
    sim.dm_message("pool", "delete 0").unwrap();
    assert!(sim.dm_status("pool").unwrap()[0].contains(" 0/2 - rw "));
}

#[test]
fn a_full_pool_queues_writes_until_it_grows() {
    let sim = Sim::builder().build();
    let pool = stack(&sim, 2, "");
    thin(&sim, pool, "fs", 0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&sim, "fs", 0, &vec![7; 3 * BLOCK as usize]));
        assert!(sim.wait_for_stalled(1, LIMIT));
        assert!(sim.dm_status("pool").unwrap()[0].contains(" 2/2 - out_of_data_space "));
        // The test extends the pool as the engine does.
        let (metadata, data) = (sim.dm_find("meta").unwrap().unwrap().number, sim.dm_find("data").unwrap().unwrap());
        sim.dm_suspend("pool", true).unwrap();
        sim.dm_load("data", &linear(number(&sim, "/dev/a"), METADATA.0, 4 * 2048)).unwrap();
        sim.dm_resume("data", Visibility::Private).unwrap();
        sim.dm_load("pool", &pool_table(metadata, data.number, 4, 1, "")).unwrap();
        sim.dm_resume("pool", Visibility::Private).unwrap();
        writer.join().unwrap().unwrap();
    });
    assert_eq!(read(&sim, "fs", 3 * BLOCK - 1, 2), [7, 0]);
    assert!(sim.dm_status("pool").unwrap()[0].contains(" 3/4 - rw "));
}

/// Without zeroing, a new block shows old data; with zeroing, it does not.
#[test]
fn zeroing_of_new_blocks_follows_the_table() {
    for (features, expected) in [("skip_block_zeroing", b"old"), ("", b"\0\0\0")] {
        let sim = Sim::builder().build();
        sim.put(Path::new("/dev/a"), on_disk(0) + 700, b"old").unwrap();
        let pool = stack(&sim, 100, features);
        thin(&sim, pool, "fs", 0);
        assert_eq!(read(&sim, "fs", 700, 3), [0; 3]);
        write(&sim, "fs", 0, b"x").unwrap();
        assert_eq!(read(&sim, "fs", 700, 3), expected, "{features}");
    }
}

/// The mappings are found where the bytes of the metadata device are, and nowhere else.
#[test]
fn mappings_follow_the_metadata_device() {
    let sim = Sim::builder().build();
    let pool = stack(&sim, 100, "");
    thin(&sim, pool, "fs", 3);
    write(&sim, "fs", 0, b"mine").unwrap();
    flush(&sim, "fs");
    for name in ["fs", "pool", "data", "meta"] {
        sim.dm_remove(name).unwrap();
    }
    // On another device, the mappings are new and empty.
    let disk = number(&sim, "/dev/a");
    let metadata = create(&sim, "meta", &linear(disk, 1 << 25, METADATA.0));
    let data = create(&sim, "data", &linear(disk, METADATA.0, 100 * 2048));
    create(&sim, "pool", &pool_table(metadata, data, 100, 1, ""));
    assert_eq!(sim.thin_ids("pool"), Some(vec![]));
    for name in ["pool", "data", "meta"] {
        sim.dm_remove(name).unwrap();
    }
    // On the former device, all mappings are there.
    let pool = stack(&sim, 100, "");
    assert_eq!(sim.thin_ids("pool"), Some(vec![3]));
    sim.dm_create("fs", "fs", &thin_table(pool, 3, 8), Visibility::Public).unwrap();
    assert_eq!(read(&sim, "fs", 0, 4), b"mine");
    for name in ["fs", "pool"] {
        sim.dm_remove(name).unwrap();
    }
    // If the first block is zeroed, the mappings are new and empty.
    write(&sim, "meta", 0, &[0; 4096]).unwrap();
    let numbers = ["meta", "data"].map(|name| sim.dm_find(name).unwrap().unwrap().number);
    create(&sim, "pool", &pool_table(numbers[0], numbers[1], 100, 1, ""));
    assert_eq!(sim.thin_ids("pool"), Some(vec![]));
}

/// Messages are durable at once. A mapping is durable, with its data, once its device was flushed.
#[test]
fn a_cut_keeps_messages_and_flushed_blocks() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..40 {
        let sim = Sim::builder().seed(seed).build();
        let pool = stack(&sim, 100, "skip_block_zeroing");
        thin(&sim, pool, "fs", 0);
        write(&sim, "fs", 0, b"flushed").unwrap();
        flush(&sim, "fs");
        sim.dm_message("pool", "create_thin 1").unwrap();
        sim.dm_message("pool", "create_snap 2 0").unwrap();
        write(&sim, "fs", 0, b"written").unwrap();
        sim.cut_power();
        assert!(matches!(sim.dm_list(), Err(Error::PowerCut)));
        sim.power_on();
        assert!(sim.leftovers().is_empty());
        let pool = stack(&sim, 100, "skip_block_zeroing");
        assert_eq!(sim.thin_ids("pool"), Some(vec![0, 1, 2]));
        for (name, id) in [("fs", 0), ("snap", 2)] {
            sim.dm_create(name, name, &thin_table(pool, id, 1 << 31), Visibility::Public).unwrap();
        }
        assert_eq!(read(&sim, "snap", 0, 7), b"flushed");
        match &read(&sim, "fs", 0, 7)[..] {
            b"flushed" => lost += 1,
            b"written" => kept += 1,
            other => panic!("neither: {other:?}"),
        }
    }
    assert!(lost > 0 && kept > 0, "{lost} lost, {kept} kept");
}

/// A commit with another cause also makes the data of its mappings durable: a mapping never refers
/// to lost bytes.
#[test]
fn a_committed_mapping_has_its_data() {
    for seed in 0..30 {
        let sim = Sim::builder().seed(seed).build();
        let build = || {
            let metadata = create(&sim, "meta", &linear(number(&sim, "/dev/m"), 0, METADATA.0));
            let data = create(&sim, "data", &linear(number(&sim, "/dev/a"), METADATA.0, 100 * 2048));
            create(&sim, "pool", &pool_table(metadata, data, 100, 1, "skip_block_zeroing"))
        };
        thin(&sim, build(), "fs", 0);
        write(&sim, "fs", 0, b"data").unwrap();
        sim.dm_message("pool", "create_thin 1").unwrap();
        sim.cut_power();
        sim.power_on();
        sim.dm_create("fs", "fs", &thin_table(build(), 0, 8), Visibility::Public).unwrap();
        assert_eq!(sim.dm_status("fs").unwrap(), ["2048 2047"]);
        assert_eq!(read(&sim, "fs", 0, 4), b"data");
    }
}

/// If the metadata device fails, the pool goes back to its last commit, becomes read-only and needs
/// a check.
#[test]
fn a_dead_metadata_device_stops_the_pool() {
    let sim = Sim::builder().build();
    let metadata = create(&sim, "meta", &linear(number(&sim, "/dev/m"), 0, METADATA.0));
    let data = create(&sim, "data", &linear(number(&sim, "/dev/a"), METADATA.0, 100 * 2048));
    let pool = create(&sim, "pool", &pool_table(metadata, data, 100, 1, ""));
    thin(&sim, pool, "fs", 0);
    sim.pull_disk(Path::new("/dev/m")).unwrap();
    write(&sim, "fs", 0, b"x").unwrap();
    assert_eq!(errno(sim.write(&sim.dm_node("fs"), &[WriteStep::Flush])), EIO);
    let status = sim.dm_status("pool").unwrap().remove(0);
    assert!(status.contains(" 0/100 - ro ") && status.contains(" needs_check "), "{status}");
    assert_eq!(errno(sim.dm_message("pool", "create_thin 1")), EOPNOTSUPP);
}

/// A large filesystem costs only what is written to it.
#[test]
fn a_thousand_large_filesystems_cost_little() {
    let sim = Sim::builder().build();
    let disk = number(&sim, "/dev/a");
    let metadata = create(&sim, "meta", &linear(disk, 0, 1 << 22));
    let data = create(&sim, "data", &linear(disk, 1 << 22, 600_000 * 2048));
    let pool = create(&sim, "pool", &pool_table(metadata, data, 600_000, 1, "skip_block_zeroing"));
    for id in 0..1000 {
        let name = format!("fs{id}");
        thin(&sim, pool, &name, id);
        sim.run(crate::platform::Program::MkfsXfs, &["-f", &format!("/dev/mapper/{name}")]).unwrap();
    }
    assert_eq!(used(&sim), 545 * 1000);
    let stored = sim.stored_bytes();
    assert!(stored < 200 << 20, "{stored}");
    for id in 0..1000 {
        sim.dm_remove(&format!("fs{id}")).unwrap();
        sim.dm_message("pool", &format!("delete {id}")).unwrap();
    }
    assert_eq!(used(&sim), 0);
}
