//! Reading a noderange: terms, operators, brackets, and ranges between two names.

use std::collections::BTreeSet;

use super::{
    EXPRESSION_BYTES_MAX, Expression, NAMES_MAX, NoderangeError, NoderangeProblem, Operator, PIECES_MAX, Piece, Term,
    WORK_MAX, count,
};

use crate::proto::name::NAME_BYTES_MAX;
use NoderangeProblem::{Syntax, TooMany, Unsupported};

/// Digits in the longest number.
const DIGITS_MAX: usize = 18;
/// Bytes in the longest range: two names, and what is between them.
const RANGE_BYTES_MAX: usize = 2 * NAME_BYTES_MAX + 2;

/// Reads a noderange.
///
/// # Errors
/// [`NoderangeError`] with the place: [`NoderangeProblem::Syntax`] for what is no noderange,
/// [`NoderangeProblem::Unsupported`] for what is one in Confluent but not yet here, [`NoderangeProblem::TooMany`] for
/// brackets that stand for too many names, before they are expanded.
pub fn parse(text: &str) -> Result<Expression, NoderangeError> {
    if text.len() > EXPRESSION_BYTES_MAX {
        return Err(NoderangeError::new(text, 0, Syntax("the noderange is too long")));
    }
    let mut parser = Parser { text, at: 0, work: 0 };
    let terms = parser.terms().map_err(|(at, problem)| NoderangeError::new(text, at, problem))?;
    Ok(Expression { text: text.to_owned(), terms })
}

/// A problem, and the byte where it is.
type Failure = (usize, NoderangeProblem);

struct Parser<'a> {
    text: &'a str,
    at: usize,
    /// Names and numbers spelt or compared so far, so that a short text cannot ask for much.
    work: usize,
}

impl<'a> Parser<'a> {
    fn terms(&mut self) -> Result<Vec<Term>, Failure> {
        let mut terms = Vec::new();
        let mut operator = Operator::Union;
        loop {
            self.skip_spaces();
            let at = self.at;
            let pieces = self.atom()?;
            self.spend(at, count(&pieces))?;
            terms.push(Term { operator, at, pieces });
            self.skip_spaces();
            match self.peek() {
                None => return Ok(terms),
                Some(',') => self.at += 1,
                Some(_) => return Err((self.at, Syntax("names are separated by commas"))),
            }
            self.skip_spaces();
            operator = if self.peek() == Some('-') {
                self.at += 1;
                Operator::Exclude
            } else {
                Operator::Union
            };
        }
    }

    /// Reads one name with its brackets.
    fn atom(&mut self) -> Result<Vec<Piece>, Failure> {
        let start = self.at;
        let mut pieces = Vec::new();
        loop {
            let literal = self.take_while(is_name);
            if !literal.is_empty() {
                pieces.push(Piece::Literal(literal.to_owned()));
            }
            match self.peek() {
                Some('[') => pieces.push(Piece::Choice(self.brackets()?)),
                None | Some(',') => break,
                Some(c) if c.is_whitespace() => break,
                Some(c) => return Err((self.at, self.misfit(c))),
            }
            if count(&pieces) > NAMES_MAX {
                return Err((start, TooMany));
            }
            if pieces.len() > PIECES_MAX {
                return Err((start, Syntax("the name has too many brackets")));
            }
        }
        match pieces.first() {
            None => Err((start, Syntax("a name is missing here"))),
            Some(Piece::Literal(text)) if text.starts_with('-') => {
                Err((start, Syntax("there is nothing before this to leave names out of; write NAMES,-NAMES")))
            }
            Some(_) => Ok(pieces),
        }
    }

    /// Reads `[1-3,5,-2]`.
    fn brackets(&mut self) -> Result<Vec<String>, Failure> {
        let open = self.at;
        self.at += 1;
        let mut choices = Vec::new();
        let mut is_first = true;
        loop {
            self.skip_spaces();
            let is_excluded = self.peek() == Some('-');
            if is_excluded && is_first {
                return Err((self.at, Syntax("there is nothing before this in the brackets to leave out")));
            }
            self.at += usize::from(is_excluded);
            let at = self.at;
            let item = self.take_while(is_name);
            self.skip_spaces();
            match self.peek() {
                Some(',' | ']') if item.is_empty() => return Err((at, Syntax("a number is missing here"))),
                Some(',' | ']') => {}
                None => return Err((open, Syntax("this bracket is not closed"))),
                Some('~' | '/') => return Err((self.at, Syntax("regular expressions cannot stand in brackets"))),
                Some('[') => return Err((self.at, Syntax("brackets cannot stand in brackets"))),
                Some(_) => return Err((self.at, Syntax("this cannot stand in brackets"))),
            }
            let texts = numbers(item).map_err(|problem| (at, problem))?;
            self.spend(at, texts.len())?;
            if is_excluded {
                self.spend(at, choices.len())?;
                let texts: BTreeSet<String> = texts.into_iter().collect();
                choices.retain(|choice| !texts.contains(choice));
            } else {
                choices.extend(texts);
            }
            is_first = false;
            let is_last = self.peek() == Some(']');
            self.at += 1;
            if is_last && choices.is_empty() {
                return Err((open, Syntax("the brackets leave nothing")));
            }
            if is_last {
                return Ok(choices);
            }
        }
    }

