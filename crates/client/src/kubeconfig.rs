//! Kubeconfig files, as kubectl reads and writes them: entries are merged by name, what is not understood stays, a
//! reader sees the old file or the new one, and only its owner may read it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

/// A cluster, a user of it, and the context that joins them, all of one name.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: String,
    /// URL of the API server.
    pub server: String,
    /// PEM.
    pub certificate_authority: Vec<u8>,
    pub credentials: Credentials,
    /// What the context means by no namespace.
    pub namespace: Option<String>,
}

/// What a user shows.
#[derive(Clone)]
pub enum Credentials {
    /// PEM both.
    Certificate {
        certificate: Vec<u8>,
        key: Vec<u8>,
    },
    Token(String),
}

/// Why a kubeconfig is not as it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KubeconfigError {
    #[error("cannot use {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is locked by {}; remove that if nobody writes", path.display(), lock.display())]
    Locked { path: PathBuf, lock: PathBuf },
    #[error("{} is no YAML", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: Box<serde_saphyr::Error>,
    },
    #[error("{} is no kubeconfig: {detail}", path.display())]
    Shape { path: PathBuf, detail: &'static str },
    #[error("cannot write {} as YAML", path.display())]
    Serialize {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

const LISTS: [(&str, &str); 3] = [("clusters", "cluster"), ("contexts", "context"), ("users", "user")];

/// The file that kubectl writes to when it is told of no other: the first of `KUBECONFIG`, or the one in the home
/// directory.
pub fn default_path(kubeconfig: Option<&str>, home: &Path) -> PathBuf {
    let named = kubeconfig.unwrap_or_default().split(':').find(|path| !path.is_empty());
    named.map_or_else(|| home.join(".kube/config"), PathBuf::from)
}

/// Adds an entry to a file, in place of one of the same name, and makes it the current context.
pub fn merge(path: &Path, entry: &Entry) -> Result<(), KubeconfigError> {
    edit(path, |config| {
        for ((list, field), value) in LISTS.into_iter().zip(entry.values()) {
            let list = list_mut(config, list)?;
            list.retain(|item| !is_named(item, &entry.name));
            list.push(json!({ "name": entry.name, field: value }));
        }
        config.insert("current-context".to_owned(), json!(entry.name));
        Ok(())
    })
}

/// Removes an entry from a file, and forgets it as the current context.
pub fn remove(path: &Path, name: &str) -> Result<(), KubeconfigError> {
    edit(path, |config| {
        for (list, _) in LISTS {
            list_mut(config, list)?.retain(|item| !is_named(item, name));
        }
        if config.get("current-context").is_some_and(|current| current == name) {
            config.insert("current-context".to_owned(), json!(""));
        }
        Ok(())
    })
}

/// Writes a file with this entry and no other.
pub fn write(path: &Path, entry: &Entry) -> Result<(), KubeconfigError> {
    let mut config = empty();
    for ((list, field), value) in LISTS.into_iter().zip(entry.values()) {
        config.insert(list.to_owned(), json!([{ "name": entry.name, field: value }]));
    }
    config.insert("current-context".to_owned(), json!(entry.name));
    replace(&resolve(path)?, config)
}

impl Entry {
    /// What stands in each of the lists.
    fn values(&self) -> [Value; 3] {
        let data = |pem: &[u8]| STANDARD.encode(pem);
        let cluster =
            json!({ "server": self.server, "certificate-authority-data": data(&self.certificate_authority) });
        let mut context = json!({ "cluster": self.name, "user": self.name });
        if let Some(namespace) = &self.namespace {
            context["namespace"] = json!(namespace);
        }
        let user = match &self.credentials {
            Credentials::Certificate { certificate, key } => {
                json!({ "client-certificate-data": data(certificate), "client-key-data": data(key) })
            }
            Credentials::Token(token) => json!({ "token": token }),
        };
        [cluster, context, user]
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Certificate { .. } => "Certificate(..)",
            Self::Token(_) => "Token(..)",
        })
    }
}

/// Held while a file is changed, as kubectl does it.
struct Lock(PathBuf);

impl Lock {
    fn acquire(path: &Path) -> Result<Self, KubeconfigError> {
        let lock = appended(path, ".lock");
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&lock) {
            Ok(_) => Ok(Self(lock)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(KubeconfigError::Locked { path: path.to_owned(), lock })
            }
            Err(source) => Err(KubeconfigError::Io { path: lock, source }),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "kubeconfig not unlocked");
        }
    }
}

fn edit(
    path: &Path,
    change: impl FnOnce(&mut Map<String, Value>) -> Result<(), &'static str>,
) -> Result<(), KubeconfigError> {
    let path = resolve(path)?;
    let _lock = Lock::acquire(&path)?;
    let mut config = read(&path)?;
    change(&mut config).map_err(|detail| KubeconfigError::Shape { path: path.clone(), detail })?;
    replace(&path, config)
}

/// The file itself if `path` is a link to one: a link is kept. Its directory is made if need be.
fn resolve(path: &Path) -> Result<PathBuf, KubeconfigError> {
    match fs::canonicalize(path) {
        Ok(path) => return Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(KubeconfigError::Io { path: path.to_owned(), source }),
    }
    let dir = directory(path);
    let made = DirBuilder::new().recursive(true).mode(0o750).create(dir);
    made.map_err(|source| KubeconfigError::Io { path: dir.to_owned(), source })?;
    Ok(path.to_owned())
}

fn read(path: &Path) -> Result<Map<String, Value>, KubeconfigError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(empty()),
        Err(source) => return Err(KubeconfigError::Io { path: path.to_owned(), source }),
    };
    if text.trim().is_empty() {
        return Ok(empty());
    }
    match serde_saphyr::from_str(&text) {
        Ok(Value::Object(config)) => Ok(config),
        Ok(Value::Null) => Ok(empty()),
        Ok(_) => Err(KubeconfigError::Shape { path: path.to_owned(), detail: "not a mapping" }),
        Err(error) => Err(KubeconfigError::Parse { path: path.to_owned(), source: Box::new(error) }),
    }
}

fn replace(path: &Path, config: Map<String, Value>) -> Result<(), KubeconfigError> {
    let text = serde_saphyr::to_string(&Value::Object(config))
        .map_err(|source| KubeconfigError::Serialize { path: path.to_owned(), source: source.into() })?;
    let dir = directory(path);
    let written = tempfile::NamedTempFile::new_in(dir).and_then(|mut file| {
        file.as_file().set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        File::open(dir)?.sync_all()
    });
    written.map_err(|source| KubeconfigError::Io { path: path.to_owned(), source })
}

fn empty() -> Map<String, Value> {
    let mut config = Map::new();
    config.insert("apiVersion".to_owned(), json!("v1"));
    config.insert("kind".to_owned(), json!("Config"));
    config
}

fn list_mut<'a>(config: &'a mut Map<String, Value>, name: &str) -> Result<&'a mut Vec<Value>, &'static str> {
    let list = config.entry(name).or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().ok_or("clusters, contexts and users are lists")
}

fn is_named(item: &Value, name: &str) -> bool {
    item.get("name").is_some_and(|found| found == name)
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

fn appended(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
