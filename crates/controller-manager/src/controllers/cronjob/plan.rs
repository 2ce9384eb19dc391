//! One look at a cron job: which job to start, which to replace, which history to drop.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::schedule::Schedule;
use crate::claims::owner_reference;
use crate::pods::{created, name, uid};

const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed times than this are worth a warning.
const TOO_MANY_MISSED: usize = 100;

#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Option<Job>,
    /// Running jobs that the new one replaces.
    pub(super) replace: Vec<Arc<Job>>,
    /// Finished jobs beyond the history limits.
    pub(super) expire: Vec<Arc<Job>>,
    pub(super) status: CronJobStatus,
    pub(super) events: Vec<Event>,
    pub(super) look_again: Option<Duration>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) warning: bool,
    pub(super) reason: &'static str,
    pub(super) note: String,
}

pub(super) fn plan(
    cron: &CronJob,
    owned: &[Arc<Job>],
    zone: Result<TimeZone, String>,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan { status: cron.status.clone().unwrap_or_default(), ..Plan::default() };
    note_jobs(owned, &mut plan);
    expire(cron, owned, &mut plan);
    let spec = &cron.spec;
    if cron.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let schedule = match (Schedule::parse(&spec.schedule), zone) {
        (_, Err(message)) => {
            plan.warn("UnknownTimeZone", format!("invalid timeZone: {message}"));
            return plan;
        }
        (Err(error), _) => {
            plan.warn("UnparseableSchedule", format!("unparseable schedule: {:?} : {error}", spec.schedule));
            return plan;
        }
        (Ok(schedule), Ok(zone)) => (schedule, zone),
    };
    if spec.suspend == Some(true) {
        return plan;
    }
    let (schedule, zone) = schedule;
    let next = schedule.next(now, &zone);
    plan.look_again = next.map(|next| {
        // A little late rather than early, and then once more for nothing.
        Duration::try_from(next.duration_since(now)).unwrap_or_default() + Duration::from_millis(100)
    });
    let Some(due) = due(cron, &schedule, &zone, now, &mut plan) else { return plan };
    start(cron, owned, due, now, &mut plan);
    plan
}

impl Plan {
    fn warn(&mut self, reason: &'static str, note: String) {
        self.events.push(Event { warning: true, reason, note });
    }

    fn tell(&mut self, reason: &'static str, note: String) {
        self.events.push(Event { warning: false, reason, note });
    }
}

pub(super) fn finished(job: &Job) -> Option<&str> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    let done = |type_: &str| conditions.iter().any(|c| c.type_ == type_ && c.status == "True");
    ["Complete", "Failed"].into_iter().find(|type_| done(type_))
}

/// Brings `status.active` and the last success in line with the jobs there are.
fn note_jobs(owned: &[Arc<Job>], plan: &mut Plan) {
    let mut active = plan.status.active.take().unwrap_or_default();
    for job in owned {
        let at = active.iter().position(|reference| reference.uid == job.metadata.uid);
        let job_name = name(&job.metadata);
        match (finished(job), at) {
            (None, None) if job.metadata.deletion_timestamp.is_none() => active.push(reference(job)),
            (Some(outcome), Some(at)) => {
                active.remove(at);
                plan.tell("SawCompletedJob", format!("Saw completed job: {job_name}, condition: {outcome}"));
            }
            (None, None | Some(_)) | (Some(_), None) => {}
        }
        let completed = job.status.as_ref().and_then(|status| status.completion_time.clone());
        if finished(job) == Some("Complete") && completed > plan.status.last_successful_time {
            plan.status.last_successful_time = completed;
        }
    }
    let gone: Vec<ObjectReference> = active
        .iter()
        .filter(|reference| !owned.iter().any(|job| job.metadata.uid == reference.uid))
        .cloned()
        .collect();
    for reference in gone {
        active.retain(|other| other != &reference);
        let missing = reference.name.unwrap_or_default();
        plan.tell("MissingJob", format!("Active job went missing: {missing}"));
    }
    active.sort_by(|a, b| a.name.cmp(&b.name));
    plan.status.active = (!active.is_empty()).then_some(active);
}

