//! `PodSecurity`: the Pod Security Standards, as labels of a namespace ask for them: enforced, warned of, audited.

mod checks;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use meta::field::{FieldError, FieldPath};
use meta::names::{GroupResource, GroupVersionKind};
use serde_json::{Map, Value};

use self::checks::{Violation, evaluate};
use super::CONTAINER_LISTS;
use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::authz::pod_references::list;
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

const PREFIX: &str = "pod-security.kubernetes.io/";
/// The version that `latest` stands for.
const LATEST: u32 = 36;
/// Pods looked at when a namespace gets a stricter level.
const MAX_PODS: usize = 3_000;
const IGNORED_SUBRESOURCES: [&str; 8] =
    ["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];

/// How much is forbidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// Which version of the standards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Latest,
    Minor(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standard {
    level: Level,
    version: Version,
}

/// What a namespace asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Policy {
    enforce: Standard,
    audit: Standard,
    warn: Standard,
}

#[derive(Debug, Default)]
struct Exemptions {
    usernames: Vec<String>,
    namespaces: Vec<String>,
    runtime_classes: Vec<String>,
}

struct PodSecurity {
    context: Context,
    defaults: Policy,
    exemptions: Exemptions,
}

pub(super) fn build(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    let configuration = context.configuration.get("PodSecurity").unwrap_or(&Value::Null);
    let privileged = Standard { level: Level::Privileged, version: Version::Latest };
    let none = Policy { enforce: privileged, audit: privileged, warn: privileged };
    let labels: Map<String, Value> = configuration
        .get("defaults")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, value)| (format!("{PREFIX}{key}"), value.clone()))
        .collect();
    let (defaults, errors) = policy_of(Some(&labels), none);
    if let Some(error) = errors.first() {
        return Err(ChainError::Configuration { plugin: "PodSecurity", why: error.to_string() });
    }
    let exempt = |field: &str| {
        list(configuration, &["exemptions", field])
            .iter()
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect()
    };
    Ok(Arc::new(PodSecurity {
        context: context.clone(),
        defaults,
        exemptions: Exemptions {
            usernames: exempt("usernames"),
            namespaces: exempt("namespaces"),
            runtime_classes: exempt("runtimeClasses"),
        },
    }))
}

#[async_trait]
impl AdmissionPlugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        super::creates_or_updates(operation)
            && match (&*resource.group, &*resource.resource) {
                ("", "pods") => !IGNORED_SUBRESOURCES.contains(&subresource),
                ("", "namespaces") => subresource.is_empty(),
                _ => subresource.is_empty() && template_path(resource).is_some(),
            }
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        match &*request.resource.resource {
            "namespaces" => self.check_namespace(request),
            "pods" => self.check_pod(request),
            _ => self.check_template(request),
        }
    }
}

impl PodSecurity {
    fn check_namespace(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let (new, errors) = policy_of(request.object.labels(), self.defaults);
        let name = request.object.name().to_owned();
        if request.operation == Operation::Create {
            return refuse_labels(&name, &errors);
        }
        let (old, old_errors) = policy_of(request.old_object.labels(), self.defaults);
        if errors != old_errors {
            refuse_labels(&name, &errors)?;
        }
        let eased = new.enforce.version == old.enforce.version && new.enforce.level <= old.enforce.level;
        let exempt = self.exemptions.namespaces.contains(&name);
        if new.enforce.level == Level::Privileged || eased || exempt {
            return Ok(());
        }
        let warnings = self.warn_of_pods(&name, new.enforce);
        request.warnings.extend(warnings);
        Ok(())
    }

    fn check_pod(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let Some((policy, errors)) = self.policy_for(request) else { return Ok(()) };
        if errors.is_empty() && policy.is_privileged() {
            annotate(request, "enforce-policy", policy.enforce.to_string());
            return Ok(());
        }
        if request.operation == Operation::Update && !is_significant(&request.object, &request.old_object) {
            return Ok(());
        }
        let pod = std::mem::take(&mut request.object);
        let null = Value::Null;
        let result = self.evaluate(
            request,
            policy,
            &errors,
            (pod.get("metadata").unwrap_or(&null), pod.get("spec").unwrap_or(&null)),
            true,
        );
        request.object = pod;
        result.map_err(|why| request.forbidden(&why))
    }

