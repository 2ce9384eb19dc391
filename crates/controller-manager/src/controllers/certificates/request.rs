//! What a request asks for, whether its signer may grant it, and the certificate.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use rcgen::{
    CertificateSigningRequestParams, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

pub(super) const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const LEGACY: &str = "kubernetes.io/legacy-unknown";
/// Clocks differ a little: certificates are valid from this long ago.
const BACKDATE: Duration = Duration::from_secs(300);

/// A parsed request whose signature holds.
pub(super) struct Request {
    params: CertificateSigningRequestParams,
    pub(super) common_name: String,
    organization: String,
    usages: BTreeSet<String>,
}

/// True for the signers that this controller answers.
pub(super) fn is_ours(signer: &str) -> bool {
    [KUBELET_CLIENT, KUBELET_SERVING, CLIENT, LEGACY].contains(&signer)
}

impl Request {
    pub(super) fn parse(request: &CertificateSigningRequest) -> Result<Self, String> {
        let unreadable = |error: &dyn std::fmt::Display| {
            format!("unable to parse csr {:?}: {error}", request.metadata.name.as_deref().unwrap_or_default())
        };
        let pem = std::str::from_utf8(&request.spec.request.0).map_err(|error| unreadable(&error))?;
        let params = CertificateSigningRequestParams::from_pem(pem).map_err(|error| unreadable(&error))?;
        let text =
            |type_: &DnType| params.params.distinguished_name.get(type_).map(value).unwrap_or_default();
        Ok(Self {
            common_name: text(&DnType::CommonName),
            organization: text(&DnType::OrganizationName),
            usages: request.spec.usages.iter().flatten().cloned().collect(),
            params,
        })
    }

    /// The rules of each signer, as its documentation has them.
    pub(super) fn check(&self, signer: &str) -> Result<(), String> {
        match signer {
            KUBELET_CLIENT => self.check_kubelet_client(),
            KUBELET_SERVING => self.check_kubelet_serving(),
            CLIENT => {
                self.check_usages(&["client auth"], &["digital signature", "key encipherment", "client auth"])
            }
            _ => Ok(()),
        }
    }

    pub(super) fn check_kubelet_client(&self) -> Result<(), String> {
        self.check_node()?;
        if !self.params.params.subject_alt_names.is_empty() {
            return Err("subjectAltNames are not allowed".to_owned());
        }
        self.check_usages(
            &["digital signature", "client auth"],
            &["digital signature", "key encipherment", "client auth"],
        )
    }

    fn check_kubelet_serving(&self) -> Result<(), String> {
        self.check_node()?;
        let names = &self.params.params.subject_alt_names;
        if !names.iter().all(|name| matches!(name, SanType::DnsName(_) | SanType::IpAddress(_))) {
            return Err("only DNS and IP subjectAltNames are allowed".to_owned());
        }
        if names.is_empty() {
            return Err("at least one DNS or IP subjectAltName is required".to_owned());
        }
        self.check_usages(
            &["digital signature", "server auth"],
            &["digital signature", "key encipherment", "server auth"],
        )
    }

    fn check_node(&self) -> Result<(), String> {
        if self.organization != "system:nodes" {
            return Err("subject organization is not system:nodes".to_owned());
        }
        if !self.common_name.starts_with("system:node:") {
            return Err("subject common name does not begin with system:node:".to_owned());
        }
        Ok(())
    }

    fn check_usages(&self, required: &[&str], allowed: &[&str]) -> Result<(), String> {
        let all = required.iter().all(|usage| self.usages.contains(*usage));
        let only = self.usages.iter().all(|usage| allowed.contains(&usage.as_str()));
        if all && only { Ok(()) } else { Err(format!("usages did not match {allowed:?}")) }
    }

    /// The certificate as PEM.
    pub(super) fn sign(
        mut self,
        issuer: &Issuer<'_, KeyPair>,
        usages: &[String],
        now: Timestamp,
        duration: Duration,
    ) -> Result<String, rcgen::Error> {
        let now = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or(0));
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let params = &mut self.params.params;
        params.not_before = epoch + now.saturating_sub(BACKDATE);
        params.not_after = epoch + now + duration;
        params.is_ca = IsCa::NoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = usages.iter().filter_map(|usage| key_usage(usage)).collect();
        params.extended_key_usages = usages.iter().filter_map(|usage| extended_usage(usage)).collect();
        Ok(self.params.signed_by(issuer)?.pem())
    }
}

