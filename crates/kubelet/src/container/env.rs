//! A container's environment: `envFrom`, `env`, the downward API, service variables and `$(NAME)` expansion.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Secret, Service};

use super::field_ref::{self, FieldError, PodFacts};
use crate::pod::model::PodModel;

/// The objects an environment refers to; absent means it does not exist.
#[derive(Debug, Default)]
pub(crate) struct EnvSources {
    pub(crate) config_maps: BTreeMap<String, ConfigMap>,
    pub(crate) secrets: BTreeMap<String, Secret>,
    /// Services of the pod's namespace, and the API server's own.
    pub(crate) services: Vec<Service>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EnvError {
    #[error("{kind} \"{name}\" not found")]
    NoObject { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey { kind: &'static str, namespace: String, name: String, key: String },
    #[error(transparent)]
    Field(#[from] FieldError),
}

/// The names of config maps and secrets a container's environment needs.
pub(crate) fn references(container: &Container) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut maps = BTreeSet::new();
    let mut secrets = BTreeSet::new();
    for source in container.env_from.iter().flatten() {
        maps.extend(source.config_map_ref.iter().map(|r| r.name.clone()));
        secrets.extend(source.secret_ref.iter().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        maps.extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
    }
    (maps, secrets)
}

/// The variables in order: later ones of the same name replace earlier ones in place.
#[derive(Default)]
struct Variables {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Variables {
    fn set(&mut self, name: String, value: String) {
        if self.values.insert(name.clone(), value).is_none() {
            self.order.push(name);
        }
    }

    fn into_pairs(mut self) -> Vec<(String, String)> {
        let order = std::mem::take(&mut self.order);
        order.into_iter().filter_map(|name| self.values.remove(&name).map(|value| (name, value))).collect()
    }
}

pub(crate) fn build(
    model: &PodModel,
    container: &Container,
    sources: &EnvSources,
    facts: &PodFacts,
) -> Result<Vec<(String, String)>, EnvError> {
    let services = service_variables(model, &sources.services);
    let mut variables = Variables::default();
    add_sources(container, sources, &mut variables)?;
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => {
                let text = variable.value.as_deref().unwrap_or_default();
                let lookup = |name: &str| variables.values.get(name).or_else(|| services.get(name)).cloned();
                Some(expand(text, lookup))
            }
            Some(_) => from_source(model, container, sources, facts, variable)?,
        };
        if let Some(value) = value {
            variables.set(variable.name.clone(), value);
        }
    }
    for (name, value) in services {
        if !variables.values.contains_key(&name) {
            variables.set(name, value);
        }
    }
    Ok(variables.into_pairs())
}

fn add_sources(
    container: &Container,
    sources: &EnvSources,
    variables: &mut Variables,
) -> Result<(), EnvError> {
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            let found = sources.config_maps.get(&reference.name);
            require(found.is_some() || reference.optional == Some(true), "configmap", &reference.name)?;
            for (key, value) in found.and_then(|m| m.data.as_ref()).into_iter().flatten() {
                variables.set(format!("{prefix}{key}"), value.clone());
            }
        }
        if let Some(reference) = &source.secret_ref {
            let found = sources.secrets.get(&reference.name);
            require(found.is_some() || reference.optional == Some(true), "secret", &reference.name)?;
            for (key, value) in found.and_then(|m| m.data.as_ref()).into_iter().flatten() {
                variables.set(format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned());
            }
        }
    }
    Ok(())
}

fn require(present: bool, kind: &'static str, name: &str) -> Result<(), EnvError> {
    if present { Ok(()) } else { Err(EnvError::NoObject { kind, name: name.to_owned() }) }
}

/// Nothing for an optional reference that leads nowhere.
fn from_source(
    model: &PodModel,
    container: &Container,
    sources: &EnvSources,
    facts: &PodFacts,
    variable: &EnvVar,
) -> Result<Option<String>, EnvError> {
    let Some(source) = &variable.value_from else { return Ok(None) };
    if let Some(selector) = &source.field_ref {
        return Ok(Some(field_ref::field(model, facts, selector)?));
    }
    if let Some(selector) = &source.resource_field_ref {
        return Ok(Some(field_ref::resource(model, facts, &container.name, selector)?));
    }
    let missing = |kind, name: &str, key: &str| EnvError::NoKey {
        kind,
        namespace: model.namespace.clone(),
        name: name.to_owned(),
        key: key.to_owned(),
    };
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let Some(object) = sources.config_maps.get(&reference.name) else {
            return require(optional, "configmap", &reference.name).map(|()| None);
        };
        let value = object.data.as_ref().and_then(|d| d.get(&reference.key)).cloned();
        return match value {
            None if !optional => Err(missing("ConfigMap", &reference.name, &reference.key)),
            value => Ok(value),
        };
    }
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional == Some(true);
        let Some(object) = sources.secrets.get(&reference.name) else {
            return require(optional, "secret", &reference.name).map(|()| None);
        };
        let value = object.data.as_ref().and_then(|d| d.get(&reference.key));
        return match value {
            None if !optional => Err(missing("Secret", &reference.name, &reference.key)),
            value => Ok(value.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned())),
        };
    }
    Ok(None)
}

