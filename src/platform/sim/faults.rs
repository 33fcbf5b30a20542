//! Steps, planned faults, gates: the test's controls of the simulated machine.
//!
//! Fault rules:
//! - Every call of the platform is one step, and each part of a composite call is a separate step:
//!   the writes and flushes of [`write`](crate::platform::Platform::write), the four parts of a
//!   file replacement, create, load and resume of a new device, every write of a program, every
//!   write and flush of a LUKS device, every request to a Tang server or the TPM. Steps are
//!   numbered from 0 in the order in which they start. `now`, `random`, `dm_node` and the event
//!   sources cannot fail and do not count.
//! - A planned failure strikes one step, before its effect (the machine is unchanged) or after it
//!   (the machine has changed, but the caller gets an error). Whether the enclosing call undoes
//!   earlier steps is up to that call, as on a real machine.
//! - A planned power cut strikes before the effect of its step. From then on every call fails with
//!   `PowerCut`, including those that wait at a gate or for a suspended device, until the machine
//!   is switched on again.
//! - A planned kill of the process strikes before the effect of its step. From then on every call
//!   fails without effect, even its own cleanup, until [`Faults::clear`], which stands for the next
//!   process.
//! - A planned breakdown starts with a step: from then on every change of an object whose name
//!   contains a given text fails without effect, as on a disk that is gone, or on a machine that
//!   has become read-only.
//! - A program can be planned to end by a signal, at its time limit, or without having run
//!   ([`Faults::end_next`]).
//! - A program can be planned to do nothing and exit successfully.
//! - A planned panic strikes before the effect of its step, as a defect of the caller would.
//! - After a given number of steps, every step can be made to panic, so that an endless loop ends.
//! - A closed gate holds calls of one kind before their effect, or a single one after it. No lock
//!   is held meanwhile.
//!
//! This module knows nothing of disks and devices: it counts, decides and waits.

use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::libc;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::platform::{Error, Program, ProgramEnd, Result};

/// The kinds of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum CallKind {
    BlockDevices,
    FindDevice,
    Contents,
    Geometry,
    Hold,
    LowerDevices,
    Read,
    Write,
    Flush,
    DmList,
    DmFind,
    DmCreate,
    DmLoad,
    DmSuspend,
    DmResume,
    DmRemove,
    DmMessage,
    DmStatus,
    Run(Program),
    ProgramWrite(Program),
    /// Growth of a mounted XFS.
    GrowXfs,
    /// A write by that growth.
    GrowWrite,
    Mount,
    Unmount,
    MountPoints,
    Usage,
    ListFiles,
    ReadFile,
    WriteTemp,
    SyncFile,
    RenameFile,
    SyncDirectory,
    RemoveFile,
    Announce,
    DeviceEvents,
    DmEvents,
    Key,
    Luks(LuksCall),
    /// A write to a LUKS device, or a flush of it, by an operation on that device itself.
    LuksWrite,
    /// A request to a Tang server or the TPM, to encrypt a passphrase.
    ClevisEncrypt,
    /// Such a request, to decrypt a passphrase.
    ClevisDecrypt,
}

/// The calls on LUKS devices. Each starts with a step that reads the header and derives keys. Its
/// writes are separate steps, and the activation of the crypt device is one of
/// [`CallKind::DmCreate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum LuksCall {
    Read,
    Format,
    Change,
    Open,
    Resize,
    Reencrypt,
}

impl CallKind {
    /// Whether the call changes the machine. These are the steps at which a test cuts power.
    pub fn changes(self) -> bool {
        !matches!(
            self,
            CallKind::BlockDevices
                | CallKind::FindDevice
                | CallKind::Contents
                | CallKind::Geometry
                | CallKind::Hold
                | CallKind::LowerDevices
                | CallKind::Read
                | CallKind::DmList
                | CallKind::DmFind
                | CallKind::DmStatus
                | CallKind::MountPoints
                | CallKind::Usage
                | CallKind::ReadFile
                | CallKind::DeviceEvents
                | CallKind::DmEvents
                | CallKind::Key
                | CallKind::Luks(
                    LuksCall::Read | LuksCall::Format | LuksCall::Change | LuksCall::Open | LuksCall::Reencrypt
                )
                | CallKind::ClevisEncrypt
                | CallKind::ClevisDecrypt
                | CallKind::Run(Program::ThinCheck | Program::ThinMetadataSize)
        )
    }

