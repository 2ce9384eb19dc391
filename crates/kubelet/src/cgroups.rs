//! The pods' cgroups below one root, with the cgroupfs driver, on v1 and v2.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::pod::resources::{CPU_PERIOD_MICROSECONDS, CgroupLimits, QosClass};

const V2_MOUNT: &str = "/sys/fs/cgroup";
/// The v1 controllers a pod's limits live in; the runtime makes its own directories in the others.
const V1_LIMITED: [&str; 3] = ["cpu", "memory", "pids"];
const V2_CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "cpuset"];

#[derive(Debug, Clone)]
enum Layout {
    /// Every v1 hierarchy: its controllers and where it is mounted.
    V1(Vec<(Vec<String>, PathBuf)>),
    V2(PathBuf),
}

#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    layout: Layout,
    /// Path below the mounts, such as `kubepods` or `a/b/kubepods`.
    root: PathBuf,
    /// What holds `kubepods`, where it was not there before and so is ours to remove.
    made: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error("cannot read the mount table")]
    Mounts(#[source] io::Error),
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Write { path, source }
}

impl Cgroups {
    pub(crate) fn detect(cgroup_root: &str) -> Result<Self, CgroupError> {
        let root = Path::new(cgroup_root.trim_start_matches('/')).join("kubepods");
        if Path::new(V2_MOUNT).join("cgroup.controllers").exists() {
            return Ok(Self::new(Layout::V2(V2_MOUNT.into()), root));
        }
        let table = fs::read_to_string("/proc/self/mountinfo").map_err(CgroupError::Mounts)?;
        Ok(Self::new(Layout::V1(v1_hierarchies(&table)), root))
    }

    fn new(layout: Layout, root: PathBuf) -> Self {
        let mut cgroups = Self { layout, root, made: None };
        let parent = cgroups.root.parent().map(Path::to_owned).filter(|p| !p.as_os_str().is_empty());
        let is_new = |p: &PathBuf| cgroups.mounts().iter().all(|mount| !mount.join(p).exists());
        cgroups.made = parent.filter(is_new);
        cgroups
    }

    /// The name the runtime is given as a sandbox's parent.
    pub(crate) fn parent(&self, qos: QosClass, uid: &str) -> String {
        Path::new("/").join(self.pod_path(qos, uid)).display().to_string()
    }

    pub(crate) fn pod_directory(&self, controller: &str, qos: QosClass, uid: &str) -> Option<PathBuf> {
        Some(self.mount(controller)?.join(self.pod_path(qos, uid)))
    }

    fn mount(&self, controller: &str) -> Option<&Path> {
        match &self.layout {
            Layout::V2(mount) => Some(mount),
            Layout::V1(mounts) => mounts
                .iter()
                .find(|(names, _)| names.iter().any(|n| n == controller))
                .map(|(_, path)| path.as_path()),
        }
    }

    fn pod_path(&self, qos: QosClass, uid: &str) -> PathBuf {
        let class = match qos {
            QosClass::Guaranteed => "",
            QosClass::Burstable => "burstable",
            QosClass::BestEffort => "besteffort",
        };
        self.root.join(class).join(format!("pod{uid}"))
    }

