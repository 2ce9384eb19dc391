//! The documents of an image: index, manifest, configuration. Only the fields a runtime needs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ImageError, platform};

/// Media types of what may stand for several images.
pub(super) const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];

/// Media types of one image's manifest.
pub(super) const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];

/// A reference to content.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Platform {
    pub(super) architecture: String,
    pub(super) os: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    pub(super) schema_version: u32,
    #[serde(default)]
    pub(super) manifests: Vec<Descriptor>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) media_type: Option<String>,
    pub(super) config: Descriptor,
    #[serde(default)]
    pub(super) layers: Vec<Descriptor>,
}

/// The configuration of an image.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ImageConfig {
    pub(crate) architecture: String,
    pub(crate) os: String,
    pub(crate) config: ProcessConfig,
    pub(crate) rootfs: RootFs,
}

/// What to run, unless told otherwise.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ProcessConfig {
    #[serde(rename = "User")]
    pub(crate) user: String,
    #[serde(rename = "Env", deserialize_with = "null_is_empty")]
    pub(crate) env: Vec<String>,
    #[serde(rename = "Entrypoint", deserialize_with = "null_is_empty")]
    pub(crate) entrypoint: Vec<String>,
    #[serde(rename = "Cmd", deserialize_with = "null_is_empty")]
    pub(crate) cmd: Vec<String>,
    #[serde(rename = "WorkingDir")]
    pub(crate) working_dir: String,
    #[serde(rename = "StopSignal")]
    pub(crate) stop_signal: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RootFs {
    #[serde(deserialize_with = "null_is_empty")]
    pub(crate) diff_ids: Vec<String>,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// The manifest for this machine among several.
pub(super) fn choose(index: &Index) -> Result<&Descriptor, ImageError> {
    let (os, architecture) = platform();
    let usable = |descriptor: &&Descriptor| {
        MANIFEST_TYPES.contains(&descriptor.media_type.as_str())
            || INDEX_TYPES.contains(&descriptor.media_type.as_str())
    };
    let candidates: Vec<&Descriptor> = index.manifests.iter().filter(usable).collect();
    let fits = |descriptor: &&&Descriptor| match &descriptor.platform {
        Some(platform) => platform.os == os && platform.architecture == architecture,
        None => false,
    };
    if let Some(found) = candidates.iter().find(fits) {
        return Ok(found);
    }
    // An index that names no platform leaves it to the image.
    if let Some(found) = candidates.iter().find(|descriptor| descriptor.platform.is_none()) {
        return Ok(found);
    }
    let have = candidates.iter().filter_map(|descriptor| descriptor.platform.as_ref());
    let have: Vec<String> =
        have.map(|platform| format!("{}/{}", platform.os, platform.architecture)).collect();
    Err(ImageError::WrongPlatform { wanted: format!("{os}/{architecture}"), have: have.join(", ") })
}

/// Refuses the image of another machine.
pub(super) fn check_platform(config: &ImageConfig) -> Result<(), ImageError> {
    let (os, architecture) = platform();
    let fits = (config.os.is_empty() || config.os == os)
        && (config.architecture.is_empty() || config.architecture == architecture);
    if fits {
        return Ok(());
    }
    Err(ImageError::WrongPlatform {
        wanted: format!("{os}/{architecture}"),
        have: format!("{}/{}", config.os, config.architecture),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_lists_are_empty_lists() {
        let config: ImageConfig = serde_json::from_str(r#"{"config":{"Cmd":null,"Env":["A=b"]}}"#).unwrap();
        assert!(config.config.cmd.is_empty());
        assert_eq!(config.config.env, ["A=b"]);
    }

    #[test]
    fn the_image_of_another_machine_is_refused() {
        let config = ImageConfig { architecture: "vax".into(), os: "linux".into(), ..ImageConfig::default() };
        assert!(matches!(check_platform(&config), Err(ImageError::WrongPlatform { .. })));
        assert!(check_platform(&ImageConfig::default()).is_ok());
    }
}
