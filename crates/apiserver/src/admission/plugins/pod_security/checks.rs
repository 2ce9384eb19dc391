//! The Pod Security Standards: what the levels `baseline` and `restricted` forbid, version by version.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Level, Version};
use crate::admission::plugins::CONTAINER_LISTS;
use crate::authz::pod_references::list;
use crate::objects::ObjectExt as _;

/// A violation: why in short, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) reason: String,
    pub(super) detail: String,
}

/// A pod or the template of one.
pub(super) struct Pod<'a> {
    pub(super) metadata: &'a Value,
    pub(super) spec: &'a Value,
    /// Minor version of the standard.
    pub(super) version: u32,
}

struct Check {
    id: &'static str,
    level: Level,
    since: u32,
    /// A stricter check that takes this one's place where it applies.
    overridden_by: Option<&'static str>,
    run: fn(&Pod<'_>) -> Option<Violation>,
}

const fn baseline(id: &'static str, run: fn(&Pod<'_>) -> Option<Violation>) -> Check {
    Check { id, level: Level::Baseline, since: 0, overridden_by: None, run }
}

const fn restricted(id: &'static str, since: u32, run: fn(&Pod<'_>) -> Option<Violation>) -> Check {
    Check { id, level: Level::Restricted, since, overridden_by: None, run }
}

const fn overridden(check: Check, by: &'static str) -> Check {
    Check { overridden_by: Some(by), ..check }
}

/// In the order in which violations are listed: by level, then by upstream's identifier.
const CHECKS: [Check; 19] = [
    baseline("appArmorProfile", app_armor),
    overridden(baseline("capabilities_baseline", capabilities_baseline), "capabilities_restricted"),
    baseline("hostNamespaces", host_namespaces),
    overridden(baseline("hostPathVolumes", host_path_volumes), "restrictedVolumes"),
    baseline("hostPorts", host_ports),
    Check { since: 34, ..baseline("hostProbesAndHostLifecycle", probe_hosts) },
    baseline("privileged", privileged),
    overridden(baseline("procMount", proc_mount_baseline), "procMount_restricted"),
    baseline("seLinuxOptions", selinux),
    overridden(baseline("seccompProfile_baseline", seccomp_baseline), "seccompProfile_restricted"),
    baseline("sysctls", sysctls),
    baseline("windowsHostProcess", windows_host_process),
    restricted("allowPrivilegeEscalation", 8, privilege_escalation),
    restricted("capabilities_restricted", 22, capabilities_restricted),
    restricted("procMount_restricted", 35, proc_mount),
    restricted("restrictedVolumes", 0, restricted_volumes),
    restricted("runAsNonRoot", 0, run_as_non_root),
    restricted("runAsUser", 23, run_as_user),
    restricted("seccompProfile_restricted", 19, seccomp_restricted),
];

/// What the pod violates of a level.
pub(super) fn evaluate(level: Level, version: Version, metadata: &Value, spec: &Value) -> Vec<Violation> {
    let pod = Pod { metadata, spec, version: version.minor() };
    let applies = |check: &Check| check.level <= level && check.since <= pod.version;
    CHECKS
        .iter()
        .filter(|check| applies(check))
        .filter(|check| !CHECKS.iter().any(|other| Some(other.id) == check.overridden_by && applies(other)))
        .filter_map(|check| (check.run)(&pod))
        .collect()
}

