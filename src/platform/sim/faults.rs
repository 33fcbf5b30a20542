//! Steps, planned faults, gates: where a test takes hold of the simulated machine.
//!
//! Fault rules:
//! - Every call of the platform is one step, and each part of a call that has parts is one of its own: the writes and
//!   flushes of [`write`](crate::platform::Platform::write), the four parts of a file replacement, create, load and
//!   resume of a new device, every write of a program, every write and flush of a LUKS2 container, every question to a Tang
//!   server or the TPM. Steps are numbered from 0 in the order in which they begin.
//!   `now`, `random`, `dm_node` and the event sources cannot fail and are not counted.
//! - A planned failure strikes one step, before its effect (nothing happened) or after it (it happened, and the caller
//!   is told that it failed). Whether the enclosing call undoes earlier steps is the call's business, as on a machine.
//! - A planned power cut strikes before the effect of its step. From then on every call fails with `PowerCut`, also
//!   those that wait at a gate or for a suspended device, until the machine is switched on again.
//! - A planned end of the process strikes before the effect of its step. From then on every call fails and has no effect,
//!   not even that of tidying up after itself, until [`Faults::clear`]: that is when another process begins.
//! - A planned breakdown begins with a step: from then on every call that changes something whose name contains a given text
//!   fails and has no effect, as on a disk that has gone, or on a machine of which everything has become read-only.
//! - A program can be planned to end by a signal, late, or without having been run ([`Faults::end_next`]).
//! - A program may be planned to do nothing and to end as if it had.
//! - A planned panic strikes before the effect of its step, as a defect of the caller would.
//! - A closed gate holds calls of one kind before their effect, or one of them after it. No lock is held meanwhile.
//!
//! Knows nothing of disks and devices: it counts, decides and waits.

use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::libc;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::Sim;
use crate::platform::{Error, Program, ProgramEnd, Result};

/// The kinds of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Call {
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
    DmRename,
    DmMessage,
    DmStatus,
    Run(Program),
    ProgramWrite(Program),
    /// The extension of a mounted XFS.
    GrowXfs,
    /// What that writes.
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
    /// A write to a container, or a flush of it, by those who work on the container itself.
    LuksWrite,
    /// A question to a Tang server or the TPM for a passphrase that is to be encrypted.
    ClevisEncrypt,
    /// One for a passphrase that is to be decrypted.
    ClevisDecrypt,
}

/// The calls on LUKS2 containers: each begins with a step in which the header is read and keys are derived. What is then
/// written are steps of their own, and the device that is brought up is one of [`Call::DmCreate`].
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

impl Call {
    /// Whether the machine is not the same after it: the steps at which a power cut is worth trying.
    pub fn changes(self) -> bool {
        !matches!(
            self,
            Call::BlockDevices
                | Call::FindDevice
                | Call::Contents
                | Call::Geometry
                | Call::Hold
                | Call::LowerDevices
                | Call::Read
                | Call::DmList
                | Call::DmFind
                | Call::DmStatus
                | Call::MountPoints
                | Call::Usage
                | Call::ReadFile
                | Call::DeviceEvents
                | Call::DmEvents
                | Call::Key
                | Call::Luks(
                    LuksCall::Read | LuksCall::Format | LuksCall::Change | LuksCall::Open | LuksCall::Reencrypt
                )
                | Call::ClevisEncrypt
                | Call::ClevisDecrypt
                | Call::Run(Program::ThinCheck | Program::ThinMetadataSize)
        )
    }

    /// Whether it is a program, or another child of the daemon, from its beginning to its end.
    pub(super) fn is_program(self) -> bool {
        matches!(self, Call::Run(_) | Call::GrowXfs | Call::ClevisEncrypt | Call::ClevisDecrypt)
    }

