//! The length of the pool metadata while a pool grows to the largest size.

use super::*;
use crate::{
    base::{ids::PoolUuid, units::DataBlocks},
    engine::{
        metadata::{
            Layout,
            header::MDA_SIZE,
            pool::{DATA_BLOCK, check},
        },
        plan::growth,
        pool::RESERVE_BYTES,
    },
};

const GIB: u64 = 2 << 20;
/// Numbers of devices of the data tier and of the cache tier.
const DATA: u8 = 180;
const CACHE: u8 = 20;
/// Size of one data device. All data devices together have 4 PiB.
const DISK: Sectors = Sectors((4 << 20) * GIB / DATA as u64);
/// Half of [`DISK`]: the size of a disk before it has grown.
const DISK_AT_FIRST: Sectors = Sectors(DISK.0 / 2);
/// Size of one cache device. All cache devices together have as much as a cache may have.
const CACHE_DISK: Sectors = Sectors((32 << 10) * GIB / CACHE as u64);

/// `text`, lengthened to the greatest length that is stored.
fn long(text: &str) -> String {
    text.repeat(255)
}

/// A pool that a user has extended for several years.
struct History {
    version: MetadataVersion,
    meta: PoolMetadata,
    headers: Vec<StaticHeader>,
    longest: usize,
}

impl History {
    fn header(version: MetadataVersion, number: u8, size: Sectors) -> StaticHeader {
        let device = DevUuid::from_random([number; 16]);
        StaticHeader::new(PoolUuid::from_random([255; 16]), device, version, size, 0)
    }

    fn new(version: MetadataVersion) -> History {
        let header = History::header(version, 0, DISK_AT_FIRST);
        let info = long("h");
        let first = [NewDevice { header: &header, hardware_info: Some(&info) }];
        let draft = LayoutDraft::new(version, IntegritySpec::default(), &first).unwrap();
        let thin_metadata = sizes::thin_metadata_at_most(draft.usable(), sizes::FS_LIMIT);
        let meta = draft.lay_out(&long("n"), thin_metadata).unwrap();
        History { version, meta, headers: vec![header], longest: 0 }
    }

    fn usable(&self) -> Sectors {
        let size = |device: DevUuid| {
            let header = self.headers.iter().find(|header| header.device == device).unwrap();
            let reserved = header.extended_size().saturating_add(self.meta.integrity_reserved(device));
            header.device_size.saturating_sub(reserved)
        };
        let all = self.meta.data_devices().map(size).fold(Sectors::ZERO, Sectors::saturating_add);
        all.saturating_sub(self.meta.crypt_reserved())
    }

    /// Grows the thin pool until it has all space: `steps` times by as much as a check gives it,
    /// then by the rest at once. The metadata grows by the smallest possible amount, because the
    /// needed size changes with the size of the pool.
    fn fill(&mut self, mut steps: u32) {
        let needed = total(&self.meta.flex_devs.thin_meta_dev).saturating_add(DATA_BLOCK);
        let headers = self.headers.clone();
        let headers: Vec<&StaticHeader> = headers.iter().collect();
        loop {
            let (usable, metadata) = (self.usable(), total(&self.meta.flex_devs.thin_meta_dev));
            let asked = growth::GrowthFacts {
                usable,
                available: usable.saturating_sub(self.meta.handed_out()),
                metadata,
                metadata_needed: Some(needed),
                fs_limit: sizes::FS_LIMIT,
                fill: Some(growth::Fill {
                    metadata_free: u64::MAX,
                    metadata_low_water: None,
                    data_free: DataBlocks(0),
                }),
                overprovisioning: true,
                filesystems: Sectors::ZERO,
                metadata_exhausted: false,
                writes_fail: false,
            };
            let plan = growth::pool(&asked);
            if plan.data == Sectors::ZERO {
                break;
            }
            let data = match steps {
                0 => asked.available.saturating_sub(plan.metadata).saturating_sub(plan.metadata).round_down(DATA_BLOCK),
                _ => plan.data,
            };
            steps = steps.saturating_sub(1);
            self.meta.extend(self.version, &headers, plan.metadata, data).unwrap();
        }
        self.meta.thinpool_dev.set_errors_if_no_space(true);
        self.note();
    }