impl Pod<'_> {
    fn containers(&self) -> impl Iterator<Item = &Value> {
        CONTAINER_LISTS.iter().flat_map(|field| list(self.spec, &[field]))
    }

    /// Names of containers for which `bad` holds.
    fn containers_that(&self, mut bad: impl FnMut(&Value) -> bool) -> Vec<String> {
        self.containers()
            .filter(|container| bad(container))
            .map(|container| container.str_at(&["name"]).to_owned())
            .collect()
    }

    /// What the pod and each of its containers set in their security contexts at `path`.
    fn settings(&self, path: &[&str], mut bad: impl FnMut(&Value) -> bool) -> Option<String> {
        let at: Vec<&str> = ["securityContext"].iter().chain(path).copied().collect();
        let mut is_bad = |owner: &Value| owner.at(&at).filter(|value| !value.is_null()).is_some_and(&mut bad);
        let of_pod = is_bad(self.spec);
        let containers = self.containers_that(is_bad);
        setters(of_pod, &containers)
    }

    fn is_windows(&self) -> bool {
        self.version >= 25 && self.spec.str_at(&["os", "name"]) == "windows"
    }

    /// In a user namespace root is nobody.
    fn has_user_namespace(&self) -> bool {
        self.version >= 35 && self.spec.get("hostUsers") == Some(&Value::Bool(false))
    }
}

fn app_armor(pod: &Pod<'_>) -> Option<Violation> {
    const PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";
    let mut values = BTreeSet::new();
    let setters = pod.settings(&["appArmorProfile"], |profile| {
        let kind = profile.str_at(&["type"]);
        let bad = !matches!(kind, "RuntimeDefault" | "Localhost");
        if bad {
            values.insert(kind.to_owned());
        }
        bad
    });
    let mut annotations: Vec<String> = pod
        .metadata
        .get("annotations")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| {
            let value = value.as_str().unwrap_or_default();
            let fine = value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
            (key.starts_with(PREFIX) && !fine).then(|| format!("{key}={value:?}"))
        })
        .collect();
    annotations.sort();
    let mut who: Vec<String> = setters.into_iter().collect();
    let mut values: Vec<String> = values.into_iter().collect();
    if !annotations.is_empty() {
        who.push(plural("annotation", annotations.len()));
        values.extend(annotations);
    }
    if who.is_empty() {
        return None;
    }
    let reason = plural("forbidden AppArmor profile", values.len());
    violation(
        &reason,
        format!("{} must not set AppArmor profile type to {}", who.join(" and "), quote(&values)),
    )
}

fn capabilities_baseline(pod: &Pod<'_>) -> Option<Violation> {
    const ALLOWED: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    let mut forbidden = BTreeSet::new();
    let bad = pod.containers_that(|container| {
        let added = texts(container, &["securityContext", "capabilities", "add"]);
        let others: Vec<String> =
            added.into_iter().filter(|name| !ALLOWED.contains(&name.as_str())).collect();
        forbidden.extend(others.iter().cloned());
        !others.is_empty()
    });
    let detail = format!(
        "{} must not include {} in securityContext.capabilities.add",
        containers(&bad)?,
        quote(&sorted(forbidden))
    );
    violation("non-default capabilities", detail)
}

fn capabilities_restricted(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    let of = |container: &Value, field: &str| texts(container, &["securityContext", "capabilities", field]);
    let keeping = pod.containers_that(|container| !of(container, "drop").iter().any(|name| name == "ALL"));
    let mut forbidden = BTreeSet::new();
    let adding = pod.containers_that(|container| {
        let others: Vec<String> =
            of(container, "add").into_iter().filter(|name| name != "NET_BIND_SERVICE").collect();
        forbidden.extend(others.iter().cloned());
        !others.is_empty()
    });
    let mut details = Vec::new();
    if let Some(who) = containers(&keeping) {
        details.push(format!("{who} must set securityContext.capabilities.drop=[\"ALL\"]"));
    }
    if let Some(who) = containers(&adding) {
        let names = quote(&sorted(forbidden));
        details.push(format!("{who} must not include {names} in securityContext.capabilities.add"));
    }
    if details.is_empty() { None } else { violation("unrestricted capabilities", details.join("; ")) }
}

fn host_namespaces(pod: &Pod<'_>) -> Option<Violation> {
    let used: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|field| is_true(pod.spec, &[field]))
        .map(|field| format!("{field}=true"))
        .collect();
    if used.is_empty() { None } else { violation("host namespaces", used.join(", ")) }
}

