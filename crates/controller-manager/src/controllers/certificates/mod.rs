//! Certificate signing requests: approves those of nodes for themselves, signs what is approved, forgets what is old.

mod request;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use meta::names::NamespacedName;
use rcgen::{Issuer, KeyPair};
use reconcile::{Action, Informer, ReconcileError, Reconciler, SharedClock};

use self::request::{KUBELET_CLIENT, Request};
use crate::config::Config;
use crate::context::Context;
use crate::enqueue;
use crate::pods::{created, name, whole_seconds};

/// How long requests are kept: issued and denied, pending, and those that failed.
const KEEP_DECIDED: SignedDuration = SignedDuration::from_hours(1);
const KEEP_PENDING: SignedDuration = SignedDuration::from_hours(24);

struct Approver {
    client: kube::Client,
    requests: Informer<CertificateSigningRequest>,
    clock: SharedClock,
}

struct Signer {
    client: kube::Client,
    config: Arc<Config>,
    requests: Informer<CertificateSigningRequest>,
    clock: SharedClock,
}

struct Cleaner {
    client: kube::Client,
    requests: Informer<CertificateSigningRequest>,
    clock: SharedClock,
}

pub(super) async fn run_approver(context: Context) {
    let queue = context.queue("certificate_approver");
    let controller = Arc::new(Approver {
        client: context.client.clone(),
        requests: context.informer(),
        clock: context.clock.clone(),
    });
    let _requests = enqueue::itself(&controller.requests, &queue);
    if context.synced(&[&controller.requests]).await {
        context.run("csrapproving", controller, queue, 1).await;
    }
}

pub(super) async fn run_signer(context: Context) {
    if context.config.cluster_signing.is_none() {
        context.shutdown.cancelled().await;
        return;
    }
    let queue = context.queue("certificate_signer");
    let controller = Arc::new(Signer {
        client: context.client.clone(),
        config: Arc::clone(&context.config),
        requests: context.informer(),
        clock: context.clock.clone(),
    });
    let _requests = enqueue::itself(&controller.requests, &queue);
    if context.synced(&[&controller.requests]).await {
        context.run("csrsigning", controller, queue, 1).await;
    }
}

pub(super) async fn run_cleaner(context: Context) {
    let queue = context.queue("certificate_cleaner");
    let controller = Arc::new(Cleaner {
        client: context.client.clone(),
        requests: context.informer(),
        clock: context.clock.clone(),
    });
    let _requests = enqueue::itself(&controller.requests, &queue);
    if context.synced(&[&controller.requests]).await {
        context.run("csrcleaner", controller, queue, 1).await;
    }
}

fn condition<'a>(
    request: &'a CertificateSigningRequest,
    type_: &str,
) -> Option<&'a CertificateSigningRequestCondition> {
    request.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

fn is_decided(request: &CertificateSigningRequest) -> bool {
    condition(request, "Approved").is_some() || condition(request, "Denied").is_some()
}

fn is_issued(request: &CertificateSigningRequest) -> bool {
    request
        .status
        .as_ref()
        .and_then(|status| status.certificate.as_ref())
        .is_some_and(|cert| !cert.0.is_empty())
}

fn add_condition(
    request: &mut CertificateSigningRequest,
    type_: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let now = whole_seconds(now);
    let condition = CertificateSigningRequestCondition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now),
    };
    request.status.get_or_insert_default().conditions.get_or_insert_default().push(condition);
}

#[async_trait]
impl Reconciler for Approver {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let Some(request) = self.requests.get(key) else { return Ok(Action::Done) };
        if is_issued(&request) || is_decided(&request) || request.spec.signer_name != KUBELET_CLIENT {
            return Ok(Action::Done);
        }
        let Ok(parsed) = Request::parse(&request) else { return Ok(Action::Done) };
        if parsed.check_kubelet_client().is_err() {
            return Ok(Action::Done);
        }
        let itself = request.spec.username.as_deref() == Some(parsed.common_name.as_str());
        let mut rights =
            vec![("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.")];
        if itself {
            let message = "Auto approving self kubelet client certificate after SubjectAccessReview.";
            rights.insert(0, ("selfnodeclient", message));
        }
        for (subresource, message) in rights {
            if self.may(&request, subresource).await? {
                let mut approved = (*request).clone();
                add_condition(&mut approved, "Approved", "AutoApproved", message, self.clock.now());
                let requests: Api<CertificateSigningRequest> = Api::all(self.client.clone());
                let _: CertificateSigningRequest = requests
                    .replace_subresource("approval", &key.name, &PostParams::default(), &approved)
                    .await?;
                return Ok(Action::Done);
            }
        }
        Ok(Action::Done)
    }
}

