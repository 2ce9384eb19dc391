//! `ServiceAccount`: every pod runs as a service account of its namespace, and finds that account's token mounted.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use meta::names::GroupResource;
use rand::RngExt as _;
use serde_json::{Value, json};

use super::list_mut;
use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::authz::node::MIRROR_POD_ANNOTATION;
use crate::authz::pod_references::list;
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

const DEFAULT_ACCOUNT: &str = "default";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Slightly above an hour, so that a server can tell mounted tokens from others.
const TOKEN_SECONDS: i64 = 3607;
const MOUNTABLE_SECRETS_ANNOTATION: &str = "kubernetes.io/enforce-mountable-secrets";
/// A namespace's default account is made by a controller moments after the namespace.
const DEFAULT_ACCOUNT_WAIT: Duration = Duration::from_millis(50);
const DEFAULT_ACCOUNT_ATTEMPTS: u32 = 20;
/// Letters of generated names: no vowels, so that no words come out.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

struct ServiceAccount(Context);

pub(super) fn build(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(ServiceAccount(context.clone())))
}

#[async_trait]
impl AdmissionPlugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        resource.group.is_empty()
            && resource.resource == "pods"
            && match subresource {
                "" => operation == Operation::Create,
                "ephemeralcontainers" => operation == Operation::Update,
                _ => false,
            }
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        // The kubelet compares its mirror pods with the files they come from.
        if !request.subresource.is_empty() || request.object.annotation(MIRROR_POD_ANNOTATION).is_some() {
            return Ok(());
        }
        let spec = &mut request.object["spec"];
        if spec.str_at(&["serviceAccountName"]).is_empty() {
            spec["serviceAccountName"] = DEFAULT_ACCOUNT.into();
        }
        // The deprecated field is the same field.
        spec["serviceAccount"] = spec["serviceAccountName"].clone();
        let account = self.account(request).await?;
        if automounts(&account, &request.object) {
            mount_token(&mut request.object);
        }
        let pull_secrets = list(&account, &["imagePullSecrets"]);
        if !pull_secrets.is_empty() && list(&request.object, &["spec", "imagePullSecrets"]).is_empty() {
            *list_mut(&mut request.object, &["spec", "imagePullSecrets"]) = pull_secrets.to_vec();
        }
        Ok(())
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if request.object.annotation(MIRROR_POD_ANNOTATION).is_some() {
            return check_mirror_pod(&request.object).map_err(|why| request.forbidden(why));
        }
        if request.subresource.is_empty() && request.object.str_at(&["spec", "serviceAccountName"]).is_empty()
        {
            return Err(request.forbidden("no service account specified for pod"));
        }
        let account = self.account(request).await?;
        if matches!(
            account.annotation(MOUNTABLE_SECRETS_ANNOTATION),
            Some("true" | "1" | "t" | "T" | "TRUE" | "True")
        ) {
            limit_secrets(&account, &request.object).map_err(|why| request.forbidden(&why))?;
        }
        Ok(())
    }
}

impl ServiceAccount {
    async fn account(&self, request: &AdmissionRequest) -> Result<Arc<Value>, ApiError> {
        let name = request.object.str_at(&["spec", "serviceAccountName"]);
        let attempts = if name == DEFAULT_ACCOUNT { DEFAULT_ACCOUNT_ATTEMPTS } else { 1 };
        let accounts = GroupResource::new("", "serviceaccounts");
        for attempt in 0..attempts {
            if attempt > 0 {
                tokio::time::sleep(DEFAULT_ACCOUNT_WAIT).await;
            }
            if let Some(account) = self.0.objects.get(&accounts, &request.namespace, name) {
                return Ok(account);
            }
        }
        let namespace = &request.namespace;
        Err(request.forbidden(&format!(
            "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
        )))
    }
}

fn automounts(account: &Value, pod: &Value) -> bool {
    let of_pod = pod.at(&["spec", "automountServiceAccountToken"]).and_then(Value::as_bool);
    let of_account = || account.get("automountServiceAccountToken").and_then(Value::as_bool);
    of_pod.or_else(of_account).unwrap_or(true)
}

/// Mounts the token into every container that has nothing at its path; a volume left by an earlier pass is reused.
fn mount_token(pod: &mut Value) {
    let known = list(pod, &["spec", "volumes"])
        .iter()
        .map(|volume| volume.str_at(&["name"]))
        .find(|name| name.starts_with(VOLUME_PREFIX))
        .map(str::to_owned);
    let name = known.clone().unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", random_suffix()));
    let mut mounted = false;
    for field in ["initContainers", "containers"] {
        let Some(containers) = pod.pointer_mut(&format!("/spec/{field}")).and_then(Value::as_array_mut)
        else {
            continue;
        };
        for container in containers {
            let mounts = list_mut(container, &["volumeMounts"]);
            if mounts.iter().any(|mount| mount.str_at(&["mountPath"]) == MOUNT_PATH) {
                continue;
            }
            mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
            mounted = true;
        }
    }
    if mounted && known.is_none() {
        list_mut(pod, &["spec", "volumes"]).push(json!({"name": name, "projected": {
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{
                    "path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                }]}},
            ],
            "defaultMode": 420,
        }}));
    }
}