fn host_path_volumes(pod: &Pod<'_>) -> Option<Violation> {
    let volumes: Vec<String> = list(pod.spec, &["volumes"])
        .iter()
        .filter(|volume| volume.get("hostPath").is_some_and(Value::is_object))
        .map(|volume| volume.str_at(&["name"]).to_owned())
        .collect();
    let detail = format!("{} {}", plural("volume", volumes.len()), quote(&volumes));
    if volumes.is_empty() { None } else { violation("hostPath volumes", detail) }
}

fn host_ports(pod: &Pod<'_>) -> Option<Violation> {
    let mut ports = BTreeSet::new();
    let bad = pod.containers_that(|container| {
        let own: Vec<i64> = list(container, &["ports"])
            .iter()
            .filter_map(|port| port.get("hostPort").and_then(Value::as_i64))
            .filter(|port| *port != 0)
            .collect();
        ports.extend(own.iter().map(ToString::to_string));
        !own.is_empty()
    });
    let detail = format!(
        "{} {} {} {}",
        containers(&bad)?,
        if bad.len() == 1 { "uses" } else { "use" },
        plural("hostPort", ports.len()),
        sorted(ports).join(", ")
    );
    violation("hostPort", detail)
}

fn probe_hosts(pod: &Pod<'_>) -> Option<Violation> {
    const HANDLERS: [&[&str]; 5] = [
        &["livenessProbe"],
        &["readinessProbe"],
        &["startupProbe"],
        &["lifecycle", "postStart"],
        &["lifecycle", "preStop"],
    ];
    let mut hosts = BTreeSet::new();
    let bad = pod.containers_that(|container| {
        let handlers = HANDLERS.iter().filter_map(|path| container.at(path));
        let own: Vec<&str> = handlers
            .flat_map(|handler| {
                [handler.str_at(&["httpGet", "host"]), handler.str_at(&["tcpSocket", "host"])]
            })
            .filter(|host| !host.is_empty())
            .collect();
        hosts.extend(own.iter().map(|&host| host.to_owned()));
        !own.is_empty()
    });
    let bad = sorted(bad.into_iter().collect());
    let detail = format!(
        "{} {} {} {}",
        containers(&bad)?,
        if bad.len() == 1 { "uses" } else { "use" },
        plural("probe or lifecycle host", hosts.len()),
        quote(&sorted(hosts))
    );
    violation("probe or lifecycle host", detail)
}

fn privileged(pod: &Pod<'_>) -> Option<Violation> {
    let bad = pod.containers_that(|container| is_true(container, &["securityContext", "privileged"]));
    violation("privileged", format!("{} must not set securityContext.privileged=true", containers(&bad)?))
}

fn proc_mount_baseline(pod: &Pod<'_>) -> Option<Violation> {
    if pod.has_user_namespace() { None } else { proc_mount(pod) }
}

fn proc_mount(pod: &Pod<'_>) -> Option<Violation> {
    let mut types = BTreeSet::new();
    let bad = pod.containers_that(|container| {
        let kind = container.str_at(&["securityContext", "procMount"]);
        let bad = !kind.is_empty() && kind != "Default";
        if bad {
            types.insert(kind.to_owned());
        }
        bad
    });
    let detail =
        format!("{} must not set securityContext.procMount to {}", containers(&bad)?, quote(&sorted(types)));
    violation("procMount", detail)
}

