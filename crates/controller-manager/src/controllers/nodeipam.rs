//! Gives every node a range of pod addresses out of the cluster's.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use meta::names::NamespacedName;
use reconcile::events::EventRecorder;
use reconcile::{Action, Informer, ReconcileError, Reconciler};
use serde_json::json;
use tracing::error;

use crate::context::Context;
use crate::enqueue;
use crate::pods::name;

struct NodeIpam {
    client: kube::Client,
    nodes: Informer<Node>,
    ranges: Vec<Range>,
    taken: Vec<Cidr>,
    events: EventRecorder,
}

/// An address range: the first address as a number, and how many bits are fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cidr {
    is_v6: bool,
    base: u128,
    bits: u8,
}

/// A range of the cluster, and the size of each node's part.
#[derive(Debug, Clone, Copy)]
struct Range {
    whole: Cidr,
    node_bits: u8,
}

pub(super) async fn run(context: Context) {
    let config = &context.config;
    let parse =
        |texts: &[String]| -> Option<Vec<Cidr>> { texts.iter().map(|text| Cidr::parse(text)).collect() };
    let (v4, v6) = config.node_cidr_mask_sizes;
    let (Some(whole), Some(taken)) = (parse(&config.cluster_cidrs), parse(&config.service_cidrs)) else {
        error!(cluster_cidrs = ?config.cluster_cidrs, "not address ranges");
        context.shutdown.cancelled().await;
        return;
    };
    if whole.is_empty() {
        context.shutdown.cancelled().await;
        return;
    }
    let range = |whole: Cidr| Range { whole, node_bits: if whole.is_v6 { v6 } else { v4 } };
    let queue = context.queue("node_ipam");
    let controller = Arc::new(NodeIpam {
        client: context.client.clone(),
        nodes: context.informer(),
        ranges: whole.into_iter().map(range).collect(),
        taken,
        events: context.recorder("cidrAllocator"),
    });
    let _nodes = enqueue::itself(&controller.nodes, &queue);
    if context.synced(&[&controller.nodes]).await {
        // One worker: no two nodes may get one range.
        context.run("node_ipam", controller, queue, 1).await;
    }
}

impl Cidr {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.trim().split_once('/')?;
        let (is_v6, number) = match address.parse().ok()? {
            IpAddr::V4(address) => (false, u128::from(address.to_bits())),
            IpAddr::V6(address) => (true, address.to_bits()),
        };
        let bits: u8 = bits.parse().ok().filter(|bits| *bits <= width(is_v6))?;
        let cidr = Self { is_v6, base: number, bits };
        Some(Self { base: number - number % cidr.size(), ..cidr })
    }

    /// How many addresses it holds, at most 2^127: no cluster is larger.
    fn size(self) -> u128 {
        1 << (width(self.is_v6) - self.bits).min(127)
    }

    fn overlaps(self, other: Self) -> bool {
        let end = |cidr: Self| cidr.base.saturating_add(cidr.size() - 1);
        self.is_v6 == other.is_v6 && self.base <= end(other) && other.base <= end(self)
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_v6 {
            return write!(f, "{}/{}", Ipv6Addr::from_bits(self.base), self.bits);
        }
        let bits = u32::try_from(self.base).map_err(|_| std::fmt::Error)?;
        write!(f, "{}/{}", Ipv4Addr::from_bits(bits), self.bits)
    }
}

fn width(is_v6: bool) -> u8 {
    if is_v6 { 128 } else { 32 }
}

/// The first part of the range that is free.
fn allocate(range: Range, used: &BTreeSet<Cidr>, taken: &[Cidr]) -> Option<Cidr> {
    let mut part = Cidr { bits: range.node_bits.max(range.whole.bits), ..range.whole };
    loop {
        if !used.contains(&part) && !taken.iter().any(|other| other.overlaps(part)) {
            return Some(part);
        }
        part.base = part.base.checked_add(part.size())?;
        if !part.overlaps(range.whole) {
            return None;
        }
    }
}

#[async_trait]
impl Reconciler for NodeIpam {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let has = |node: &Node| {
            node.spec.as_ref().and_then(|spec| spec.pod_cidr.as_ref()).is_some_and(|c| !c.is_empty())
        };
        let Some(node) = self.nodes.get(key).filter(|node| !has(node)) else { return Ok(Action::Done) };
        let api: Api<Node> = Api::all(self.client.clone());
        // What was given a moment ago may not be in the cache yet.
        let live = api.list(&kube::api::ListParams::default()).await?.items;
        if live.iter().any(|other| other.metadata.uid == node.metadata.uid && has(other)) {
            return Ok(Action::Done);
        }
        let given = live.iter().filter_map(|node| node.spec.as_ref()).flat_map(|spec| {
            spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr).filter_map(|text| Cidr::parse(text))
        });
        let used: BTreeSet<Cidr> = given.collect();
        let parts: Option<Vec<String>> = self
            .ranges
            .iter()
            .map(|range| allocate(*range, &used, &self.taken).map(|part| part.to_string()))
            .collect();
        let Some(parts) = parts else {
            let note = format!("Node {} status is now: CIDRNotAvailable", name(&node.metadata));
            self.events.normal(&*node, "CIDRNotAvailable", "Allocate", note);
            return Err(ReconcileError::failed("no address range is left"));
        };
        let patch = json!({
            "metadata": {"uid": node.metadata.uid},
            "spec": {"podCIDR": parts.first(), "podCIDRs": parts},
        });
        match api.patch(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(_) => Ok(Action::Done),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Action::Done),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_free_part_is_given() {
        let cidr = |text: &str| Cidr::parse(text).unwrap();
        let give = |whole: &str, bits: u8, used: &[&str], taken: &[&str]| {
            let used = used.iter().map(|text| cidr(text)).collect();
            let taken: Vec<Cidr> = taken.iter().map(|text| cidr(text)).collect();
            allocate(Range { whole: cidr(whole), node_bits: bits }, &used, &taken)
                .map(|part| part.to_string())
        };
        assert_eq!(give("10.244.0.0/16", 24, &[], &[]).unwrap(), "10.244.0.0/24");
        assert_eq!(
            give("10.244.0.0/16", 24, &["10.244.0.0/24", "10.244.2.0/24"], &[]).unwrap(),
            "10.244.1.0/24"
        );
        assert_eq!(give("10.96.0.0/11", 24, &[], &["10.96.0.0/12"]).unwrap(), "10.112.0.0/24");
        assert_eq!(give("10.0.0.0/23", 24, &["10.0.0.0/24", "10.0.1.0/24"], &[]), None);
        assert_eq!(give("fd00::/48", 64, &["fd00::/64"], &[]).unwrap(), "fd00:0:0:1::/64");
        assert!(Cidr::parse("10.0.0.0/33").is_none() && Cidr::parse("10.0.0.0").is_none());
    }
}
