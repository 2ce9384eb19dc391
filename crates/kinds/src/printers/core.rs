//! Rows of the core group.

use std::collections::BTreeSet;

use meta::quantity::Quantity;
use serde_json::{Value, json};

use super::{
    Printer, condition, containers, count, int, is_true, items, joined, labels, text, text_or, with_more,
};

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

impl Printer<'_> {
    pub(super) fn core(&self, resource: &str) -> Option<Vec<Value>> {
        let (object, spec, status) = (self.object, self.spec(), self.status());
        Some(match resource {
            "componentstatuses" => self.component_status(),
            "configmaps" => {
                let entries = count(&object["data"]) + count(&object["binaryData"]);
                vec![self.name(), json!(entries), self.age()]
            }
            "endpoints" => vec![self.name(), json!(endpoints(&object["subsets"])), self.age()],
            "events" => self.event(false),
            "namespaces" => vec![self.name(), status["phase"].clone(), self.age()],
            "nodes" => self.node(),
            "persistentvolumeclaims" => self.claim(),
            "persistentvolumes" => self.volume(),
            "pods" => self.pod(),
            "podtemplates" => {
                let template = &object["template"];
                let [names, images] = containers(template);
                vec![self.name(), names, images, json!(labels(&template["metadata"]["labels"]))]
            }
            "replicationcontrollers" => {
                let [names, images] = containers(&spec["template"]);
                let [desired, current, ready] =
                    [&spec["replicas"], &status["replicas"], &status["readyReplicas"]].map(|n| json!(int(n)));
                let selector = json!(labels(&spec["selector"]));
                vec![self.name(), desired, current, ready, self.age(), names, images, selector]
            }
            "resourcequotas" => {
                let [request, limit] = quota(status);
                vec![self.name(), json!(request), json!(limit), self.age()]
            }
            "secrets" => {
                vec![self.name(), object["type"].clone(), json!(count(&object["data"])), self.age()]
            }
            "serviceaccounts" => vec![self.name(), json!(count(&object["secrets"])), self.age()],
            "services" => self.service(),
            _ => return None,
        })
    }

    /// An event of the core group, or of `events.k8s.io` with its own field names.
    pub(super) fn event(&self, new: bool) -> Vec<Value> {
        let object = self.object;
        let field = |old: &str, newer: &str| &object[if new { newer } else { old }];
        let regarding = field("involvedObject", "regarding");
        let first = match field("firstTimestamp", "deprecatedFirstTimestamp") {
            Value::Null => self.since(&object["eventTime"]),
            time => self.since(time),
        };
        let last = match field("lastTimestamp", "deprecatedLastTimestamp") {
            Value::Null => first.clone(),
            time => self.since(time),
        };
        let series = &object["series"];
        let (last, times) = if series.is_object() {
            (self.since(&series["lastObservedTime"]), int(&series["count"]))
        } else {
            (last, int(field("count", "deprecatedCount")).max(1))
        };
        let kind = text(&regarding["kind"]).to_lowercase();
        let target = match text(&regarding["name"]) {
            "" => kind,
            name => format!("{kind}/{name}"),
        };
        let source = field("source", "deprecatedSource");
        let component =
            text_or(&source["component"], text(field("reportingComponent", "reportingController")));
        let instance = text_or(&source["host"], text(&object["reportingInstance"]));
        let source =
            if instance.is_empty() { component.to_owned() } else { format!("{component}, {instance}") };
        vec![
            json!(last),
            json!(text(&object["type"])),
            json!(text(&object["reason"])),
            json!(target),
            json!(text(&regarding["fieldPath"])),
            json!(source),
            json!(text(field("message", "note")).trim()),
            json!(first),
            json!(times),
            self.name(),
        ]
    }

    fn component_status(&self) -> Vec<Value> {
        let healthy = condition(&self.object["conditions"], "Healthy");
        let (status, message, error) = match healthy {
            Some(condition) => {
                let status = if condition["status"] == "True" { "Healthy" } else { "Unhealthy" };
                (status, text(&condition["message"]), text(&condition["error"]))
            }
            None => ("Unknown", "", ""),
        };
        vec![self.name(), json!(status), json!(message), json!(error)]
    }

    fn node(&self) -> Vec<Value> {
        let (spec, status) = (self.spec(), self.status());
        let ready = condition(&status["conditions"], "Ready");
        let mut state = match ready {
            Some(_) if is_true(&status["conditions"], "Ready") => "Ready",
            Some(_) => "NotReady",
            None => "Unknown",
        }
        .to_owned();
        if spec["unschedulable"] == true {
            state.push_str(",SchedulingDisabled");
        }
        let labels = self.object["metadata"]["labels"].as_object();
        let role = |(key, value): (&'_ String, &'_ Value)| match key.strip_prefix(ROLE_PREFIX) {
            Some(role) if !role.is_empty() => Some(role.to_owned()),
            _ if key == "kubernetes.io/role" => {
                value.as_str().filter(|role| !role.is_empty()).map(str::to_owned)
            }
            _ => None,
        };
        let roles: BTreeSet<String> = labels.into_iter().flatten().filter_map(role).collect();
        let roles = if roles.is_empty() {
            "<none>".to_owned()
        } else {
            joined(roles.iter().map(String::as_str), ",")
        };
        let address = |kind: &str| {
            let found = items(&status["addresses"]).iter().find(|address| address["type"] == kind);
            json!(found.map_or("<none>", |address| text(&address["address"])))
        };
        let info = |field: &str| json!(text_or(&status["nodeInfo"][field], "<unknown>"));
        vec![
            self.name(),
            json!(state),
            json!(roles),
            self.age(),
            json!(text(&status["nodeInfo"]["kubeletVersion"])),
            address("InternalIP"),
            address("ExternalIP"),
            info("osImage"),
            info("kernelVersion"),
            info("containerRuntimeVersion"),
        ]
    }

    fn class(&self) -> &str {
        let annotation = &self.object["metadata"]["annotations"][CLASS_ANNOTATION];
        annotation.as_str().unwrap_or_else(|| text(&self.spec()["storageClassName"]))
    }

    fn claim(&self) -> Vec<Value> {
        let (spec, status) = (self.spec(), self.status());
        let phase = if self.deleting() { "Terminating" } else { text(&status["phase"]) };
        let (capacity, modes) = match text(&spec["volumeName"]) {
            "" => (String::new(), String::new()),
            _ => (
                text_or(&status["capacity"]["storage"], "0").to_owned(),
                access_modes(&status["accessModes"]),
            ),
        };
        vec![
            self.name(),
            json!(phase),
            json!(text(&spec["volumeName"])),
            json!(capacity),
            json!(modes),
            json!(self.class()),
            json!(text_or(&spec["volumeAttributesClassName"], "<unset>")),
            self.age(),
            json!(text_or(&spec["volumeMode"], "<unset>")),
        ]
    }

    fn volume(&self) -> Vec<Value> {
        let (spec, status) = (self.spec(), self.status());
        let claim = &spec["claimRef"];
        let claim = if claim.is_object() {
            format!("{}/{}", text(&claim["namespace"]), text(&claim["name"]))
        } else {
            String::new()
        };
        let phase = if self.deleting() { "Terminating" } else { text(&status["phase"]) };
        vec![
            self.name(),
            json!(text_or(&spec["capacity"]["storage"], "0")),
            json!(access_modes(&spec["accessModes"])),
            json!(text(&spec["persistentVolumeReclaimPolicy"])),
            json!(phase),
            json!(claim),
            json!(self.class()),
            json!(text_or(&spec["volumeAttributesClassName"], "<unset>")),
            json!(text(&status["reason"])),
            self.age(),
            json!(text_or(&spec["volumeMode"], "<unset>")),
        ]
    }

    fn service(&self) -> Vec<Value> {
        let spec = self.spec();
        let ports = items(&spec["ports"]).iter().map(|port| match int(&port["nodePort"]) {
            0 => format!("{}/{}", int(&port["port"]), text(&port["protocol"])),
            node => format!("{}:{node}/{}", int(&port["port"]), text(&port["protocol"])),
        });
        let ports = ports.collect::<Vec<_>>().join(",");
        vec![
            self.name(),
            json!(text(&spec["type"])),
            json!(text_or(&spec["clusterIPs"][0], "<none>")),
            json!(self.external_ip()),
            json!(if ports.is_empty() { "<none>" } else { &ports }),
            self.age(),
            json!(labels(&spec["selector"])),
        ]
    }

    fn external_ip(&self) -> String {
        let spec = self.spec();
        let external = items(&spec["externalIPs"]).iter().map(text);
        match text(&spec["type"]) {
            "ClusterIP" | "NodePort" => match joined(external, ",").as_str() {
                "" => "<none>".to_owned(),
                ips => ips.to_owned(),
            },
            "LoadBalancer" => {
                let balancer = load_balancer(&self.status()["loadBalancer"]);
                let all = balancer.iter().map(String::as_str).chain(external);
                match joined(all, ",").as_str() {
                    "" => "<pending>".to_owned(),
                    ips => ips.to_owned(),
                }
            }
            "ExternalName" => text(&spec["externalName"]).to_owned(),
            _ => "<unknown>".to_owned(),
        }
    }
}

