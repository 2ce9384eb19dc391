use serde_json::{Value, json};

use super::*;

const NOW: &str = "2026-01-01T01:00:00Z";

fn job(spec: Value) -> Job {
    serde_json::from_value(json!({"metadata": {"name": "j", "uid": "j"}, "spec": spec})).unwrap()
}

/// Pods as `index:letters`: `r`unning, `s`ucceeded, `f`ailed (exit code 3), `t`erminating, `F`ailed just now;
/// a `.` takes the finalizer off. Without an index the part before the colon is empty.
fn pods(text: &str) -> Vec<Arc<Pod>> {
    let pod = |(n, word): (usize, &str)| {
        let (index, letters) = word.split_once(':').unwrap();
        let has = |letter| letters.contains(letter);
        let phase = if has('s') {
            "Succeeded"
        } else if has('f') || has('F') {
            "Failed"
        } else {
            "Running"
        };
        let ended = if has('F') { NOW } else { "2026-01-01T00:00:00Z" };
        let mut pod = json!({
            "metadata": {"name": format!("p{n}"), "namespace": "d", "uid": format!("u{n}"), "annotations": {},
                         "creationTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FINALIZER]},
            "status": {"phase": phase},
        });
        if phase == "Failed" {
            pod["status"]["containerStatuses"] = json!([{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": 3, "finishedAt": ended}}}]);
        }
        if !index.is_empty() {
            pod["metadata"]["annotations"][INDEX] = json!(index);
        }
        if has('t') {
            pod["metadata"]["deletionTimestamp"] = json!(ended);
        }
        if has('.') {
            pod["metadata"]["finalizers"] = json!([]);
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    };
    text.split_whitespace().enumerate().map(pod).collect()
}

fn look(job: &Job, text: &str) -> Plan {
    plan(job, &pods(text), true, NOW.parse().unwrap())
}

fn steps(plan: &Plan) -> String {
    let mut steps: Vec<String> = plan
        .create
        .iter()
        .map(|(index, failures)| match index {
            None => "+".to_owned(),
            Some(index) if *failures > 0 => format!("+{index}x{failures}"),
            Some(index) => format!("+{index}"),
        })
        .collect();
    steps.extend(plan.delete.iter().map(|pod| format!("-{}", name(&pod.metadata))));
    steps.extend(plan.release.iter().map(|pod| format!("~{}", name(&pod.metadata))));
    steps.join(" ")
}

fn conditions(plan: &Plan) -> String {
    let conditions = plan.status.conditions.iter().flatten().filter(|c| c.status == "True");
    conditions.map(|c| format!("{}={}", c.type_, c.reason.as_deref().unwrap())).collect::<Vec<_>>().join(" ")
}

#[test]
fn pods_are_made_as_parallelism_and_completions_say() {
    let table = [
        (json!({"parallelism": 2, "completions": 3}), "", "+ +"),
        (json!({"parallelism": 2, "completions": 3}), ":r :r", ""),
        (json!({"parallelism": 2, "completions": 3}), ":r :s.", "+"),
        (json!({"parallelism": 1, "completions": 3}), ":r :r", "-p0"),
        (json!({"parallelism": 2}), ":r", "+"),
        (json!({"parallelism": 2}), ":r :s", "~p1"),
        (json!({"parallelism": 1, "completions": 1}), ":f", "+ ~p0"),
        (json!({"parallelism": 1, "completions": 1}), ":F", "~p0"),
        (json!({"parallelism": 1, "completions": 1, "podReplacementPolicy": "Failed"}), ":rt", ""),
        (
            json!({"parallelism": 1, "completions": 1, "podReplacementPolicy": "TerminatingOrFailed"}),
            ":rt",
            "+ ~p0",
        ),
        (json!({"parallelism": 3, "completions": 3, "completionMode": "Indexed"}), "1:r", "+0 +2"),
        (
            json!({"parallelism": 3, "completions": 3, "completionMode": "Indexed"}),
            "0:s 1:r 2:f",
            "+2x1 ~p0 ~p2",
        ),
        (json!({"parallelism": 1, "completions": 1, "suspend": true}), ":r", "-p0"),
    ];
    for (spec, text, expected) in table {
        let mut job = job(spec.clone());
        if text.contains(":s.") {
            job.status.get_or_insert_default().succeeded = Some(1);
        }
        assert_eq!(steps(&look(&job, text)), expected, "{spec} with {text}");
    }
}

#[test]
fn a_pod_is_counted_once_however_often_one_looks() {
    let mut job = job(json!({"parallelism": 1, "completions": 2}));
    let first = look(&job, ":s");
    let uncounted = first.status.uncounted_terminated_pods.clone().unwrap();
    assert_eq!((first.status.succeeded, uncounted.succeeded), (None, Some(vec!["u0".to_owned()])));
    job.status = Some(first.status);
    let again = look(&job, ":s");
    assert_eq!((steps(&again), again.status.succeeded), ("+ ~p0".to_owned(), None));
    let released = look(&job, ":s.");
    assert_eq!(released.status.succeeded, Some(1));
    job.status = Some(released.status);
    assert_eq!(look(&job, ":s.").status.succeeded, Some(1));
}

#[test]
fn a_job_ends_when_all_is_done_and_every_pod_is_counted() {
    let mut job = job(json!({"parallelism": 1, "completions": 1}));
    job.status = Some(look(&job, ":s").status);
    assert_eq!(conditions(&look(&job, ":s")), "SuccessCriteriaMet=CompletionsReached");
    let end = look(&job, ":s.");
    assert_eq!(conditions(&end), "SuccessCriteriaMet=CompletionsReached Complete=CompletionsReached");
    assert!(end.status.completion_time.is_some() && end.status.uncounted_terminated_pods.is_none());
    job.status = Some(end.status);
    assert!(is_finished(&job) && steps(&look(&job, ":s.")).is_empty());
}

#[test]
fn failures_end_a_job_in_the_documented_ways() {
    let exit = |action: &str| json!({"rules": [{"action": action, "onExitCodes": {"operator": "In", "values": [3]}}]});
    let indexed = |extra: Value| {
        let mut spec =
            json!({"parallelism": 3, "completions": 3, "completionMode": "Indexed", "backoffLimit": 100});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        spec
    };
    let table = [
        (json!({"completions": 1, "backoffLimit": 1}), ":f :f", "BackoffLimitExceeded", ""),
        (json!({"completions": 1, "backoffLimit": 5}), ":f :f", "", ""),
        (json!({"completions": 1, "podFailurePolicy": exit("FailJob")}), ":f", "PodFailurePolicy", ""),
        (json!({"completions": 1, "backoffLimit": 0, "podFailurePolicy": exit("Ignore")}), ":f", "", ""),
        (indexed(json!({"backoffLimitPerIndex": 0})), "0:r 1:f 2:r", "", "1"),
        (indexed(json!({"backoffLimitPerIndex": 0})), "0:s 1:f 2:s", "FailedIndexes", "1"),
        (indexed(json!({"backoffLimitPerIndex": 1})), "0:r 1:f 2:r", "", ""),
        (
            indexed(json!({"backoffLimitPerIndex": 5, "podFailurePolicy": exit("FailIndex")})),
            "0:r 1:f 2:r",
            "",
            "1",
        ),
        (
            indexed(json!({"backoffLimitPerIndex": 0, "maxFailedIndexes": 1})),
            "0:f 1:f 2:r",
            "MaxFailedIndexesExceeded",
            "0,1",
        ),
    ];
    for (spec, text, reason, failed) in table {
        let plan = look(&job(spec.clone()), text);
        let expected = if reason.is_empty() { String::new() } else { format!("FailureTarget={reason}") };
        assert_eq!(conditions(&plan), expected, "{spec} with {text}");
        assert_eq!(plan.status.failed_indexes.unwrap_or_default(), failed, "{spec} with {text}");
    }
}

#[test]
fn a_deadline_is_waited_for_and_then_kept() {
    let mut job = job(json!({"completions": 1, "activeDeadlineSeconds": 3_610}));
    job.status.get_or_insert_default().start_time =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time("2026-01-01T00:00:00Z".parse().unwrap()));
    assert_eq!(look(&job, ":r").look_again, Some(Duration::from_secs(10)));
    job.spec.as_mut().unwrap().active_deadline_seconds = Some(60);
    let late = look(&job, ":r");
    assert_eq!(
        (conditions(&late), steps(&late)),
        ("FailureTarget=DeadlineExceeded".to_owned(), "-p0".to_owned())
    );
    assert_eq!(late.status.terminating, Some(1));
}

#[test]
fn a_success_policy_ends_the_job_before_all_indexes_are_done() {
    let policy = json!({"rules": [{"succeededIndexes": "0,2", "succeededCount": 1}]});
    let job = job(
        json!({"parallelism": 3, "completions": 3, "completionMode": "Indexed", "successPolicy": policy}),
    );
    assert_eq!(conditions(&look(&job, "0:r 1:s 2:r")), "");
    let met = look(&job, "0:r 1:r 2:s");
    assert_eq!(conditions(&met), "SuccessCriteriaMet=SuccessPolicy");
    assert_eq!(steps(&met), "-p0 -p1 ~p2");
    assert_eq!(met.status.completed_indexes.as_deref(), Some("2"));
}

#[test]
fn suspending_and_resuming_are_conditions() {
    let mut job = job(json!({"completions": 1, "suspend": true}));
    let suspended = look(&job, "");
    assert_eq!(
        (conditions(&suspended), suspended.status.start_time.is_none()),
        ("Suspended=JobSuspended".to_owned(), true)
    );
    job.status = Some(suspended.status);
    job.spec.as_mut().unwrap().suspend = Some(false);
    let resumed = look(&job, "");
    assert_eq!((conditions(&resumed), steps(&resumed)), (String::new(), "+".to_owned()));
    assert!(resumed.status.start_time.is_some());
}
