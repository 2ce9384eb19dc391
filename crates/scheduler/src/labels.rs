//! Labels and the selectors over them, parsed once.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Labels as a short sorted list: a fifth of the memory of a map.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Labels {
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(own, _)| (**own).cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| &**value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Option<&BTreeMap<String, String>>> for Labels {
    fn from(map: Option<&BTreeMap<String, String>>) -> Self {
        Self(map.into_iter().flatten().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    Gt(i64),
    Lt(i64),
    /// A requirement that cannot be read matches nothing.
    Never,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
}

impl Requirement {
    pub fn new(key: &str, operator: &str, values: Option<&Vec<String>>) -> Self {
        let values = values.cloned().unwrap_or_default();
        let number = || values.first().and_then(|value| value.parse().ok());
        let operator = match operator {
            "In" => Operator::In(values),
            "NotIn" => Operator::NotIn(values),
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            "Gt" => number().map_or(Operator::Never, Operator::Gt),
            "Lt" => number().map_or(Operator::Never, Operator::Lt),
            _ => Operator::Never,
        };
        Self { key: key.to_owned(), operator }
    }

    pub fn equals(key: &str, value: &str) -> Self {
        Self { key: key.to_owned(), operator: Operator::In(vec![value.to_owned()]) }
    }

    pub fn matches(&self, value: Option<&str>) -> bool {
        match (&self.operator, value) {
            (Operator::In(values), Some(value)) => values.iter().any(|own| own == value),
            (Operator::NotIn(values), Some(value)) => values.iter().all(|own| own != value),
            (Operator::NotIn(_) | Operator::DoesNotExist, None) | (Operator::Exists, Some(_)) => true,
            (Operator::Gt(bound), Some(value)) => value.parse::<i64>().is_ok_and(|value| value > *bound),
            (Operator::Lt(bound), Some(value)) => value.parse::<i64>().is_ok_and(|value| value < *bound),
            _ => false,
        }
    }
}

/// A label selector. The empty one matches everything; an absent one in the API matches nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Selector {
    requirements: Option<Vec<Requirement>>,
}

impl Selector {
    pub fn nothing() -> Self {
        Self { requirements: None }
    }

    pub fn everything() -> Self {
        Self { requirements: Some(Vec::new()) }
    }

    pub fn from_api(selector: Option<&LabelSelector>) -> Self {
        let Some(selector) = selector else { return Self::nothing() };
        let mut own = Self::from_map(selector.match_labels.as_ref());
        for expression in selector.match_expressions.iter().flatten() {
            own.push(Requirement::new(&expression.key, &expression.operator, expression.values.as_ref()));
        }
        own
    }

    /// A selector of equalities, as Services and ReplicationControllers have.
    pub fn from_map(map: Option<&BTreeMap<String, String>>) -> Self {
        let requirements = map.into_iter().flatten().map(|(k, v)| Requirement::equals(k, v)).collect();
        Self { requirements: Some(requirements) }
    }

    pub fn push(&mut self, requirement: Requirement) {
        self.requirements.get_or_insert_default().push(requirement);
    }

    /// Adds what another selector asks for.
    pub fn and(&mut self, other: &Self) {
        match (&mut self.requirements, &other.requirements) {
            (Some(own), Some(more)) => {
                for requirement in more {
                    if !own.contains(requirement) {
                        own.push(requirement.clone());
                    }
                }
            }
            (own, None) => *own = None,
            (None, Some(_)) => {}
        }
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.as_ref().is_some_and(|all| all.iter().all(|r| r.matches(labels.get(&r.key))))
    }

    pub fn is_nothing(&self) -> bool {
        self.requirements.is_none()
    }

    /// Whether the selector selects without asking for anything.
    pub fn is_everything(&self) -> bool {
        self.requirements.as_ref().is_some_and(Vec::is_empty)
    }

    pub fn mentions(&self, key: &str) -> bool {
        self.requirements.iter().flatten().any(|requirement| requirement.key == key)
    }

    /// A label every match must carry, to find the selector by.
    pub fn anchor(&self) -> Option<(&str, &str)> {
        self.requirements.iter().flatten().find_map(|requirement| match &requirement.operator {
            Operator::In(values) if values.len() == 1 => Some((requirement.key.as_str(), values[0].as_str())),
            _ => None,
        })
    }
}

/// One term of a node selector: all of its requirements, on labels and on the node's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeSelectorTerm {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

impl NodeSelectorTerm {
    pub fn from_api(term: &core::NodeSelectorTerm) -> Self {
        let parse = |list: &Option<Vec<core::NodeSelectorRequirement>>| {
            list.iter().flatten().map(|r| Requirement::new(&r.key, &r.operator, r.values.as_ref())).collect()
        };
        Self { labels: parse(&term.match_expressions), fields: parse(&term.match_fields) }
    }

    /// A term without requirements matches no node.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        if self.labels.is_empty() && self.fields.is_empty() {
            return false;
        }
        self.labels.iter().all(|r| r.matches(labels.get(&r.key)))
            && self.fields.iter().all(|r| r.key == "metadata.name" && r.matches(Some(name)))
    }

    /// Whether the term asks for nothing: it scores nothing and matches nothing.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The node names the term is limited to, if it names any: those that all of its fields allow.
    pub fn node_names(&self) -> Option<Vec<&str>> {
        let mut allowed: Option<Vec<&str>> = None;
        for field in self.fields.iter().filter(|field| field.key == "metadata.name") {
            let Operator::In(names) = &field.operator else { continue };
            allowed = Some(match allowed {
                None => names.iter().map(String::as_str).collect(),
                Some(own) => own.into_iter().filter(|name| names.iter().any(|other| other == name)).collect(),
            });
        }
        allowed
    }
}

/// A node selector: any of its terms.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeSelector(pub Vec<NodeSelectorTerm>);

impl NodeSelector {
    pub fn from_api(selector: &core::NodeSelector) -> Self {
        Self(selector.node_selector_terms.iter().map(NodeSelectorTerm::from_api).collect())
    }

    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        self.0.iter().any(|term| term.matches(name, labels))
    }
}

#[cfg(test)]
pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    let map: BTreeMap<String, String> =
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Labels::from(Some(&map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_treat_missing_labels_as_upstream_does() {
        let own = labels(&[("zone", "a"), ("cores", "8")]);
        let values = |list: &[&str]| Some(list.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>());
        for (key, operator, list, expected) in [
            ("zone", "In", values(&["a", "b"]), true),
            ("zone", "NotIn", values(&["a"]), false),
            ("rack", "NotIn", values(&["a"]), true),
            ("rack", "In", values(&["a"]), false),
            ("zone", "Exists", None, true),
            ("rack", "DoesNotExist", None, true),
            ("cores", "Gt", values(&["4"]), true),
            ("cores", "Lt", values(&["8"]), false),
            ("rack", "Gt", values(&["4"]), false),
            ("zone", "Sounds", None, false),
        ] {
            let requirement = Requirement::new(key, operator, list.as_ref());
            assert_eq!(requirement.matches(own.get(key)), expected, "{key} {operator} {list:?}");
        }
    }

    #[test]
    fn an_absent_selector_matches_nothing_and_an_empty_one_everything() {
        let own = labels(&[("a", "b")]);
        assert!(!Selector::from_api(None).matches(&own));
        assert!(Selector::from_api(Some(&LabelSelector::default())).matches(&own));
    }
}