fn expire(cron: &CronJob, owned: &[Arc<Job>], plan: &mut Plan) {
    let spec = &cron.spec;
    let limits =
        [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)];
    for (outcome, limit) in limits {
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { continue };
        let mut jobs: Vec<&Arc<Job>> = owned.iter().filter(|job| finished(job) == Some(outcome)).collect();
        let started = |job: &Job| job.status.as_ref().and_then(|status| status.start_time.clone());
        jobs.sort_by_key(|job| (started(job), name(&job.metadata).to_owned()));
        let excess = jobs.len().saturating_sub(limit);
        plan.expire.extend(jobs.into_iter().take(excess).cloned());
    }
}

/// The latest time that has passed and was not served.
fn due(
    cron: &CronJob,
    schedule: &Schedule,
    zone: &TimeZone,
    now: Timestamp,
    plan: &mut Plan,
) -> Option<Timestamp> {
    let last = plan.status.last_schedule_time.as_ref().map(|time| time.0);
    let mut from = last.unwrap_or_else(|| created(&cron.metadata));
    let deadline = cron.spec.starting_deadline_seconds;
    if let Some(deadline) = deadline {
        from = from.max(now.saturating_sub(SignedDuration::from_secs(deadline)).unwrap_or(from));
    }
    let (mut due, mut missed) = (None, 0_usize);
    let mut at = schedule.next(from, zone)?;
    while at <= now {
        due = Some(at);
        missed += 1;
        if missed == TOO_MANY_MISSED {
            let note = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            plan.warn("TooManyMissedTimes", note.to_owned());
            // What comes of a schedule that is years behind is the same as of one that is a day behind.
            let recent = now.saturating_sub(SignedDuration::from_hours(24)).unwrap_or(at);
            at = recent.max(at);
        }
        at = schedule.next(at, zone)?;
    }
    due
}

fn start(cron: &CronJob, owned: &[Arc<Job>], due: Timestamp, now: Timestamp, plan: &mut Plan) {
    let spec = &cron.spec;
    if let Some(deadline) = spec.starting_deadline_seconds
        && now.duration_since(due) > SignedDuration::from_secs(deadline)
    {
        plan.warn("MissSchedule", format!("Missed scheduled time to start a job: {due}"));
        return;
    }
    let Some(job) = job(cron, due) else { return };
    let named = |other: &&Arc<Job>| other.metadata.name == job.metadata.name;
    if owned.iter().any(|other| named(&other)) {
        plan.status.last_schedule_time = Some(Time(due));
        return;
    }
    let running: Vec<&Arc<Job>> = owned.iter().filter(|job| finished(job).is_none()).collect();
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !running.is_empty() => {
            let note = "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.tell("JobAlreadyActive", note.to_owned());
            return;
        }
        Some("Replace") => plan.replace = running.into_iter().cloned().collect(),
        _ => {}
    }
    plan.create = Some(job);
    plan.status.last_schedule_time = Some(Time(due));
}

fn job(cron: &CronJob, due: Timestamp) -> Option<Job> {
    let template = &cron.spec.job_template;
    let from = template.metadata.clone().unwrap_or_default();
    let mut annotations = from.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED.to_owned(), due.to_string());
    Some(Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", name(&cron.metadata), due.as_second() / 60)),
            namespace: cron.metadata.namespace.clone(),
            labels: from.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner_reference(cron)?]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    })
}