    /// Makes a pod's cgroup, or brings its numbers up to date.
    pub(crate) fn apply(
        &self,
        qos: QosClass,
        uid: &str,
        limits: &CgroupLimits,
        pids: i64,
    ) -> Result<(), CgroupError> {
        let path = self.pod_path(qos, uid);
        match &self.layout {
            Layout::V2(mount) => {
                enable_controllers(mount, &path)?;
                write_v2(&mount.join(&path), limits, pids)
            }
            Layout::V1(mounts) => {
                for (controllers, mount) in mounts {
                    for name in V1_LIMITED.iter().filter(|name| controllers.iter().any(|c| c == *name)) {
                        let directory = mount.join(&path);
                        fs::create_dir_all(&directory).map_err(failed(&directory))?;
                        write_v1(name, &directory, limits, pids)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Removes a pod's cgroup and everything the runtime left below it.
    pub(crate) fn remove(&self, qos: QosClass, uid: &str) -> Result<(), CgroupError> {
        self.remove_path(&self.pod_path(qos, uid))
    }

    /// Removes the whole tree as far as it is empty; pods that still run keep theirs.
    pub(crate) fn remove_root(&self) {
        let ours = [self.root.join("burstable"), self.root.join("besteffort"), self.root.clone()];
        for path in ours.into_iter().chain(self.made.clone()) {
            for mount in self.mounts() {
                // Busy or missing are both fine: what runs stays, what is gone is gone.
                fs::remove_dir(mount.join(&path)).ok();
            }
        }
    }

    fn remove_path(&self, path: &Path) -> Result<(), CgroupError> {
        for mount in self.mounts() {
            let directory = mount.join(path);
            remove_tree(&directory).map_err(failed(&directory))?;
        }
        Ok(())
    }

    fn mounts(&self) -> Vec<PathBuf> {
        match &self.layout {
            Layout::V2(mount) => vec![mount.clone()],
            Layout::V1(mounts) => mounts.iter().map(|(_, mount)| mount.clone()).collect(),
        }
    }
}

fn v1_hierarchies(table: &str) -> Vec<(Vec<String>, PathBuf)> {
    let mut found: Vec<(Vec<String>, PathBuf)> = Vec::new();
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut right = right.split(' ');
        let kind = right.next();
        if !matches!(kind, Some("cgroup" | "cgroup2")) {
            continue;
        }
        let Some(point) = left.split(' ').nth(4) else { continue };
        let options = right.nth(1).unwrap_or_default();
        let controllers: Vec<String> = options.split(',').map(str::to_owned).collect();
        let point = PathBuf::from(point);
        // The machine may show one hierarchy at several places; the first counts.
        if !found
            .iter()
            .any(|(known, path)| *path == point || (kind == Some("cgroup") && *known == controllers))
        {
            found.push((controllers, point));
        }
    }
    found
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(path, value).map_err(failed(path))
}

fn write_v1(controller: &str, directory: &Path, limits: &CgroupLimits, pids: i64) -> Result<(), CgroupError> {
    match controller {
        "cpu" => {
            write(&directory.join("cpu.shares"), &limits.cpu_shares.to_string())?;
            if directory.join("cpu.cfs_quota_us").exists() {
                write(&directory.join("cpu.cfs_period_us"), &CPU_PERIOD_MICROSECONDS.to_string())?;
                write(&directory.join("cpu.cfs_quota_us"), &limits.cpu_quota.unwrap_or(-1).to_string())?;
            }
            Ok(())
        }
        "memory" => {
            write(&directory.join("memory.limit_in_bytes"), &limits.memory_bytes.unwrap_or(-1).to_string())
        }
        _ if pids > 0 => write(&directory.join("pids.max"), &pids.to_string()),
        _ => Ok(()),
    }
}

fn write_v2(directory: &Path, limits: &CgroupLimits, pids: i64) -> Result<(), CgroupError> {
    let or_max = |value: Option<i64>| value.map_or_else(|| "max".to_owned(), |v| v.to_string());
    if directory.join("cpu.max").exists() {
        let max = format!("{} {CPU_PERIOD_MICROSECONDS}", or_max(limits.cpu_quota));
        write(&directory.join("cpu.max"), &max)?;
        write(&directory.join("cpu.weight"), &weight(limits.cpu_shares).to_string())?;
    }
    if directory.join("memory.max").exists() {
        write(&directory.join("memory.max"), &or_max(limits.memory_bytes))?;
    }
    if pids > 0 && directory.join("pids.max").exists() {
        write(&directory.join("pids.max"), &pids.to_string())?;
    }
    Ok(())
}

/// v1 shares (2 to 262144) as a v2 weight (1 to 10000).
fn weight(shares: u64) -> u64 {
    1 + (shares.saturating_sub(2) * 9999) / 262_142
}

/// Makes the directories one by one, passing each the controllers of the one above.
fn enable_controllers(mount: &Path, path: &Path) -> Result<(), CgroupError> {
    let mut directory = mount.to_owned();
    for part in path.components() {
        let available = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
        let control = directory.join("cgroup.subtree_control");
        for name in V2_CONTROLLERS.iter().filter(|n| available.split_whitespace().any(|a| a == **n)) {
            write(&control, &format!("+{name}"))?;
        }
        directory.push(part);
        if !directory.exists() {
            fs::create_dir(&directory).map_err(failed(&directory))?;
        }
    }
    Ok(())
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
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_read_from_the_mount_table() {
        let table = "\
            30 29 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
            31 29 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            32 29 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            33 29 0:29 / /tmp rw - tmpfs tmpfs rw\n";
        let found = v1_hierarchies(table);
        assert_eq!(found.len(), 3);
        assert!(found[0].0.iter().any(|c| c == "cpuacct"));
    }

    #[test]
    fn shares_become_weights() {
        for (shares, expected) in [(2, 1), (1024, 39), (262_144, 10_000)] {
            assert_eq!(weight(shares), expected);
        }
    }

    #[test]
    fn a_pod_cgroup_holds_its_limits_and_goes_again() {
        let root = format!("/cot-kubelet-{}", std::process::id());
        let cgroups = Cgroups::detect(&root).unwrap();
        let limits = CgroupLimits { cpu_shares: 512, cpu_quota: Some(50_000), memory_bytes: Some(64 << 20) };
        let applied = cgroups.apply(QosClass::Burstable, "u", &limits, 100);
        let memory = cgroups.pod_directory("memory", QosClass::Burstable, "u").unwrap();
        let v2 = matches!(cgroups.layout, Layout::V2(_));
        let file = memory.join(if v2 { "memory.max" } else { "memory.limit_in_bytes" });
        let found = fs::read_to_string(file);
        cgroups.remove(QosClass::Burstable, "u").unwrap();
        cgroups.remove_root();
        for mount in cgroups.mounts() {
            remove_tree(&mount.join(root.trim_start_matches('/'))).unwrap();
        }
        applied.unwrap();
        assert_eq!(found.unwrap().trim(), (64 << 20).to_string());
        assert!(!memory.exists());
    }
}
