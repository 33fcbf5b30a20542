//! The bodies of the fuzz targets (`fuzz/`) and of `tests/fuzz_bodies.rs`. For any bytes there must
//! be no panic and no unbounded allocation, and a value that was read, written and read again must
//! be the same.

use std::io::Write;

use stratisd::platform::Timestamp;
use stratisd::{
    base::{ids::PoolUuid, units::Sectors},
    engine::metadata::{
        FilesystemRecord, Journal, Layout, Mda, MetadataVersion, Pending, PlannedWrite, PoolMetadata, StaticHeader,
        filesystem::THIN_ID_MAX,
        header::{self, BLOCK_BYTES, CopyContents, Resolved},
        mda::{Cause, decode_region, encode_region},
        pool,
    },
    tools::{
        check_metadata,
        dump_metadata::{self, Dump},
        print_metadata,
    },
};

/// Two signature blocks, one after the other. Each is also tried with a correct checksum, because
/// hardly any random block has one.
pub fn header(bytes: &[u8]) {
    let (first, second) = bytes.split_at(bytes.len().min(BLOCK_BYTES));
    for copies in [[first.to_vec(), second.to_vec()], [with_crc(first, 4), with_crc(second, 4)]] {
        let found = copies.map(|block| CopyContents::in_block(&block));
        for copy in &found {
            if let CopyContents::Valid(header) = copy {
                assert_eq!(StaticHeader::decode(&header.encode()), Ok(Some(*header)));
                assert!(header.extended_size() <= header.device_size);
            }
        }
        let [first, second] = found;
        if let Ok(Resolved::Header { header, .. }) = header::resolve(first, second) {
            assert_eq!(header.check(), Ok(()));
        }
    }
}

/// A metadata area of the smallest size. It is also tried with correct checksums in its region
/// headers.
pub fn mda(bytes: &[u8]) {
    let layout = Layout::new(Sectors(4)).expect("four sectors make four regions");
    let start = usize::try_from(layout.offset(0)).expect("the offset is small");
    let region = usize::try_from(layout.offset(1)).expect("the offset is small") - start;
    let mut sound = bytes.to_vec();
    for header in sound.chunks_mut(region).filter_map(|region| region.get_mut(..32)) {
        (header[28], header[29]) = (1, 1);
        let fixed = with_crc(header, 4);
        header.copy_from_slice(&fixed);
    }
    for area in [bytes, &sound] {
        let read = |offset: u64, length: usize| -> Result<Vec<u8>, Cause> {
            let from = usize::try_from(offset)? - start;
            area.get(from..from + length).map(<[u8]>::to_vec).ok_or_else(|| "past the end".into())
        };
        if let Ok(generation) = decode_region(area, layout) {
            let again = decode_region(&encode_region(generation.as_ref()), layout);
            assert_eq!(again.expect("what is written can be read"), generation);
        }
        let Ok(mda) = Mda::load(layout, read) else { continue };
        if let Ok(Some(json)) = mda.read_json(read) {
            assert!(json.len() as u64 <= layout.capacity());
        }
        let stamp = mda.last_update().unwrap_or_default();
        assert!(mda.plan_write(b"{}", stamp).is_err() == mda.last_update().is_some());
        let later = Timestamp { seconds: u64::MAX, nanoseconds: 999_999_999 };
        if let Ok(plan) = mda.plan_write(b"{}", later) {
            let end = layout.offset(4);
            let inside = |step: &PlannedWrite| match step {
                PlannedWrite::At(offset, bytes) => *offset >= layout.offset(0) && offset + bytes.len() as u64 <= end,
                PlannedWrite::Flush => true,
            };
            assert!(plan.steps.iter().all(inside));
        }
    }
}

/// The JSON of a pool, of either version.
pub fn pool_json(bytes: &[u8]) {
    for version in [MetadataVersion::V1, MetadataVersion::V2] {
        let Ok(metadata) = PoolMetadata::parse(bytes, version) else { continue };
        let written = metadata.encode(version);
        let again = PoolMetadata::parse(&written, version).expect("what is written can be read");
        assert_eq!(again.encode(version), written);
        let pool = PoolUuid::from_random([0; 16]);
        for size in [Sectors(20_971_520), Sectors(u64::MAX)] {
            let headers: Vec<StaticHeader> =
                metadata.devices().map(|device| StaticHeader::new(pool, device, version, size, 0)).collect();
            let _ = pool::check(&metadata, version, &headers);
            let _ = pool::check_members(&metadata, &headers);
            let _ = (check_metadata::check(&metadata), print_metadata::print(&metadata));
        }
    }
}

/// The beginning of a device, as `stratis-dumpmetadata` reads it: whatever is there, the dump ends
/// with a text.
pub fn dump(bytes: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("space for a few bytes");
    for (show_bytes, pool_only) in [(true, false), (false, true)] {
        let dumped = dump_metadata::dump(&Dump { device: file.path().to_owned(), bytes: show_bytes, pool_only });
        assert!(pool_only || dumped.text.starts_with("Signature block"));
        assert!(dumped.end.is_ok() || dumped.end.is_err_and(|error| !error.to_string().is_empty()));
    }
}

/// A filesystem's record.
pub fn fs_json(bytes: &[u8]) {
    if let Ok(record) = FilesystemRecord::parse(bytes) {
        let written = record.encode();
        let again = FilesystemRecord::parse(&written).expect("what is written can be read");
        assert_eq!(again.encode(), written);
    }
}

/// An entry of the filesystem journal.
pub fn journal(bytes: &[u8]) {
    if let Ok(entry) = Journal::parse(bytes) {
        assert_eq!(Journal::parse(&entry.encode()).expect("what is written can be read"), entry);
        // The name of the entry's file contains the UUID of a filesystem that the entry is about.
        let file = entry.file();
        let known =
            |pending: &Pending| file.as_ref().is_some_and(|file| file.contains(&pending.uuid.simple().to_string()));
        assert!(matches!(entry, Journal::Revert(_)) || file.is_none() == entry.pending().is_empty());
        assert!(entry.pending().first().is_none_or(known));
        assert!(entry.pending().iter().all(|pending| pending.thin_id <= THIN_ID_MAX));
    }
}

/// The block with the checksum of the bytes from `from` on in its first four bytes.
fn with_crc(block: &[u8], from: usize) -> Vec<u8> {
    let mut block = block.to_vec();
    if block.len() > from {
        let end = block.len().min(BLOCK_BYTES);
        let crc = crc32c(&block[from..end]);
        block[..4].copy_from_slice(&crc.to_le_bytes());
    }
    block
}

/// CRC-32C bit by bit from its definition, and not by the crate that the tested code uses.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}