    /// Whether the call stands for a whole run of a program or another child of the daemon.
    pub(super) fn is_program(self) -> bool {
        matches!(self, CallKind::Run(_) | CallKind::GrowXfs | CallKind::ClevisEncrypt | CallKind::ClevisDecrypt)
    }

    /// Name of that program.
    pub(super) fn program_name(self) -> &'static str {
        match self {
            CallKind::Run(program) => program.name(),
            CallKind::ClevisEncrypt | CallKind::ClevisDecrypt => "clevis",
            other => other.verb(),
        }
    }

    fn verb(self) -> &'static str {
        match self {
            CallKind::BlockDevices => "list the block devices",
            CallKind::FindDevice => "look up",
            CallKind::Contents => "probe",
            CallKind::Geometry => "read the size of",
            CallKind::Hold => "open",
            CallKind::LowerDevices => "list the devices below",
            CallKind::Read => "read",
            CallKind::Write | CallKind::ProgramWrite(_) => "write to",
            CallKind::Flush => "flush",
            CallKind::DmList => "list devices",
            CallKind::DmFind => "look up",
            CallKind::DmCreate => "create",
            CallKind::DmLoad => "load a table into",
            CallKind::DmSuspend => "suspend",
            CallKind::DmResume => "resume",
            CallKind::DmRemove => "remove",
            CallKind::DmMessage => "send a message to",
            CallKind::DmStatus => "read the status of",
            CallKind::Run(_) => "run",
            CallKind::GrowXfs | CallKind::GrowWrite => "grow the XFS at",
            CallKind::Mount => "mount",
            CallKind::Unmount => "unmount",
            CallKind::MountPoints => "read the mounts of",
            CallKind::Usage => "read the usage of",
            CallKind::ListFiles => "list",
            CallKind::ReadFile => "read",
            CallKind::WriteTemp => "write",
            CallKind::SyncFile | CallKind::SyncDirectory => "sync",
            CallKind::RenameFile => "rename",
            CallKind::RemoveFile => "remove",
            CallKind::Announce => "announce",
            CallKind::DeviceEvents => "listen to udev at",
            CallKind::DmEvents => "listen to device-mapper at",
            CallKind::Key => "use the key",
            CallKind::Luks(LuksCall::Read) => "read",
            CallKind::Luks(LuksCall::Format) => "format",
            CallKind::Luks(LuksCall::Change) => "change",
            CallKind::Luks(LuksCall::Open) => "open",
            CallKind::Luks(LuksCall::Resize) => "resize",
            CallKind::Luks(LuksCall::Reencrypt) => "re-encrypt",
            CallKind::LuksWrite => "write to",
            CallKind::ClevisEncrypt => "encrypt",
            CallKind::ClevisDecrypt => "decrypt",
        }
    }

    /// The error of a real machine for a call of this kind that fails for an external reason.
    fn failure(self, subject: &str) -> Error {
        let errno = |number| io::Error::from_raw_os_error(number);
        match self {
            CallKind::DmList
            | CallKind::DmFind
            | CallKind::DmCreate
            | CallKind::DmLoad
            | CallKind::DmSuspend
            | CallKind::DmResume
            | CallKind::DmRemove
            | CallKind::DmStatus => {
                Error::Dm { action: self.verb(), name: subject.to_owned(), source: errno(libc::ENOMEM) }
            }
            CallKind::DmMessage => {
                Error::Dm { action: self.verb(), name: subject.to_owned(), source: errno(libc::EIO) }
            }
            CallKind::Run(program) | CallKind::ProgramWrite(program) => program_error(program, ProgramEnd::Status(1)),
            CallKind::GrowXfs | CallKind::GrowWrite => {
                Error::Grow { path: subject.into(), what: "exit status 1: Input/output error (os error 5)".to_owned() }
            }
            CallKind::Luks(_) | CallKind::LuksWrite => luks_error(self, subject, errno(libc::EIO)),
            CallKind::ClevisEncrypt | CallKind::ClevisDecrypt => {
                Error::Clevis { action: self.verb(), with: subject.to_owned(), what: "killed by a signal".to_owned() }
            }
            CallKind::WriteTemp => Error::Io { action: self.verb(), path: subject.into(), source: errno(libc::ENOSPC) },
            _ => Error::Io { action: self.verb(), path: subject.into(), source: errno(libc::EIO) },
        }
    }
}

