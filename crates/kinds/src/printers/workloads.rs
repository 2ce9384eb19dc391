//! Rows of the groups `apps`, `batch`, `autoscaling` and `policy`.

use serde_json::{Value, json};

use super::{
    Printer, condition, containers, count, human_duration, int, int_or_string, is_true, items, labels,
    parse_time, selector, text, text_or, with_more,
};

/// How many metrics a cell names.
const METRICS: usize = 2;

impl Printer<'_> {
    pub(super) fn workloads(&self, resource: &str) -> Option<Vec<Value>> {
        let (spec, status) = (self.spec(), self.status());
        let [names, images] = containers(&spec["template"]);
        let select = || json!(selector(&spec["selector"]));
        let number = |value: &Value| json!(int(value));
        let ready = || json!(format!("{}/{}", int(&status["readyReplicas"]), int(&spec["replicas"])));
        Some(match resource {
            "controllerrevisions" => {
                let revision = number(&self.object["revision"]);
                vec![self.name(), json!(self.controller()), revision, self.age()]
            }
            "daemonsets" => {
                let mut row = vec![self.name()];
                let fields = [
                    "desiredNumberScheduled",
                    "currentNumberScheduled",
                    "numberReady",
                    "updatedNumberScheduled",
                    "numberAvailable",
                ];
                row.extend(fields.map(|field| number(&status[field])));
                row.push(json!(labels(&spec["template"]["spec"]["nodeSelector"])));
                row.extend([self.age(), names, images, select()]);
                row
            }
            "deployments" => {
                let [updated, available] =
                    ["updatedReplicas", "availableReplicas"].map(|field| number(&status[field]));
                vec![self.name(), ready(), updated, available, self.age(), names, images, select()]
            }
            "replicasets" => {
                let [desired, current, ready] =
                    [&spec["replicas"], &status["replicas"], &status["readyReplicas"]].map(number);
                vec![self.name(), desired, current, ready, self.age(), names, images, select()]
            }
            "statefulsets" => vec![self.name(), ready(), self.age(), names, images],
            "cronjobs" => self.cron_job(),
            "jobs" => {
                let [state, completions, duration] = self.job();
                vec![self.name(), state, completions, duration, self.age(), names, images, select()]
            }
            "horizontalpodautoscalers" => {
                let target = &spec["scaleTargetRef"];
                let reference = format!("{}/{}", text(&target["kind"]), text(&target["name"]));
                let metrics = json!(self.metrics());
                let min = json!(int_or_string(&spec["minReplicas"], "<unset>"));
                let [max, current] = [&spec["maxReplicas"], &status["currentReplicas"]].map(number);
                vec![self.name(), json!(reference), metrics, min, max, current, self.age()]
            }
            "poddisruptionbudgets" => {
                let [min, max] =
                    ["minAvailable", "maxUnavailable"].map(|field| json!(int_or_string(&spec[field], "N/A")));
                vec![self.name(), min, max, number(&status["disruptionsAllowed"]), self.age()]
            }
            _ => return None,
        })
    }

    /// The controller that owns the object, as `statefulset.apps/web`.
    fn controller(&self) -> String {
        let owners = items(&self.object["metadata"]["ownerReferences"]);
        let Some(owner) = owners.iter().find(|owner| owner["controller"] == true) else {
            return "<none>".to_owned();
        };
        let group = text(&owner["apiVersion"]).split_once('/').map(|(group, _)| format!(".{group}"));
        let kind = format!("{}{}", text(&owner["kind"]), group.unwrap_or_default());
        format!("{}/{}", kind.to_lowercase(), text(&owner["name"]))
    }

    fn cron_job(&self) -> Vec<Value> {
        let (spec, status) = (self.spec(), self.status());
        let job = &spec["jobTemplate"]["spec"];
        let [names, images] = containers(&job["template"]);
        let suspend = match spec["suspend"].as_bool() {
            Some(true) => "True",
            Some(false) => "False",
            None => "<unset>",
        };
        let last = match &status["lastScheduleTime"] {
            Value::Null => "<none>".to_owned(),
            time => self.since(time),
        };
        vec![
            self.name(),
            json!(text(&spec["schedule"])),
            json!(text_or(&spec["timeZone"], "<none>")),
            json!(suspend),
            json!(count(&status["active"])),
            json!(last),
            self.age(),
            names,
            images,
            json!(selector(&job["selector"])),
        ]
    }

    /// State, completions and duration.
    fn job(&self) -> [Value; 3] {
        let (spec, status) = (self.spec(), self.status());
        let succeeded = int(&status["succeeded"]);
        let completions = match (spec["completions"].as_i64(), int(&spec["parallelism"])) {
            (Some(completions), _) => format!("{succeeded}/{completions}"),
            (None, parallelism @ 2..) => format!("{succeeded}/1 of {parallelism}"),
            (None, _) => format!("{succeeded}/1"),
        };
        let duration = match (parse_time(&status["startTime"]), parse_time(&status["completionTime"])) {
            (None, _) => String::new(),
            (Some(start), end) => human_duration(end.unwrap_or(self.now).duration_since(start)),
        };
        let holds = |kind: &&str| match *kind {
            "Terminating" => self.deleting(),
            kind => is_true(&status["conditions"], kind),
        };
        let states =
            ["Complete", "Failed", "Terminating", "Suspended", "FailureTarget", "SuccessCriteriaMet"];
        let state = states.into_iter().find(holds).unwrap_or("Running");
        [json!(state), json!(completions), json!(duration)]
    }

    fn metrics(&self) -> String {
        let (spec, status) = (self.spec(), self.status());
        // Version 1 knows the processor only.
        if let Some(target) = spec["targetCPUUtilizationPercentage"].as_i64() {
            let current = &status["currentCPUUtilizationPercentage"];
            return format!("cpu: {}/{target}%", percent(current, "<unknown>"));
        }
        let current = items(&status["currentMetrics"]);
        let metrics: Vec<String> = items(&spec["metrics"])
            .iter()
            .enumerate()
            .map(|(index, metric)| self::metric(metric, current.get(index).unwrap_or(&Value::Null)))
            .collect();
        if metrics.is_empty() { "<none>".to_owned() } else { with_more(&metrics, METRICS, ", ") }
    }
}

