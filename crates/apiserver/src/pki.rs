//! The cluster's own certificates and keys, under kubeadm's names, made when missing and reused ever after.
//!
//! Certificates are ECDSA P-256: a key costs a tenth of a millisecond, where RSA would cost a server's whole start.
//! For the same reason a new service account key signs ES256; an RSA key put in its place is used as it is.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::X509Certificate;

use crate::tokens::keys::{KeyError, SigningKey};

const AUTHORITY_VALIDITY: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);
const VALIDITY: SignedDuration = SignedDuration::from_hours(365 * 24);
/// A certificate with less than this left is made anew at start.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(30 * 24);
/// For clients whose clocks are behind.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);

/// Why the cluster's keys cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not a usable certificate or key")]
    Malformed { path: PathBuf },
    #[error("cannot make a certificate")]
    Generate(#[from] rcgen::Error),
    #[error("{path} is not a usable service account key")]
    ServiceAccountKey {
        path: PathBuf,
        #[source]
        source: KeyError,
    },
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    Client,
    Server,
    Both,
}

/// A certificate with its key, both PEM.
#[derive(Clone)]
pub struct Issued {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// A certificate authority that can issue.
pub struct Authority {
    certificate_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What the certificates of a cluster depend on.
#[derive(Debug, Clone)]
pub struct PkiOptions {
    /// `<data dir>/pki`.
    pub directory: PathBuf,
    /// The cluster IP of the `kubernetes` service.
    pub service_ip: IpAddr,
    pub cluster_domain: String,
    /// Further names and addresses clients use for the API server; `localhost` is always there.
    pub server_names: Vec<String>,
}

/// The keys of a cluster.
#[derive(Debug)]
pub struct Pki {
    pub directory: PathBuf,
    pub authority: Authority,
    pub front_proxy_authority: Authority,
    pub apiserver: Issued,
    pub kubelet_client: Issued,
    pub front_proxy_client: Issued,
    pub service_account_key: SigningKey,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Pki {
    /// Reads what is there, makes what is missing or about to expire.
    pub fn ensure(options: &PkiOptions, now: Timestamp) -> Result<Self, PkiError> {
        let directory = options.directory.clone();
        create_directory(&directory)?;
        let authority = Authority::ensure(&directory, "ca", "kubernetes", now)?;
        let front_proxy_authority = Authority::ensure(&directory, "front-proxy-ca", "front-proxy-ca", now)?;
        let server_names = server_names(options);
        let apiserver = Wanted {
            file: "apiserver",
            common_name: "kube-apiserver",
            organization: None,
            names: &server_names,
            usage: Usage::Server,
        };
        let kubelet_client = Wanted {
            file: "apiserver-kubelet-client",
            common_name: "kube-apiserver-kubelet-client",
            organization: Some("system:masters"),
            names: &[],
            usage: Usage::Client,
        };
        let front_proxy_client = Wanted {
            file: "front-proxy-client",
            common_name: "front-proxy-client",
            organization: None,
            names: &[],
            usage: Usage::Client,
        };
        Ok(Self {
            apiserver: apiserver.ensure(&directory, &authority, now)?,
            kubelet_client: kubelet_client.ensure(&directory, &authority, now)?,
            front_proxy_client: front_proxy_client.ensure(&directory, &front_proxy_authority, now)?,
            service_account_key: ensure_service_account_key(&directory)?,
            authority,
            front_proxy_authority,
            directory,
        })
    }

    /// A client certificate for a component or person, kept under `<file>.crt` and `<file>.key`.
    pub fn client(
        &self,
        file: &str,
        common_name: &str,
        organization: Option<&str>,
        now: Timestamp,
    ) -> Result<Issued, PkiError> {
        let wanted = Wanted { file, common_name, organization, names: &[], usage: Usage::Client };
        wanted.ensure(&self.directory, &self.authority, now)
    }

    /// A serving certificate for these names and addresses, kept as [`Self::client`] keeps it.
    pub fn serving(
        &self,
        file: &str,
        common_name: &str,
        names: &[String],
        now: Timestamp,
    ) -> Result<Issued, PkiError> {
        let wanted = Wanted { file, common_name, organization: None, names, usage: Usage::Server };
        wanted.ensure(&self.directory, &self.authority, now)
    }

    /// A kubeconfig for a user of this cluster, as text; its client certificate is inside.
    pub fn kubeconfig(&self, server: &str, cluster: &str, user: &str, client: &Issued) -> String {
        let encode = |pem: &str| STANDARD.encode(pem);
        format!(
            "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {ca}\n    server: {server}\n  \
             name: {cluster}\ncontexts:\n- context:\n    cluster: {cluster}\n    user: {user}\n  \
             name: {user}@{cluster}\ncurrent-context: {user}@{cluster}\nkind: Config\npreferences: {{}}\nusers:\n\
             - name: {user}\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n",
            ca = encode(&self.authority.certificate_pem),
            certificate = encode(&client.certificate_pem),
            key = encode(&client.key_pem),
        )
    }
}

impl Authority {
    /// A new self-signed authority.
    pub fn new(common_name: &str, now: Timestamp) -> Result<Self, PkiError> {
        let mut params = params(common_name, None, now, AUTHORITY_VALIDITY);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::KeyCertSign,
        ];
        params.subject_alt_names = vec![SanType::DnsName(common_name.to_owned().try_into()?)];
        let key = KeyPair::generate()?;
        let key_pem = key.serialize_pem();
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok(Self { certificate_pem, key_pem, issuer: Issuer::new(params, key) })
    }

