//! Images from registries: by tag or digest, with credentials, through mirrors, resumed and verified.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use cri::v1::AuthConfig;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use oci_client::client::{BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use tokio::io::AsyncWriteExt;
use tracing::{debug, info};

use super::ImageError;
use super::config::{Descriptor, INDEX_TYPES, Index, MANIFEST_TYPES, Manifest, choose};
use super::digest::{digest_hex, digest_of};
use super::hosts::{Host, hosts_of};
use super::store::{ImageRecord, ImageStore, parse_name, with_digest};
use crate::error::chain;

/// Layers that are downloaded side by side.
const PARALLEL_LAYERS: usize = 3;

/// How often a broken download is taken up again.
const RESUMES: usize = 5;

/// How deep indexes may hold indexes.
const MAX_INDEX_DEPTH: usize = 4;

/// How long a registry may be silent.
const READ_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);
const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

/// How far a pull is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are here.
    pub done: u64,
    /// Bytes there will be, as far as known.
    pub total: u64,
}

/// Who asks.
#[derive(Clone)]
pub(crate) struct Credentials(RegistryAuth);

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Credentials(..)")
    }
}

impl Credentials {
    pub(crate) fn from_cri(auth: AuthConfig) -> Result<Self, ImageError> {
        if !auth.registry_token.is_empty() {
            return Ok(Self(RegistryAuth::Bearer(auth.registry_token)));
        }
        if !auth.username.is_empty() {
            return Ok(Self(RegistryAuth::Basic(auth.username, auth.password)));
        }
        if auth.auth.is_empty() {
            return Ok(Self(RegistryAuth::Anonymous));
        }
        let invalid = || ImageError::malformed("the credentials' auth is not user:password in base64");
        let text = base64::engine::general_purpose::STANDARD.decode(&auth.auth).map_err(|_| invalid())?;
        let text = String::from_utf8(text).map_err(|_| invalid())?;
        let (user, password) = text.split_once(':').ok_or_else(invalid)?;
        Ok(Self(RegistryAuth::Basic(user.to_owned(), password.trim_end_matches('\0').to_owned())))
    }
}

/// Pulls images into a store.
#[derive(Debug)]
pub(crate) struct Puller {
    store: Arc<ImageStore>,
    hosts_dir: Option<PathBuf>,
    /// One pull for each name at a time.
    running: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// One registry host, ready to be asked.
struct Session {
    client: Client,
    image: Reference,
    auth: RegistryAuth,
}

impl ImageStore {
    /// Pulls an image without credentials, telling how far it is; `hosts_dir` as in [`crate::Config`].
    pub async fn pull(
        self: &Arc<Self>,
        name: &str,
        hosts_dir: Option<PathBuf>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<ImageRecord, ImageError> {
        Puller::new(Arc::clone(self), hosts_dir).pull_with(name, None, progress).await
    }
}

impl Puller {
    pub(crate) fn new(store: Arc<ImageStore>, hosts_dir: Option<PathBuf>) -> Self {
        Self { store, hosts_dir, running: Mutex::default() }
    }

    /// Pulls an image by its name.
    pub(crate) async fn pull(
        &self,
        name: &str,
        credentials: Option<Credentials>,
    ) -> Result<ImageRecord, ImageError> {
        self.pull_with(name, credentials, &|_| {}).await
    }

