//! Reads a TOML text key by key, and says line, column and what is allowed wherever it does not fit.
//!
//! A table knows which keys it was asked for; whatever else stands in it is a mistake that names the nearest of them.

use std::fmt;
use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::units;

/// What is wrong with a text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// From 1.
    pub(crate) line: usize,
    /// In characters, from 1.
    pub(crate) column: usize,
    pub(crate) message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

impl Mistake {
    fn at(text: &str, offset: usize, message: String) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1, message }
    }
}

/// Parses a text and has its top-level table read; every key must be asked for.
pub(crate) fn read<T>(text: &str, top: impl FnOnce(&mut Table<'_>) -> Result<T, Mistake>) -> Result<T, Mistake> {
    let root = DeTable::parse(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        Mistake::at(text, offset, error.message().to_owned())
    })?;
    let mut table = Table { text, name: String::new(), span: 0..0, entries: root.get_ref(), asked: Vec::new() };
    let read = top(&mut table)?;
    table.finish()?;
    Ok(read)
}

/// A table, and which of its keys were asked for.
#[derive(Debug)]
pub(crate) struct Table<'a> {
    text: &'a str,
    /// As it is written in the text, such as `[mesh]`; empty for the top level.
    name: String,
    span: Range<usize>,
    entries: &'a DeTable<'a>,
    asked: Vec<&'static str>,
}

impl<'a> Table<'a> {
    /// Returns the value of a key, if it is there.
    pub(crate) fn get(&mut self, key: &'static str) -> Option<Value<'a>> {
        self.asked.push(key);
        let (_, value) = self.entries.iter().find(|(name, _)| name.get_ref().as_ref() == key)?;
        Some(Value { text: self.text, key: key.to_owned(), value })
    }

    /// Returns the value of a key that must be there.
    pub(crate) fn require(&mut self, key: &'static str) -> Result<Value<'a>, Mistake> {
        if let Some(value) = self.get(key) {
            return Ok(value);
        }
        // A misspelt key is told as such, not as one that is missing.
        let is_like = |name: &&str| distance(name, key) <= name.len() / 3;
        if let Some(name) = self.strange().map(|(name, _)| name).find(is_like) {
            return Err(self.unknown(name));
        }
        Err(self.mistake(format!("{} needs `{key}`", self.named())))
    }

    /// Returns a table below this one; an empty one when it is not there.
    pub(crate) fn section<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Table<'_>) -> Result<T, Mistake>,
    ) -> Result<Option<T>, Mistake> {
        self.get(key).map(|value| value.table(&format!("[{key}]"), read)).transpose()
    }

    /// Reads each table of an array of tables.
    pub(crate) fn sections<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Table<'_>) -> Result<T, Mistake>,
    ) -> Result<Vec<T>, Mistake> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let entries = value.list()?;
        entries.into_iter().map(|entry| entry.table(&format!("[[{key}]]"), &mut read)).collect()
    }

    /// Returns the one of these keys that is there; several, or none, are a mistake.
    pub(crate) fn one_of(&mut self, keys: &[&'static str], what: &str) -> Result<(&'static str, Value<'a>), Mistake> {
        let mut found: Vec<_> = keys.iter().filter_map(|key| Some((*key, self.get(key)?))).collect();
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => match self.strange().next().map(|(name, _)| name) {
                Some(name) => Err(self.unknown(name)),
                None => Err(self.mistake(format!("{} names no {what}: one of {}", self.named(), keys.join(", ")))),
            },
            _ => {
                let (first, second) = (found[0].0, &found[1].1);
                Err(second.mistake(format!("{} names two kinds of {what}, `{first}` and this one", self.named())))
            }
        }
    }

    /// Says what is wrong with the table as a whole.
    pub(crate) fn mistake(&self, message: String) -> Mistake {
        Mistake::at(self.text, self.span.start, message)
    }

    fn named(&self) -> &str {
        if self.name.is_empty() { "the scenario" } else { &self.name }
    }

    fn strange(&self) -> impl Iterator<Item = (&'a str, Range<usize>)> {
        let asked = self.asked.clone();
        let entries = self.entries.iter().map(|(name, _)| (name.get_ref().as_ref(), name.span()));
        entries.filter(move |(name, _)| !asked.contains(name))
    }

    fn unknown(&self, name: &str) -> Mistake {
        let span = self.entries.iter().map(|(name, _)| name).find(|other| other.get_ref().as_ref() == name);
        let offset = span.map_or(self.span.start, |name| name.span().start);
        let (within, allowed) = (self.named(), self.asked.join(", "));
        let nearest = self.asked.iter().min_by_key(|key| distance(key, name));
        let hint = match nearest.filter(|key| distance(key, name) <= name.len().div_ceil(2)) {
            Some(nearest) => format!("; did you mean `{nearest}`?"),
            None => String::new(),
        };
        Mistake::at(self.text, offset, format!("{within} has no key `{name}`{hint} (it has {allowed})"))
    }

    /// Every key was asked for.
    fn finish(&self) -> Result<(), Mistake> {
        let mut strange: Vec<_> = self.strange().collect();
        strange.sort_by_key(|(_, span)| span.start);
        strange.first().map_or(Ok(()), |(name, _)| Err(self.unknown(name)))
    }
}

