//! CSV: a header line `node,groups,ATTRIBUTE...` and a line a node; fields are quoted as in RFC 4180.

use super::{InventoryError, InventoryProblem, Plan};
use crate::proto::attributes::{EVERYTHING, GROUPS, Owner};
use crate::proto::name::GroupName;

/// Reads an inventory in CSV.
///
/// The column `node` must be there. Groups in the column `groups` are separated by commas, semicolons or spaces, the
/// first one wins; they are defined where need be. An empty field sets nothing.
///
/// # Errors
/// [`InventoryError`] with the line, and the column where it is one's.
pub fn parse_csv(text: &str) -> Result<Plan, InventoryError> {
    let mut rows = rows(text.strip_prefix('\u{feff}').unwrap_or(text))?.into_iter();
    let expected = || InventoryProblem::Expected("a header line node,groups,ATTRIBUTE...");
    let (_, header) = rows.next().ok_or_else(|| InventoryError::at("line 1", expected()))?;
    let header: Vec<String> = header.iter().map(|field| field.trim().to_owned()).collect();
    let node_column =
        header.iter().position(|name| name == "node").ok_or_else(|| InventoryError::at("line 1", expected()))?;
    let mut plan = Plan::default();
    for (line, fields) in rows {
        if fields.len() != header.len() {
            let problem = InventoryProblem::Format(format!("{} fields instead of {}", fields.len(), header.len()));
            return Err(InventoryError::at(format!("line {line}"), problem));
        }
        let node = plan.add_node(fields[node_column].trim(), &format!("line {line}, node"))?;
        for (column, (name, field)) in header.iter().zip(&fields).enumerate() {
            let (place, field) = (format!("line {line}, {name}"), field.trim());
            if column == node_column || field.is_empty() {
                continue;
            }
            if name != GROUPS {
                plan.set(&Owner::Node(node.clone()), name, field.to_owned(), &place)?;
                continue;
            }
            for word in field.split([',', ';', ' ']).filter(|word| !word.is_empty() && *word != EVERYTHING) {
                let group = GroupName::new(word).map_err(|error| InventoryError::at(&place, error))?;
                let list = plan.nodes.entry(node.clone()).or_default();
                if !list.contains(&group) {
                    list.push(group.clone());
                }
                plan.groups.insert(group);
            }
        }
    }
    Ok(plan)
}

/// Splits the text into rows of fields, each with the number of its first line; rows without text are left away.
fn rows(text: &str) -> Result<Vec<(usize, Vec<String>)>, InventoryError> {
    let mut rows = Vec::new();
    let (mut line, mut begun) = (1, 1);
    let (mut fields, mut field) = (Vec::new(), String::new());
    let (mut is_quoted, mut was_quoted) = (false, false);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        line += usize::from(character == '\n');
        match character {
            '"' if is_quoted && characters.peek() == Some(&'"') => {
                field.push('"');
                characters.next();
            }
            '"' if is_quoted => is_quoted = false,
            _ if is_quoted => field.push(character),
            '"' if field.is_empty() && !was_quoted => (is_quoted, was_quoted) = (true, true),
            '"' => return Err(stray(line)),
            ',' => {
                fields.push(std::mem::take(&mut field));
                was_quoted = false;
            }
            '\r' if characters.peek() == Some(&'\n') => {}
            '\n' => {
                fields.push(std::mem::take(&mut field));
                rows.push((begun, std::mem::take(&mut fields)));
                (begun, was_quoted) = (line, false);
            }
            _ if was_quoted => return Err(stray(line)),
            _ => field.push(character),
        }
    }
    if is_quoted {
        return Err(InventoryError::at(
            format!("line {begun}"),
            InventoryProblem::Format("a quoted field does not end".to_owned()),
        ));
    }
    fields.push(field);
    rows.push((begun, fields));
    rows.retain(|(_, fields)| fields.iter().any(|field| !field.trim().is_empty()));
    Ok(rows)
}

fn stray(line: usize) -> InventoryError {
    let problem = InventoryProblem::Format("a quote within a field must be doubled, and the field quoted".to_owned());
    InventoryError::at(format!("line {line}"), problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        parse_csv(text).expect_err("a refusal").to_string()
    }

    #[test]
    fn a_line_is_a_node() {
        let plan = parse_csv(
            "node,groups,location.rack,info.note,owner\r\n\
             n1,\"rack1,compute\",1,\"a \"\"b\"\",\nc\",ann\r\n\
             \r\n\
             n2,rack1;rack1 everything,,,\n",
        )
        .expect("an inventory");

        let nodes: Vec<_> = plan.nodes.iter().map(|(node, groups)| format!("{node} {groups:?}")).collect();
        assert_eq!(nodes, ["n1 [rack1, compute]", "n2 [rack1]"]);
        assert_eq!(plan.groups.len(), 2);
        let values: Vec<_> =
            plan.assignments.values().flatten().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(values, ["custom.owner=ann", "info.note=a \"b\",\nc", "location.rack=1"]);
    }

    #[test]
    fn an_error_names_its_line() {
        for (text, message) in [
            ("", "line 1: a header line node,groups,ATTRIBUTE... expected"),
            ("name\nn1\n", "line 1: a header line node,groups,ATTRIBUTE... expected"),
            ("node,groups\nn1,a\nn2\n", "line 3: 1 fields instead of 2"),
            ("node,x\nn1,\"a\nb\n", "line 2: a quoted field does not end"),
            ("node,x\nn1,a\"b\n", "line 2: a quote within a field must be doubled, and the field quoted"),
            ("node,x\nn1,\"a\"b\n", "line 2: a quote within a field must be doubled, and the field quoted"),
            ("node,type\n\"n1\",\nn2,toaster", "line 3, type: type: \"toaster\" must be one of server, switch"),
        ] {
            assert_eq!(refusal(text), message);
        }
        assert!(refusal("node\na b\n").starts_with("line 2, node: \"a b\" is not a valid node name"));
        assert!(refusal("node,groups\nn1,-x\n").starts_with("line 2, groups: \"-x\" is not a valid group name"));
    }
}
