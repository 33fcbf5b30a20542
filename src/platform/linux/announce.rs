//! Makes udev create the links under `/dev/stratis`, and waits for them.
//!
//! Only udev creates and removes these links; this module requests them by synthetic events
//! (`docs/spec/engine/storage-stack.md` §9.7, `docs/spec/tools/system-integration.md` §1). It knows
//! nothing of locks or replies: the caller decides when to wait.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::{
        fd::BorrowedFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use data_encoding::BASE32_NOPAD;
use log::warn;

use super::{
    database,
    listener::{Listener, ReceivedNews, Subscription},
    monitor::{LinkRequest, udev_runs},
    wait,
};
use crate::platform::{Announcement, DeviceNumber, PendingLinks};

/// Longest request: the kernel has 2048 bytes for the whole event.
const LINE_BYTES_MAX: usize = 1200;

/// Whether the link of a filesystem exists and leads to its device.
pub(super) fn is_linked(filesystem: &Announcement) -> bool {
    leads_to(&filesystem.link(), filesystem.number)
}

fn leads_to(link: &Path, number: DeviceNumber) -> bool {
    fs::metadata(link)
        .is_ok_and(|found| found.file_type().is_block_device() && database::number(found.rdev()) == number)
}

/// Requests the links of these filesystems from udev. A failed request is logged, and the wait
/// reports its link as missing.
pub(super) fn announce(listener: &Listener, filesystems: &[Announcement]) -> Box<dyn PendingLinks> {
    // Listen first: udev may answer the first request before the last one is written.
    let udev = if filesystems.is_empty() || !udev_runs() { None } else { listen(listener, filesystems) };
    let wanted = filesystems
        .iter()
        .map(|filesystem| {
            let wanted = Wanted::new(filesystem);
            if let Err(fault) = wanted.ask() {
                warn!("cannot ask udev to make the link {}: {fault}", wanted.link.display());
                return Wanted { answered: true, ..wanted };
            }
            wanted
        })
        .collect();
    Box::new(RequestedLinks { udev, wanted, looked: false })
}

fn listen(listener: &Listener, filesystems: &[Announcement]) -> Option<Subscription> {
    let devices = filesystems.iter().map(|filesystem| filesystem.number).collect();
    let no_socket = |fault: &io::Error| warn!("cannot listen to udev events, so links may appear late: {fault}");
    listener.subscribe(devices).inspect_err(no_socket).ok()
}

/// A link that was requested from udev.
struct Wanted {
    link: PathBuf,
    number: DeviceNumber,
    request: LinkRequest,
    /// The link with the name that udev made up under other daemons, if it differs and does not
    /// point elsewhere.
    former: Option<PathBuf>,
    /// udev has processed the request, or never got it.
    answered: bool,
}

impl Wanted {
    fn new(filesystem: &Announcement) -> Wanted {
        Wanted {
            link: filesystem.link(),
            number: filesystem.number,
            request: LinkRequest {
                uuid: filesystem.filesystem.hyphenated(),
                pool: BASE32_NOPAD.encode(filesystem.pool_name.link_text().as_bytes()),
                filesystem: BASE32_NOPAD.encode(filesystem.name.link_text().as_bytes()),
            },
            former: filesystem
                .former_link()
                .filter(|link| fs::symlink_metadata(link).is_err() || leads_to(link, filesystem.number)),
            answered: false,
        }
    }

