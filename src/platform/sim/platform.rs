//! The calls of [`Platform`], each as the sequence of its steps.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Instant,
};

use nix::libc;
use serde_json::Value;

use super::{
    AnnouncedLinks, CallKind, REMOVE_ATTEMPTS, Sim, SimulatedHold, clevis, dm_devices,
    faults::dm_error,
    incomplete::{Incomplete, Patience},
    luks, luks_reencrypt, text, xfs,
};
use crate::{
    base::units::Sectors,
    platform::{
        Announcement, BlockDevice, Contents, DeviceEvents, DeviceHold, DeviceNumber, DeviceWrite, DmEvents, Error,
        Geometry, Mount, PendingLinks, Platform, Program, Result, RunningProgram, Timestamp, Usage, WriteStep,
        dm::{Device, Line, Listed, Visibility},
        keyring::{KeyChange, Secret},
        luks::{
            Begin, FormatPurpose, Header, HeaderChange, HeaderLayout, NewKeyslot, Progress, ReencryptionEnd, Unlock,
        },
    },
};

impl Platform for Sim {
    fn block_devices(&self) -> Result<Vec<BlockDevice>> {
        self.step(CallKind::BlockDevices, "/dev", || Ok(self.machine()?.block_devices()))
    }

    fn find_device(&self, path: &Path) -> Result<BlockDevice> {
        self.step(CallKind::FindDevice, &text(path), || {
            let (node, number) = self.node(path)?;
            self.machine()?.block_device(node, number).ok_or_else(|| Error::NoDevice { path: path.to_owned() })
        })
    }

    fn contents(&self, path: &Path) -> Result<Contents> {
        let (_, number) = self.node(path)?;
        self.io(CallKind::Contents, &text(path), |machine| machine.probe(number))
    }

    fn geometry(&self, path: &Path) -> Result<Geometry> {
        let (_, number) = self.node(path)?;
        self.io(CallKind::Geometry, &text(path), |machine| machine.geometry(number))
    }

    fn hold(&self, path: &Path) -> Result<Box<dyn DeviceHold>> {
        let (_, number) = self.node(path)?;
        let mut made = None;
        let held = self.io(CallKind::Hold, &text(path), |machine| match machine.is_in_use(number) {
            true => Err(Incomplete::Errno(libc::EBUSY)),
            false => {
                made = Some(machine.hold(number));
                Ok(())
            }
        });
        // A call that fails after its effect leaves no hold: the kernel returns no descriptor then.
        let hold = made.map(|serial| SimulatedHold { sim: self.clone(), number, serial });
        held?;
        Ok(Box::new(hold.expect("a device is held when the call succeeds")))
    }

    fn lower_devices(&self, number: DeviceNumber) -> Result<BTreeSet<DeviceNumber>> {
        self.step(CallKind::LowerDevices, &format!("{}:{}", number.major, number.minor), || {
            Ok(self.machine()?.lower_devices(number))
        })
    }

    fn read(&self, path: &Path, offset: u64, length: usize) -> Result<Vec<u8>> {
        let (_, number) = self.node(path)?;
        self.io(CallKind::Read, &text(path), |machine| {
            // Checked first, so that no memory is allocated for a wrong length.
            let end = offset.checked_add(length as u64).ok_or(Incomplete::Errno(libc::EINVAL))?;
            if machine.size_of(number).is_none_or(|size| end > size) {
                return Err(Incomplete::Errno(libc::EIO));
            }
            let mut bytes = vec![0; length];
            machine.read_at(number, offset, &mut bytes, Patience::Wait).map(|()| bytes)
        })
    }

