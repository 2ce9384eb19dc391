//! Devices for claims (KEP-4381): what there is, what is taken, and which devices a claim would get on a node.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use cel::extractors::This;
use cel::{Context, Program, Value};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::resource::v1::{
    AllocationResult, Device, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceClass,
    DeviceRequest, DeviceRequestAllocationResult, DeviceSelector, DeviceTaint, DeviceToleration,
    ResourceClaim, ResourceSlice,
};
use serde::Serialize;

use crate::labels::NodeSelector;
use crate::node::NodeInfo;
use crate::pod::Uid;
use crate::resources;

/// Devices one claim may get.
const MAX_DEVICES: usize = 32;
/// Steps the search for a fitting set of devices may take on one node.
const MAX_STEPS: usize = 10_000;

/// A device's name: driver, pool and its own.
pub type DeviceId = (String, String, String);

#[derive(Debug, Default)]
pub struct Devices {
    claims: HashMap<String, Arc<ResourceClaim>>,
    slices: BTreeMap<String, Arc<ResourceSlice>>,
    classes: HashMap<String, Arc<DeviceClass>>,
    /// What pods on their way will have: by pod, its claims with what is new for them.
    held: HashMap<Uid, Vec<HeldClaim>>,
}

#[derive(Debug, Clone)]
pub struct HeldClaim {
    pub claim: Arc<ResourceClaim>,
    /// None for a claim that had its devices already.
    pub allocation: Option<AllocationResult>,
}

impl Devices {
    /// Takes in a claim. Once its devices are written down, they need not be held any more.
    pub fn set_claim(&mut self, key: String, claim: Option<Arc<ResourceClaim>>) {
        if let Some(claim) = &claim
            && has_devices(claim)
        {
            self.held
                .values_mut()
                .for_each(|list| list.retain(|own| own.claim.metadata.uid != claim.metadata.uid));
            self.held.retain(|_, list| !list.is_empty());
        }
        match claim {
            Some(claim) => self.claims.insert(key, claim),
            None => self.claims.remove(&key),
        };
    }

    pub fn set_slice(&mut self, name: String, slice: Option<Arc<ResourceSlice>>) {
        match slice {
            Some(slice) => self.slices.insert(name, slice),
            None => self.slices.remove(&name),
        };
    }

    pub fn set_class(&mut self, name: String, class: Option<Arc<DeviceClass>>) {
        match class {
            Some(class) => self.classes.insert(name, class),
            None => self.classes.remove(&name),
        };
    }

    pub fn claim(&self, namespace: &str, name: &str) -> Option<&Arc<ResourceClaim>> {
        self.claims.get(&format!("{namespace}/{name}"))
    }

    /// Whether another pod on its way is about to get devices for this claim.
    pub fn is_held(&self, claim: &ResourceClaim) -> bool {
        let all = self.held.values().flatten();
        all.into_iter().any(|own| own.allocation.is_some() && own.claim.metadata.uid == claim.metadata.uid)
    }

    pub fn hold(&mut self, uid: &Uid, claims: Vec<HeldClaim>) {
        self.held.insert(Arc::clone(uid), claims);
    }

    pub fn release(&mut self, uid: &str) {
        self.held.remove(uid);
    }

    /// The pod is bound: what is written down but not seen yet stays held until it is.
    pub fn settle(&mut self, uid: &str) {
        let Some(mut list) = self.held.remove(uid) else { return };
        list.retain(|own| {
            let known = self.claims.values().find(|claim| claim.metadata.uid == own.claim.metadata.uid);
            own.allocation.is_some() && known.is_some_and(|claim| !has_devices(claim))
        });
        if !list.is_empty() {
            self.held.insert(uid.into(), list);
        }
    }

    pub fn held_by(&self, uid: &str) -> &[HeldClaim] {
        self.held.get(uid).map_or(&[], Vec::as_slice)
    }