    fn ask(&self) -> io::Result<()> {
        let file = format!("/sys/dev/block/{}/uevent", self.number);
        // The line is written at once: the kernel takes each write as a request.
        let line = self.line();
        match OpenOptions::new().write(true).open(file)?.write(line.as_bytes())? {
            written if written == line.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// The arguments for the kernel to pass on to udev.
    fn line(&self) -> String {
        let line = self.request.line();
        let former = self.former.as_ref().and_then(|link| link.strip_prefix("/dev/stratis").ok());
        let Some(former) = former else { return line };
        let with_former =
            format!("{line} STRATISFORMERLINK={}", BASE32_NOPAD.encode(former.as_os_str().as_encoded_bytes()));
        // Filesystems with very long names get no former link.
        if with_former.len() <= LINE_BYTES_MAX { with_former } else { line }
    }

    /// Whether the link exists and points to the device.
    fn is_there(&self) -> bool {
        leads_to(&self.link, self.number)
    }

    /// Whether waiting is worthwhile. If udev has processed the request and no link exists, its
    /// rules refused to make one: they are not installed, or the filesystem has another UUID. A
    /// link to another device is worth waiting for while our device exists: an event that frees the
    /// name may be on its way.
    fn may_come(&self) -> bool {
        let is_device_there = || fs::exists(format!("/sys/dev/block/{}", self.number)).unwrap_or(true);
        !self.answered || (fs::symlink_metadata(&self.link).is_ok() && is_device_there())
    }
}

impl LinkRequest {
    /// The request without a former link. No newline: the kernel takes everything after the action
    /// as arguments.
    fn line(&self) -> String {
        format!("change {} STRATISPOOLNAME={} STRATISFSNAME={}", self.uuid, self.pool, self.filesystem)
    }
}

struct RequestedLinks {
    /// `None` if udev does not run, so there is nothing to wait for.
    udev: Option<Subscription>,
    wanted: Vec<Wanted>,
    /// The links have been checked since they were requested.
    looked: bool,
}

impl PendingLinks for RequestedLinks {
    fn wait(mut self: Box<Self>, limit: Duration) -> Vec<PathBuf> {
        let deadline = Instant::now() + limit;
        loop {
            self.hear();
            if self.advance() {
                break;
            }
            let Some(udev) = &self.udev else { break };
            match wait::readable(udev.fd(), deadline) {
                Ok(true) => {}
                Ok(false) => break,
                Err(fault) => {
                    warn!("cannot wait for udev events: {fault}");
                    break;
                }
            }
        }
        self.missing()
    }

    fn hear(&mut self) {
        if let Some(udev) = &self.udev {
            udev.hear();
        }
    }

    fn advance(&mut self) -> bool {
        match self.udev.as_ref().map_or(ReceivedNews::Broken, Subscription::take) {
            // While many links are being made, many messages concern other devices and need no
            // check.
            ReceivedNews::Nothing if self.looked => return false,
            ReceivedNews::Nothing => {}
            ReceivedNews::News(requests) => {
                for wanted in &mut self.wanted {
                    wanted.answered |= requests.contains(&wanted.request);
                }
            }
            ReceivedNews::Broken => self.udev = None,
        }
        self.looked = true;
        // Check the links after reading the messages: a later message wakes the next wait.
        self.wanted.retain(|wanted| !wanted.is_there());
        self.udev.is_none() || !self.wanted.iter().any(Wanted::may_come)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.udev.as_ref().map(Subscription::fd)
    }

    fn missing(self: Box<Self>) -> Vec<PathBuf> {
        self.wanted.into_iter().filter(|wanted| !wanted.is_there()).map(|wanted| wanted.link).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, time::Duration};

    use super::{Listener, RequestedLinks, Wanted};
    use crate::{
        base::name::Name,
        platform::{Announcement, DeviceNumber, PendingLinks},
    };

    fn announcement(pool: &str, filesystem: &str) -> Announcement {
        Announcement {
            // No machine has a block driver with this number.
            number: DeviceNumber { major: 0, minor: 0 },
            filesystem: "3f2504e0-4f89-41d3-9a0c-0305e82c3301".parse().unwrap(),
            pool_name: Name::new(pool).unwrap(),
            name: Name::new(filesystem).unwrap(),
        }
    }

    #[test]
    fn the_line_is_what_the_kernel_accepts() {
        // Names from RFC 4648 §10, and one that is not ASCII.
        let line = |pool, filesystem| Wanted::new(&announcement(pool, filesystem)).request.line();
        let start = "change 3f2504e0-4f89-41d3-9a0c-0305e82c3301";
        assert_eq!(line("foobar", "foob"), format!("{start} STRATISPOOLNAME=MZXW6YTBOI STRATISFSNAME=MZXW6YQ"));
        assert_eq!(line("f", "ü"), format!("{start} STRATISPOOLNAME=MY STRATISFSNAME=YO6A"));
    }

    #[test]
    fn a_changed_name_requests_both_links() {
        let line = Wanted::new(&announcement("no-such,pool", "f")).line();
        let [pool, filesystem, former] =
            ["no-such\\x2cpool", "f", "no-such_pool/f"].map(|text| data_encoding::BASE32_NOPAD.encode(text.as_bytes()));
        assert_eq!(
            line,
            format!(
                "change 3f2504e0-4f89-41d3-9a0c-0305e82c3301 STRATISPOOLNAME={pool} STRATISFSNAME={filesystem} \
                 STRATISFORMERLINK={former}"
            )
        );
        let long = Wanted::new(&announcement(&",".repeat(255), &",".repeat(255)));
        assert_eq!(long.line(), long.request.line(), "a former link that does not fit is dropped");
    }

    #[test]
    fn without_udev_nobody_waits_for_links() {
        let wanted = vec![Wanted::new(&announcement("no-such-pool", "a")), Wanted::new(&announcement("b", "c"))];
        let links = Box::new(RequestedLinks { udev: None, wanted, looked: false });
        let missing = links.wait(Duration::from_secs(3600));
        assert_eq!(missing, [PathBuf::from("/dev/stratis/no-such-pool/a"), PathBuf::from("/dev/stratis/b/c")]);
    }

    #[test]
    fn no_requests_mean_no_missing_links() {
        let links = Box::new(RequestedLinks { udev: None, wanted: Vec::new(), looked: false });
        assert_eq!(links.wait(Duration::from_secs(3600)), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_failed_request_is_reported_without_waiting() {
        let links = super::announce(&Listener::default(), &[announcement("no-such-pool", "x")]);
        assert_eq!(links.wait(Duration::from_secs(3600)), [PathBuf::from("/dev/stratis/no-such-pool/x")]);
    }
}
