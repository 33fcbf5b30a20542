//! LUKS2: a child process of this program serves each call.
//!
//! libcryptsetup is not thread-safe, and key derivation takes seconds and up to 1 GiB of memory. So
//! calls run in separate processes, as many in parallel as memory allows, and a crash in the
//! library ends one call only. Secrets pass through pipes ([`wire`]), never through arguments,
//! environment variables, files or logs.
//!
//! | file | side | |
//! |---|---|---|
//! | this one | daemon | sends a request to a child and waits for its answer |
//! | `wire` | both | their messages |
//! | `memory` | daemon | which child may derive keys when |
//! | `child` | child | the process |
//! | `connection` | child | its end of the pipes |
//! | `calls` | child | serves the requests, except the long ones |
//! | `device`, `fault` | child | a LUKS device and its errors, as libcryptsetup has them |
//! | `staged` | child | a header for plaintext data that is in use |
//! | `reencrypt`, `steps`, `repair` | child | re-encryption jobs on a device in use |
//! | `header`, `table` | child | what the JSON of a header says, and the table that follows from it |
//!
//! At an orderly stop, the engine stops the re-encryption jobs and waits for them. If the daemon
//! dies, its end of the pipes closes, and the child exits at a point where that does no harm. A
//! child that exceeds its time limit is killed, which does no harm either: recovery is the same as
//! after a power cut. systemd kills only the daemon's main process (KillMode=process). At shutdown
//! it sends SIGTERM to all processes, which a child treats as a request to stop.

mod calls;
pub mod child;
mod connection;
mod device;
mod fault;
mod header;
mod memory;
mod reencrypt;
mod repair;
mod staged;
mod steps;
mod table;
mod wire;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{ChildStderr, ChildStdin, ChildStdout},
    time::{Duration, Instant},
};

use log::warn;
use rustix::event::{PollFd, PollFlags};
use serde_json::Value;
use zeroize::Zeroizing;

use self::{
    memory::{Memory, MemoryGrant},
    wire::{Garbled, LuksAnswer, LuksRequest, Nth, Received, SentChange, SentKeyslot, SentUnlock},
};
use super::{
    cookie, dm,
    limits::{self, Activity, KILLED, NOTICE},
    processes::{Input, Invocation, Kept, Process},
    programs::{self, THIS_PROGRAM},
    wait,
};
use crate::{
    base::units::{Bytes, Sectors},
    platform::{
        Error, Result,
        keyring::Secret,
        luks::{
            Begin, FormatPurpose, Header, HeaderChange, HeaderLayout, NewKeyslot, Progress, ReencryptionEnd, Unlock,
        },
    },
};

/// How often `watch` is called for a re-encryption job that reports no progress.
const WATCH: Duration = Duration::from_secs(1);
/// How long a child waits for udev to process a change. libdevmapper would wait for ever.
const UDEV_LIMIT: Duration = Duration::from_secs(30);
/// How often a silent child is checked for such a wait.
const UDEV_LOOK: Duration = Duration::from_secs(10);

/// LUKS2 from the daemon's side.
pub struct Luks {
    /// The program to start as the child.
    program: PathBuf,
    memory: Memory,
}

impl Default for Luks {
    fn default() -> Luks {
        Luks::served_by(Path::new(THIS_PROGRAM))
    }
}

/// The secrets of a request that is being built.
#[derive(Default)]
struct OutgoingSecrets<'a>(Vec<&'a Secret>);

impl<'a> OutgoingSecrets<'a> {
    fn add(&mut self, secret: &'a Secret) -> Nth {
        self.0.push(secret);
        Nth(self.0.len() - 1)
    }

    fn unlock(&mut self, unlock: Unlock<'a>) -> SentUnlock {
        SentUnlock { passphrase: self.add(unlock.passphrase), keyslot: unlock.keyslot }
    }

    fn keyslot(&mut self, new: &NewKeyslot<'a>) -> SentKeyslot {
        SentKeyslot { number: new.number, passphrase: self.add(new.passphrase), cost: new.cost }
    }
}

/// Watches a re-encryption job: called with its progress; `false` stops the job.
type Watch<'a> = &'a (dyn Fn(Progress) -> bool + Sync);

