//! The arrows between the crates of the tree.

/// Every crate and its layer. A crate depends on lower layers only.
const LAYERS: &[(&str, u8)] = &[
    ("meta", 0),
    ("schema", 0),
    ("kinds", 0),
    ("store", 1),
    ("store-embedded", 1),
    ("store-etcd", 1),
    ("client", 1),
    ("cri", 1),
    ("reconcile", 2),
    ("apiserver", 3),
    ("scheduler", 3),
    ("controller-manager", 3),
    ("kubelet", 3),
    ("container-runtime", 3),
    ("network", 3),
    ("proxy", 3),
    ("dns", 3),
    ("kubectl", 3),
    ("kubeadm", 3),
    ("etcd", 3),
    ("dashboard", 3),
    ("hollow", 3),
    ("coracle", 4),
    ("testkit", 4),
    ("xtask", 4),
];

/// The arrows that stay within a layer.
const WITHIN: &[(&str, &str)] = &[
    ("schema", "meta"),
    ("kinds", "meta"),
    ("kinds", "schema"),
    ("store-embedded", "store"),
    ("store-etcd", "store"),
];

/// Who may hold cluster state without asking the API server, beside the backends themselves.
const STORE_USERS: &[&str] = &["apiserver", "etcd", "coracle", "testkit"];

/// `from` depends on `to`, `dev` for its tests only.
#[derive(Debug)]
pub(super) struct Arrow<'a> {
    pub(super) from: &'a str,
    pub(super) to: &'a str,
    pub(super) dev: bool,
}

pub(super) fn complaints(arrows: &[Arrow<'_>]) -> Vec<String> {
    arrows.iter().filter_map(complaint).collect()
}

fn complaint(arrow: &Arrow<'_>) -> Option<String> {
    let Arrow { from, to, dev } = *arrow;
    let (Some(above), Some(below)) = (layer(from), layer(to)) else {
        let unknown = if layer(from).is_none() { from } else { to };
        return Some(format!("{unknown}: in no layer; give it one in xtask/src/tidy/layers.rs"));
    };
    if to == "testkit" {
        return (!dev).then(|| format!("{from} -> testkit: for tests only, as a dev-dependency"));
    }
    if is_store(to) && !is_store(from) && !STORE_USERS.contains(&from) {
        return Some(format!("{from} -> {to}: cluster state is reached through the API server"));
    }
    if below < above || WITHIN.contains(&(from, to)) {
        return None;
    }
    Some(format!("{from} -> {to}: layer {above} may only depend on lower layers, {to} is in layer {below}"))
}

fn layer(name: &str) -> Option<u8> {
    LAYERS.iter().find(|(known, _)| *known == name).map(|(_, layer)| *layer)
}

fn is_store(name: &str) -> bool {
    name == "store" || name.starts_with("store-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arrow: &str, wanted: Option<&str>) {
        let (arrow, dev) = match arrow.strip_suffix(" (dev)") {
            Some(arrow) => (arrow, true),
            None => (arrow, false),
        };
        let (from, to) = arrow.split_once(" -> ").expect("an arrow");
        let found = complaints(&[Arrow { from, to, dev }]);
        match wanted {
            None => assert_eq!(found, Vec::<String>::new(), "{arrow}"),
            Some(wanted) => {
                assert!(found.iter().any(|found| found.contains(wanted)), "{arrow}: {found:?}, not {wanted}");
            }
        }
    }

    #[test]
    fn arrows_point_down() {
        check("kinds -> schema", None);
        check("scheduler -> reconcile", None);
        check("coracle -> kubelet", None);
        check("schema -> kinds", Some("layer 0 may only"));
        check("reconcile -> kubelet", Some("kubelet is in layer 3"));
    }

    #[test]
    fn components_do_not_see_each_other() {
        check("kubelet -> container-runtime", Some("layer 3 may only"));
        check("kubelet -> container-runtime (dev)", Some("layer 3 may only"));
    }

    #[test]
    fn the_store_has_few_users() {
        check("apiserver -> store", None);
        check("etcd -> store-embedded", None);
        check("store-etcd -> store", None);
        check("scheduler -> store", Some("through the API server"));
        check("kubectl -> store-etcd (dev)", Some("through the API server"));
    }

    #[test]
    fn the_testkit_is_for_tests() {
        check("apiserver -> testkit (dev)", None);
        check("coracle -> testkit", Some("dev-dependency"));
    }

    #[test]
    fn a_new_crate_needs_a_layer() {
        check("sail -> meta", Some("sail: in no layer"));
        check("apiserver -> keel", Some("keel: in no layer"));
    }
}
