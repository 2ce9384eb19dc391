use super::*;
use cri::v1::{Capability, KeyValue, LinuxContainerConfig, UserNamespace};

fn machine() -> Machine {
    let without = |name: &&&str| **name != "CAP_SYS_RESOURCE";
    Machine {
        capabilities: CAPABILITIES.iter().filter(without).map(|name| (*name).to_owned()).collect(),
        min_oom_score_adj: 0,
        unified_cgroups: false,
        swap_accounting: false,
        hugetlb: true,
    }
}

fn spec_of(config: &ContainerConfig, target: Option<i32>) -> Result<Value, RuntimeError> {
    let mut image = ImageConfig::default();
    image.config.cmd = vec!["img".into()];
    image.config.env = vec!["A=image".into(), "B=image".into()];
    container_spec(&SpecInput {
        machine: &machine(),
        config,
        image: &image,
        user: &User { home: Some("/root".into()), ..User::default() },
        holder: 42,
        target,
        hostname: "pod",
        rootfs: Path::new("/r"),
        cgroup: "/kubepods/c",
        files: &[("/etc/hosts", PathBuf::from("/s/hosts"))],
        shm: Path::new("/s/shm"),
        image_mounts: &BTreeMap::new(),
        seccomp: None,
        apparmor: None,
        devices: &[],
    })
}

fn with_security(security: LinuxContainerSecurityContext) -> ContainerConfig {
    ContainerConfig {
        linux: Some(LinuxContainerConfig { security_context: Some(security), resources: None }),
        ..ContainerConfig::default()
    }
}

#[test]
fn commands_and_arguments_replace_the_images() {
    let mut image = ImageConfig::default();
    image.config.entrypoint = vec!["e".into()];
    image.config.cmd = vec!["c".into()];
    for (given_command, given_args, expected) in
        [("", "", "e c"), ("", "a", "e a"), ("x", "", "x"), ("x", "a", "x a")]
    {
        let list = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        let config = ContainerConfig {
            command: list(given_command),
            args: list(given_args),
            ..ContainerConfig::default()
        };
        assert_eq!(command(&config, &image).unwrap().join(" "), expected);
    }
    assert!(command(&ContainerConfig::default(), &ImageConfig::default()).is_err());
}

