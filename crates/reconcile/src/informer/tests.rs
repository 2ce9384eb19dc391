use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, OwnerReference};

use super::*;

fn config_map(namespace: &str, name: &str, uid: &str, version: &str) -> ConfigMap {
    let mut object = ConfigMap::default();
    object.metadata.namespace = Some(namespace.to_owned());
    object.metadata.name = Some(name.to_owned());
    object.metadata.uid = Some(uid.to_owned());
    object.metadata.resource_version = Some(version.to_owned());
    object.metadata.managed_fields = Some(vec![ManagedFieldsEntry::default()]);
    object
}

fn record(informer: &Informer<ConfigMap>) -> (Subscription, Arc<Mutex<Vec<String>>>) {
    let log = Arc::new(Mutex::new(Vec::new()));
    let subscription = informer.subscribe({
        let log = Arc::clone(&log);
        move |event| {
            let describe = |object: &ConfigMap| {
                let meta = &object.metadata;
                format!("{}@{}", meta.name.as_deref().unwrap(), meta.resource_version.as_deref().unwrap())
            };
            let line = match event {
                InformerEvent::Added(new) => format!("+{}", describe(new)),
                InformerEvent::Updated { old, new } => format!("{}>{}", describe(old), describe(new)),
                InformerEvent::Deleted(old) => format!("-{}", describe(old)),
            };
            log.lock().unwrap().push(line);
        }
    });
    (subscription, log)
}

#[test]
fn handlers_see_what_is_there_and_then_every_change_once() {
    let informer = Informer::fixed([config_map("a", "one", "1", "5")]);
    let (subscription, log) = record(&informer);
    informer.apply(config_map("a", "one", "1", "5"));
    informer.apply(config_map("a", "one", "1", "6"));
    informer.apply(config_map("a", "one", "2", "8"));
    informer.remove(&key_of(&config_map("a", "one", "2", "9")), Some(config_map("a", "one", "2", "9")));
    drop(subscription);
    informer.apply(config_map("a", "two", "3", "10"));
    assert_eq!(*log.lock().unwrap(), ["+one@5", "one@5>one@6", "-one@6", "+one@8", "-one@9"]);
    assert_eq!(informer.resource_version(), 10);
}

#[test]
fn indexes_follow_the_objects() {
    let owned = |version: &str, owner: &str| {
        let mut object = config_map("a", "one", "1", version);
        object.metadata.owner_references = Some(vec![OwnerReference {
            uid: owner.to_owned(),
            controller: Some(true),
            ..OwnerReference::default()
        }]);
        object
    };
    let informer = Informer::fixed([owned("1", "x"), config_map("b", "one", "2", "2")]);
    assert_eq!(informer.controlled_by("x").len(), 1);
    informer.apply(owned("3", "y"));
    assert_eq!((informer.controlled_by("x").len(), informer.controlled_by("y").len()), (0, 1));
    assert_eq!(informer.in_namespace("b").len(), 1);
    informer.remove(&key_of(&*informer.in_namespace("b")[0]), None);
    assert!(informer.in_namespace("b").is_empty());
    assert!(informer.list()[0].metadata.managed_fields.is_none());
}