    fn note(&mut self) {
        self.longest = self.longest.max(self.meta.encode(self.version).len());
    }

    fn add(&mut self, number: u8, size: Sectors, to: impl Fn(&mut PoolMetadata, &[NewDevice<'_>])) {
        let header = History::header(self.version, number, size);
        let info = long("h");
        to(&mut self.meta, &[NewDevice { header: &header, hardware_info: Some(&info) }]);
        self.meta.set_user_info(header.device, Some(long("u")));
        self.headers.push(header);
    }

    fn grow(&mut self, device: usize, size: Sectors) {
        self.headers[device].device_size = size;
        let header = self.headers[device];
        self.meta.reserve_integrity(&header).unwrap();
    }

    fn check(&self) {
        let version = self.version;
        check(&self.meta, version, &self.headers).unwrap_or_else(|broken| panic!("{version:?}: {broken}"));
        let text = self.meta.encode(version);
        assert_eq!(PoolMetadata::parse(&text, version).unwrap(), self.meta);
    }
}

/// Each growth of the thin pool, by 50 GiB at most, was recorded as a separate range. The metadata
/// areas of a pool were full at some 500 TiB.
#[test]
fn metadata_of_four_pebibytes_fits_its_area() {
    let capacity = Layout::new(MDA_SIZE).unwrap().capacity();
    for version in [MetadataVersion::V1, MetadataVersion::V2] {
        let mut history = History::new(version);
        // Disks are added one after the other, each time with the pool full, so thin metadata and
        // thin data alternate.
        for number in 1..DATA {
            history.fill(8);
            history.add(number, DISK_AT_FIRST, |meta, devices| meta.add_data_devices(devices).unwrap());
        }
        history.fill(8);
        history.add(DATA, CACHE_DISK, |meta, devices| meta.init_cache(devices).unwrap());
        for number in DATA + 1..DATA + CACHE {
            history.add(number, CACHE_DISK, |meta, devices| meta.add_cache_devices(devices).unwrap());
        }
        history.check();
        if version == MetadataVersion::V2 {
            history.meta.set_encrypted(true, true).unwrap();
        }
        // Each disk doubles in size, but only after the disk before it has been filled.
        for device in 0..DATA.into() {
            history.grow(device, DISK);
            history.fill(8);
        }
        history.check();
        assert!(history.usable() > Sectors((4 << 20) * GIB / 100 * 98), "{version:?}: {}", history.usable().readable());
        let allowed = capacity - RESERVE_BYTES;
        println!("{version:?}: at most {} of {allowed} bytes", history.longest);
        assert!(history.longest as u64 <= allowed, "{version:?}: {} of {allowed} bytes", history.longest);
        assert!(history.meta.backstore.cap.allocs.len() < 5, "{version:?}: {:?}", history.meta.backstore.cap.allocs);
    }
}

/// Metadata that another daemon recorded range by range is read, and its ranges are merged at the
/// next growth.
#[test]
fn merges_the_ranges_of_another_daemon() {
    let mut history = History::new(MetadataVersion::V2);
    let size = history.meta.backstore.cap.allocs[2].length;
    let cut = |segment: Segment| {
        let part = |at: u64| Segment::new(segment.start.saturating_add(Sectors(at * 2048)), Sectors(2048));
        (0..segment.length.0 / 2048).map(part).collect::<Vec<_>>()
    };
    let whole = history.meta.backstore.cap.allocs.clone();
    history.meta.backstore.cap.allocs = whole.iter().flat_map(|segment| cut(*segment)).collect();
    assert!(history.meta.encode(MetadataVersion::V2).len() > 260_064, "{}", size.readable());
    history.check();
    history.fill(1);
    history.check();
    assert_eq!(history.meta.backstore.cap.allocs.len(), 1);
}
