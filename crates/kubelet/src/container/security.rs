//! securityContext to CRI: container values win over the pod's.

use cri::v1::{
    self, Int64Value, NamespaceMode, NamespaceOption, SecurityProfile, security_profile::ProfileType,
};
use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, Container, PodSecurityContext, SeccompProfile, SecurityContext,
};

use crate::pod::model::{ContainerKind, ContainerModel, PodModel};
use crate::runtime::Image;

const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// How seccomp profiles named in specs become what the runtime loads.
#[derive(Debug, Clone, Default)]
pub(crate) struct SeccompRules {
    pub(crate) root: String,
    pub(crate) default_profile: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NonRootError {
    #[error("container's runAsUser breaks non-root policy (pod: \"{pod}\", container: {container})")]
    RunAsUser { pod: String, container: String },
    #[error("container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})")]
    ImageIsRoot { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: \"{pod}\", container: {container})"
    )]
    ImageUserUnknown { user: String, pod: String, container: String },
}

pub(crate) fn verify_non_root(
    model: &PodModel,
    container: &Container,
    image: &Image,
) -> Result<(), NonRootError> {
    let own = container.security_context.clone().unwrap_or_default();
    let pod_level = model.spec.security_context.clone().unwrap_or_default();
    if own.run_as_non_root.or(pod_level.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let (pod, container) = (model.formatted(), container.name.clone());
    match own.run_as_user.or(pod_level.run_as_user) {
        Some(0) => Err(NonRootError::RunAsUser { pod, container }),
        Some(_) => Ok(()),
        None if image.uid == Some(0) || (image.uid.is_none() && image.username.is_empty()) => {
            Err(NonRootError::ImageIsRoot { pod, container })
        }
        None if image.uid.is_none() => {
            Err(NonRootError::ImageUserUnknown { user: image.username.clone(), pod, container })
        }
        None => Ok(()),
    }
}

pub(crate) fn container(
    model: &PodModel,
    container: &ContainerModel,
    image: &Image,
    target_id: Option<String>,
    rules: &SeccompRules,
) -> v1::LinuxContainerSecurityContext {
    let own = container.spec.security_context.clone().unwrap_or_default();
    let pod = model.spec.security_context.clone().unwrap_or_default();
    let privileged = own.privileged == Some(true);
    let user = own.run_as_user.or(pod.run_as_user).or(image.uid);
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked") || privileged;
    let paths = |list: &[&str]| -> Vec<String> {
        if unmasked { Vec::new() } else { list.iter().map(|p| (*p).to_owned()).collect() }
    };
    let mut namespaces = namespaces(model);
    if container.kind == ContainerKind::Ephemeral && target_id.is_some() {
        namespaces.pid = NamespaceMode::Target as i32;
        namespaces.target_id = target_id.unwrap_or_default();
    }
    v1::LinuxContainerSecurityContext {
        capabilities: own.capabilities.as_ref().map(capabilities),
        privileged,
        namespace_options: Some(namespaces),
        selinux_options: selinux(own.se_linux_options.as_ref().or(pod.se_linux_options.as_ref())),
        run_as_user: user.map(int),
        run_as_group: own.run_as_group.or(pod.run_as_group).map(int),
        run_as_username: if user.is_none() { image.username.clone() } else { String::new() },
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: supplemental_groups(&pod),
        supplemental_groups_policy: groups_policy(&pod),
        no_new_privs: no_new_privileges(&own),
        masked_paths: paths(&MASKED_PATHS),
        readonly_paths: paths(&READONLY_PATHS),
        seccomp: Some(seccomp(
            own.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref()),
            privileged,
            rules,
        )),
        apparmor: apparmor(own.app_armor_profile.as_ref().or(pod.app_armor_profile.as_ref())),
        ..Default::default()
    }
}

pub(crate) fn sandbox(model: &PodModel, rules: &SeccompRules) -> v1::LinuxSandboxSecurityContext {
    let pod = model.spec.security_context.clone().unwrap_or_default();
    let privileged = model
        .containers
        .iter()
        .any(|c| c.spec.security_context.as_ref().is_some_and(|s| s.privileged == Some(true)));
    // The sandbox's own process runs the runtime's default profile whatever its containers ask for.
    let default = SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None };
    v1::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(model)),
        selinux_options: selinux(pod.se_linux_options.as_ref()),
        run_as_user: pod.run_as_user.map(int),
        run_as_group: pod.run_as_group.filter(|_| pod.run_as_user.is_some()).map(int),
        supplemental_groups: supplemental_groups(&pod),
        supplemental_groups_policy: groups_policy(&pod),
        privileged,
        seccomp: Some(seccomp(Some(&default), privileged, rules)),
        ..Default::default()
    }
}

pub(crate) fn namespaces(model: &PodModel) -> NamespaceOption {
    let spec = &model.spec;
    let mode = |host: Option<bool>| if host == Some(true) { NamespaceMode::Node } else { NamespaceMode::Pod };
    let pid = match (spec.host_pid, spec.share_process_namespace) {
        (Some(true), _) => NamespaceMode::Node,
        (_, Some(true)) => NamespaceMode::Pod,
        _ => NamespaceMode::Container,
    };
    NamespaceOption {
        network: mode(spec.host_network) as i32,
        pid: pid as i32,
        ipc: mode(spec.host_ipc) as i32,
        ..Default::default()
    }
}

fn int(value: i64) -> Int64Value {
    Int64Value { value }
}

fn capabilities(capabilities: &Capabilities) -> v1::Capability {
    v1::Capability {
        add_capabilities: capabilities.add.clone().unwrap_or_default(),
        drop_capabilities: capabilities.drop.clone().unwrap_or_default(),
        ..Default::default()
    }
}