/// A value and its key.
#[derive(Clone, Debug)]
pub(crate) struct Value<'a> {
    text: &'a str,
    key: String,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Value<'a> {
    pub(crate) fn mistake(&self, message: String) -> Mistake {
        Mistake::at(self.text, self.value.span().start, message)
    }

    fn expected(&self, what: &str) -> Mistake {
        self.mistake(format!("`{}` must be {what}", self.key))
    }

    pub(crate) fn string(&self) -> Result<&'a str, Mistake> {
        self.value.get_ref().as_str().ok_or_else(|| self.expected("a text in quotes"))
    }

    pub(crate) fn boolean(&self) -> Result<bool, Mistake> {
        self.value.get_ref().as_bool().ok_or_else(|| self.expected("true or false"))
    }

    /// Returns whether it is an array.
    pub(crate) fn is_list(&self) -> bool {
        self.value.get_ref().is_array()
    }

    /// Returns whether it is a whole number.
    pub(crate) fn is_number(&self) -> bool {
        self.value.get_ref().is_integer()
    }

    pub(crate) fn number(&self, allowed: RangeInclusive<i64>) -> Result<i64, Mistake> {
        let text = self.value.get_ref().as_integer();
        let number = text.and_then(|number| i64::from_str_radix(number.as_str(), number.radix()).ok());
        let (low, high) = (allowed.start(), allowed.end());
        number
            .filter(|number| allowed.contains(number))
            .ok_or_else(|| self.expected(&format!("a whole number from {low} to {high}")))
    }

    pub(crate) fn count(&self, allowed: RangeInclusive<usize>) -> Result<usize, Mistake> {
        let (low, high) = (*allowed.start() as i64, *allowed.end() as i64);
        self.number(low..=high).map(|number| number as usize)
    }

    /// Reads a duration in nanoseconds, such as `"250ms"`.
    pub(crate) fn duration(&self) -> Result<u64, Mistake> {
        let allowed = "a duration such as \"250ms\", \"1.5s\", \"2m\" or \"1h\"";
        let text = self.value.get_ref().as_str().ok_or_else(|| self.expected(allowed))?;
        units::duration(text).ok_or_else(|| self.expected(allowed))
    }

    /// Reads two durations in nanoseconds, such as `"1ms..8ms"`.
    pub(crate) fn durations(&self) -> Result<(u64, u64), Mistake> {
        let allowed = "a range of durations such as \"1ms..8ms\", the smaller one first";
        let text = self.value.get_ref().as_str().ok_or_else(|| self.expected(allowed))?;
        let (low, high) = text.split_once("..").unwrap_or((text, text));
        let both = units::duration(low).zip(units::duration(high)).filter(|(low, high)| low <= high);
        both.ok_or_else(|| self.expected(allowed))
    }

    /// Reads a signed duration in milliseconds, such as `"-1h"`.
    pub(crate) fn signed_ms(&self) -> Result<i64, Mistake> {
        let allowed = "a duration with a sign such as \"-1h\" or \"+90s\"";
        let text = self.value.get_ref().as_str().ok_or_else(|| self.expected(allowed))?;
        let magnitude = units::duration(text.trim_start_matches(['-', '+'])).ok_or_else(|| self.expected(allowed))?;
        let ms = (magnitude / 1_000_000) as i64;
        Ok(if text.starts_with('-') { -ms } else { ms })
    }

    /// Reads a share in thousandths, such as `"2.5%"`.
    pub(crate) fn permille(&self) -> Result<u64, Mistake> {
        let allowed = "a share such as \"2.5%\", in steps of a tenth";
        let text = self.value.get_ref().as_str().ok_or_else(|| self.expected(allowed))?;
        units::permille(text).ok_or_else(|| self.expected(allowed))
    }

    /// Reads a member of a mesh of that many, such as `"m2"`.
    pub(crate) fn member(&self, members: usize) -> Result<usize, Mistake> {
        let text = self.string()?;
        let number = text.strip_prefix('m').and_then(|digits| digits.parse::<usize>().ok());
        number.filter(|number| *number < members && text == format!("m{number}")).ok_or_else(|| {
            let last = members.saturating_sub(1);
            self.mistake(format!("there is no member {text:?}; this mesh has \"m0\" to \"m{last}\""))
        })
    }

    /// Reads members: a list of them, one of them, or `"all"`.
    pub(crate) fn members(&self, members: usize) -> Result<Vec<usize>, Mistake> {
        if self.value.get_ref().as_str() == Some("all") {
            return Ok((0..members).collect());
        }
        if !self.is_list() {
            return Ok(vec![self.member(members)?]);
        }
        let mut named = Vec::new();
        for value in self.list()? {
            let member = value.member(members)?;
            if named.contains(&member) {
                return Err(value.mistake(format!("m{member} is named twice")));
            }
            named.push(member);
        }
        Ok(named)
    }

    /// Reads two different members.
    pub(crate) fn pair(&self, members: usize) -> Result<(usize, usize), Mistake> {
        match self.members(members)?[..] {
            [a, b] => Ok((a, b)),
            _ => Err(self.expected("two members, such as [\"m0\", \"m1\"]")),
        }
    }

    /// Reads one of a few words.
    pub(crate) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, Mistake> {
        let text = self.string()?;
        let found = words.iter().find(|(word, _)| *word == text);
        found.map(|(_, means)| *means).ok_or_else(|| {
            let allowed: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
            self.mistake(format!("`{}` is one of {}, not {text:?}", self.key, allowed.join(", ")))
        })
    }

    pub(crate) fn list(&self) -> Result<Vec<Value<'a>>, Mistake> {
        let list = self.value.get_ref().as_array().ok_or_else(|| self.expected("a list"))?;
        Ok(list.iter().map(|value| Value { text: self.text, key: self.key.clone(), value }).collect())
    }

    /// Reads a table; every key of it must be asked for.
    pub(crate) fn table<T>(
        &self,
        name: &str,
        read: impl FnOnce(&mut Table<'_>) -> Result<T, Mistake>,
    ) -> Result<T, Mistake> {
        let entries = self.value.get_ref().as_table().ok_or_else(|| self.expected("a table"))?;
        let name = name.to_owned();
        let mut table = Table { text: self.text, name, span: self.value.span(), entries, asked: Vec::new() };
        let read = read(&mut table)?;
        table.finish()?;
        Ok(read)
    }

    /// Reads the table that stands for this value, such as `{ member = "m1", period = "4s" }`.
    pub(crate) fn inline<T>(&self, read: impl FnOnce(&mut Table<'_>) -> Result<T, Mistake>) -> Result<T, Mistake> {
        self.table(&format!("`{}`", self.key), read)
    }

    /// Returns the keys of a table with their values, whatever they are called.
    pub(crate) fn pairs(&self) -> Result<Vec<(String, Value<'a>)>, Mistake> {
        let entries = self.value.get_ref().as_table().ok_or_else(|| self.expected("a table"))?;
        let pair = |(name, value): (&'a Spanned<toml::de::DeString<'a>>, &'a Spanned<DeValue<'a>>)| {
            let key = name.get_ref().to_string();
            (key.clone(), Value { text: self.text, key, value })
        };
        Ok(entries.iter().map(pair).collect())
    }
}

/// The number of letters to change, add or leave out (Levenshtein).
pub(super) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<_> = b.chars().collect();
    let mut row: Vec<_> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in b.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh(text: &str) -> Result<usize, Mistake> {
        read(text, |top| {
            let members = top.section("mesh", |mesh| mesh.require("members")?.count(1..=9))?;
            top.get("about");
            Ok(members.unwrap_or(0))
        })
    }

    fn wrong(text: &str) -> String {
        mesh(text).expect_err("a mistake").to_string()
    }

    #[test]
    fn a_misspelt_key_is_told_with_its_place_and_the_nearest_one() {
        assert_eq!(mesh("[mesh]\nmembers = 3"), Ok(3));
        let told = wrong("about = \"x\"\n\n[mesh]\n  membres = 3");
        assert_eq!(told, "4:3: [mesh] has no key `membres`; did you mean `members`? (it has members)");
        assert_eq!(wrong("[mesh]\nmembers = 3\n[zzz]"), "3:2: the scenario has no key `zzz` (it has mesh, about)");
    }

    #[test]
    fn a_bad_value_is_told_with_what_is_allowed() {
        assert_eq!(wrong("[mesh]\nmembers = 12"), "2:11: `members` must be a whole number from 1 to 9");
        assert_eq!(wrong("[mesh]\nmembers = \"3\""), "2:11: `members` must be a whole number from 1 to 9");
        assert_eq!(wrong("[mesh]"), "1:1: [mesh] needs `members`");
        assert!(wrong("[mesh\n").starts_with("1:6: "), "{}", wrong("[mesh\n"));
    }

    #[test]
    fn columns_count_characters() {
        assert!(wrong("mesh = { members = \"é\", x = \"é\", y = 1 }").starts_with("1:20: "));
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("members", "membres"), 2);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("for", "for"), 0);
    }
}
