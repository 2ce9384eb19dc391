//! The extension points, under upstream's names, as plugins see them.
//!
//! A plugin looks at the pod once (`pre_filter`, `pre_score`) and hands back an object that judges nodes and
//! holds what it worked out; handing back none is upstream's Skip. Nothing here does I/O: what must be
//! written before binding is described as a [`crate::storage::PreBind`] and carried out by the binder.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::events::ClusterEvent;
use crate::node::{NodeIdx, NodeInfo};
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;
use crate::storage::PreBind;

pub const MAX_NODE_SCORE: i64 = 100;

pub type Reason = Cow<'static, str>;

/// Whether taking pods off the node could help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    Unschedulable,
    UnschedulableAndUnresolvable,
}

/// Why a node, or the whole cluster, will not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    pub code: Code,
    pub plugin: &'static str,
    pub reasons: Vec<Reason>,
}

impl Rejection {
    pub fn unschedulable(plugin: &'static str, reason: impl Into<Reason>) -> Self {
        Self { code: Code::Unschedulable, plugin, reasons: vec![reason.into()] }
    }

    pub fn unresolvable(plugin: &'static str, reason: impl Into<Reason>) -> Self {
        Self { code: Code::UnschedulableAndUnresolvable, plugin, reasons: vec![reason.into()] }
    }

    pub fn message(&self) -> String {
        self.reasons.join(", ")
    }
}

pub type Verdict = Result<(), Rejection>;

/// Judges nodes for one pod. Pods may be added and removed in thought, on the node about to be judged.
pub trait Filter<'s> {
    fn filter(&self, node: &NodeInfo) -> Verdict;
    fn add_pod(&mut self, _pod: &PodInfo, _node: &NodeInfo) {}
    fn remove_pod(&mut self, _pod: &PodInfo, _node: &NodeInfo) {}
    fn clone_box(&self) -> Box<dyn Filter<'s> + 's>;
}

/// What `pre_filter` found out.
#[derive(Default)]
pub struct Checks<'s> {
    pub filter: Option<Box<dyn Filter<'s> + 's>>,
    /// When present, no other node can do.
    pub nodes: Option<BTreeSet<NodeIdx>>,
}

impl<'s> Checks<'s> {
    /// Nothing to check: every node will do.
    pub fn skip() -> Result<Self, Rejection> {
        Ok(Self::default())
    }

    pub fn with(filter: impl Filter<'s> + 's) -> Result<Self, Rejection> {
        Ok(Self { filter: Some(Box::new(filter)), nodes: None })
    }
}

impl fmt::Debug for Checks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checks").field("filter", &self.filter.is_some()).field("nodes", &self.nodes).finish()
    }
}

/// Scores nodes for one pod; after `normalize` every score is between 0 and [`MAX_NODE_SCORE`].
pub trait Score {
    fn score(&self, node: &NodeInfo) -> i64;
    fn normalize(&self, _scores: &mut [i64]) {}
}

/// The extension points a configuration can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    PreEnqueue,
    QueueSort,
    PreFilter,
    Filter,
    PostFilter,
    PreScore,
    Score,
    Reserve,
    Permit,
    PreBind,
    Bind,
    PostBind,
}

pub trait Plugin: fmt::Debug + Send + Sync {
    fn name(&self) -> &'static str;

    /// The extension points the plugin takes part in.
    fn points(&self) -> &'static [Point];

    /// Whether the pod may enter the queue; the message says what it waits for.
    fn pre_enqueue(&self, _pod: &PodInfo) -> Result<(), String> {
        Ok(())
    }

    /// Makes sure the indexes the plugin will read for this pod are kept.
    fn prepare(&self, _snapshot: &mut Snapshot, _pod: &PodInfo) {}

