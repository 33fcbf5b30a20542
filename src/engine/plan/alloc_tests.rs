//! The allocator compared with a bitmap, and the numbers of the worked examples.

use proptest::prelude::*;

use super::*;

fn seg(start: u64, length: u64) -> Segment {
    Segment::new(Sectors(start), Sectors(length))
}

fn device(number: u8) -> DevUuid {
    DevUuid::from_random([number; 16])
}

/// A device whose first 8192 sectors are its own metadata.
fn space(size: u64) -> DeviceSpace {
    let mut space = DeviceSpace::new(Sectors(size));
    space.take_range(seg(0, 8192)).unwrap();
    space
}

#[test]
fn serves_the_worked_example_of_version_2() {
    let mut space = space(20_971_520);
    assert_eq!(space.reserve_back(Sectors(589_832)), Ok(vec![seg(20_381_688, 589_832)]));
    let mut tier = TierSpace::new([(device(1), space)]);
    let crypt = tier.request(&[Sectors(34_816)]).unwrap().unwrap();
    let pool = tier.request(&[12_288, 12_288, 19_263_488, 1_048_576].map(Sectors)).unwrap().unwrap();
    let mut list = Vec::new();
    segments::append(&mut list, crypt.into_iter().chain(pool).flatten());
    let all = DeviceSegment { parent: device(1), start: Sectors(8192), length: Sectors(20_371_456) };
    assert_eq!(list, [all]);
}

#[test]
fn a_cache_takes_metadata_first_and_then_all() {
    let mut tier = TierSpace::new([(device(2), space(2_097_152))]);
    let metadata = tier.request(&[Sectors(1_048_576)]).unwrap().unwrap();
    let parent = device(2);
    assert_eq!(metadata, [[DeviceSegment { parent, start: Sectors(8192), length: Sectors(1_048_576) }]]);
    let rest = DeviceSegment { parent, start: Sectors(1_056_768), length: Sectors(1_040_384) };
    assert_eq!(tier.take_all(), [rest]);
    assert_eq!((tier.free(), tier.take_all()), (Sectors(0), vec![]));
}

#[test]
fn allocation_is_device_by_device_and_whole() {
    let mut tier = TierSpace::new([(device(1), space(8292)), (device(2), space(8242))]);
    let before = tier.clone();
    assert_eq!(tier.request(&[Sectors(100), Sectors(51)]), Ok(None));
    assert_eq!(tier.request(&[Sectors(u64::MAX), Sectors(1)]), Err(AllocError::Overflow));
    assert_eq!(tier, before);
    let served = tier.request(&[Sectors(90), Sectors(0), Sectors(60)]).unwrap().unwrap();
    let on = |number, start: u64, length: u64| DeviceSegment {
        parent: device(number),
        start: Sectors(start),
        length: Sectors(length),
    };
    assert_eq!(served, [vec![on(1, 8192, 90)], vec![], vec![on(1, 8282, 10), on(2, 8192, 50)]]);
    tier.push(device(3), space(9000));
    tier.device_mut(device(1)).unwrap().grow(Sectors(8300)).unwrap();
    assert_eq!(tier.free(), Sectors(8 + 808));
    assert_eq!(tier.request(&[Sectors(9)]).unwrap().unwrap(), [[on(1, 8292, 8), on(3, 8192, 1)]]);
    assert_eq!(tier.device(device(1)).unwrap().free(), Sectors(0));
}

#[test]
fn a_grown_device_reserves_from_its_new_back() {
    let mut space = space(20_000);
    assert_eq!(space.reserve_back(Sectors(1000)), Ok(vec![seg(19_000, 1000)]));
    assert_eq!(space.grow(Sectors(19_999)), Err(AllocError::Shrink { from: Sectors(20_000), to: Sectors(19_999) }));
    space.grow(Sectors(30_000)).unwrap();
    assert_eq!(space.reserve_back(Sectors(500)), Ok(vec![seg(29_500, 500)]));
    assert_eq!(space.free_ranges(), [seg(8192, 10_808), seg(20_000, 9500)]);
}

#[test]
fn refusals_take_nothing() {
    let mut space = space(20_000);
    let before = space.clone();
    for (start, length) in [(8191, 1), (8191, 2), (0, 8193), (8000, 12_000)] {
        let (range, start, length) = (seg(start, length), Sectors(start), Sectors(length));
        assert_eq!(space.take_range(range), Err(AllocError::Overlap { start, length }));
    }
    for (start, length) in [(20_000, 1), (19_999, 2), (u64::MAX, 1), (1, u64::MAX)] {
        let (range, start, length) = (seg(start, length), Sectors(start), Sectors(length));
        assert_eq!(space.take_range(range), Err(AllocError::Beyond { start, length, limit: Sectors(20_000) }));
    }
    let small = Err(AllocError::TooSmall { needed: Sectors(11_809), free: Sectors(11_808) });
    assert_eq!(space.reserve_back(Sectors(11_809)), small);
    assert_eq!(space, before);
}

