//! Every kind of mail an organization on two premises knows, and the way of each in the four scenarios.
//!
//! The tables are what an administrator would draw: `P` is the relay on-premises, `C` the relay in the cloud, the small
//! letters are who has mail and who gets it. One line is one copy. `demo --scenario` shows them happening; the tests
//! of the hybrid world hold both relays to them, hop by hop.

use super::hops::Place;

/// A message and who sends it from where.
#[derive(Debug, Clone, Copy)]
pub struct Mail {
    /// What it is called in the tables.
    pub name: &'static str,
    /// Where it is sent.
    pub from: Place,
    /// MAIL FROM; empty: `<>`.
    pub sender: &'static str,
    /// RCPT TO.
    pub to: &'static [&'static str],
}

/// The order in which they are shown.
pub const MAIL: &[Mail] = &[
    mail("internet to julie", Place::Internet, ERIN, &[JULIE]),
    mail("internet to david", Place::Internet, ERIN, &[DAVID]),
    mail("internet to both", Place::Internet, ERIN, &[JULIE, DAVID]),
    mail("julie to david", Place::OnPremises, JULIE, &[DAVID]),
    mail("julie to david's other name", Place::OnPremises, JULIE, &[DAVID_THERE]),
    mail("david to julie", Place::Cloud, DAVID, &[JULIE]),
    mail("david to lisa", Place::Cloud, DAVID, &[LISA]),
    mail("julie to internet", Place::OnPremises, JULIE, &[ERIN]),
    mail("david to internet", Place::Cloud, DAVID, &[ERIN]),
    mail("internet to kate", Place::Internet, ERIN, &[KATE]),
    mail("julie to kate", Place::OnPremises, JULIE, &[KATE]),
    mail("david to kate", Place::Cloud, DAVID, &[KATE]),
    mail("internet to sales", Place::Internet, ERIN, &[SALES]),
    mail("julie to sales", Place::OnPremises, JULIE, &[SALES]),
    mail("david to sales", Place::Cloud, DAVID, &[SALES]),
    mail("report to david", Place::OnPremises, NOBODY, &[DAVID]),
    mail("report to julie", Place::Cloud, NOBODY, &[JULIE]),
    mail("report to internet, onprem", Place::OnPremises, NOBODY, &[ERIN]),
    mail("report to internet, cloud", Place::Cloud, NOBODY, &[ERIN]),
];

const fn mail(name: &'static str, from: Place, sender: &'static str, to: &'static [&'static str]) -> Mail {
    Mail { name, from, sender, to }
}

/// On the Internet.
pub const ERIN: &str = "erin@fabrikam.com";
/// On-premises.
pub const JULIE: &str = "julie@contoso.com";
/// In the cloud.
pub const DAVID: &str = "david@contoso.com";
/// His hybrid routing address, as somebody may have kept it.
pub const DAVID_THERE: &str = "david@contoso.mail.onmicrosoft.com";
/// In the cloud too.
pub const LISA: &str = "lisa@contoso.com";
/// Forwarded to the Internet.
pub const KATE: &str = "kate@contoso.com";
/// A group of julie and david.
pub const SALES: &str = "sales@contoso.com";
/// The null sender.
pub const NOBODY: &str = "";

/// One of the four scenarios: what the MX says, what the relays are told, and what follows.
#[derive(Debug)]
pub struct Scenario {
    /// 1 to 4.
    pub number: u8,
    /// In a few words.
    pub title: &'static str,
    /// The relay that the MX of the organization's domain names.
    pub mx: Place,
    /// `internet` of the relay on-premises.
    pub on_premises_internet: &'static str,
    /// `internet` of the relay in the cloud.
    pub cloud_internet: &'static str,
    /// `inbound_first_hop` of the relay in the cloud.
    pub inbound_first_hop: &'static str,
    /// For each mail its copies: who gets it, and by which way.
    pub copies: &'static [(&'static str, &'static [&'static str])],
}

