//! The serving certificate, and which client certificates are believed.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::config::Config;

#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("cannot read {}", path.display())]
    Pem {
        path: PathBuf,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot make a serving certificate")]
    Generate(#[from] rcgen::Error),
    #[error("client certificate authority is unusable")]
    ClientCa(#[from] rustls::server::VerifierBuilderError),
    #[error("certificate and key do not serve")]
    Rustls(#[from] rustls::Error),
}

pub(super) fn server_config(config: &Config, ips: &[String]) -> Result<Arc<ServerConfig>, TlsError> {
    let kubelet = &config.kubelet;
    let (certificate, key) = match (&kubelet.tls_cert_file, &kubelet.tls_private_key_file) {
        (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
        _ => self_signed(config, ips)?,
    };
    let chain = certificates(&certificate)?;
    let key =
        PrivateKeyDer::from_pem_file(&key).map_err(|source| TlsError::Pem { path: key.clone(), source })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match &kubelet.authentication.x509.client_ca_file {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.allow_unauthenticated().build()?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut server = builder.with_single_cert(chain, key)?;
    // Exec and its kin upgrade the connection, which HTTP/2 cannot.
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(server))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::Pem { path: path.to_owned(), source };
    CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
}

/// A certificate of our own, kept for the next start, where no other is given.
fn self_signed(config: &Config, ips: &[String]) -> Result<(PathBuf, PathBuf), TlsError> {
    let paths = (config.cert_dir.join("kubelet.crt"), config.cert_dir.join("kubelet.key"));
    if paths.0.exists() && paths.1.exists() {
        return Ok(paths);
    }
    let mut names = vec![config.node_name.clone()];
    names.extend(ips.iter().cloned());
    let mut parameters = CertificateParams::new(names)?;
    parameters.distinguished_name.push(DnType::CommonName, format!("{}@kubelet", config.node_name));
    let key = KeyPair::generate()?;
    let certificate = parameters.self_signed(&key)?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Write { path, source }
    };
    fs::create_dir_all(&config.cert_dir).map_err(failed(&config.cert_dir))?;
    write_private(&paths.1, &key.serialize_pem()).map_err(failed(&paths.1))?;
    fs::write(&paths.0, certificate.pem()).map_err(failed(&paths.0))?;
    Ok(paths)
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}