/// Addresses or names of a load balancer, in order.
pub(super) fn load_balancer(status: &Value) -> BTreeSet<String> {
    let ingress = items(&status["ingress"]).iter();
    let of = |ingress: &Value| text_or(&ingress["ip"], text(&ingress["hostname"])).to_owned();
    ingress.map(of).filter(|address| !address.is_empty()).collect()
}

fn access_modes(modes: &Value) -> String {
    let known = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let has = |mode: &str| items(modes).iter().any(|value| value == mode);
    joined(known.into_iter().filter(|(mode, _)| has(mode)).map(|(_, short)| short), ",")
}

fn endpoints(subsets: &Value) -> String {
    let mut list = Vec::new();
    for subset in items(subsets) {
        let addresses = items(&subset["addresses"]).iter().map(|address| text(&address["ip"]));
        let ports = items(&subset["ports"]);
        if ports.is_empty() {
            list.extend(addresses.clone().map(str::to_owned));
        }
        for port in ports {
            let port = int(&port["port"]);
            list.extend(addresses.clone().map(|ip| match ip.contains(':') {
                true => format!("[{ip}]:{port}"),
                false => format!("{ip}:{port}"),
            }));
        }
    }
    if items(subsets).is_empty() { "<none>".to_owned() } else { with_more(&list, 3, ",") }
}

/// Used and hard amounts: requests and counts, then limits.
fn quota(status: &Value) -> [String; 2] {
    let mut columns = [Vec::new(), Vec::new()];
    let amount = |value: &Value| {
        text(value).parse::<Quantity>().map_or_else(|_| "0".to_owned(), |quantity| quantity.to_string())
    };
    for (resource, hard) in status["hard"].as_object().into_iter().flatten() {
        let used = amount(&status["used"][resource]);
        columns[usize::from(resource.starts_with("limits."))]
            .push(format!("{resource}: {used}/{}", amount(hard)));
    }
    columns.map(|column| column.join(", "))
}
