//! Re-encryption jobs on a LUKS device in use: encryption, a new volume key, decryption.
//!
//! The data is processed zone by zone. Zones have equal numbers of non-zero pages, chosen for about
//! 64 zones, or set by the builder. Ranges of zeros are the same with every key and cost nothing.
//! The steps for a zone, each durable before the next:
//!
//! 1. note the contents of its sectors in memory (`crypt` defines what that means for other users);
//! 2. write the notes to the area of the keyslot of type `reencrypt`, as with resilience
//!    `checksum`, which also makes the noted data durable;
//! 3. name the zone in the header, up to the first write to it since 1;
//! 4. rewrite its sectors, if they still have the noted contents;
//! 5. record in the header that it is done.
//!
//! If a job is interrupted between 3 and 5, step 4 is repeated when the LUKS device is next opened
//! or the job resumed. After any interruption, the active crypt device serves all data. The rules
//! of `luks` for headers apply here too.
//!
//! This module knows nothing of who uses the data.

use std::{collections::BTreeMap, ops::Range, path::Path, sync::Arc};

use super::{
    Sim,
    cipher::{Marks, Opened, Phase, ZEROS, Zone},
    faults::{CallKind, LuksCall},
    incomplete::{Incomplete, Patience},
    luks_device::{Keys, Loaded, SimulatedLuksDevice, UpdateStage},
    luks_header::{Data, NoRoom, SegmentKey, Unfinished},
    machine::MachineState,
};
use crate::{
    base::units::{Bytes, SECTOR},
    platform::{
        Result,
        luks::{Begin, Progress, ReencryptionEnd, ReencryptionMode, Unlock},
    },
};

/// Number of zones, unless the builder set their size.
const ZONES: u64 = 64;
/// Longest zone in non-zero pages: its marks must fit into the area.
const PAGES_MAX: u64 = 1024;
const PAGE: u64 = 4096;
/// Size of the mark of a sector: its number and its hash.
const MARK: u64 = 8 + 32;
/// Most sectors rewritten by one write.
const RUN_MAX: u64 = 128;

pub(super) fn reencrypt(
    sim: &Sim,
    device: &Path,
    name: &str,
    unlock: Unlock<'_>,
    begin: Begin,
    watch: &(dyn Fn(Progress) -> bool + Sync),
) -> Result<ReencryptionEnd> {
    let luks = SimulatedLuksDevice::at(sim, device)?;
    let mut loaded = luks.load_some(LuksCall::Reencrypt)?;
    let minor = luks.minor(&*sim.machine()?, name);
    let minor = minor.ok_or_else(|| luks.refused(LuksCall::Reencrypt, "it has no active crypt device"))?;
    // A caller that waits for memory can be stopped before the job starts.
    let done = loaded.header.data().unfinished.map_or(0, |unfinished| unfinished.done);
    let length = sim.machine()?.opened(minor).map_or(0, |opened| opened.length);
    let [done, total] = [done, length].map(|bytes| Bytes(u128::from(bytes)));
    if !watch(Progress { done, total }) {
        return Ok(ReencryptionEnd::Interrupted);
    }
    luks.begin(&mut loaded, unlock, begin)?;
    let keys = luks.keys(&loaded.header, unlock)?;
    let mut run = Run { device: &luks, minor, keys, loaded, pages: 1 };
    let ended = run.go(watch);
    ended.and_then(|ended| sim.written(luks.number).map(|()| ended))
}

