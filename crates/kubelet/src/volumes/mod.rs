//! A pod's volumes on the node: made before its containers, refreshed while they run, removed after them.

pub(crate) mod atomic;
pub(crate) mod container_mounts;
pub(crate) mod host_path;
pub(crate) mod mounts;
pub(crate) mod payload;
pub(crate) mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, PersistentVolume, PersistentVolumeClaim, ProjectedVolumeSource, Volume,
};

use crate::api::{Api, ApiError};
use crate::container::field_ref::{FieldError, PodFacts};
use crate::pod::model::PodModel;
use crate::pod::resources::pod_cgroup;
use crate::quantity;

use atomic::Payload;
use payload::{DEFAULT_MODE, add_downward, add_entries, config_map_entries, secret_entries};
use tokens::Tokens;

#[derive(Debug)]
pub(crate) struct Volumes {
    root: PathBuf,
    api: Api,
    tokens: Tokens,
}

/// Where a pod's volumes stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodVolumes {
    pub(crate) paths: BTreeMap<String, VolumePath>,
    /// When a service account token wants renewal.
    pub(crate) renew_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VolumePath {
    Directory {
        path: PathBuf,
        read_only: bool,
    },
    /// Mounted by the runtime itself.
    Image {
        reference: String,
        pull_policy: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ObjectKind {
    ConfigMap,
    Secret,
}

/// An object whose change changes a running pod's files.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ObjectReference {
    pub(crate) kind: ObjectKind,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("references non-existent {what} key: {key}")]
    MissingKey { what: &'static str, key: String },
    #[error("hostPath type check failed: {} is not {wanted}", path.display())]
    HostPathType { path: PathBuf, wanted: &'static str },
    #[error("PVC {name} is not bound")]
    ClaimNotBound { name: String },
    #[error("no volume plugin matched: {volume}")]
    NoPlugin { volume: String },
    #[error("{}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("MountVolume.SetUp failed for volume \"{volume}\" ")]
    SetUp {
        volume: String,
        #[source]
        source: Box<VolumeError>,
    },
}

pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::Io { path, source }
}

/// The config maps and secrets mounted by a pod.
pub(crate) fn references(model: &PodModel) -> BTreeSet<ObjectReference> {
    let mut found = BTreeSet::new();
    let mut add = |kind, name: &str| {
        let namespace = model.namespace.clone();
        found.insert(ObjectReference { kind, namespace, name: name.to_owned() });
    };
    for volume in model.spec.volumes.iter().flatten() {
        if let Some(source) = &volume.config_map {
            add(ObjectKind::ConfigMap, &source.name);
        }
        if let Some(name) = volume.secret.as_ref().and_then(|s| s.secret_name.as_ref()) {
            add(ObjectKind::Secret, name);
        }
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            if let Some(map) = &source.config_map {
                add(ObjectKind::ConfigMap, &map.name);
            }
            if let Some(secret) = &source.secret {
                add(ObjectKind::Secret, &secret.name);
            }
        }
    }
    found
}

impl Volumes {
    pub(crate) fn new(root: &Path, api: Api) -> Self {
        Self { root: root.to_owned(), tokens: Tokens::new(api.clone()), api }
    }

    pub(crate) fn pod_directory(&self, uid: &str) -> PathBuf {
        self.root.join("pods").join(uid)
    }

    /// Makes or refreshes every volume of the pod. Safe to run again at any time.
    pub(crate) async fn set_up(
        &self,
        model: &PodModel,
        facts: &PodFacts,
        now: Timestamp,
    ) -> Result<PodVolumes, VolumeError> {
        let directory = self.pod_directory(&model.uid);
        fs::create_dir_all(directory.join("volumes")).map_err(at(&directory))?;
        let mut result = PodVolumes::default();
        for volume in model.spec.volumes.iter().flatten() {
            let path =
                self.set_up_one(model, facts, volume, now, &mut result.renew_at).await.map_err(|source| {
                    VolumeError::SetUp { volume: volume.name.clone(), source: Box::new(source) }
                })?;
            result.paths.insert(volume.name.clone(), path);
        }
        Ok(result)
    }

