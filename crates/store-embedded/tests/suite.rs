//! The promises of every store, kept in memory and on disk.

use std::sync::Arc;

use store::suite::Fixture;
use store::{Store, store_suite};
use store_embedded::{EmbeddedStore, Options};
use tempfile::TempDir;

struct InMemory(Arc<EmbeddedStore>);

struct OnDisk {
    store: Arc<EmbeddedStore>,
    _dir: TempDir,
}

impl Fixture for InMemory {
    fn store(&self) -> Arc<dyn Store> {
        self.0.clone()
    }
}

impl Fixture for OnDisk {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }
}

async fn in_memory() -> InMemory {
    InMemory(Arc::new(EmbeddedStore::in_memory()))
}

async fn on_disk() -> OnDisk {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = EmbeddedStore::open(dir.path(), Options::default()).expect("the store opens");
    OnDisk { store: Arc::new(store), _dir: dir }
}

store_suite!(memory, in_memory);
store_suite!(disk, on_disk);
