//! LUKS2 devices: headers survive, keys unlock, crypt devices transform.

use std::collections::BTreeMap;

use serde_json::json;
use zeroize::Zeroizing;

use super::*;
use crate::{
    base::units::Bytes,
    platform::{
        DeviceAction, DeviceClass,
        keyring::Secret,
        luks::{
            Cost, DataEncryption, FormatPurpose, Header, HeaderChange, HeaderLayout, NewKeyslot, ReencryptionMode,
            Unlock,
        },
        sim::{CallKind, LuksCall, Preset},
    },
};

pub(super) const DISK: &str = "/dev/a";
pub(super) const NAME: &str = "opened";
/// The layout of a version 1 pool, but with a smaller keyslots area.
pub(super) const LAYOUT: HeaderLayout =
    HeaderLayout { metadata: Bytes(0x4000), keyslots: Bytes(4 << 20), data_offset: Sectors(16384), sector_size: None };
pub(super) const DATA: u64 = 16384 * 512;

pub(super) fn secret(text: &str) -> Secret {
    Secret::new(Zeroizing::new(text.as_bytes().to_vec()))
}

pub(super) fn new_keyslot(number: u32, passphrase: &Secret) -> NewKeyslot<'_> {
    NewKeyslot { number, passphrase, cost: Cost::Guessable }
}

pub(super) fn with(passphrase: &Secret) -> Unlock<'_> {
    Unlock { passphrase, keyslot: None }
}

pub(super) fn token(kind: &str, keyslots: &[&str]) -> serde_json::Value {
    json!({"type": kind, "keyslots": keyslots})
}

/// A LUKS device with the passphrases `one` in keyslot 0 and `two` in 1, and a token for each.
pub(super) fn format(sim: &Sim, purpose: FormatPurpose) -> Header {
    let (one, two) = (secret("one"), secret("two"));
    let tokens = BTreeMap::from([(1, token("luks2-keyring", &["0"])), (2, token("clevis", &["1"]))]);
    let keyslots = [new_keyslot(0, &one), new_keyslot(1, &two)];
    sim.luks_format(Path::new(DISK), &LAYOUT, purpose, &keyslots, &tokens).unwrap()
}

pub(super) fn open(sim: &Sim, name: Option<&str>, passphrase: &str) -> Result<Secret, Error> {
    sim.luks_open(Path::new(DISK), name, with(&secret(passphrase)))
}

fn header(sim: &Sim) -> Header {
    sim.luks_read(Path::new(DISK)).unwrap().unwrap()
}

fn is_wrong_key(result: Result<Secret, Error>) -> bool {
    matches!(result, Err(Error::WrongKey { device }) if device == Path::new(DISK))
}