/// The error of a program that ends in this way, without a message about its input.
fn program_error(program: Program, end: ProgramEnd) -> Error {
    let what = match end {
        ProgramEnd::NotRun => "cannot run it: Cannot allocate memory (os error 12)".to_owned(),
        ProgramEnd::Status(status) => format!("exit status {status}: {}: Input/output error", program.name()),
        ProgramEnd::Signal(signal) => format!("killed by signal {signal}"),
        ProgramEnd::TimedOut => "it did not exit in time and was killed".to_owned(),
        ProgramEnd::Unkillable => "it did not exit in time, not even when killed".to_owned(),
    };
    Error::Program { program, end, what }
}

/// The error of a call for an errno.
pub(super) fn io_error(call: CallKind, subject: &str, errno: i32) -> Error {
    Error::Io { action: call.verb(), path: subject.into(), source: io::Error::from_raw_os_error(errno) }
}

/// The error of a device-mapper call for an errno.
pub(super) fn dm_error(call: CallKind, name: &str, errno: i32) -> Error {
    Error::Dm { action: call.verb(), name: name.to_owned(), source: io::Error::from_raw_os_error(errno) }
}

/// The error of a call on a LUKS device for a cause.
pub(super) fn luks_error(call: CallKind, subject: &str, said: impl std::fmt::Display) -> Error {
    Error::Luks { action: call.verb(), device: subject.into(), what: said.to_string() }
}

/// A call that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedCall {
    /// The kind of call.
    pub call: CallKind,
    /// The device, file or program arguments that it is about.
    pub subject: String,
}

/// A planned fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PlannedFault {
    Refuse,
    FailBefore,
    FailAfter,
    /// The program ends in this way, before its effect.
    End(ProgramEnd),
    CutPower,
    Panic,
}

/// What happens at a step.
pub(super) enum StepEffect {
    Do,
    DoThenFail(Error),
    CutPower,
}

#[derive(Default)]
struct ControlState {
    steps: u64,
    plans: BTreeMap<u64, PlannedFault>,
    /// Plans for the next step of a kind.
    kinds: Vec<(CallKind, String, PlannedFault)>,
    struck: u64,
    /// Programs that will do nothing and exit with status 0.
    idle: Vec<Program>,
    /// Growths of an XFS that will do nothing and succeed, by a text in the mount point.
    idle_growths: Vec<String>,
    /// From this step on the process is dead.
    ends_at: Option<u64>,
    /// From this step on, changes of any object whose name contains the text fail.
    breaks: Option<(u64, String)>,
    /// From this step on, every step panics.
    endless_from: Option<u64>,
    record: Option<Vec<RecordedCall>>,
    gates: Vec<Arc<GateState>>,
    off: bool,
    boot: u64,
}

struct GateState {
    call: CallKind,
    /// Only calls whose subject contains this.
    subject: String,
    /// Holds only the call after this many others, and after its effect.
    after: Option<usize>,
    inner: Mutex<GateInner>,
}

impl GateState {
    fn is_for(&self, call: CallKind, subject: &str) -> bool {
        self.call == call && subject.contains(&self.subject) && !self.inner.lock().open
    }
}

#[derive(Default)]
struct GateInner {
    open: bool,
    waiting: usize,
    arrived: usize,
    /// Calls that passed because the gate is for a later one.
    passed: usize,
}

/// Counts steps and decides what happens at each.
pub(super) struct Control {
    state: Mutex<ControlState>,
    /// Notified of every change of gates and power.
    changed: Condvar,
    step_delay: StepDelay,
}