    /// What such a program is called.
    pub(super) fn program_name(self) -> &'static str {
        match self {
            Call::Run(program) => program.name(),
            Call::ClevisEncrypt | Call::ClevisDecrypt => "clevis",
            other => other.verb(),
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Call::BlockDevices => "list the block devices",
            Call::FindDevice => "look up",
            Call::Contents => "look at the contents of",
            Call::Geometry => "read the size of",
            Call::Hold => "open",
            Call::LowerDevices => "see what lies below",
            Call::Read => "read",
            Call::Write | Call::ProgramWrite(_) => "write to",
            Call::Flush => "flush",
            Call::DmList => "list devices",
            Call::DmFind => "look up",
            Call::DmCreate => "create",
            Call::DmLoad => "load a table into",
            Call::DmSuspend => "suspend",
            Call::DmResume => "resume",
            Call::DmRemove => "remove",
            Call::DmRename => "rename",
            Call::DmMessage => "send a message to",
            Call::DmStatus => "read the status of",
            Call::Run(_) => "run",
            Call::GrowXfs | Call::GrowWrite => "extend the XFS at",
            Call::Mount => "mount",
            Call::Unmount => "unmount",
            Call::MountPoints => "read the mounts of",
            Call::Usage => "read the usage of",
            Call::ListFiles => "list",
            Call::ReadFile => "read",
            Call::WriteTemp => "write",
            Call::SyncFile | Call::SyncDirectory => "sync",
            Call::RenameFile => "rename",
            Call::RemoveFile => "remove",
            Call::Announce => "announce",
            Call::DeviceEvents => "listen to udev at",
            Call::DmEvents => "listen to device-mapper at",
            Call::Key => "use the key",
            Call::Luks(LuksCall::Read) => "read",
            Call::Luks(LuksCall::Format) => "make",
            Call::Luks(LuksCall::Change) => "change",
            Call::Luks(LuksCall::Open) => "open",
            Call::Luks(LuksCall::Resize) => "resize",
            Call::Luks(LuksCall::Reencrypt) => "work on the data of",
            Call::LuksWrite => "write to",
            Call::ClevisEncrypt => "encrypt",
            Call::ClevisDecrypt => "decrypt",
        }
    }

    /// The error that a real machine would give for a call of this kind that fails for no reason of ours.
    fn failure(self, subject: &str) -> Error {
        let errno = |number| io::Error::from_raw_os_error(number);
        match self {
            Call::DmList
            | Call::DmFind
            | Call::DmCreate
            | Call::DmLoad
            | Call::DmSuspend
            | Call::DmResume
            | Call::DmRemove
            | Call::DmRename
            | Call::DmStatus => {
                Error::Dm { action: self.verb(), name: subject.to_owned(), source: errno(libc::ENOMEM) }
            }
            Call::DmMessage => Error::Dm { action: self.verb(), name: subject.to_owned(), source: errno(libc::EIO) },
            Call::Run(program) | Call::ProgramWrite(program) => ended(program, ProgramEnd::Status(1)),
            Call::GrowXfs | Call::GrowWrite => {
                Error::Grow { path: subject.into(), what: "exit status 1: Input/output error (os error 5)".to_owned() }
            }
            Call::Luks(_) | Call::LuksWrite => luks_error(self, subject, errno(libc::EIO)),
            Call::ClevisEncrypt | Call::ClevisDecrypt => {
                Error::Clevis { action: self.verb(), with: subject.to_owned(), what: "killed by a signal".to_owned() }
            }
            Call::WriteTemp => Error::Io { action: self.verb(), path: subject.into(), source: errno(libc::ENOSPC) },
            _ => Error::Io { action: self.verb(), path: subject.into(), source: errno(libc::EIO) },
        }
    }
}

/// The error that a program gives that ends in this way without a word of what it was to do.
fn ended(program: Program, end: ProgramEnd) -> Error {
    let what = match end {
        ProgramEnd::NotRun => "could not be run: Cannot allocate memory (os error 12)".to_owned(),
        ProgramEnd::Status(status) => format!("exit status {status}: {}: Input/output error", program.name()),
        ProgramEnd::Signal(signal) => format!("killed by signal {signal}"),
        ProgramEnd::TimedOut => "it did not end in time and was killed".to_owned(),
        ProgramEnd::Unkillable => "it did not end in time, and not even when it was killed".to_owned(),
    };
    Error::Program { program, end, what }
}

/// The error that a call gives for an error number.
pub(super) fn io_error(call: Call, subject: &str, errno: i32) -> Error {
    Error::Io { action: call.verb(), path: subject.into(), source: io::Error::from_raw_os_error(errno) }
}

/// The error that a device-mapper call gives for an error number.
pub(super) fn dm_error(call: Call, name: &str, errno: i32) -> Error {
    Error::Dm { action: call.verb(), name: name.to_owned(), source: io::Error::from_raw_os_error(errno) }
}

/// The error that a call on a LUKS2 container gives for what the kernel said.
pub(super) fn luks_error(call: Call, subject: &str, said: impl std::fmt::Display) -> Error {
    Error::Luks { action: call.verb(), device: subject.into(), what: said.to_string() }
}

/// A step that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What kind of call it was part of.
    pub call: Call,
    /// The device, file or program arguments it was about.
    pub subject: String,
}

/// When a planned failure strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    Refuse,
    FailBefore,
    FailAfter,
    /// Of a program: it ends so, before its effect.
    End(ProgramEnd),
    CutPower,
    Panic,
}

/// What becomes of a step.
pub(super) enum Verdict {
    Do,
    DoThenFail(Error),
    CutPower,
}