#[test]
fn the_containers_environment_goes_before_the_images() {
    let envs = vec![KeyValue { key: "A".into(), value: "x=y".into() }];
    let spec = spec_of(&ContainerConfig { envs, ..ContainerConfig::default() }, None).unwrap();
    let env: Vec<&str> =
        spec["process"]["env"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(env, [DEFAULT_PATH, "HOSTNAME=pod", "HOME=/root", "B=image", "A=x=y"]);
}

#[test]
fn capabilities_are_added_and_dropped_by_name() {
    let check = |add: &[&str], drop: &[&str], has: &[&str], lacks: &[&str]| {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let capabilities = Capability {
            add_capabilities: list(add),
            drop_capabilities: list(drop),
            add_ambient_capabilities: Vec::new(),
        };
        let security = LinuxContainerSecurityContext {
            capabilities: Some(capabilities),
            ..LinuxContainerSecurityContext::default()
        };
        let set = super::capabilities(&machine(), &security).unwrap();
        assert!(has.iter().all(|name| set.contains(*name)), "{set:?}");
        assert!(!lacks.iter().any(|name| set.contains(*name)), "{set:?}");
    };
    check(&[], &[], &["CAP_CHOWN"], &["CAP_NET_ADMIN"]);
    check(&["net_admin"], &["CAP_CHOWN"], &["CAP_NET_ADMIN"], &["CAP_CHOWN"]);
    check(&["NET_BIND_SERVICE"], &["ALL"], &["CAP_NET_BIND_SERVICE"], &["CAP_CHOWN"]);
    check(&["ALL"], &["SYS_ADMIN"], &["CAP_NET_ADMIN"], &["CAP_SYS_ADMIN", "CAP_SYS_RESOURCE"]);
    let capabilities = Capability { add_capabilities: vec!["NO_SUCH".into()], ..Capability::default() };
    let security = LinuxContainerSecurityContext {
        capabilities: Some(capabilities),
        ..LinuxContainerSecurityContext::default()
    };
    assert!(super::capabilities(&machine(), &security).is_err());
}

#[test]
fn what_the_machine_cannot_do_is_clamped() {
    let resources =
        LinuxContainerResources { oom_score_adj: -997, memory_limit_in_bytes: 1 << 20, ..Default::default() };
    let linux = LinuxContainerConfig { resources: Some(resources), security_context: None };
    let spec = spec_of(&ContainerConfig { linux: Some(linux), ..ContainerConfig::default() }, None).unwrap();
    assert_eq!(spec["process"]["oomScoreAdj"], 0);
    assert_eq!(spec["linux"]["resources"]["memory"], json!({"limit": 1 << 20}));
}

#[test]
fn process_namespaces_follow_the_mode() {
    let check = |mode: NamespaceMode, target: Option<i32>, expected: Option<Value>| {
        let options = NamespaceOption { pid: mode.into(), ..NamespaceOption::default() };
        let security = LinuxContainerSecurityContext {
            namespace_options: Some(options),
            ..LinuxContainerSecurityContext::default()
        };
        let spec = spec_of(&with_security(security), target).unwrap();
        let all = spec["linux"]["namespaces"].as_array().unwrap().clone();
        assert_eq!(all.into_iter().find(|namespace| namespace["type"] == "pid"), expected);
    };
    check(NamespaceMode::Container, None, Some(json!({"type": "pid"})));
    check(NamespaceMode::Pod, None, Some(json!({"type": "pid", "path": "/proc/42/ns/pid"})));
    check(NamespaceMode::Target, Some(7), Some(json!({"type": "pid", "path": "/proc/7/ns/pid"})));
    check(NamespaceMode::Node, None, None);
}

#[test]
fn no_new_privileges_is_said_or_left_out() {
    for (no_new_privs, expected) in [(true, json!(true)), (false, Value::Null)] {
        let security =
            LinuxContainerSecurityContext { no_new_privs, ..LinuxContainerSecurityContext::default() };
        assert_eq!(spec_of(&with_security(security), None).unwrap()["process"]["noNewPrivileges"], expected);
    }
}

#[test]
fn a_user_namespace_is_joined() {
    let map = IdMapping { host_id: 65_536, container_id: 0, length: 65_536 };
    let users = UserNamespace { mode: NamespaceMode::Pod.into(), uids: vec![map], gids: vec![map] };
    let options = NamespaceOption { userns_options: Some(users), ..NamespaceOption::default() };
    assert!(has_user_namespace(&options));
    let security = LinuxContainerSecurityContext {
        namespace_options: Some(options),
        ..LinuxContainerSecurityContext::default()
    };
    let spec = spec_of(&with_security(security), None).unwrap();
    let all = spec["linux"]["namespaces"].as_array().unwrap();
    assert!(all.contains(&json!({"type": "user", "path": "/proc/42/ns/user"})));
}

#[test]
fn mounts_go_over_the_runtimes_own_and_in_order() {
    let mount = |path: &str| Mount {
        container_path: path.into(),
        host_path: "/h".into(),
        readonly: true,
        ..Mount::default()
    };
    let mounts = vec![mount("/a/b"), mount("/a"), mount("/etc/hosts"), mount("/dev/shm/")];
    let spec = spec_of(&ContainerConfig { mounts, ..ContainerConfig::default() }, None).unwrap();
    let list = spec["mounts"].as_array().unwrap();
    let at = |path: &str| -> Vec<usize> {
        (0..list.len()).filter(|&index| list[index]["destination"] == path).collect()
    };
    assert!(at("/a") < at("/a/b"));
    for path in ["/etc/hosts", "/dev/shm"] {
        let [index] = at(path)[..] else { panic!("{path} is mounted twice") };
        assert_eq!(list[index]["options"], json!(["rbind", "rprivate", "ro"]));
    }
}

#[test]
fn impossible_mounts_are_errors() {
    let good = Mount { container_path: "/a".into(), host_path: "/h".into(), ..Mount::default() };
    let recursive = Mount { recursive_read_only: true, ..good.clone() };
    let shared = Mount {
        recursive_read_only: true,
        readonly: true,
        propagation: MountPropagation::PropagationBidirectional.into(),
        ..good.clone()
    };
    let nowhere = Mount { container_path: String::new(), ..good };
    for mount in [recursive, shared, nowhere] {
        assert!(
            spec_of(&ContainerConfig { mounts: vec![mount], ..ContainerConfig::default() }, None).is_err()
        );
    }
}
