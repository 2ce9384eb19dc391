//! What of a pod's volumes one container sees, and where.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cri::v1::{Device, ImageSpec, Mount, MountPropagation};
use k8s_openapi::api::core::v1::{Container, VolumeMount};

use super::mounts::bind_subpath;
use super::{PodVolumes, VolumePath};
use crate::container::config::termination_file;
use crate::container::env::expand;

#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    #[error("volume \"{volume}\" of container {container} is not mounted")]
    NoVolume { volume: String, container: String },
    #[error("cannot expand subPathExpr {expression:?}: variable {variable} is not set")]
    SubPathVariable { expression: String, variable: String },
    #[error("failed to prepare subPath for volumeMount \"{mount}\" of container \"{container}\"")]
    SubPath {
        mount: String,
        container: String,
        #[source]
        source: io::Error,
    },
    #[error("subPath of image volume {mount:?} is not supported")]
    ImageSubPath { mount: String },
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

pub(crate) struct MountInputs<'a> {
    pub(crate) pod_directory: &'a Path,
    pub(crate) container: &'a Container,
    pub(crate) volumes: &'a PodVolumes,
    pub(crate) environment: &'a [(String, String)],
    pub(crate) attempt: i32,
    /// The text of the managed hosts file, once the pod has addresses.
    pub(crate) hosts: Option<String>,
}

pub(crate) fn mounts(inputs: &MountInputs<'_>) -> Result<Vec<Mount>, MountError> {
    let mut mounts = Vec::new();
    let declared = inputs.container.volume_mounts.as_deref().unwrap_or_default();
    for (index, mount) in declared.iter().enumerate() {
        mounts.push(volume_mount(inputs, index, mount)?);
    }
    let taken = |path: &str| declared.iter().any(|m| m.mount_path.trim_end_matches('/') == path);
    if let Some(hosts) = inputs.hosts.as_ref().filter(|_| !taken("/etc/hosts")) {
        let path = inputs.pod_directory.join("etc-hosts");
        write(&path, hosts.as_bytes(), 0o644)?;
        mounts.push(plain("/etc/hosts", &path));
    }
    let termination = inputs.container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    if !termination.is_empty() && !taken(termination) {
        let path = termination_file(inputs.pod_directory, &inputs.container.name, inputs.attempt);
        write(&path, b"", 0o666)?;
        mounts.push(plain(termination, &path));
    }
    Ok(mounts)
}

fn plain(container_path: &str, host_path: &Path) -> Mount {
    Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.display().to_string(),
        ..Mount::default()
    }
}

fn write(path: &Path, data: &[u8], mode: u32) -> Result<(), MountError> {
    let write = || -> io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, data)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    write().map_err(|source| MountError::Write { path: path.to_owned(), source })
}

fn volume_mount(inputs: &MountInputs<'_>, index: usize, mount: &VolumeMount) -> Result<Mount, MountError> {
    let container = &inputs.container.name;
    let no_volume = || MountError::NoVolume { volume: mount.name.clone(), container: container.clone() };
    let volume = inputs.volumes.paths.get(&mount.name).ok_or_else(no_volume)?;
    let container_path = match mount.mount_path.strip_prefix('/') {
        Some(_) => mount.mount_path.clone(),
        None => format!("/{}", mount.mount_path),
    };
    let subpath = subpath(inputs, mount)?;
    let (path, read_only) = match volume {
        VolumePath::Image { reference, .. } => {
            // The CRI bindings know no sub-path of an image yet.
            if !subpath.is_empty() {
                return Err(MountError::ImageSubPath { mount: mount.name.clone() });
            }
            return Ok(Mount {
                container_path,
                readonly: true,
                image: Some(ImageSpec { image: reference.clone(), ..ImageSpec::default() }),
                ..Mount::default()
            });
        }
        VolumePath::Directory { path, read_only } => (path, *read_only),
    };
    let mut host_path = path.clone();
    if !subpath.is_empty() {
        let target = inputs
            .pod_directory
            .join("volume-subpaths")
            .join(&mount.name)
            .join(container)
            .join(index.to_string());
        bind_subpath(path, &subpath, &target).map_err(|source| MountError::SubPath {
            mount: mount.name.clone(),
            container: container.clone(),
            source,
        })?;
        host_path = target;
    } else if !host_path.exists() {
        // A hostPath of no stated type: Docker made a directory, and so it stays.
        fs::create_dir_all(&host_path)
            .map_err(|source| MountError::Write { path: host_path.clone(), source })?;
    }
    let readonly = mount.read_only == Some(true) || read_only;
    let recursive = matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"));
    Ok(Mount {
        container_path,
        host_path: host_path.display().to_string(),
        readonly,
        recursive_read_only: readonly && recursive,
        propagation: propagation(mount) as i32,
        ..Mount::default()
    })
}

fn propagation(mount: &VolumeMount) -> MountPropagation {
    match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => MountPropagation::PropagationBidirectional,
        _ => MountPropagation::PropagationPrivate,
    }
}

fn subpath(inputs: &MountInputs<'_>, mount: &VolumeMount) -> Result<String, MountError> {
    let Some(expression) = mount.sub_path_expr.as_deref().filter(|e| !e.is_empty()) else {
        return Ok(mount.sub_path.clone().unwrap_or_default());
    };
    let missing = std::cell::RefCell::new(None);
    let expanded = expand(expression, |name| {
        let found = inputs.environment.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
        if found.is_none() {
            missing.replace(Some(name.to_owned()));
        }
        found
    });
    match missing.into_inner() {
        Some(variable) => Err(MountError::SubPathVariable { expression: expression.to_owned(), variable }),
        None => Ok(expanded),
    }
}

/// Raw block volumes.
pub(crate) fn devices(container: &Container, volumes: &PodVolumes) -> Result<Vec<Device>, MountError> {
    let mut devices = Vec::new();
    for device in container.volume_devices.iter().flatten() {
        let Some(VolumePath::Directory { path, read_only }) = volumes.paths.get(&device.name) else {
            return Err(MountError::NoVolume {
                volume: device.name.clone(),
                container: container.name.clone(),
            });
        };
        devices.push(Device {
            container_path: device.device_path.clone(),
            host_path: path.display().to_string(),
            permissions: if *read_only { "r" } else { "mrw" }.to_owned(),
        });
    }
    Ok(devices)
}
