//! From what CRI asks for to the OCI configuration of a container. Pure: every fact of the machine is an input.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cri::v1::{
    ContainerConfig, IdMapping, LinuxContainerResources, LinuxContainerSecurityContext, Mount,
    MountPropagation, NamespaceMode, NamespaceOption,
};
use serde_json::{Value, json};

use crate::cgroup::cpu_weight;
use crate::error::RuntimeError;
use crate::image::ImageConfig;
use crate::user::User;

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a container may do unless told otherwise.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Every capability, in the kernel's order.
pub(crate) const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What this machine, or the container it is itself in, can give.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// The capabilities this process can pass on.
    pub(crate) capabilities: BTreeSet<String>,
    /// The lowest adjustment this process can set.
    pub(crate) min_oom_score_adj: i64,
    pub(crate) unified_cgroups: bool,
    /// Swap is accounted, so that its limit can be set.
    pub(crate) swap_accounting: bool,
    /// Limits of huge pages can be set.
    pub(crate) hugetlb: bool,
}

/// A device of the node, as its files say.
#[derive(Clone, Debug)]
pub(crate) struct DeviceNode {
    pub(crate) path: String,
    pub(crate) block: bool,
    pub(crate) major: u64,
    pub(crate) minor: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) access: String,
}

/// Everything a container's configuration is made of.
#[derive(Debug)]
pub(crate) struct SpecInput<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) config: &'a ContainerConfig,
    pub(crate) image: &'a ImageConfig,
    pub(crate) user: &'a User,
    /// The process whose namespaces are the pod's.
    pub(crate) holder: i32,
    /// The first process of the container whose processes this one is to see.
    pub(crate) target: Option<i32>,
    pub(crate) hostname: &'a str,
    pub(crate) rootfs: &'a Path,
    pub(crate) cgroup: &'a str,
    /// Mounts the runtime itself adds where the container has none of the same name: destination and source.
    pub(crate) files: &'a [(&'static str, PathBuf)],
    pub(crate) shm: &'a Path,
    /// Sources of the mounts that are images.
    pub(crate) image_mounts: &'a BTreeMap<String, PathBuf>,
    pub(crate) seccomp: Option<Value>,
    pub(crate) apparmor: Option<String>,
    pub(crate) devices: &'a [DeviceNode],
}

impl SpecInput<'_> {
    fn security(&self) -> LinuxContainerSecurityContext {
        self.config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
    }
}

/// The whole configuration.
pub(crate) fn container_spec(input: &SpecInput<'_>) -> Result<Value, RuntimeError> {
    let security = input.security();
    let options = security.namespace_options.clone().unwrap_or_default();
    let linux = linux(input, &security, &options)?;
    Ok(json!({
        "ociVersion": "1.2.0",
        "process": process(input, &security)?,
        "root": {"path": input.rootfs, "readonly": security.readonly_rootfs},
        "mounts": mounts(input, &security, &options)?,
        "annotations": input.config.annotations.iter().collect::<BTreeMap<_, _>>(),
        "linux": linux,
    }))
}

/// The command: what the container says goes before what the image says.
pub(crate) fn command(config: &ContainerConfig, image: &ImageConfig) -> Result<Vec<String>, RuntimeError> {
    let (entrypoint, cmd) = (&image.config.entrypoint, &image.config.cmd);
    let args: Vec<String> = match (config.command.is_empty(), config.args.is_empty()) {
        (true, true) => entrypoint.iter().chain(cmd).cloned().collect(),
        (true, false) => entrypoint.iter().chain(&config.args).cloned().collect(),
        (false, _) => config.command.iter().chain(&config.args).cloned().collect(),
    };
    if args.is_empty() {
        return Err(RuntimeError::invalid("no command specified"));
    }
    Ok(args)
}

fn environment(input: &SpecInput<'_>) -> Vec<String> {
    let mut env: Vec<String> = Vec::new();
    let mut put = |entry: String| {
        let key = format!("{}=", entry.split('=').next().unwrap_or_default());
        env.retain(|other| !other.starts_with(&key));
        env.push(entry);
    };
    put(DEFAULT_PATH.to_owned());
    if input.config.tty {
        put("TERM=xterm".to_owned());
    }
    put(format!("HOSTNAME={}", input.hostname));
    if let Some(home) = &input.user.home {
        put(format!("HOME={home}"));
    }
    for entry in &input.image.config.env {
        put(if entry.contains('=') { entry.clone() } else { format!("{entry}=") });
    }
    for entry in &input.config.envs {
        put(format!("{}={}", entry.key, entry.value));
    }
    env
}