fn selinux(pod: &Pod<'_>) -> Option<Violation> {
    let allowed = |kind: &str| {
        matches!(kind, "" | "container_t" | "container_init_t" | "container_kvm_t")
            || (kind == "container_engine_t" && pod.version >= 31)
    };
    let mut types = BTreeSet::new();
    let (mut user, mut role) = (false, false);
    let setters = pod.settings(&["seLinuxOptions"], |options| {
        let kind = options.str_at(&["type"]);
        let (own_user, own_role) =
            (!options.str_at(&["user"]).is_empty(), !options.str_at(&["role"]).is_empty());
        if !allowed(kind) {
            types.insert(kind.to_owned());
        }
        user |= own_user;
        role |= own_role;
        !allowed(kind) || own_user || own_role
    })?;
    let mut data = Vec::new();
    if !types.is_empty() {
        data.push(format!("{} {}", plural("type", types.len()), quote(&sorted(types))));
    }
    if user {
        data.push("user may not be set".to_owned());
    }
    if role {
        data.push("role may not be set".to_owned());
    }
    let detail = format!("{setters} set forbidden securityContext.seLinuxOptions: {}", data.join("; "));
    violation("seLinuxOptions", detail)
}

fn seccomp_baseline(pod: &Pod<'_>) -> Option<Violation> {
    if pod.version >= 19 {
        return seccomp_types(pod);
    }
    let annotations = pod.metadata.get("annotations").and_then(Value::as_object)?;
    let of_containers = pod.containers().map(|container| {
        format!("container.seccomp.security.alpha.kubernetes.io/{}", container.str_at(&["name"]))
    });
    let keys = std::iter::once("seccomp.security.alpha.kubernetes.io/pod".to_owned()).chain(of_containers);
    let forbidden: BTreeSet<String> = keys
        .filter_map(|key| {
            let value = annotations.get(&key)?.as_str()?;
            let fine =
                matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
            (!fine).then(|| format!("{key}={value:?}"))
        })
        .collect();
    if forbidden.is_empty() {
        return None;
    }
    let word = plural("annotation", forbidden.len());
    violation("seccompProfile", format!("forbidden {word} {}", sorted(forbidden).join(", ")))
}

/// Profiles that are set must be of an allowed type.
fn seccomp_types(pod: &Pod<'_>) -> Option<Violation> {
    let mut values = BTreeSet::new();
    let setters = pod.settings(&["seccompProfile"], |profile| {
        let bad = !is_allowed_seccomp(profile);
        if bad {
            values.insert(profile.str_at(&["type"]).to_owned());
        }
        bad
    })?;
    let values = quote(&sorted(values));
    violation(
        "seccompProfile",
        format!("{setters} must not set securityContext.seccompProfile.type to {values}"),
    )
}

fn seccomp_restricted(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    if let Some(explicit) = seccomp_types(pod) {
        return Some(explicit);
    }
    let is_set =
        |owner: &Value| owner.at(&["securityContext", "seccompProfile"]).is_some_and(Value::is_object);
    if is_set(pod.spec) {
        return None;
    }
    let missing = pod.containers_that(|container| !is_set(container));
    let detail = format!(
        "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
        containers(&missing)?
    );
    violation("seccompProfile", detail)
}

fn is_allowed_seccomp(profile: &Value) -> bool {
    matches!(profile.str_at(&["type"]), "Localhost" | "RuntimeDefault")
}

fn sysctls(pod: &Pod<'_>) -> Option<Violation> {
    const ALLOWED: [(&str, u32); 12] = [
        ("kernel.shm_rmid_forced", 0),
        ("net.ipv4.ip_local_port_range", 0),
        ("net.ipv4.tcp_syncookies", 0),
        ("net.ipv4.ping_group_range", 0),
        ("net.ipv4.ip_unprivileged_port_start", 0),
        ("net.ipv4.ip_local_reserved_ports", 27),
        ("net.ipv4.tcp_keepalive_time", 29),
        ("net.ipv4.tcp_fin_timeout", 29),
        ("net.ipv4.tcp_keepalive_intvl", 29),
        ("net.ipv4.tcp_keepalive_probes", 29),
        ("net.ipv4.tcp_rmem", 32),
        ("net.ipv4.tcp_wmem", 32),
    ];
    let forbidden: Vec<&str> = list(pod.spec, &["securityContext", "sysctls"])
        .iter()
        .map(|sysctl| sysctl.str_at(&["name"]))
        .filter(|name| !ALLOWED.iter().any(|(allowed, since)| allowed == name && *since <= pod.version))
        .collect();
    if forbidden.is_empty() { None } else { violation("forbidden sysctls", forbidden.join(", ")) }
}