#[derive(Default)]
struct State {
    steps: u64,
    plans: BTreeMap<u64, Plan>,
    /// For the next step of a kind.
    kinds: Vec<(Call, String, Plan)>,
    struck: u64,
    /// Programs that will end at once, with status 0.
    idle: Vec<Program>,
    /// From this step on the process does not exist.
    ends_at: Option<u64>,
    /// From this step on nothing that contains this text can be changed.
    breaks: Option<(u64, String)>,
    record: Option<Vec<Step>>,
    gates: Vec<Arc<GateState>>,
    off: bool,
    boot: u64,
}

struct GateState {
    call: Call,
    /// Only calls whose subject contains this.
    subject: String,
    /// Only that many calls after the next, and after its effect.
    after: Option<usize>,
    inner: Mutex<GateInner>,
}

impl GateState {
    fn is_for(&self, call: Call, subject: &str) -> bool {
        self.call == call && subject.contains(&self.subject) && !self.inner.lock().open
    }
}

#[derive(Default)]
struct GateInner {
    open: bool,
    waiting: usize,
    arrived: usize,
    /// Calls that it was not for because it is for a later one.
    passed: usize,
}

/// Counts steps and decides what becomes of each.
pub(super) struct Control {
    state: Mutex<State>,
    /// Told of every change of gates and power.
    changed: Condvar,
    step_delay: StepDelay,
}

/// How long steps take, and which ones.
#[derive(Debug, Clone, Default)]
pub(super) struct StepDelay {
    /// The delay of each write, flush and program.
    pub each: Duration,
    /// Only those whose subject contains this.
    pub part: String,
}

impl Control {
    pub(super) fn new(record: bool, step_delay: StepDelay) -> Control {
        Control {
            state: Mutex::new(State { record: record.then(Vec::new), ..State::default() }),
            changed: Condvar::new(),
            step_delay,
        }
    }