    /// Says why a character cannot stand in a name: the language has a use for some, which comes later.
    fn misfit(&self, found: char) -> NoderangeProblem {
        let rest = &self.text[self.at..];
        let term = rest.split([',', '@']).next().unwrap_or_default();
        match found {
            '~' | '/' => Unsupported("regular expressions are"),
            '@' => Unsupported("intersections with @ are"),
            '(' | ')' => Unsupported("parentheses are"),
            '<' | '>' => Unsupported("limits with < and > are"),
            _ if term.contains('=') || term.contains("!~") => Unsupported("comparisons of attributes are"),
            '+' => Unsupported("offsets with + are"),
            ']' => Syntax("this bracket was not opened"),
            _ => Syntax("this cannot stand in a name"),
        }
    }

    fn spend(&mut self, at: usize, names: usize) -> Result<(), Failure> {
        self.work = self.work.saturating_add(names);
        if self.work > WORK_MAX { Err((at, TooMany)) } else { Ok(()) }
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn take_while(&mut self, fits: fn(u8) -> bool) -> &'a str {
        let rest = &self.text[self.at..];
        let taken = &rest[..rest.bytes().take_while(|byte| fits(*byte)).count()];
        self.at += taken.len();
        taken
    }

    fn skip_spaces(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }
}

/// The characters of names, and the colon between the ends of a range.
fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':')
}

/// Expands one item of a bracket: a number, a word, or `1-9`, `1:9`, `1..9`, each with a step as in `1:9:2`.
fn numbers(item: &str) -> Result<Vec<String>, NoderangeProblem> {
    let plain = item.replace("..", ":").replace('-', ":");
    let ends: Vec<&str> = plain.split(':').collect();
    if let [word] = ends[..] {
        return Ok(vec![word.to_owned()]);
    }
    let (first, last, step) = match ends[..] {
        [first, last] => (first, last, "1"),
        [first, last, step] => (first, last, step),
        _ => return Err(Syntax("a range has two ends and at most a step")),
    };
    let number = |digits: &str| {
        let is_number = !digits.is_empty() && digits.len() <= DIGITS_MAX && digits.bytes().all(|b| b.is_ascii_digit());
        if is_number { digits.parse().ok() } else { None }
    };
    let (Some(from), Some(to), Some(by)) = (number(first), number(last), number(step)) else {
        return Err(Syntax("a range in brackets goes from number to number"));
    };
    sequence(from, to, by, first.len())
}

fn sequence(from: u64, to: u64, step: u64, width: usize) -> Result<Vec<String>, NoderangeProblem> {
    if step == 0 {
        return Err(Syntax("a step must not be zero"));
    }
    if from > to {
        return Err(Syntax("the range runs backwards"));
    }
    if (to - from) / step >= NAMES_MAX as u64 {
        return Err(TooMany);
    }
    let mut texts = Vec::new();
    let mut number = from;
    while number <= to {
        texts.push(format!("{number:0width$}"));
        number += step;
    }
    Ok(texts)
}

/// Reads a name as a range between two names, such as `n1-n20`.
///
/// The ends must be alike but for their numbers, or it is a name like any other: `n1-ib`.
///
/// # Errors
/// [`NoderangeProblem::Syntax`] when the ends are alike but run backwards, or when a colon is left over, which no name
/// has; [`NoderangeProblem::TooMany`].
pub(super) fn range(name: &str) -> Result<Option<Vec<Piece>>, NoderangeProblem> {
    if name.len() > RANGE_BYTES_MAX {
        return Ok(None);
    }
    let Some(delimiter) = [":", "..", "-"].into_iter().find(|delimiter| name.contains(delimiter)) else {
        return Ok(None);
    };
    let parts: Vec<&str> = name.split(delimiter).collect();
    let halves = parts.len().is_multiple_of(2).then(|| parts.split_at(parts.len() / 2));
    let pieces = match halves {
        Some((left, right)) => between(&left.join(delimiter), &right.join(delimiter))?,
        None => None,
    };
    if pieces.is_none() && delimiter != "-" {
        return Err(Syntax("the ends of this range are not alike"));
    }
    Ok(pieces)
}

fn between(left: &str, right: &str) -> Result<Option<Vec<Piece>>, NoderangeProblem> {
    let (left, right) = (split_numbers(left), split_numbers(right));
    let is_number = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    let alike = |(a, b): (&&str, &&str)| a == b || (is_number(a) && is_number(b));
    let has_number = left.iter().any(|part| is_number(part));
    if left.len() != right.len() || !has_number || !left.iter().zip(&right).all(alike) {
        return Ok(None);
    }
    let mut pieces = Vec::new();
    let mut names: u64 = 1;
    for (a, b) in left.iter().zip(&right) {
        if a == b {
            pieces.push(Piece::Literal((*a).to_owned()));
        } else if a.len() > DIGITS_MAX || b.len() > DIGITS_MAX {
            return Ok(None);
        } else if let (Ok(from), Ok(to)) = (a.parse::<u64>(), b.parse::<u64>()) {
            names = names.saturating_mul(to.saturating_sub(from) + 1);
            if names > NAMES_MAX as u64 {
                return Err(TooMany);
            }
            pieces.push(Piece::Choice(sequence(from, to, 1, a.len())?));
        }
    }
    Ok(Some(pieces))
}

/// Splits a name into runs of digits and runs of the rest.
pub(super) fn split_numbers(name: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let is_digit = first.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != is_digit).unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        parts.push(part);
        rest = after;
    }
    parts
}
