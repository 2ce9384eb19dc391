//! Rows of the remaining groups: access, admission, flow control, scheduling, nodes, aggregation.

use jiff::SignedDuration;
use serde_json::{Value, json};

use super::workloads::signing_state;
use super::{Printer, condition, count, human_duration, int, items, selector, text, text_or};

impl Printer<'_> {
    pub(super) fn cluster(&self, resource: &str) -> Option<Vec<Value>> {
        let (object, spec, status) = (self.object, self.spec(), self.status());
        Some(match resource {
            "apiservices" => vec![self.name(), json!(self.service_of()), json!(self.available()), self.age()],
            "certificatesigningrequests" => {
                let duration = spec["expirationSeconds"].as_i64().map(SignedDuration::from_secs);
                vec![
                    self.name(),
                    self.age(),
                    json!(text_or(&spec["signerName"], "<none>")),
                    json!(text(&spec["username"])),
                    json!(duration.map_or_else(|| "<none>".to_owned(), human_duration)),
                    json!(signing_state(status)),
                ]
            }
            "clusterrolebindings" | "rolebindings" => self.binding(),
            "flowschemas" => {
                let dangling = condition(&status["conditions"], "Dangling");
                vec![
                    self.name(),
                    json!(text(&spec["priorityLevelConfiguration"]["name"])),
                    json!(int(&spec["matchingPrecedence"])),
                    json!(text_or(&spec["distinguisherMethod"]["type"], "<none>")),
                    self.age(),
                    json!(dangling.map_or("?", |condition| text(&condition["status"]))),
                ]
            }
            "leases" => vec![self.name(), json!(text(&spec["holderIdentity"])), self.age()],
            "mutatingadmissionpolicies" | "validatingadmissionpolicies" => {
                let rules = if resource.starts_with('m') { &spec["mutations"] } else { &spec["validations"] };
                let kind = &spec["paramKind"];
                let kind = if kind.is_object() {
                    format!("{}/{}", text(&kind["apiVersion"]), text(&kind["kind"]))
                } else {
                    "<unset>".to_owned()
                };
                vec![self.name(), json!(count(rules)), json!(kind), self.age()]
            }
            "mutatingadmissionpolicybindings" | "validatingadmissionpolicybindings" => {
                vec![self.name(), json!(text(&spec["policyName"])), json!(self.parameter()), self.age()]
            }
            "mutatingwebhookconfigurations" | "validatingwebhookconfigurations" => {
                vec![self.name(), json!(count(&object["webhooks"])), self.age()]
            }
            "priorityclasses" => vec![
                self.name(),
                json!(int(&object["value"])),
                json!(object["globalDefault"] == true),
                self.age(),
                json!(text(&object["preemptionPolicy"])),
            ],
            "prioritylevelconfigurations" => self.priority_level(),
            "runtimeclasses" => vec![self.name(), json!(text(&object["handler"])), self.age()],
            _ => return None,
        })
    }

    fn service_of(&self) -> String {
        let service = &self.spec()["service"];
        if !service.is_object() {
            return "Local".to_owned();
        }
        format!("{}/{}", text(&service["namespace"]), text(&service["name"]))
    }

    fn available(&self) -> String {
        match condition(&self.status()["conditions"], "Available") {
            None => "Unknown".to_owned(),
            Some(condition) if condition["status"] == "True" => "True".to_owned(),
            Some(condition) => format!("{} ({})", text(&condition["status"]), text(&condition["reason"])),
        }
    }

    fn binding(&self) -> Vec<Value> {
        let role = &self.object["roleRef"];
        let subjects = |kind: &str| {
            let subjects = items(&self.object["subjects"]).iter().filter(|subject| subject["kind"] == kind);
            let names = subjects.map(|subject| match kind {
                "ServiceAccount" => format!("{}/{}", text(&subject["namespace"]), text(&subject["name"])),
                _ => text(&subject["name"]).to_owned(),
            });
            json!(names.collect::<Vec<_>>().join(", "))
        };
        vec![
            self.name(),
            json!(format!("{}/{}", text(&role["kind"]), text(&role["name"]))),
            self.age(),
            subjects("User"),
            subjects("Group"),
            subjects("ServiceAccount"),
        ]
    }

    fn parameter(&self) -> String {
        let parameter = &self.spec()["paramRef"];
        match (text(&parameter["namespace"]), text(&parameter["name"])) {
            ("", "") if parameter["selector"].is_object() => selector(&parameter["selector"]),
            ("", "") => "<unset>".to_owned(),
            ("", name) => format!("*/{name}"),
            (namespace, name) => format!("{namespace}/{name}"),
        }
    }

    fn priority_level(&self) -> Vec<Value> {
        let spec = self.spec();
        let limited = &spec["limited"];
        let queuing = &limited["limitResponse"]["queuing"];
        let number = |value: &Value| value.as_i64().map_or_else(|| json!("<none>"), |number| json!(number));
        vec![
            self.name(),
            json!(text(&spec["type"])),
            number(&limited["nominalConcurrencyShares"]),
            number(&queuing["queues"]),
            number(&queuing["handSize"]),
            number(&queuing["queueLengthLimit"]),
            self.age(),
        ]
    }
}
