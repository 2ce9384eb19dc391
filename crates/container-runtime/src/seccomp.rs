//! System call filters: the runtime's own default, and profiles in the form Docker and Kubernetes users write.
//!
//! The default allows what programs need and leaves out what administers the machine, unless the container has the
//! capability for that, as well as what has had more holes than users (`io_uring`, `userfaultfd`, kernel keys).

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::RuntimeError;

/// Flags of `clone` that make a namespace.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// Address families a container may not open a socket of: virtual machine sockets reach past its network.
const AF_VSOCK: u64 = 40;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// System calls every container may make.
const ALWAYS: &str = "
_llseek _newselect accept accept4 access alarm arch_prctl arm_fadvise64_64 arm_sync_file_range bind
breakpoint brk cacheflush cachestat capget capset chdir chmod chown chown32 clock_getres
clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close
close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl
epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit exit_group faccessat
faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32
fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat
fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64
futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents
getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer
getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid
getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32
getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel
io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get
ioprio_set ipc kcmp kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown
lchown32 lgetxattr link linkat listen listmount listxattr listxattrat llistxattr lremovexattr lseek
lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir
mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 modify_ldt mprotect mq_getsetattr mq_notify
mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap
mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep
newfstatat nice olduname oldwait4 open openat openat2 pause pidfd_getfd pidfd_open pidfd_send_signal
pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2
prlimit64 process_madvise process_mrelease process_vm_readv process_vm_writev pselect6
pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readdir readlink readlinkat readv
recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename
renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask
rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo
sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity
sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop
semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list
set_thread_area set_tid_address set_tls setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32
setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32
setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr
setxattrat sgetmask shmat shmctl shmdt shmget shutdown sigaction sigaltstack signal signalfd
signalfd4 sigpending sigprocmask sigreturn sigsuspend socketcall socketpair splice ssetmask stat
stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range sync_file_range2
syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64
timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink
unlinkat utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev";

/// System calls that come with a capability.
const WITH_CAPABILITY: [(&str, &str); 12] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick fanotify_mark lookup_dcookie mount mount_setattr \
         move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 \
         unshare pivot_root keyctl add_key request_key",
    ),
    ("CAP_SYS_BOOT", "reboot kexec_load kexec_file_load"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    (
        "CAP_SYS_TIME",
        "settimeofday stime clock_settime clock_settime64 clock_adjtime clock_adjtime64 adjtimex",
    ),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node migrate_pages move_pages"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
];

