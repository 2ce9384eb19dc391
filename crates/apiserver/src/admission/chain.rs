//! Which plugins run, and in which order.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::plugins::PLUGINS;
use super::{AdmissionPlugin, AdmissionRequest};
use crate::authn::Clock;
use crate::authz::Authorizer;
use crate::objects::{Objects, Writer};
use crate::status::ApiError;

/// What plugins work with.
#[derive(Clone)]
pub struct Context {
    pub objects: Arc<dyn Objects>,
    pub writer: Arc<dyn Writer>,
    pub authorizer: Arc<dyn Authorizer>,
    pub clock: Clock,
    /// Plugin configurations of `--admission-control-config-file` by plugin name.
    pub configuration: BTreeMap<String, Value>,
}

/// Why the plugins cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    #[error("admission plugin {0:?} is unknown")]
    Unknown(String),
    #[error("admission plugin {0:?} is both enabled and disabled")]
    Contradiction(String),
    #[error("the configuration of admission plugin {plugin:?} is wrong: {why}")]
    Configuration { plugin: &'static str, why: String },
}

/// Sets a plugin up.
pub type Build = fn(&Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError>;

/// A row of the table of plugins.
pub struct Registration {
    pub name: &'static str,
    pub default: bool,
    /// `None` for plugins that another part of the server brings.
    pub build: Option<Build>,
}

/// The plugins that run, in order.
#[derive(Clone)]
pub struct Chain {
    plugins: Vec<Arc<dyn AdmissionPlugin>>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("configuration", &self.configuration).finish_non_exhaustive()
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl Chain {
    /// The default plugins, with `enabled` and without `disabled`. `brought` are plugins from elsewhere
    /// (webhooks, policies); each takes the place upstream gives its name, if it is on.
    pub fn new(
        context: &Context,
        enabled: &[String],
        disabled: &[String],
        brought: &[Arc<dyn AdmissionPlugin>],
    ) -> Result<Self, ChainError> {
        for name in enabled.iter().chain(disabled) {
            if !PLUGINS.iter().any(|plugin| plugin.name == name) {
                return Err(ChainError::Unknown(name.clone()));
            }
            if enabled.contains(name) && disabled.contains(name) {
                return Err(ChainError::Contradiction(name.clone()));
            }
        }
        let is = |names: &[String], name: &str| names.iter().any(|own| own == name);
        let mut plugins = Vec::new();
        for row in PLUGINS {
            if is(disabled, row.name) || !(row.default || is(enabled, row.name)) {
                continue;
            }
            match row.build {
                Some(build) => plugins.push(build(context)?),
                None => plugins.extend(brought.iter().filter(|plugin| plugin.name() == row.name).cloned()),
            }
        }
        Ok(Self { plugins })
    }

    /// Adds a check of the server's own, which nobody can switch off.
    pub fn push(&mut self, plugin: Arc<dyn AdmissionPlugin>) {
        self.plugins.push(plugin);
    }

    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.plugins.iter().map(|plugin| plugin.name())
    }

    /// Runs every plugin's `admit`; the first refusal ends it.
    pub async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let resource = request.group_resource();
        for plugin in &self.plugins {
            if plugin.handles(request.operation, &resource, &request.subresource) {
                plugin.admit(request).await?;
            }
        }
        Ok(())
    }

    /// Runs every plugin's `validate`; the first refusal ends it.
    pub async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let resource = request.group_resource();
        for plugin in &self.plugins {
            if plugin.handles(request.operation, &resource, &request.subresource) {
                plugin.validate(request).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::plugins::tests::context;
    use super::*;

    fn names(enabled: &[&str], disabled: &[&str]) -> Result<Vec<&'static str>, String> {
        let own = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let chain = Chain::new(&context(&[]), &own(enabled), &own(disabled), &[]);
        chain.map(|chain| chain.names().collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_change_the_default_set_but_not_the_order() {
        let default = names(&[], &[]).unwrap();
        assert!(default.starts_with(&["NamespaceLifecycle", "LimitRanger", "ServiceAccount"]), "{default:?}");
        assert_eq!(default.last(), Some(&"ResourceQuota"));
        let changed = names(&["NodeRestriction", "AlwaysPullImages"], &["LimitRanger"]).unwrap();
        assert!(
            changed.starts_with(&[
                "NamespaceLifecycle",
                "ServiceAccount",
                "NodeRestriction",
                "TaintNodesByCondition",
                "AlwaysPullImages"
            ]),
            "{changed:?}"
        );
        assert_eq!(names(&["Nonsense"], &[]), Err("admission plugin \"Nonsense\" is unknown".to_owned()));
        assert!(names(&["Priority"], &["Priority"]).is_err());
    }
}
