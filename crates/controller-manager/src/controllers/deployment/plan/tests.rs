use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::*;

const START: &str = "2026-01-01T00:00:00Z";

/// A deployment, and a cluster in which replica sets do at once what they are told.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    now: Timestamp,
    log: Vec<String>,
}

impl World {
    fn new(spec: Value) -> Self {
        let mut deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
                     "progressDeadlineSeconds": 600, "revisionHistoryLimit": 10,
                     "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}}},
        }))
        .unwrap();
        let mut merged = serde_json::to_value(&deployment.spec).unwrap();
        for (key, value) in spec.as_object().unwrap() {
            merged[key] = value.clone();
        }
        deployment.spec = serde_json::from_value(merged).unwrap();
        Self { deployment, sets: Vec::new(), now: START.parse().unwrap(), log: Vec::new() }
    }

    fn set_image(&mut self, image: &str) {
        let spec = self.deployment.spec.as_mut().unwrap();
        spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.to_owned());
        self.deployment.metadata.generation = self.deployment.metadata.generation.map(|n| n + 1);
    }

    fn scale(&mut self, replicas: i32) {
        self.deployment.spec.as_mut().unwrap().replicas = Some(replicas);
        self.deployment.metadata.generation = self.deployment.metadata.generation.map(|n| n + 1);
    }

    fn sizes(&self) -> Vec<(i32, i32)> {
        self.sets.iter().map(|set| (replicas(set), replica_sets::available(set))).collect()
    }

    /// One look; true if it changed something beside the status.
    fn look(&mut self) -> bool {
        let sets: Vec<Arc<ReplicaSet>> = self.sets.iter().cloned().map(Arc::new).collect();
        let plan = plan(&self.deployment, &sets, |set| actual(set) > 0, self.now);
        let changed = !plan.steps.is_empty();
        for step in plan.steps {
            self.carry_out(step);
        }
        if let Some(status) = plan.status {
            self.deployment.status = Some(status);
        }
        changed
    }

    fn carry_out(&mut self, step: Step) {
        match step {
            Step::Create(mut set) => {
                set.metadata.creation_timestamp = Some(crate::pods::whole_seconds(self.now));
                set.metadata.uid = Some(format!("rs{}", self.sets.len()));
                self.now += SignedDuration::from_secs(1);
                self.log.push(format!("create {}", replicas(&set)));
                self.sets.push(*set);
            }
            Step::Update { set, note } => {
                let at = self.sets.iter().position(|old| old.metadata.name == set.metadata.name).unwrap();
                if note.is_some() {
                    self.log.push(format!("scale {at} {}>{}", replicas(&self.sets[at]), replicas(&set)));
                }
                self.sets[at] = *set;
            }
            Step::Delete(set) => {
                self.log.push("delete".to_owned());
                self.sets.retain(|old| old.metadata.name != set.metadata.name);
            }
            Step::Annotate(annotations) => self.deployment.metadata.annotations = Some(annotations),
        }
    }

    /// Replica sets make and remove their pods; of new pods at most `ready` become available.
    fn pods_follow(&mut self, ready: i32) -> bool {
        let mut left = ready;
        let mut changed = false;
        for set in &mut self.sets {
            let size = replicas(set);
            let generation = set.metadata.generation;
            let status = set.status.get_or_insert_default();
            let before = status.clone();
            status.observed_generation = generation;
            status.replicas = size;
            let available = status.available_replicas.unwrap_or(0).min(size);
            let gain = (size - available).min(left);
            left -= gain;
            status.available_replicas = Some(available + gain);
            status.ready_replicas = status.available_replicas;
            changed |= *status != before;
        }
        changed
    }

    fn settle(&mut self, check: impl Fn(&Self)) {
        for _ in 0..1_000 {
            let looked = self.look();
            check(self);
            if !self.pods_follow(1) && !looked && !self.look() {
                return;
            }
            check(self);
        }
        panic!("the rollout does not end: {:?}", self.log);
    }

    fn condition(&self, type_: &str) -> String {
        let conditions = self.deployment.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let mut conditions = conditions.filter(|condition| condition.type_ == type_);
        conditions
            .next()
            .map_or("none".to_owned(), |c| format!("{} {}", c.status, c.reason.as_deref().unwrap_or("")))
    }
}

