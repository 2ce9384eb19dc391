//! The decision: which node a pod goes to. Pure: a snapshot, a pod and a seeded generator in, a node or
//! the reasons against every node out.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use rand::{Rng, RngExt};

use crate::framework::{Checks, Filter, FitError, Framework, MAX_NODE_SCORE, Rejection, Verdict};
use crate::node::{NodeIdx, NodeInfo};
use crate::pod::{PodInfo, Uid};
use crate::snapshot::Snapshot;

/// Below so many nodes, all of them are looked at.
const MIN_FEASIBLE_NODES: usize = 100;
const MIN_PERCENTAGE: usize = 5;

/// Pods that preempted others and wait for the room, by the node they wait for.
#[derive(Debug, Default)]
pub struct Nominations {
    by_pod: HashMap<Uid, (Arc<PodInfo>, String)>,
    by_node: HashMap<String, Vec<Uid>>,
}

impl Nominations {
    pub fn set(&mut self, pod: &Arc<PodInfo>, node: &str) {
        self.remove(&pod.uid);
        self.by_node.entry(node.to_owned()).or_default().push(Arc::clone(&pod.uid));
        self.by_pod.insert(Arc::clone(&pod.uid), (Arc::clone(pod), node.to_owned()));
    }

    pub fn remove(&mut self, uid: &str) {
        let Some((_, node)) = self.by_pod.remove(uid) else { return };
        if let Some(list) = self.by_node.get_mut(&node) {
            list.retain(|own| **own != *uid);
            if list.is_empty() {
                self.by_node.remove(&node);
            }
        }
    }

    pub fn node_of(&self, uid: &str) -> Option<&str> {
        self.by_pod.get(uid).map(|(_, node)| node.as_str())
    }

    pub fn on_node(&self, node: &str) -> impl Iterator<Item = &Arc<PodInfo>> {
        let list = self.by_node.get(node).into_iter().flatten();
        list.filter_map(|uid| self.by_pod.get(uid).map(|(pod, _)| pod))
    }
}

pub(crate) type Filters<'s> = Vec<Box<dyn Filter<'s> + 's>>;

/// The filters that apply to a pod, and the only nodes it may go to, if those are known beforehand.
pub(crate) struct Prepared<'s> {
    pub(crate) filters: Filters<'s>,
    nodes: Option<BTreeSet<NodeIdx>>,
    limited_by: BTreeSet<&'static str>,
}

/// What a search needs beside the pod.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    pub snapshot: &'a Snapshot,
    pub framework: &'a Framework,
    pub nominations: &'a Nominations,
}

/// The node chosen for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    pub node: NodeIdx,
    pub feasible: usize,
}

/// Makes sure the indexes read for this pod are kept.
pub fn prepare(snapshot: &mut Snapshot, framework: &Framework, pod: &PodInfo) {
    snapshot.refresh_order();
    for plugin in &framework.all {
        plugin.prepare(snapshot, pod);
    }
}

/// Finds a node for the pod. `cursor` is where the search starts; it moves on, so that all nodes get a turn.
pub fn schedule(
    scope: Scope<'_>,
    pod: &PodInfo,
    cursor: &mut usize,
    rng: &mut impl Rng,
) -> Result<Choice, Box<FitError>> {
    let feasible = find_feasible(scope, pod, cursor)?;
    let scores = total_scores(scope, pod, &feasible);
    let node = pick(&feasible, &scores, rng);
    Ok(Choice { node, feasible: feasible.len() })
}

/// Nodes the pod can go to: at least one, and no more than the profile wants scored.
pub fn find_feasible(
    scope: Scope<'_>,
    pod: &PodInfo,
    cursor: &mut usize,
) -> Result<Vec<NodeIdx>, Box<FitError>> {
    let prepared = pre_filter(scope, pod)?;
    if let Some(name) = scope.nominations.node_of(&pod.uid).or(pod.nominated_node_name.as_deref())
        && let Some(node) = scope.snapshot.node_named(name)
        && prepared.nodes.as_ref().is_none_or(|nodes| nodes.contains(&node.idx))
        && check_with_nominated(&prepared.filters, scope, node, pod).is_ok()
    {
        return Ok(vec![node.idx]);
    }
    let listed: Vec<NodeIdx>;
    let nodes: &[NodeIdx] = match &prepared.nodes {
        Some(nodes) => {
            listed = nodes.iter().copied().collect();
            &listed
        }
        None => scope.snapshot.node_order(),
    };
    let mut error = FitError { all_nodes: scope.snapshot.node_order().len(), ..FitError::default() };
    if !prepared.limited_by.is_empty() {
        error.absent = Some(limited(&prepared.limited_by));
        error.plugins.extend(&prepared.limited_by);
    }
    let wanted = feasible_wanted(nodes.len(), scope.framework.percentage_of_nodes_to_score);
    let mut feasible = Vec::with_capacity(wanted.min(nodes.len()));
    let start = if nodes.is_empty() { 0 } else { *cursor % nodes.len() };
    let mut looked_at = 0;
    for idx in nodes[start..].iter().chain(&nodes[..start]) {
        looked_at += 1;
        let node = scope.snapshot.node(*idx);
        match check_with_nominated(&prepared.filters, scope, node, pod) {
            Ok(()) => {
                feasible.push(*idx);
                if feasible.len() >= wanted {
                    break;
                }
            }
            Err(rejection) => error.reject(*idx, rejection),
        }
    }
    if !nodes.is_empty() {
        *cursor = (start + looked_at) % nodes.len();
    }
    if feasible.is_empty() { Err(Box::new(error)) } else { Ok(feasible) }
}