impl Luks {
    /// Uses a program that calls [`child::run_if_asked`] first.
    pub fn served_by(program: &Path) -> Luks {
        Luks { program: program.to_owned(), memory: Memory::of_this_machine() }
    }

    /// See [`Platform::luks_read`](crate::platform::Platform::luks_read). The methods below
    /// correspond in the same way.
    ///
    /// # Errors
    /// As there.
    pub fn read(&self, device: &Path) -> Result<Option<Header>> {
        let call = ChildCall { luks: self, device, action: "read" };
        match call.ask(&LuksRequest::Read { device: device.to_owned() }, &OutgoingSecrets::default(), None)? {
            (LuksAnswer::Header(header), _) => Ok(header),
            other => Err(call.unexpected(&other.0)),
        }
    }

    /// # Errors
    /// As there.
    pub fn format(
        &self,
        device: &Path,
        layout: &HeaderLayout,
        purpose: FormatPurpose,
        keyslots: &[NewKeyslot<'_>],
        tokens: &BTreeMap<u32, Value>,
    ) -> Result<Header> {
        let mut secrets = OutgoingSecrets::default();
        let keyslots = keyslots.iter().map(|keyslot| secrets.keyslot(keyslot)).collect();
        let (device_path, layout, tokens) = (device.to_owned(), *layout, tokens.clone());
        let request = LuksRequest::Format { device: device_path, layout, purpose, keyslots, tokens };
        ChildCall { luks: self, device, action: "format" }.ask_for_header(&request, &secrets)
    }

    /// # Errors
    /// As there.
    pub fn change(&self, device: &Path, unlock: Option<Unlock<'_>>, changes: &[HeaderChange<'_>]) -> Result<Header> {
        let mut secrets = OutgoingSecrets::default();
        let unlock = unlock.map(|unlock| secrets.unlock(unlock));
        let mut wired = Vec::new();
        for change in changes {
            wired.push(match change {
                HeaderChange::AddKeyslot(keyslot) => SentChange::AddKeyslot(secrets.keyslot(keyslot)),
                HeaderChange::AddNextKeyslot(keyslot) => SentChange::AddNextKeyslot(secrets.keyslot(keyslot)),
                HeaderChange::DestroyKeyslot(number) => SentChange::DestroyKeyslot(*number),
                HeaderChange::PutToken(number, token) => SentChange::PutToken(*number, token.clone()),
                HeaderChange::RemoveToken(number) => SentChange::RemoveToken(*number),
            });
        }
        let request = LuksRequest::Change { device: device.to_owned(), unlock, changes: wired };
        ChildCall { luks: self, device, action: "change" }.ask_for_header(&request, &secrets)
    }

    /// # Errors
    /// As there.
    pub fn open(&self, device: &Path, name: Option<&str>, unlock: Unlock<'_>) -> Result<Secret> {
        let mut secrets = OutgoingSecrets::default();
        let unlock = secrets.unlock(unlock);
        let request = LuksRequest::Open { device: device.to_owned(), name: name.map(str::to_owned), unlock };
        let call = ChildCall { luks: self, device, action: "open" };
        match call.ask(&request, &secrets, None)? {
            (LuksAnswer::VolumeKey, Some(key)) => {
                name.into_iter().for_each(dm::mend_node);
                Ok(key)
            }
            other => Err(call.unexpected(&other.0)),
        }
    }

    /// # Errors
    /// As there.
    pub fn reopen(&self, device: &Path, name: &str, volume_key: &Secret) -> Result<()> {
        let mut secrets = OutgoingSecrets::default();
        let volume_key = secrets.add(volume_key);
        let request = LuksRequest::Reopen { device: device.to_owned(), name: name.to_owned(), volume_key };
        ChildCall { luks: self, device, action: "open" }.ask_to_do(&request, &secrets)?;
        dm::mend_node(name);
        Ok(())
    }

