//! Which reverts are planned, and what the records are afterwards.

use super::*;
use crate::{base::units::Sectors, engine::metadata::Rest};

fn id(n: u8) -> FsUuid {
    FsUuid::from_random([n; 16])
}

/// A filesystem; its thin device has the same number.
fn record(n: u8, origin: Option<u8>, merge: bool) -> FilesystemRecord {
    FilesystemRecord {
        name: format!("f{n}"),
        uuid: id(n),
        thin_id: n.into(),
        size: Sectors(u64::from(n) << 21),
        created: n.into(),
        fs_size_limit: Some(Sectors(u64::from(n) << 22)),
        origin: origin.map(id),
        merge,
        rest: Rest::default(),
    }
}

/// The planned reverts as (origin, snapshot), and the others with the reason.
type Planned = (Vec<(u32, u32)>, Vec<(FsUuid, Ignored)>);

fn planned(records: &[FilesystemRecord]) -> Planned {
    let (planned, ignored) = plan(records);
    (planned.iter().map(|revert| (revert.replaced, revert.thin_id)).collect(), ignored)
}

#[test]
fn unambiguous_reverts_are_planned() {
    let records =
        [record(1, None, false), record(2, Some(1), true), record(3, Some(1), false), record(4, Some(2), false)];
    assert_eq!(planned(&records), (vec![(1, 2)], vec![]));
    assert_eq!(planned(&[record(1, None, false)]), (vec![], vec![]));
}

#[test]
fn a_missing_origin_cannot_be_replaced() {
    let records = [record(1, None, true), record(2, Some(9), true)];
    assert_eq!(planned(&records), (vec![], vec![(id(1), Ignored::NoOrigin), (id(2), Ignored::NoOrigin)]));
}

#[test]
fn of_several_snapshots_none_replaces_the_origin() {
    let records =
        [record(1, None, false), record(2, Some(1), true), record(3, Some(1), true), record(4, Some(3), false)];
    assert_eq!(planned(&records), (vec![], vec![(id(2), Ignored::Several), (id(3), Ignored::Several)]));
}

#[test]
fn chained_reverts_are_not_planned() {
    let two = [record(1, None, false), record(2, Some(1), true), record(3, Some(2), true)];
    assert_eq!(planned(&two), (vec![], vec![(id(2), Ignored::Chained), (id(3), Ignored::Chained)]));
    let three = [record(1, None, false), record(2, Some(1), true), record(3, Some(2), true), record(4, Some(3), true)];
    assert_eq!(planned(&three).0, vec![]);
    // Another revert next to these is not affected.
    let beside = [two.to_vec(), vec![record(5, None, false), record(6, Some(5), true)]].concat();
    assert_eq!(planned(&beside).0, vec![(5, 6)]);
}

#[test]
fn unplanned_reverts_block_no_other() {
    // 2 and 3 are ambiguous, so 2 is not a snapshot of a planned revert when 4 is to replace it.
    let records =
        [record(1, None, false), record(2, Some(1), true), record(3, Some(1), true), record(4, Some(2), true)];
    assert_eq!(planned(&records).0, vec![(2, 4)]);
    // 1 is scheduled itself, but has no origin.
    assert_eq!(planned(&[record(1, None, true), record(2, Some(1), true)]).0, vec![(1, 2)]);
}

#[test]
fn the_origin_gets_the_device_of_its_snapshot() {
    let mut records =
        vec![record(1, Some(9), false), record(2, Some(1), true), record(3, Some(1), false), record(4, Some(2), false)];
    let revert = plan(&records).0[0];
    let before = records.clone();
    let changed = apply(&mut records, &revert).unwrap();
    let merged = FilesystemRecord {
        thin_id: 2,
        size: before[1].size,
        fs_size_limit: before[1].fs_size_limit,
        ..before[0].clone()
    };
    let passed_on = FilesystemRecord { origin: Some(id(1)), ..before[3].clone() };
    assert_eq!(records, [merged.clone(), before[2].clone(), passed_on.clone()]);
    assert_eq!(changed, [merged, passed_on]);
    // Applied again: no record changes any more.
    let once = records.clone();
    assert_eq!(apply(&mut records, &revert), Some(vec![]));
    assert_eq!(records, once);
}

#[test]
fn changes_of_another_daemon_are_left_alone() {
    let records = [record(1, None, false), record(2, Some(1), true)];
    let revert = plan(&records).0[0];
    for mut changed in [
        vec![record(1, None, false)],
        vec![record(2, Some(1), true)],
        vec![record(1, None, false), FilesystemRecord { thin_id: 7, ..record(2, None, false) }],
        vec![],
        // The revert was cancelled, or the origin has been replaced by another snapshot.
        vec![record(1, None, false), record(2, Some(1), false)],
        vec![FilesystemRecord { thin_id: 9, ..record(1, None, false) }, record(2, Some(1), true)],
    ] {
        let before = changed.clone();
        assert_eq!(apply(&mut changed, &revert), None);
        assert_eq!(changed, before);
    }
}