fn process(input: &SpecInput<'_>, security: &LinuxContainerSecurityContext) -> Result<Value, RuntimeError> {
    let config = input.config;
    let capabilities = capabilities(input.machine, security)?;
    let ambient = ambient_capabilities(security, &capabilities);
    let working_dir = [&config.working_dir, &input.image.config.working_dir];
    let cwd = working_dir.into_iter().find(|dir| !dir.is_empty()).map_or("/", String::as_str);
    let mut process = json!({
        "terminal": config.tty,
        "user": {
            "uid": input.user.uid,
            "gid": input.user.gid,
            "additionalGids": input.user.groups,
            "umask": 0o022,
        },
        "args": command(config, input.image)?,
        "env": environment(input),
        "cwd": cwd,
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
            "inheritable": ambient,
            "ambient": ambient,
        },
        "rlimits": [],
    });
    // Absent means that the filter is loaded while that is still permitted; `false` would not.
    if security.no_new_privs {
        process["noNewPrivileges"] = true.into();
    }
    if let Some(profile) = &input.apparmor {
        process["apparmorProfile"] = profile.clone().into();
    }
    if let Some(resources) = config.linux.as_ref().and_then(|linux| linux.resources.as_ref()) {
        let adjustment = resources.oom_score_adj.clamp(input.machine.min_oom_score_adj, 1000);
        process["oomScoreAdj"] = adjustment.into();
    }
    Ok(process)
}

/// The capabilities a container asks for, as far as they are ours to give.
pub(crate) fn capabilities(
    machine: &Machine,
    security: &LinuxContainerSecurityContext,
) -> Result<BTreeSet<String>, RuntimeError> {
    if security.privileged {
        return Ok(machine.capabilities.clone());
    }
    let change = security.capabilities.clone().unwrap_or_default();
    let normal = |name: &String| -> Result<String, RuntimeError> {
        let upper = name.to_uppercase();
        let full = if upper.starts_with("CAP_") || upper == "ALL" { upper } else { format!("CAP_{upper}") };
        if full == "ALL" || CAPABILITIES.contains(&full.as_str()) {
            return Ok(full);
        }
        Err(RuntimeError::invalid(format!("unknown capability {name:?}")))
    };
    let add = change.add_capabilities.iter().map(normal).collect::<Result<BTreeSet<_>, _>>()?;
    let ambient = change.add_ambient_capabilities.iter().map(normal).collect::<Result<BTreeSet<_>, _>>()?;
    let drop = change.drop_capabilities.iter().map(normal).collect::<Result<BTreeSet<_>, _>>()?;
    let all = || CAPABILITIES.iter().map(|name| (*name).to_owned());
    let mut set: BTreeSet<String> = DEFAULT_CAPABILITIES.iter().map(|name| (*name).to_owned()).collect();
    if add.contains("ALL") {
        set.extend(all());
    }
    if drop.contains("ALL") {
        set.clear();
    }
    set.extend(add.iter().chain(&ambient).filter(|name| *name != "ALL").cloned());
    // The kernel's v2 groups leave devices to whoever can make their files.
    if machine.unified_cgroups {
        set.remove("CAP_MKNOD");
    }
    set.retain(|name| !drop.contains(name));
    Ok(set.intersection(&machine.capabilities).cloned().collect())
}

fn ambient_capabilities(security: &LinuxContainerSecurityContext, have: &BTreeSet<String>) -> Vec<String> {
    let wanted = security.capabilities.iter().flat_map(|change| &change.add_ambient_capabilities);
    let full = |name: &String| {
        let upper = name.to_uppercase();
        if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
    };
    wanted.map(full).filter(|name| have.contains(name)).collect()
}