fn rolling(replicas: i32, surge: Value, unavailable: Value) -> Value {
    json!({"replicas": replicas, "strategy": {"type": "RollingUpdate",
           "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}})
}

#[test]
fn a_rollout_stays_within_its_limits_and_ends() {
    let table = [
        (1, json!("25%"), json!("25%"), 2, 1),
        (4, json!(1), json!(0), 5, 4),
        (4, json!(0), json!(1), 4, 3),
        (10, json!("25%"), json!("25%"), 13, 8),
        (10, json!("100%"), json!("100%"), 20, 0),
        (3, json!(0), json!("10%"), 3, 2),
        (0, json!(1), json!(0), 1, 0),
    ];
    for (replicas, surge, unavailable, most, fewest) in table {
        let mut world = World::new(rolling(replicas, surge, unavailable));
        world.settle(|_| {});
        assert_eq!(world.condition("Progressing"), "True NewReplicaSetAvailable");
        world.set_image("v2");
        world.settle(|world| {
            let total: i32 = world.sizes().iter().map(|size| size.0).sum();
            let available: i32 = world.sizes().iter().map(|size| size.1.min(size.0)).sum();
            assert!(total <= most, "{replicas}: {total} pods, {:?}", world.log);
            assert!(available >= fewest, "{replicas}: {available} available, {:?}", world.log);
        });
        assert_eq!(world.sizes(), [(0, 0), (replicas, replicas)], "{:?}", world.log);
        let status = world.deployment.status.clone().unwrap();
        assert_eq!(status.updated_replicas, Some(replicas));
        assert_eq!(annotation(&world.deployment.metadata, REVISION), Some("2"));
    }
}

#[test]
fn going_back_reuses_the_old_replica_set_with_a_new_revision() {
    let mut world = World::new(json!({}));
    world.settle(|_| {});
    world.set_image("v2");
    world.settle(|_| {});
    world.set_image("v1");
    world.settle(|_| {});
    assert_eq!(world.sizes(), [(3, 3), (0, 0)]);
    assert_eq!(annotation(&world.sets[0].metadata, REVISION), Some("3"));
    assert_eq!(annotation(&world.sets[0].metadata, "deployment.kubernetes.io/revision-history"), Some("1"));
    assert_eq!(annotation(&world.deployment.metadata, REVISION), Some("3"));
}

#[test]
fn recreate_waits_for_the_old_pods_to_go() {
    let mut world = World::new(json!({"strategy": {"type": "Recreate"}}));
    world.settle(|_| {});
    world.set_image("v2");
    world.log.clear();
    world.look();
    assert_eq!(world.log, ["scale 0 3>0"]);
    world.look();
    assert_eq!(world.log, ["scale 0 3>0"], "old pods still run");
    world.pods_follow(0);
    world.look();
    assert_eq!(world.log, ["scale 0 3>0", "create 3"]);
}

#[test]
fn scaling_in_mid_rollout_is_proportional() {
    let mut world = World::new(rolling(10, json!(3), json!(2)));
    world.settle(|_| {});
    world.set_image("v2");
    for _ in 0..3 {
        world.look();
    }
    assert_eq!(world.sizes().iter().map(|size| size.0).collect::<Vec<_>>(), [8, 5]);
    world.scale(15);
    world.log.clear();
    world.look();
    // 13 become 18: the larger old set gets 3, the new one 2.
    assert_eq!(world.sizes().iter().map(|size| size.0).collect::<Vec<_>>(), [11, 7], "{:?}", world.log);
    assert_eq!(number(&world.sets[0], DESIRED), Some(15));
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll_out() {
    let mut world = World::new(json!({}));
    world.settle(|_| {});
    world.deployment.spec.as_mut().unwrap().paused = Some(true);
    world.set_image("v2");
    world.scale(5);
    world.settle(|_| {});
    assert_eq!(world.sizes(), [(5, 5)]);
    assert_eq!(world.condition("Progressing"), "Unknown DeploymentPaused");
    world.deployment.spec.as_mut().unwrap().paused = None;
    world.look();
    assert_eq!(world.sets.len(), 2);
}

#[test]
fn a_rollout_that_makes_no_progress_exceeds_its_deadline() {
    let mut world = World::new(json!({"progressDeadlineSeconds": 10}));
    world.look();
    world.pods_follow(0);
    world.look();
    assert_eq!(world.condition("Available"), "False MinimumReplicasUnavailable");
    world.now += SignedDuration::from_secs(12);
    world.look();
    assert_eq!(world.condition("Progressing"), "False ProgressDeadlineExceeded");
    world.settle(|_| {});
    assert_eq!(world.condition("Progressing"), "True NewReplicaSetAvailable");
    assert_eq!(world.condition("Available"), "True MinimumReplicasAvailable");
}

#[test]
fn history_beyond_the_limit_is_deleted_oldest_first() {
    let mut world = World::new(json!({"revisionHistoryLimit": 1}));
    for image in ["v1", "v2", "v3"] {
        world.set_image(image);
        world.settle(|_| {});
    }
    assert_eq!(world.sets.len(), 2);
    assert_eq!(revision(&world.sets[0].metadata), 2);
}

#[test]
fn a_defaulted_template_is_the_same_template() {
    let mut world = World::new(json!({}));
    world.settle(|_| {});
    let spec = world.deployment.spec.as_mut().unwrap();
    spec.template.metadata.as_mut().unwrap().annotations = Some(BTreeMap::new());
    spec.template.spec.as_mut().unwrap().security_context = Some(Default::default());
    assert!(!world.look());
    assert_eq!(world.sets.len(), 1);
}