fn limited(plugins: &BTreeSet<&'static str>) -> Rejection {
    let names: Vec<&str> = plugins.iter().copied().collect();
    let plugin = names.first().copied().unwrap_or_default();
    Rejection::unresolvable(plugin, format!("node(s) didn't satisfy plugin(s) [{}]", names.join(" ")))
}

/// How many feasible nodes are enough.
fn feasible_wanted(nodes: usize, percentage: u32) -> usize {
    if nodes < MIN_FEASIBLE_NODES || percentage >= 100 {
        return nodes;
    }
    let percentage = match percentage {
        0 => 50_usize.saturating_sub(nodes / 125).max(MIN_PERCENTAGE),
        set => set as usize,
    };
    (nodes * percentage / 100).max(MIN_FEASIBLE_NODES)
}

/// Lets every plugin look at the pod.
pub(crate) fn pre_filter<'s>(scope: Scope<'s>, pod: &'s PodInfo) -> Result<Prepared<'s>, Box<FitError>> {
    let mut prepared = Prepared { filters: Vec::new(), nodes: None, limited_by: BTreeSet::new() };
    let all_nodes = scope.snapshot.node_order().len();
    let refuse = |message: String, plugins: BTreeSet<&'static str>, rejection: Rejection| {
        Box::new(FitError {
            all_nodes,
            plugins,
            pre_filter_message: Some(message),
            absent: Some(rejection),
            ..FitError::default()
        })
    };
    for plugin in &scope.framework.filters {
        let Checks { filter, nodes } = match plugin.pre_filter(scope.snapshot, pod) {
            Ok(checks) => checks,
            Err(rejection) => {
                return Err(refuse(rejection.message(), BTreeSet::from([rejection.plugin]), rejection));
            }
        };
        prepared.filters.extend(filter);
        if let Some(nodes) = nodes {
            prepared.limited_by.insert(plugin.name());
            let both = match &prepared.nodes {
                None => nodes,
                Some(own) => own.intersection(&nodes).copied().collect(),
            };
            if both.is_empty() && prepared.limited_by.len() > 1 {
                let names: Vec<&str> = prepared.limited_by.iter().copied().collect();
                let message =
                    format!("node(s) didn't satisfy plugin(s) [{}] simultaneously", names.join(" "));
                let rejection = Rejection::unresolvable(plugin.name(), message.clone());
                return Err(refuse(message, prepared.limited_by, rejection));
            }
            prepared.nodes = Some(both);
        }
    }
    Ok(prepared)
}

pub(crate) fn check(filters: &Filters<'_>, node: &NodeInfo) -> Verdict {
    filters.iter().try_for_each(|filter| filter.filter(node))
}

/// A node must do both with and without the pods that wait for room on it: with them, for they will come;
/// without, for they may not.
pub(crate) fn check_with_nominated(
    filters: &Filters<'_>,
    scope: Scope<'_>,
    node: &NodeInfo,
    pod: &PodInfo,
) -> Verdict {
    let mut nominated = scope
        .nominations
        .on_node(&node.name)
        .filter(|other| other.uid != pod.uid && other.spec.priority >= pod.spec.priority)
        .peekable();
    if nominated.peek().is_some() {
        let mut with: Filters<'_> = filters.iter().map(|filter| filter.clone_box()).collect();
        let mut crowded = node.clone();
        for other in nominated {
            crowded.add_pod(other);
            with.iter_mut().for_each(|filter| filter.add_pod(other, node));
        }
        check(&with, &crowded)?;
    }
    check(filters, node)
}

/// The weighted sum of all scores for each feasible node.
pub fn total_scores(scope: Scope<'_>, pod: &PodInfo, feasible: &[NodeIdx]) -> Vec<i64> {
    let mut totals = vec![0_i64; feasible.len()];
    if feasible.len() < 2 {
        return totals;
    }
    let mut scores = Vec::with_capacity(feasible.len());
    for (plugin, weight) in &scope.framework.scores {
        let Some(score) = plugin.pre_score(scope.snapshot, pod, feasible) else { continue };
        scores.clear();
        scores.extend(feasible.iter().map(|idx| score.score(scope.snapshot.node(*idx))));
        score.normalize(&mut scores);
        for (total, own) in totals.iter_mut().zip(&scores) {
            *total = total.saturating_add(own.clamp(&0, &MAX_NODE_SCORE).saturating_mul(*weight));
        }
    }
    totals
}

/// One of the nodes with the greatest score, each with the same chance.
pub fn pick(feasible: &[NodeIdx], scores: &[i64], rng: &mut impl Rng) -> NodeIdx {
    let mut best = feasible.first().copied().unwrap_or_default();
    let mut best_score = i64::MIN;
    let mut equals = 0_u32;
    for (node, score) in feasible.iter().zip(scores) {
        if *score > best_score {
            (best, best_score, equals) = (*node, *score, 1);
        } else if *score == best_score {
            equals += 1;
            if rng.random_range(0..equals) == 0 {
                best = *node;
            }
        }
    }
    best
}