fn windows_host_process(pod: &Pod<'_>) -> Option<Violation> {
    let setters = pod.settings(&["windowsOptions", "hostProcess"], |value| *value == Value::Bool(true))?;
    violation(
        "hostProcess",
        format!("{setters} must not set securityContext.windowsOptions.hostProcess=true"),
    )
}

fn privilege_escalation(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    let bad = pod.containers_that(|container| {
        container.at(&["securityContext", "allowPrivilegeEscalation"]) != Some(&Value::Bool(false))
    });
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&bad)?);
    violation("allowPrivilegeEscalation != false", detail)
}

fn restricted_volumes(pod: &Pod<'_>) -> Option<Violation> {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let mut types = BTreeSet::new();
    let mut volumes = Vec::new();
    for volume in list(pod.spec, &["volumes"]) {
        let has = |kind: &str| volume.get(kind).is_some_and(Value::is_object);
        if ALLOWED.iter().any(|kind| has(kind)) {
            continue;
        }
        volumes.push(volume.str_at(&["name"]).to_owned());
        let kind = volume.as_object().into_iter().flatten().find(|(_, source)| source.is_object());
        types.insert(kind.map_or("unknown", |(kind, _)| kind).to_owned());
    }
    if volumes.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {} {}",
        plural("volume", volumes.len()),
        quote(&volumes),
        if volumes.len() == 1 { "uses" } else { "use" },
        plural("restricted volume type", types.len()),
        quote(&sorted(types))
    );
    violation("restricted volume types", detail)
}

fn run_as_non_root(pod: &Pod<'_>) -> Option<Violation> {
    const REASON: &str = "runAsNonRoot != true";
    if pod.has_user_namespace() {
        return None;
    }
    if let Some(setters) = pod.settings(&["runAsNonRoot"], |value| *value == Value::Bool(false)) {
        return violation(REASON, format!("{setters} must not set securityContext.runAsNonRoot=false"));
    }
    if is_true(pod.spec, &["securityContext", "runAsNonRoot"]) {
        return None;
    }
    let missing = pod.containers_that(|container| !is_true(container, &["securityContext", "runAsNonRoot"]));
    violation(REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&missing)?))
}

fn run_as_user(pod: &Pod<'_>) -> Option<Violation> {
    if pod.has_user_namespace() {
        return None;
    }
    let setters = pod.settings(&["runAsUser"], |value| value.as_i64() == Some(0))?;
    violation("runAsUser=0", format!("{setters} must not set runAsUser=0"))
}

fn violation(reason: &str, detail: String) -> Option<Violation> {
    Some(Violation { reason: reason.to_owned(), detail })
}

fn is_true(value: &Value, path: &[&str]) -> bool {
    value.at(path) == Some(&Value::Bool(true))
}

fn texts(value: &Value, path: &[&str]) -> Vec<String> {
    list(value, path).iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

/// `containers "a", "b"`; `None` without any.
fn containers(names: &[String]) -> Option<String> {
    (!names.is_empty()).then(|| format!("{} {}", plural("container", names.len()), quote(names)))
}

fn setters(pod: bool, names: &[String]) -> Option<String> {
    let who: Vec<String> = pod.then(|| "pod".to_owned()).into_iter().chain(containers(names)).collect();
    (!who.is_empty()).then(|| who.join(" and "))
}

fn plural(word: &str, count: usize) -> String {
    if count == 1 { word.to_owned() } else { format!("{word}s") }
}

fn quote(items: &[String]) -> String {
    items.iter().map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(", ")
}

fn sorted(items: BTreeSet<String>) -> Vec<String> {
    items.into_iter().collect()
}