    /// Templates are not enforced: their pods are.
    fn check_template(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let Some((policy, errors)) = self.policy_for(request) else { return Ok(()) };
        if errors.is_empty()
            && policy.warn.level == Level::Privileged
            && policy.audit.level == Level::Privileged
        {
            return Ok(());
        }
        let Some(path) = template_path(&request.group_resource()) else { return Ok(()) };
        let object = std::mem::take(&mut request.object);
        if let Some(template) = object.at(path).filter(|template| template.is_object()) {
            let null = Value::Null;
            let parts = (template.get("metadata").unwrap_or(&null), template.get("spec").unwrap_or(&null));
            // Nothing is enforced, so nothing is refused.
            let refused = self.evaluate(request, policy, &errors, parts, false);
            debug_assert!(refused.is_ok());
        }
        request.object = object;
        Ok(())
    }

    /// `None` if the request is exempt.
    fn policy_for(&self, request: &mut AdmissionRequest) -> Option<(Policy, Vec<FieldError>)> {
        let exempt = if self.exemptions.namespaces.contains(&request.namespace) {
            Some("namespace")
        } else if self.exemptions.usernames.contains(&request.user.username) {
            Some("user")
        } else {
            None
        };
        if let Some(why) = exempt {
            annotate(request, "exempt", why.to_owned());
            return None;
        }
        let namespace =
            self.context.objects.get(&GroupResource::new("", "namespaces"), "", &request.namespace);
        Some(policy_of(namespace.as_deref().and_then(|namespace| namespace.labels()), self.defaults))
    }

    /// The text of the refusal, if the pod is to be refused; warnings and audit annotations go to the request.
    fn evaluate(
        &self,
        request: &mut AdmissionRequest,
        policy: Policy,
        errors: &[FieldError],
        (metadata, spec): (&Value, &Value),
        enforce: bool,
    ) -> Result<(), String> {
        if self.exemptions.runtime_classes.iter().any(|class| class == spec.str_at(&["runtimeClassName"])) {
            annotate(request, "exempt", "runtimeClass".to_owned());
            return Ok(());
        }
        if !errors.is_empty() {
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            let text =
                if let [one] = texts.as_slice() { one.clone() } else { format!("[{}]", texts.join(", ")) };
            annotate(request, "error", format!("Failed to parse policy: {text}"));
        }
        let violations = |standard: Standard| evaluate(standard.level, standard.version, metadata, spec);
        let mut refusal = None;
        if enforce {
            annotate(request, "enforce-policy", policy.enforce.to_string());
            let found = violations(policy.enforce);
            if !found.is_empty() {
                refusal = Some(format!("violates PodSecurity \"{}\": {}", policy.enforce, details(&found)));
            }
        }
        let audited = violations(policy.audit);
        if !audited.is_empty() {
            let text = format!("would violate PodSecurity \"{}\": {}", policy.audit, details(&audited));
            annotate(request, "audit-violations", text);
        }
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        let warned = violations(policy.warn);
        if !warned.is_empty() {
            request.warnings.push(format!(
                "would violate PodSecurity \"{}\": {}",
                policy.warn,
                details(&warned)
            ));
        }
        Ok(())
    }

