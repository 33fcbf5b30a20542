//! Describes and builds a simulated machine.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    Sim, Simulation,
    clock::Clock,
    disks::{DiskShape, DiskTable},
    events::ChangeNotifier,
    faults::{Control, StepDelay},
    key_servers::{KeyServers, Trouble},
    machine::{self, MachineState},
};
use crate::base::units::Sectors;

/// Default size of a disk.
pub const DISK_SIZE_DEFAULT: Sectors = Sectors(1 << 31);

/// Initial contents of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// A foreign XFS.
    Xfs,
    /// A foreign LUKS2 device.
    Luks,
    /// A DOS partition table with this many partitions, at most 4.
    PartitionTable(u8),
}

impl Preset {
    /// What lies where on the disk, in bytes.
    pub(super) fn content(self, size: Sectors) -> Vec<(u64, Vec<u8>)> {
        let mut sector = vec![0; 512];
        match self {
            Preset::Xfs => {
                let uuid = *b"somebody's  file";
                let superblock = super::xfs::Superblock::new(uuid, size.0 * 512, *b"somebody's files", None, None);
                return vec![(superblock.log(), superblock.first_record().to_vec()), (0, superblock.encode().to_vec())];
            }
            Preset::Luks => return vec![(0, super::luks_device::foreign())],
            Preset::PartitionTable(partitions) => {
                sector[510..].copy_from_slice(&[0x55, 0xaa]);
                for entry in 0..usize::from(partitions.min(4)) {
                    sector[446 + entry * 16 + 4] = 0x83;
                }
            }
        }
        vec![(0, sector)]
    }
}

struct DescribedDisk {
    path: PathBuf,
    shape: DiskShape,
    content: Vec<(u64, Vec<u8>)>,
    preset: Option<Preset>,
    twins: Vec<PathBuf>,
}

/// Describes a machine. Methods that describe a disk apply to the last disk added, or, before the
/// first one is added, to disks that appear on demand.
pub struct Builder {
    seed: u64,
    template: DiskShape,
    disks: Vec<DescribedDisk>,
    aliases: Vec<(PathBuf, PathBuf)>,
    on_demand: bool,
    real_clock: bool,
    record: bool,
    step_delay: StepDelay,
    key_servers: KeyServers,
    hot_zone: Option<u64>,
    old_mkfs: bool,
}

impl Sim {
    /// Starts to describe a machine.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

impl Default for Builder {
    fn default() -> Builder {
        let template = DiskShape {
            size: DISK_SIZE_DEFAULT,
            logical: 512,
            physical: 512,
            read_only: false,
            wwn: None,
            multipath: false,
            in_use: false,
        };
        Builder {
            seed: 0,
            template,
            disks: Vec::new(),
            aliases: Vec::new(),
            on_demand: true,
            real_clock: false,
            record: false,
            step_delay: StepDelay::default(),
            key_servers: KeyServers::default(),
            hot_zone: None,
            old_mkfs: false,
        }
    }
}

impl Builder {
    /// Seed of all random choices.
    pub fn seed(mut self, seed: u64) -> Builder {
        self.seed = seed;
        self
    }

    /// Uses a random seed, for a machine that is used and not tested.
    pub fn random_seed(self) -> Builder {
        self.seed(StdRng::from_os_rng().random())
    }

    /// Adds a disk at an absolute path.
    pub fn disk(mut self, path: impl Into<PathBuf>, size: Sectors) -> Builder {
        let shape = DiskShape { size, ..self.template.clone() };
        let path = path.into();
        self.disks.push(DescribedDisk { path, shape, content: Vec::new(), preset: None, twins: Vec::new() });
        self
    }

    fn shape(mut self, change: impl FnOnce(&mut DiskShape)) -> Builder {
        change(self.disks.last_mut().map_or(&mut self.template, |disk| &mut disk.shape));
        self
    }

    /// Size of disks that appear on demand.
    pub fn disk_size(mut self, size: Sectors) -> Builder {
        self.template.size = size;
        self
    }

    /// Logical sector size in bytes; raises the physical sector size to at least this.
    pub fn logical(self, bytes: u32) -> Builder {
        self.shape(|shape| {
            shape.logical = bytes;
            shape.physical = shape.physical.max(bytes);
        })
    }

    /// Physical sector size in bytes.
    pub fn physical(self, bytes: u32) -> Builder {
        self.shape(|shape| shape.physical = bytes)
    }

    /// The kernel refuses writes to the disk.
    pub fn read_only(self) -> Builder {
        self.shape(|shape| shape.read_only = true)
    }

    /// World-wide name of the disk.
    pub fn wwn(self, name: &str) -> Builder {
        self.shape(|shape| shape.wwn = Some(name.to_owned()))
    }

    /// The disk is a path of a multipath device.
    pub fn multipath_member(self) -> Builder {
        self.shape(|shape| shape.multipath = true)
    }

    /// The disk is open exclusively elsewhere.
    pub fn in_use(self) -> Builder {
        self.shape(|shape| shape.in_use = true)
    }

    /// Initial contents of the last disk.
    pub fn holding(mut self, preset: Preset) -> Builder {
        if let Some(disk) = self.disks.last_mut() {
            disk.preset = Some(preset);
        }
        self
    }

    /// Initial bytes of the last disk at an offset.
    pub fn content(mut self, offset: u64, bytes: &[u8]) -> Builder {
        if let Some(disk) = self.disks.last_mut() {
            disk.content.push((offset, bytes.to_vec()));
        }
        self
    }

