//! One look at a job and its pods.
//!
//! Pods are counted exactly once by three steps: a finished pod's uid is put into the status as uncounted, then
//! its finalizer is taken off, and when the pod is seen without it the uid becomes part of the counter.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;

use super::failure::{self, Verdict};
use super::indexes;
use crate::pods::{self, annotation, name, uid, whole_seconds};

pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
pub(super) const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// Pods created or deleted in one go.
const BURST: usize = 500;
/// Uids kept as uncounted at a time.
const MAX_UNCOUNTED: usize = 500;
const FIRST_BACKOFF: i64 = 10;
const LAST_BACKOFF: i64 = 600;

#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Written before anything else is done.
    pub(super) status: JobStatus,
    /// For each pod to make: its index, and how often that index failed before.
    pub(super) create: Vec<(Option<i32>, i32)>,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) release: Vec<Arc<Pod>>,
    pub(super) events: Vec<(bool, &'static str, String)>,
    pub(super) look_again: Option<Duration>,
}

struct View<'a> {
    job: &'a Job,
    now: Timestamp,
    pods: &'a [Arc<Pod>],
    active: Vec<&'a Arc<Pod>>,
    parallelism: i32,
    completions: Option<i32>,
    indexed: bool,
    succeeded: i32,
    failed: i32,
    completed: BTreeSet<i32>,
    failed_indexes: BTreeSet<i32>,
    /// By index: failures that count.
    index_failures: BTreeMap<i32, i32>,
    fail_job: Option<String>,
}

pub(super) fn is_finished(job: &Job) -> bool {
    has(job.status.as_ref(), "Complete") || has(job.status.as_ref(), "Failed")
}

pub(super) fn index_of(pod: &Pod) -> Option<i32> {
    annotation(&pod.metadata, INDEX)?.parse().ok()
}