    /// What a stricter level would have refused among the pods that are there.
    fn warn_of_pods(&self, namespace: &str, enforce: Standard) -> Vec<String> {
        let pods = self.context.objects.list(&GroupResource::new("", "pods"), Some(namespace));
        let mut by_reason: Vec<(String, String, usize)> = Vec::new();
        let null = Value::Null;
        for pod in pods.iter().take(MAX_PODS) {
            let parts = (pod.get("metadata").unwrap_or(&null), pod.get("spec").unwrap_or(&null));
            let found = evaluate(enforce.level, enforce.version, parts.0, parts.1);
            if found.is_empty() {
                continue;
            }
            let reason =
                found.iter().map(|violation| violation.reason.as_str()).collect::<Vec<_>>().join(", ");
            match by_reason.iter_mut().find(|(known, _, _)| *known == reason) {
                Some((_, first, count)) => {
                    *count += 1;
                    if pod.name() < first.as_str() {
                        pod.name().clone_into(first);
                    }
                }
                None => by_reason.push((reason, pod.name().to_owned(), 1)),
            }
        }
        let mut warnings = Vec::new();
        if pods.len() > MAX_PODS {
            warnings.push(format!(
                "new PodSecurity enforce level only checked against the first {MAX_PODS} of {} existing pods",
                pods.len()
            ));
        }
        if by_reason.is_empty() {
            return warnings;
        }
        warnings.push(format!(
            "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{enforce}\""
        ));
        let mut lines: Vec<String> = by_reason
            .into_iter()
            .map(|(reason, first, count)| match count {
                1 => format!("{first}: {reason}"),
                2 => format!("{first} (and 1 other pod): {reason}"),
                _ => format!("{first} (and {} other pods): {reason}", count - 1),
            })
            .collect();
        lines.sort();
        warnings.extend(lines);
        warnings
    }
}

impl Policy {
    fn is_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|standard| standard.level == Level::Privileged)
    }
}

impl Version {
    fn minor(self) -> u32 {
        match self {
            Self::Latest => LATEST,
            Self::Minor(minor) => minor,
        }
    }
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.version {
            Version::Latest => write!(f, "{level}:latest"),
            Version::Minor(minor) => write!(f, "{level}:v1.{minor}"),
        }
    }
}

impl FromStr for Level {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "privileged" => Ok(Self::Privileged),
            "baseline" => Ok(Self::Baseline),
            "restricted" => Ok(Self::Restricted),
            _ => Err("must be one of privileged, baseline, restricted"),
        }
    }
}

impl FromStr for Version {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        text.strip_prefix("v1.")
            .filter(|minor| *minor == "0" || !minor.starts_with(['0', '+']))
            .and_then(|minor| minor.parse().ok())
            .map(Self::Minor)
            .ok_or("must be \"latest\" or \"v1.x\"")
    }
}

/// Reads the labels. What cannot be read is enforced as strictly as possible, and neither warned of nor audited.
fn policy_of(labels: Option<&Map<String, Value>>, defaults: Policy) -> (Policy, Vec<FieldError>) {
    let mut policy = defaults;
    let mut errors = Vec::new();
    let Some(labels) = labels.filter(|labels| !labels.is_empty()) else { return (policy, errors) };
    let label = |key: &str| labels.get(&format!("{PREFIX}{key}")).and_then(Value::as_str);
    let mut warn_level_set = false;
    let mut enforce_level_set = false;
    for (mode, standard, fallback) in [
        ("enforce", &mut policy.enforce, Level::Restricted),
        ("audit", &mut policy.audit, Level::Privileged),
        ("warn", &mut policy.warn, Level::Privileged),
    ] {
        if let Some(text) = label(mode) {
            match text.parse() {
                Ok(level) => {
                    standard.level = level;
                    enforce_level_set |= mode == "enforce";
                }
                Err(why) => {
                    standard.level = fallback;
                    errors.push(label_error(mode, text, why));
                }
            }
            warn_level_set |= mode == "warn";
        }
        let key = format!("{mode}-version");
        if let Some(text) = label(&key) {
            match text.parse() {
                Ok(version) => standard.version = version,
                Err(why) => {
                    standard.version = Version::Latest;
                    errors.push(label_error(&key, text, why));
                }
            }
        }
    }
    // Whoever enforces a level is warned of it too.
    if !warn_level_set && enforce_level_set && policy.enforce.level > policy.warn.level {
        policy.warn.level = policy.enforce.level;
        if label("warn-version").is_none() {
            policy.warn.version = policy.enforce.version;
        }
    }
    (policy, errors)
}