    fn pre_filter<'s>(&'s self, _snapshot: &'s Snapshot, _pod: &'s PodInfo) -> Result<Checks<'s>, Rejection> {
        Checks::skip()
    }

    fn pre_score<'s>(
        &'s self,
        _snapshot: &'s Snapshot,
        _pod: &'s PodInfo,
        _feasible: &[NodeIdx],
    ) -> Option<Box<dyn Score + 's>> {
        None
    }

    /// Holds what the pod will use on the node, before it is bound.
    fn reserve(&self, _snapshot: &mut Snapshot, _pod: &PodInfo, _node: NodeIdx) -> Verdict {
        Ok(())
    }

    fn unreserve(&self, _snapshot: &mut Snapshot, _pod: &PodInfo) {}

    /// What must be written, and come true, before the pod is bound.
    fn pre_bind(&self, _snapshot: &Snapshot, _pod: &PodInfo, _node: NodeIdx) -> Vec<PreBind> {
        Vec::new()
    }

    /// Whether the event may make a pod schedulable that this plugin turned away.
    fn queueing_hint(&self, _snapshot: &Snapshot, _pod: &PodInfo, _event: &ClusterEvent<'_>) -> bool {
        false
    }
}

/// The plugins of one profile, by extension point.
#[derive(Debug, Clone)]
pub struct Framework {
    pub profile: String,
    pub pre_enqueue: Vec<Arc<dyn Plugin>>,
    pub filters: Vec<Arc<dyn Plugin>>,
    pub scores: Vec<(Arc<dyn Plugin>, i64)>,
    pub reserves: Vec<Arc<dyn Plugin>>,
    /// Every enabled plugin once, for event hints and preparation.
    pub all: Vec<Arc<dyn Plugin>>,
    pub preemption: Option<crate::preemption::Preemption>,
    pub percentage_of_nodes_to_score: u32,
}

/// Why no node was found, node by node.
#[derive(Debug, Clone, Default)]
pub struct FitError {
    pub all_nodes: usize,
    pub nodes: Vec<(NodeIdx, Rejection)>,
    /// Said of all nodes that are not in `nodes`.
    pub absent: Option<Rejection>,
    /// Set when the pod was turned away before any node was looked at.
    pub pre_filter_message: Option<String>,
    pub post_filter_message: Option<String>,
    pub plugins: BTreeSet<&'static str>,
}

impl FitError {
    pub fn reject(&mut self, node: NodeIdx, rejection: Rejection) {
        if !rejection.plugin.is_empty() {
            self.plugins.insert(rejection.plugin);
        }
        self.nodes.push((node, rejection));
    }
}

impl fmt::Display for FitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0/{} nodes are available", self.all_nodes)?;
        if let Some(message) = &self.pre_filter_message {
            write!(f, ": {message}.")?;
        } else {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for reason in self.nodes.iter().flat_map(|(_, rejection)| &rejection.reasons) {
                *counts.entry(reason).or_default() += 1;
            }
            let absent = self.all_nodes.saturating_sub(self.nodes.len());
            if absent > 0 {
                for reason in self.absent.iter().flat_map(|rejection| &rejection.reasons) {
                    *counts.entry(reason).or_default() += absent;
                }
            }
            let mut reasons: Vec<String> =
                counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            reasons.sort_unstable();
            if !reasons.is_empty() {
                write!(f, ": {}.", reasons.join(", "))?;
            }
        }
        match &self.post_filter_message {
            Some(message) if !message.is_empty() => write!(f, " {message}"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for FitError {}

/// Scales scores so that the greatest becomes [`MAX_NODE_SCORE`]; reversed, the greatest becomes 0.
pub fn normalize_by_max(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        *score = match (max, reverse) {
            (0, true) => MAX_NODE_SCORE,
            (0, false) => *score,
            (max, false) => score.saturating_mul(MAX_NODE_SCORE) / max,
            (max, true) => MAX_NODE_SCORE - score.saturating_mul(MAX_NODE_SCORE) / max,
        };
    }
}
