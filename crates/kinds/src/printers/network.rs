//! Rows of the groups `networking.k8s.io` and `discovery.k8s.io`.

use serde_json::{Value, json};

use super::core::load_balancer;
use super::{Printer, items, joined, selector, text, text_or, with_more};

/// How many hosts, ports or addresses a cell names.
const SHOWN: usize = 3;

impl Printer<'_> {
    pub(super) fn network(&self, resource: &str) -> Option<Vec<Value>> {
        let (object, spec) = (self.object, self.spec());
        Some(match resource {
            "endpointslices" => {
                let ports = items(&object["ports"]).iter().map(|port| match port["port"].as_i64() {
                    Some(number) => number.to_string(),
                    None => text_or(&port["name"], "*").to_owned(),
                });
                let addresses = items(&object["endpoints"]).iter();
                let addresses = addresses.flat_map(|endpoint| items(&endpoint["addresses"])).map(text);
                vec![
                    self.name(),
                    json!(text(&object["addressType"])),
                    json!(listed(ports.collect())),
                    json!(listed(addresses.map(str::to_owned).collect())),
                    self.age(),
                ]
            }
            "ingressclasses" => {
                let parameters = &spec["parameters"];
                let parameters = match (parameters.is_object(), text(&parameters["apiGroup"])) {
                    (false, _) => "<none>".to_owned(),
                    (true, "") => format!("{}/{}", text(&parameters["kind"]), text(&parameters["name"])),
                    (true, group) => {
                        format!("{}.{group}/{}", text(&parameters["kind"]), text(&parameters["name"]))
                    }
                };
                vec![self.name(), json!(text(&spec["controller"])), json!(parameters), self.age()]
            }
            "ingresses" => self.ingress(),
            "ipaddresses" => vec![self.name(), json!(self.parent())],
            "networkpolicies" => vec![self.name(), json!(selector(&spec["podSelector"])), self.age()],
            "servicecidrs" => {
                vec![self.name(), json!(joined(items(&spec["cidrs"]).iter().map(text), ",")), self.age()]
            }
            _ => return None,
        })
    }

    fn ingress(&self) -> Vec<Value> {
        let spec = self.spec();
        let rules = items(&spec["rules"]);
        let hosts: Vec<String> =
            rules.iter().map(|rule| text(&rule["host"]).to_owned()).filter(|host| !host.is_empty()).collect();
        let hosts = if hosts.is_empty() { "*".to_owned() } else { with_more(&hosts, SHOWN, ",") };
        let addresses = load_balancer(&self.status()["loadBalancer"]);
        vec![
            self.name(),
            json!(text_or(&spec["ingressClassName"], "<none>")),
            json!(hosts),
            json!(joined(addresses.iter().map(String::as_str), ",")),
            json!(if items(&spec["tls"]).is_empty() { "80" } else { "80, 443" }),
            self.age(),
        ]
    }

    /// What an address belongs to, as `services/default/kubernetes`.
    fn parent(&self) -> String {
        let parent = &self.spec()["parentRef"];
        if !parent.is_object() {
            return "<none>".to_owned();
        }
        let mut path = text(&parent["resource"]).to_lowercase();
        for (separator, part) in [('.', "group"), ('/', "namespace"), ('/', "name")] {
            let part = text(&parent[part]);
            if !part.is_empty() {
                path.push(separator);
                path.push_str(part);
            }
        }
        path
    }
}

fn listed(texts: Vec<String>) -> String {
    if texts.is_empty() { "<unset>".to_owned() } else { with_more(&texts, SHOWN, ",") }
}