    async fn set_up_one(
        &self,
        model: &PodModel,
        facts: &PodFacts,
        volume: &Volume,
        now: Timestamp,
        renew_at: &mut Option<Timestamp>,
    ) -> Result<VolumePath, VolumeError> {
        let group = fs_group(model);
        if let Some(source) = &volume.host_path {
            let path = PathBuf::from(&source.path);
            host_path::prepare(&path, source.type_.as_deref().unwrap_or_default())?;
            return Ok(VolumePath::Directory { path, read_only: false });
        }
        if let Some(source) = &volume.image {
            let reference = source.reference.clone().unwrap_or_default();
            return Ok(VolumePath::Image { reference, pull_policy: source.pull_policy.clone() });
        }
        if let Some(source) = &volume.persistent_volume_claim {
            let path = self.claimed_path(model, &source.claim_name).await?;
            return Ok(VolumePath::Directory { path, read_only: source.read_only == Some(true) });
        }
        if volume.ephemeral.is_some() {
            let claim = format!("{}-{}", model.name, volume.name);
            let path = self.claimed_path(model, &claim).await?;
            return Ok(VolumePath::Directory { path, read_only: false });
        }
        if let Some(source) = &volume.empty_dir {
            let path = self.volume_directory(model, "empty-dir", &volume.name);
            set_up_empty_dir(model, source, &path).map_err(at(&path))?;
            if let Some(group) = group {
                own(path.clone(), group, false).await?;
            }
            return Ok(VolumePath::Directory { path, read_only: false });
        }
        let (plugin, payload) = self.payload(model, facts, volume, now, renew_at).await?;
        let path = self.volume_directory(model, plugin, &volume.name);
        if plugin == "configmap" {
            fs::create_dir_all(&path).map_err(at(&path))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).map_err(at(&path))?;
        } else {
            // Secrets never reach a disk.
            mounts::tmpfs(&path, None, true).map_err(at(&path))?;
        }
        atomic::write(&path, &payload, group).map_err(at(&path))?;
        Ok(VolumePath::Directory { path, read_only: true })
    }

    fn volume_directory(&self, model: &PodModel, plugin: &str, volume: &str) -> PathBuf {
        self.pod_directory(&model.uid).join("volumes").join(format!("kubernetes.io~{plugin}")).join(volume)
    }

    async fn payload(
        &self,
        model: &PodModel,
        facts: &PodFacts,
        volume: &Volume,
        now: Timestamp,
        renew_at: &mut Option<Timestamp>,
    ) -> Result<(&'static str, Payload), VolumeError> {
        let mut payload = Payload::new();
        if let Some(source) = &volume.config_map {
            let optional = source.optional == Some(true);
            let entries = optional_entries(
                self.api.config_map(&model.namespace, &source.name).await.map(|m| config_map_entries(&m)),
                optional,
            )?;
            let items = source.items.as_deref().unwrap_or_default();
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            add_entries(&mut payload, entries, items, mode, optional, "config")?;
            return Ok(("configmap", payload));
        }
        if let Some(source) = &volume.secret {
            let optional = source.optional == Some(true);
            let name = source.secret_name.as_deref().unwrap_or_default();
            let entries = self.api.secret(&model.namespace, name).await.map(|s| secret_entries(&s));
            let items = source.items.as_deref().unwrap_or_default();
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            add_entries(&mut payload, optional_entries(entries, optional)?, items, mode, optional, "secret")?;
            return Ok(("secret", payload));
        }
        if let Some(source) = &volume.downward_api {
            let items = source.items.as_deref().unwrap_or_default();
            add_downward(&mut payload, model, facts, items, source.default_mode.unwrap_or(DEFAULT_MODE))?;
            return Ok(("downward-api", payload));
        }
        if let Some(source) = &volume.projected {
            self.add_projected(&mut payload, model, facts, source, now, renew_at).await?;
            return Ok(("projected", payload));
        }
        Err(VolumeError::NoPlugin { volume: volume.name.clone() })
    }

    async fn add_projected(
        &self,
        payload: &mut Payload,
        model: &PodModel,
        facts: &PodFacts,
        projected: &ProjectedVolumeSource,
        now: Timestamp,
        renew_at: &mut Option<Timestamp>,
    ) -> Result<(), VolumeError> {
        let mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
        for source in projected.sources.iter().flatten() {
            if let Some(map) = &source.config_map {
                let optional = map.optional == Some(true);
                let found = self.api.config_map(&model.namespace, &map.name).await;
                let entries = optional_entries(found.map(|m| config_map_entries(&m)), optional)?;
                add_entries(
                    payload,
                    entries,
                    map.items.as_deref().unwrap_or_default(),
                    mode,
                    optional,
                    "config",
                )?;
            }
            if let Some(secret) = &source.secret {
                let optional = secret.optional == Some(true);
                let found = self.api.secret(&model.namespace, &secret.name).await;
                let entries = optional_entries(found.map(|s| secret_entries(&s)), optional)?;
                let items = secret.items.as_deref().unwrap_or_default();
                add_entries(payload, entries, items, mode, optional, "secret")?;
            }
            if let Some(downward) = &source.downward_api {
                add_downward(payload, model, facts, downward.items.as_deref().unwrap_or_default(), mode)?;
            }
            if let Some(token) = &source.service_account_token {
                let (file, renewal) = self.tokens.file(model, token, mode, now).await?;
                *renew_at = Some(renew_at.map_or(renewal, |at| at.min(renewal)));
                payload.insert(token.path.clone(), file);
            }
        }
        Ok(())
    }

    /// The directory behind a bound claim of a local or hostPath volume.
    async fn claimed_path(&self, model: &PodModel, claim: &str) -> Result<PathBuf, VolumeError> {
        let claims = self.api.namespaced::<PersistentVolumeClaim>(&model.namespace)?;
        let found = claims.get(claim).await;
        let found = found.map_err(|e| ApiError::call("get", format!("persistentvolumeclaim {claim}"), e))?;
        let bound = found.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        let name = found.spec.and_then(|s| s.volume_name).filter(|n| bound && !n.is_empty());
        let name = name.ok_or_else(|| VolumeError::ClaimNotBound { name: claim.to_owned() })?;
        let volume: PersistentVolume = self.api.get("persistentvolume", &name).await?;
        let spec = volume.spec.unwrap_or_default();
        let path = if let Some(source) = spec.host_path {
            let path = PathBuf::from(source.path);
            host_path::prepare(&path, source.type_.as_deref().unwrap_or_default())?;
            path
        } else if let Some(source) = spec.local {
            let path = PathBuf::from(source.path);
            fs::metadata(&path).map_err(at(&path))?;
            path
        } else {
            return Err(VolumeError::NoPlugin { volume: name });
        };
        if let Some(group) = fs_group(model).filter(|_| path.is_dir()) {
            let on_mismatch =
                model.spec.security_context.as_ref().and_then(|s| s.fs_group_change_policy.as_deref())
                    == Some("OnRootMismatch");
            own(path.clone(), group, on_mismatch).await?;
        }
        Ok(path)
    }

    /// Unmounts and removes everything the pod had, its directory included.
    pub(crate) async fn tear_down(&self, uid: &str) -> Result<(), VolumeError> {
        self.tokens.forget(uid);
        let directory = self.pod_directory(uid);
        let path = directory.clone();
        let work = move || -> io::Result<()> {
            if !directory.exists() {
                return Ok(());
            }
            mounts::unmount_below(&directory)?;
            fs::remove_dir_all(&directory)
        };
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other).and_then(|r| r).map_err(at(&path))
    }
}

