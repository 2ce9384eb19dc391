//! `CertificateApproval`, `CertificateSigning`, `CertificateSubjectRestriction` and `ClusterTrustBundleAttest`: who
//! may speak for a signer.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use meta::names::GroupResource;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer as _;

use super::{creates_or_updates, is};
use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::attributes::Attributes;
use crate::authn::PRIVILEGED_GROUP;
use crate::authz::Authorizer;
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

const GROUP: &str = "certificates.k8s.io";
const REQUESTS: &str = "certificatesigningrequests";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

struct Approval(Context);

struct Signing(Context);

struct Attest(Context);

struct SubjectRestriction;

pub(super) fn approval(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(Approval(context.clone())))
}

pub(super) fn signing(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(Signing(context.clone())))
}

pub(super) fn attest(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(Attest(context.clone())))
}

pub(super) fn subject_restriction(_context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(SubjectRestriction))
}

#[async_trait]
impl AdmissionPlugin for Approval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        operation == Operation::Update && subresource == "approval" && is((GROUP, REQUESTS), resource, "")
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let signer = request.old_object.str_at(&["spec", "signerName"]).to_owned();
        if may(&*self.0.authorizer, request, "approve", &signer).await {
            return Ok(());
        }
        Err(request.forbidden(&format!("user not permitted to approve requests with signerName {signer:?}")))
    }
}

#[async_trait]
impl AdmissionPlugin for Signing {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        operation == Operation::Update && subresource == "status" && is((GROUP, REQUESTS), resource, "")
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let same = |field: &str| {
            let (new, old) =
                (request.object.at(&["status", field]), request.old_object.at(&["status", field]));
            new == old
        };
        if same("certificate") && same("conditions") {
            return Ok(());
        }
        let signer = request.old_object.str_at(&["spec", "signerName"]).to_owned();
        if may(&*self.0.authorizer, request, "sign", &signer).await {
            return Ok(());
        }
        Err(request.forbidden(&format!("user not permitted to sign requests with signerName {signer:?}")))
    }
}

#[async_trait]
impl AdmissionPlugin for Attest {
    fn name(&self) -> &'static str {
        "ClusterTrustBundleAttest"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        creates_or_updates(operation) && is((GROUP, "clustertrustbundles"), resource, subresource)
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let signer = request.object.str_at(&["spec", "signerName"]).to_owned();
        // Deleting finalizers of a bundle, say, attests nothing.
        let same_spec = request.operation == Operation::Update
            && request.object.get("spec") == request.old_object.get("spec");
        if signer.is_empty() || same_spec || may(&*self.0.authorizer, request, "attest", &signer).await {
            return Ok(());
        }
        Err(request.forbidden(&format!("user not permitted to attest for signerName {signer:?}")))
    }
}

#[async_trait]
impl AdmissionPlugin for SubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        operation == Operation::Create && is((GROUP, REQUESTS), resource, subresource)
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if request.object.str_at(&["spec", "signerName"]) != CLIENT_SIGNER {
            return Ok(());
        }
        let organizations = organizations(&request.object)
            .map_err(|why| request.forbidden(&format!("failed to parse CSR: {why}")))?;
        if organizations.iter().any(|organization| organization == PRIVILEGED_GROUP) {
            let why = format!("use of {CLIENT_SIGNER} signer with {PRIVILEGED_GROUP} group is not allowed");
            return Err(request.forbidden(&why));
        }
        Ok(())
    }
}

/// Whether the user holds `verb` on the signer, by its name or by its whole domain.
async fn may(authorizer: &dyn Authorizer, request: &AdmissionRequest, verb: &str, signer: &str) -> bool {
    let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
    for name in [signer.to_owned(), format!("{domain}/*")] {
        let attributes = Attributes {
            user: request.user.clone(),
            verb: verb.to_owned(),
            resource_request: true,
            api_group: GROUP.to_owned(),
            api_version: "*".to_owned(),
            resource: "signers".to_owned(),
            name,
            ..Attributes::default()
        };
        if authorizer.authorize(&attributes).await.is_allowed() {
            return true;
        }
    }
    false
}

fn organizations(request: &Value) -> Result<Vec<String>, String> {
    let pem = STANDARD.decode(request.str_at(&["spec", "request"])).map_err(|error| error.to_string())?;
    let (_, block) = parse_x509_pem(&pem).map_err(|error| error.to_string())?;
    let (_, parsed) =
        X509CertificationRequest::from_der(&block.contents).map_err(|error| error.to_string())?;
    let subject = &parsed.certification_request_info.subject;
    Ok(subject.iter_organization().filter_map(|name| name.as_str().ok().map(str::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};
    use serde_json::json;

    use super::super::tests::{context, create, request, run};
    use super::*;
    use crate::authz::union::AlwaysDeny;

    fn signing_request(organization: &str) -> Value {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, organization);
        let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        json!({"metadata": {"name": "r"}, "spec": {"signerName": CLIENT_SIGNER, "request": STANDARD.encode(pem)}})
    }

    #[tokio::test]
    async fn nobody_asks_to_be_master() {
        let target = "certificatesigningrequests.certificates.k8s.io";
        let plugin = "CertificateSubjectRestriction";
        assert!(create(&context(&[]), plugin, target, signing_request("dev")).await.is_ok());
        assert!(create(&context(&[]), plugin, target, signing_request(PRIVILEGED_GROUP)).await.unwrap_err().ends_with(
            "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"
        ));
    }

    #[tokio::test]
    async fn approving_and_signing_need_the_signer() {
        let old = signing_request("dev");
        let mut signed = old.clone();
        signed["status"] = json!({"certificate": "x"});
        let denied = Context { authorizer: Arc::new(AlwaysDeny), ..context(&[]) };
        for (plugin, subresource, new, refused) in [
            ("CertificateApproval", "approval", old.clone(), true),
            ("CertificateSigning", "status", signed, true),
            ("CertificateSigning", "status", old.clone(), false),
        ] {
            let target = format!("certificatesigningrequests.certificates.k8s.io/{subresource}");
            // `request` splits the resource at its first slash, the group at its first dot.
            let mut ask = request(Operation::Update, &target, new, old.clone());
            assert_eq!(run(&denied, plugin, &mut ask).await.is_err(), refused, "{plugin}");
            assert_eq!(run(&context(&[]), plugin, &mut ask).await, Ok(()));
        }
    }
}
