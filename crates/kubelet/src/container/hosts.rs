//! `/etc/hosts` of a pod, and its host name.

use k8s_openapi::api::core::v1::HostAlias;

use crate::pod::model::PodModel;

const MAX_HOSTNAME: usize = 63;
const MAX_FQDN: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long (64 characters is the max, {} characters requested)", fqdn.len())]
pub(crate) struct FqdnTooLong {
    fqdn: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodHostname {
    /// What the kernel is told.
    pub(crate) kernel: String,
    pub(crate) short: String,
    /// `subdomain.namespace.svc.domain`, or nothing.
    pub(crate) domain: String,
}

pub(crate) fn pod_hostname(model: &PodModel, cluster_domain: &str) -> Result<PodHostname, FqdnTooLong> {
    if let Some(name) = model.spec.hostname_override.as_deref().filter(|n| !n.is_empty()) {
        return Ok(PodHostname { kernel: name.to_owned(), short: name.to_owned(), domain: String::new() });
    }
    let named = model.spec.hostname.as_deref().filter(|h| !h.is_empty());
    let short = named.map_or_else(|| truncated(&model.name), str::to_owned);
    let subdomain = model.spec.subdomain.as_deref().unwrap_or_default();
    let domain = match subdomain {
        "" => String::new(),
        subdomain => format!("{subdomain}.{}.svc.{cluster_domain}", model.namespace),
    };
    let mut kernel = short.clone();
    if model.spec.set_hostname_as_fqdn == Some(true) && !domain.is_empty() {
        kernel = format!("{short}.{domain}");
        if kernel.len() > MAX_FQDN {
            return Err(FqdnTooLong { fqdn: kernel });
        }
    }
    Ok(PodHostname { kernel, short, domain })
}

fn truncated(name: &str) -> String {
    let cut = name.char_indices().nth(MAX_HOSTNAME).map_or(name.len(), |(i, _)| i);
    name[..cut].trim_end_matches(['-', '.']).to_owned()
}

/// The managed file: loopback names, the pod's addresses, then aliases.
pub(crate) fn managed(ips: &[String], hostname: &PodHostname, aliases: &[HostAlias]) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        let names = match hostname.domain.as_str() {
            "" => hostname.short.clone(),
            domain => format!("{0}.{domain}\t{0}", hostname.short),
        };
        text.push_str(&format!("{ip}\t{names}\n"));
    }
    text + &alias_lines(aliases)
}

/// The node's file with a header and the pod's aliases.
pub(crate) fn from_node(node: &str, aliases: &[HostAlias]) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{node}{}", alias_lines(aliases))
}

fn alias_lines(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use serde_json::json;

    #[test]
    fn hostnames_follow_the_spec() {
        let long = "a".repeat(70);
        for (name, spec, expected) in [
            ("p", json!({}), Some(("p", ""))),
            (long.as_str(), json!({}), Some((&long[..63], ""))),
            ("p", json!({"hostname": "h"}), Some(("h", ""))),
            ("p", json!({"hostname": "h", "subdomain": "s"}), Some(("h", "s.n.svc.c.l"))),
            (
                "p",
                json!({"subdomain": "s", "setHostnameAsFQDN": true}),
                Some(("p.s.n.svc.c.l", "s.n.svc.c.l")),
            ),
            (long.as_str(), json!({"subdomain": "s", "setHostnameAsFQDN": true}), None),
        ] {
            let mut spec = spec;
            spec["containers"] = json!([]);
            let pod = json!({"metadata": {"name": name, "namespace": "n"}, "spec": spec});
            let model = PodModel::new(Arc::new(serde_json::from_value(pod).unwrap()));
            let got = pod_hostname(&model, "c.l").ok();
            assert_eq!(got.as_ref().map(|h| (h.kernel.as_str(), h.domain.as_str())), expected);
        }
    }

    #[test]
    fn the_hosts_file_names_the_pod_and_its_aliases() {
        let hostname = PodHostname { kernel: "h".into(), short: "h".into(), domain: "s.n.svc.c.l".into() };
        let alias = HostAlias { ip: "1.2.3.4".into(), hostnames: Some(vec!["a".into(), "b".into()]) };
        let text = managed(&["10.0.0.2".to_owned()], &hostname, &[alias]);
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(
            text.ends_with("10.0.0.2\th.s.n.svc.c.l\th\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n")
        );
    }
}