    /// Reads an authority; the key is PKCS #8, PKCS #1 or SEC 1 as far as `ring` reads them.
    pub fn load(certificate_pem: String, key_pem: String) -> Result<Self, PkiError> {
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, KeyPair::from_pem(&key_pem)?)?;
        Ok(Self { certificate_pem, key_pem, issuer })
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// A certificate with a new key. `names` are DNS names or IP addresses.
    pub fn issue(
        &self,
        common_name: &str,
        organization: Option<&str>,
        names: &[String],
        usage: Usage,
        now: Timestamp,
    ) -> Result<Issued, PkiError> {
        let mut params = params(common_name, organization, now, VALIDITY);
        params.subject_alt_names = CertificateParams::new(names.to_vec())?.subject_alt_names;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = match usage {
            Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Usage::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    fn ensure(directory: &Path, file: &str, common_name: &str, now: Timestamp) -> Result<Self, PkiError> {
        let certificate_path = directory.join(format!("{file}.crt"));
        let key_path = directory.join(format!("{file}.key"));
        // The key is written first: a certificate on disk means both are there.
        if let Some(certificate_pem) = read(&certificate_path)? {
            let key_pem = read(&key_path)?.ok_or(PkiError::Malformed { path: key_path })?;
            return Self::load(certificate_pem, key_pem)
                .map_err(|_| PkiError::Malformed { path: certificate_path });
        }
        let authority = Self::new(common_name, now)?;
        write(&key_path, &authority.key_pem, Durable::Yes)?;
        write(&certificate_path, &authority.certificate_pem, Durable::Yes)?;
        Ok(authority)
    }
}

/// A certificate that should be there.
struct Wanted<'a> {
    file: &'a str,
    common_name: &'a str,
    organization: Option<&'a str>,
    names: &'a [String],
    usage: Usage,
}

impl Wanted<'_> {
    fn ensure(&self, directory: &Path, authority: &Authority, now: Timestamp) -> Result<Issued, PkiError> {
        let certificate_path = directory.join(format!("{}.crt", self.file));
        let key_path = directory.join(format!("{}.key", self.file));
        if let (Some(certificate_pem), Some(key_pem)) = (read(&certificate_path)?, read(&key_path)?)
            && self.is_met_by(&certificate_pem, &key_pem, authority, now)
        {
            return Ok(Issued { certificate_pem, key_pem });
        }
        let issued = authority.issue(self.common_name, self.organization, self.names, self.usage, now)?;
        write(&key_path, &issued.key_pem, Durable::No)?;
        write(&certificate_path, &issued.certificate_pem, Durable::No)?;
        Ok(issued)
    }