    /// The classes a claim names that do not exist, by request.
    pub fn missing_class<'a>(&self, claim: &'a ResourceClaim) -> Option<(&'a str, &'a str)> {
        requests(claim).iter().find_map(|request| {
            let classes = request.exactly.iter().map(|own| &own.device_class_name);
            let mut all =
                classes.chain(request.first_available.iter().flatten().map(|own| &own.device_class_name));
            let missing = all.find(|class| !self.classes.contains_key(*class))?;
            Some((request.name.as_str(), missing.as_str()))
        })
    }

    fn taken(&self) -> HashSet<DeviceId> {
        let stored = self.claims.values().filter_map(|claim| claim.status.as_ref()?.allocation.as_ref());
        let held = self.held.values().flatten().filter_map(|own| own.allocation.as_ref());
        stored
            .chain(held)
            .flat_map(|allocation| allocation.devices.iter().flat_map(|own| own.results.iter().flatten()))
            .filter(|result| result.admin_access != Some(true))
            .map(|result| (result.driver.clone(), result.pool.clone(), result.device.clone()))
            .collect()
    }

    /// An allocator for the claims of one pod.
    pub fn allocator(&self) -> Allocator<'_> {
        let mut newest: HashMap<(&str, &str), (i64, i64)> = HashMap::new();
        for slice in self.slices.values() {
            let pool = &slice.spec.pool;
            let seen = newest.entry((&slice.spec.driver, &pool.name)).or_insert((pool.generation, 0));
            if pool.generation > seen.0 {
                *seen = (pool.generation, 0);
            }
            seen.1 += i64::from(pool.generation == seen.0);
        }
        let slices = self
            .slices
            .values()
            .filter(|slice| {
                let pool = &slice.spec.pool;
                // A pool of which slices are missing says nothing reliable.
                newest.get(&(&*slice.spec.driver, &*pool.name))
                    == Some(&(pool.generation, pool.resource_slice_count))
            })
            .collect();
        Allocator { devices: self, slices, taken: self.taken(), verdicts: RefCell::default() }
    }
}

pub(crate) fn has_devices(claim: &ResourceClaim) -> bool {
    claim.status.as_ref().is_some_and(|status| status.allocation.is_some())
}

fn requests(claim: &ResourceClaim) -> &[DeviceRequest] {
    claim.spec.devices.as_ref().and_then(|own| own.requests.as_deref()).unwrap_or_default()
}

/// One request, or one of the alternatives of a request.
struct Wanted<'a> {
    /// `request` or `request/alternative`, as allocations name it.
    name: String,
    request: &'a str,
    class: &'a str,
    selectors: &'a [DeviceSelector],
    tolerations: &'a [DeviceToleration],
    all: bool,
    count: usize,
    admin: bool,
}

/// A device somewhere in the slices.
#[derive(Clone, Copy)]
struct Place<'a> {
    slice: &'a ResourceSlice,
    device: &'a Device,
}

pub struct Allocator<'a> {
    devices: &'a Devices,
    slices: Vec<&'a Arc<ResourceSlice>>,
    taken: HashSet<DeviceId>,
    /// Selector verdicts by device and expression: the same on every node.
    verdicts: RefCell<HashMap<(DeviceId, String), bool>>,
}

impl Place<'_> {
    fn id(&self) -> DeviceId {
        (self.slice.spec.driver.clone(), self.slice.spec.pool.name.clone(), self.device.name.clone())
    }
}

/// A search under way: what was chosen so far, for which of the wanted.
struct Search<'a, 'w> {
    claim: &'a ResourceClaim,
    wanted: &'w [Wanted<'a>],
    candidates: Vec<Vec<Place<'a>>>,
    chosen: Vec<(usize, Place<'a>)>,
    used: HashSet<DeviceId>,
    steps: usize,
}

impl<'a> Allocator<'a> {
    /// What the claims would get on the node; none when they cannot all be satisfied there.
    pub fn allocate(&self, claims: &[Arc<ResourceClaim>], node: &NodeInfo) -> Option<Vec<AllocationResult>>
    where
        Self: 'a,
    {
        let mut used = self.taken.clone();
        let mut results = Vec::with_capacity(claims.len());
        for claim in claims {
            let (allocation, now_used) = self.allocate_claim(claim, node, used)?;
            used = now_used;
            results.push(allocation);
        }
        Some(results)
    }