    /// Pulls an image by its name and tells how far it is.
    pub(crate) async fn pull_with(
        &self,
        name: &str,
        credentials: Option<Credentials>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<ImageRecord, ImageError> {
        let reference = parse_name(name)?;
        let _activity = self.store.begin()?;
        let turn = self.turn(name);
        let _turn = turn.lock().await;
        let auth = credentials.map_or(RegistryAuth::Anonymous, |credentials| credentials.0);
        let (mut details, mut not_found) = (Vec::new(), true);
        for host in hosts_of(reference.registry(), self.hosts_dir.as_deref())? {
            match self.pull_from(&host, &reference, &auth, progress).await {
                Ok(record) => {
                    info!(image = %name, id = %record.id, host = %host.authority, "image pulled");
                    return Ok(record);
                }
                Err(PullError::Registry(error)) => {
                    debug!(image = %name, host = %host.authority, error = %chain(&error), "no image from this host");
                    not_found &= is_absence(&error);
                    details.push(format!("{}: {}", host.authority, chain(&error)));
                }
                Err(PullError::Image(error)) => return Err(error),
            }
        }
        Err(ImageError::Pull { name: name.to_owned(), detail: details.join("; "), not_found })
    }

    fn turn(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(running.entry(name.to_owned()).or_default())
    }

    async fn pull_from(
        &self,
        host: &Host,
        reference: &Reference,
        auth: &RegistryAuth,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<ImageRecord, PullError> {
        let session = Session::new(host, reference, auth)?;
        let (digest, manifest) = self.fetch_manifest(&session, reference).await?;
        let blobs: Vec<&Descriptor> = manifest.1.layers.iter().chain([&manifest.1.config]).collect();
        let total = blobs.iter().map(|blob| blob.size).sum();
        let done = std::sync::atomic::AtomicU64::new(0);
        let report = |bytes: u64| {
            let done = done.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed) + bytes;
            progress(Progress { done, total });
        };
        let fetches: Vec<BoxFuture<'_, _>> =
            blobs.into_iter().map(|blob| self.fetch_blob(&session, blob, &report).boxed()).collect();
        let mut fetches = futures::stream::iter(fetches).buffer_unordered(PARALLEL_LAYERS);
        while let Some(result) = fetches.next().await {
            result?;
        }
        let store = Arc::clone(&self.store);
        let (reference, manifest) = (reference.clone(), manifest.0);
        let add = move || {
            let tag = reference.digest().is_none().then_some(&reference);
            store.add(&manifest, tag, Some(with_digest(&reference, &digest)))
        };
        match tokio::task::spawn_blocking(add).await {
            Ok(result) => Ok(result?),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// The digest the image goes by, and the digest and text of the manifest for this machine.
    async fn fetch_manifest(
        &self,
        session: &Session,
        reference: &Reference,
    ) -> Result<(String, (String, Manifest)), PullError> {
        let (mut text, top) = session.manifest(&session.image).await?;
        if let Some(wanted) = reference.digest()
            && wanted != top
        {
            return Err(ImageError::WrongDigest { expected: wanted.to_owned(), actual: top }.into());
        }
        let mut digest = top.clone();
        for _ in 0..MAX_INDEX_DEPTH {
            let json = |what| move |source| ImageError::Json { what, source };
            #[derive(serde::Deserialize)]
            #[serde(rename_all = "camelCase")]
            struct Kind {
                #[serde(default)]
                media_type: String,
                #[serde(default)]
                manifests: Option<serde::de::IgnoredAny>,
            }
            let kind: Kind = serde_json::from_slice(&text).map_err(json("the manifest"))?;
            self.store.put_blob(&mut text.as_slice(), Some(&digest))?;
            if !INDEX_TYPES.contains(&kind.media_type.as_str()) && kind.manifests.is_none() {
                let manifest = serde_json::from_slice(&text).map_err(json("the manifest"))?;
                return Ok((top, (digest, manifest)));
            }
            let index: Index = serde_json::from_slice(&text).map_err(json("the index"))?;
            let chosen = choose(&index)?.digest.clone();
            (text, digest) = session.manifest(&session.image.clone_with_digest(chosen.clone())).await?;
            if digest != chosen {
                return Err(ImageError::WrongDigest { expected: chosen, actual: digest }.into());
            }
        }
        Err(ImageError::malformed("indexes of indexes").into())
    }

    async fn fetch_blob(
        &self,
        session: &Session,
        blob: &Descriptor,
        report: &(dyn Fn(u64) + Sync),
    ) -> Result<(), PullError> {
        if self.store.has_blob(&blob.digest) {
            report(blob.size);
            return Ok(());
        }
        let hex = digest_hex(&blob.digest)
            .ok_or_else(|| ImageError::malformed(format!("digest {:?}", blob.digest)))?;
        // Left where it is when the process dies, and taken up from there.
        let path = self.store.incoming_dir().join(format!("blob-{hex}"));
        let mut resumes = 0;
        loop {
            match download(session, blob, &path, report).await {
                Ok(()) => break,
                Err(PullError::Registry(error)) if resumes < RESUMES && is_interruption(&error) => {
                    resumes += 1;
                    debug!(digest = %blob.digest, error = %chain(&error), "download interrupted");
                }
                Err(error) => return Err(error),
            }
        }
        let (store, digest) = (Arc::clone(&self.store), blob.digest.clone());
        let take = move || -> Result<(), ImageError> {
            let mut file = std::fs::File::open(&path).map_err(ImageError::file("read", &path))?;
            let taken = store.put_blob(&mut file, Some(&digest));
            std::fs::remove_file(&path).map_err(ImageError::file("remove", &path))?;
            taken.map(drop)
        };
        match tokio::task::spawn_blocking(take).await {
            Ok(result) => Ok(result?),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

async fn download(
    session: &Session,
    blob: &Descriptor,
    path: &std::path::Path,
    report: &(dyn Fn(u64) + Sync),
) -> Result<(), PullError> {
    let io = |source| ImageError::file("write", path)(source);
    let mut file = tokio::fs::OpenOptions::new().create(true).append(true).open(path).await.map_err(io)?;
    let have = file.metadata().await.map_err(io)?.len();
    if have > 0 && have == blob.size {
        report(have);
        return Ok(());
    }
    let descriptor = OciDescriptor {
        media_type: blob.media_type.clone(),
        digest: blob.digest.clone(),
        size: i64::try_from(blob.size).unwrap_or(i64::MAX),
        ..OciDescriptor::default()
    };
    let mut stream = match have {
        0 => session.client.pull_blob_stream(&session.image, &descriptor).await?,
        have => {
            let rest = blob.size.checked_sub(have);
            match session.client.pull_blob_stream_partial(&session.image, &descriptor, have, rest).await? {
                BlobResponse::Partial(stream) => {
                    report(have);
                    stream
                }
                BlobResponse::Full(stream) => {
                    file.set_len(0).await.map_err(io)?;
                    stream
                }
            }
        }
    };
    while let Some(chunk) = stream.stream.next().await {
        let chunk = chunk.map_err(OciDistributionError::IoError)?;
        file.write_all(&chunk).await.map_err(io)?;
        report(chunk.len() as u64);
    }
    file.flush().await.map_err(io)?;
    Ok(())
}

impl Session {
    fn new(host: &Host, reference: &Reference, auth: &RegistryAuth) -> Result<Self, PullError> {
        // The client takes the process's cryptography; whoever chose one already is right.
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut certificates = Vec::new();
        for path in &host.ca {
            let data = std::fs::read(path).map_err(ImageError::file("read", path))?;
            certificates.push(Certificate { encoding: CertificateEncoding::Pem, data });
        }
        let client = Client::new(ClientConfig {
            protocol: if host.plain_http { ClientProtocol::Http } else { ClientProtocol::Https },
            accept_invalid_certificates: host.skip_verify,
            extra_root_certificates: certificates,
            platform_resolver: None,
            read_timeout: Some(READ_TIMEOUT),
            connect_timeout: Some(CONNECT_TIMEOUT),
            user_agent: concat!("coracle/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        });
        let mut image = reference.clone();
        if host.is_mirror {
            image.set_mirror_registry(host.authority.clone());
        }
        Ok(Self { client, image, auth: auth.clone() })
    }

    /// A manifest's text and its real digest.
    async fn manifest(&self, image: &Reference) -> Result<(Vec<u8>, String), PullError> {
        let accepted: Vec<&str> = MANIFEST_TYPES.into_iter().chain(INDEX_TYPES).collect();
        let (text, _) = self.client.pull_manifest_raw(image, &self.auth, &accepted).await?;
        let digest = digest_of(&text);
        Ok((text.to_vec(), digest))
    }
}

/// What stops a pull: one host's refusal, or something no other host would mend.
enum PullError {
    Registry(OciDistributionError),
    Image(ImageError),
}

impl From<OciDistributionError> for PullError {
    fn from(error: OciDistributionError) -> Self {
        Self::Registry(error)
    }
}

impl From<ImageError> for PullError {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

fn is_absence(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => true,
        OciDistributionError::ServerError { code, .. } => *code == 404,
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.iter().all(|error| error.to_string().to_uppercase().contains("UNKNOWN"))
        }
        _ => false,
    }
}

fn is_interruption(error: &OciDistributionError) -> bool {
    matches!(error, OciDistributionError::RequestError(_) | OciDistributionError::IoError(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_come_in_three_forms() {
        let auth = AuthConfig { auth: "dTpwOnE=".into(), ..AuthConfig::default() };
        assert_eq!(Credentials::from_cri(auth).unwrap().0, RegistryAuth::Basic("u".into(), "p:q".into()));
        let auth = AuthConfig { registry_token: "t".into(), ..AuthConfig::default() };
        assert_eq!(Credentials::from_cri(auth).unwrap().0, RegistryAuth::Bearer("t".into()));
        let auth = AuthConfig { auth: "%".into(), ..AuthConfig::default() };
        assert!(Credentials::from_cri(auth).is_err());
    }
}