    fn write(&self, path: &Path, steps: &[WriteStep<'_>]) -> Result<()> {
        let (_, number) = self.node(path)?;
        let done = steps.iter().try_for_each(|step| {
            if matches!(step, WriteStep::Flush) {
                self.0.flush_waits.fetch_add(1, Ordering::Relaxed);
            }
            self.write_step(path, number, step)
        });
        done.and(self.written(number))
    }

    /// Runs the first step of each device, then the second of each, and so on. Of all orders this
    /// one leaves the most devices unfinished at a fault.
    fn write_each(&self, writes: &[DeviceWrite<'_>]) -> Vec<Result<()>> {
        let open = |write: &DeviceWrite<'_>| match self.node(write.path) {
            Ok((_, number)) => (Some(number), Ok(())),
            Err(error) => (None, Err(error)),
        };
        let (opened, mut results): (Vec<Option<DeviceNumber>>, Vec<Result<()>>) = writes.iter().map(open).unzip();
        let rounds = writes.iter().map(|write| write.steps.len()).max().unwrap_or(0);
        for round in 0..rounds {
            let mut waits = false;
            for ((write, number), result) in writes.iter().zip(&opened).zip(&mut results) {
                let (Some(number), Some(step), Ok(())) = (number, write.steps.get(round), &result) else { continue };
                waits |= matches!(step, WriteStep::Flush);
                *result = self.write_step(write.path, *number, step);
            }
            self.0.flush_waits.fetch_add(u64::from(waits), Ordering::Relaxed);
        }
        let closed = opened.into_iter().map(|number| number.map_or(Ok(()), |number| self.written(number)));
        results.into_iter().zip(closed).map(|(result, closed)| result.and(closed)).collect()
    }

    fn dm_list(&self) -> Result<Vec<Listed>> {
        self.dm(CallKind::DmList, "", |machine| Ok(machine.dm.list()))
    }

    fn dm_find(&self, name: &str) -> Result<Option<Device>> {
        self.dm(CallKind::DmFind, name, |machine| Ok(machine.dm_find(name)))
    }

    fn dm_event(&self, name: &str) -> Result<Option<u32>> {
        self.dm(CallKind::DmFind, name, |machine| Ok(machine.dm.event(name)))
    }

    fn dm_create(&self, name: &str, uuid: &str, table: &[Line], visibility: Visibility) -> Result<DeviceNumber> {
        // Looked up, not remembered: a create that fails after its effect has made the device too.
        let was_there = self.machine()?.dm.by_name(name).is_some();
        let made = self
            .dm(CallKind::DmCreate, name, |machine| machine.dm_new(name, uuid))
            .and_then(|minor| self.dm_load(name, table).map(|()| minor))
            .and_then(|minor| self.dm_resume(name, visibility).map(|()| dm_devices::number(minor)));
        if made.is_err() && !was_there && !self.0.control.has_ended() {
            let mut machine = self.machine()?;
            // The device may not exist. The devices below it may be removed now.
            let _ = machine.dm_remove(name);
            self.0.changed.notify_all();
        }
        made
    }

    fn dm_load(&self, name: &str, table: &[Line]) -> Result<()> {
        self.dm(CallKind::DmLoad, name, |machine| machine.dm_load(name, table))
    }

    fn dm_suspend(&self, name: &str, flush: bool) -> Result<()> {
        let failed = |errno| dm_error(CallKind::DmSuspend, name, errno);
        if flush && self.machine()?.is_thin_named(name) {
            // The call waits for the writes queued in a full pool.
            self.note_slow_call();
        }
        self.step(CallKind::DmSuspend, name, || {
            let done = self.wait_for_io(|machine| machine.dm_suspend(name, flush), failed);
            self.0.changed.notify_all();
            done
        })
    }

    fn dm_resume(&self, name: &str, visibility: Visibility) -> Result<()> {
        self.dm(CallKind::DmResume, name, |machine| {
            machine.dm_resume(name, visibility)?;
            machine.serve_udev();
            Ok(())
        })
    }

    fn dm_remove(&self, name: &str) -> Result<()> {
        let removed = self.dm(CallKind::DmRemove, name, |machine| {
            let mut removed = machine.dm_remove(name);
            for _ in 1..REMOVE_ATTEMPTS {
                if removed == Err(libc::EBUSY) {
                    removed = machine.dm_remove(name);
                }
            }
            removed
        });
        removed.map_err(|error| match error.errno() {
            Some(libc::EBUSY) => Error::Busy { name: name.to_owned() },
            _ => error,
        })
    }

    fn dm_message(&self, name: &str, message: &str) -> Result<()> {
        self.dm(CallKind::DmMessage, name, |machine| machine.dm_message(name, message))
    }

    fn dm_status(&self, name: &str) -> Result<Vec<String>> {
        self.dm(CallKind::DmStatus, name, |machine| machine.dm_status(name))
    }

    fn dm_node(&self, name: &str) -> PathBuf {
        Path::new("/dev/mapper").join(name)
    }

    fn run(&self, program: Program, arguments: &[&str]) -> Result<String> {
        self.step(CallKind::Run(program), &arguments.join(" "), || match self.0.control.is_idle(program) {
            true => Ok(String::new()),
            false => self.run_program(program, arguments),
        })
    }

    fn running_programs(&self) -> Vec<RunningProgram> {
        let running = self.0.running.lock();
        let program = |(number, (label, since)): (&u64, &(String, Instant))| RunningProgram {
            label: label.clone(),
            process: u32::try_from(*number).unwrap_or(u32::MAX),
            age: since.elapsed(),
            is_stuck: false,
        };
        running.iter().map(program).collect()
    }

    /// Always 0: in the simulation, device-mapper changes do not wait for udev, and waits for links
    /// check by themselves which are missing.
    fn unanswered_udev_events(&self) -> u64 {
        0
    }

    fn mount(&self, node: &Path, at: &str, options: &str) -> Result<()> {
        let (_, number) = self.node(node)?;
        let at = Path::new(xfs::PRIVATE).join(at);
        self.io(CallKind::Mount, &text(node), |machine| machine.mount(number, &at, options))
    }

    fn unmount(&self, at: &str) -> Result<()> {
        let full = Path::new(xfs::PRIVATE).join(at);
        self.io(CallKind::Unmount, at, |machine| machine.unmount(&full).map(|_| ()))
    }

    fn mounts(&self, devices: &[DeviceNumber]) -> Result<Vec<Mount>> {
        self.io(CallKind::MountPoints, "/proc/*/mountinfo", |machine| Ok(machine.xfs.mounts_of(devices)))
    }

    fn usage(&self, mount: &Mount) -> Result<Usage> {
        let path = mount.shown();
        let (device, usage) = self.io(CallKind::Usage, &text(&path), |machine| machine.usage(&path))?;
        if device == mount.number { Ok(usage) } else { Err(Error::OtherMount { path, number: mount.number }) }
    }

    fn grow_xfs(&self, mount: &Mount) -> Result<()> {
        let path = mount.shown();
        self.step(CallKind::GrowXfs, &text(&path), || match self.0.control.is_idle_growth(&text(&path)) {
            true => Ok(()),
            false => self.grow(&path, mount.number),
        })
    }

    fn list_files(&self, directory: &str) -> Result<Vec<String>> {
        self.io(CallKind::ListFiles, directory, |machine| {
            machine.files(directory).map(|(files, inside)| files.list(&inside))
        })
    }

    fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        self.io(CallKind::ReadFile, path, |machine| {
            let (files, inside) = machine.files(path)?;
            files.read(&inside).ok_or(Incomplete::Errno(libc::ENOENT))
        })
    }

