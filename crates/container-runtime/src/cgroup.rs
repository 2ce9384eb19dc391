//! Control groups, v1 and v2: where a container's are, what they count, and how limits change.
//!
//! Making the groups of a new container is libcontainer's work; it joins the same directories as this module names.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cri::v1::LinuxContainerResources;

use crate::error::RuntimeError;
use crate::supervisor::protocol::CgroupFiles;

/// The v1 controllers libcontainer joins. The first one's group holds every process in any setup.
const V1_CONTROLLERS: [&str; 12] = [
    "pids",
    "devices",
    "memory",
    "cpu",
    "cpuacct",
    "cpuset",
    "freezer",
    "hugetlb",
    "blkio",
    "net_cls",
    "net_prio",
    "perf_event",
];

/// The hierarchies of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hierarchies {
    /// Mount points by controller.
    V1(BTreeMap<String, PathBuf>),
    /// The one mount point.
    V2(PathBuf),
}

/// What the groups of a container or a pod count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) cpu_nanoseconds: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) working_set_bytes: u64,
    pub(crate) rss_bytes: u64,
    pub(crate) memory_limit_bytes: Option<u64>,
    pub(crate) page_faults: u64,
    pub(crate) major_page_faults: u64,
    pub(crate) swap_bytes: u64,
    pub(crate) processes: u64,
}

impl Hierarchies {
    /// Finds what is mounted. A machine with v1 controllers is v1, whatever else is there.
    pub(crate) fn detect() -> Result<Self, RuntimeError> {
        let path = "/proc/self/mounts";
        let mounts = fs::read_to_string(path).map_err(RuntimeError::file("read", path))?;
        Self::parse(&mounts).ok_or_else(|| RuntimeError::Precondition {
            message: "no control groups are mounted on this machine".to_owned(),
        })
    }

