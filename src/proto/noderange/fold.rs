//! Folding: the short noderange that stands for a set of names, in Confluent's form.

use super::parse::split_numbers;
use crate::proto::name::natural_cmp;

/// Digits in the longest number that is folded; longer ones stay as they are.
const DIGITS_MAX: usize = 18;

/// Returns the short noderange for these names: `n[1:3,5],r1u[01:10]`.
///
/// Names are taken in natural order. A run goes on while names differ in one and the same number; a bracket never
/// covers two numbers at once, so that a reader sees at a glance what is meant. Confluent's `Bracketer` does the same.
pub fn fold<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_unstable_by(|a, b| natural_cmp(a, b));
    names.dedup();
    let mut folded: Vec<String> = Vec::new();
    let mut run: Option<Run<'_>> = None;
    for name in names {
        let Some(next) = Shape::of(name) else {
            folded.extend(run.take().map(|run| run.text()));
            folded.push(name.to_owned());
            continue;
        };
        match &mut run {
            Some(current) if current.is_like(&next) => {
                if let Some(ended) = current.extend(&next.numbers) {
                    folded.push(ended);
                }
            }
            _ => {
                folded.extend(run.take().map(|run| run.text()));
                run = Some(Run::new(next));
            }
        }
    }
    folded.extend(run.map(|run| run.text()));
    folded.join(",")
}

/// A number as it is written.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Number {
    value: u64,
    width: usize,
}

impl Number {
    /// Returns whether this number can follow another one in a range that is padded as its left end is.
    fn follows(self, other: Self) -> bool {
        let is_padded = self.width != self.value.checked_ilog10().map_or(1, |log| log as usize + 1);
        self.width >= other.width && (!is_padded || self.width == other.width)
    }
}

/// A name taken apart: the texts around its numbers, and the numbers.
struct Shape<'a> {
    texts: Vec<&'a str>,
    numbers: Vec<Number>,
}

impl<'a> Shape<'a> {
    /// Takes a name apart; nothing when it has no number, or one that is too long.
    fn of(name: &'a str) -> Option<Self> {
        let (mut texts, mut numbers) = (Vec::new(), Vec::new());
        for part in split_numbers(name) {
            if part.starts_with(|c: char| c.is_ascii_digit()) {
                if texts.len() == numbers.len() {
                    texts.push("");
                }
                let value = Some(part).filter(|digits| digits.len() <= DIGITS_MAX)?.parse().ok()?;
                numbers.push(Number { value, width: part.len() });
            } else {
                texts.push(part);
            }
        }
        (!numbers.is_empty()).then_some(Self { texts, numbers })
    }
}

/// What one of the numbers of a run has been.
#[derive(Clone)]
struct Column {
    ended: Vec<String>,
    first: Number,
    last: Number,
}

impl Column {
    fn new(number: Number) -> Self {
        Self { ended: Vec::new(), first: number, last: number }
    }

    fn span(&self) -> String {
        let Number { value, width } = self.first;
        if self.first == self.last {
            format!("{value:0width$}")
        } else {
            format!("{value:0width$}:{:0last$}", self.last.value, last = self.last.width)
        }
    }

    fn push(&mut self, number: Number) {
        if number.value != self.last.value + 1 {
            let span = self.span();
            self.ended.push(span);
            self.first = number;
        }
        self.last = number;
    }
}

/// Names of one shape that differ in at most one of their numbers.
struct Run<'a> {
    texts: Vec<&'a str>,
    columns: Vec<Column>,
    /// The number in which they differ.
    varying: Option<usize>,
}

impl<'a> Run<'a> {
    fn new(shape: Shape<'a>) -> Self {
        Self { texts: shape.texts, columns: shape.numbers.into_iter().map(Column::new).collect(), varying: None }
    }

    fn is_like(&self, shape: &Shape<'_>) -> bool {
        self.texts == shape.texts && self.columns.len() == shape.numbers.len()
    }

    /// Adds a name to the run; when it cannot be added, ends the run, begins the next one, and returns the ended one.
    ///
    /// As in Confluent, a run may only vary in the number whose change ended the run before it.
    fn extend(&mut self, numbers: &[Number]) -> Option<String> {
        let differing =
            self.columns.iter().zip(numbers).enumerate().filter(|(_, (column, next))| column.last != **next);
        let differing: Vec<usize> = differing.map(|(index, _)| index).collect();
        match differing[..] {
            [] => None,
            [one]
                if self.varying.is_none_or(|varying| varying == one)
                    && numbers[one].follows(self.columns[one].last) =>
            {
                self.varying = Some(one);
                self.columns[one].push(numbers[one]);
                None
            }
            [one] => {
                let next = self.varying.map(|_| one);
                Some(self.restart(numbers, next))
            }
            [first, second, ..] => {
                let goes_on = numbers[first].follows(self.columns[first].last);
                let next = match self.varying {
                    None => second,
                    Some(varying) if varying == first && goes_on => second,
                    Some(_) => first,
                };
                Some(self.restart(numbers, Some(next)))
            }
        }
    }

    fn restart(&mut self, numbers: &[Number], varying: Option<usize>) -> String {
        let ended = self.text();
        self.columns = numbers.iter().copied().map(Column::new).collect();
        self.varying = varying;
        ended
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (index, column) in self.columns.iter().enumerate() {
            text.push_str(self.texts[index]);
            let span = column.span();
            if column.ended.is_empty() && column.first == column.last {
                text.push_str(&span);
            } else {
                let spans: Vec<&str> = column.ended.iter().map(String::as_str).chain([span.as_str()]).collect();
                text.push('[');
                text.push_str(&spans.join(","));
                text.push(']');
            }
        }
        text.extend(self.texts.get(self.columns.len()..).into_iter().flatten().copied());
        text
    }
}