fn linux(
    input: &SpecInput<'_>,
    security: &LinuxContainerSecurityContext,
    options: &NamespaceOption,
) -> Result<Value, RuntimeError> {
    let mut linux = json!({
        "cgroupsPath": input.cgroup,
        "namespaces": namespaces(input, options)?,
        "resources": resources(input, security),
        "devices": input.devices.iter().map(device).collect::<Vec<_>>(),
    });
    if !security.privileged {
        linux["maskedPaths"] = json!(security.masked_paths);
        linux["readonlyPaths"] = json!(security.readonly_paths);
    }
    if let Some(profile) = &input.seccomp {
        linux["seccomp"] = profile.clone();
    }
    let propagations = input.config.mounts.iter().map(Mount::propagation);
    let strongest = propagations.max_by_key(|propagation| *propagation as i32);
    linux["rootfsPropagation"] = match strongest {
        Some(MountPropagation::PropagationBidirectional) => "shared".into(),
        Some(MountPropagation::PropagationHostToContainer) => "slave".into(),
        _ => "private".into(),
    };
    Ok(linux)
}

fn namespaces(input: &SpecInput<'_>, options: &NamespaceOption) -> Result<Vec<Value>, RuntimeError> {
    let shared =
        |name: &str, file: &str, pid: i32| json!({"type": name, "path": format!("/proc/{pid}/ns/{file}")});
    let mut list = vec![
        json!({"type": "mount"}),
        shared("network", "net", input.holder),
        shared("ipc", "ipc", input.holder),
        shared("uts", "uts", input.holder),
    ];
    if has_user_namespace(options) {
        list.push(shared("user", "user", input.holder));
    }
    match options.pid() {
        NamespaceMode::Pod => list.push(shared("pid", "pid", input.holder)),
        NamespaceMode::Container => list.push(json!({"type": "pid"})),
        NamespaceMode::Node => {}
        NamespaceMode::Target => {
            let target = input.target.ok_or_else(|| RuntimeError::Precondition {
                message: format!("target container {:?} is not running", options.target_id),
            })?;
            list.push(shared("pid", "pid", target));
        }
    }
    if input.machine.unified_cgroups && !is_privileged(input) {
        list.push(json!({"type": "cgroup"}));
    }
    Ok(list)
}

fn is_privileged(input: &SpecInput<'_>) -> bool {
    input.security().privileged
}

/// Whether a pod has user ids of its own.
pub(crate) fn has_user_namespace(options: &NamespaceOption) -> bool {
    let wanted = options.userns_options.as_ref();
    wanted.is_some_and(|users| users.mode() == NamespaceMode::Pod && !users.uids.is_empty())
}

fn device(node: &DeviceNode) -> Value {
    json!({
        "path": node.path,
        "type": if node.block { "b" } else { "c" },
        "major": node.major,
        "minor": node.minor,
        "fileMode": node.mode & 0o777,
        "uid": node.uid,
        "gid": node.gid,
    })
}

fn resources(input: &SpecInput<'_>, security: &LinuxContainerSecurityContext) -> Value {
    let wanted = input.config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
    let mut rules = vec![json!({"allow": security.privileged, "access": "rwm"})];
    if !security.privileged {
        rules.extend(input.devices.iter().map(|node| {
            json!({
                "allow": true,
                "type": if node.block { "b" } else { "c" },
                "major": node.major,
                "minor": node.minor,
                "access": node.access,
            })
        }));
    }
    let mut resources = limits(&wanted, input.machine);
    resources["devices"] = rules.into();
    resources
}

fn limits(wanted: &LinuxContainerResources, machine: &Machine) -> Value {
    let mut cpu = serde_json::Map::new();
    let mut memory = serde_json::Map::new();
    let mut put = |name: &str, value: i64| {
        if value != 0 {
            cpu.insert(name.to_owned(), value.into());
        }
    };
    put("shares", wanted.cpu_shares);
    put("quota", wanted.cpu_quota);
    put("period", wanted.cpu_period);
    for (name, value) in [("cpus", &wanted.cpuset_cpus), ("mems", &wanted.cpuset_mems)] {
        if !value.is_empty() {
            cpu.insert(name.to_owned(), value.clone().into());
        }
    }
    if wanted.memory_limit_in_bytes > 0 {
        memory.insert("limit".to_owned(), wanted.memory_limit_in_bytes.into());
        // Without a word on swap a limited container gets none, where that can be said.
        let swap = match wanted.memory_swap_limit_in_bytes {
            0 => wanted.memory_limit_in_bytes,
            swap => swap,
        };
        if machine.swap_accounting {
            memory.insert("swap".to_owned(), swap.into());
        }
    }
    let mut out = json!({"cpu": cpu, "memory": memory});
    if machine.hugetlb {
        let pages = wanted.hugepage_limits.iter();
        out["hugepageLimits"] =
            pages.map(|limit| json!({"pageSize": limit.page_size, "limit": limit.limit})).collect();
    }
    if machine.unified_cgroups {
        let mut unified: BTreeMap<&str, String> =
            wanted.unified.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        if wanted.cpu_shares > 0 {
            unified.entry("cpu.weight").or_insert_with(|| cpu_weight(wanted.cpu_shares).to_string());
        }
        out["unified"] = json!(unified);
    }
    out
}

