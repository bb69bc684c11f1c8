//! Exim as a real peer, both ways: as the next hop, and as the server that sends through the relay.
//!
//! Debian's package conflicts with Postfix's, so `scripts/test` unpacks it below `target/peers` and makes its user; nothing of
//! the host's own mail is touched. It needs root, as Postfix does.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, Uid, User};

use crate::common::{
    Client, Daemon, PATIENCE, Scratch, Sink, awkward_message, behind_trace, relay, reserved_address, same, wait_until,
};

/// What the relay sends with.
const RELAY: &str = "mail.contoso.com";

/// An Exim of our own; ended when dropped, with all its processes.
struct Exim {
    daemon: Child,
    address: std::net::SocketAddr,
    folder: PathBuf,
}

/// Where the program is.
fn program() -> PathBuf {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers/exim/usr/sbin/exim4");
    let installed = PathBuf::from("/usr/sbin/exim4");
    [unpacked, installed].into_iter().find(|path| path.exists()).expect("Exim is not here: run scripts/test")
}

impl Exim {
    /// One that sends mail for `contoso.com` to `next`, or keeps it in a maildir, with these options beside those it needs.
    fn start(scratch: &Scratch, next: Option<std::net::SocketAddr>, options: &str) -> Option<Self> {
        if !Uid::effective().is_root() {
            eprintln!("skipped: Exim needs root");
            return None;
        }
        let user = User::from_name("Debian-exim").unwrap().expect("there is no user Debian-exim: run scripts/test");
        std::fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let folder = scratch.file("exim");
        for below in ["", "spool", "log", "mail"] {
            let path = folder.join(below);
            std::fs::create_dir_all(&path).unwrap();
            chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
        let address = reserved_address();
        let at = folder.display();
        let (router, transport) = match next {
            Some(next) => (
                format!("driver = manualroute\n  route_list = * {}\n  transport = out\n  self = send", next.ip()),
                format!("driver = smtp\n  port = {}\n  hosts_try_fastopen =\n  {options}", next.port()),
            ),
            None => (
                "driver = accept\n  transport = out".to_owned(),
                format!(
                    "driver = appendfile\n  directory = {at}/mail\n  maildir_format\n  user = Debian-exim\n  envelope_to_add = false"
                ),
            ),
        };
        let main = if next.is_none() { options } else { "" };
        let config = scratch.write(
            "exim/configure",
            format!(
                "primary_hostname = exim.example
exim_path = {}
spool_directory = {at}/spool
log_file_path = {at}/log/%slog
pid_file_path = {at}/pid
local_interfaces = {}
daemon_smtp_ports = {}
tls_advertise_hosts =
keep_environment =
deliver_drop_privilege
chunking_advertise_hosts = *
dsn_advertise_hosts = *
smtputf8_advertise_hosts = *
pipelining_connect_advertise_hosts =
host_lookup =
rfc1413_hosts =
message_size_limit = 50M
acl_smtp_rcpt = takes_all
acl_smtp_data = takes_all
{main}
begin acl
takes_all:
  accept
begin routers
all:
  {router}
begin transports
out:
  {transport}
begin retry
* * F,1d,1s
",
                program().display(),
                address.ip(),
                address.port()
            ),
        );
        // Exim believes a configuration only of root's.
        std::fs::set_permissions(&config, PermissionsExt::from_mode(0o644)).unwrap();
        let daemon = Command::new(program())
            .arg("-C")
            .arg(&config)
            .args(["-bdf", "-q5s"])
            .current_dir(&folder)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("stderr")).unwrap())
            .spawn()
            .unwrap();
        let exim = Self { daemon, address, folder };
        wait_until("Exim greets", PATIENCE, || {
            Client::greeted(address).is_ok_and(|(_, greeting)| greeting.starts_with("220"))
        });
        Some(exim)
    }

    fn log(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        [read("stderr"), read("log/mainlog"), read("log/paniclog")].concat()
    }

    /// What lies in the maildir, with the line ends of the wire.
    fn wait_for_mail(&self, count: usize) -> Vec<Vec<u8>> {
        let files = || -> Vec<PathBuf> {
            let entries = std::fs::read_dir(self.folder.join("mail/new"));
            entries.map(|all| all.map(|file| file.unwrap().path()).collect()).unwrap_or_default()
        };
        wait_until("Exim has delivered", PATIENCE, || files().len() >= count);
        let wire = |path: PathBuf| {
            let mut wire = Vec::new();
            for line in std::fs::read(path).unwrap().split_inclusive(|byte| *byte == b'\n') {
                wire.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
                wire.extend_from_slice(b"\r\n");
            }
            wire
        };
        files().into_iter().map(wire).collect()
    }
}

