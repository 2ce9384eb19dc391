//! What a request's method and path say it is (upstream's RequestInfo).

use http::Method;

/// Verbs of requests that name a resource, and the rest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestPath {
    pub verb: String,
    pub resource_request: bool,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// What follows the subresource: the path below `proxy`.
    pub rest: String,
}

impl RequestPath {
    /// `watching` is the query's `watch`; `named_by_selector` the name a field selector pins, which turns a
    /// list into one the name rules of authorization apply to.
    pub fn parse(method: &Method, path: &str, watching: bool, named_by_selector: Option<&str>) -> Self {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let Some((group, version, rest)) = api_of(&parts) else {
            return Self { verb: method.as_str().to_ascii_lowercase(), ..Self::default() };
        };
        let mut info = Self {
            verb: verb_of(method).to_owned(),
            resource_request: true,
            group: group.to_owned(),
            version: version.to_owned(),
            ..Self::default()
        };
        let rest = info.take_watch_prefix(rest);
        info.take_names(rest);
        info.refine_verb(watching, named_by_selector);
        info
    }

    /// The old form `/api/v1/watch/pods`.
    fn take_watch_prefix<'a>(&mut self, parts: &'a [&'a str]) -> &'a [&'a str] {
        match parts {
            ["watch", rest @ ..] if self.verb == "get" => {
                self.verb = "watch".to_owned();
                rest
            }
            _ => parts,
        }
    }

    fn take_names(&mut self, parts: &[&str]) {
        let parts = match parts {
            ["namespaces", namespace, rest @ ..] if is_namespaced(rest) => {
                (*namespace).clone_into(&mut self.namespace);
                rest
            }
            ["namespaces", name, ..] => {
                // A namespace is in itself, for authorization.
                (*name).clone_into(&mut self.namespace);
                parts
            }
            _ => parts,
        };
        let mut parts = parts.iter();
        let mut next = || parts.next().map(|part| (*part).to_owned()).unwrap_or_default();
        self.resource = next();
        self.name = next();
        self.subresource = next();
        self.rest = parts.copied().collect::<Vec<_>>().join("/");
    }

    fn refine_verb(&mut self, watching: bool, named_by_selector: Option<&str>) {
        if !self.name.is_empty() {
            return;
        }
        match self.verb.as_str() {
            "get" => {
                self.verb = if watching { "watch" } else { "list" }.to_owned();
            }
            "delete" => "deletecollection".clone_into(&mut self.verb),
            _ => return,
        }
        if let Some(name) = named_by_selector {
            name.clone_into(&mut self.name);
        }
    }
}

/// Below `/namespaces/x` these two belong to the namespace object itself.
fn is_namespaced(rest: &[&str]) -> bool {
    !matches!(rest, [] | ["status" | "finalize"])
}

fn api_of<'a>(parts: &'a [&'a str]) -> Option<(&'a str, &'a str, &'a [&'a str])> {
    match parts {
        ["api", version, rest @ ..] if !rest.is_empty() => Some(("", version, rest)),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => Some((group, version, rest)),
        _ => None,
    }
}

fn verb_of(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::GET | Method::HEAD => "get",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_upstream_reads_them() {
        // method, path, verb, group/version, namespace, resource/subresource, name
        let table = [
            ("GET", "/api/v1/pods", "list", "/v1", "", "pods/", ""),
            ("GET", "/api/v1/namespaces/a/pods/p/log", "get", "/v1", "a", "pods/log", "p"),
            ("POST", "/api/v1/namespaces/a/pods/p/exec", "create", "/v1", "a", "pods/exec", "p"),
            ("GET", "/api/v1/namespaces/a", "get", "/v1", "a", "namespaces/", "a"),
            ("PUT", "/api/v1/namespaces/a/finalize", "update", "/v1", "a", "namespaces/finalize", "a"),
            ("GET", "/api/v1/namespaces", "list", "/v1", "", "namespaces/", ""),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/a/deployments",
                "deletecollection",
                "apps/v1",
                "a",
                "deployments/",
                "",
            ),
            ("GET", "/api/v1/watch/namespaces/a/pods", "watch", "/v1", "a", "pods/", ""),
            ("GET", "/api/v1/", "get", "/", "", "/", ""),
            ("GET", "/healthz", "get", "/", "", "/", ""),
        ];
        for (method, path, verb, group_version, namespace, resource, name) in table {
            let info = RequestPath::parse(&method.parse().unwrap(), path, false, None);
            let got = (
                info.verb.as_str(),
                format!("{}/{}", info.group, info.version),
                info.namespace.as_str(),
                format!("{}/{}", info.resource, info.subresource),
                info.name.as_str(),
            );
            assert_eq!(got, (verb, group_version.to_owned(), namespace, resource.to_owned(), name), "{path}");
        }
    }
}
