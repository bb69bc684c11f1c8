//! What is wrong with a configuration: where, what was found, what was expected. All of it, not the first only.

use std::fmt;
use std::path::PathBuf;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file cannot be read or is not TOML: nothing behind that was looked at.
    Unreadable,
    /// The configuration cannot be used.
    Error,
    /// It can, but somebody should look.
    Warning,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The file.
    pub file: PathBuf,
    /// Line and column, from 1; `None` where the whole file is meant.
    pub place: Option<(usize, usize)>,
    /// What, with what was found, what was expected and what to do.
    pub text: String,
}

/// Findings, in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// Those without which the configuration would stand.
    pub fn errors(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter().filter(|problem| problem.severity != Severity::Warning)
    }

    /// The others.
    pub fn warnings(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter().filter(|problem| problem.severity == Severity::Warning)
    }

    /// True if the file could not be read, or not as TOML.
    pub fn unreadable(&self) -> bool {
        self.0.iter().any(|problem| problem.severity == Severity::Unreadable)
    }

    /// Puts them in the order of the file; those that mean the whole file come first.
    pub(super) fn sort(&mut self) {
        self.0.sort_by_key(|problem| problem.place);
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreadable | Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

impl fmt::Display for Problem {
    /// `causeway.toml:41:1: send_connector "to-cloud": tls_domain: missing; …`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some((line, column)) = self.place {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", self.text)
    }
}

impl fmt::Display for Problems {
    /// A line for each: `error: causeway.toml:41:1: …`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(f, "{}: {problem}", problem.severity)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_says_how_bad_it_is() {
        let problem =
            |severity, place, text: &str| Problem { severity, file: "a.toml".into(), place, text: text.into() };
        let problems = Problems(vec![
            problem(Severity::Unreadable, None, "cannot be read"),
            problem(Severity::Error, Some((4, 1)), "tls: missing"),
            problem(Severity::Warning, Some((9, 2)), "hostname: has no domain"),
        ]);
        let expected = "error: a.toml: cannot be read\nerror: a.toml:4:1: tls: missing\n\
             warning: a.toml:9:2: hostname: has no domain\n";
        assert_eq!(problems.to_string(), expected);
    }
}