    fn replace_file(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let temp = Path::new(path).with_extension("temp");
        let temp = text(&temp);
        let found = |there: bool| if there { Ok(()) } else { Err(Incomplete::Errno(libc::ENOENT)) };
        self.io(CallKind::WriteTemp, &temp, |machine| {
            let (files, inside) = machine.files(&temp)?;
            found(files.write(&inside, bytes))
        })?;
        let synced = self.io(CallKind::SyncFile, &temp, |machine| {
            machine.flush_files(&temp)?;
            let (files, inside) = machine.files(&temp)?;
            found(files.sync(&inside))
        });
        self.shut_down_after(synced, &temp)?;
        self.io(CallKind::RenameFile, path, |machine| {
            let (_, from) = machine.files(&temp)?;
            let (files, to) = machine.files(path)?;
            found(files.rename(&from, &to))
        })?;
        self.sync_directory(path)
    }

    fn remove_file(&self, path: &str) -> Result<()> {
        let there = self.io(CallKind::RemoveFile, path, |machine| {
            let (files, inside) = machine.files(path)?;
            Ok(files.remove(&inside))
        })?;
        if there { self.sync_directory(path) } else { Ok(()) }
    }

    fn announce(&self, filesystems: &[Announcement]) -> Result<Box<dyn PendingLinks>> {
        let wanted: Vec<(PathBuf, DeviceNumber)> =
            filesystems.iter().map(|announcement| (announcement.link(), announcement.number)).collect();
        let subject = wanted.first().map(|(link, _)| text(link).into_owned()).unwrap_or_default();
        self.0.announcements.fetch_add(1, Ordering::Relaxed);
        self.step(CallKind::Announce, &subject, || {
            let (numbers, boot) = {
                let mut machine = self.machine()?;
                (machine.announce(filesystems), machine.boot)
            };
            let told = self.0.changed.listen()?;
            self.0.changed.notify_all();
            let wanted = wanted.into_iter().zip(numbers).collect();
            Ok(Box::new(AnnouncedLinks { sim: self.clone(), wanted, boot, told }) as Box<dyn PendingLinks>)
        })
    }

