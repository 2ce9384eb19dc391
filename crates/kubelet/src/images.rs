//! Image pulls: policy, credentials, concurrency.

use std::sync::Arc;
use std::time::Instant;

use cri::v1::{AuthConfig, PodSandboxConfig};
use k8s_openapi::api::core::v1::Secret;
use reconcile::events::EventType::{Normal, Warning};
use serde_json::Value;
use tokio::sync::{Notify, Semaphore};

use crate::api::Api;
use crate::pod::memory::Waiting;
use crate::pod::model::{ContainerModel, PodModel};
use crate::recorder::Recorder;
use crate::runtime::{self, Runtime};

/// More pulls than this wait for their turn even where the configuration sets no limit.
const MAX_PULLS: usize = 32;

#[derive(Debug)]
pub(crate) struct Images {
    runtime: Runtime,
    api: Api,
    recorder: Recorder,
    turns: Semaphore,
    /// Told when there is an image more.
    changed: Arc<Notify>,
}

/// An image reference with its default tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageName {
    pub(crate) full: String,
    is_latest: bool,
}

impl ImageName {
    /// `registry/path:tag@digest` by the rules of the distribution specification.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        let mut path = name;
        if let Some((first, more)) = name.split_once('/')
            && (first.contains(['.', ':'])
                || first == "localhost"
                || first.chars().any(|c| c.is_ascii_uppercase()))
        {
            let host = first.split(':').next().unwrap_or_default();
            if host.is_empty()
                || !host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '[' | ']'))
            {
                return None;
            }
            path = more;
        }
        let part = |p: &str| {
            let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
            let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            p.chars().all(good) && p.starts_with(edge) && p.ends_with(edge)
        };
        let tag_fits = tag.is_none_or(|t| {
            let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            !t.is_empty() && t.len() <= 128 && t.chars().all(good) && !t.starts_with(['.', '-'])
        });
        let digest_fits = digest.is_none_or(|d| {
            d.split_once(':')
                .is_some_and(|(_, hex)| hex.len() >= 32 && hex.chars().all(|c| c.is_ascii_hexdigit()))
        });
        if !path.split('/').all(part) || !tag_fits || !digest_fits {
            return None;
        }
        let full = if tag.is_none() && digest.is_none() { format!("{text}:latest") } else { text.to_owned() };
        Some(Self { full, is_latest: digest.is_none() && tag.is_none_or(|t| t == "latest") })
    }
}

fn waiting(reason: &str, message: impl Into<String>) -> Waiting {
    Waiting { reason: reason.to_owned(), message: message.into() }
}

impl Images {
    pub(crate) fn new(
        runtime: Runtime,
        api: Api,
        recorder: Recorder,
        parallel: usize,
        changed: Arc<Notify>,
    ) -> Self {
        Self { runtime, api, recorder, turns: Semaphore::new(parallel.clamp(1, MAX_PULLS)), changed }
    }