fn optional_entries(
    found: Result<Vec<(String, Vec<u8>)>, ApiError>,
    optional: bool,
) -> Result<Vec<(String, Vec<u8>)>, VolumeError> {
    match found {
        Err(error) if optional && error.is_not_found() => Ok(Vec::new()),
        other => Ok(other?),
    }
}

pub(crate) fn fs_group(model: &PodModel) -> Option<u32> {
    let group = model.spec.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

async fn own(path: PathBuf, group: u32, only_on_mismatch: bool) -> Result<(), VolumeError> {
    let shown = path.clone();
    let work = move || -> io::Result<()> {
        if only_on_mismatch && mounts::has_group(&path, group)? {
            return Ok(());
        }
        mounts::set_group(&path, group, false)
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other).and_then(|r| r).map_err(at(&shown))
}

fn set_up_empty_dir(model: &PodModel, source: &EmptyDirVolumeSource, path: &Path) -> io::Result<()> {
    if path.exists() && !matches!(source.medium.as_deref(), Some("Memory")) {
        return Ok(());
    }
    match source.medium.as_deref().unwrap_or_default() {
        "Memory" => {
            let limit = source.size_limit.as_ref().map(quantity::value).filter(|l| *l > 0);
            let memory = pod_cgroup(&model.spec).memory_bytes;
            let size = match (limit, memory) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            return mounts::tmpfs(path, size, false);
        }
        "HugePages" => return mounts::hugetlbfs(path, None),
        medium if medium.starts_with("HugePages-") => {
            return mounts::hugetlbfs(path, medium.strip_prefix("HugePages-"));
        }
        _ => {}
    }
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o777))
}