impl Drop for Exim {
    fn drop(&mut self) {
        // Its queue runners and deliveries are of its group.
        if let Ok(group) = i32::try_from(self.daemon.id()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGTERM);
            std::thread::sleep(Duration::from_millis(10));
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let _ = self.daemon.wait();
        if std::thread::panicking() {
            eprintln!("Exim says:\n{}", self.log());
        }
    }
}

fn config(hop: std::net::SocketAddr) -> String {
    relay(&format!(
        r#"hostname = "{RELAY}"

[[receive_connector]]
name = "in"
listen = ["127.0.0.1:0"]
origin = "client"
tls = "off"

[[send_connector]]
name = "out"
address_spaces = ["*"]
smart_hosts = ["{hop}"]
tls = "off"
"#
    ))
}

/// Exim as the next hop: CHUNKING, DSN, SMTPUTF8 and 8-bit octets, each message as it was.
#[test]
fn exim_takes_what_the_relay_sends() {
    let scratch = Scratch::new();
    let Some(exim) = Exim::start(&scratch, None, "") else { return };
    let daemon = Daemon::spawn(scratch.path(), &config(exim.address));
    let content = awkward_message("to-exim");
    let mut client = Client::hello(daemon.address());
    let reply = client.deliver("erin@fabrikam.com", &["julie@contoso.com", "\"a b\"@contoso.com"], &content).unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    for file in exim.wait_for_mail(2) {
        same(behind_trace(&file, "From: Erin"), &content);
    }
    // Outside of ASCII, with what a report would need.
    for (line, code) in [
        ("MAIL FROM:<erin@fabrikam.com> SMTPUTF8 BODY=8BITMIME RET=HDRS ENVID=one", "250"),
        ("RCPT TO:<jülie@contoso.com> NOTIFY=FAILURE ORCPT=utf-8;j\\x{FC}lie@contoso.com", "250"),
        ("DATA", "354"),
        ("From: Erin <erin@fabrikam.com>\r\nSubject: für jülie\r\n\r\nhello\r\n.", "250"),
    ] {
        let reply = client.say(line);
        assert!(reply.starts_with(code), "{line}: {reply}");
    }
    assert_eq!(exim.wait_for_mail(3).len(), 3);
    wait_until("Exim logs whom it was for", PATIENCE, || exim.log().contains("<jülie@contoso.com>"));
}

/// Exim as the server that sends through the relay, by BDAT where the relay offers it and by DATA where Exim shall not use
/// it: each message as it was, SMTPUTF8 recipients too.
#[test]
fn exim_sends_through_the_relay() {
    for options in ["hosts_try_chunking = *", "hosts_try_chunking ="] {
        let (scratch, sink) = (Scratch::new(), Sink::start());
        let daemon = Daemon::spawn(scratch.path(), &config(sink.address));
        let Some(exim) = Exim::start(&scratch, Some(daemon.address()), options) else { return };
        let content = awkward_message("from-exim");
        let mut client = Client::hello(exim.address);
        let to = ["julie@contoso.com", "david@contoso.com", "\"a b\"@contoso.com"];
        let reply = client.deliver("erin@fabrikam.com", &to, &content).unwrap();
        assert!(reply.starts_with("250"), "{reply}");
        let mut found: Vec<String> = Vec::new();
        wait_until("all have it", PATIENCE, || sink.look(|all| all.iter().map(|one| one.to.len()).sum::<usize>() >= 3));
        for arrival in sink.arrivals() {
            same(behind_trace(&arrival.content, "From: Erin"), &content);
            found.extend(arrival.to);
        }
        found.sort_unstable();
        assert_eq!(found, ["\"a b\"@contoso.com", "david@contoso.com", "julie@contoso.com"], "{options}");

        let before = sink.count();
        for (line, code) in [
            ("MAIL FROM:<erin@fabrikam.com> SMTPUTF8 BODY=8BITMIME", "250"),
            ("RCPT TO:<jülie@contoso.com> NOTIFY=FAILURE,DELAY", "250"),
            ("DATA", "354"),
            ("From: Erin <erin@fabrikam.com>\r\nSubject: für jülie\r\n\r\nhello\r\n.", "250"),
        ] {
            let reply = client.say(line);
            assert!(reply.starts_with(code), "{options}: {line}: {reply}");
        }
        let arrival = sink.wait_for(before + 1).pop().unwrap();
        assert_eq!(arrival.to, ["jülie@contoso.com"], "{options}");
        assert!(arrival.text().contains("Subject: für jülie\r\n"), "{}", arrival.text());
    }
}