    /// Makes the container's image ready and returns the reference to start it by.
    pub(crate) async fn ensure(
        &self,
        model: &PodModel,
        container: &ContainerModel,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String, Waiting> {
        let image = container.spec.image.as_deref().unwrap_or_default();
        let Some(name) = ImageName::parse(image) else {
            let message = format!(
                "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": invalid reference format"
            );
            self.recorder.container(model, container, Warning, "InspectFailed", message.clone());
            return Err(waiting("InvalidImageName", message));
        };
        let policy = container.spec.image_pull_policy.as_deref().unwrap_or_default();
        let policy = match policy {
            "" if name.is_latest => "Always",
            "" => "IfNotPresent",
            given => given,
        };
        let present = self.runtime.image(&name.full).await.map_err(|error| {
            let message = format!("Failed to inspect image \"{image}\": {}", runtime::message(&error));
            self.recorder.container(model, container, Warning, "InspectFailed", message.clone());
            waiting("ImageInspectError", message)
        })?;
        match (present, policy) {
            (Some(present), "IfNotPresent" | "Never") => {
                let note = format!("Container image \"{image}\" already present on machine");
                self.recorder.container(model, container, Normal, "Pulled", note);
                Ok(present.id)
            }
            (None, "Never") => {
                let message = format!("Container image \"{image}\" is not present with pull policy of Never");
                self.recorder.container(model, container, Warning, "ErrImageNeverPull", message.clone());
                Err(waiting("ErrImageNeverPull", message))
            }
            _ => self.pull(model, container, &name, sandbox_config).await,
        }
    }

    async fn pull(
        &self,
        model: &PodModel,
        container: &ContainerModel,
        name: &ImageName,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String, Waiting> {
        let image = container.spec.image.as_deref().unwrap_or_default();
        let asked = Instant::now();
        // The semaphore is never closed, so a turn always comes.
        let _turn = self.turns.acquire().await.ok();
        let begun = Instant::now();
        self.recorder.container(model, container, Normal, "Pulling", format!("Pulling image \"{image}\""));
        let auth = self.credentials(model, &name.full).await;
        let pulled = self.runtime.pull_image(&name.full, auth, sandbox_config).await;
        let reference = match pulled {
            Ok(reference) => reference,
            Err(error) => {
                let message = runtime::message(&error);
                let note = format!("Failed to pull image \"{image}\": {message}");
                self.recorder.container(model, container, Warning, "Failed", note);
                self.recorder.container(model, container, Warning, "Failed", "Error: ErrImagePull");
                return Err(waiting("ErrImagePull", message));
            }
        };
        self.changed.notify_one();
        let found = self.runtime.image(&reference).await.ok().flatten();
        let size = found.as_ref().map_or(0, |i| i.size);
        let (took, waited) = (begun.elapsed().as_millis(), asked.elapsed().as_millis());
        let seconds = |millis: u128| {
            if millis < 1000 {
                format!("{millis}ms")
            } else {
                format!("{}.{:03}s", millis / 1000, millis % 1000)
            }
        };
        let note = format!(
            "Successfully pulled image \"{image}\" in {} ({} including waiting). Image size: {size} bytes.",
            seconds(took),
            seconds(waited)
        );
        self.recorder.container(model, container, Normal, "Pulled", note);
        Ok(found.map_or(reference, |i| i.id))
    }

    /// The first of the pod's pull secrets that knows the image's registry.
    async fn credentials(&self, model: &PodModel, image: &str) -> Option<AuthConfig> {
        for reference in model.spec.image_pull_secrets.iter().flatten() {
            match self.api.secret(&model.namespace, &reference.name).await {
                Ok(secret) => {
                    if let Some(auth) = from_secret(&secret, image) {
                        return Some(auth);
                    }
                }
                Err(_) => {
                    let note = format!(
                        "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                        reference.name
                    );
                    self.recorder.pod(model, Warning, "FailedToRetrieveImagePullSecret", note);
                }
            }
        }
        None
    }
}

fn from_secret(secret: &Secret, image: &str) -> Option<AuthConfig> {
    let data = secret.data.as_ref()?;
    let parse = |key: &str| -> Option<Value> { serde_json::from_slice(&data.get(key)?.0).ok() };
    let registries = match parse(".dockerconfigjson") {
        Some(config) => config.get("auths")?.clone(),
        None => parse(".dockercfg")?,
    };
    let registry = registry_of(image);
    let (key, entry) = registries.as_object()?.iter().find(|(key, _)| covers(key, &registry, image))?;
    let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    Some(AuthConfig {
        username: text("username"),
        password: text("password"),
        auth: text("auth"),
        server_address: key.clone(),
        identity_token: text("identitytoken"),
        registry_token: text("registrytoken"),
    })
}

fn registry_of(image: &str) -> String {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first.to_owned(),
        _ => "docker.io".to_owned(),
    }
}

/// Whether an entry such as `https://index.docker.io/v1/` or `registry.io/team` is for this image.
fn covers(key: &str, registry: &str, image: &str) -> bool {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    let key = key.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2").trim_end_matches('/');
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host };
    let matches_host = match host.strip_prefix("*.") {
        Some(suffix) => registry.split_once('.').is_some_and(|(_, rest)| rest == suffix),
        None => host == registry,
    };
    let image_path = image.strip_prefix(registry).map_or(image, |rest| rest.trim_start_matches('/'));
    matches_host && (path.is_empty() || image_path.starts_with(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_completed() {
        let digest = format!("a@sha256:{}", "0".repeat(64));
        for (text, full) in [
            ("nginx", Some("nginx:latest")),
            ("nginx:1", Some("nginx:1")),
            ("localhost:5000/a/b", Some("localhost:5000/a/b:latest")),
            ("Registry.io/a:T_1", Some("Registry.io/a:T_1")),
            (digest.as_str(), Some(digest.as_str())),
            ("Nginx", None),
            ("a//b", None),
            ("a:", None),
            ("", None),
            ("a b", None),
            ("$(X)", None),
            ("a@sha256:12", None),
        ] {
            assert_eq!(ImageName::parse(text).map(|n| n.full).as_deref(), full, "{text}");
        }
    }

    #[test]
    fn secrets_are_found_by_registry() {
        let config = serde_json::json!({"auths": {
            "https://index.docker.io/v1/": {"username": "hub"},
            "registry.io/team": {"username": "team"},
            "*.example.com": {"username": "wild"},
        }});
        let data =
            [(".dockerconfigjson".to_owned(), k8s_openapi::ByteString(config.to_string().into_bytes()))];
        let secret = Secret { data: Some(data.into()), ..Secret::default() };
        for (image, user) in [
            ("nginx:1", Some("hub")),
            ("registry.io/team/app:1", Some("team")),
            ("registry.io/other/app:1", None),
            ("a.example.com/x", Some("wild")),
            ("quay.io/x", None),
        ] {
            assert_eq!(from_secret(&secret, image).map(|a| a.username).as_deref(), user, "{image}");
        }
    }
}