    fn allocate_claim(
        &self,
        claim: &ResourceClaim,
        node: &NodeInfo,
        used: HashSet<DeviceId>,
    ) -> Option<(AllocationResult, HashSet<DeviceId>)> {
        let reachable: Vec<Place<'_>> = self
            .slices
            .iter()
            .flat_map(|slice| slice.spec.devices.iter().flatten().map(move |device| Place { slice, device }))
            .filter(|place| reaches(place, node))
            .collect();
        // Alternatives of requests, in order of preference.
        for wanted in alternatives(requests(claim)) {
            let candidates: Vec<Vec<Place<'_>>> = wanted
                .iter()
                .map(|own| reachable.iter().copied().filter(|place| self.suits(own, place)).collect())
                .collect();
            let mut search = Search {
                claim,
                wanted: &wanted,
                candidates,
                chosen: Vec::new(),
                used: used.clone(),
                steps: 0,
            };
            if search.solve(0, 0, 0) && search.chosen.len() <= MAX_DEVICES {
                let allocation = self.result(claim, &wanted, &search.chosen, node);
                return Some((allocation, search.used));
            }
        }
        None
    }

    fn suits(&self, wanted: &Wanted<'_>, place: &Place<'_>) -> bool {
        // Devices that share counters with others are left alone: what they would leave is not tracked.
        let Some(class) = self.devices.classes.get(wanted.class) else { return false };
        let tolerated = |taint: &DeviceTaint| {
            !matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
                || wanted.tolerations.iter().any(|toleration| tolerates(toleration, taint))
        };
        place.device.consumes_counters.as_ref().is_none_or(Vec::is_empty)
            && place.device.taints.iter().flatten().all(tolerated)
            && class
                .spec
                .selectors
                .iter()
                .flatten()
                .chain(wanted.selectors)
                .filter_map(|selector| selector.cel.as_ref())
                .all(|cel| self.selects(&cel.expression, place))
    }

    fn selects(&self, expression: &str, place: &Place<'_>) -> bool {
        let key = (place.id(), expression.to_owned());
        if let Some(verdict) = self.verdicts.borrow().get(&key) {
            return *verdict;
        }
        let verdict = evaluate(expression, place).unwrap_or(false);
        self.verdicts.borrow_mut().insert(key, verdict);
        verdict
    }

    fn result(
        &self,
        claim: &ResourceClaim,
        wanted: &[Wanted<'_>],
        chosen: &[(usize, Place<'_>)],
        node: &NodeInfo,
    ) -> AllocationResult {
        let results = chosen
            .iter()
            .map(|(at, place)| DeviceRequestAllocationResult {
                request: wanted[*at].name.clone(),
                driver: place.slice.spec.driver.clone(),
                pool: place.slice.spec.pool.name.clone(),
                device: place.device.name.clone(),
                admin_access: wanted[*at].admin.then_some(true),
                tolerations: (!wanted[*at].tolerations.is_empty()).then(|| wanted[*at].tolerations.to_vec()),
                ..DeviceRequestAllocationResult::default()
            })
            .collect();
        let mut config = Vec::new();
        for own in wanted {
            let class = self.devices.classes.get(own.class);
            for entry in class.iter().flat_map(|class| class.spec.config.iter().flatten()) {
                config.push(DeviceAllocationConfiguration {
                    opaque: entry.opaque.clone(),
                    requests: Some(vec![own.name.clone()]),
                    source: "FromClass".to_owned(),
                });
            }
        }
        for entry in claim.spec.devices.iter().flat_map(|own| own.config.iter().flatten()) {
            config.push(DeviceAllocationConfiguration {
                opaque: entry.opaque.clone(),
                requests: entry.requests.clone(),
                source: "FromClaim".to_owned(),
            });
        }
        let config = (!config.is_empty()).then_some(config);
        AllocationResult {
            devices: Some(DeviceAllocationResult { config, results: Some(results) }),
            node_selector: selector_of(chosen, node),
            ..AllocationResult::default()
        }
    }
}

impl std::fmt::Debug for Allocator<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Allocator").field("slices", &self.slices.len()).finish_non_exhaustive()
    }
}

impl Search<'_, '_> {
    /// Fills the wanted from `at` on, the `nth` of its devices next, looking at candidates from `from` on.
    fn solve(&mut self, at: usize, nth: usize, from: usize) -> bool {
        let Some(wanted) = self.wanted.get(at) else { return true };
        let count = if wanted.all { self.candidates[at].len() } else { wanted.count };
        if nth == count {
            return count > 0 && self.solve(at + 1, 0, 0);
        }
        for next in from..self.candidates[at].len() {
            self.steps += 1;
            if self.steps > MAX_STEPS || self.chosen.len() >= MAX_DEVICES {
                return false;
            }
            let place = self.candidates[at][next];
            let id = place.id();
            let free = self.wanted[at].admin || !self.used.contains(&id);
            if free && self.constraints_hold(at, &place) {
                let newly = !self.wanted[at].admin && self.used.insert(id.clone());
                self.chosen.push((at, place));
                if self.solve(at, nth + 1, next + 1) {
                    return true;
                }
                self.chosen.pop();
                if newly {
                    self.used.remove(&id);
                }
            }
            if self.wanted[at].all {
                return false;
            }
        }
        false
    }