fn metric(metric: &Value, status: &Value) -> String {
    let (field, named) = match text(&metric["type"]) {
        "External" => ("external", false),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        _ => return "<unknown type>".to_owned(),
    };
    let (source, current) = (&metric[field], &status[field]["current"]);
    let target = &source["target"];
    let amount =
        |name: &str| format!("{}/{}", text_or(&current[name], "<unknown>"), text_or(&target[name], "0"));
    let average = target["averageValue"].is_string();
    let value = match (field, average) {
        ("external" | "object", true) => format!("{} (avg)", amount("averageValue")),
        ("external" | "object", false) => amount("value"),
        ("pods", _) | (_, true) => amount("averageValue"),
        _ => {
            let current = percent(&current["averageUtilization"], "<unknown>");
            format!("{current}/{}", percent(&target["averageUtilization"], "<auto>"))
        }
    };
    if named { format!("{}: {value}", text(&source["name"])) } else { value }
}

fn percent(value: &Value, otherwise: &str) -> String {
    value.as_i64().map_or_else(|| otherwise.to_owned(), |percent| format!("{percent}%"))
}

/// Whether a certificate was approved, denied, failed, issued.
pub(super) fn signing_state(status: &Value) -> String {
    let has = |kind: &str| condition(&status["conditions"], kind).is_some();
    let mut state = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        (false, false) => "Pending",
    }
    .to_owned();
    if has("Failed") {
        state.push_str(",Failed");
    }
    if !text(&status["certificate"]).is_empty() {
        state.push_str(",Issued");
    }
    state
}
