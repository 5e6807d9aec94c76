//! Cases: failures kept as files, with everything that is needed to see the same again.
//!
//! A case is the text of a scenario in which nothing is left to the seed but the draws, and a `[case]` section that says
//! what the run must come to. Beside it lies the trace, so that a run that differs can be told from where on.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};

use crate::check::Rule;
use crate::run::{Options, Report, run_with};
use crate::scenario::{Mistake, Scenario, read, top};
use crate::trace;

/// The number of the format of case files.
const FORMAT: i64 = 1;
/// A hash over the sources that this program was built from.
pub(crate) const CODE: &str = env!("COLLECTIVE_SIM_CODE");

/// A failure, kept.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Case {
    pub(crate) scenario: Scenario,
    pub(crate) seed: u64,
    /// What it was seen with, see [`CODE`].
    pub(crate) code: String,
    /// The hash over everything that happened.
    pub(crate) hash: String,
    /// What was violated.
    pub(crate) violates: Option<Rule>,
}

impl Case {
    /// Makes a case of what a run came to.
    pub(crate) fn new(scenario: &Scenario, report: &Report) -> Self {
        Self {
            scenario: scenario.expanded(report.seed),
            seed: report.seed,
            code: CODE.to_owned(),
            hash: report.hash.clone(),
            violates: report.first,
        }
    }

    /// Reads a case from its text.
    pub(crate) fn parse(text: &str) -> Result<Self, Mistake> {
        read(text, |table| {
            let format = table.require("case")?;
            let (seed, code, hash, violates) = format.table("[case]", |table| {
                table.require("format")?.number(FORMAT..=FORMAT)?;
                // TOML's numbers have a sign; seeds use all 64 bits.
                let seed = table.require("seed")?;
                let seed =
                    seed.string()?.parse().map_err(|_| seed.mistake("`seed` is a number in quotes".to_owned()))?;
                let code = table.require("code")?.string()?.to_owned();
                let hash = table.require("trace")?.string()?.to_owned();
                let rules: Vec<_> = Rule::ALL.into_iter().map(|rule| (rule.word(), rule)).collect();
                let violates = table.get("violates").map(|value| value.word(&rules)).transpose()?;
                Ok((seed, code, hash, violates))
            })?;
            Ok(Self { scenario: top(table)?, seed, code, hash, violates })
        })
    }

    /// Writes the case so that [`Self::parse`] reads the same.
    pub(crate) fn text(&self) -> String {
        let violates = self.violates.map_or_else(String::new, |rule| format!("violates = \"{}\"\n", rule.word()));
        let (seed, code, hash) = (self.seed, &self.code, &self.hash);
        let head =
            format!("[case]\nformat = {FORMAT}\nseed = \"{seed}\"\ncode = \"{code}\"\ntrace = \"{hash}\"\n{violates}");
        let scenario = self.scenario.text();
        // The keys without a section come first.
        let sections = scenario.find("\n[").map_or(scenario.len(), |at| at + 1);
        format!("{}{head}\n{}", &scenario[..sections], &scenario[sections..])
    }

    /// Reads a case from a file.
    ///
    /// # Errors
    /// When it cannot be read, or has a mistake, with its place.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).map_err(|mistake| anyhow!("{}:{mistake}", path.display()))
    }

    /// Writes the case to a directory, and the trace beside it; returns the path of the case.
    ///
    /// # Errors
    /// When the directory takes no files.
    pub(crate) fn save(&self, directory: &Path, addition: &str) -> anyhow::Result<PathBuf> {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let path = directory.join(format!("{}-{}{addition}.toml", self.scenario.name, self.seed));
        std::fs::write(&path, self.text()).with_context(|| format!("cannot write {}", path.display()))?;
        let report = run_with(&self.scenario, self.seed, &Options { trace: true, ..Options::default() });
        let (head, lines) = report.trace.context("a trace was asked for")?;
        std::fs::write(trace_of(&path), trace::write(&head, &lines)?)?;
        Ok(path)
    }
}

/// Returns where the trace of a case lies.
pub(crate) fn trace_of(case: &Path) -> PathBuf {
    case.with_extension("jsonl")
}

/// Returns the first line in which two traces differ, as told by each; nothing when they are equal.
pub(crate) fn difference(a: &str, b: &str) -> Option<(usize, String, String)> {
    let (mut a, mut b) = (a.lines(), b.lines());
    let mut number = 0;
    loop {
        number += 1;
        match (a.next(), b.next()) {
            (None, None) => return None,
            (a, b) if a == b => {}
            (a, b) => return Some((number, a.unwrap_or("the end").to_owned(), b.unwrap_or("the end").to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::find;

    #[test]
    fn a_case_is_read_as_it_was_written() {
        let scenario = find("random").expect("in the library");
        let case = Case {
            scenario: scenario.expanded(7),
            seed: u64::MAX,
            code: CODE.to_owned(),
            hash: "ab".repeat(32),
            violates: Some(Rule::OneManager),
        };
        assert_eq!(Case::parse(&case.text()), Ok(case.clone()), "{}", case.text());
        assert!(Case::parse(&case.text().replace("violates = \"one-manager\"", "violates = \"none\"")).is_err());
        assert!(Case::parse(&scenario.text()).expect_err("no case").message.contains("needs `case`"));
    }

    /// What was found and mended stays so; the hashes are of the code that failed.
    #[test]
    fn every_mended_case_runs_clean() {
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/cases")).expect("a directory of cases");
        let mut paths: Vec<_> = files.filter_map(|file| Some(file.ok()?.path())).collect();
        paths.sort();
        assert!(!paths.is_empty());
        for path in paths {
            let case = Case::load(&path).expect("a case");
            let report = crate::run::run(&case.scenario, case.seed, false);
            assert_eq!(report.violations, Vec::<String>::new(), "{}", path.display());
        }
    }

    #[test]
    fn the_first_difference_is_told() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(difference("a\nb", "a\nc"), Some((2, "b".into(), "c".into())));
        assert_eq!(difference("a", "a\nc"), Some((2, "the end".into(), "c".into())));
    }
}