    fn parse(mounts: &str) -> Option<Self> {
        let mut controllers = BTreeMap::new();
        let mut unified = None;
        for line in mounts.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let [_, point, kind, options, ..] = fields.as_slice() else { continue };
            match *kind {
                "cgroup" => {
                    for controller in options.split(',').filter(|option| V1_CONTROLLERS.contains(option)) {
                        controllers.entry(controller.to_owned()).or_insert_with(|| PathBuf::from(point));
                    }
                }
                "cgroup2" if unified.is_none() => unified = Some(PathBuf::from(point)),
                _ => {}
            }
        }
        if controllers.is_empty() { unified.map(Self::V2) } else { Some(Self::V1(controllers)) }
    }

    /// What a container of the group `path` needs to know.
    pub(crate) fn files(&self, path: &str) -> CgroupFiles {
        let directories = self.directories(path);
        let oom_counter = match self {
            Self::V1(_) => self.file(path, "memory", "memory.oom_control"),
            Self::V2(_) => self.file(path, "memory", "memory.events"),
        };
        CgroupFiles { directories, oom_counter }
    }

    /// Every directory of the group `path`, one a hierarchy.
    pub(crate) fn directories(&self, path: &str) -> Vec<PathBuf> {
        let path = path.trim_start_matches('/');
        match self {
            Self::V2(root) => vec![root.join(path)],
            Self::V1(controllers) => {
                let mut found: Vec<PathBuf> = Vec::new();
                let mounted = V1_CONTROLLERS.iter().filter_map(|controller| controllers.get(*controller));
                for point in mounted.map(|point| point.join(path)) {
                    // Controllers may share a mount, or be mounted side by side under a link.
                    if !found.contains(&point) {
                        found.push(point);
                    }
                }
                found
            }
        }
    }

    fn file(&self, path: &str, controller: &str, name: &str) -> Option<PathBuf> {
        let root = match self {
            Self::V1(controllers) => controllers.get(controller)?,
            Self::V2(root) => root,
        };
        Some(root.join(path.trim_start_matches('/')).join(name))
    }

    fn read(&self, path: &str, controller: &str, name: &str) -> Option<String> {
        fs::read_to_string(self.file(path, controller, name)?).ok()
    }

    fn read_number(&self, path: &str, controller: &str, name: &str) -> Option<u64> {
        self.read(path, controller, name)?.trim().parse().ok()
    }

    /// What the group `path` counts; nothing where it is gone.
    pub(crate) fn usage(&self, path: &str) -> Option<Usage> {
        match self {
            Self::V1(_) => self.usage_v1(path),
            Self::V2(_) => self.usage_v2(path),
        }
    }

    fn usage_v1(&self, path: &str) -> Option<Usage> {
        let memory = self.read(path, "memory", "memory.stat").unwrap_or_default();
        let memory_bytes = self.read_number(path, "memory", "memory.usage_in_bytes").unwrap_or(0);
        let with_swap = self.read_number(path, "memory", "memory.memsw.usage_in_bytes");
        let limit = self.read_number(path, "memory", "memory.limit_in_bytes");
        Some(Usage {
            cpu_nanoseconds: self.read_number(path, "cpuacct", "cpuacct.usage")?,
            memory_bytes,
            working_set_bytes: memory_bytes.saturating_sub(stat(&memory, "total_inactive_file")),
            rss_bytes: stat(&memory, "total_rss"),
            // "No limit" is the largest page-aligned number.
            memory_limit_bytes: limit.filter(|&limit| limit < 1 << 62),
            page_faults: stat(&memory, "total_pgfault"),
            major_page_faults: stat(&memory, "total_pgmajfault"),
            swap_bytes: with_swap.map_or(0, |both| both.saturating_sub(memory_bytes)),
            processes: self.read_number(path, "pids", "pids.current").unwrap_or(0),
        })
    }

    fn usage_v2(&self, path: &str) -> Option<Usage> {
        let cpu = self.read(path, "cpu", "cpu.stat")?;
        let memory = self.read(path, "memory", "memory.stat").unwrap_or_default();
        let memory_bytes = self.read_number(path, "memory", "memory.current").unwrap_or(0);
        Some(Usage {
            cpu_nanoseconds: stat(&cpu, "usage_usec").saturating_mul(1000),
            memory_bytes,
            working_set_bytes: memory_bytes.saturating_sub(stat(&memory, "inactive_file")),
            rss_bytes: stat(&memory, "anon"),
            memory_limit_bytes: self.read_number(path, "memory", "memory.max"),
            page_faults: stat(&memory, "pgfault"),
            major_page_faults: stat(&memory, "pgmajfault"),
            swap_bytes: self.read_number(path, "memory", "memory.swap.current").unwrap_or(0),
            processes: self.read_number(path, "pids", "pids.current").unwrap_or(0),
        })
    }

    /// Changes the limits of a running container.
    pub(crate) fn update(&self, path: &str, resources: &LinuxContainerResources) -> Result<(), RuntimeError> {
        let swap = self.read_number(path, "memory", "memory.memsw.limit_in_bytes");
        for (controller, name, value) in self.plan_update(resources, swap) {
            let Some(file) = self.file(path, controller, &name) else {
                return Err(RuntimeError::Precondition {
                    message: format!("the {controller} controller is not there"),
                });
            };
            fs::write(&file, &value).map_err(RuntimeError::file("write", file))?;
        }
        Ok(())
    }

    fn plan_update(
        &self,
        resources: &LinuxContainerResources,
        swap: Option<u64>,
    ) -> Vec<(&'static str, String, String)> {
        match self {
            Self::V1(_) => plan_v1(resources, swap),
            Self::V2(_) => plan_v2(resources),
        }
    }

    /// Kills every process of the group `path`, whose last name has to be `id`: never anybody else's.
    pub(crate) fn kill(&self, path: &str, id: &str) {
        if !path.ends_with(&format!("/{id}")) || id.is_empty() {
            return;
        }
        if let Some(directory) = self.directories(path).first() {
            kill_all(directory);
        }
    }

    /// Removes the group `path` with the groups in it. What is still busy stays, and is an error.
    pub(crate) fn remove(&self, path: &str) -> Result<(), RuntimeError> {
        for directory in self.directories(path) {
            remove_tree(&directory).map_err(RuntimeError::file("remove", directory))?;
        }
        Ok(())
    }
}