/// How long steps take, and which ones.
#[derive(Debug, Clone, Default)]
pub(super) struct StepDelay {
    /// Delay of each write, flush and program.
    pub each: Duration,
    /// Only steps whose subject contains this.
    pub part: String,
}

impl Control {
    pub(super) fn new(record: bool, step_delay: StepDelay) -> Control {
        Control {
            state: Mutex::new(ControlState { record: record.then(Vec::new), ..ControlState::default() }),
            changed: Condvar::new(),
            step_delay,
        }
    }

    /// Waits at gates, takes the next number and looks up the plan for it.
    pub(super) fn begin(&self, call: CallKind, subject: &str) -> Result<StepEffect> {
        let mut state = self.state.lock();
        if state.off {
            return Err(Error::PowerCut);
        }
        let boot = state.boot;
        let matching =
            |state: &ControlState| state.gates.iter().find(|g| g.after.is_none() && g.is_for(call, subject)).cloned();
        while let Some(gate) = matching(&state) {
            self.wait_at(&gate, &mut state)?;
        }
        let StepDelay { each, part } = &self.step_delay;
        let is_delayed = !each.is_zero()
            && matches!(
                call,
                CallKind::Write
                    | CallKind::Flush
                    | CallKind::Run(_)
                    | CallKind::GrowXfs
                    | CallKind::Luks(_)
                    | CallKind::LuksWrite
            );
        if is_delayed && subject.contains(part.as_str()) {
            log::debug!("{call:?} on {subject} takes {} ms", each.as_millis());
            let until = Instant::now() + *each;
            while !state.off && state.boot == boot && !self.changed.wait_until(&mut state, until).timed_out() {}
            if state.off || state.boot != boot {
                return Err(Error::PowerCut);
            }
        }
        let number = state.steps;
        if state.ends_at.is_some_and(|end| end <= number) {
            return Err(call.failure(subject));
        }
        state.steps += 1;
        if state.endless_from.is_some_and(|from| from <= number) {
            drop(state);
            panic!("step {number}, {call:?} of {subject}: too many steps; the code under test does not end");
        }
        if let Some(record) = &mut state.record {
            record.push(RecordedCall { call, subject: subject.to_owned() });
        }
        if call.changes()
            && call != CallKind::Announce
            && state.breaks.as_ref().is_some_and(|(from, part)| *from <= number && subject.contains(part))
        {
            state.struck += 1;
            return Err(call.failure(subject));
        }
        let of_kind =
            |(kind, part, _): &(CallKind, String, PlannedFault)| *kind == call && subject.contains(part.as_str());
        let plan = match state.plans.remove(&number) {
            None => state.kinds.iter().position(of_kind).map(|at| state.kinds.remove(at).2),
            plan => plan,
        };
        state.struck += u64::from(plan.is_some());
        match plan {
            None => Ok(StepEffect::Do),
            Some(PlannedFault::Refuse) => Err(dm_error(call, subject, libc::EINVAL)),
            Some(PlannedFault::FailBefore) => Err(call.failure(subject)),
            Some(PlannedFault::FailAfter) => Ok(StepEffect::DoThenFail(call.failure(subject))),
            Some(PlannedFault::End(end)) => Err(match call {
                CallKind::Run(program) | CallKind::ProgramWrite(program) => program_error(program, end),
                other => other.failure(subject),
            }),
            // `resume_unwind` bypasses the panic hook, which would print the panic: a test has
            // thousands.
            Some(PlannedFault::Panic) => std::panic::resume_unwind(Box::new(format!("planted at step {number}"))),
            Some(PlannedFault::CutPower) => {
                state.off = true;
                self.changed.notify_all();
                Ok(StepEffect::CutPower)
            }
        }
    }

    fn wait_at(&self, gate: &GateState, state: &mut MutexGuard<'_, ControlState>) -> Result<()> {
        let boot = state.boot;
        {
            let mut inner = gate.inner.lock();
            inner.waiting += 1;
            inner.arrived += 1;
        }
        self.changed.notify_all();
        while !gate.inner.lock().open && !state.off && state.boot == boot {
            self.changed.wait(state);
        }
        gate.inner.lock().waiting -= 1;
        match state.off || state.boot != boot {
            true => Err(Error::PowerCut),
            false => Ok(()),
        }
    }