impl SimulatedLuksDevice<'_> {
    /// Records the start of a job, unless one is to be resumed.
    fn begin(&self, loaded: &mut Loaded, unlock: Unlock<'_>, begin: Begin) -> Result<()> {
        let refused = |what: &str| self.refused(LuksCall::Reencrypt, what);
        let Data { after, unfinished, .. } = loaded.header.data();
        let (mode, before, after) = match (begin, unfinished, after) {
            (Begin::Resume, Some(_), _) => return Ok(()),
            (Begin::Resume, None, _) => return Err(refused("there is no re-encryption job to resume")),
            (_, Some(_), _) => return Err(refused("another re-encryption job is unfinished; resume it first")),
            (_, None, SegmentKey::Clear) => return Err(refused("its data is not encrypted")),
            (Begin::Decrypt, None, key @ SegmentKey::Key(digest)) => {
                self.unlock(&loaded.header, unlock, |_, found| found == Some(digest))?;
                (ReencryptionMode::Decrypt, key, SegmentKey::Clear)
            }
            (Begin::Reencrypt { from, to }, None, key @ SegmentKey::Key(digest)) => {
                let header = &loaded.header;
                let next = header.digest_of(to).filter(|next| *next != digest);
                let (Some(next), true) = (next, header.digest_of(from) == Some(digest)) else {
                    return Err(refused("the keyslots do not hold the current volume key and the next one"));
                };
                for keyslot in [from, to] {
                    self.unlock(header, Unlock { keyslot: Some(keyslot), ..unlock }, |_, _| true)?;
                }
                (ReencryptionMode::Reencrypt, key, SegmentKey::Key(next))
            }
        };
        let mut header = loaded.header.clone();
        header
            .begin(mode, before, after)
            .map_err(|NoRoom| refused("there is no space for the checksums of the hot zone"))?;
        self.update(loaded, header)
    }

    /// Recovers the hot zone of a job that was cut short. The LUKS device has no active crypt
    /// device.
    pub(super) fn recover(&self, loaded: &mut Loaded, keys: &Keys) -> Result<()> {
        let data = loaded.header.data();
        let Some(Unfinished { hot: Some(end), .. }) = data.unfinished else { return Ok(()) };
        let marks = self.read_marks(loaded)?;
        self.rewrite(&marks, end, data.offset, keys)?;
        self.flush()?;
        self.record(loaded, end, None)
    }

    /// Records the progress and the hot zone in the header.
    fn record(&self, loaded: &mut Loaded, done: u64, hot: Option<u64>) -> Result<()> {
        let header = recorded(loaded, done, hot);
        self.update(loaded, header)
    }

    /// Rewrites the sectors of a zone that still have the noted contents.
    fn rewrite(&self, marks: &Marks, end: u64, offset: u64, keys: &Keys) -> Result<()> {
        runs(marks, end).into_iter().try_for_each(|run| {
            self.act(|machine| {
                let mut bytes = vec![0; ((run.end - run.start) * SECTOR) as usize];
                let at = offset + run.start * SECTOR;
                machine.read_at(self.number, at, &mut bytes, Patience::Wait)?;
                for (sector, bytes) in (run.start..).zip(bytes.chunks_exact_mut(SECTOR as usize)) {
                    if Opened::is_as_noted(marks, sector, bytes) {
                        keys.before.transform(sector, bytes);
                        keys.after.transform(sector, bytes);
                    }
                }
                machine.write_at(self.number, at, &bytes, Patience::Wait)
            })
        })
    }

    fn write_marks(&self, loaded: &Loaded, marks: &Marks) -> Result<()> {
        let mut bytes = (marks.len() as u64).to_be_bytes().to_vec();
        for (sector, mark) in marks {
            bytes.extend(sector.to_be_bytes());
            bytes.extend(mark);
        }
        bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0);
        self.write(self.marks_area(loaded)?.start, &bytes)?;
        self.flush()
    }

    fn read_marks(&self, loaded: &Loaded) -> Result<Marks> {
        let area = self.marks_area(loaded)?;
        let read = |at: u64, length: u64| {
            let mut bytes = vec![0; length as usize];
            self.peek(CallKind::LuksWrite, |machine| machine.read_at(self.number, at, &mut bytes, Patience::Wait))?;
            Ok(bytes)
        };
        let count = u64::from_be_bytes(read(area.start, 8)?.try_into().expect("8 bytes were read"));
        if count.checked_mul(MARK).is_none_or(|length| length + 8 > area.end - area.start) {
            return Err(self.refused(LuksCall::Open, "the checksums of the hot zone are damaged"));
        }
        let bytes = read(area.start + 8, count * MARK)?;
        let marks = bytes.chunks_exact(MARK as usize).map(|entry| {
            let (sector, mark) = entry.split_at(8);
            let sector = u64::from_be_bytes(sector.try_into().expect("8 bytes are split off"));
            (sector, mark.try_into().expect("32 bytes are left"))
        });
        Ok(marks.collect())
    }

    fn marks_area(&self, loaded: &Loaded) -> Result<Range<u64>> {
        let no_area = || self.refused(LuksCall::Reencrypt, "the header has no area for the checksums of the hot zone");
        loaded.header.checksums().ok_or_else(no_area)
    }
}

fn recorded(loaded: &Loaded, done: u64, hot: Option<u64>) -> super::luks_header::StoredHeader {
    let mut header = loaded.header.clone();
    let mut data = header.data();
    if let Some(unfinished) = &mut data.unfinished {
        unfinished.done = done;
        unfinished.hot = hot;
    }
    header.set_data(&data);
    header
}

