//! The pod's resolver by its DNS policy.

use k8s_openapi::api::core::v1::PodDNSConfig;

use crate::pod::model::PodModel;

const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_LINE: usize = 2048;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    pub(crate) servers: Vec<String>,
    pub(crate) searches: Vec<String>,
    pub(crate) options: Vec<String>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct ClusterDns {
    pub(crate) servers: Vec<String>,
    pub(crate) domain: String,
    /// The node's own resolver.
    pub(crate) host: Resolver,
}

pub(crate) fn resolver(model: &PodModel, cluster: &ClusterDns) -> Resolver {
    let policy = model.spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster_wide = match policy {
        "None" => return limited(custom(Resolver::default(), model.spec.dns_config.as_ref())),
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !model.host_network(),
        _ => false,
    };
    let base = if cluster_wide && !cluster.servers.is_empty() {
        cluster_first(&model.namespace, cluster)
    } else {
        cluster.host.clone()
    };
    limited(custom(base, model.spec.dns_config.as_ref()))
}

fn cluster_first(namespace: &str, cluster: &ClusterDns) -> Resolver {
    let mut searches = Vec::new();
    let domain = &cluster.domain;
    if !domain.is_empty() {
        searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    }
    for search in &cluster.host.searches {
        if !searches.contains(search) {
            searches.push(search.clone());
        }
    }
    Resolver { servers: cluster.servers.clone(), searches, options: vec!["ndots:5".to_owned()] }
}

fn custom(mut base: Resolver, config: Option<&PodDNSConfig>) -> Resolver {
    let Some(config) = config else { return base };
    extend(&mut base.servers, config.nameservers.iter().flatten());
    extend(&mut base.searches, config.searches.iter().flatten());
    for option in config.options.iter().flatten() {
        let name = option.name.clone().unwrap_or_default();
        base.options.retain(|o| o.split(':').next() != Some(&name));
        base.options.push(match option.value.as_deref() {
            Some(value) if !value.is_empty() => format!("{name}:{value}"),
            _ => name,
        });
    }
    base
}

fn extend<'a>(list: &mut Vec<String>, more: impl Iterator<Item = &'a String>) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

fn limited(mut resolver: Resolver) -> Resolver {
    resolver.servers.truncate(MAX_NAMESERVERS);
    resolver.searches.truncate(MAX_SEARCHES);
    while resolver.searches.join(" ").len() > MAX_SEARCH_LINE {
        resolver.searches.pop();
    }
    resolver
}

/// `resolv.conf` text as a resolver. The last `search` and every `options` line count.
pub(crate) fn parse(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => resolver.servers.extend(words.next().map(str::to_owned)),
            Some("search" | "domain") => {
                resolver.searches =
                    words.map(|w| if w == "." { w } else { w.trim_end_matches('.') }.to_owned()).collect();
            }
            Some("options") => resolver.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    resolver
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use serde_json::json;

    #[test]
    fn policies_choose_servers_and_searches() {
        let cluster = ClusterDns {
            servers: vec!["10.96.0.10".into()],
            domain: "cluster.local".into(),
            host: parse("nameserver 1.1.1.1\nsearch example.com.\noptions edns0\n# nameserver 2\n"),
        };
        for (spec, expected) in [
            (
                json!({}),
                "10.96.0.10 | n.svc.cluster.local svc.cluster.local cluster.local example.com | ndots:5",
            ),
            (json!({"dnsPolicy": "Default"}), "1.1.1.1 | example.com | edns0"),
            (json!({"hostNetwork": true}), "1.1.1.1 | example.com | edns0"),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"], "searches": ["a.b"],
                "options": [{"name": "ndots", "value": "2"}, {"name": "debug"}]}}),
                "9.9.9.9 | a.b | ndots:2 debug",
            ),
            (
                json!({"dnsPolicy": "Default", "dnsConfig": {"options": [{"name": "edns0", "value": "1"}]}}),
                "1.1.1.1 | example.com | edns0:1",
            ),
        ] {
            let mut spec = spec;
            spec["containers"] = json!([]);
            let pod = json!({"metadata": {"namespace": "n"}, "spec": spec});
            let model = PodModel::new(Arc::new(serde_json::from_value(pod).unwrap()));
            let got = resolver(&model, &cluster);
            let text =
                format!("{} | {} | {}", got.servers.join(" "), got.searches.join(" "), got.options.join(" "));
            assert_eq!(text, expected);
        }
    }
}