    /// Waits at gates for calls that have had their effect.
    pub(super) fn end(&self, call: CallKind, subject: &str) -> Result<()> {
        let mut state = self.state.lock();
        let is_here = |gate: &Arc<GateState>| {
            let mut inner = gate.inner.lock();
            inner.passed += 1;
            gate.after.is_some_and(|after| inner.passed == after + 1)
        };
        let after = |gate: &&Arc<GateState>| gate.after.is_some() && gate.is_for(call, subject);
        let held: Vec<_> = state.gates.iter().filter(after).filter(|gate| is_here(gate)).cloned().collect();
        held.iter().try_for_each(|gate| self.wait_at(gate, &mut state))
    }

    /// Whether a program does nothing this time.
    pub(super) fn is_idle(&self, program: Program) -> bool {
        let mut state = self.state.lock();
        let at = state.idle.iter().position(|idle| *idle == program);
        at.map(|at| state.idle.swap_remove(at)).is_some()
    }

    /// Whether the growth of the XFS mounted here is to do nothing.
    pub(super) fn is_idle_growth(&self, at: &str) -> bool {
        let mut state = self.state.lock();
        let found = state.idle_growths.iter().position(|idle| at.contains(idle));
        found.map(|found| state.idle_growths.swap_remove(found)).is_some()
    }

    pub(super) fn steps(&self) -> u64 {
        self.state.lock().steps
    }

    /// Whether the calling process has reached its planned end.
    pub(super) fn has_ended(&self) -> bool {
        let state = self.state.lock();
        state.ends_at.is_some_and(|end| end <= state.steps)
    }

    pub(super) fn trace(&self) -> Vec<RecordedCall> {
        self.state.lock().record.clone().unwrap_or_default()
    }

    /// Makes everything that waits at a gate fail.
    pub(super) fn power_off(&self) {
        self.state.lock().off = true;
        self.changed.notify_all();
    }

    pub(super) fn power_on(&self) {
        let mut state = self.state.lock();
        state.off = false;
        state.boot += 1;
        self.changed.notify_all();
    }

    pub(super) fn close_gate(self: &Arc<Self>, call: CallKind, subject: &str, after: Option<usize>) -> Gate {
        let state = Arc::new(GateState { call, subject: subject.to_owned(), after, inner: Mutex::default() });
        self.state.lock().gates.push(Arc::clone(&state));
        Gate { control: Arc::clone(self), state }
    }
}

/// The process that makes the calls.
pub(super) trait CallingProcess {
    /// Ends the process: the kernel takes back what the process holds.
    fn end(&self);
}

/// Plans failures and power cuts. Steps are numbered from 0; the next one has the number
/// [`Sim::steps`](super::Sim::steps).
pub struct Faults<'a> {
    control: &'a Control,
    process: &'a dyn CallingProcess,
}

