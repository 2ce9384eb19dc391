//! The files of configMap, secret, downwardAPI and projected volumes.

use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Secret};

use super::VolumeError;
use super::atomic::{Payload, ProjectedFile};
use crate::container::field_ref::{self, PodFacts};
use crate::pod::model::PodModel;

pub(crate) const DEFAULT_MODE: i32 = 0o644;

pub(crate) fn mode(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0) & 0o7777
}

pub(crate) fn config_map_entries(map: &ConfigMap) -> Vec<(String, Vec<u8>)> {
    let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    text.chain(binary).collect()
}

pub(crate) fn secret_entries(secret: &Secret) -> Vec<(String, Vec<u8>)> {
    secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}

/// The chosen keys under their paths, or all under their own names.
pub(crate) fn add_entries(
    payload: &mut Payload,
    entries: Vec<(String, Vec<u8>)>,
    items: &[KeyToPath],
    default_mode: i32,
    optional: bool,
    what: &'static str,
) -> Result<(), VolumeError> {
    if items.is_empty() {
        for (key, data) in entries {
            payload.insert(key, ProjectedFile { data, mode: mode(default_mode), owner: None });
        }
        return Ok(());
    }
    for item in items {
        let Some((_, data)) = entries.iter().find(|(key, _)| *key == item.key) else {
            if optional {
                continue;
            }
            return Err(VolumeError::MissingKey { what, key: item.key.clone() });
        };
        let mode = mode(item.mode.unwrap_or(default_mode));
        payload.insert(item.path.clone(), ProjectedFile { data: data.clone(), mode, owner: None });
    }
    Ok(())
}

pub(crate) fn add_downward(
    payload: &mut Payload,
    model: &PodModel,
    facts: &PodFacts,
    items: &[DownwardAPIVolumeFile],
    default_mode: i32,
) -> Result<(), VolumeError> {
    for item in items {
        let text = if let Some(selector) = &item.field_ref {
            field_ref::field(model, facts, selector)?
        } else if let Some(selector) = &item.resource_field_ref {
            field_ref::resource(model, facts, "", selector)?
        } else {
            continue;
        };
        let mode = mode(item.mode.unwrap_or(default_mode));
        payload.insert(item.path.clone(), ProjectedFile { data: text.into_bytes(), mode, owner: None });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_choose_rename_and_set_modes() {
        let entries = vec![("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())];
        let item = |key: &str, path: &str, mode| KeyToPath { key: key.into(), path: path.into(), mode };
        for (items, optional, expected) in [
            (vec![], false, Ok("a:644 b:644")),
            (vec![item("a", "x/y", Some(0o400))], false, Ok("x/y:400")),
            (vec![item("z", "z", None)], true, Ok("")),
            (vec![item("z", "z", None)], false, Err("references non-existent config key: z")),
        ] {
            let mut payload = Payload::new();
            let result = add_entries(&mut payload, entries.clone(), &items, 0o644, optional, "config");
            let shown: Vec<String> = payload.iter().map(|(p, f)| format!("{p}:{:o}", f.mode)).collect();
            let result = result.map(|()| shown.join(" ")).map_err(|e| e.to_string());
            assert_eq!(result, expected.map(str::to_owned).map_err(str::to_owned));
        }
    }
}
