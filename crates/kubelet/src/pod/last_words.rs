//! What a container left to say: its termination file, or the end of its log.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use k8s_openapi::api::core::v1::PodStatus;

use super::model::ContainerModel;
use super::observed::ContainerObs;
use crate::container::config::termination_file;
use crate::logs::parse_line;

const MAX_MESSAGE_BYTES: u64 = 4096;
const MAX_LOG_BYTES: usize = 2048;
const MAX_LOG_LINES: usize = 80;
/// Enough of the log file to hold the last lines with their prefixes.
const LOG_WINDOW_BYTES: u64 = 16 << 10;

pub(super) fn read(pod_directory: &Path, container: &ContainerModel, seen: &ContainerObs) -> Option<String> {
    let path = termination_file(pod_directory, &seen.name, seen.attempt);
    let text = tail(&path, MAX_MESSAGE_BYTES).unwrap_or_default();
    if !text.is_empty() {
        return Some(text);
    }
    let from_logs = container.spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if !from_logs || seen.exit_code == 0 {
        return None;
    }
    let log = tail(Path::new(&seen.log_path), LOG_WINDOW_BYTES).ok()?;
    let lines: Vec<&str> = log.lines().filter_map(|line| parse_line(line).map(|l| l.text)).collect();
    let mut text = lines[lines.len().saturating_sub(MAX_LOG_LINES)..].join("\n");
    if !text.is_empty() {
        text.push('\n');
    }
    let start = text.len().saturating_sub(MAX_LOG_BYTES);
    let start = (start..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    Some(text.split_off(start)).filter(|t| !t.is_empty())
}

/// What the API was told before this kubelet started, when the file is gone already.
pub(super) fn known(status: &PodStatus, seen: &ContainerObs) -> Option<String> {
    let lists =
        [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    let states =
        lists.into_iter().flatten().flatten().flat_map(|s| [s.state.as_ref(), s.last_state.as_ref()]);
    states
        .flatten()
        .filter_map(|s| s.terminated.as_ref())
        .find(|t| t.container_id.as_deref().is_some_and(|id| id.ends_with(&seen.id)))
        .and_then(|t| t.message.clone())
}

fn tail(path: &Path, limit: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
    let mut data = Vec::new();
    file.take(limit).read_to_end(&mut data)?;
    Ok(String::from_utf8_lossy(&data).into_owned())
}