    /// # Errors
    /// As there.
    pub fn resize(&self, device: &Path, name: &str, volume_key: &Secret, size: Option<Sectors>) -> Result<()> {
        let mut secrets = OutgoingSecrets::default();
        let volume_key = secrets.add(volume_key);
        let request = LuksRequest::Resize { device: device.to_owned(), name: name.to_owned(), volume_key, size };
        ChildCall { luks: self, device, action: "resize" }.ask_to_do(&request, &secrets)
    }

    /// # Errors
    /// As there.
    pub fn reencrypt(
        &self,
        device: &Path,
        name: &str,
        unlock: Unlock<'_>,
        begin: Begin,
        watch: Watch<'_>,
    ) -> Result<ReencryptionEnd> {
        let mut secrets = OutgoingSecrets::default();
        let unlock = secrets.unlock(unlock);
        let (device_path, name) = (device.to_owned(), name.to_owned());
        let request = LuksRequest::Reencrypt { device: device_path.clone(), name: name.clone(), unlock, begin };
        let call = ChildCall { luks: self, device, action: "re-encrypt" };
        match call.converse(&request, &secrets, Some(watch)) {
            Ok((LuksAnswer::Ended(ended), _)) => Ok(ended),
            Ok((answer, _)) => Err(call.unexpected(&answer)),
            Err(End::Answered(fault)) => Err(fault),
            Err(End::Died(fault)) => {
                // The child may have died within a step. Repair, so that the crypt device serves
                // all data.
                call.ask_to_do(&LuksRequest::Repair { device: device_path, name, unlock }, &secrets)?;
                Err(fault)
            }
        }
    }
}

/// How a call failed.
enum End {
    /// The child reported an error.
    Answered(Error),
    /// The child ended without an answer, or sent something malformed.
    Died(Error),
}

/// One call.
struct ChildCall<'a> {
    luks: &'a Luks,
    device: &'a Path,
    /// The verb for errors.
    action: &'static str,
}

impl ChildCall<'_> {
    fn failed(&self, what: String) -> Error {
        Error::Luks { action: self.action, device: self.device.to_owned(), what }
    }

    /// Names the kind of the answer, never its content.
    fn unexpected(&self, answer: &LuksAnswer) -> Error {
        let kind = format!("{answer:?}");
        let kind = kind.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        self.failed(format!("unexpected answer {kind} of the child process"))
    }

    fn ask_for_header(&self, request: &LuksRequest, secrets: &OutgoingSecrets<'_>) -> Result<Header> {
        match self.ask(request, secrets, None)? {
            (LuksAnswer::Header(Some(header)), _) => Ok(header),
            other => Err(self.unexpected(&other.0)),
        }
    }

    fn ask_to_do(&self, request: &LuksRequest, secrets: &OutgoingSecrets<'_>) -> Result<()> {
        match self.ask(request, secrets, None)? {
            (LuksAnswer::Done, _) => Ok(()),
            other => Err(self.unexpected(&other.0)),
        }
    }

    fn ask(
        &self,
        request: &LuksRequest,
        secrets: &OutgoingSecrets<'_>,
        watch: Option<Watch<'_>>,
    ) -> Result<(LuksAnswer, Option<Secret>)> {
        self.converse(request, secrets, watch).map_err(|(End::Answered(fault) | End::Died(fault))| fault)
    }

    /// Starts a child, sends the request, and waits for the child to exit.
    fn converse(
        &self,
        request: &LuksRequest,
        secrets: &OutgoingSecrets<'_>,
        watch: Option<Watch<'_>>,
    ) -> std::result::Result<(LuksAnswer, Option<Secret>), End> {
        let died = |what: String| End::Died(self.failed(what));
        let arguments = [OsStr::new(wire::CHILD)];
        let limit = limits::of(activity_of(request), Bytes::ZERO);
        let mut invocation = Invocation {
            label: format!("LUKS child for {} ({})", self.device.display(), self.action),
            path: &self.luks.program,
            arguments: &arguments,
            environment: &[],
            input: Input::Bytes(&[]),
            limit,
            namespace: None,
        };
        let mut child = invocation.start().map_err(|fault| died(format!("cannot start the child process: {fault}")))?;
        let mut connection = ChildConnection::new(&mut child, &self.luks.memory, limit, watch);
        let process = child.id();
        let answered = connection.ask(&wire::frame(request, &secrets.0)).and_then(|()| connection.listen(&child));
        if answered.is_err() {
            // The child exceeded its time limit or sent something malformed. Whatever it is doing,
            // it must stop.
            child.kill();
        }
        let ChildConnection { input, memory_grant, answer, errors, .. } = connection;
        drop((input, memory_grant));
        // The child is reaped in any case, so that no zombie stays. A child that has answered exits
        // as soon as its input closes.
        let patience = if answered.is_ok() { NOTICE } else { KILLED };
        let status = child.wait(patience).map_err(|fault| died(fault.to_string()))?;
        if answer.is_none() {
            // If the child was killed while it waited for udev, remove its cookie.
            cookie::release(process, Duration::ZERO);
        }
        answered.map_err(|fault| died(fault.to_string()))?;
        let status =
            status.ok_or_else(|| died("the child process does not exit: a device does not respond".to_owned()))?;
        let device = || self.device.to_owned();
        match answer {
            None => Err(died(format!("the child process ended: {}", programs::complaint(status, &errors.bytes)))),
            Some((LuksAnswer::WrongKey, _)) => Err(End::Answered(Error::WrongKey { device: device() })),
            Some((LuksAnswer::Busy, _)) => {
                Err(End::Answered(Error::Busy { name: self.device.to_string_lossy().into_owned() }))
            }
            Some((LuksAnswer::Failed(cause), _)) => {
                // The library's message is more specific than its errno.
                let what = match programs::one_line(&errors.bytes) {
                    said if said.is_empty() => cause,
                    said => format!("{said} ({cause})"),
                };
                Err(End::Answered(self.failed(what)))
            }
            Some((answer, secret)) => Ok((answer, secret)),
        }
    }
}