    fn is_met_by(&self, certificate_pem: &str, key_pem: &str, authority: &Authority, now: Timestamp) -> bool {
        let (Ok((_, pem)), Ok((_, ca))) = (
            parse_x509_pem(certificate_pem.as_bytes()),
            parse_x509_pem(authority.certificate_pem.as_bytes()),
        ) else {
            return false;
        };
        let (Ok(certificate), Ok(ca), Ok(key)) =
            (pem.parse_x509(), ca.parse_x509(), KeyPair::from_pem(key_pem))
        else {
            return false;
        };
        let organization =
            certificate.subject().iter_organization().next().and_then(|name| name.as_str().ok());
        let common_name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let names = names_of(&certificate);
        certificate.validity().not_after.timestamp() > (now + RENEW_BEFORE).as_second()
            && common_name == Some(self.common_name)
            && organization == self.organization
            && self.names.iter().all(|name| names.contains(name))
            && certificate.issuer().as_raw() == ca.subject().as_raw()
            && authority_key(&certificate) == subject_key(&ca)
            && certificate.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
    }
}

fn params(
    common_name: &str,
    organization: Option<&str>,
    now: Timestamp,
    validity: SignedDuration,
) -> CertificateParams {
    let mut name = DistinguishedName::new();
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common_name);
    let mut params = CertificateParams::default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at =
        |time: Timestamp| epoch + Duration::from_secs(u64::try_from(time.as_second()).unwrap_or_default());
    params.not_before = at(now - BACKDATE);
    params.not_after = at(now + validity);
    params.distinguished_name = name;
    params
}

fn server_names(options: &PkiOptions) -> Vec<String> {
    let mut names = vec![
        "kubernetes".to_owned(),
        "kubernetes.default".to_owned(),
        "kubernetes.default.svc".to_owned(),
        format!("kubernetes.default.svc.{}", options.cluster_domain),
        "localhost".to_owned(),
        options.service_ip.to_string(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    names.extend(options.server_names.iter().cloned());
    names.sort();
    names.dedup();
    names
}

fn names_of(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(|octets| IpAddr::from(octets).to_string()),
                16 => <[u8; 16]>::try_from(*bytes).ok().map(|octets| IpAddr::from(octets).to_string()),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

fn authority_key(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    })
}

fn subject_key(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}

fn ensure_service_account_key(directory: &Path) -> Result<SigningKey, PkiError> {
    let path = directory.join("sa.key");
    let pem = match read(&path)? {
        Some(pem) => pem,
        None => {
            let key = KeyPair::generate()?;
            let pem = key.serialize_pem();
            write(&directory.join("sa.pub"), &key.public_key_pem(), Durable::No)?;
            write(&path, &pem, Durable::Yes)?;
            pem
        }
    };
    SigningKey::from_pem(pem.as_bytes()).map_err(|source| PkiError::ServiceAccountKey { path, source })
}

/// Whether a file must survive a power cut: authorities and the token key, but not what they can issue again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Durable {
    Yes,
    No,
}

fn create_directory(path: &Path) -> Result<(), PkiError> {
    fs::create_dir_all(path).map_err(|source| PkiError::Write { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::Read { path: path.to_owned(), source }),
    }
}

/// Writes a file that only its owner reads, as a whole or not at all.
fn write(path: &Path, content: &str, durable: Durable) -> Result<(), PkiError> {
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let written = (|| {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content.as_bytes())?;
        if durable == Durable::Yes {
            file.sync_all()?;
        }
        fs::rename(&temporary, path)
    })();
    written.map_err(|source| PkiError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn options(directory: &Path, names: &[&str]) -> PkiOptions {
        PkiOptions {
            directory: directory.to_owned(),
            service_ip: "10.96.0.1".parse().unwrap(),
            cluster_domain: "cluster.local".to_owned(),
            server_names: names.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    #[test]
    fn keys_are_made_once_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let first = Pki::ensure(&options(directory.path(), &[]), now).unwrap();
        let again = Pki::ensure(&options(directory.path(), &[]), now).unwrap();
        assert_eq!(first.authority.certificate_pem, again.authority.certificate_pem);
        assert_eq!(first.apiserver.certificate_pem, again.apiserver.certificate_pem);
        assert_eq!(first.service_account_key.public().id(), again.service_account_key.public().id());
        for entry in fs::read_dir(directory.path()).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn certificates_are_renewed_when_names_or_time_demand_it() {
        let directory = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let first = Pki::ensure(&options(directory.path(), &[]), now).unwrap();
        let named = Pki::ensure(&options(directory.path(), &["192.0.2.7", "api.example"]), now).unwrap();
        assert_ne!(first.apiserver.certificate_pem, named.apiserver.certificate_pem);
        let fewer = Pki::ensure(&options(directory.path(), &["192.0.2.7"]), now).unwrap();
        assert_eq!(named.apiserver.certificate_pem, fewer.apiserver.certificate_pem);
        let later = now + SignedDuration::from_hours(340 * 24);
        let renewed = Pki::ensure(&options(directory.path(), &[]), later).unwrap();
        assert_ne!(renewed.kubelet_client.certificate_pem, first.kubelet_client.certificate_pem);
        assert_eq!(renewed.authority.certificate_pem, first.authority.certificate_pem);
    }

    #[test]
    fn a_broken_authority_is_an_error_not_a_new_identity() {
        let directory = tempfile::tempdir().unwrap();
        Pki::ensure(&options(directory.path(), &[]), Timestamp::now()).unwrap();
        fs::write(directory.path().join("ca.crt"), "garbage").unwrap();
        assert!(matches!(
            Pki::ensure(&options(directory.path(), &[]), Timestamp::now()),
            Err(PkiError::Malformed { .. })
        ));
    }
}