fn selinux(options: Option<&k8s_openapi::api::core::v1::SELinuxOptions>) -> Option<v1::SeLinuxOption> {
    options.map(|o| v1::SeLinuxOption {
        user: o.user.clone().unwrap_or_default(),
        role: o.role.clone().unwrap_or_default(),
        r#type: o.type_.clone().unwrap_or_default(),
        level: o.level.clone().unwrap_or_default(),
    })
}

fn supplemental_groups(pod: &PodSecurityContext) -> Vec<i64> {
    pod.supplemental_groups.iter().flatten().copied().chain(pod.fs_group).collect()
}

fn groups_policy(pod: &PodSecurityContext) -> i32 {
    let strict = pod.supplemental_groups_policy.as_deref() == Some("Strict");
    let policy =
        if strict { v1::SupplementalGroupsPolicy::Strict } else { v1::SupplementalGroupsPolicy::Merge };
    policy as i32
}

/// Only an explicit refusal of privilege escalation sets the flag, and never for a privileged container.
fn no_new_privileges(own: &SecurityContext) -> bool {
    let admin = own
        .capabilities
        .as_ref()
        .and_then(|c| c.add.as_ref())
        .is_some_and(|add| add.iter().any(|c| matches!(c.as_str(), "CAP_SYS_ADMIN" | "SYS_ADMIN")));
    own.privileged != Some(true) && !admin && own.allow_privilege_escalation == Some(false)
}

fn seccomp(profile: Option<&SeccompProfile>, privileged: bool, rules: &SeccompRules) -> SecurityProfile {
    let simple =
        |kind: ProfileType| SecurityProfile { profile_type: kind as i32, localhost_ref: String::new() };
    if privileged {
        return simple(ProfileType::Unconfined);
    }
    match profile.map(|p| p.type_.as_str()) {
        Some("RuntimeDefault") => simple(ProfileType::RuntimeDefault),
        Some("Localhost") => SecurityProfile {
            profile_type: ProfileType::Localhost as i32,
            localhost_ref: format!(
                "{}/{}",
                rules.root,
                profile.and_then(|p| p.localhost_profile.as_deref()).unwrap_or_default()
            ),
        },
        None if rules.default_profile => simple(ProfileType::RuntimeDefault),
        _ => simple(ProfileType::Unconfined),
    }
}

fn apparmor(profile: Option<&AppArmorProfile>) -> Option<SecurityProfile> {
    let profile = profile?;
    let kind = match profile.type_.as_str() {
        "RuntimeDefault" => ProfileType::RuntimeDefault,
        "Localhost" => ProfileType::Localhost,
        _ => ProfileType::Unconfined,
    };
    let localhost_ref = profile.localhost_profile.clone().unwrap_or_default();
    Some(SecurityProfile { profile_type: kind as i32, localhost_ref })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use serde_json::{Value, json};

    fn context(pod: Value, own: Value) -> v1::LinuxContainerSecurityContext {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"securityContext": pod,
            "containers": [{"name": "c", "securityContext": own}]}});
        let model = PodModel::new(Arc::new(serde_json::from_value(pod).unwrap()));
        let image = Image { id: "i".into(), uid: Some(7), username: String::new(), size: 0 };
        container(&model, &model.containers[0], &image, None, &SeccompRules::default())
    }

    #[test]
    fn the_container_wins_over_the_pod_and_the_pod_over_the_image() {
        let user = |pod, own| context(pod, own).run_as_user.map(|u| u.value);
        assert_eq!(user(json!({}), json!({})), Some(7));
        assert_eq!(user(json!({"runAsUser": 1}), json!({})), Some(1));
        assert_eq!(user(json!({"runAsUser": 1}), json!({"runAsUser": 2})), Some(2));
        let groups = context(json!({"supplementalGroups": [5], "fsGroup": 6}), json!({})).supplemental_groups;
        assert_eq!(groups, [5, 6]);
    }

    #[test]
    fn privileged_containers_are_neither_masked_nor_filtered() {
        let own = context(json!({"seccompProfile": {"type": "RuntimeDefault"}}), json!({"privileged": true}));
        assert!(own.masked_paths.is_empty() && own.readonly_paths.is_empty());
        assert_eq!(own.seccomp.unwrap().profile_type, ProfileType::Unconfined as i32);
        let plain = context(json!({}), json!({"allowPrivilegeEscalation": false}));
        assert!(plain.no_new_privs && plain.masked_paths.len() == MASKED_PATHS.len());
    }

    #[test]
    fn run_as_non_root_is_verified_against_user_and_image() {
        for (own, uid, username, refused) in [
            (json!({"runAsNonRoot": true}), Some(0), "", true),
            (json!({"runAsNonRoot": true}), Some(1), "", false),
            (json!({"runAsNonRoot": true}), None, "", true),
            (json!({"runAsNonRoot": true}), None, "web", true),
            (json!({"runAsNonRoot": true, "runAsUser": 1}), Some(0), "", false),
            (json!({"runAsNonRoot": true, "runAsUser": 0}), Some(5), "", true),
            (json!({}), Some(0), "", false),
        ] {
            let pod = json!({"spec": {"containers": [{"name": "c", "securityContext": own}]}});
            let model = PodModel::new(Arc::new(serde_json::from_value(pod).unwrap()));
            let image = Image { id: String::new(), uid, username: username.into(), size: 0 };
            assert_eq!(verify_non_root(&model, &model.containers[0].spec, &image).is_err(), refused, "{own}");
        }
    }
}