/// The kind of a request, as far as its time limit depends on it.
fn activity_of(request: &LuksRequest) -> Activity {
    match request {
        LuksRequest::Read { .. } | LuksRequest::Reopen { .. } | LuksRequest::Resize { .. } => Activity::LuksQuick,
        LuksRequest::Format { .. }
        | LuksRequest::Change { .. }
        | LuksRequest::Open { .. }
        | LuksRequest::Repair { .. } => Activity::LuksKeys,
        LuksRequest::Reencrypt { .. } => Activity::LuksData,
    }
}

/// The daemon's end of the conversation.
struct ChildConnection<'a> {
    /// Process ID of the child.
    process: u32,
    /// `None` once the daemon has requested the child to stop.
    input: Option<ChildStdin>,
    output: Option<ChildStdout>,
    log: Option<ChildStderr>,
    errors: Kept,
    received: Received,
    memory: &'a Memory,
    memory_grant: Option<MemoryGrant<'a>>,
    /// The time limit and the deadline. The wait for memory does not count.
    limit: Option<Duration>,
    deadline: Option<Instant>,
    /// When to log that the call takes long.
    notice: Option<Instant>,
    watch: Option<Watch<'a>>,
    progress: Option<Progress>,
    answer: Option<(LuksAnswer, Option<Secret>)>,
}