    /// Waits at gates, then takes the next number and looks what is planned for it.
    pub(super) fn begin(&self, call: Call, subject: &str) -> Result<Verdict> {
        let mut state = self.state.lock();
        if state.off {
            return Err(Error::PowerCut);
        }
        let boot = state.boot;
        let matching =
            |state: &State| state.gates.iter().find(|g| g.after.is_none() && g.is_for(call, subject)).cloned();
        while let Some(gate) = matching(&state) {
            self.wait_at(&gate, &mut state)?;
        }
        let StepDelay { each, part } = &self.step_delay;
        let is_delayed = !each.is_zero()
            && matches!(
                call,
                Call::Write | Call::Flush | Call::Run(_) | Call::GrowXfs | Call::Luks(_) | Call::LuksWrite
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
        if let Some(record) = &mut state.record {
            record.push(Step { call, subject: subject.to_owned() });
        }
        if call.changes()
            && call != Call::Announce
            && state.breaks.as_ref().is_some_and(|(from, part)| *from <= number && subject.contains(part))
        {
            state.struck += 1;
            return Err(call.failure(subject));
        }
        let of_kind = |(kind, part, _): &(Call, String, Plan)| *kind == call && subject.contains(part.as_str());
        let plan = match state.plans.remove(&number) {
            None => state.kinds.iter().position(of_kind).map(|at| state.kinds.remove(at).2),
            plan => plan,
        };
        state.struck += u64::from(plan.is_some());
        match plan {
            None => Ok(Verdict::Do),
            Some(Plan::Refuse) => Err(dm_error(call, subject, libc::EINVAL)),
            Some(Plan::FailBefore) => Err(call.failure(subject)),
            Some(Plan::FailAfter) => Ok(Verdict::DoThenFail(call.failure(subject))),
            Some(Plan::End(end)) => Err(match call {
                Call::Run(program) | Call::ProgramWrite(program) => ended(program, end),
                other => other.failure(subject),
            }),
            // Without the hook that prints it: there are thousands of them in a test.
            Some(Plan::Panic) => std::panic::resume_unwind(Box::new(format!("planted at step {number}"))),
            Some(Plan::CutPower) => {
                state.off = true;
                self.changed.notify_all();
                Ok(Verdict::CutPower)
            }
        }
    }

    fn wait_at(&self, gate: &GateState, state: &mut MutexGuard<'_, State>) -> Result<()> {
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
    pub(super) fn end(&self, call: Call, subject: &str) -> Result<()> {
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

    pub(super) fn steps(&self) -> u64 {
        self.state.lock().steps
    }

    /// Whether the process that calls is past its planned end.
    pub(super) fn has_ended(&self) -> bool {
        let state = self.state.lock();
        state.ends_at.is_some_and(|end| end <= state.steps)
    }

    pub(super) fn trace(&self) -> Vec<Step> {
        self.state.lock().record.clone().unwrap_or_default()
    }

    /// Wakes everything that waits at a gate, to fail.
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

    pub(super) fn close_gate(self: &Arc<Self>, call: Call, subject: &str, after: Option<usize>) -> Gate {
        let state = Arc::new(GateState { call, subject: subject.to_owned(), after, inner: Mutex::default() });
        self.state.lock().gates.push(Arc::clone(&state));
        Gate { control: Arc::clone(self), state }
    }
}

/// Plans failures and power cuts of a machine. Numbers count from 0; the next step has the number
/// [`Sim::steps`](super::Sim::steps).
pub struct Faults<'a>(pub(super) &'a Sim);

impl Faults<'_> {
    fn plan(&self, step: u64, plan: Plan) {
        self.0.0.control.state.lock().plans.insert(step, plan);
    }

    /// Step `step` fails and has no effect.
    pub fn fail_at(&self, step: u64) {
        self.plan(step, Plan::FailBefore);
    }

    /// Step `step` takes effect, and its caller is told that it failed.
    pub fn fail_after(&self, step: u64) {
        self.plan(step, Plan::FailAfter);
    }

    /// Power goes at the beginning of step `step`.
    pub fn cut_power_at(&self, step: u64) {
        self.plan(step, Plan::CutPower);
    }

    /// Whoever takes step `step` panics at its beginning.
    pub fn panic_at(&self, step: u64) {
        self.plan(step, Plan::Panic);
    }

    /// The process is killed at the beginning of step `step`; the machine runs on.
    pub fn kill_at(&self, step: u64) {
        self.0.0.control.state.lock().ends_at = Some(step);
    }

    /// From step `step` on whatever would change something of which the name contains `part` fails and has no effect. Links
    /// are not changes of the machine.
    pub fn break_from(&self, step: u64, part: &str) {
        self.0.0.control.state.lock().breaks = Some((step, part.to_owned()));
    }

    /// The next step of a kind whose subject contains `subject` fails and has no effect. Given twice, the next two do.
    pub fn fail_next(&self, call: Call, subject: &str) {
        self.0.0.control.state.lock().kinds.push((call, subject.to_owned(), Plan::FailBefore));
    }

    /// The next run of `program` with `arguments` among its own ends so, and has no effect. Given twice, the next two do.
    pub fn end_next(&self, program: Program, arguments: &str, end: ProgramEnd) {
        self.0.0.control.state.lock().kinds.push((Call::Run(program), arguments.to_owned(), Plan::End(end)));
    }

    /// As [`Faults::end_next`], for the next write of the program to a device whose number contains `subject`: it has begun.
    pub fn end_at_next_write(&self, program: Program, subject: &str, end: ProgramEnd) {
        self.0.0.control.state.lock().kinds.push((Call::ProgramWrite(program), subject.to_owned(), Plan::End(end)));
    }

    /// The kernel refuses the next step of a kind of device-mapper whose subject contains `subject`, as it would again.
    pub fn refuse_next(&self, call: Call, subject: &str) {
        self.0.0.control.state.lock().kinds.push((call, subject.to_owned(), Plan::Refuse));
    }

    /// The next run of a program ends with status 0 and has done nothing. Given twice, the next two do.
    pub fn idle_next(&self, program: Program) {
        self.0.0.control.state.lock().idle.push(program);
    }

    /// Power goes at the beginning of the next step of a kind whose subject contains `subject`.
    pub fn cut_power_at_next(&self, call: Call, subject: &str) {
        self.0.0.control.state.lock().kinds.push((call, subject.to_owned(), Plan::CutPower));
    }

    /// Forgets everything planned that has not struck. If the process was killed, another one begins.
    pub fn clear(&self) {
        if self.0.0.control.has_ended() {
            self.0.end_process();
        }
        let mut state = self.0.0.control.state.lock();
        state.plans.clear();
        state.kinds.clear();
        state.idle.clear();
        state.ends_at = None;
        state.breaks = None;
    }

    /// How many planned faults have struck: shows that an enumeration has reached its step.
    pub fn struck(&self) -> u64 {
        self.0.0.control.state.lock().struck
    }
}

/// Holds calls of one kind until it is opened. Dropping it opens it.
#[must_use = "a gate that is dropped is open"]
pub struct Gate {
    control: Arc<Control>,
    state: Arc<GateState>,
}

impl Gate {
    /// Lets everything through, now and from now on.
    pub fn open(&self) {
        let mut state = self.control.state.lock();
        self.state.inner.lock().open = true;
        state.gates.retain(|gate| !Arc::ptr_eq(gate, &self.state));
        self.control.changed.notify_all();
    }

    /// Calls that wait at it now.
    pub fn waiting(&self) -> usize {
        self.state.inner.lock().waiting
    }

    /// Waits until `count` calls have arrived in all since the gate was closed, at most `limit`. True if they have.
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