impl Scenario {
    /// The scenario of this number.
    pub fn numbered(number: u8) -> Option<&'static Self> {
        SCENARIOS.iter().find(|scenario| scenario.number == number)
    }

    /// The copies of this mail. Empty for one that is not in the table.
    pub fn copies_of(&self, mail: &str) -> &'static [&'static str] {
        self.copies.iter().find(|(name, _)| *name == mail).map_or(&[], |(_, copies)| copies)
    }
}

/// The four of them.
pub static SCENARIOS: [Scenario; 4] = [
    Scenario {
        number: 1,
        title: "MX in the cloud, filtered there; all Internet mail leaves from there",
        mx: Place::C,
        on_premises_internet: "cloud",
        cloud_internet: "direct",
        inbound_first_hop: "here",
        copies: &[
            ("internet to julie", &["julie: internet > C > P > onprem"]),
            ("internet to david", &["david: internet > C > cloud"]),
            ("internet to both", &["david: internet > C > cloud", "julie: internet > C > P > onprem"]),
            ("julie to david", &["david: onprem > P > C > cloud"]),
            ("julie to david's other name", &["david: onprem > P > C > cloud"]),
            ("david to julie", &["julie: cloud > C > P > onprem"]),
            ("david to lisa", &["lisa: cloud > C > cloud"]),
            ("julie to internet", &["erin: onprem > P > C > internet"]),
            ("david to internet", &["erin: cloud > C > internet"]),
            ("internet to kate", &["kate: internet > C > internet"]),
            ("julie to kate", &["kate: onprem > P > C > internet"]),
            ("david to kate", &["kate: cloud > C > internet"]),
            ("internet to sales", &["david: internet > C > cloud", "julie: internet > C > P > onprem"]),
            ("julie to sales", &["david: onprem > P > C > cloud", "julie: onprem > P > onprem"]),
            ("david to sales", &["david: cloud > C > cloud", "julie: cloud > C > P > onprem"]),
            ("report to david", &["david: onprem > P > C > cloud"]),
            ("report to julie", &["julie: cloud > C > P > onprem"]),
            ("report to internet, onprem", &["erin: onprem > P > C > internet"]),
            ("report to internet, cloud", &["erin: cloud > C > internet"]),
        ],
    },
    Scenario {
        number: 2,
        title: "MX in the cloud, filtered on-premises; Internet mail passes on-premises both ways, and leaves from the cloud",
        mx: Place::C,
        on_premises_internet: "cloud",
        cloud_internet: "on-premises",
        inbound_first_hop: "on-premises",
        copies: &[
            ("internet to julie", &["julie: internet > C > P > onprem"]),
            ("internet to david", &["david: internet > C > P > C > cloud"]),
            ("internet to both", &["david: internet > C > P > C > cloud", "julie: internet > C > P > onprem"]),
            ("julie to david", &["david: onprem > P > C > cloud"]),
            ("julie to david's other name", &["david: onprem > P > C > cloud"]),
            ("david to julie", &["julie: cloud > C > P > onprem"]),
            ("david to lisa", &["lisa: cloud > C > cloud"]),
            ("julie to internet", &["erin: onprem > P > C > internet"]),
            ("david to internet", &["erin: cloud > C > P > C > internet"]),
            ("internet to kate", &["kate: internet > C > P > C > internet"]),
            ("julie to kate", &["kate: onprem > P > C > internet"]),
            ("david to kate", &["kate: cloud > C > P > C > internet"]),
            ("internet to sales", &["david: internet > C > P > C > cloud", "julie: internet > C > P > onprem"]),
            ("julie to sales", &["david: onprem > P > C > cloud", "julie: onprem > P > onprem"]),
            ("david to sales", &["david: cloud > C > cloud", "julie: cloud > C > P > onprem"]),
            ("report to david", &["david: onprem > P > C > cloud"]),
            ("report to julie", &["julie: cloud > C > P > onprem"]),
            ("report to internet, onprem", &["erin: onprem > P > C > internet"]),
            ("report to internet, cloud", &["erin: cloud > C > P > C > internet"]),
        ],
    },
    Scenario {
        number: 3,
        title: "MX on-premises, filtered there; all Internet mail leaves from there",
        mx: Place::P,
        on_premises_internet: "direct",
        cloud_internet: "on-premises",
        inbound_first_hop: "here",
        copies: &[
            ("internet to julie", &["julie: internet > P > onprem"]),
            ("internet to david", &["david: internet > P > C > cloud"]),
            ("internet to both", &["david: internet > P > C > cloud", "julie: internet > P > onprem"]),
            ("julie to david", &["david: onprem > P > C > cloud"]),
            ("julie to david's other name", &["david: onprem > P > C > cloud"]),
            ("david to julie", &["julie: cloud > C > P > onprem"]),
            ("david to lisa", &["lisa: cloud > C > cloud"]),
            ("julie to internet", &["erin: onprem > P > internet"]),
            ("david to internet", &["erin: cloud > C > P > internet"]),
            ("internet to kate", &["kate: internet > P > internet"]),
            ("julie to kate", &["kate: onprem > P > internet"]),
            ("david to kate", &["kate: cloud > C > P > internet"]),
            ("internet to sales", &["david: internet > P > C > cloud", "julie: internet > P > onprem"]),
            ("julie to sales", &["david: onprem > P > C > cloud", "julie: onprem > P > onprem"]),
            ("david to sales", &["david: cloud > C > cloud", "julie: cloud > C > P > onprem"]),
            ("report to david", &["david: onprem > P > C > cloud"]),
            ("report to julie", &["julie: cloud > C > P > onprem"]),
            ("report to internet, onprem", &["erin: onprem > P > internet"]),
            ("report to internet, cloud", &["erin: cloud > C > P > internet"]),
        ],
    },
    Scenario {
        number: 4,
        title: "MX on-premises, filtered there; all Internet mail leaves from the cloud",
        mx: Place::P,
        on_premises_internet: "cloud",
        cloud_internet: "direct",
        inbound_first_hop: "here",
        copies: &[
            ("internet to julie", &["julie: internet > P > onprem"]),
            ("internet to david", &["david: internet > P > C > cloud"]),
            ("internet to both", &["david: internet > P > C > cloud", "julie: internet > P > onprem"]),
            ("julie to david", &["david: onprem > P > C > cloud"]),
            ("julie to david's other name", &["david: onprem > P > C > cloud"]),
            ("david to julie", &["julie: cloud > C > P > onprem"]),
            ("david to lisa", &["lisa: cloud > C > cloud"]),
            ("julie to internet", &["erin: onprem > P > C > internet"]),
            ("david to internet", &["erin: cloud > C > internet"]),
            ("internet to kate", &["kate: internet > P > C > internet"]),
            ("julie to kate", &["kate: onprem > P > C > internet"]),
            ("david to kate", &["kate: cloud > C > internet"]),
            ("internet to sales", &["david: internet > P > C > cloud", "julie: internet > P > onprem"]),
            ("julie to sales", &["david: onprem > P > C > cloud", "julie: onprem > P > onprem"]),
            ("david to sales", &["david: cloud > C > cloud", "julie: cloud > C > P > onprem"]),
            ("report to david", &["david: onprem > P > C > cloud"]),
            ("report to julie", &["julie: cloud > C > P > onprem"]),
            ("report to internet, onprem", &["erin: onprem > P > C > internet"]),
            ("report to internet, cloud", &["erin: cloud > C > internet"]),
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::{MAIL, SCENARIOS};

    /// A mail that is missing in a table would be expected nowhere, and a row of no mail be expected of nobody.
    #[test]
    fn every_table_speaks_of_every_mail() {
        let mail: Vec<&str> = MAIL.iter().map(|mail| mail.name).collect();
        for (scenario, number) in SCENARIOS.iter().zip(1..) {
            assert_eq!(scenario.number, number);
            let rows: Vec<&str> = scenario.copies.iter().map(|(name, _)| *name).collect();
            assert_eq!(rows, mail, "scenario {number}");
            for (name, copies) in scenario.copies {
                assert!(!copies.is_empty() && copies.is_sorted(), "scenario {number}, {name}");
            }
        }
    }
}
