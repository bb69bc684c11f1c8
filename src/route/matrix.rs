//! The hybrid matrix as one match: it reads like the table of interface section 5.
//!
//! `internet = "cloud"` decides for everything that is not of the organization: no address space is asked, not even
//! a more specific one, because the organization said through which premises its Internet mail leaves.
//!
//! Not yet: the cloud side, whose rows belong between these.

use crate::config::{ConnectorName, Hybrid, Internet, Origin};

/// The premises that this relay serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// `side = "on-premises"`
    OnPremises,
}

/// What a recipient turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// A mailbox on-premises.
    OnPremisesMailbox,
    /// A mailbox in the cloud.
    CloudMailbox,
    /// In an internal-relay domain, and the directory does not know it.
    Unknown,
    /// Postmaster, whom nobody knows.
    Postmaster,
    /// None of the organization's.
    Internet,
}

/// Where a row sends it.
#[derive(Debug, Clone, Copy)]
pub enum Way<'a> {
    /// To this send connector.
    To(&'a ConnectorName),
    /// By address space.
    AddressSpace,
    /// Nowhere: it came from where it would go.
    Refuse,
}

/// One row of the matrix, and the words by which it is known.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The recipient's column.
    pub row: &'static str,
    /// The key that decided.
    pub key: &'static str,
    /// What follows.
    pub way: Way<'a>,
}

/// The row for a message from `origin` to a recipient that is `bound` there.
pub fn row<'a>(hybrid: &'a Hybrid, side: Side, origin: Origin, bound: Bound) -> Row<'a> {
    let on_premises = Way::To(&hybrid.on_premises);
    let cloud = Way::To(&hybrid.cloud);
    let (row, key, way) = match (side, origin, bound) {
        (Side::OnPremises, _, Bound::OnPremisesMailbox) => ("on-premises mailbox", "hybrid.on_premises", on_premises),
        (Side::OnPremises, _, Bound::CloudMailbox) => ("cloud mailbox", "hybrid.cloud", cloud),
        (Side::OnPremises, Origin::Cloud, Bound::Unknown) => ("unknown on both premises", "none", Way::Refuse),
        (Side::OnPremises, _, Bound::Unknown) => ("unknown here, so for the other premises", "hybrid.cloud", cloud),
        (Side::OnPremises, _, Bound::Postmaster) => ("postmaster, to the own side", "hybrid.on_premises", on_premises),
        (Side::OnPremises, _, Bound::Internet) => match hybrid.internet {
            Internet::Direct => ("to the Internet", "hybrid.internet = \"direct\"", Way::AddressSpace),
            Internet::OtherPremises => ("to the Internet", "hybrid.cloud, by internet = \"cloud\"", cloud),
        },
    };
    Row { row, key, way }
}

/// `from the Internet`, and so on.
pub fn from_words(origin: Origin) -> &'static str {
    match origin {
        Origin::Internet => "from the Internet",
        Origin::OnPremises => "from on-premises",
        Origin::Cloud => "from the cloud",
        Origin::Partner => "from a partner",
        Origin::Client => "from a client",
    }
}
