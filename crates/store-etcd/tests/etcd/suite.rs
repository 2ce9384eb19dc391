//! The promises of every store, kept by a real etcd.

use std::sync::Arc;

use store::suite::Fixture;
use store::{Store, store_suite};
use store_etcd::{EtcdOptions, EtcdStore};

use crate::cluster::Cluster;

struct Etcd {
    store: Arc<EtcdStore>,
    _cluster: Cluster,
}

impl Fixture for Etcd {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }
}

async fn whole() -> Etcd {
    let cluster = Cluster::start(1, false).await;
    Etcd { store: Arc::new(cluster.store().await), _cluster: cluster }
}

async fn prefixed() -> Etcd {
    let cluster = Cluster::start(1, false).await;
    let options = EtcdOptions { prefix: "/some/where/".to_owned(), ..cluster.options() };
    let store = EtcdStore::connect(options).await.expect("the options are right");
    Etcd { store: Arc::new(store), _cluster: cluster }
}

store_suite!(etcd, whole);
store_suite!(etcd_with_a_prefix, prefixed);