    /// Adds a second node with the device number of the last disk.
    pub fn second_node(mut self, path: impl Into<PathBuf>) -> Builder {
        if let Some(disk) = self.disks.last_mut() {
            disk.twins.push(path.into());
        }
        self
    }

    /// Adds a symbolic link to another path.
    pub fn link(mut self, alias: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Builder {
        self.aliases.push((alias.into(), target.into()));
        self
    }

    /// Allows only the added disks; all other paths lead to no device.
    pub fn only_these(mut self) -> Builder {
        self.on_demand = false;
        self
    }

    /// Uses the real clock. The default clock advances by a millisecond per reading.
    pub fn real_clock(mut self) -> Builder {
        self.real_clock = true;
        self
    }

    /// Records every step for [`Sim::trace`].
    pub fn record(mut self) -> Builder {
        self.record = true;
        self
    }

    /// Delays each write, flush and program by this time, for tests and demonstrations.
    pub fn step_delay(mut self, each: Duration) -> Builder {
        self.step_delay.each = each;
        self
    }

    /// Delays only steps whose subject contains this text: the path of a disk, the arguments of a
    /// program.
    pub fn step_delay_at(mut self, part: &str) -> Builder {
        self.step_delay.part = part.to_owned();
        self
    }

    /// The Tang server with this URL has trouble from the start.
    pub fn tang(mut self, url: &str, trouble: Trouble) -> Builder {
        self.key_servers.set_server(url, Some(trouble));
        self
    }

    /// All Tang servers have trouble from the start.
    pub fn all_tang(mut self, trouble: Trouble) -> Builder {
        self.key_servers.set_all_servers(Some(trouble));
        self
    }

    /// The TPM has trouble from the start.
    pub fn tpm(mut self, trouble: Trouble) -> Builder {
        self.key_servers.set_tpm(Some(trouble));
        self
    }

    /// Sets the number of non-empty 4 KiB pages per step of a re-encryption job. The default is a
    /// 64th of all non-empty pages, which gives about a thousand simulated steps.
    pub fn hot_zone(mut self, pages: u64) -> Builder {
        self.hot_zone = Some(pages);
        self
    }

    /// mkfs.xfs is of version 5, which does not know `nrext64`.
    pub fn old_mkfs(mut self) -> Builder {
        self.old_mkfs = true;
        self
    }

    /// Takes the options of `--sim` from variables, usually those of the environment:
    /// `STRATISD_SIM_DISK_GIB` (size of disks), `STRATISD_SIM_SLOW_MS` (see
    /// [`Builder::step_delay`]), `STRATISD_SIM_SLOW_PATH` (see [`Builder::step_delay_at`]) and
    /// `STRATISD_SIM_SEED`.
    ///
    /// # Errors
    /// The name of a variable whose value is not a number.
    pub fn variables(mut self, get: impl Fn(&str) -> Option<String>) -> Result<Builder, &'static str> {
        let number = |name: &'static str| match get(name) {
            Some(text) => text.parse::<u64>().map(Some).map_err(|_| name),
            None => Ok(None),
        };
        if let Some(gib) = number("STRATISD_SIM_DISK_GIB")? {
            self.template.size = Sectors(gib.checked_mul(1 << 21).ok_or("STRATISD_SIM_DISK_GIB")?);
        }
        if let Some(ms) = number("STRATISD_SIM_SLOW_MS")? {
            self.step_delay.each = Duration::from_millis(ms);
        }
        if let Some(part) = get("STRATISD_SIM_SLOW_PATH") {
            self.step_delay.part = part;
        }
        if let Some(seed) = number("STRATISD_SIM_SEED")? {
            self.seed = seed;
        }
        Ok(self)
    }

    /// Builds the machine and switches it on.
    pub fn build(self) -> Sim {
        let normal = |path: PathBuf| machine::normal(&path).unwrap_or_else(|| Path::new("/").join(path));
        let mut disks = DiskTable::new(self.template, self.on_demand);
        for planned in self.disks {
            let path = normal(planned.path);
            let size = planned.shape.size;
            disks.add(path.clone(), planned.shape);
            for twin in planned.twins {
                disks.add_twin(normal(twin), &path);
            }
            if let Some(disk) = disks.known(&path) {
                let preset = planned.preset.map(|preset| preset.content(size));
                for (offset, bytes) in preset.into_iter().flatten().chain(planned.content) {
                    disk.preset(offset, &bytes);
                }
            }
        }
        for (alias, target) in self.aliases {
            disks.add_alias(normal(alias), normal(target));
        }
        let clock = if self.real_clock { Clock::Real } else { Clock::logical() };
        // The machine has two generators, so that the use of one does not change the sequence of
        // the other.
        Sim(Arc::new(Simulation {
            machine: Mutex::new(MachineState::new(disks, self.key_servers, clock.clone(), self.seed)),
            changed: ChangeNotifier::default(),
            stalls: Condvar::new(),
            control: Arc::new(Control::new(self.record, self.step_delay)),
            clock,
            hot_zone: self.hot_zone,
            old_mkfs: self.old_mkfs,
            slow_calls: Default::default(),
            flush_waits: Default::default(),
            announcements: Default::default(),
            running: Default::default(),
            random: Mutex::new(StdRng::seed_from_u64(self.seed ^ 0x5eed_0f1d_5eed_0f1d)),
        }))
    }
}