fn random_suffix() -> String {
    let mut rng = rand::rng();
    (0..5).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

fn check_mirror_pod(pod: &Value) -> Result<(), &'static str> {
    if !pod.str_at(&["spec", "serviceAccountName"]).is_empty() {
        return Err("a mirror pod may not reference service accounts");
    }
    for volume in list(pod, &["spec", "volumes"]) {
        if volume.get("secret").is_some_and(Value::is_object) {
            return Err("a mirror pod may not reference secrets");
        }
        for source in list(volume, &["projected", "sources"]) {
            if source.get("serviceAccountToken").is_some_and(Value::is_object) {
                return Err("a mirror pod may not use ServiceAccountToken volume projections");
            }
        }
    }
    Ok(())
}

/// Only secrets the account lists may be used.
fn limit_secrets(account: &Value, pod: &Value) -> Result<(), String> {
    let account_name = account.name();
    let listed = |field: &str, name: &str| {
        list(account, &[field]).iter().any(|secret| secret.str_at(&["name"]) == name)
    };
    for volume in list(pod, &["spec", "volumes"]) {
        let name = volume.str_at(&["secret", "secretName"]);
        if !name.is_empty() && !listed("secrets", name) {
            return Err(format!(
                "volume with secret.secretName=\"{name}\" is not allowed because service account {account_name} does not reference that secret"
            ));
        }
    }
    for (field, word) in [
        ("initContainers", "init container"),
        ("containers", "container"),
        ("ephemeralContainers", "ephemeral container"),
    ] {
        for container in list(pod, &["spec", field]) {
            for variable in list(container, &["env"]) {
                let name = variable.str_at(&["valueFrom", "secretKeyRef", "name"]);
                if !name.is_empty() && !listed("secrets", name) {
                    return Err(format!(
                        "{word} {} with envVar {} referencing secret.secretName=\"{name}\" is not allowed because service account {account_name} does not reference that secret",
                        container.str_at(&["name"]),
                        variable.str_at(&["name"])
                    ));
                }
            }
        }
    }
    for (index, secret) in list(pod, &["spec", "imagePullSecrets"]).iter().enumerate() {
        let name = secret.str_at(&["name"]);
        if !listed("imagePullSecrets", name) {
            return Err(format!(
                "imagePullSecrets[{index}].name=\"{name}\" is not allowed because service account {account_name} does not reference that imagePullSecret"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{context, create};
    use super::*;

    fn accounts() -> Context {
        context(&[
            (
                "serviceaccounts",
                json!({"metadata": {"namespace": "a", "name": "default"}, "imagePullSecrets": [{"name": "pull"}]}),
            ),
            (
                "serviceaccounts",
                json!({"metadata": {"namespace": "a", "name": "quiet"}, "automountServiceAccountToken": false}),
            ),
            (
                "serviceaccounts",
                json!({"metadata": {"namespace": "a", "name": "strict", "annotations": {MOUNTABLE_SECRETS_ANNOTATION: "true"}},
                       "secrets": [{"name": "mine"}]}),
            ),
        ])
    }

    async fn check(spec: Value) -> Result<Value, String> {
        let pod = json!({"metadata": {"namespace": "a", "name": "p"}, "spec": spec});
        create(&accounts(), "ServiceAccount", "pods", pod).await.map(|mut pod| pod["spec"].take())
    }

    #[tokio::test]
    async fn pods_get_an_account_a_token_and_pull_secrets() {
        let mounted = json!([{"name": "x", "mountPath": MOUNT_PATH}]);
        let spec = check(json!({"containers": [{"name": "c"}, {"name": "d", "volumeMounts": mounted}]}))
            .await
            .unwrap();
        assert_eq!(
            (&spec["serviceAccountName"], &spec["serviceAccount"]),
            (&json!("default"), &json!("default"))
        );
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "pull"}]));
        let volume = spec["volumes"][0]["name"].as_str().unwrap();
        assert!(volume.starts_with("kube-api-access-") && volume.len() == 21, "{volume}");
        assert_eq!(
            spec["containers"][0]["volumeMounts"],
            json!([{"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}])
        );
        assert_eq!(spec["containers"][1]["volumeMounts"], mounted);
        let again = check(spec.clone()).await.unwrap();
        assert_eq!(again, spec, "a second pass changes nothing");
    }

    #[tokio::test]
    async fn accounts_may_decline_and_must_exist() {
        let spec =
            check(json!({"serviceAccountName": "quiet", "containers": [{"name": "c"}]})).await.unwrap();
        assert_eq!(spec.get("volumes"), None);
        let wanted =
            json!({"serviceAccountName": "quiet", "automountServiceAccountToken": true, "containers": [{}]});
        assert!(check(wanted).await.unwrap().get("volumes").is_some());
        assert_eq!(
            check(json!({"serviceAccountName": "gone"})).await.unwrap_err(),
            r#"pods "p" is forbidden: error looking up service account a/gone: serviceaccount "gone" not found"#
        );
    }

    #[tokio::test]
    async fn strict_accounts_limit_secrets() {
        let with = |secret: &str| json!({"serviceAccountName": "strict", "volumes": [{"name": "v", "secret": {"secretName": secret}}]});
        assert!(check(with("mine")).await.is_ok());
        assert_eq!(
            check(with("other")).await.unwrap_err(),
            r#"pods "p" is forbidden: volume with secret.secretName="other" is not allowed because service account strict does not reference that secret"#
        );
    }
}