impl Approver {
    /// Asks whether who requests may have such a certificate approved.
    async fn may(&self, request: &CertificateSigningRequest, subresource: &str) -> Result<bool, kube::Error> {
        let spec = &request.spec;
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: spec.username.clone(),
                uid: spec.uid.clone(),
                groups: spec.groups.clone(),
                extra: spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".to_owned()),
                    resource: Some("certificatesigningrequests".to_owned()),
                    verb: Some("create".to_owned()),
                    version: Some("*".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }
}

#[async_trait]
impl Reconciler for Signer {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let Some(request) = self.requests.get(key) else { return Ok(Action::Done) };
        let approved = condition(&request, "Approved").is_some() && condition(&request, "Denied").is_none();
        if !approved || is_issued(&request) || condition(&request, "Failed").is_some() {
            return Ok(Action::Done);
        }
        if !request::is_ours(&request.spec.signer_name) {
            return Ok(Action::Done);
        }
        let mut answered = (*request).clone();
        let now = self.clock.now();
        match Request::parse(&request)
            .and_then(|parsed| parsed.check(&request.spec.signer_name).map(|()| parsed))
        {
            Err(message) => add_condition(&mut answered, "Failed", "SignerValidationFailure", &message, now),
            Ok(parsed) => {
                let pem = self.sign(&request, parsed, now)?;
                answered.status.get_or_insert_default().certificate = Some(ByteString(pem.into_bytes()));
            }
        }
        let requests: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        requests.replace_status(&key.name, &PostParams::default(), &answered).await?;
        Ok(Action::Done)
    }
}

impl Signer {
    fn sign(
        &self,
        request: &CertificateSigningRequest,
        parsed: Request,
        now: Timestamp,
    ) -> Result<String, ReconcileError> {
        let Some(files) = &self.config.cluster_signing else {
            return Err(ReconcileError::Terminal("there is no authority to sign with".to_owned()));
        };
        let read = |path: &std::path::Path| {
            std::fs::read_to_string(path).map_err(|error| ReconcileError::Failed {
                message: format!("cannot read {}", path.display()),
                source: Some(Box::new(error)),
            })
        };
        let failed = |error: rcgen::Error| ReconcileError::Failed {
            message: "cannot sign the certificate".to_owned(),
            source: Some(Box::new(error)),
        };
        let key = KeyPair::from_pem(&read(&files.key)?).map_err(failed)?;
        let issuer = Issuer::from_ca_cert_pem(&read(&files.certificate)?, key).map_err(failed)?;
        let asked = request.spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let longest = self.config.cluster_signing_duration;
        let duration = asked.map_or(longest, |seconds| Duration::from_secs(seconds).min(longest));
        let usages = request.spec.usages.as_deref().unwrap_or_default();
        parsed.sign(&issuer, usages, now, duration).map_err(failed)
    }
}

#[async_trait]
impl Reconciler for Cleaner {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let Some(request) = self.requests.get(key) else { return Ok(Action::Done) };
        let age = self.clock.now().duration_since(created(&request.metadata));
        let keep = if is_decided(&request) || condition(&request, "Failed").is_some() {
            KEEP_DECIDED
        } else {
            KEEP_PENDING
        };
        if let Ok(left) = Duration::try_from(keep - age)
            && !left.is_zero()
        {
            return Ok(Action::RequeueAfter(left));
        }
        let requests: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        match requests.delete(name(&request.metadata), &DeleteParams::default()).await {
            Ok(_) => Ok(Action::Done),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Action::Done),
            Err(error) => Err(error.into()),
        }
    }
}
