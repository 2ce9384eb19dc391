//! The one member this cluster has, as it introduces itself.

use std::sync::Arc;

use etcd_client::proto::{PbMember, PbResponseHeader};
use store::Revision;
use store_embedded::EmbeddedStore;

use crate::convert::signed;

/// There are no elections.
pub(crate) const TERM: u64 = 1;

/// The store and its name in the cluster; every service is one of these.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<EmbeddedStore>,
    name: String,
    id: u64,
    cluster_id: u64,
    client_urls: Vec<String>,
    peer_urls: Vec<String>,
}

impl Member {
    /// Ids follow from the name and the URL of its peers, so that they are the same after a restart.
    pub(crate) fn new(
        store: Arc<EmbeddedStore>,
        name: String,
        client_urls: Vec<String>,
        peer_urls: Vec<String>,
    ) -> Self {
        let id = hash(std::iter::once(&name).chain(&peer_urls));
        let cluster_id = hash(&peer_urls);
        Self { inner: Arc::new(Inner { store, name, id, cluster_id, client_urls, peer_urls }) }
    }

    pub(crate) fn store(&self) -> &EmbeddedStore {
        &self.inner.store
    }

    pub(crate) fn id(&self) -> u64 {
        self.inner.id
    }

    pub(crate) fn header(&self, revision: Revision) -> Option<PbResponseHeader> {
        Some(PbResponseHeader {
            cluster_id: self.inner.cluster_id,
            member_id: self.inner.id,
            revision: signed(revision),
            raft_term: TERM,
        })
    }

    pub(crate) fn header_now(&self) -> Option<PbResponseHeader> {
        self.header(self.store().newest())
    }

    pub(crate) fn describe(&self) -> PbMember {
        PbMember {
            id: self.inner.id,
            name: self.inner.name.clone(),
            peer_ur_ls: self.inner.peer_urls.clone(),
            client_ur_ls: self.inner.client_urls.clone(),
            is_learner: false,
        }
    }
}

/// FNV-1a over texts.
fn hash<'a>(texts: impl IntoIterator<Item = &'a String>) -> u64 {
    let bytes = texts.into_iter().flat_map(|text| text.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
