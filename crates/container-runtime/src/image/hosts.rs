//! Which hosts serve a registry: mirrors and trust from `DIR/REGISTRY/hosts.toml`, in containerd's form.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ImageError;

/// Where Docker Hub really is.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// The directory for registries without one of their own.
const DEFAULT_DIRECTORY: &str = "_default";

/// One server to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// Name and perhaps port.
    pub(super) authority: String,
    pub(super) plain_http: bool,
    /// It stands for another registry.
    pub(super) is_mirror: bool,
    pub(super) skip_verify: bool,
    /// Files with certificates to trust.
    pub(super) ca: Vec<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HostsFile {
    server: Option<String>,
    #[serde(flatten)]
    top: HostTable,
    host: BTreeMap<String, HostTable>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HostTable {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    skip_verify: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

/// The hosts to ask for a registry, in order; the registry itself is the last.
pub(super) fn hosts_of(registry: &str, directory: Option<&Path>) -> Result<Vec<Host>, ImageError> {
    let Some(directory) = directory else { return Ok(vec![own_host(registry)]) };
    for name in [registry.to_owned(), registry.replace(':', "_") + "_", DEFAULT_DIRECTORY.to_owned()] {
        let directory = directory.join(name);
        let path = directory.join("hosts.toml");
        match fs::read_to_string(&path) {
            Ok(text) => {
                return parse(&text, registry, &directory)
                    .map_err(|reason| ImageError::Hosts { path, reason });
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(error) => return Err(ImageError::file("read", path)(error)),
        }
    }
    Ok(vec![own_host(registry)])
}

/// A registry that nothing is said about. One on this machine needs no TLS.
fn own_host(registry: &str) -> Host {
    let authority = if registry == DOCKER_HUB.0 { DOCKER_HUB.1 } else { registry };
    let name = authority.rsplit_once(':').map_or(authority, |(name, _)| name);
    let plain_http = matches!(name, "localhost" | "127.0.0.1" | "[::1]");
    Host { authority: authority.to_owned(), plain_http, is_mirror: false, skip_verify: false, ca: Vec::new() }
}

fn parse(text: &str, registry: &str, directory: &Path) -> Result<Vec<Host>, String> {
    // Hosts are asked in the order of the file, which the map loses.
    let file: HostsFile = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    let position = |url: &str| text.find(&format!("\"{url}\"")).unwrap_or(usize::MAX);
    let mut tables: Vec<(&String, &HostTable)> = file.host.iter().collect();
    tables.sort_by_key(|(url, _)| position(url));
    let mut hosts = Vec::new();
    for (url, table) in tables {
        let pulls = table.capabilities.as_ref().is_none_or(|list| list.iter().any(|name| name == "pull"));
        if pulls {
            hosts.push(host(url, table, directory, true)?);
        }
    }
    hosts.push(match &file.server {
        Some(server) => {
            let own = own_host(registry);
            let server = host(server, &file.top, directory, false)?;
            Host { is_mirror: server.authority != own.authority, ..server }
        }
        None => own_host(registry),
    });
    Ok(hosts)
}

fn host(url: &str, table: &HostTable, directory: &Path, is_mirror: bool) -> Result<Host, String> {
    let (plain_http, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => (own_host(url).plain_http, url),
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if !matches!(path.trim_matches('/'), "" | "v2") {
        return Err(format!("host {url:?} has a path, which is not supported"));
    }
    if authority.is_empty() {
        return Err(format!("host {url:?} has no name"));
    }
    let ca = match &table.ca {
        None => Vec::new(),
        Some(OneOrMany::One(path)) => vec![directory.join(path)],
        Some(OneOrMany::Many(paths)) => paths.iter().map(|path| directory.join(path)).collect(),
    };
    Ok(Host { authority: authority.to_owned(), plain_http, is_mirror, skip_verify: table.skip_verify, ca })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(registry: &str, text: &str, expected: &[&str]) {
        let show = |host: &Host| {
            let scheme = if host.plain_http { "http" } else { "https" };
            let mirror = if host.is_mirror { " mirror" } else { "" };
            let skip = if host.skip_verify { " unverified" } else { "" };
            format!("{scheme}://{}{mirror}{skip}", host.authority)
        };
        let hosts = parse(text, registry, Path::new("/etc/x")).unwrap();
        assert_eq!(hosts.iter().map(show).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn mirrors_are_asked_in_the_order_of_the_file() {
        check(
            "docker.io",
            "server = \"https://registry-1.docker.io\"\n[host.\"http://z:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n\
             [host.\"https://a\"]\n  skip_verify = true\n[host.\"https://push\"]\n  capabilities = [\"push\"]\n",
            &["http://z:5000 mirror", "https://a mirror unverified", "https://registry-1.docker.io"],
        );
        check("localhost:5000", "", &["http://localhost:5000"]);
        check("example.com", "", &["https://example.com"]);
    }

    #[test]
    fn bad_files_are_errors() {
        for text in ["server = 1", "[host.\"https://a/b/c\"]", "[host.\"https://\"]", "["] {
            assert!(parse(text, "x", Path::new("/")).is_err(), "{text}");
        }
    }
}