pub(super) fn has_finalizer(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

pub(super) fn plan(job: &Job, pods: &[Arc<Pod>], caught_up: bool, now: Timestamp) -> Plan {
    let mut plan = Plan { status: job.status.clone().unwrap_or_default(), ..Plan::default() };
    if is_finished(job) {
        plan.release = pods.iter().filter(|pod| has_finalizer(pod)).cloned().collect();
        return plan;
    }
    let mut view = View::new(job, pods, now);
    view.count(&mut plan);
    view.start(&mut plan);
    let ending = view.judge(&mut plan);
    let terminating = pods.iter().filter(|pod| pods::is_terminating(pod) && !pods::is_terminal(pod)).count();
    let mut active = view.active.len();
    if ending || view.is_suspended() {
        plan.delete.extend(view.active.iter().take(BURST).map(|pod| Arc::clone(pod)));
        active -= plan.delete.len();
    } else if caught_up {
        view.manage(&mut plan, terminating);
        active = (active + plan.create.len()).saturating_sub(plan.delete.len());
    }
    view.suspend(&mut plan);
    if ending && active == 0 && terminating + plan.delete.len() == 0 {
        view.finish(&mut plan);
    }
    let ready = view.active.iter().filter(|pod| pods::is_ready(pod)).count();
    plan.status.active = Some(number(active));
    plan.status.terminating = Some(number(terminating + plan.delete.len()));
    plan.status.ready = Some(number(ready.min(active)));
    plan
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn has(status: Option<&JobStatus>, type_: &str) -> bool {
    condition(status, type_).is_some_and(|condition| condition.status == "True")
}

fn condition<'a>(status: Option<&'a JobStatus>, type_: &str) -> Option<&'a JobCondition> {
    status?.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

impl<'a> View<'a> {
    fn new(job: &'a Job, pods: &'a [Arc<Pod>], now: Timestamp) -> Self {
        let spec = job.spec.clone().unwrap_or_default();
        let status = job.status.clone().unwrap_or_default();
        let failed = |pod: &Pod| failure::is_failed(job, pod);
        Self {
            job,
            now,
            pods,
            active: pods.iter().filter(|pod| pods::is_active(pod) && !failed(pod)).collect(),
            parallelism: spec.parallelism.unwrap_or(1),
            completions: spec.completions,
            indexed: spec.completion_mode.as_deref() == Some("Indexed"),
            succeeded: status.succeeded.unwrap_or(0),
            failed: status.failed.unwrap_or(0),
            completed: indexes::parse(status.completed_indexes.as_deref().unwrap_or_default()),
            failed_indexes: indexes::parse(status.failed_indexes.as_deref().unwrap_or_default()),
            index_failures: BTreeMap::new(),
            fail_job: None,
        }
    }

    /// Moves finished pods through the three steps of counting.
    fn count(&mut self, plan: &mut Plan) {
        let uncounted = plan.status.uncounted_terminated_pods.clone().unwrap_or_default();
        let tracked: BTreeMap<&str, &Arc<Pod>> =
            self.pods.iter().filter(|pod| has_finalizer(pod)).map(|pod| (uid(&pod.metadata), pod)).collect();
        let settle = |uids: Option<Vec<String>>| -> (Vec<String>, i32) {
            let (waiting, counted): (Vec<_>, Vec<_>) =
                uids.unwrap_or_default().into_iter().partition(|uid| tracked.contains_key(uid.as_str()));
            (waiting, number(counted.len()))
        };
        let (mut succeeded_uids, newly_succeeded) = settle(uncounted.succeeded);
        let (mut failed_uids, newly_failed) = settle(uncounted.failed);
        self.succeeded += newly_succeeded;
        self.failed += newly_failed;
        let (mut done, mut lost) = (self.succeeded, self.failed);
        for pod in self.pods {
            let (pod_uid, tracked) = (uid(&pod.metadata), has_finalizer(pod));
            let known = |uids: &[String]| uids.iter().any(|uid| uid == pod_uid);
            if pods::phase(pod) == "Succeeded" {
                if let Some(index) = index_of(pod).filter(|index| self.is_within(*index)) {
                    self.completed.insert(index);
                }
                let counts = !self.indexed && tracked && !known(&succeeded_uids);
                if counts && succeeded_uids.len() + failed_uids.len() < MAX_UNCOUNTED {
                    succeeded_uids.push(pod_uid.to_owned());
                }
            } else if failure::is_failed(self.job, pod) {
                let verdict = failure::judge(self.job, pod);
                self.note_index_failure(pod, &verdict);
                if let Verdict::FailJob(message) = &verdict {
                    self.fail_job.get_or_insert_with(|| message.clone());
                }
                let counts = verdict != Verdict::Ignore && tracked && !known(&failed_uids);
                if counts && succeeded_uids.len() + failed_uids.len() < MAX_UNCOUNTED {
                    failed_uids.push(pod_uid.to_owned());
                }
            } else {
                continue;
            }
            let settled = self.indexed || known(&succeeded_uids) || known(&failed_uids) || !self.counts(pod);
            if tracked && (settled || known(&failed_uids)) {
                plan.release.push(Arc::clone(pod));
            }
        }
        done += number(succeeded_uids.len());
        lost += number(failed_uids.len());
        plan.status.succeeded =
            (self.succeeded > 0 || plan.status.succeeded.is_some()).then_some(self.succeeded);
        plan.status.failed = (self.failed > 0 || plan.status.failed.is_some()).then_some(self.failed);
        (self.succeeded, self.failed) = (done, lost);
        if self.indexed {
            self.succeeded = number(self.completed.len());
            plan.status.succeeded = Some(self.succeeded);
            let text = indexes::format(&self.completed);
            plan.status.completed_indexes = Some(text).filter(|text| !text.is_empty());
        }
        self.fail_indexes(plan);
        plan.status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
            succeeded: Some(succeeded_uids).filter(|uids| !uids.is_empty()),
            failed: Some(failed_uids).filter(|uids| !uids.is_empty()),
        });
    }

    fn counts(&self, pod: &Pod) -> bool {
        pods::phase(pod) == "Succeeded" || failure::judge(self.job, pod) != Verdict::Ignore
    }

    fn is_within(&self, index: i32) -> bool {
        self.indexed && self.completions.is_some_and(|completions| (0..completions).contains(&index))
    }

    fn note_index_failure(&mut self, pod: &Pod, verdict: &Verdict) {
        let Some(index) = index_of(pod).filter(|index| self.is_within(*index)) else { return };
        let before =
            annotation(&pod.metadata, INDEX_FAILURES).and_then(|count| count.parse().ok()).unwrap_or(0);
        let count = before + i32::from(*verdict != Verdict::Ignore);
        let most = self.index_failures.entry(index).or_insert(0);
        *most = count.max(*most);
        let limit = self.job.spec.as_ref().and_then(|spec| spec.backoff_limit_per_index);
        if *verdict == Verdict::FailIndex || limit.is_some_and(|limit| count > limit) {
            self.failed_indexes.insert(index);
        }
    }

    fn fail_indexes(&mut self, plan: &mut Plan) {
        let per_index = self.job.spec.as_ref().is_some_and(|spec| spec.backoff_limit_per_index.is_some());
        if per_index {
            self.failed_indexes = self.failed_indexes.difference(&self.completed).copied().collect();
            plan.status.failed_indexes = Some(indexes::format(&self.failed_indexes));
        } else {
            self.failed_indexes.clear();
        }
    }

    fn is_suspended(&self) -> bool {
        self.job.spec.as_ref().and_then(|spec| spec.suspend).unwrap_or(false)
    }

    fn start(&self, plan: &mut Plan) {
        if plan.status.start_time.is_none() && !self.is_suspended() {
            plan.status.start_time = Some(whole_seconds(self.now));
        }
    }

    /// Decides whether the job has come to its end, for good or bad; the end itself waits for its pods.
    fn judge(&self, plan: &mut Plan) -> bool {
        if has(Some(&plan.status), "FailureTarget") || has(Some(&plan.status), "SuccessCriteriaMet") {
            return true;
        }
        let verdict = self.failure(plan).map(|(reason, message)| ("FailureTarget", reason, message));
        let verdict = verdict.or_else(|| {
            let (reason, message) = self.success()?;
            Some(("SuccessCriteriaMet", reason, message))
        });
        let Some((type_, reason, message)) = verdict else { return false };
        set(&mut plan.status, type_, "True", reason, message, self.now);
        true
    }

    fn failure(&self, plan: &mut Plan) -> Option<(&'static str, String)> {
        let spec = self.job.spec.as_ref()?;
        if let Some(message) = &self.fail_job {
            return Some(("PodFailurePolicy", message.clone()));
        }
        let limit = spec.backoff_limit.unwrap_or(6);
        if self.failed > limit || self.restarts_exceed(limit) {
            return Some(("BackoffLimitExceeded", "Job has reached the specified backoff limit".to_owned()));
        }
        if let (Some(deadline), Some(started)) = (spec.active_deadline_seconds, &plan.status.start_time)
            && !self.is_suspended()
        {
            let left = SignedDuration::from_secs(deadline) - self.now.duration_since(started.0);
            match Duration::try_from(left) {
                Ok(left) if !left.is_zero() => wake(plan, left),
                _ => {
                    return Some((
                        "DeadlineExceeded",
                        "Job was active longer than specified deadline".to_owned(),
                    ));
                }
            }
        }
        if spec.max_failed_indexes.is_some_and(|most| number(self.failed_indexes.len()) > most) {
            return Some((
                "MaxFailedIndexesExceeded",
                "Job has exceeded the specified maximal number of failed indexes".to_owned(),
            ));
        }
        let settled = self.completed.len() + self.failed_indexes.len();
        let all = self.completions.is_some_and(|completions| number(settled) >= completions);
        (!self.failed_indexes.is_empty() && all)
            .then(|| ("FailedIndexes", "Job has failed indexes".to_owned()))
    }

    /// Restarts within pods count against the limit too, if pods restart at all.
    fn restarts_exceed(&self, limit: i32) -> bool {
        let template = self.job.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
        if template.and_then(|spec| spec.restart_policy.as_deref()) != Some("OnFailure") {
            return false;
        }
        let statuses = self.pods.iter().filter(|pod| matches!(pods::phase(pod), "Running" | "Pending"));
        let statuses = statuses.filter_map(|pod| pod.status.as_ref()).flat_map(|status| {
            status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten())
        });
        let restarts: i32 = statuses.map(|status| status.restart_count).sum();
        if limit == 0 { restarts > 0 } else { restarts >= limit }
    }

    fn success(&self) -> Option<(&'static str, String)> {
        let spec = self.job.spec.as_ref()?;
        for (at, rule) in spec.success_policy.iter().flat_map(|policy| &policy.rules).enumerate() {
            let wanted = rule.succeeded_indexes.as_deref().map(indexes::parse);
            let of_rule = |index: &&i32| wanted.as_ref().is_none_or(|wanted| wanted.contains(*index));
            let met = number(self.completed.iter().filter(of_rule).count());
            let needed = rule.succeeded_count.or_else(|| wanted.as_ref().map(|wanted| number(wanted.len())));
            if needed.is_some_and(|needed| met >= needed) {
                return Some(("SuccessPolicy", format!("Matched rules at index {at}")));
            }
        }
        let complete = match self.completions {
            Some(completions) => self.succeeded >= completions,
            // Without a number, one success ends the making of pods and the last pod ends the job.
            None => self.succeeded > 0 && self.active.is_empty(),
        };
        complete.then(|| ("CompletionsReached", "Reached expected number of succeeded pods".to_owned()))
    }

    /// Makes and deletes pods so that as many work as should.
    fn manage(&self, plan: &mut Plan, terminating: usize) {
        let active = number(self.active.len());
        let wanted = match self.completions {
            None if self.succeeded > 0 => active.min(self.parallelism),
            None => self.parallelism,
            Some(completions) => {
                let open = completions - self.succeeded - number(self.failed_indexes.len());
                open.max(0).min(self.parallelism)
            }
        };
        if active > wanted {
            let excess = usize::try_from(active - wanted).unwrap_or(0).min(BURST);
            let mut ranked: Vec<&Arc<Pod>> = self.active.clone();
            ranked.sort_by(|a, b| pods::deletion_order((a, 0), (b, 0), self.now));
            plan.delete.extend(ranked.into_iter().take(excess).cloned());
            return;
        }
        let going = if failure::waits_for_terminal(self.job) { number(terminating) } else { 0 };
        let missing = usize::try_from(wanted - active - going).unwrap_or(0).min(BURST);
        if missing == 0 {
            return;
        }
        if let Some(wait) = self.backoff() {
            wake(plan, wait);
            return;
        }
        if self.indexed {
            plan.create = self.free_indexes(plan).into_iter().take(missing).collect();
        } else {
            plan.create = vec![(None, 0); missing];
        }
    }

    fn free_indexes(&self, plan: &mut Plan) -> Vec<(Option<i32>, i32)> {
        let waits = failure::waits_for_terminal(self.job);
        let holds = |pod: &&Arc<Pod>| pods::is_active(pod) || (waits && !pods::is_terminal(pod));
        let held: BTreeSet<i32> = self.pods.iter().filter(holds).filter_map(|pod| index_of(pod)).collect();
        let per_index = self.job.spec.as_ref().is_some_and(|spec| spec.backoff_limit_per_index.is_some());
        let mut free = Vec::new();
        for index in 0..self.completions.unwrap_or(0) {
            if held.contains(&index)
                || self.completed.contains(&index)
                || self.failed_indexes.contains(&index)
            {
                continue;
            }
            let failures = self.index_failures.get(&index).copied().unwrap_or(0);
            if per_index && failures > 0 {
                let of_index = |pod: &&Arc<Pod>| index_of(pod) == Some(index);
                if let Some(wait) = wait_after(self.pods.iter().filter(of_index), failures, self) {
                    wake(plan, wait);
                    continue;
                }
            }
            free.push((Some(index), failures));
            if free.len() >= BURST {
                break;
            }
        }
        free
    }

    /// How long to wait before failed pods are replaced.
    fn backoff(&self) -> Option<Duration> {
        let per_index = self.job.spec.as_ref().is_some_and(|spec| spec.backoff_limit_per_index.is_some());
        if per_index {
            return None;
        }
        let succeeded = self.pods.iter().filter(|pod| pods::phase(pod) == "Succeeded");
        let last_success = succeeded.map(|pod| finished_at(pod)).max();
        let since = |pod: &&Arc<Pod>| {
            failure::is_failed(self.job, pod)
                && failure::judge(self.job, pod) != Verdict::Ignore
                && last_success.is_none_or(|success| finished_at(pod) > success)
        };
        let failed: Vec<&Arc<Pod>> = self.pods.iter().filter(since).collect();
        let count = number(failed.len());
        wait_after(failed.into_iter(), count, self)
    }

    fn suspend(&self, plan: &mut Plan) {
        let was = has(Some(&plan.status), "Suspended");
        if self.is_suspended() && !was {
            set(&mut plan.status, "Suspended", "True", "JobSuspended", "Job suspended".to_owned(), self.now);
            plan.events.push((false, "Suspended", "Job suspended".to_owned()));
            plan.status.start_time = None;
        } else if !self.is_suspended() && was {
            set(&mut plan.status, "Suspended", "False", "JobResumed", "Job resumed".to_owned(), self.now);
            plan.events.push((false, "Resumed", "Job resumed".to_owned()));
            plan.status.start_time = Some(whole_seconds(self.now));
        }
    }

    /// The final condition, once every pod is gone from work and counted.
    fn finish(&self, plan: &mut Plan) {
        let uncounted = plan.status.uncounted_terminated_pods.as_ref();
        let waits = uncounted.is_some_and(|pods| pods.succeeded.is_some() || pods.failed.is_some());
        if waits || !plan.release.is_empty() {
            return;
        }
        let cause = ["FailureTarget", "SuccessCriteriaMet"].into_iter();
        let cause =
            cause.filter_map(|type_| condition(Some(&plan.status), type_)).find(|c| c.status == "True");
        let Some(cause) = cause.cloned() else { return };
        let (reason, message) = (cause.reason.unwrap_or_default(), cause.message.unwrap_or_default());
        plan.status.uncounted_terminated_pods = None;
        if cause.type_ == "FailureTarget" {
            plan.events.push((true, event_reason(&reason), message.clone()));
            set(&mut plan.status, "Failed", "True", &reason, message, self.now);
        } else {
            plan.events.push((false, "Completed", "Job completed".to_owned()));
            set(&mut plan.status, "Complete", "True", &reason, message, self.now);
            plan.status.completion_time = Some(whole_seconds(self.now));
        }
    }
}

