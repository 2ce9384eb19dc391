//! Where a decoder stands, kept on the stack and printed only when something is wrong.

use meta::field::go_quote;

/// One step of the way, linked to the ones before it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Root,
    /// A field of a struct named so in Go.
    Field(&'a str, &'a str),
    /// A key of a map, or a member of a custom resource.
    Key(&'a str),
    Index(usize),
}

impl<'a> Path<'a> {
    pub(crate) const ROOT: Path<'static> = Path { parent: None, step: Step::Root };

    /// `owner` is the OpenAPI name of the struct that has the field.
    pub(crate) fn field(&'a self, owner: &'a str, name: &'a str) -> Self {
        Self { parent: Some(self), step: Step::Field(owner, name) }
    }

    pub(crate) fn key(&'a self, key: &'a str) -> Self {
        Self { parent: Some(self), step: Step::Key(key) }
    }

    pub(crate) fn index(&'a self, index: usize) -> Self {
        Self { parent: Some(self), step: Step::Index(index) }
    }

    /// `spec.containers[0].name`
    pub(crate) fn print(&self) -> String {
        let mut out = self.parent.map(Path::print).unwrap_or_default();
        match self.step {
            Step::Root => {}
            Step::Field(_, name) | Step::Key(name) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(name);
            }
            Step::Index(index) => out.push_str(&format!("[{index}]")),
        }
        out
    }

    /// `unknown field "spec.foo"`
    pub(crate) fn problem(&self, what: &str) -> String {
        format!("{what} {}", go_quote(&self.print()))
    }

    /// Go's error for a value of the wrong type.
    pub(crate) fn type_error(&self, found: &str, wanted: &str) -> String {
        match self.owner() {
            Some(owner) => {
                let owner = owner.rsplit('.').next().unwrap_or_default();
                let fields = self.struct_fields();
                format!(
                    "json: cannot unmarshal {found} into Go struct field {owner}.{fields} of type {wanted}"
                )
            }
            None => format!("json: cannot unmarshal {found} into Go value of type {wanted}"),
        }
    }

    /// The innermost struct on the way.
    fn owner(&self) -> Option<&str> {
        match self.step {
            Step::Field(owner, _) => Some(owner),
            _ => self.parent?.owner(),
        }
    }

    fn struct_fields(&self) -> String {
        let mut out = self.parent.map(Path::struct_fields).unwrap_or_default();
        if let Step::Field(_, name) = self.step {
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(name);
        }
        out
    }
}