fn value(value: &DnValue) -> String {
    match value {
        DnValue::Utf8String(text) => text.clone(),
        DnValue::PrintableString(text) => text.as_str().to_owned(),
        DnValue::Ia5String(text) => text.as_str().to_owned(),
        DnValue::TeletexString(text) => text.as_str().to_owned(),
        _ => String::new(),
    }
}

fn key_usage(usage: &str) -> Option<KeyUsagePurpose> {
    Some(match usage {
        "signing" | "digital signature" => KeyUsagePurpose::DigitalSignature,
        "content commitment" => KeyUsagePurpose::ContentCommitment,
        "key encipherment" => KeyUsagePurpose::KeyEncipherment,
        "key agreement" => KeyUsagePurpose::KeyAgreement,
        "data encipherment" => KeyUsagePurpose::DataEncipherment,
        "cert sign" => KeyUsagePurpose::KeyCertSign,
        "crl sign" => KeyUsagePurpose::CrlSign,
        "encipher only" => KeyUsagePurpose::EncipherOnly,
        "decipher only" => KeyUsagePurpose::DecipherOnly,
        _ => return None,
    })
}

fn extended_usage(usage: &str) -> Option<ExtendedKeyUsagePurpose> {
    Some(match usage {
        "any" => ExtendedKeyUsagePurpose::Any,
        "server auth" => ExtendedKeyUsagePurpose::ServerAuth,
        "client auth" => ExtendedKeyUsagePurpose::ClientAuth,
        "code signing" => ExtendedKeyUsagePurpose::CodeSigning,
        "email protection" | "s/mime" => ExtendedKeyUsagePurpose::EmailProtection,
        "timestamping" => ExtendedKeyUsagePurpose::TimeStamping,
        "ocsp signing" => ExtendedKeyUsagePurpose::OcspSigning,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use rcgen::{BasicConstraints, CertificateParams, DistinguishedName};
    use x509_parser::prelude::FromDer;

    use super::*;

    fn request(common_name: &str, organization: &str, sans: &[&str], usages: &[&str]) -> Request {
        let mut params =
            CertificateParams::new(sans.iter().map(|san| (*san).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.distinguished_name.push(DnType::OrganizationName, organization);
        let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let mut request = CertificateSigningRequest::default();
        request.spec.request = ByteString(pem.into_bytes());
        request.spec.usages = Some(usages.iter().map(|usage| (*usage).to_owned()).collect());
        Request::parse(&request).unwrap()
    }

    #[test]
    fn each_signer_has_its_rules() {
        let client: &[&str] = &["digital signature", "client auth"];
        let server: &[&str] = &["digital signature", "server auth"];
        let (node, nodes) = ("system:node:a", "system:nodes");
        let table = [
            (KUBELET_CLIENT, request(node, nodes, &[], client), true),
            (KUBELET_CLIENT, request("admin", nodes, &[], client), false),
            (KUBELET_CLIENT, request(node, "system:masters", &[], client), false),
            (KUBELET_CLIENT, request(node, nodes, &["a"], client), false),
            (KUBELET_CLIENT, request(node, nodes, &[], server), false),
            (KUBELET_SERVING, request(node, nodes, &["a", "10.0.0.1"], server), true),
            (KUBELET_SERVING, request(node, nodes, &[], server), false),
            (CLIENT, request("jane", "dev", &[], &["client auth"]), true),
            (CLIENT, request("jane", "dev", &[], server), false),
        ];
        for (signer, request, allowed) in table {
            assert_eq!(request.check(signer).is_ok(), allowed, "{signer} for {}", request.common_name);
        }
    }

    #[test]
    fn a_certificate_carries_the_subject_and_ends_when_asked() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = Issuer::new(params, key);
        let asked = request("jane", "dev", &[], &["client auth"]);
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let pem = asked.sign(&issuer, &["client auth".to_owned()], now, Duration::from_secs(3_600)).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(&pem.contents).unwrap();
        assert_eq!(certificate.subject().to_string(), "CN=jane, O=dev");
        assert_eq!(certificate.validity().not_after.timestamp(), now.as_second() + 3_600);
        assert!(!certificate.is_ca());
        assert!(certificate.extended_key_usage().unwrap().unwrap().value.client_auth);
    }
}