pub(super) fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".to_owned()),
        kind: Some("Job".to_owned()),
        name: job.metadata.name.clone(),
        namespace: job.metadata.namespace.clone(),
        uid: Some(uid(&job.metadata).to_owned()),
        resource_version: job.metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn cron(spec: Value) -> CronJob {
        let mut cron = json!({
            "metadata": {"name": "c", "namespace": "d", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"schedule": "*/10 * * * *", "jobTemplate": {"spec": {"template": {}}},
                     "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0},
        });
        for (key, value) in spec.as_object().unwrap() {
            cron["spec"][key.as_str()] = value.clone();
        }
        serde_json::from_value(cron).unwrap()
    }

    fn job(name: &str, condition: Option<&str>) -> Arc<Job> {
        let conditions: Vec<Value> =
            condition.iter().map(|type_| json!({"type": type_, "status": "True"})).collect();
        let status = json!({"conditions": conditions, "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:01:00Z"});
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "uid": name}, "status": status}))
                .unwrap(),
        )
    }

    fn run(spec: Value, owned: &[Arc<Job>], now: &str) -> (String, Vec<&'static str>) {
        let plan = plan(&cron(spec), owned, Ok(TimeZone::UTC), now.parse().unwrap());
        let created = plan.create.iter().map(|job| format!("+{}", name(&job.metadata)));
        let removed = plan.replace.iter().chain(&plan.expire).map(|job| format!("-{}", name(&job.metadata)));
        let steps: Vec<String> = created.chain(removed).collect();
        (steps.join(" "), plan.events.iter().map(|event| event.reason).collect())
    }

    #[test]
    fn a_job_starts_when_due_by_the_concurrency_policy() {
        let due = "+c-29453770";
        let running = || vec![job("r", None)];
        let table = [
            (json!({}), vec![], "2026-01-01T00:09:59Z", "", vec![]),
            (json!({}), vec![], "2026-01-01T00:10:01Z", due, vec![]),
            (json!({"suspend": true}), vec![], "2026-01-01T00:10:01Z", "", vec![]),
            (
                json!({"concurrencyPolicy": "Forbid"}),
                running(),
                "2026-01-01T00:10:01Z",
                "",
                vec!["JobAlreadyActive"],
            ),
            (
                json!({"concurrencyPolicy": "Replace"}),
                running(),
                "2026-01-01T00:10:01Z",
                "+c-29453770 -r",
                vec![],
            ),
            (json!({"concurrencyPolicy": "Allow"}), running(), "2026-01-01T00:10:01Z", due, vec![]),
            (json!({}), vec![job("c-29453770", None)], "2026-01-01T00:10:01Z", "", vec![]),
            (json!({"startingDeadlineSeconds": 30}), vec![], "2026-01-01T00:15:00Z", "", vec![]),
            (json!({"schedule": "x"}), vec![], "2026-01-01T00:10:01Z", "", vec!["UnparseableSchedule"]),
        ];
        for (spec, owned, now, expected, events) in table {
            assert_eq!(run(spec.clone(), &owned, now), (expected.to_owned(), events), "{spec} at {now}");
        }
    }

    #[test]
    fn only_the_latest_of_many_missed_times_is_served() {
        let (steps, events) = run(json!({"schedule": "* * * * *"}), &[], "2026-03-01T00:00:30Z");
        assert_eq!((steps.as_str(), events), ("+c-29538720", vec!["TooManyMissedTimes"]));
    }

    #[test]
    fn finished_jobs_leave_the_active_list_and_the_history() {
        let mut cron = cron(json!({"suspend": true}));
        let status = cron.status.get_or_insert_default();
        status.active = Some(vec![reference(&job("a", None)), reference(&job("gone", None))]);
        let jobs = [job("a", Some("Complete")), job("b", Some("Complete")), job("f", Some("Failed"))];
        let plan = plan(&cron, &jobs, Ok(TimeZone::UTC), "2026-01-01T00:05:00Z".parse().unwrap());
        assert!(plan.status.active.is_none());
        assert_eq!(plan.status.last_successful_time.unwrap().0.to_string(), "2026-01-01T00:01:00Z");
        let expired: Vec<&str> = plan.expire.iter().map(|job| name(&job.metadata)).collect();
        assert_eq!(expired, ["a", "f"]);
        let reasons: Vec<&str> = plan.events.iter().map(|event| event.reason).collect();
        assert_eq!(reasons, ["SawCompletedJob", "MissingJob"]);
    }
}