impl<'a> ChildConnection<'a> {
    fn new(
        child: &mut Process,
        memory: &'a Memory,
        limit: Option<Duration>,
        watch: Option<Watch<'a>>,
    ) -> ChildConnection<'a> {
        let (input, output, log) = child.pipes();
        let now = Instant::now();
        ChildConnection {
            process: child.id(),
            input,
            output,
            log,
            limit,
            deadline: limit.map(|limit| now + limit),
            notice: Some(now + NOTICE),
            errors: Kept::new(),
            received: Received::new(),
            memory,
            memory_grant: None,
            watch,
            progress: None,
            answer: None,
        }
    }

    /// Sends the request. The child reads all of it before it writes anything.
    fn ask(&mut self, request: &[u8]) -> io::Result<()> {
        self.write(request)
    }

    /// Writes to the child. A child that has exited is no error here; its exit status decides.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(input) = &mut self.input else { return Ok(()) };
        match input.write_all(bytes) {
            Err(closed) if closed.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    /// Reads until the child has closed its outputs.
    ///
    /// # Errors
    /// At the time limit, or if a message is malformed.
    fn listen(&mut self, child: &Process) -> io::Result<()> {
        let mut buffer = Zeroizing::new([0; 4096]);
        let mut next_watch = Instant::now() + WATCH;
        let mut next_look = Instant::now() + UDEV_LOOK;
        while self.output.is_some() || self.log.is_some() {
            let output = self.output.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN));
            let log = self.log.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN));
            let with_output = usize::from(output.is_some());
            let mut fds: Vec<PollFd<'_>> = [output, log].into_iter().flatten().collect();
            let next = [self.watch.map(|_| next_watch), self.deadline, self.notice, Some(next_look)];
            let in_time = wait::any(&mut fds, next.into_iter().flatten().min())?;
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            let now = Instant::now();
            if self.notice.is_some_and(|notice| notice <= now) {
                child.log_age();
                self.notice = None;
            }
            if !in_time {
                if now >= next_look {
                    self.end_waits_for_udev();
                    next_look = now + UDEV_LOOK;
                }
                if self.deadline.is_some_and(|deadline| deadline <= now) {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, limits::timed_out(self.limit)));
                }
                if self.watch.is_some() && next_watch <= now {
                    self.ask_watch();
                    next_watch = now + WATCH;
                }
                continue;
            }
            if with_output == 1 && ready[0] {
                match read(self.output.as_mut(), &mut buffer[..])? {
                    0 => self.output = None,
                    count => {
                        self.received.add(&buffer[..count]);
                        self.handle_messages()?;
                    }
                }
            }
            if ready.get(with_output).is_some_and(|ready| *ready) {
                match read(self.log.as_mut(), &mut buffer[..])? {
                    0 => self.log = None,
                    count => self.errors.keep(&buffer[..count]),
                }
            }
        }
        if self.received.is_empty() { Ok(()) } else { Err(garbled(Garbled("a truncated message".to_owned()))) }
    }

    /// A killed udev worker never completes the cookie that the child waits for.
    fn end_waits_for_udev(&self) {
        let count = cookie::release(self.process, UDEV_LIMIT);
        if count > 0 {
            let (process, limit) = (self.process, UDEV_LIMIT.as_secs());
            let so_far = cookie::note_unanswered(count as u64);
            warn!(
                "udev did not answer LUKS child process {process} within {limit} s ({so_far} events unanswered so far); \
                 the child continues without it"
            );
        }
    }

    /// Handles the messages received so far.
    fn handle_messages(&mut self) -> io::Result<()> {
        while let Some((message, mut secrets)) = self.received.next::<LuksAnswer>().map_err(garbled)? {
            if self.answer.is_some() {
                return Err(garbled(Garbled("a message after the answer".to_owned())));
            }
            match message {
                LuksAnswer::Needs(memory) => self.grant(memory)?,
                LuksAnswer::Progress(progress) => {
                    // The derivation that needed the memory is over, unless the job has not started
                    // yet.
                    if self.progress.is_some() {
                        self.memory_grant = None;
                    }
                    self.progress = Some(progress);
                    self.notice = Some(Instant::now() + NOTICE);
                    self.ask_watch();
                }
                answer => self.answer = Some((answer, secrets.pop())),
            }
        }
        Ok(())
    }

    fn grant(&mut self, memory: Bytes) -> io::Result<()> {
        self.memory_grant = None;
        self.memory_grant = Some(self.memory.take(memory));
        let now = Instant::now();
        self.deadline = self.limit.map(|limit| now + limit);
        self.notice = Some(now + NOTICE);
        self.write(&[wire::GO])
    }

    /// Asks whether to continue. Closing the child's input makes it stop.
    fn ask_watch(&mut self) {
        if let (Some(watch), Some(progress)) = (self.watch, self.progress) {
            if !watch(progress) {
                self.input = None;
            }
        }
    }
}

fn read(pipe: Option<&mut impl Read>, buffer: &mut [u8]) -> io::Result<usize> {
    let Some(pipe) = pipe else { return Ok(0) };
    loop {
        match pipe.read(buffer) {
            Err(interrupted) if interrupted.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn garbled(Garbled(what): Garbled) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the child process sent a malformed message: {what}"))
}
