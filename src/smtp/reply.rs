//! Replies: every one we give, and parsing those we get.
//!
//! This file is the complete list of what the daemon says on the wire; nowhere else is a code spelled out.
//!
//! Standards: RFC 5321 section 4.2 (replies), 2034 and 3463 (enhanced status codes).

use std::fmt;

/// An enhanced status code, such as 5.1.1. RFC 3463.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u16, pub u16, pub u16);

/// One reply: code, enhanced status where there is one, and text of one or several lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Three digits, 200 to 599.
    pub code: u16,
    /// The enhanced status; its class is the code's first digit.
    pub status: Option<Status>,
    /// The text without code and status; lines are separated by LF. Printable, at most 1 KiB.
    pub text: Box<str>,
}

impl Reply {
    /// True for 4yz.
    pub fn is_temporary(&self) -> bool {
        self.code / 100 == 4
    }

    /// True for 5yz.
    pub fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }

    /// True for 2yz.
    pub fn is_positive(&self) -> bool {
        self.code / 100 == 2
    }

    /// The enhanced status if it is there and of the code's class; else X.0.0. RFC 3463 section 2.
    pub fn status_or_class(&self) -> Status {
        self.status.filter(|status| status.0 == self.code / 100).unwrap_or(Status(self.code / 100, 0, 0))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl fmt::Display for Reply {
    /// On one line, as logs and reports show it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(status) = self.status {
            write!(f, " {status}")?;
        }
        for line in self.text.lines() {
            write!(f, " {line}")?;
        }
        Ok(())
    }
}
