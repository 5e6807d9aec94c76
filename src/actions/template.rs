//! Templates: text with `{node}`, `{0}` and `{attribute.name}` in it, each replaced by one value that is never split.

use super::ActionError;
use crate::proto::name::{AttributeName, NodeName};

/// A text with holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Node,
    /// A positional argument, counted from 0.
    Argument(usize),
    Attribute(AttributeName),
}

/// What fills the holes.
pub(super) struct Values<'a> {
    pub(super) action: &'a str,
    pub(super) node: &'a NodeName,
    pub(super) arguments: &'a [String],
    pub(super) attributes: &'a dyn Fn(&str) -> Option<String>,
}

impl Template {
    /// Reads a template. `{{` and `}}` stand for the braces themselves.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..];
            if let Some(after) = brace.strip_prefix("{{").or_else(|| brace.strip_prefix("}}")) {
                plain.push_str(&brace[..1]);
                rest = after;
                continue;
            }
            let hole = brace.strip_prefix('{').ok_or("has a } without its {: write }} for a brace")?;
            let (name, after) = hole.split_once('}').ok_or("has a { without its }: write {{ for a brace")?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(hole_named(name)?);
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self(parts))
    }

    /// Returns the text, when it has no holes.
    pub(super) fn as_text(&self) -> Option<&str> {
        match self.0.as_slice() {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// Returns the first secret attribute in it.
    pub(super) fn secret(&self) -> Option<&AttributeName> {
        self.0.iter().find_map(|part| match part {
            Part::Attribute(name) if name.as_str().starts_with("secret.") || name.as_str().starts_with("crypted.") => {
                Some(name)
            }
            _ => None,
        })
    }

    /// Returns how many positional arguments it needs.
    pub(super) fn arguments(&self) -> usize {
        let needs = |part: &Part| if let Part::Argument(number) = part { number + 1 } else { 0 };
        self.0.iter().map(needs).max().unwrap_or(0)
    }

    /// Fills the holes.
    pub(super) fn fill(&self, values: &Values<'_>) -> Result<String, ActionError> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Node => text.push_str(values.node.as_str()),
                Part::Argument(number) => {
                    let argument = values.arguments.get(*number).ok_or_else(|| ActionError::Arguments {
                        action: values.action.to_owned(),
                        given: values.arguments.len(),
                        wanted: number + 1,
                    })?;
                    text.push_str(argument);
                }
                Part::Attribute(name) => {
                    let value = (values.attributes)(name.as_str()).ok_or_else(|| ActionError::MissingAttribute {
                        action: values.action.to_owned(),
                        node: values.node.clone(),
                        attribute: name.clone(),
                    })?;
                    text.push_str(&value);
                }
            }
        }
        if text.contains('\0') {
            return Err(ActionError::Nul { action: values.action.to_owned() });
        }
        Ok(text)
    }
}

fn hole_named(name: &str) -> Result<Part, String> {
    if name == "node" {
        return Ok(Part::Node);
    }
    if let Ok(number) = name.parse::<u8>() {
        return Ok(Part::Argument(number.into()));
    }
    AttributeName::new(name).map(Part::Attribute).map_err(|_| {
        format!("has {{{name}}} in it, which is neither {{node}}, nor a number below 256, nor an attribute")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(template: &str, arguments: &[&str], value: &str) -> Result<String, ActionError> {
        let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let node = NodeName::new("n1").expect("a name");
        let attributes = |name: &str| (name == "net.bmc").then(|| value.to_owned());
        let values = Values { action: "power", node: &node, arguments: &arguments, attributes: &attributes };
        Template::parse(template).expect("a template").fill(&values)
    }

    #[test]
    fn holes_are_filled_and_braces_can_be_written() {
        assert_eq!(fill("{net.bmc}:{0}/{node}-{1}", &["a", "b"], "10.0.0.1"), Ok("10.0.0.1:a/n1-b".into()));
        assert_eq!(fill("{{node}} }}{{", &[], ""), Ok("{node} }{".into()));
        assert_eq!(fill("", &[], ""), Ok(String::new()));
    }

    #[test]
    fn what_a_value_holds_is_never_read_as_a_template() {
        for hostile in ["{node}", "{0}", "{{", "$(reboot)", "a b", "\"'`;|&\n\t", "-o", ""] {
            assert_eq!(fill("{net.bmc}", &["x"], hostile), Ok(hostile.into()));
            assert_eq!(fill("{0}", &[hostile], "x"), Ok(hostile.into()));
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = fill("{net.other}", &[], "").expect_err("not set").to_string();
        assert!(error.contains("net.other") && error.contains("n1"), "{error}");
        let error = fill("{1}", &["a"], "").expect_err("not given").to_string();
        assert!(error.contains("2 arguments") && error.contains("1 given"), "{error}");
    }

    #[test]
    fn a_nul_is_refused() {
        assert_eq!(fill("{net.bmc}", &[], "a\0b"), Err(ActionError::Nul { action: "power".into() }));
        assert_eq!(fill("{0}", &["\0"], ""), Err(ActionError::Nul { action: "power".into() }));
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for bad in ["{", "}", "{node", "a}b", "{}", "{ node }", "{256}", "{no..de}", "{a b}", "{{node}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }
}
