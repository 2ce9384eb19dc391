//! The query of a request, parsed once (ListOptions, CreateOptions, PatchOptions, DeleteOptions ...).

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::status::ApiError;

/// Every option any verb reads from the query.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub label_selector: String,
    pub field_selector: String,
    pub watch: bool,
    pub allow_watch_bookmarks: bool,
    pub send_initial_events: Option<bool>,
    pub resource_version: String,
    pub resource_version_match: String,
    pub timeout_seconds: Option<u64>,
    pub limit: usize,
    pub continue_token: String,
    pub dry_run: Vec<String>,
    pub field_manager: String,
    pub field_validation: String,
    pub force: Option<bool>,
    pub grace_period_seconds: Option<i64>,
    pub orphan_dependents: Option<bool>,
    pub propagation_policy: String,
    pub ignore_store_read_error: bool,
    pub pretty: bool,
    pub include_object: String,
}

impl Options {
    pub fn parse(query: &str) -> Result<Self, ApiError> {
        let mut options = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            options.set(&decode(key)?, decode(value)?)?;
        }
        Ok(options)
    }

    fn set(&mut self, key: &str, value: Cow<'_, str>) -> Result<(), ApiError> {
        match key {
            "labelSelector" => self.label_selector = value.into_owned(),
            "fieldSelector" => self.field_selector = value.into_owned(),
            "watch" => self.watch = boolean(&value),
            "allowWatchBookmarks" => self.allow_watch_bookmarks = boolean(&value),
            "sendInitialEvents" => self.send_initial_events = Some(boolean(&value)),
            "resourceVersion" => self.resource_version = value.into_owned(),
            "resourceVersionMatch" => self.resource_version_match = value.into_owned(),
            "timeoutSeconds" => self.timeout_seconds = Some(number(key, &value)?),
            "limit" => self.limit = number(key, &value)?,
            "continue" => self.continue_token = value.into_owned(),
            "dryRun" => self.dry_run.push(value.into_owned()),
            "fieldManager" => self.field_manager = value.into_owned(),
            "fieldValidation" => self.field_validation = value.into_owned(),
            "force" => self.force = Some(boolean(&value)),
            "gracePeriodSeconds" => self.grace_period_seconds = Some(number(key, &value)?),
            "orphanDependents" => self.orphan_dependents = Some(boolean(&value)),
            "propagationPolicy" => self.propagation_policy = value.into_owned(),
            "ignoreStoreReadErrorWithClusterBreakingPotential" => {
                self.ignore_store_read_error = boolean(&value)
            }
            "pretty" => self.pretty = boolean(&value),
            "includeObject" => self.include_object = value.into_owned(),
            _ => {}
        }
        Ok(())
    }

    /// Overwrites from a `DeleteOptions` body, which wins over the query.
    pub fn merge_delete_body(&mut self, body: &Value) {
        if let Some(seconds) = body.get("gracePeriodSeconds").and_then(Value::as_i64) {
            self.grace_period_seconds = Some(seconds);
        }
        if let Some(orphan) = body.get("orphanDependents").and_then(Value::as_bool) {
            self.orphan_dependents = Some(orphan);
        }
        if let Some(policy) = body.get("propagationPolicy").and_then(Value::as_str) {
            policy.clone_into(&mut self.propagation_policy);
        }
        if let Some(dry_run) = body.get("dryRun").and_then(Value::as_array) {
            self.dry_run = dry_run.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        }
    }

    pub fn is_dry_run(&self) -> bool {
        !self.dry_run.is_empty()
    }

    /// The name that `metadata.name=x` pins, if the selector is just that among `=` terms.
    pub fn selected_name(&self) -> Option<&str> {
        self.field_selector.split(',').find_map(|term| {
            let name = term.trim().strip_prefix("metadata.name=")?;
            let name = name.strip_prefix('=').unwrap_or(name);
            (!name.is_empty()).then_some(name)
        })
    }

    /// The options as the object that admission shows to webhooks.
    pub fn to_object(&self, kind: &str) -> Value {
        let mut object = Map::new();
        object.insert("kind".to_owned(), kind.into());
        object.insert("apiVersion".to_owned(), "meta.k8s.io/v1".into());
        if !self.dry_run.is_empty() {
            object.insert("dryRun".to_owned(), self.dry_run.clone().into());
        }
        if kind == "DeleteOptions" {
            if let Some(seconds) = self.grace_period_seconds {
                object.insert("gracePeriodSeconds".to_owned(), seconds.into());
            }
            if !self.propagation_policy.is_empty() {
                object.insert("propagationPolicy".to_owned(), self.propagation_policy.clone().into());
            }
            return Value::Object(object);
        }
        if !self.field_manager.is_empty() {
            object.insert("fieldManager".to_owned(), self.field_manager.clone().into());
        }
        if !self.field_validation.is_empty() {
            object.insert("fieldValidation".to_owned(), self.field_validation.clone().into());
        }
        if let Some(force) = self.force {
            object.insert("force".to_owned(), force.into());
        }
        Value::Object(object)
    }
}

/// Percent decoding with `+` for space.
pub fn decode(text: &str) -> Result<Cow<'_, str>, ApiError> {
    if !text.bytes().any(|byte| byte == b'%' || byte == b'+') {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let digits = (bytes.next().and_then(hex), bytes.next().and_then(hex));
                let (Some(high), Some(low)) = digits else {
                    return Err(ApiError::bad_request(format!("invalid URL escape in {text:?}")));
                };
                out.push(high << 4 | low);
            }
            byte => out.push(byte),
        }
    }
    String::from_utf8(out)
        .map(Cow::Owned)
        .map_err(|_| ApiError::bad_request(format!("invalid UTF-8 in {text:?}")))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Upstream's query booleans: present and not `false` or `0` is true.
fn boolean(value: &str) -> bool {
    !matches!(value, "false" | "0")
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, ApiError> {
    value.parse().map_err(|_| {
        ApiError::bad_request(format!("strconv.ParseInt: parsing \"{value}\": invalid syntax in {key}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_decode() {
        let options =
            Options::parse("labelSelector=a%3Db%2Cc&limit=5&watch=1&fieldSelector=metadata.name%3Dx")
                .unwrap();
        assert_eq!(options.label_selector, "a=b,c");
        assert_eq!((options.limit, options.watch, options.selected_name()), (5, true, Some("x")));
        assert!(Options::parse("limit=x").is_err());
        assert!(Options::parse("labelSelector=%zz").is_err());
    }
}
