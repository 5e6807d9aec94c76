//! Noderanges: which names an expression such as `rack1,-n[3-5]` stands for, read strictly from left to right.
//!
//! The same language names nodes and members; what exists is seen through [`Universe`]. Terms are joined by `,` (union)
//! and `,-` (all but). A term is a name, with choices in brackets (`n[1-20]`, `r[1,3]u[01-10]`, `n[1-9:2]`,
//! `n[1-9,-5]`), and each name that comes out is looked up as a node first, then as a group, then as a range
//! (`n1-n20`, `n1:n20`, `n1..n20`). Numbers are padded as the left end is. What Confluent's language has beyond this is
//! refused by name, never misread.

mod fold;
mod parse;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::name::MemberName;

pub use fold::fold;
pub use parse::parse;

/// Names in the largest result.
pub const NAMES_MAX: usize = 100_000;
/// Names that one expression may look at on the way to its result; brackets are counted before they are expanded.
const WORK_MAX: usize = 10 * NAMES_MAX;
/// Bytes in the longest expression.
pub const EXPRESSION_BYTES_MAX: usize = 1 << 20;
/// Parts in one term; more than a name has bytes.
const PIECES_MAX: usize = 64;

/// An expression that was read but not yet expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    text: String,
    terms: Vec<Term>,
}

/// One term, and what it does to the names so far.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    operator: Operator,
    /// Where the term begins, in bytes.
    at: usize,
    pieces: Vec<Piece>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Union,
    Exclude,
}

/// A part of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Choice(Vec<String>),
}

/// What names exist, and which of them stand for several.
pub trait Universe {
    /// Returns whether this very name exists.
    fn contains(&self, name: &str) -> bool;
    /// Returns the names that a group stands for, in natural order; nothing when there is no such group.
    fn group<'a>(&'a self, name: &str) -> Option<Box<dyn Iterator<Item = &'a str> + 'a>>;
    /// Returns what a name can be, for messages: `node or group`, `member`.
    fn kind(&self) -> &'static str;
}

/// Members know no groups.
impl Universe for BTreeSet<MemberName> {
    fn contains(&self, name: &str) -> bool {
        MemberName::new(name).is_ok_and(|name| BTreeSet::contains(self, &name))
    }

    fn group<'a>(&'a self, _: &str) -> Option<Box<dyn Iterator<Item = &'a str> + 'a>> {
        None
    }

    fn kind(&self) -> &'static str {
        "member"
    }
}

/// What an expression stands for when names that do not exist are passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expansion {
    /// The names, in the order of the expression, none twice.
    pub names: Vec<String>,
    /// What names nothing, in the order of the expression, none twice.
    pub unknown: Vec<String>,
}

/// Why a noderange could not be read or expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoderangeError {
    /// The part of the expression around the place.
    pub excerpt: String,
    /// Where in the excerpt it is, in characters from 0.
    pub caret: usize,
    /// Where in the expression it is, in characters from 1.
    pub column: usize,
    /// What is wrong there.
    pub problem: NoderangeProblem,
}

impl fmt::Display for NoderangeError {
    /// Writes the problem, the expression, and a caret under the place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  {}\n  {:caret$}^", self.problem, self.excerpt, "", caret = self.caret)
    }
}

impl std::error::Error for NoderangeError {}