/// Kills every process of one group.
pub(crate) fn kill_all(directory: &Path) {
    // Newer kernels do it in one stroke.
    if fs::write(directory.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let Ok(pids) = fs::read_to_string(directory.join("cgroup.procs")) else { return };
    for pid in pids.lines().filter_map(|line| line.parse().ok()).filter(|&pid: &i32| pid > 1) {
        if let Err(error) =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
            && error != nix::Error::ESRCH
        {
            tracing::debug!(pid, %error, "a process cannot be killed");
        }
    }
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn stat(text: &str, key: &str) -> u64 {
    let mut values = text.lines().filter_map(|line| line.split_once(' '));
    values.find(|(name, _)| *name == key).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

/// `swap` is the present limit of memory and swap together, which may never be the lower one.
fn plan_v1(resources: &LinuxContainerResources, swap: Option<u64>) -> Vec<(&'static str, String, String)> {
    let mut plan = Vec::new();
    let mut put = |controller, name: &str, value: String| plan.push((controller, name.to_owned(), value));
    if resources.cpu_shares > 0 {
        put("cpu", "cpu.shares", resources.cpu_shares.to_string());
    }
    if resources.cpu_period > 0 {
        put("cpu", "cpu.cfs_period_us", resources.cpu_period.to_string());
    }
    if resources.cpu_quota != 0 {
        put("cpu", "cpu.cfs_quota_us", resources.cpu_quota.to_string());
    }
    if let Ok(limit @ 1..) = u64::try_from(resources.memory_limit_in_bytes) {
        let both = match resources.memory_swap_limit_in_bytes {
            0 => resources.memory_limit_in_bytes,
            both => both,
        };
        let memory = ("memory.limit_in_bytes", resources.memory_limit_in_bytes.to_string());
        let both = ("memory.memsw.limit_in_bytes", both.to_string());
        let order = match swap {
            None => vec![memory],
            Some(now) if now < limit => vec![both, memory],
            Some(_) => vec![memory, both],
        };
        for (name, value) in order {
            put("memory", name, value);
        }
    }
    if !resources.cpuset_cpus.is_empty() {
        put("cpuset", "cpuset.cpus", resources.cpuset_cpus.clone());
    }
    if !resources.cpuset_mems.is_empty() {
        put("cpuset", "cpuset.mems", resources.cpuset_mems.clone());
    }
    for limit in &resources.hugepage_limits {
        put("hugetlb", &format!("hugetlb.{}.limit_in_bytes", limit.page_size), limit.limit.to_string());
    }
    plan
}

fn plan_v2(resources: &LinuxContainerResources) -> Vec<(&'static str, String, String)> {
    let mut plan = Vec::new();
    let mut put = |controller, name: &str, value: String| plan.push((controller, name.to_owned(), value));
    if resources.cpu_shares > 0 {
        put("cpu", "cpu.weight", cpu_weight(resources.cpu_shares).to_string());
    }
    if resources.cpu_quota != 0 || resources.cpu_period > 0 {
        let quota = match resources.cpu_quota {
            quota if quota > 0 => quota.to_string(),
            _ => "max".to_owned(),
        };
        let period = if resources.cpu_period > 0 { resources.cpu_period } else { 100_000 };
        put("cpu", "cpu.max", format!("{quota} {period}"));
    }
    if resources.memory_limit_in_bytes > 0 {
        put("memory", "memory.max", resources.memory_limit_in_bytes.to_string());
    }
    if !resources.cpuset_cpus.is_empty() {
        put("cpuset", "cpuset.cpus", resources.cpuset_cpus.clone());
    }
    if !resources.cpuset_mems.is_empty() {
        put("cpuset", "cpuset.mems", resources.cpuset_mems.clone());
    }
    for limit in &resources.hugepage_limits {
        put("hugetlb", &format!("hugetlb.{}.max", limit.page_size), limit.limit.to_string());
    }
    for (name, value) in &resources.unified {
        if !name.contains('/') {
            put("unified", name, value.clone());
        }
    }
    plan
}

/// CPU shares (2 to 262144) as a v2 weight (1 to 10000), by the line runc draws.
pub(crate) fn cpu_weight(shares: i64) -> i64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0
cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0
";

    #[test]
    fn a_machine_with_v1_controllers_is_v1() {
        let hierarchies = Hierarchies::parse(HYBRID).unwrap();
        let directories = hierarchies.directories("/kubepods/pod1/c1");
        let expected =
            ["pids", "memory", "cpu,cpuacct"].map(|c| format!("/sys/fs/cgroup/{c}/kubepods/pod1/c1"));
        assert_eq!(directories, expected.map(PathBuf::from));
        assert_eq!(
            Hierarchies::parse("x /sys/fs/cgroup cgroup2 rw 0 0"),
            Some(Hierarchies::V2("/sys/fs/cgroup".into()))
        );
        assert_eq!(Hierarchies::parse(""), None);
    }

    #[test]
    fn limits_become_files_of_either_version() {
        let resources = LinuxContainerResources {
            cpu_shares: 1024,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 1 << 20,
            ..LinuxContainerResources::default()
        };
        let show = |plan: Vec<(&str, String, String)>| -> Vec<String> {
            plan.into_iter().map(|(_, name, value)| format!("{name}={value}")).collect()
        };
        assert_eq!(
            show(plan_v1(&resources, None)),
            [
                "cpu.shares=1024",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "memory.limit_in_bytes=1048576"
            ]
        );
        assert_eq!(
            show(plan_v2(&resources)),
            ["cpu.weight=39", "cpu.max=50000 100000", "memory.max=1048576"]
        );
    }

    #[test]
    fn weights_cover_the_range_of_shares() {
        assert_eq!([2, 1024, 262_144].map(cpu_weight), [1, 39, 10_000]);
    }
}
