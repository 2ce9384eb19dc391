//! Between the versions of built-in kinds that are served in more than one: autoscalers and events.

mod autoscaler;

use serde_json::{Map, Value};

/// What an event's fields are called in the core group and in `events.k8s.io`.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("count", "deprecatedCount"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("involvedObject", "regarding"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
];

/// Turns an object of one version into another, where its fields differ, and names its new version. The result
/// is not normalized: fields that the new version always writes may be absent.
pub fn convert(object: &mut Value, to: &str) {
    let Some(fields) = object.as_object_mut() else { return };
    let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    match (text("kind"), text("apiVersion"), to) {
        ("Event", "v1", "events.k8s.io/v1") => {
            EVENT_FIELDS.iter().for_each(|(core, new)| rename(fields, core, new));
        }
        ("Event", "events.k8s.io/v1", "v1") => {
            EVENT_FIELDS.iter().for_each(|(core, new)| rename(fields, new, core));
        }
        ("HorizontalPodAutoscaler", "autoscaling/v1", "autoscaling/v2") => autoscaler::to_v2(fields),
        ("HorizontalPodAutoscaler", "autoscaling/v2", "autoscaling/v1") => autoscaler::to_v1(fields),
        _ => {}
    }
    fields.insert("apiVersion".to_owned(), Value::from(to));
}

fn rename(fields: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = fields.remove(from) {
        fields.insert(to.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Checks one direction, and that going back gives the start.
    fn check(mut object: Value, to: &str, expected: Value) {
        let (start, from) = (object.clone(), object["apiVersion"].as_str().expect("a version").to_owned());
        convert(&mut object, to);
        assert_eq!(object, expected);
        convert(&mut object, &from);
        assert_eq!(object, start, "and back");
    }

    #[test]
    fn events_keep_everything_under_other_names() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "message": "m", "count": 2,
            "involvedObject": {"kind": "Pod"}, "source": {"component": "c"}, "reportingComponent": "r",
            "firstTimestamp": null, "lastTimestamp": "2030-01-01T00:00:00Z", "reason": "x"});
        let new = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "note": "m",
            "deprecatedCount": 2, "regarding": {"kind": "Pod"}, "deprecatedSource": {"component": "c"},
            "reportingController": "r", "deprecatedFirstTimestamp": null,
            "deprecatedLastTimestamp": "2030-01-01T00:00:00Z", "reason": "x"});
        check(core, "events.k8s.io/v1", new);
    }

    #[test]
    fn a_processor_target_is_a_metric() {
        let old = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 80}, "status": {"desiredReplicas": 1}});
        let new = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "metrics": [{"type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]},
            "status": {"desiredReplicas": 1}});
        check(old, "autoscaling/v2", new);
    }

    #[test]
    fn what_version_one_cannot_say_travels_in_annotations() {
        let reference = json!({"kind": "Service", "name": "s"});
        let new = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "a", "annotations": {"own": "1"}},
            "spec": {"maxReplicas": 3, "behavior": {"scaleUp": {"selectPolicy": "Max"}}, "metrics": [
                {"type": "Pods", "pods": {"metric": {"name": "p"}, "target": {"type": "AverageValue", "averageValue": "1k"}}},
                {"type": "Object", "object": {"describedObject": reference, "metric": {"name": "o"},
                    "target": {"type": "Value", "value": "10"}}},
                {"type": "Resource", "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 5}}},
                {"type": "External", "external": {"metric": {"name": "e", "selector": {}},
                    "target": {"type": "AverageValue", "averageValue": "7"}}},
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]},
            "status": {"desiredReplicas": 1, "conditions": [{"type": "ScalingActive", "status": "True"}], "currentMetrics": [
                {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 7, "averageValue": "9m"}}}]}});
        let mut old = new.clone();
        convert(&mut old, "autoscaling/v1");
        assert_eq!(old["spec"]["targetCPUUtilizationPercentage"], 80);
        assert_eq!(old["status"]["currentCPUUtilizationPercentage"], 7);
        assert!(old["spec"].get("metrics").is_none() && old["spec"].get("behavior").is_none());
        let annotations = &old["metadata"]["annotations"];
        let metrics = annotations["autoscaling.alpha.kubernetes.io/metrics"].as_str().expect("metrics");
        let metrics: Value = serde_json::from_str(metrics).expect("JSON");
        assert_eq!(metrics[0]["pods"], json!({"metricName": "p", "targetAverageValue": "1k"}));
        assert_eq!(
            metrics[1]["object"],
            json!({"target": reference, "metricName": "o", "targetValue": "10"})
        );
        convert(&mut old, "autoscaling/v2");
        assert_eq!(old, new);
    }

    #[test]
    fn objects_of_the_wrong_shape_do_no_harm() {
        for metadata in [json!("x"), json!({"annotations": 1}), json!(null)] {
            for (from, to) in [("autoscaling/v1", "autoscaling/v2"), ("autoscaling/v2", "autoscaling/v1")] {
                let mut object = json!({"apiVersion": from, "kind": "HorizontalPodAutoscaler", "metadata": metadata,
                    "spec": {"metrics": [1, {"pods": 2}], "behavior": 3}, "status": []});
                convert(&mut object, to);
                assert_eq!(object["apiVersion"], to);
            }
        }
    }

    #[test]
    fn malformed_annotations_are_dropped() {
        let mut old = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata":
            {"annotations": {"autoscaling.alpha.kubernetes.io/metrics": "{", "autoscaling.alpha.kubernetes.io/behavior": "x"}}});
        convert(&mut old, "autoscaling/v2");
        let expected =
            json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {}});
        assert_eq!(old, expected);
    }
}