    fn constraints_hold(&self, at: usize, place: &Place<'_>) -> bool {
        let all = self.claim.spec.devices.iter().flat_map(|own| own.constraints.iter().flatten());
        all.into_iter().all(|constraint| {
            let requests = constraint.requests.as_deref().unwrap_or_default();
            let concerns = |at: usize| {
                let wanted = &self.wanted[at];
                requests.is_empty() || requests.iter().any(|own| *own == wanted.name || own == wanted.request)
            };
            if !concerns(at) {
                return true;
            }
            let others = || self.chosen.iter().filter(|(other, _)| concerns(*other)).map(|(_, place)| place);
            if let Some(name) = &constraint.match_attribute {
                let own = attribute(place, name);
                return own.is_some() && others().all(|other| attribute(other, name) == own);
            }
            if let Some(name) = &constraint.distinct_attribute {
                let own = attribute(place, name);
                return own.is_some() && others().all(|other| attribute(other, name) != own);
            }
            false
        })
    }
}

/// Every way to choose one alternative for each request, the preferred first.
fn alternatives(requests: &[DeviceRequest]) -> Vec<Vec<Wanted<'_>>> {
    const MAX_WAYS: usize = 256;
    let mut ways: Vec<Vec<(usize, usize)>> = vec![Vec::new()];
    for (at, request) in requests.iter().enumerate() {
        let count = request.first_available.as_ref().map_or(1, Vec::len);
        ways = ways
            .into_iter()
            .flat_map(|way| {
                (0..count).map(move |choice| {
                    let mut way = way.clone();
                    way.push((at, choice));
                    way
                })
            })
            .take(MAX_WAYS)
            .collect();
    }
    ways.into_iter()
        .map(|way| way.into_iter().filter_map(|(at, choice)| wanted(&requests[at], choice)).collect())
        .collect()
}

fn wanted(request: &DeviceRequest, choice: usize) -> Option<Wanted<'_>> {
    let count = |count: Option<i64>| usize::try_from(count.unwrap_or(1)).unwrap_or(usize::MAX);
    let is_all = |mode: &Option<String>| mode.as_deref() == Some("All");
    if let Some(own) = &request.exactly {
        return Some(Wanted {
            name: request.name.clone(),
            request: &request.name,
            class: &own.device_class_name,
            selectors: own.selectors.as_deref().unwrap_or_default(),
            tolerations: own.tolerations.as_deref().unwrap_or_default(),
            all: is_all(&own.allocation_mode),
            count: count(own.count),
            admin: own.admin_access == Some(true),
        });
    }
    let own = request.first_available.as_ref()?.get(choice)?;
    Some(Wanted {
        name: format!("{}/{}", request.name, own.name),
        request: &request.name,
        class: &own.device_class_name,
        selectors: own.selectors.as_deref().unwrap_or_default(),
        tolerations: own.tolerations.as_deref().unwrap_or_default(),
        all: is_all(&own.allocation_mode),
        count: count(own.count),
        admin: false,
    })
}

fn reaches(place: &Place<'_>, node: &NodeInfo) -> bool {
    let (spec, device) = (&place.slice.spec, place.device);
    let (all, name, selector) = if spec.per_device_node_selection == Some(true) {
        (device.all_nodes, &device.node_name, &device.node_selector)
    } else {
        (spec.all_nodes, &spec.node_name, &spec.node_selector)
    };
    all == Some(true)
        || name.as_deref() == Some(&*node.name)
        || selector
            .as_ref()
            .is_some_and(|own| NodeSelector::from_api(own).matches(&node.name, &node.facts.labels))
}

fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let matches =
        |own: &Option<String>, other: &str| own.as_deref().is_none_or(|own| own.is_empty() || own == other);
    matches(&toleration.effect, &taint.effect)
        && matches(&toleration.key, &taint.key)
        && (toleration.operator.as_deref() == Some("Exists")
            || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default())
}

/// Where the chosen devices can be used: on this node when any of them is tied to it.
fn selector_of(chosen: &[(usize, Place<'_>)], node: &NodeInfo) -> Option<core::NodeSelector> {
    let everywhere = |place: &Place<'_>| {
        let per_device = place.slice.spec.per_device_node_selection == Some(true);
        (if per_device { place.device.all_nodes } else { place.slice.spec.all_nodes }) == Some(true)
    };
    if chosen.iter().all(|(_, place)| everywhere(place)) {
        return None;
    }
    let field = core::NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.name.to_string()]),
    };
    let term = core::NodeSelectorTerm { match_fields: Some(vec![field]), match_expressions: None };
    Some(core::NodeSelector { node_selector_terms: vec![term] })
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
enum Attribute {
    Bool(bool),
    Int(i64),
    Text(String),
}

/// Names without a domain are in the driver's own.
fn qualified<'a>(name: &'a str, driver: &'a str) -> (&'a str, &'a str) {
    name.split_once('/').unwrap_or((driver, name))
}

fn attributes<'a>(place: &Place<'a>) -> impl Iterator<Item = ((&'a str, &'a str), Attribute)> {
    let driver = place.slice.spec.driver.as_str();
    place.device.attributes.iter().flatten().filter_map(move |(name, own)| {
        let value = own
            .bool
            .map(Attribute::Bool)
            .or(own.int.map(Attribute::Int))
            .or_else(|| own.string.clone().or_else(|| own.version.clone()).map(Attribute::Text))?;
        Some((qualified(name, driver), value))
    })
}

fn attribute(place: &Place<'_>, name: &str) -> Option<Attribute> {
    let wanted = qualified(name, &place.slice.spec.driver);
    attributes(place).find(|(own, _)| *own == wanted).map(|(_, value)| value)
}

/// The variable `device` of selector expressions; quantities appear as thousandths.
#[derive(Serialize)]
struct DeviceVariable<'a> {
    driver: &'a str,
    attributes: BTreeMap<&'a str, BTreeMap<&'a str, Attribute>>,
    capacity: BTreeMap<&'a str, BTreeMap<&'a str, i64>>,
    #[serde(rename = "allowMultipleAllocations")]
    allow_multiple_allocations: bool,
}

/// The value of a selector expression; none when it fails, which selects nothing.
fn evaluate(expression: &str, place: &Place<'_>) -> Option<bool> {
    let program = Program::compile(expression).ok()?;
    let driver = place.slice.spec.driver.as_str();
    let mut variable = DeviceVariable {
        driver,
        attributes: BTreeMap::from([(driver, BTreeMap::new())]),
        capacity: BTreeMap::from([(driver, BTreeMap::new())]),
        allow_multiple_allocations: place.device.allow_multiple_allocations == Some(true),
    };
    for ((domain, name), value) in attributes(place) {
        variable.attributes.entry(domain).or_default().insert(name, value);
    }
    for (name, capacity) in place.device.capacity.iter().flatten() {
        let (domain, name) = qualified(name, driver);
        let amount = resources::milli_value(&capacity.value.0);
        variable.capacity.entry(domain).or_default().insert(name, amount);
    }
    let mut context = Context::default();
    context.add_variable("device", variable).ok()?;
    context.add_function("quantity", |text: Arc<String>| resources::milli_value(&text)).ok()?;
    context.add_function("compareTo", |This(own): This<i64>, other: i64| own.cmp(&other) as i64).ok()?;
    context.add_function("isGreaterThan", |This(own): This<i64>, other: i64| own > other).ok()?;
    context.add_function("isLessThan", |This(own): This<i64>, other: i64| own < other).ok()?;
    match program.execute(&context).ok()? {
        Value::Bool(verdict) => Some(verdict),
        _ => None,
    }
}

/// The names of a claim's consumers that are pods, by uid.
pub fn consumers(claim: &ResourceClaim) -> BTreeSet<&str> {
    let list = claim.status.as_ref().and_then(|status| status.reserved_for.as_ref());
    list.into_iter().flatten().map(|own| own.uid.as_str()).collect()
}