/// Replaces `$(NAME)`; `$$` is a dollar sign; what cannot be resolved stays as it is.
pub(crate) fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find('$') {
        out.push_str(&rest[..position]);
        rest = &rest[position + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            out.push_str(&lookup(name).unwrap_or_else(|| format!("$({name})")));
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// The variables of the namespace's services, if the pod wants them, and always the API server's.
fn service_variables(model: &PodModel, services: &[Service]) -> BTreeMap<String, String> {
    let links = model.spec.enable_service_links != Some(false);
    let mut variables = BTreeMap::new();
    let own = |s: &Service| s.metadata.namespace.as_deref() == Some(model.namespace.as_str());
    let master = |s: &Service| {
        s.metadata.namespace.as_deref() == Some("default") && s.metadata.name.as_deref() == Some("kubernetes")
    };
    for service in services.iter().filter(|s| master(s)).chain(services.iter().filter(|s| own(s) && links)) {
        add_service(service, &mut variables);
    }
    variables
}

fn add_service(service: &Service, variables: &mut BTreeMap<String, String>) {
    let Some(spec) = &service.spec else { return };
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first().filter(|_| !ip.is_empty() && ip != "None") else { return };
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let prefix = upper(service.metadata.name.as_deref().unwrap_or_default());
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    variables.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
    variables.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    for port in ports {
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            variables.insert(format!("{prefix}_SERVICE_PORT_{}", upper(name)), port.port.to_string());
        }
    }
    let url = |protocol: &str, port: i32| format!("{}://{host}:{port}", protocol.to_lowercase());
    let first_protocol = first.protocol.as_deref().unwrap_or("TCP");
    variables.insert(format!("{prefix}_PORT"), url(first_protocol, first.port));
    for port in ports {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let head = format!("{prefix}_PORT_{}_{protocol}", port.port);
        variables.insert(head.clone(), url(protocol, port.port));
        variables.insert(format!("{head}_PROTO"), protocol.to_lowercase());
        variables.insert(format!("{head}_PORT"), port.port.to_string());
        variables.insert(format!("{head}_ADDR"), ip.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use serde_json::{Value, json};

    fn environment(container: Value, sources: &EnvSources) -> Result<Vec<(String, String)>, EnvError> {
        let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [container]}});
        let model = PodModel::new(Arc::new(serde_json::from_value(pod).unwrap()));
        build(&model, &model.containers[0].spec, sources, &PodFacts::default())
    }

    fn sources() -> EnvSources {
        let map = json!({"data": {"k": "v", "data-1": "w"}});
        let secret = json!({"data": {"s": "aGk="}});
        let service = json!({"metadata": {"name": "my-svc", "namespace": "n"},
            "spec": {"clusterIP": "10.0.0.7", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}});
        EnvSources {
            config_maps: [("m".to_owned(), serde_json::from_value(map).unwrap())].into(),
            secrets: [("sec".to_owned(), serde_json::from_value(secret).unwrap())].into(),
            services: vec![serde_json::from_value(service).unwrap()],
        }
    }

    #[test]
    fn expansion_leaves_the_unknown_and_unescapes_dollars() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, expected) in [
            ("$(A)-$(B)", "1-$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A $(A", "$A $(A"),
            ("end$", "end$"),
            ("", ""),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }

    #[test]
    fn variables_come_from_every_source_in_order() {
        let container = json!({"name": "c",
        "envFrom": [{"configMapRef": {"name": "m"}, "prefix": "P_"}, {"secretRef": {"name": "none", "optional": true}}],
        "env": [
            {"name": "A", "value": "$(P_k)/$(MY_SVC_SERVICE_PORT)"},
            {"name": "P_k", "value": "over"},
            {"name": "S", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "s"}}},
            {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "zz", "optional": true}}},
            {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
        ]});
        let all = environment(container, &sources()).unwrap();
        let pairs: Vec<String> = all.iter().take(5).map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(pairs, ["P_data-1=w", "P_k=over", "A=v/80", "S=hi", "N=n"]);
        assert!(all.contains(&("MY_SVC_PORT_80_TCP".into(), "tcp://10.0.0.7:80".into())));
        assert!(all.contains(&("MY_SVC_SERVICE_PORT_HTTP".into(), "80".into())));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (env, message) in [
            (json!({"configMapKeyRef": {"name": "x", "key": "k"}}), "configmap \"x\" not found"),
            (json!({"configMapKeyRef": {"name": "m", "key": "x"}}), "couldn't find key x in ConfigMap n/m"),
            (json!({"secretKeyRef": {"name": "sec", "key": "x"}}), "couldn't find key x in Secret n/sec"),
        ] {
            let container = json!({"name": "c", "env": [{"name": "A", "valueFrom": env}]});
            assert_eq!(environment(container, &sources()).unwrap_err().to_string(), message);
        }
    }
}