/// What is wrong with a noderange.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoderangeProblem {
    /// The name is not that of a node or a group, or of a member.
    #[error("{name} is not a {kind}")]
    Unknown {
        /// The name, cut to 80 characters.
        name: String,
        /// What it could have been.
        kind: &'static str,
    },
    /// The language has it, but not yet here.
    #[error("{0} not supported yet")]
    Unsupported(&'static str),
    /// The text is no noderange.
    #[error("{0}")]
    Syntax(&'static str),
    /// The expression stands for too many names.
    #[error("too many names: at most {NAMES_MAX}")]
    TooMany,
}

impl NoderangeError {
    fn new(text: &str, at: usize, problem: NoderangeProblem) -> Self {
        const AROUND: usize = 36;
        let before = text.get(..at).unwrap_or(text).chars().count();
        let skipped = before.saturating_sub(AROUND);
        let lead = if skipped > 0 { "..." } else { "" };
        let mut rest = text.chars().skip(skipped);
        let mut excerpt = lead.to_owned();
        excerpt.extend(rest.by_ref().take(2 * AROUND).map(|c| if c.is_control() { ' ' } else { c }));
        if rest.next().is_some() {
            excerpt.push_str("...");
        }
        Self { excerpt, caret: lead.len() + before - skipped, column: before + 1, problem }
    }
}

/// Returns the names that an expression stands for, in its order, none twice.
///
/// # Errors
/// [`NoderangeError`] at the first name that does not exist, at a range that runs backwards, or when there are more
/// than [`NAMES_MAX`] names.
pub fn expand(expression: &Expression, universe: &dyn Universe) -> Result<Vec<String>, NoderangeError> {
    evaluate(expression, Some(universe), false).map(|expansion| expansion.names)
}

/// Returns the names that an expression stands for, and apart from them what names nothing.
///
/// # Errors
/// [`NoderangeError`] only when there are more than [`NAMES_MAX`] names.
pub fn expand_lenient(expression: &Expression, universe: &dyn Universe) -> Result<Expansion, NoderangeError> {
    evaluate(expression, Some(universe), true)
}

/// Returns the names that an expression spells, whether they exist or not: how new nodes are named.
///
/// Here `n1-n3` is a range, and `n1-ib`, whose ends are not alike, a name.
///
/// # Errors
/// [`NoderangeError`] at a range that runs backwards, or when there are more than [`NAMES_MAX`] names.
pub fn expand_names(expression: &Expression) -> Result<Vec<String>, NoderangeError> {
    evaluate(expression, None, false).map(|expansion| expansion.names)
}

fn evaluate(
    expression: &Expression,
    universe: Option<&dyn Universe>,
    lenient: bool,
) -> Result<Expansion, NoderangeError> {
    let mut evaluation = Evaluation { universe, lenient, ..Evaluation::default() };
    for term in &expression.terms {
        each(&term.pieces, &mut String::new(), &mut |name| evaluation.look_up(term.operator, name))
            .map_err(|problem| NoderangeError::new(&expression.text, term.at, problem))?;
    }
    let mut ordered: Vec<_> = evaluation.places.into_iter().collect();
    ordered.sort_unstable_by_key(|(_, place)| *place);
    let names = ordered.into_iter().map(|(name, _)| name).collect();
    Ok(Expansion { names, unknown: evaluation.unknown })
}

/// Calls `found` with every name that the pieces spell; the last choice varies fastest.
fn each<E>(pieces: &[Piece], prefix: &mut String, found: &mut dyn FnMut(&str) -> Result<(), E>) -> Result<(), E> {
    let Some((piece, rest)) = pieces.split_first() else { return found(prefix) };
    let written = prefix.len();
    let choices = match piece {
        Piece::Literal(text) => std::slice::from_ref(text),
        Piece::Choice(texts) => texts,
    };
    for text in choices {
        prefix.push_str(text);
        each(rest, prefix, found)?;
        prefix.truncate(written);
    }
    Ok(())
}

/// Returns how many names the pieces spell.
fn count(pieces: &[Piece]) -> usize {
    pieces.iter().fold(1, |product: usize, piece| match piece {
        Piece::Literal(_) => product,
        Piece::Choice(texts) => product.saturating_mul(texts.len()),
    })
}

/// The names so far.
#[derive(Default)]
struct Evaluation<'a> {
    universe: Option<&'a dyn Universe>,
    lenient: bool,
    /// Each name, and when it was added: the order of the result.
    places: BTreeMap<String, usize>,
    unknown: Vec<String>,
    work: usize,
}

impl Evaluation<'_> {
    /// Looks one spelt name up: exact, group, range.
    fn look_up(&mut self, operator: Operator, name: &str) -> Result<(), NoderangeProblem> {
        if self.take(operator, name)? {
            return Ok(());
        }
        match parse::range(name) {
            Ok(Some(pieces)) => each(&pieces, &mut String::new(), &mut |name| {
                if self.universe.is_none() {
                    self.apply(operator, name)
                } else if self.take(operator, name)? {
                    Ok(())
                } else {
                    self.miss(name)
                }
            }),
            Ok(None) if self.universe.is_none() => self.apply(operator, name),
            Err(problem) if !self.lenient => Err(problem),
            Ok(None) | Err(_) => self.miss(name),
        }
    }

    /// Applies a name or a group that exists; returns whether it does.
    fn take(&mut self, operator: Operator, name: &str) -> Result<bool, NoderangeProblem> {
        let Some(universe) = self.universe else { return Ok(false) };
        if universe.contains(name) {
            self.apply(operator, name)?;
        } else if let Some(names) = universe.group(name) {
            for name in names {
                self.apply(operator, name)?;
            }
            self.spend()?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn apply(&mut self, operator: Operator, name: &str) -> Result<(), NoderangeProblem> {
        self.spend()?;
        match operator {
            Operator::Exclude => drop(self.places.remove(name)),
            Operator::Union if self.places.contains_key(name) => {}
            Operator::Union if self.places.len() == NAMES_MAX => return Err(NoderangeProblem::TooMany),
            // The work done so far only grows, so it orders the names.
            Operator::Union => drop(self.places.insert(name.to_owned(), self.work)),
        }
        Ok(())
    }

    fn miss(&mut self, name: &str) -> Result<(), NoderangeProblem> {
        self.spend()?;
        let name: String = name.chars().take(80).collect();
        if !self.lenient {
            let kind = self.universe.map_or("name", Universe::kind);
            return Err(NoderangeProblem::Unknown { name, kind });
        }
        if self.unknown.len() < UNKNOWN_MAX && !self.unknown.contains(&name) {
            self.unknown.push(name);
        }
        Ok(())
    }

    fn spend(&mut self) -> Result<(), NoderangeProblem> {
        self.work += 1;
        if self.work > WORK_MAX { Err(NoderangeProblem::TooMany) } else { Ok(()) }
    }
}

/// Unknown names that a lenient expansion reports.
const UNKNOWN_MAX: usize = 100;

#[cfg(test)]
mod tests;