    fn is_linked(&self, filesystem: &Announcement) -> bool {
        self.machine().is_ok_and(|machine| machine.udev.link(&filesystem.link()) == Some(filesystem.number))
    }

    fn device_events(&self) -> Result<Box<dyn DeviceEvents>> {
        self.step(CallKind::DeviceEvents, "udev", || self.machine()?.events.listen_devices())
    }

    fn dm_events(&self) -> Result<Box<dyn DmEvents>> {
        self.step(CallKind::DmEvents, "/dev/mapper/control", || self.machine()?.events.listen_dm())
    }

    fn key_set(&self, name: &str, value: &Secret) -> Result<KeyChange> {
        self.step(CallKind::Key, name, || {
            let keys = &mut self.machine()?.keyring;
            let known = keys.get(name).map(|known| known.same(value.bytes()));
            if known != Some(true) {
                keys.insert(name.to_owned(), value.clone());
            }
            Ok(match known {
                None => KeyChange::Created,
                Some(false) => KeyChange::Replaced,
                Some(true) => KeyChange::Same,
            })
        })
    }

    fn key_unset(&self, name: &str) -> Result<bool> {
        self.step(CallKind::Key, name, || Ok(self.machine()?.keyring.remove(name).is_some()))
    }

    fn key_list(&self) -> Result<Vec<String>> {
        self.step(CallKind::Key, "(all)", || Ok(self.machine()?.keyring.keys().cloned().collect()))
    }

    fn key_read(&self, name: &str) -> Result<Option<Secret>> {
        self.step(CallKind::Key, name, || Ok(self.machine()?.keyring.get(name).cloned()))
    }

    fn volume_key_set(&self, name: &str, value: &Secret) -> Result<()> {
        self.step(CallKind::Key, name, || {
            self.machine()?.volume_keys.insert(name.to_owned(), value.clone());
            Ok(())
        })
    }

    fn volume_key_read(&self, name: &str) -> Result<Option<Secret>> {
        self.step(CallKind::Key, name, || Ok(self.machine()?.volume_keys.get(name).cloned()))
    }

    fn volume_key_unset(&self, name: &str) -> Result<bool> {
        self.step(CallKind::Key, name, || Ok(self.machine()?.volume_keys.remove(name).is_some()))
    }

    fn luks_read(&self, device: &Path) -> Result<Option<Header>> {
        luks::read(self, device)
    }

    fn luks_format(
        &self,
        device: &Path,
        layout: &HeaderLayout,
        purpose: FormatPurpose,
        keyslots: &[NewKeyslot<'_>],
        tokens: &BTreeMap<u32, Value>,
    ) -> Result<Header> {
        luks::format(self, device, layout, purpose, keyslots, tokens)
    }

    fn luks_change(&self, device: &Path, unlock: Option<Unlock<'_>>, changes: &[HeaderChange<'_>]) -> Result<Header> {
        luks::change(self, device, unlock, changes)
    }

    fn luks_open(&self, device: &Path, name: Option<&str>, unlock: Unlock<'_>) -> Result<Secret> {
        luks::open(self, device, name, unlock)
    }

    fn luks_reopen(&self, device: &Path, name: &str, volume_key: &Secret) -> Result<()> {
        luks::reopen(self, device, name, volume_key)
    }

    fn luks_resize(&self, device: &Path, name: &str, volume_key: &Secret, size: Option<Sectors>) -> Result<()> {
        luks::resize(self, device, name, volume_key, size)
    }

    fn luks_reencrypt(
        &self,
        device: &Path,
        name: &str,
        unlock: Unlock<'_>,
        begin: Begin,
        watch: &(dyn Fn(Progress) -> bool + Sync),
    ) -> Result<ReencryptionEnd> {
        luks_reencrypt::reencrypt(self, device, name, unlock, begin, watch)
    }

    fn clevis_encrypt(&self, pin: &str, config: &Value, trust: bool, passphrase: &Secret) -> Result<Value> {
        clevis::encrypt(self, pin, config, trust, passphrase)
    }

    fn clevis_decrypt_each(&self, jwes: &[&Value], take: &mut dyn FnMut(usize, Result<Secret>) -> bool) {
        clevis::decrypt_each(self, jwes, take);
    }

    fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    fn random(&self) -> [u8; 16] {
        self.random_bytes()
    }
}