fn said(result: Result<impl Sized, Error>) -> String {
    match result {
        Ok(_) => panic!("the call succeeded"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_format_follows_its_arguments() {
    let sim = Sim::builder().build();
    assert_eq!(sim.luks_read(Path::new(DISK)).unwrap(), None);
    let made = format(&sim, FormatPurpose::New);
    assert_eq!(made, header(&sim));
    assert_eq!((made.data_offset, made.sector_size, made.state), (Sectors(16384), 512, DataEncryption::Encrypted));
    assert_eq!(made.keyslots, [0, 1].into());
    assert_eq!(made.tokens[&2], token("clevis", &["1"]));
    assert_eq!((made.free_keyslots().next(), made.free_token()), (Some(2), Some(0)));
    assert_eq!(sim.find_device(Path::new(DISK)).unwrap().class, DeviceClass::Luks);
    assert_eq!(sim.contents(Path::new(DISK)).unwrap().superblock.as_deref(), Some("crypto_LUKS"));
    let key = open(&sim, None, "one").unwrap();
    assert_eq!(key.bytes().len(), 64);
    assert!(key.same(open(&sim, None, "two").unwrap().bytes()));
    assert!(is_wrong_key(open(&sim, None, "three")));
    let (one, two) = (secret("one"), secret("two"));
    let at = |passphrase, keyslot| sim.luks_open(Path::new(DISK), None, Unlock { passphrase, keyslot: Some(keyslot) });
    assert!(at(&one, 0).is_ok() && is_wrong_key(at(&one, 1)) && is_wrong_key(at(&two, 0)) && is_wrong_key(at(&one, 7)));
    // No passphrase and no volume key is on the disk.
    let bytes = sim.durable(Path::new(DISK), 0..DATA);
    for secret in [&b"one"[..], b"two", key.bytes()] {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret) || secret.len() < 4);
    }
    assert!(!bytes.windows(64).any(|window| window == key.bytes()));
}

#[test]
fn impossible_formats_are_refused() {
    let sim = Sim::builder().disk("/dev/small", Sectors(16384)).disk("/dev/used", Sectors(1 << 20)).in_use().build();
    let one = secret("one");
    let make = |path: &str, layout: &HeaderLayout, slots: &[u32], tokens: &[u32]| {
        let keyslots: Vec<NewKeyslot<'_>> = slots.iter().map(|number| new_keyslot(*number, &one)).collect();
        let tokens = tokens.iter().map(|number| (*number, token("t", &["0"]))).collect();
        sim.luks_format(Path::new(path), layout, FormatPurpose::New, &keyslots, &tokens)
    };
    let narrow = HeaderLayout { data_offset: Sectors(100), ..LAYOUT };
    let odd = HeaderLayout { metadata: Bytes(10_000), ..LAYOUT };
    let two_slots = HeaderLayout { keyslots: Bytes(2 * 258_048), ..LAYOUT };
    assert!(said(make("/dev/b", &narrow, &[0], &[])).contains("space"));
    assert!(said(make("/dev/b", &odd, &[0], &[])).contains("space"));
    assert!(said(make("/dev/small", &LAYOUT, &[0], &[])).contains("too small"));
    assert!(matches!(make("/dev/used", &LAYOUT, &[0], &[]), Err(Error::Busy { .. })));
    assert!(said(make("/dev/b", &LAYOUT, &[], &[])).contains("no keyslot"));
    assert!(said(make("/dev/b", &LAYOUT, &[0, 0], &[])).contains("in use"));
    assert!(said(make("/dev/b", &two_slots, &[0, 1, 2], &[])).contains("no space"));
    assert!(said(make("/dev/b", &LAYOUT, &[32], &[])).contains("in use"));
    assert!(said(make("/dev/b", &LAYOUT, &[0], &[32])).contains("token number"));
    assert!(said(make("/dev/b", &LAYOUT, &[1], &[0])).contains("existing keyslots"));
    assert_eq!(sim.luks_read(Path::new("/dev/b")).unwrap(), None);
    make("/dev/b", &two_slots, &[0, 31], &[31]).unwrap();
}

#[test]
fn a_crypt_device_transforms_its_data() {
    let sim = Sim::builder().build();
    let uuid = format(&sim, FormatPurpose::New).uuid;
    open(&sim, Some(NAME), "one").unwrap();
    assert_eq!(sim.opened(), [NAME]);
    let device = sim.dm_find(NAME).unwrap().unwrap();
    assert_eq!(device.uuid, format!("CRYPT-LUKS2-{}-{NAME}", uuid.replace('-', "")));
    let below = number(&sim, DISK);
    let size = sim.geometry(Path::new(DISK)).unwrap().size;
    let target = Target::Crypt {
        cipher: "aes-xts-plain64".to_owned(),
        iv_offset: Sectors(0),
        device: below,
        offset: LAYOUT.data_offset,
    };
    assert_eq!(device.table, [Line { start: Sectors(0), length: Sectors(size.0 - 16384), target }]);
    assert!(sim.hold(Path::new(DISK)).is_err_and(|error| error.is_busy()));
    // I/O works at any offset and length; unwritten data reads as zeros.
    write(&sim, NAME, 1000, b"something").unwrap();
    write(&sim, NAME, 4096, &[7; 1024]).unwrap();
    assert_eq!(read(&sim, NAME, 998, 13), b"\0\0something\0\0");
    assert_eq!(read(&sim, NAME, 4096, 1024), [7; 1024]);
    assert_eq!(read(&sim, NAME, 1 << 30, 512), [0; 512]);
    let raw = sim.read(Path::new(DISK), DATA + 4096, 1024).unwrap();
    assert!(raw[..512] != [7; 512] && raw[..512] != raw[512..]);
    assert_eq!(sim.read(Path::new(DISK), DATA + (1 << 30), 512).unwrap(), [0; 512]);
    // Zeros overwrite data, and the stream itself can be stored.
    let stream: Vec<u8> = raw.iter().map(|byte| byte ^ 7).collect();
    write(&sim, NAME, 4096, &stream).unwrap();
    assert_eq!(read(&sim, NAME, 4096, 1024), stream);
    write(&sim, NAME, 4096, &[0; 1024]).unwrap();
    assert_eq!(read(&sim, NAME, 4096, 1024), [0; 1024]);
    flush(&sim, NAME);
    sim.cut_power();
    sim.power_on();
    assert_eq!(sim.opened(), [""; 0]);
    open(&sim, Some("again"), "two").unwrap();
    assert_eq!(read(&sim, "again", 1000, 9), b"something");
    sim.dm_remove("again").unwrap();
    assert!(!sim.hold(Path::new(DISK)).is_err_and(|error| error.is_busy()));
}

/// With another key, or at another place, data reads as garbage.
#[test]
fn another_key_or_place_gives_garbage() {
    let sim = Sim::builder().build();
    format(&sim, FormatPurpose::New);
    open(&sim, Some(NAME), "one").unwrap();
    write(&sim, NAME, 0, &[7; 4096]).unwrap();
    let raw = sim.read(Path::new(DISK), DATA, 4096).unwrap();
    sim.put(Path::new(DISK), DATA + 4096, &raw).unwrap();
    assert_ne!(read(&sim, NAME, 4096, 512), [7; 512]);
    sim.dm_remove(NAME).unwrap();
    format(&sim, FormatPurpose::New);
    open(&sim, Some(NAME), "one").unwrap();
    assert_ne!(read(&sim, NAME, 0, 512), [7; 512]);
    sim.dm_remove(NAME).unwrap();
    // Another encryption sector size also changes the sector numbers.
    let layout = HeaderLayout { sector_size: Some(4096), ..LAYOUT };
    let one = secret("one");
    sim.luks_format(Path::new(DISK), &layout, FormatPurpose::New, &[new_keyslot(0, &one)], &BTreeMap::new()).unwrap();
    open(&sim, Some(NAME), "one").unwrap();
    write(&sim, NAME, 512, &[7; 512]).unwrap();
    assert_eq!(read(&sim, NAME, 512, 512), [7; 512]);
    let geometry = sim.geometry(&sim.dm_node(NAME)).unwrap();
    assert_eq!((geometry.logical, geometry.physical), (4096, 4096));
}

#[test]
fn a_refused_open_activates_nothing() {
    let sim = Sim::builder().build();
    sim.preset(Path::new("/dev/other"), Preset::Luks).unwrap();
    let one = secret("one");
    let other = |name| sim.luks_open(Path::new("/dev/other"), name, with(&one));
    assert!(matches!(other(Some("x")), Err(Error::WrongKey { .. })));
    assert_eq!(sim.luks_read(Path::new("/dev/other")).unwrap().unwrap().state, DataEncryption::Encrypted);
    assert!(said(open(&sim, Some(NAME), "one")).contains("no LUKS2 header"));
    format(&sim, FormatPurpose::New);
    assert!(is_wrong_key(open(&sim, Some(NAME), "three")));
    assert!(sim.leftovers().is_empty());
    create(&sim, "taken", &linear(number(&sim, "/dev/b"), 0, 8));
    assert!(said(open(&sim, Some("taken"), "one")).contains("is active"));
    open(&sim, Some(NAME), "one").unwrap();
    assert!(matches!(open(&sim, Some("twice"), "one"), Err(Error::Busy { .. })));
    // Finding the key still works without a crypt device.
    assert!(open(&sim, None, "one").is_ok());
    create(&sim, "above", &linear(number(&sim, "/dev/mapper/opened"), 0, 8));
    assert!(matches!(sim.dm_remove(NAME), Err(Error::Busy { .. })));
    sim.dm_remove("above").unwrap();
    sim.dm_remove(NAME).unwrap();
    // A load refuses a crypt table.
    let crypt = Target::Crypt {
        cipher: "aes-xts-plain64".to_owned(),
        iv_offset: Sectors(0),
        device: number(&sim, DISK),
        offset: Sectors(0),
    };
    let table = [Line { start: Sectors(0), length: Sectors(8), target: crypt }];
    assert_eq!(errno(sim.dm_create("x", "", &table, Visibility::Private)), nix::libc::EINVAL);
}

#[test]
fn a_crypt_device_raises_events_and_is_probed() {
    let sim = Sim::builder().build();
    format(&sim, FormatPurpose::New);
    open(&sim, Some(NAME), "one").unwrap();
    write(&sim, NAME, 512, &world::signature()).unwrap();
    sim.dm_remove(NAME).unwrap();
    let mut events = sim.device_events().unwrap();
    open(&sim, Some(NAME), "one").unwrap();
    let event = events.next().unwrap().unwrap();
    assert_eq!(
        (event.action, event.device.map(|device| device.class)),
        (DeviceAction::Add, Some(DeviceClass::Stratis))
    );
    let listed: Vec<_> = sim.block_devices().unwrap().into_iter().map(|device| (device.path, device.class)).collect();
    assert_eq!(listed, [(DISK.into(), DeviceClass::Luks), (event.path.clone(), DeviceClass::Stratis)]);
    assert_eq!(sim.contents(&sim.dm_node(NAME)).unwrap().superblock.as_deref(), Some("stratis"));
    write(&sim, NAME, 512, &[0; 512]).unwrap();
    let event = events.next().unwrap().unwrap();
    assert_eq!(
        (event.action, event.device.map(|device| device.class)),
        (DeviceAction::Change, Some(DeviceClass::Unowned))
    );
    sim.dm_remove(NAME).unwrap();
    assert_eq!(events.next().unwrap().unwrap().action, DeviceAction::Remove);
    // A change of the header raises an event of the disk.
    sim.luks_change(Path::new(DISK), None, &[HeaderChange::RemoveToken(1)]).unwrap();
    let event = events.next().unwrap().unwrap();
    assert_eq!((event.action, event.path.as_path()), (DeviceAction::Change, Path::new(DISK)));
}

#[test]
fn keyslots_and_tokens_are_changed_one_by_one() {
    let sim = Sim::builder().build();
    format(&sim, FormatPurpose::New);
    let key = open(&sim, None, "one").unwrap();
    let (one, three, no) = (secret("one"), secret("three"), secret("no"));
    let change = |unlock, changes: &[HeaderChange<'_>]| sim.luks_change(Path::new(DISK), unlock, changes);
    let add = HeaderChange::AddKeyslot(new_keyslot(2, &three));
    let made = change(Some(with(&one)), &[add, HeaderChange::PutToken(7, token("clevis", &["2"]))]).unwrap();
    assert_eq!((&made.keyslots, &made.tokens[&7]), (&[0, 1, 2].into(), &token("clevis", &["2"])));
    assert!(open(&sim, None, "three").unwrap().same(key.bytes()));
    let add = || HeaderChange::AddKeyslot(new_keyslot(3, &three));
    assert!(said(change(None, &[add()])).contains("takes a passphrase"));
    assert!(matches!(change(Some(with(&no)), &[add()]), Err(Error::WrongKey { .. })));
    // The changes are made up to the first that fails.
    let changes = [
        HeaderChange::RemoveToken(7),
        HeaderChange::RemoveToken(7),
        HeaderChange::DestroyKeyslot(9),
        HeaderChange::PutToken(8, token("x", &["9"])),
        HeaderChange::RemoveToken(1),
    ];
    assert!(change(None, &changes).is_err());
    assert_eq!(header(&sim).tokens.keys().copied().collect::<Vec<_>>(), [1, 2]);
    // A destroyed keyslot opens nothing, is in no token, and its area is overwritten.
    let area = |sim: &Sim| sim.durable(Path::new(DISK), 0x8000..0x8000 + 64);
    let before = area(&sim);
    change(None, &[HeaderChange::DestroyKeyslot(0)]).unwrap();
    assert!(is_wrong_key(open(&sim, None, "one")));
    assert_eq!(header(&sim).tokens[&1], token("luks2-keyring", &[]));
    assert_ne!(area(&sim), before);
    assert!(area(&sim).iter().zip(before).filter(|(a, b)| **a == *b).count() < 8);
    assert!(open(&sim, None, "two").unwrap().same(key.bytes()));
    // All keyslots may be destroyed; then nothing opens the device.
    change(None, &[HeaderChange::DestroyKeyslot(1), HeaderChange::DestroyKeyslot(2)]).unwrap();
    assert!(is_wrong_key(open(&sim, None, "two")));
    assert_eq!(header(&sim).state, DataEncryption::Encrypted);
}

#[test]
fn two_volume_keys_coexist() {
    let sim = Sim::builder().build();
    format(&sim, FormatPurpose::New);
    let (one, two) = (secret("one"), secret("two"));
    let next = |number, passphrase| HeaderChange::AddNextKeyslot(new_keyslot(number, passphrase));
    let changes = [next(2, &one), next(3, &two)];
    let made = sim.luks_change(Path::new(DISK), Some(with(&one)), &changes).unwrap();
    assert_eq!((made.keyslots, made.state), ([0, 1, 2, 3].into(), DataEncryption::Encrypted));
    let at = |keyslot| sim.luks_open(Path::new(DISK), None, Unlock { passphrase: &one, keyslot: Some(keyslot) });
    // The next key does not open the device yet.
    assert!(at(0).is_ok() && is_wrong_key(at(2)));
    let destroy = |number| HeaderChange::DestroyKeyslot(number);
    sim.luks_change(Path::new(DISK), None, &[destroy(2), destroy(3)]).unwrap();
    let digests = |sim: &Sim| {
        let bytes = sim.durable(Path::new(DISK), 0..0x4000);
        super::super::luks_header::StoredHeader::decode(&bytes, false).unwrap().json.digests.len()
    };
    assert_eq!(digests(&sim), 1);
}

#[test]
fn a_header_that_does_not_fit_is_refused() {
    let sim = Sim::builder().build();
    format(&sim, FormatPurpose::New);
    let mut large = token("x", &[]);
    large["jwe"] = "y".repeat(12 << 10).into();
    let before = header(&sim);
    let changed = sim.luks_change(Path::new(DISK), None, &[HeaderChange::PutToken(5, large)]);
    assert!(said(changed).contains("no space"));
    assert_eq!(header(&sim), before);
}

#[test]
fn a_resized_device_has_the_requested_size() {
    let sim = Sim::builder().disk(DISK, Sectors(1 << 20)).build();
    format(&sim, FormatPurpose::New);
    let key = open(&sim, Some(NAME), "one").unwrap();
    write(&sim, NAME, 0, b"kept").unwrap();
    let size = |sim: &Sim| sim.geometry(&sim.dm_node(NAME)).unwrap().size.0;
    assert_eq!(size(&sim), (1 << 20) - 16384);
    sim.resize_disk(Path::new(DISK), Sectors(1 << 21)).unwrap();
    let resize = |key: &Secret, to: Option<u64>| sim.luks_resize(Path::new(DISK), NAME, key, to.map(Sectors));
    resize(&key, None).unwrap();
    assert_eq!(size(&sim), (1 << 21) - 16384);
    write(&sim, NAME, ((1 << 21) - 16384) * 512 - 3, b"end").unwrap();
    resize(&key, Some(1 << 20)).unwrap();
    assert_eq!((size(&sim), read(&sim, NAME, 0, 4)), (1 << 20, b"kept".to_vec()));
    assert!(said(resize(&key, Some(1 << 21))).contains("too small"));
    assert!(said(resize(&secret("wrong"), None)).contains("volume key"));
    sim.dm_remove(NAME).unwrap();
    assert!(said(resize(&key, None)).contains("no active crypt device"));
}

/// A damaged copy is ignored, and the next change repairs it.
#[test]
fn either_copy_is_enough() {
    let spoilt = |at: u64| {
        let sim = Sim::builder().build();
        let made = format(&sim, FormatPurpose::New);
        sim.put(Path::new(DISK), at, &[0xff]).unwrap();
        assert_eq!(header(&sim), made, "{at}");
        sim.luks_change(Path::new(DISK), None, &[HeaderChange::RemoveToken(1)]).unwrap();
        sim
    };
    for (first, second) in [(0, 0x4000), (4100, 0x4000 + 20), (460, 0x4000 + 5000)] {
        for (one, other) in [(first, second), (second, first)] {
            let sim = spoilt(one);
            let changed = header(&sim);
            assert_eq!(changed.tokens.len(), 1);
            sim.put(Path::new(DISK), other, &[0xff]).unwrap();
            assert_eq!(header(&sim), changed, "{one}, {other}");
            assert_eq!(sim.find_device(Path::new(DISK)).unwrap().class, DeviceClass::Luks);
        }
    }
    // Bad sectors count as damage.
    let sim = spoilt(0);
    sim.spoil(Path::new(DISK), 3..4).unwrap();
    assert_eq!(header(&sim).tokens.len(), 1);
    let sim = Sim::builder().build();
    format(&sim, FormatPurpose::New);
    sim.put(Path::new(DISK), 5000, &[1]).unwrap();
    sim.put(Path::new(DISK), 0x4000 + 5000, &[1]).unwrap();
    assert!(said(sim.luks_read(Path::new(DISK))).contains("both copies"));
    assert_eq!(sim.header(Path::new(DISK)), None);
}

/// Runs a call with a fault or a power cut at each step: the header is the old one or the new one.
fn at_each_step(act: impl Fn(&Sim) -> Result<(), Error>, check: impl Fn(&Sim, Option<Header>, &str)) -> u64 {
    let reference = Sim::builder().record().build();
    format(&reference, FormatPurpose::New);
    let start = reference.steps();
    act(&reference).unwrap();
    let steps = reference.steps() - start;
    for seed in 0..8 {
        for step in 0..=steps {
            for strike in 0..3 {
                let sim = Sim::builder().seed(seed).build();
                format(&sim, FormatPurpose::New);
                let at = sim.steps() + step;
                match strike {
                    0 => sim.faults().cut_power_at(at),
                    1 => sim.faults().fail_at(at),
                    _ => sim.faults().fail_after(at),
                }
                let done = act(&sim);
                assert_eq!(done.is_ok(), step == steps, "{step} {strike}");
                sim.cut_power();
                sim.faults().clear();
                sim.power_on();
                check(&sim, sim.header(Path::new(DISK)), &format!("seed {seed}, step {step}, strike {strike}"));
            }
        }
    }
    steps
}

#[test]
fn a_change_is_atomic_at_every_power_cut() {
    let three = secret("three");
    let one = secret("one");
    let before = format(&Sim::builder().build(), FormatPurpose::New);
    let steps = at_each_step(
        |sim| {
            let add = HeaderChange::AddKeyslot(new_keyslot(2, &three));
            let changes = [add, HeaderChange::PutToken(3, token("x", &["2"])), HeaderChange::DestroyKeyslot(2)];
            sim.luks_change(Path::new(DISK), Some(with(&one)), &changes).map(drop)
        },
        |sim, header, at| {
            let header = header.unwrap_or_else(|| panic!("{at}: no header"));
            let has = (header.keyslots.contains(&2), header.tokens.get(&3));
            let (held, emptied) = (token("x", &["2"]), token("x", &[]));
            let allowed = [(false, None), (true, None), (true, Some(&held)), (false, Some(&emptied))].contains(&has);
            assert!(allowed, "{at}: {header:?}");
            assert_eq!(open(sim, None, "three").is_ok(), has.0, "{at}");
            assert!(open(sim, None, "one").is_ok(), "{at}");
            assert_eq!(header.tokens[&1], before.tokens[&1], "{at}");
        },
    );
    // The first header, an area, three headers, an area: each is written and flushed.
    assert_eq!(steps, 1 + 2 + 3 * 4 + 2);
}

/// A change that reported failure but took effect survives the next change.
#[test]
fn half_written_changes_stay() {
    let mut torn = 0;
    for seed in 0..30 {
        let sim = Sim::builder().seed(seed).build();
        format(&sim, FormatPurpose::New);
        let remove = |number| sim.luks_change(Path::new(DISK), None, &[HeaderChange::RemoveToken(number)]);
        // The second copy is not written.
        sim.faults().fail_at(sim.steps() + 3);
        assert!(remove(1).is_err());
        assert_eq!(header(&sim).tokens.len(), 1);
        // The copy that is written next is old, new or torn.
        sim.faults().cut_power_at(sim.steps() + 2);
        assert!(remove(2).is_err());
        sim.power_on();
        let left = header(&sim).tokens;
        assert!(!left.contains_key(&1), "seed {seed}: {left:?}");
        torn += u32::from(left.contains_key(&2));
    }
    assert!((1..30).contains(&torn), "{torn}");
}

/// A new header is either complete or absent.
#[test]
fn a_new_header_appears_atomically() {
    for purpose in [FormatPurpose::New, FormatPurpose::Encrypt] {
        let reference = Sim::builder().build();
        format(&reference, purpose);
        let steps = reference.steps();
        let (mut there, mut absent) = (0, 0);
        for seed in 0..20 {
            for step in 0..steps {
                let sim = Sim::builder().seed(seed).build();
                sim.faults().cut_power_at(step);
                let (one, two) = (secret("one"), secret("two"));
                let keyslots = [new_keyslot(0, &one), new_keyslot(1, &two)];
                let made = sim.luks_format(Path::new(DISK), &LAYOUT, purpose, &keyslots, &BTreeMap::new());
                assert!(matches!(made, Err(Error::PowerCut)));
                sim.power_on();
                match sim.luks_read(Path::new(DISK)).unwrap() {
                    Some(header) => {
                        there += 1;
                        let begun = DataEncryption::Unfinished { mode: ReencryptionMode::Encrypt, done: Bytes(0) };
                        let state = if purpose == FormatPurpose::New { DataEncryption::Encrypted } else { begun };
                        assert_eq!(header.state, state);
                        assert!(open(&sim, None, "one").is_ok() && open(&sim, None, "two").is_ok());
                    }
                    None => absent += 1,
                }
            }
        }
        assert!(there > 20 && absent > 20, "{there} {absent}");
    }
}

/// After an error at any step, no crypt device is active.
#[test]
fn a_failed_open_leaves_no_device() {
    for purpose in [FormatPurpose::New, FormatPurpose::Encrypt] {
        for after in [false, true] {
            for step in 0..2 {
                let sim = Sim::builder().build();
                format(&sim, purpose);
                let at = sim.steps() + step;
                if after {
                    sim.faults().fail_after(at)
                } else {
                    sim.faults().fail_at(at)
                }
                assert!(open(&sim, Some(NAME), "one").is_err());
                assert!(sim.leftovers().is_empty() && !sim.hold(Path::new(DISK)).is_err_and(|error| error.is_busy()));
                open(&sim, Some(NAME), "one").unwrap();
            }
        }
    }
}

/// A gate blocks key derivations and nothing else.
#[test]
fn luks_devices_are_opened_in_parallel() {
    let sim = Sim::builder().build();
    format(&sim, FormatPurpose::New);
    let gate = sim.delay(CallKind::Luks(LuksCall::Open), DISK);
    std::thread::scope(|scope| {
        let held = scope.spawn(|| open(&sim, None, "one"));
        assert!(gate.wait_for(1, LIMIT));
        assert!(sim.luks_read(Path::new(DISK)).is_ok());
        gate.open();
        assert!(held.join().unwrap().is_ok());
    });
}

#[test]
fn keys_end_with_the_process_or_power() {
    let sim = Sim::builder().build();
    let key = secret("key");
    let keys = |sim: &Sim| (sim.volume_key_read("v").unwrap().is_some(), sim.key_read("k").unwrap().is_some());
    let set = |sim: &Sim| {
        sim.volume_key_set("v", &key).unwrap();
        sim.key_set("k", &key).unwrap();
    };
    set(&sim);
    sim.faults().clear();
    assert_eq!(keys(&sim), (true, true));
    sim.faults().kill_at(sim.steps());
    assert!(sim.volume_key_read("v").is_err());
    sim.faults().clear();
    assert_eq!(keys(&sim), (false, true));
    set(&sim);
    sim.end_process();
    assert_eq!(keys(&sim), (false, true));
    set(&sim);
    sim.cut_power();
    sim.power_on();
    assert_eq!(keys(&sim), (false, false));
}

/// If `cryptsetup` is installed, it can read the headers.
#[test]
#[ignore = "needs cryptsetup"]
fn cryptsetup_reads_the_headers() {
    let folder = tempfile::tempdir().unwrap();
    for purpose in [FormatPurpose::New, FormatPurpose::Encrypt] {
        let sim = Sim::builder().build();
        let made = format(&sim, purpose);
        let file = folder.path().join("luks-device");
        std::fs::write(&file, sim.durable(Path::new(DISK), 0..16 << 20)).unwrap();
        #[allow(clippy::disallowed_methods)]
        let dump = std::process::Command::new("cryptsetup").arg("luksDump").arg(&file).output().unwrap();
        let text = String::from_utf8_lossy(&dump.stdout).into_owned();
        assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
        println!("{text}");
        for part in [made.uuid.as_str(), "0: luks2", "1: luks2", "luks2-keyring", "cipher: aes-xts-plain64"] {
            assert!(text.contains(part), "{part}");
        }
        assert_eq!(text.contains("2: linear") || text.contains("backup-final"), purpose == FormatPurpose::Encrypt);
    }
}
