//! The worked examples of the specification (`docs/spec/engine/ondisk-metadata.md` §2.2, 6.9,
//! 6.10). The JSON texts have line breaks here, which daemons do not write.
//!
//! This module uses no type of the crate `stratisd`, because unit tests use it.

/// UUID of the pool in the examples.
pub const POOL: &str = "01234567-89ab-cdef-0123-456789abcdef";
/// UUID of the block device of [`POOL_V2`].
pub const DEVICE: &str = "fedcba98-7654-3210-fedc-ba9876543210";
/// UUID of the data device of [`POOL_V1`].
pub const DATA_DEVICE: &str = "11111111-1111-4111-8111-111111111111";
/// UUID of the cache device of [`POOL_V1`].
pub const CACHE_DEVICE: &str = "22222222-2222-4222-8222-222222222222";
/// UUID of the filesystem in the examples.
pub const FILESYSTEM: &str = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";
/// Another UUID of a filesystem.
pub const OTHER_FILESYSTEM: &str = "00000000-0000-4000-8000-000000000001";

/// The start of the signature block of [`DEVICE`]; the other 384 bytes are zero.
pub const SIGNATURE_BLOCK: [u8; 128] = [
    0xec, 0x38, 0x59, 0x20, 0x21, 0x53, 0x74, 0x72, 0x61, 0x30, 0x74, 0x69, 0x73, 0x86, 0xff, 0x02, //
    0x5e, 0x41, 0x72, 0x68, 0x00, 0x00, 0x40, 0x01, 0x00, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, //
    0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, //
    0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, //
    0x66, 0x65, 0x64, 0x63, 0x62, 0x61, 0x39, 0x38, 0x37, 0x36, 0x35, 0x34, 0x33, 0x32, 0x31, 0x30, //
    0x66, 0x65, 0x64, 0x63, 0x62, 0x61, 0x39, 0x38, 0x37, 0x36, 0x35, 0x34, 0x33, 0x32, 0x31, 0x30, //
    0xf0, 0x07, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x18, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, //
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xf1, 0x53, 0x65, 0x00, 0x00, 0x00, 0x00, //
];

/// Pool metadata of version 2, of a pool on one device.
pub const POOL_V2: &str = r#"{"name":"p1",
 "backstore":{
  "data_tier":{
   "blockdev":{
    "allocs":[[{"parent":"fedcba98-7654-3210-fedc-ba9876543210","start":8192,"length":20371456}]],
    "devs":[{"uuid":"fedcba98-7654-3210-fedc-ba9876543210",
             "integrity_meta_allocs":[[20381688,589832]],
             "hardware_info":"0x5000c500a1b2c3d4"}]},
   "integrity_spec":{"tag_spec":"512b","journal_size":262144,"block_size":4096,"allocate_superblock":true}},
  "cap":{"allocs":[[34816,12288],[47104,12288],[59392,19263488],[19322880,1048576]],
         "crypt_meta_allocs":[[0,34816]]}},
 "flex_devs":{"meta_dev":[[19322880,1048576]],
              "thin_meta_dev":[[34816,12288]],
              "thin_data_dev":[[59392,19263488]],
              "thin_meta_dev_spare":[[47104,12288]]},
 "thinpool_dev":{"data_block_size":2048,
                 "feature_args":["no_discard_passdown","skip_block_zeroing"],
                 "fs_limit":100,"enable_overprov":true},
 "started":true}"#;

/// Pool metadata of version 1, of a pool with a cache.
pub const POOL_V1: &str = r#"{"name":"old",
 "backstore":{
  "data_tier":{"blockdev":{
    "allocs":[[{"parent":"11111111-1111-4111-8111-111111111111","start":8192,"length":20963328}]],
    "devs":[{"uuid":"11111111-1111-4111-8111-111111111111","user_info":"front left"}]}},
  "cap":{"allocs":[[0,20963328]]},
  "cache_tier":{"blockdev":{
    "allocs":[[{"parent":"22222222-2222-4222-8222-222222222222","start":1056768,"length":1040384}],
              [{"parent":"22222222-2222-4222-8222-222222222222","start":8192,"length":1048576}]],
    "devs":[{"uuid":"22222222-2222-4222-8222-222222222222"}]}}},
 "flex_devs":{"meta_dev":[[19914752,1048576]],
              "thin_meta_dev":[[0,12288]],
              "thin_data_dev":[[24576,19890176]],
              "thin_meta_dev_spare":[[12288,12288]]},
 "thinpool_dev":{"data_block_size":2048,
                 "feature_args":["no_discard_passdown","skip_block_zeroing"],
                 "fs_limit":100,"enable_overprov":true},
 "started":true}"#;

/// The record of a filesystem.
pub const RECORD: &str = concat!(
    r#"{"name":"home","uuid":"3f2504e0-4f89-41d3-9a0c-0305e82c3301","thin_id":0,"#,
    r#""size":2147483648,"created":1700000100,"merge":false}"#
);

/// A JSON text without its line breaks and indentation, as daemons write it.
pub fn compact(text: &str) -> String {
    text.lines().map(str::trim).collect()
}