/// The default profile for a container with these capabilities, in the form of an OCI configuration.
pub(crate) fn default_profile(capabilities: &BTreeSet<String>) -> Value {
    let mut names: BTreeSet<&str> = ALWAYS.split_whitespace().collect();
    for (capability, calls) in WITH_CAPABILITY {
        if capabilities.contains(capability) {
            names.extend(calls.split_whitespace());
        }
    }
    let mut rules = vec![
        json!({"names": names, "action": "SCMP_ACT_ALLOW"}),
        json!({
            "names": ["socket"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": AF_VSOCK, "op": "SCMP_CMP_NE"}],
        }),
    ];
    for persona in [0_u64, 8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        rules.push(json!({
            "names": ["personality"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": persona, "op": "SCMP_CMP_EQ"}],
        }));
    }
    if !capabilities.contains("CAP_SYS_ADMIN") {
        rules.push(json!({
            "names": ["clone"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": CLONE_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
        }));
        // Its flags are out of a filter's sight; told that there is no such call, libraries use `clone`.
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": native_architectures(),
        "syscalls": rules,
    })
}

fn native_architectures() -> &'static [&'static str] {
    match std::env::consts::ARCH {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        _ => &[],
    }
}

/// A profile as people write it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    #[serde(default)]
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<ArchitectureMap>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchitectureMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Vec<String>,
    action: String,
    #[serde(default)]
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Value>>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Filter {
    caps: Vec<String>,
    arches: Vec<String>,
}

impl Filter {
    fn applies(&self, capabilities: &BTreeSet<String>) -> bool {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        (self.caps.is_empty() || self.caps.iter().all(|cap| capabilities.contains(cap)))
            && (self.arches.is_empty() || self.arches.iter().any(|arch| arch == architecture))
    }

    fn is_empty(&self) -> bool {
        self.caps.is_empty() && self.arches.is_empty()
    }
}

/// Reads a profile of the node. One that cannot be applied as it stands is an error, never ignored.
pub(crate) fn local_profile(path: &Path, capabilities: &BTreeSet<String>) -> Result<Value, RuntimeError> {
    let text = std::fs::read(path).map_err(RuntimeError::file("read the seccomp profile", path))?;
    convert(&text, capabilities)
        .map_err(|reason| RuntimeError::invalid(format!("seccomp profile {}: {reason}", path.display())))
}

fn convert(text: &[u8], capabilities: &BTreeSet<String>) -> Result<Value, String> {
    let profile: Profile = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if !profile.architectures.is_empty() && !profile.arch_map.is_empty() {
        return Err("both architectures and archMap are given".to_owned());
    }
    let mut architectures = profile.architectures;
    let native = native_architectures();
    for map in profile.arch_map {
        if native.contains(&map.architecture.as_str()) {
            architectures.push(map.architecture);
            architectures.extend(map.sub_architectures.into_iter().flatten());
        }
    }
    let mut rules = Vec::new();
    for rule in profile.syscalls {
        let excluded = !rule.excludes.is_empty() && rule.excludes.applies(capabilities);
        if excluded || !rule.includes.applies(capabilities) {
            continue;
        }
        let names: Vec<String> = rule.names.into_iter().chain(rule.name).collect();
        if names.is_empty() {
            return Err("a rule names no system call".to_owned());
        }
        let mut out = json!({"names": names, "action": rule.action});
        if let Some(errno) = rule.errno_ret {
            out["errnoRet"] = errno.into();
        }
        if let Some(args) = rule.args.filter(|args| !args.is_empty()) {
            out["args"] = args.into();
        }
        rules.push(out);
    }
    let mut out = json!({
        "defaultAction": profile.default_action,
        "architectures": architectures,
        "flags": profile.flags,
        "syscalls": rules,
    });
    if let Some(errno) = profile.default_errno_ret {
        out["defaultErrnoRet"] = errno.into();
    }
    serde_json::from_value::<libcontainer::oci_spec::runtime::LinuxSeccomp>(out.clone())
        .map_err(|error| error.to_string())?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(profile: &Value) -> Vec<&str> {
        let rules = profile["syscalls"].as_array().unwrap();
        rules[0]["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
    }

    #[test]
    fn mounting_comes_with_the_capability() {
        let plain = default_profile(&BTreeSet::new());
        let admin = default_profile(&BTreeSet::from(["CAP_SYS_ADMIN".to_owned()]));
        assert!(!names(&plain).contains(&"mount") && names(&admin).contains(&"mount"));
        for name in ["read", "execve", "openat", "exit_group", "futex", "ptrace"] {
            assert!(names(&plain).contains(&name), "{name}");
        }
        for name in ["bpf", "keyctl", "kexec_load", "io_uring_setup", "unshare", "setns", "clone"] {
            assert!(!names(&plain).contains(&name), "{name}");
        }
        for profile in [plain, admin] {
            serde_json::from_value::<libcontainer::oci_spec::runtime::LinuxSeccomp>(profile).unwrap();
        }
    }

    #[test]
    fn profiles_are_read_as_docker_writes_them() {
        let text = br#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {"names":["chmod"],"action":"SCMP_ACT_ERRNO","args":[]},
            {"names":["mount"],"action":"SCMP_ACT_ERRNO","excludes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["bpf"],"action":"SCMP_ACT_ERRNO","includes":{"caps":["CAP_SYS_ADMIN"]}}]}"#;
        let count = |caps: &[&str]| {
            let caps = caps.iter().map(|cap| (*cap).to_owned()).collect();
            convert(text, &caps).unwrap()["syscalls"].as_array().unwrap().len()
        };
        assert_eq!((count(&[]), count(&["CAP_SYS_ADMIN"])), (2, 2));
    }

    #[test]
    fn bad_profiles_are_errors() {
        for text in [
            "",
            "{}",
            r#"{"defaultAction":"NO_SUCH"}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_ERRNO"}]}"#,
        ] {
            assert!(convert(text.as_bytes(), &BTreeSet::new()).is_err(), "{text}");
        }
    }
}