/// An operation on a device.
#[derive(Debug, Clone)]
enum Action {
    Range(u64, u64),
    Take(u64),
    Back(u64),
    Grow(u64),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        3 => (0..160_u64, 0..20_u64).prop_map(|(start, length)| Action::Range(start, length)),
        2 => (0..40_u64).prop_map(Action::Take),
        2 => (0..40_u64).prop_map(Action::Back),
        1 => (0..30_u64).prop_map(Action::Grow),
    ];
    prop::collection::vec(action, 0..30)
}

/// The sectors of a device one by one: taken or free.
struct Bitmap(Vec<bool>);

impl Bitmap {
    fn free(&self) -> impl DoubleEndedIterator<Item = usize> + '_ {
        (0..self.0.len()).filter(|i| !self.0[*i])
    }

    fn take(&mut self, sectors: &[usize]) {
        sectors.iter().for_each(|i| self.0[*i] = true);
    }
}

/// The sectors of ranges, which must be sorted, disjoint and not empty.
fn sectors_of(ranges: &[Segment]) -> Vec<usize> {
    assert!(ranges.iter().all(|range| range.length.0 > 0));
    assert!(ranges.windows(2).all(|pair| pair[0].end().unwrap() < pair[1].start), "{ranges:?}");
    ranges.iter().flat_map(|range| range.start.0 as usize..range.end().unwrap().0 as usize).collect()
}

proptest! {
    #[test]
    fn does_what_a_bitmap_does(size in 0..150_u64, actions in actions()) {
        let mut space = DeviceSpace::new(Sectors(size));
        let mut bitmap = Bitmap(vec![false; size as usize]);
        for action in actions {
            match action {
                Action::Range(start, length) => {
                    let sectors: Vec<usize> = (start as usize..(start + length) as usize).collect();
                    let inside = start + length <= bitmap.0.len() as u64;
                    let fine = inside && sectors.iter().all(|i| !bitmap.0[*i]);
                    prop_assert_eq!(space.take_range(seg(start, length)).is_ok(), fine);
                    if fine {
                        bitmap.take(&sectors);
                    }
                }
                Action::Take(wanted) => {
                    let expected: Vec<usize> = bitmap.free().take(wanted as usize).collect();
                    prop_assert_eq!(sectors_of(&space.take(Sectors(wanted))), expected.clone());
                    bitmap.take(&expected);
                }
                Action::Back(wanted) => {
                    let mut expected: Vec<usize> = bitmap.free().rev().take(wanted as usize).collect();
                    expected.reverse();
                    match space.reserve_back(Sectors(wanted)) {
                        Ok(ranges) => prop_assert_eq!(sectors_of(&ranges), expected.clone()),
                        Err(_) => {
                            prop_assert!((expected.len() as u64) < wanted);
                            continue;
                        }
                    }
                    bitmap.take(&expected);
                }
                Action::Grow(more) => {
                    let limit = bitmap.0.len() + more as usize;
                    space.grow(Sectors(limit as u64)).unwrap();
                    bitmap.0.resize(limit, false);
                }
            }
            prop_assert_eq!(space.free().0, bitmap.free().count() as u64);
            prop_assert_eq!(space.used().0 + space.free().0, space.limit().0);
            prop_assert_eq!(sectors_of(&space.free_ranges()), bitmap.free().collect::<Vec<_>>());
            sectors_of(&space.taken);
        }
    }

    #[test]
    fn a_tier_hands_out_each_sector_once(
        sizes in prop::collection::vec(0..50_u64, 0..4),
        requests in prop::collection::vec(prop::collection::vec(0..30_u64, 0..4), 0..6),
    ) {
        let devices = sizes.iter().enumerate();
        let mut tier = TierSpace::new(devices.map(|(i, size)| (device(i as u8), DeviceSpace::new(Sectors(*size)))));
        // If whole devices are free at first, the sectors are consecutive.
        let mut row = sizes.iter().enumerate().flat_map(|(i, size)| (0..*size).map(move |at| (device(i as u8), at)));
        let mut left: u64 = sizes.iter().sum();
        for request in requests {
            let wanted: Vec<Sectors> = request.iter().copied().map(Sectors).collect();
            let sum: u64 = request.iter().sum();
            match tier.request(&wanted).unwrap() {
                None => prop_assert!(sum > left),
                Some(served) => {
                    left -= sum;
                    prop_assert_eq!(served.len(), request.len());
                    for (segments, size) in served.iter().zip(request) {
                        prop_assert_eq!(segments::total(segments), Some(Sectors(size)));
                        let sectors = segments.iter().flat_map(|s| (0..s.length.0).map(|i| (s.parent, s.start.0 + i)));
                        prop_assert!(sectors.eq(row.by_ref().take(size as usize)));
                    }
                }
            }
            prop_assert_eq!(tier.free(), Sectors(left));
        }
    }
}
