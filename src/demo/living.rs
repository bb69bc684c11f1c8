//! What a world has that stays up for a person, and that a test of mail needs not: the console, tracking files for it to
//! read, a short ladder of retries, and a partner who has bad spells.

use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};

use super::free_port;
use crate::config::Config;

/// The partner's domain.
pub const PARTNER_DOMAIN: &str = "adatum.com";
/// The host that takes its mail, and the name that it proves.
pub const PARTNER_HOST: &str = "mx.adatum.com";

/// Where a relay's console is, and what opens it.
#[derive(Debug, Clone)]
pub struct Console {
    /// The admin interface.
    pub address: SocketAddr,
    /// Its token.
    pub token: String,
}

/// The address to open: the token stands behind `#`, which no browser sends to anybody.
impl fmt::Display for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}/#token={}", self.address, self.token)
    }
}

impl Console {
    /// Of a relay that runs with this configuration; `None`: it has none.
    pub(super) fn of(config: &Config) -> io::Result<Option<Self>> {
        let Some(admin) = &config.admin else { return Ok(None) };
        let token = fs::read_to_string(&admin.token_file)?.trim().to_owned();
        Ok(Some(Self { address: admin.listen, token }))
    }
}

/// What is written into a relay's configuration.
pub(super) struct Extras {
    /// The console's port, bound before the configuration names it: the command line finds it there.
    pub listener: StdListener,
    /// Where the partner listens.
    pub partner: SocketAddr,
    /// The authority's certificate, as the configuration's folder sees it.
    pub ca_file: &'static str,
}

impl Extras {
    pub(super) fn new(partner: SocketAddr, ca_file: &'static str) -> io::Result<Self> {
        Ok(Self { listener: free_port()?, partner, ca_file })
    }

    /// The configuration `text` of a world, with all of this in it.
    pub(super) fn written_into(&self, text: &str) -> io::Result<String> {
        let text = text
            // Nobody who looks waits for a minute.
            .replacen("[spool]\n", "[spool]\nretry = [\"5s\", \"10s\", \"20s\"]\n", 1)
            .replacen("\n[tracking]\npath = \"\"", "\n[tracking]\npath = \"tracking\"", 1)
            .replacen(
                "\n[admin]\nlisten = \"\"",
                &format!("\n[admin]\nlisten = \"{}\"", self.listener.local_addr()?),
                1,
            );
        Ok(format!(
            r#"{text}
[[send_connector]]
name = "to-partner"
address_spaces = ["{PARTNER_DOMAIN}"]
smart_hosts = ["{PARTNER_HOST}:{port}"]
tls = "domain"
tls_domain = ["{PARTNER_HOST}"]
ca_file = "{ca_file}"
"#,
            port = self.partner.port(),
            ca_file = self.ca_file,
        ))
    }
}