/// The sectors before `end` that have marks, in runs.
fn runs(marks: &Marks, end: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for sector in marks.keys().copied().filter(|sector| sector * SECTOR < end) {
        match runs.last_mut() {
            Some(run) if run.end == sector && run.end - run.start < RUN_MAX => run.end += 1,
            _ => runs.push(sector..sector + 1),
        }
    }
    runs
}

/// A job that runs.
struct Run<'a> {
    device: &'a SimulatedLuksDevice<'a>,
    /// Minor number of the crypt device.
    minor: u32,
    keys: Keys,
    loaded: Loaded,
    /// Non-zero pages per zone.
    pages: u64,
}

/// Progress of the active crypt device.
struct LiveProgress {
    done: u64,
    length: u64,
    /// Marks and end of a zone that the header names.
    zone: Option<(Arc<Marks>, u64)>,
}

impl Run<'_> {
    fn go(&mut self, watch: &(dyn Fn(Progress) -> bool + Sync)) -> Result<ReencryptionEnd> {
        self.adopt()?;
        self.pages = self.pages()?;
        loop {
            let live = self.live()?;
            if let Some((marks, end)) = live.zone {
                // Another job was interrupted in this zone, so the header may not be durable yet.
                let minor = self.minor;
                self.device.act(|machine| {
                    machine.flush(self.device.number, Patience::Wait)?;
                    machine.heat_zone(minor);
                    Ok(())
                })?;
                self.complete(&marks, end)?;
                continue;
            }
            let said = self.loaded.header.data().unfinished;
            if said.is_some_and(|said| said.hot.is_some() || said.done != live.done) {
                self.device.record(&mut self.loaded, live.done, None)?;
            }
            let bytes = |count: u64| Bytes(u128::from(count));
            let goes_on = watch(Progress { done: bytes(live.done), total: bytes(live.length) });
            if live.done >= live.length {
                return self.finish().map(|()| ReencryptionEnd::Finished);
            }
            if !goes_on {
                return Ok(ReencryptionEnd::Interrupted);
            }
            let marks = self.note()?;
            self.device.write_marks(&self.loaded, &marks)?;
            if let Some(end) = self.name(live.done)? {
                self.complete(&marks, end)?;
            }
        }
    }

    fn gone(&self) -> crate::platform::Error {
        self.device.refused(LuksCall::Reencrypt, "its crypt device is gone")
    }

    /// Passes the progress of the job to the active crypt device.
    fn adopt(&self) -> Result<()> {
        let header = self.loaded.header.data();
        let mut machine = self.device.sim.machine()?;
        let opened = machine.opened_mut(self.minor).ok_or_else(|| self.gone())?;
        if opened.done == u64::MAX {
            opened.before = self.keys.before.clone();
            opened.after = self.keys.after.clone();
            opened.done = header.unfinished.map_or(0, |unfinished| unfinished.done);
        }
        // No I/O relies on a zone that is only noted.
        opened.zone = opened.zone.take().filter(|zone| !matches!(zone.phase, Phase::Noted));
        machine.crypt_changed(self.minor);
        Ok(())
    }

    fn live(&self) -> Result<LiveProgress> {
        let machine = self.device.sim.machine()?;
        let opened = machine.opened(self.minor).ok_or_else(|| self.gone())?;
        let named = |zone: &&Zone| !matches!(zone.phase, Phase::Noted);
        Ok(LiveProgress {
            done: opened.done,
            length: opened.length,
            zone: opened.zone.as_ref().filter(named).map(|zone| (Arc::clone(&zone.marks), zone.end)),
        })
    }

    /// Number of pages per zone.
    fn pages(&self) -> Result<u64> {
        let area = self.device.marks_area(&self.loaded)?;
        let max = ((area.end - area.start) / (MARK * (PAGE / SECTOR))).saturating_sub(2).clamp(1, PAGES_MAX);
        if let Some(pages) = self.device.sim.0.hot_zone {
            return Ok(pages.clamp(1, max));
        }
        let stored = self.device.peek(CallKind::LuksWrite, |machine| {
            let opened = machine.opened(self.minor).ok_or(Incomplete::Errno(nix::libc::ENXIO))?;
            let (mut at, end, mut count) = (opened.offset, opened.offset + opened.length, 0);
            while let Some(found) = machine.next_stored(self.device.number, at..end)? {
                count += 1;
                at = found.end;
            }
            Ok(count)
        })?;
        Ok(u64::div_ceil(stored, ZONES).clamp(1, max))
    }

    /// Notes the contents of the next zone.
    fn note(&self) -> Result<Arc<Marks>> {
        let (number, pages) = (self.device.number, self.pages);
        self.device.peek(CallKind::LuksWrite, |machine| {
            let opened = machine.opened(self.minor).ok_or(Incomplete::Errno(nix::libc::ENXIO))?;
            let (done, length, offset) = (opened.done, opened.length, opened.offset);
            let unit = u64::from(opened.sector_size).max(PAGE);
            let (mut at, mut end, mut held) = (done, length, 0);
            while let Some(found) = machine.next_stored(number, offset + at..offset + length)? {
                if held == pages {
                    let start = found.start - offset;
                    end = (start - start % unit).max(at.next_multiple_of(unit)).min(length);
                    break;
                }
                held += 1;
                at = found.end - offset;
            }
            let marks = Arc::new(machine.marks(number, offset, done..end)?);
            if let Some(opened) = machine.opened_mut(self.minor) {
                let zone = Zone { end, marks: Arc::clone(&marks), phase: Phase::Noted };
                opened.zone = Some(zone);
            }
            Ok(marks)
        })
    }

    /// Names the zone in the header. Returns its end, or `None` if the zone has become empty.
    fn name(&mut self, done: u64) -> Result<Option<u64>> {
        let minor = self.minor;
        let end_of = |machine: &MachineState| {
            let zone = machine.opened(minor).and_then(|opened| opened.zone.as_ref());
            zone.map(|zone| zone.end).filter(|end| *end > done)
        };
        let phase = |machine: &mut MachineState, phase: Phase| {
            if let Some(zone) = machine.opened_mut(minor).and_then(|opened| opened.zone.as_mut()) {
                zone.phase = phase;
            }
        };
        loop {
            let Some(end) = end_of(&*self.device.sim.machine()?) else { return Ok(None) };
            let header = recorded(&self.loaded, done, Some(end));
            let named = self.device.update_with(&mut self.loaded, header, |machine, moment| {
                match moment {
                    UpdateStage::Before => return end_of(machine) == Some(end),
                    UpdateStage::Written => phase(machine, Phase::Named),
                    UpdateStage::Durable => phase(machine, Phase::Hot),
                }
                true
            })?;
            // Otherwise the zone has just been written to.
            if named {
                return Ok(Some(end));
            }
        }
    }

    /// Rewrites a zone and records that it is done.
    fn complete(&mut self, marks: &Marks, end: u64) -> Result<()> {
        let offset = self.loaded.header.data().offset;
        self.device.rewrite(marks, end, offset, &self.keys)?;
        let minor = self.minor;
        self.device.act(|machine| {
            machine.flush(self.device.number, Patience::Wait)?;
            if let Some(opened) = machine.opened_mut(minor) {
                opened.done = end;
                opened.zone = None;
            }
            machine.crypt_changed(minor);
            Ok(())
        })?;
        self.device.record(&mut self.loaded, end, None)
    }

    /// Ends the job: the header says so, and old keys are overwritten.
    fn finish(&mut self) -> Result<()> {
        let mut header = self.loaded.header.clone();
        let old = header.finish();
        let minor = self.minor;
        self.device.update_with(&mut self.loaded, header, |machine, moment| {
            if moment == UpdateStage::Durable {
                machine.opened_mut(minor).into_iter().for_each(Opened::settle);
                machine.crypt_changed(minor);
                machine.changed_event(minor);
            }
            true
        })?;
        old.into_iter().try_for_each(|area| self.device.wipe(area.start))
    }
}

impl MachineState {
    /// Marks of the sectors of a range.
    fn marks(
        &self,
        number: crate::platform::DeviceNumber,
        offset: u64,
        range: Range<u64>,
    ) -> std::result::Result<Marks, Incomplete> {
        use sha2::Digest;
        let mut marks = BTreeMap::new();
        let mut at = offset + range.start;
        while let Some(found) = self.next_stored(number, at..offset + range.end)? {
            let mut bytes = vec![0; (found.end - found.start) as usize];
            self.read_at(number, found.start, &mut bytes, Patience::Wait)?;
            for (sector, bytes) in ((found.start - offset) / SECTOR..).zip(bytes.chunks_exact(SECTOR as usize)) {
                if *bytes != ZEROS {
                    marks.insert(sector, sha2::Sha256::digest(bytes).into());
                }
            }
            at = found.end;
        }
        Ok(marks)
    }
}