impl<'a> Faults<'a> {
    pub(super) fn new(control: &'a Control, process: &'a dyn CallingProcess) -> Faults<'a> {
        Faults { control, process }
    }

    fn plan(&self, step: u64, plan: PlannedFault) {
        self.control.state.lock().plans.insert(step, plan);
    }

    /// Makes step `step` fail without effect.
    pub fn fail_at(&self, step: u64) {
        self.plan(step, PlannedFault::FailBefore);
    }

    /// Makes step `step` take effect but report failure.
    pub fn fail_after(&self, step: u64) {
        self.plan(step, PlannedFault::FailAfter);
    }

    /// Cuts power at the start of step `step`.
    pub fn cut_power_at(&self, step: u64) {
        self.plan(step, PlannedFault::CutPower);
    }

    /// Makes the caller of step `step` panic at its start.
    pub fn panic_at(&self, step: u64) {
        self.plan(step, PlannedFault::Panic);
    }

    /// Kills the process at the start of step `step`; the machine runs on.
    pub fn kill_at(&self, step: u64) {
        self.control.state.lock().ends_at = Some(step);
    }

    /// From step `step` on, makes every change of an object whose name contains `part` fail without
    /// effect. Links do not count as changes of the machine.
    pub fn break_from(&self, step: u64, part: &str) {
        self.control.state.lock().breaks = Some((step, part.to_owned()));
    }

    /// Makes the next step of a kind whose subject contains `subject` fail without effect. Calls
    /// add up.
    pub fn fail_next(&self, call: CallKind, subject: &str) {
        self.control.state.lock().kinds.push((call, subject.to_owned(), PlannedFault::FailBefore));
    }

    /// Makes the next run of `program` whose arguments contain `arguments` end in this way, without
    /// effect. Calls add up.
    pub fn end_next(&self, program: Program, arguments: &str, end: ProgramEnd) {
        self.control.state.lock().kinds.push((CallKind::Run(program), arguments.to_owned(), PlannedFault::End(end)));
    }

    /// As [`Faults::end_next`], but at the program's next write to a device whose number contains
    /// `subject`, after it has started.
    pub fn end_at_next_write(&self, program: Program, subject: &str, end: ProgramEnd) {
        self.control.state.lock().kinds.push((
            CallKind::ProgramWrite(program),
            subject.to_owned(),
            PlannedFault::End(end),
        ));
    }

    /// Makes the kernel refuse the next device-mapper step of a kind whose subject contains
    /// `subject`. The kernel would refuse a retry, too.
    pub fn refuse_next(&self, call: CallKind, subject: &str) {
        self.control.state.lock().kinds.push((call, subject.to_owned(), PlannedFault::Refuse));
    }

    /// Makes the next run of a program do nothing and exit with status 0. Calls add up.
    pub fn idle_next(&self, program: Program) {
        self.control.state.lock().idle.push(program);
    }

    /// Makes the next growth of an XFS whose mount point contains `at` succeed without effect.
    /// Calls add up.
    pub fn idle_growth(&self, at: &str) {
        self.control.state.lock().idle_growths.push(at.to_owned());
    }

    /// Makes every step panic once `steps` more have been taken, or never. An endless loop in the
    /// code under test then fails its test.
    pub fn panic_after(&self, steps: Option<u64>) {
        let mut state = self.control.state.lock();
        state.endless_from = steps.map(|steps| state.steps.saturating_add(steps));
    }

    /// Cuts power at the start of the next step of a kind whose subject contains `subject`.
    pub fn cut_power_at_next(&self, call: CallKind, subject: &str) {
        self.control.state.lock().kinds.push((call, subject.to_owned(), PlannedFault::CutPower));
    }

    /// Drops all plans that have not struck. If the process was killed, the next one starts.
    pub fn clear(&self) {
        if self.control.has_ended() {
            self.process.end();
        }
        let mut state = self.control.state.lock();
        state.plans.clear();
        state.kinds.clear();
        state.idle.clear();
        state.idle_growths.clear();
        state.ends_at = None;
        state.breaks = None;
    }

    /// Number of planned faults that have struck: shows that an enumeration has reached its step.
    pub fn struck(&self) -> u64 {
        self.control.state.lock().struck
    }
}

/// Holds calls of one kind until the gate is opened. Dropping the gate opens it.
#[must_use = "a gate that is dropped is open"]
pub struct Gate {
    control: Arc<Control>,
    state: Arc<GateState>,
}

impl Gate {
    /// Lets all calls through, from now on.
    pub fn open(&self) {
        let mut state = self.control.state.lock();
        self.state.inner.lock().open = true;
        state.gates.retain(|gate| !Arc::ptr_eq(gate, &self.state));
        self.control.changed.notify_all();
    }

    /// Number of calls that wait now.
    pub fn waiting(&self) -> usize {
        self.state.inner.lock().waiting
    }

    /// Waits until `count` calls in all have arrived since the gate was closed, for at most
    /// `limit`. Returns whether they have.
    pub fn wait_for(&self, count: usize, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut state = self.control.state.lock();
        while self.state.inner.lock().arrived < count {
            if self.control.changed.wait_until(&mut state, until).timed_out() {
                return self.state.inner.lock().arrived >= count;
            }
        }
        true
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}