fn mounts(
    input: &SpecInput<'_>,
    security: &LinuxContainerSecurityContext,
    options: &NamespaceOption,
) -> Result<Vec<Value>, RuntimeError> {
    let privileged = security.privileged;
    let mut list = system_mounts(input, privileged, options);
    let taken: BTreeSet<PathBuf> =
        input.config.mounts.iter().map(|mount| clean(&mount.container_path)).collect();
    list.retain(|mount| {
        let destination = mount["destination"].as_str().unwrap_or_default();
        !taken.contains(Path::new(destination))
    });
    for (destination, source) in input.files {
        if !taken.contains(Path::new(destination)) {
            let mode = if security.readonly_rootfs { "ro" } else { "rw" };
            list.push(bind(destination, source, &["rbind", "rprivate", mode]));
        }
    }
    // A mount below another has to come after it.
    let mut wanted: Vec<&Mount> = input.config.mounts.iter().collect();
    wanted.sort_by_key(|mount| clean(&mount.container_path).components().count());
    for mount in wanted {
        list.push(volume(mount, input)?);
    }
    Ok(list)
}

fn system_mounts(input: &SpecInput<'_>, privileged: bool, options: &NamespaceOption) -> Vec<Value> {
    let special = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let access = if privileged { "rw" } else { "ro" };
    let foreign_network = has_user_namespace(options) && options.network() == NamespaceMode::Node;
    let mut list = vec![
        special("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        special("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        special(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        special("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ];
    if foreign_network {
        // The node's sysfs can only be shown whole to users that are not the node's.
        list.push(bind("/sys", Path::new("/sys"), &["rbind", "nosuid", "noexec", "nodev", "ro"]));
    } else {
        list.push(special("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]));
        list.push(special(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        ));
    }
    list.push(bind("/dev/shm", input.shm, &["rbind", "nosuid", "noexec", "nodev", "rprivate"]));
    list
}

fn bind(destination: &str, source: &Path, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

fn volume(mount: &Mount, input: &SpecInput<'_>) -> Result<Value, RuntimeError> {
    let source = match input.image_mounts.get(&mount.container_path) {
        Some(path) => path.as_path(),
        None => Path::new(&mount.host_path),
    };
    if mount.container_path.is_empty() || source.as_os_str().is_empty() {
        return Err(RuntimeError::invalid("a mount needs a source and a destination"));
    }
    let propagation = match mount.propagation() {
        MountPropagation::PropagationPrivate => "rprivate",
        MountPropagation::PropagationHostToContainer => "rslave",
        MountPropagation::PropagationBidirectional => "rshared",
    };
    if mount.recursive_read_only {
        if !mount.readonly {
            return Err(RuntimeError::invalid("recursive_read_only requires readonly"));
        }
        if mount.propagation() != MountPropagation::PropagationPrivate {
            return Err(RuntimeError::invalid("recursive_read_only requires private propagation"));
        }
    }
    let image = input.image_mounts.contains_key(&mount.container_path);
    let access = match (mount.recursive_read_only, mount.readonly || image) {
        (true, _) => "rro",
        (false, true) => "ro",
        (false, false) => "rw",
    };
    let mut options = vec!["rbind", propagation, access];
    let mapped = !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty();
    if mapped {
        options.push("ridmap");
    }
    let destination = clean(&mount.container_path);
    let mut out = bind(&destination.to_string_lossy(), source, &options);
    if mapped {
        out["uidMappings"] = mappings(&mount.uid_mappings);
        out["gidMappings"] = mappings(&mount.gid_mappings);
    }
    Ok(out)
}

fn mappings(list: &[IdMapping]) -> Value {
    list.iter()
        .map(|map| json!({"containerID": map.container_id, "hostID": map.host_id, "size": map.length}))
        .collect()
}

/// An absolute path without `.` and `..`.
fn clean(path: &str) -> PathBuf {
    use std::path::Component;
    let mut out = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests;