fn label_error(key: &str, value: &str, why: &str) -> FieldError {
    let path = FieldPath::root("metadata").child("labels").key(&format!("{PREFIX}{key}"));
    FieldError::invalid(&path, value, why)
}

fn refuse_labels(name: &str, errors: &[FieldError]) -> Result<(), ApiError> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(&GroupVersionKind::new("", "v1", "Namespace"), name, errors))
}

/// Where a workload keeps its pod template.
fn template_path(resource: &GroupResource) -> Option<&'static [&'static str]> {
    match (&*resource.group, &*resource.resource) {
        ("", "podtemplates") => Some(&["template"]),
        ("", "replicationcontrollers")
        | ("apps", "replicasets" | "deployments" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => Some(&["spec", "template"]),
        ("batch", "cronjobs") => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

/// Only images of running containers and new ephemeral containers can change what was checked at creation.
fn is_significant(new: &Value, old: &Value) -> bool {
    CONTAINER_LISTS.iter().any(|field| {
        let (new, old) = (list(new, &["spec", field]), list(old, &["spec", field]));
        if *field == "ephemeralContainers" {
            return new.iter().any(|container| {
                let before = old.iter().find(|known| known.str_at(&["name"]) == container.str_at(&["name"]));
                before.is_none_or(|before| before.str_at(&["image"]) != container.str_at(&["image"]))
            });
        }
        new.len() != old.len()
            || new.iter().zip(old).any(|(new, old)| new.str_at(&["image"]) != old.str_at(&["image"]))
    })
}

fn details(violations: &[Violation]) -> String {
    let texts = violations.iter().map(|violation| format!("{} ({})", violation.reason, violation.detail));
    texts.collect::<Vec<_>>().join(", ")
}

fn annotate(request: &mut AdmissionRequest, key: &str, value: String) {
    request.audit_annotations.insert(format!("{PREFIX}{key}"), value);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{context, request, run};
    use super::*;

    const NOTHING_SET: &str = "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")";

    fn namespace(labels: Value) -> Context {
        context(&[("namespaces", json!({"metadata": {"name": "a", "labels": labels}}))])
    }

    async fn check(labels: Value, spec: Value) -> Result<Vec<String>, String> {
        let pod = json!({"kind": "Pod", "metadata": {"namespace": "a", "name": "p"}, "spec": spec});
        let mut request = request(Operation::Create, "pods", pod, Value::Null);
        run(&namespace(labels), "PodSecurity", &mut request).await?;
        Ok(request.warnings)
    }

    fn restricted_spec() -> Value {
        json!({
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {
                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
            }}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        })
    }

    #[tokio::test]
    async fn levels_forbid_what_they_say() {
        let spec = |extra: Value| {
            let mut spec = json!({"containers": [{"name": "c"}]});
            for (key, value) in extra.as_object().unwrap() {
                spec[key] = value.clone();
            }
            spec
        };
        let container = |context: Value| json!({"containers": [{"name": "c", "securityContext": context}]});
        for (case, text) in [
            (
                spec(json!({"hostNetwork": true, "hostPID": true})),
                "host namespaces (hostNetwork=true, hostPID=true)",
            ),
            (
                container(json!({"privileged": true})),
                "privileged (container \"c\" must not set securityContext.privileged=true)",
            ),
            (
                container(json!({"capabilities": {"add": ["SYS_ADMIN", "CHOWN"]}})),
                "non-default capabilities (container \"c\" must not include \"SYS_ADMIN\" in securityContext.capabilities.add)",
            ),
            (
                spec(json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]})),
                "hostPath volumes (volume \"v\")",
            ),
            (
                spec(json!({"containers": [{"name": "c", "ports": [{"hostPort": 80}]}]})),
                "hostPort (container \"c\" uses hostPort 80)",
            ),
            (
                spec(json!({"securityContext": {"seLinuxOptions": {"type": "x", "user": "u"}}})),
                "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"x\"; user may not be set)",
            ),
            (
                spec(json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}})),
                "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
            (
                spec(json!({"securityContext": {"sysctls": [{"name": "kernel.x"}]}})),
                "forbidden sysctls (kernel.x)",
            ),
            (
                spec(json!({"containers": [{"name": "c", "livenessProbe": {"httpGet": {"host": "h"}}}]})),
                "probe or lifecycle host (container \"c\" uses probe or lifecycle host \"h\")",
            ),
        ] {
            let labels = json!({"pod-security.kubernetes.io/enforce": "baseline"});
            let refusal =
                format!("pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": {text}");
            assert_eq!(check(labels, case.clone()).await, Err(refusal));
            assert_eq!(check(json!({}), case).await, Ok(vec![]));
        }
    }

    #[tokio::test]
    async fn restricted_wants_everything_said() {
        let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        assert_eq!(check(labels.clone(), restricted_spec()).await, Ok(vec![]));
        assert_eq!(
            check(labels.clone(), json!({"containers": [{"name": "c"}]})).await.unwrap_err(),
            format!("pods \"p\" is forbidden: violates PodSecurity \"restricted:latest\": {NOTHING_SET}")
        );
        let old = json!({"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "v1.18"});
        let error = check(old, json!({"containers": [{"name": "c"}]})).await.unwrap_err();
        assert!(
            error.contains("restricted:v1.18")
                && !error.contains("capabilities")
                && !error.contains("seccomp")
        );
        let windows = json!({"os": {"name": "windows"}, "securityContext": {"runAsNonRoot": true}, "containers": [{"name": "c"}]});
        assert_eq!(check(labels, windows).await, Ok(vec![]));
    }

    #[tokio::test]
    async fn warnings_and_audit_do_not_refuse() {
        let labels = json!({"pod-security.kubernetes.io/warn": "restricted"});
        let bare = json!({"containers": [{"name": "c"}]});
        let expected = vec![format!("would violate PodSecurity \"restricted:latest\": {NOTHING_SET}")];
        assert_eq!(check(labels.clone(), bare.clone()).await, Ok(expected.clone()));
        let deployment = json!({
            "kind": "Deployment", "metadata": {"namespace": "a", "name": "d"}, "spec": {"template": {"spec": bare}},
        });
        let mut request = request(Operation::Create, "deployments.apps", deployment, Value::Null);
        run(&namespace(labels), "PodSecurity", &mut request).await.unwrap();
        assert_eq!(request.warnings, expected);
        assert!(request.object["spec"].is_object());
    }

    #[tokio::test]
    async fn labels_are_validated_and_existing_pods_counted() {
        let object = |level: &str| json!({"kind": "Namespace", "metadata": {"name": "a", "labels": {"pod-security.kubernetes.io/enforce": level}}});
        let mut wrong = request(Operation::Create, "namespaces", object("strict"), Value::Null);
        assert_eq!(
            run(&context(&[]), "PodSecurity", &mut wrong).await.unwrap_err(),
            "Namespace \"a\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": must be one of privileged, baseline, restricted"
        );
        let pod = |name: &str| {
            (
                "pods",
                json!({"metadata": {"namespace": "a", "name": name}, "spec": {"hostPID": true, "containers": []}}),
            )
        };
        let mut stricter = request(Operation::Update, "namespaces", object("baseline"), object("privileged"));
        run(&context(&[pod("x"), pod("b")]), "PodSecurity", &mut stricter).await.unwrap();
        assert_eq!(
            stricter.warnings,
            [
                "existing pods in namespace \"a\" violate the new PodSecurity enforce level \"baseline:latest\"",
                "b (and 1 other pod): host namespaces",
            ]
        );
    }
}