fn event_reason(reason: &str) -> &'static str {
    const REASONS: &[&str] = &[
        "BackoffLimitExceeded",
        "DeadlineExceeded",
        "PodFailurePolicy",
        "MaxFailedIndexesExceeded",
        "FailedIndexes",
    ];
    REASONS.iter().find(|known| **known == reason).copied().unwrap_or("Failed")
}

fn wake(plan: &mut Plan, after: Duration) {
    plan.look_again = Some(plan.look_again.map_or(after, |earlier| earlier.min(after)));
}

/// When the pod came to its end, as well as can be told.
fn finished_at(pod: &Pod) -> Timestamp {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let ended =
        statuses.filter_map(|status| status.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    let ended = ended.map(|time| time.0).max();
    let going = pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    ended.or(going).unwrap_or_else(|| pods::created(&pod.metadata))
}

fn wait_after<'a>(
    failed: impl Iterator<Item = &'a Arc<Pod>>,
    failures: i32,
    view: &View<'_>,
) -> Option<Duration> {
    let last = failed.map(|pod| finished_at(pod)).max()?;
    let doublings = u32::try_from(failures - 1).unwrap_or(0).min(10);
    let seconds = (FIRST_BACKOFF << doublings).min(LAST_BACKOFF);
    let left = SignedDuration::from_secs(seconds) - view.now.duration_since(last);
    Duration::try_from(left).ok().filter(|left| !left.is_zero())
}

fn set(status: &mut JobStatus, type_: &str, value: &str, reason: &str, message: String, now: Timestamp) {
    let conditions = status.conditions.get_or_insert_default();
    let now = whole_seconds(now);
    let new = JobCondition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_probe_time: Some(now.clone()),
        last_transition_time: Some(now),
    };
    match conditions.iter_mut().find(|condition| condition.type_ == type_) {
        Some(old) => *old = new,
        None => conditions.push(new),
    }
}

/// The name of a pod of the job, or what it begins with.
pub(super) fn pod_prefix(job: &Job, index: Option<i32>) -> String {
    match index {
        Some(index) => format!("{}-{index}-", name(&job.metadata)),
        None => format!("{}-", name(&job.metadata)),
    }
}

#[cfg(test)]
mod tests;
